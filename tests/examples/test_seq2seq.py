"""The example of greedy decoding: both models write under encryption what they write in the clear."""

import pytest
import torch
from torch import nn

import securemodel

KINDS = pytest.mark.parametrize("kind", ["lstm", "transformer"])


def digits(count: int) -> torch.Tensor:
    return torch.randint(10, (count, 6), generator=torch.Generator().manual_seed(23))


@KINDS
def test_the_shipped_weights_reverse_numbers(kind, example):
    given = digits(500)
    with torch.no_grad():
        assert (example("seq2seq", "model").load_trained(kind)(given) == given.flip(1)).all(1).float().mean() > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{}, {"parties": ("client", "witness", "lab")}], ids=["two", "three"])
@KINDS
def test_secure_decoding_writes_what_plain_decoding_writes(kind, settings, example):
    model, given = example("seq2seq", "model").load_trained(kind), digits(4)
    owners = {"weights": "lab", "inputs": "client", "outputs": "client"}
    program = securemodel.compile(model, given, **owners, **settings)
    reveals = [node for node in program.graph.nodes if node.op == "reveal"]
    assert [node.shape for node in reveals] == [(4, 6)], "only the final sequence is revealed"
    with torch.no_grad(), securemodel.local(program) as session:
        assert torch.equal(session.run(given), model(given))


@pytest.mark.slow
def test_what_is_written_is_fed_back(example):
    """With wild weights, what follows depends on what was written; with the start at every step it would differ."""
    module = example("seq2seq", "model")
    torch.manual_seed(27)
    model, given = module.Lstm().eval(), digits(4)
    for weights in model.parameters():
        nn.init.normal_(weights, std=0.7)
    program = securemodel.compile(model, given, weights="lab", inputs="client", outputs="client")
    with torch.no_grad(), securemodel.local(program) as session:
        made, right = session.run(given), model(given)
        _, state = model.reader(model.words(given))
        unfed = model.scores(model.writer(model.start.expand(4, 6, -1), state)[0]).argmax(-1)
    assert torch.equal(made, right) and len(right.unique()) > 3
    assert (right != unfed).float().mean() > 0.5


@KINDS
def test_training_learns(kind, example):
    train, given = example("seq2seq", "train"), digits(64)
    losses = []
    for steps in (1, 80):
        model = train.fit(kind, seed=3, steps=steps)
        scores = model.taught(given, given.flip(1)).flatten(0, 1)
        losses.append(nn.functional.cross_entropy(scores, given.flip(1).flatten()).item())
    assert losses[1] < losses[0] - 0.1


@pytest.mark.slow
@KINDS
def test_the_parties_write_numbers_in_reverse(kind, example, run_example):
    script = example("seq2seq", "reverse")
    said = run_example(script.__file__, [kind, "271828", "100200"], script.PARTIES)
    assert "client | 271828 -> 828172" in said and "client | 100200 -> 002001" in said
    assert not any(line.startswith("lab") for line in said)
