"""The training examples, in small, with all parties as processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

EXAMPLES = Path(__file__).parents[2] / "examples"
ACCURACY = re.compile(r"(\w+) \| epoch (\d+): loss ([\d.]+), ([\d.]+)% of the test set right")


@pytest.mark.parametrize(
    ("name", "parties", "args"),
    [
        ("train_bank_shop", ("bank", "shop", "registry"), ["--people", "500"]),
        pytest.param("train_hospitals", ("north", "south"), ["--scale", "0.25"], marks=pytest.mark.slow),
    ],
)
def test_all_parties_see_the_same_and_learn(run_example, tmp_path, name, parties, args):
    out = ["--out", str(tmp_path / "model.safetensors")] if name == "train_bank_shop" else []
    said = run_example(EXAMPLES / name / "train.py", [*args, "--epochs", "2", *out], parties)
    found = [match.groups() for line in said if (match := ACCURACY.search(line))]
    assert {who for who, *_ in found} == set(parties)
    rows = {tuple(rest) for _, *rest in found}
    assert len(rows) == 2, "every party says the same"
    last = max(rows)
    assert float(last[2]) > 55.0, "better than the largest class, or a coin"
    if out:
        assert safetensors.torch.load_file(out[1]).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


@pytest.mark.slow
def test_adapters_of_a_public_encoder(run_example, tmp_path):
    out = tmp_path / "adapters.safetensors"
    script = EXAMPLES / "finetune_lora" / "train.py"
    said = run_example(script, ["--rows", "96", "--epochs", "1", "--out", str(out)], ("clinic", "laboratory"))
    assert sum("epoch 1: mean loss 0." in line for line in said) == 2
    weights = safetensors.torch.load_file(out)
    assert {"query.up", "query.down", "query.base.weight", "head.bias"} <= weights.keys(), "torch loads it whole"
    assert weights["query.up"].abs().max() > 0, "it starts as zeros"


@pytest.mark.slow
def test_two_archives_train_a_generator_and_one_of_them_draws(run_example, tmp_path):
    args = ["--images", "24", "--epochs", "1", "--out", str(tmp_path)]
    said = run_example(EXAMPLES / "train_gan" / "train.py", args, ("archive", "museum"))
    assert sum("epoch 1: critic " in line for line in said) == 2
    assert any(line.startswith("archive | the archive has the generator") for line in said)
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
    weights = safetensors.torch.load_file(tmp_path / "generator.safetensors")
    assert {"1.weight", "7.bias"} <= weights.keys() and weights["7.bias"].shape == (1,), "of the generator alone"


def test_the_images_of_the_two_archives_are_different(example):
    train = example("train_gan", "train")
    archive, museum = (train.read(party, 20) for party in train.PARTIES)
    assert not any(torch.equal(one, other) for one in archive for other in museum)


@pytest.mark.slow
def test_dates_of_two_offices(run_example, tmp_path):
    out = tmp_path / "dates.safetensors"
    args = ["--rows", "100", "--epochs", "1", "--out", str(out)]
    said = run_example(EXAMPLES / "train_seq2seq" / "train.py", args, ("berlin", "boston"))
    assert sum("epoch 1: mean loss 2." in line for line in said) == 2
    assert any(re.search(r"^berlin \| \d+ of 1000 new dates right", line) for line in said)
    assert not any("of 1000" in line for line in said if line.startswith("boston"))
    assert "places" in safetensors.torch.load_file(out)


@pytest.fixture
def one_thread():
    """Small tensors are faster so, and much faster where other tests run beside."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_model_taught_in_the_clear_writes_dates_of_both_offices(example, one_thread):
    """The architecture and the task of the example, with what float makes of the same steps."""
    train, model = example("train_seq2seq", "train"), example("train_seq2seq", "model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        taught = model.Dates()
    optimizer = torch.optim.Adam(taught.parameters(), lr=2e-2)
    offices = (train.made_up(office, 1500) for office in train.PARTIES)
    date, digits = (torch.cat(parts) for parts in zip(*offices, strict=True))
    assert {train.text_of(date[0])[2], train.text_of(date[-1])[2]} == {".", "/"}
    for at in torch.randperm(3000, generator=torch.Generator().manual_seed(0)).repeat(2).split(50):
        loss = F.cross_entropy(taught.taught(date[at], digits[at]).flatten(0, 1), digits[at].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert train.right_of(taught, 1000) > 900
