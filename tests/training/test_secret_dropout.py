"""Dropout whose masks nobody knows: bits of all parties' numbers, as likely as they should be, in training in shares."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import securemodel
from protocols.prg import insecure_test_key
from securemodel.errors import CompileError
from securemodel.training import noise as noises
from securemodel.training.noise import NoiseSource
from securemodel.training.randoms import hidden_bits

PARTIES = ("a", "b", "c")


def training(parties=PARTIES, rate=0.3, **options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 40), nn.Dropout(rate), nn.Linear(40, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    owned = securemodel.owned
    data = securemodel.dataset(x=owned("a", torch.randn(64, 8)), y=owned("b", torch.randint(2, (64,))))
    return securemodel.compile_training(step, model, optimizer, batch=data.batches(16), parties=parties, **options)


@pytest.mark.parametrize("probability", [0.5, 0.7, 2.0**-16, 0.1])
def test_bits_are_uniform_while_one_party_draws_and_the_others_do_not(probability):
    mine = NoiseSource(insecure_test_key(3, "bits")).uniform(1 << 17)
    worst = [torch.zeros(1 << 17), torch.full((1 << 17,), 1 - 2.0**-16)]
    for theirs in worst:
        bits = hidden_bits(probability, torch.empty(1 << 9, 1 << 8), [theirs.double(), mine])
        assert bits.shape == (1 << 9, 1 << 8) and set(bits.unique().tolist()) <= {0.0, 1.0}
        assert stats.binomtest(int(bits.sum()), bits.numel(), probability).pvalue > 1e-4


def test_numbers_are_all_multiples_of_2_to_the_minus_16_and_new_in_every_call():
    source = NoiseSource(insecure_test_key(4, "bits"))
    one, two = source.uniform(200_000), source.uniform(200_000)
    assert one.dtype == torch.float64 and torch.equal(one * 2**16, (one * 2**16).floor())
    assert one.min() == 0 and one.max() == 1 - 2.0**-16
    assert stats.kstest(one.numpy(), "uniform").pvalue > 1e-3
    assert torch.corrcoef(torch.stack([one, two]))[0, 1].abs() < 5 / 200_000**0.5


@pytest.mark.parametrize("parties", [PARTIES[:2], PARTIES])
def test_training_in_shares_has_the_masks_of_all_parties_numbers(parties, monkeypatch):
    """Each party's numbers are its own input; weights are those of float with the bits that they make."""
    keys = iter([insecure_test_key(seed, "bits") for seed in range(len(parties))])
    monkeypatch.setattr(noises, "new_key", lambda: next(keys))
    job = training(parties, dropout="secret")
    assert [(drawn.party, drawn.count) for drawn in job.captured.noise] == [(name, 16 * 40) for name in parties]
    assert not job.captured.random
    with job.local() as run:
        run.step()
        made = run.export(to="a")
    parts = [NoiseSource(insecure_test_key(seed, "bits")).uniform(16 * 40) for seed in range(len(parties))]
    mask = hidden_bits(0.7, torch.empty(16, 40), parts)
    first, _, last = model = nn.Sequential(nn.Linear(8, 40), nn.Identity(), nn.Linear(40, 2))
    model.load_state_dict({name.removeprefix("model."): x for name, x in job.program.model.items()})
    x, y = job.batches.inputs(0, lambda name: True)
    F.cross_entropy(last(first(x) * mask / 0.7), y).backward()
    for name, parameter in model.named_parameters():
        assert (made[name] - (parameter - 0.1 * parameter.grad)).abs().max() < 8 * 2.0**-16, name


def test_what_it_costs_is_in_the_plan_and_the_program_is_another():
    public, secret = training(), training(dropout="secret")
    assert public.program.digest != secret.program.digest
    plans = [job.plan("lan").step for job in (public, secret)]
    assert plans[0].sent_bytes["c"] < plans[1].sent_bytes["c"] and plans[0].rounds < plans[1].rounds


def test_another_word_is_refused():
    with pytest.raises(CompileError, match="neither 'public' nor 'secret'"):
        training(dropout="hidden")
