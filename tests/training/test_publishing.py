"""Trained weights that stay in shares: a published session computes with what a run kept."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from test_joint import PARTIES, UNIT, job, together
from torch import nn

from protocols.errors import InputError
from securemodel import training
from securemodel.errors import UnsupportedOperator

EXAMPLES = (torch.zeros(8, 4), torch.zeros(8, 3))
TO = {"inputs": ("bank", "shop"), "outputs": "registry"}


class Score(nn.Module):
    """The trained model on columns of two parties."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, bank: torch.Tensor, shop: torch.Tensor) -> torch.Tensor:
        return self.model(torch.cat([bank, shop], 1))


def rows(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(count, 4, generator=generator), torch.randn(count, 3, generator=generator)


def with_norm() -> tuple[training.Training, nn.Module]:
    """A job whose model behaves differently in training, with buffers that steps change and a frozen layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = nn.Sequential(
            nn.Linear(7, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)
        )
    model[4].requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.2, momentum=0.9)

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 7, generator=generator) * 2 + 1
    data = training.dataset(x=training.owned("bank", x), y=training.owned("shop", (x[:, 0] > 0).long()))
    evaluate = {"scores": (lambda x, y: model(x), data, "bank")}
    options = {"batch": data.batches(10), "parties": ["bank", "shop"], "evaluate": evaluate}
    return training.compile_training(step, model, optimizer, **options), model


def test_a_published_session_computes_with_the_weights_of_the_run():
    made = job()
    given = rows(19)  # more than one run takes
    with made.local() as run:
        run.train_epoch()
        weights = run.export(to="bank")
        session = run.publish(Score(made.model), EXAMPLES, **TO)
    with session:
        scores = session.run(*given)
    right = F.linear(torch.cat(given, 1), weights["weight"], weights["bias"])
    assert (scores - right).abs().max() < 2 * UNIT
    start = made.model(torch.cat(given, 1))
    assert (start - right).abs().max() > 0.1, "the weights of the beginning would give something else"


def test_nothing_is_revealed_but_the_results():
    made = job()
    with made.local() as run, run.publish(Score(made.model), EXAMPLES, **TO) as session:
        reveals = [node for node in session.program.graph.nodes if node.op == "reveal"]
    assert [(node.owner, node.shape) for node in reveals] == [("registry", (8, 1))]


def test_it_is_in_evaluation_mode_and_has_statistics_and_frozen_weights():
    made, model = with_norm()
    x = torch.randn(10, 7, generator=torch.Generator().manual_seed(6))
    with made.local() as run:
        run.train_epoch()
        weights, scores = run.export(to="bank"), run.evaluate()["scores"]
        session = run.publish(model, x, inputs="bank", outputs="bank", reveal="probabilities")
    assert model.training, "the caller's model is as it was"
    with session:
        chances = session.run(x)
    model.load_state_dict(weights, strict=False)
    right = model.eval()(x).softmax(1)
    assert weights["1.running_mean"].abs().max() > 0.1
    assert (chances - right).abs().max() < 2.0**-10
    all_rows = made.batches.data.columns["x"][0].tensor
    assert (scores - model(all_rows)).abs().max() < 2.0**-9, "evaluate() too"


def test_gradients_of_a_batch_norm_in_evaluation_mode_are_refused():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x):
        loss = model(x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    data = training.dataset(x=training.owned("bank", torch.randn(8, 3)))
    with pytest.raises(UnsupportedOperator, match="call model.train"):
        training.compile_training(step, model, optimizer, batch=data.batches(4), parties=["bank", "shop"])


def test_the_run_has_ended_and_the_weights_stay():
    made = job()
    with made.local() as run:
        run.step()
        session = run.publish(Score(made.model), EXAMPLES, **TO)
        for call in (run.step, run.evaluate, lambda: run.export(to="bank")):
            with pytest.raises(InputError, match="has ended"):
                call()
    with session:
        with pytest.raises(InputError, match="weights of a training"):
            session.load(session.program, made.model)
        assert session.run(*rows(8)).shape == (8, 1), "leaving the run did not close it"


@pytest.mark.parametrize("model", [Score(nn.Linear(7, 1)), nn.Flatten()], ids=["made anew", "no parameters"])
def test_models_that_nobody_trained_are_refused(model):
    with job().local() as run:
        run.step()
        with pytest.raises(InputError, match="publish"):
            run.publish(model, EXAMPLES[:1] if isinstance(model, nn.Flatten) else EXAMPLES, **TO)
        run.step()


def test_parties_in_processes_of_their_own_publish(tmp_path):
    given = rows(8)

    def at(me: str):
        def task(run):
            run.step()
            mine = [x if owner == me else None for x, owner in zip(given, TO["inputs"], strict=True)]
            with run.publish(Score(run.job.models["model"]), EXAMPLES, **TO) as session:
                return session.run(*mine)

        return task

    scores = together({me: at(me) for me in PARTIES}, ledger=tmp_path / "ledger.jsonl")
    made = job()
    with made.local() as run:
        run.step()
        with run.publish(Score(made.model), EXAMPLES, **TO) as session:
            assert torch.equal(scores["registry"], session.run(*given)), "the same bits"
    assert scores["bank"] is None and scores["shop"] is None
