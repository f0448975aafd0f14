"""Rows that are shared once: the same training, bit for bit, and nothing sent for data in steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from test_joint import PARTIES, job, table
from torch import nn

from protocols.errors import InputError, Mismatch, PreprocessingError, PreprocessingReused
from protocols.fixedpoint import decode
from securemodel import training
from securemodel.compiler.positions import rows_read, table_nodes
from securemodel.engines.masked.store import prepare
from securemodel.inspect.audit import audit
from securemodel.inspect.fixed import fixed_point
from securemodel.training import resident
from securemodel.training.datasets import Dataset

own = training.owned


def rows_of_two(data: Dataset, cut: int = 25) -> Dataset:
    """The same columns, each with the upper rows at one party and the others at another."""
    parts = lambda t: training.rows(a=own("bank", t[:cut]), b=own("shop", t[cut:]))
    return training.dataset(**{name: parts(column[0].tensor) for name, column in data.columns.items()})


def made(shared: bool | None, data: Dataset | None = None, size: int = 11, **options: Any):
    """A training of 48 rows in batches of 11: four are left over in each epoch."""
    data = data or table()
    train, _ = data.split(0.8, seed=1)
    return job(data, batch=train.batches(size, seed=2, resident=shared), **options)


def inputs(program) -> list[str]:
    """Whose batches a step takes as input."""
    return [node.owner for node in program.graph.nodes if node.op == "input" and node.phase == "run"]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


KINDS = {
    "columns of two, labels of a third": (table, PARTIES),
    "rows of two": (lambda: rows_of_two(table()), PARTIES[:2]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_training_bit_for_bit(kind, tmp_path):
    data, parties = KINDS[kind]

    def trained(shared: bool) -> tuple[Any, ...]:
        folder = tmp_path / str(shared)
        with made(shared, data(), parties=parties, guard_every=3).local() as run:
            losses = [returned["loss"].item() for returned in run.train_epoch()]
            errors = [run.evaluate()["error"].item()]
            losses += [run.step()["loss"].item()]
            run.checkpoint(folder)
            run.step()  # lost
        with made(shared, data(), parties=parties, guard_every=3).local() as run:
            assert run.resume(folder) == 5
            losses += [returned["loss"].item() for returned in run.train_epoch()]
            errors += [run.evaluate()["error"].item()]
            return losses, errors, run.export(to="bank")

    once, each = trained(True), trained(False)
    assert once[:2] == each[:2] and same(once[2], each[2])
    assert inputs(made(True, data(), parties=parties).program) == []
    assert set(inputs(made(False, data(), parties=parties).program)) == {"bank", "shop"}


def test_what_is_planned_is_sent_and_rows_are_sent_once():
    once = made(None)
    plan, each = once.plan(), made(False).plan()
    rows = len(once.batches.data)
    for name, columns in {"bank": 4, "shop": 3, "registry": 0}.items():
        assert plan.loading_bytes[name] - each.loading_bytes[name] == 2 * 8 * rows * columns
        assert each.bytes_per_epoch[name] - plan.bytes_per_epoch[name] == 4 * 2 * 8 * 11 * columns
    assert plan.step.rounds == each.step.rounds
    assert "loading the weights and all rows" in str(plan) and "an epoch: 4 steps" in str(plan)
    assert "all rows" not in str(each)
    with once.local() as run:
        run.step()
        session = run._where.session
        assert session.load_stats.sent_bytes == plan.loading_bytes and session.load_stats.rounds == 1
        assert session.stats.sent_bytes == plan.step.sent_bytes and session.stats.rounds == plan.step.rounds
        assert session.stats.preprocessing_bytes == plan.step.preprocessing_bytes
        first = run._where.parties["shop"].tables.shared
        run.evaluate()
        run.step()
        session = run._where.session
        assert session.load_stats.sent_bytes == each.loading_bytes, "in a later session, rows are there"
        again = run._where.parties["shop"].tables.shared
        assert all(again[node].m is value.m for node, value in first.items())
        (evaluated, *_) = [program for program in run._tables if program != id(once.job.program)]
        held = run._tables[evaluated]["shop"].shared
        run.evaluate()
        assert all(run._tables[evaluated]["shop"].shared[node].m is value.m for node, value in held.items())


def test_evaluations_alike_have_rows_of_their_own():
    data = table()
    one, other = data.split(0.5, seed=3)

    def together(bank, shop, label):
        return (bank[:, :3] * shop).sum()

    evaluate = {"one": (together, one, "all"), "other": (together, other, "all")}
    with made(True, data, evaluate=evaluate).local() as run, made(False, data, evaluate=evaluate).local() as right:
        assert run.job.evaluations["one"].pieces[0][1].digest == run.job.evaluations["other"].pieces[0][1].digest
        found, wanted = run.evaluate(), right.evaluate()
        assert found == wanted == run.evaluate() and found["one"] != found["other"]


def test_every_party_has_the_rows_masked_and_their_owner_the_masks():
    once = made(True)
    with once.local() as run:
        run.step()
        parties = run._where.parties
        for node, piece in zip(table_nodes(once.program.graph), ("bank", "shop"), strict=True):
            values = {me: party.tables.shared[node.id] for me, party in parties.items()}
            assert all(torch.equal(value.m, values["bank"].m) for value in values.values())
            assert [me for me, value in values.items() if value.lam is not None] == [piece]
            column = once.batches.data.columns[piece][0].tensor[once.batches.data.positions[0]]
            assert (decode(values[piece].m - values[piece].lam, 16) - column).abs().max() < 2.0**-16
        first = parties["bank"].tables
    with made(True).local() as run:
        run.step()
        other = run._where.parties["bank"].tables
        assert other.key != first.key and {t.key for of in run._tables.values() for t in of.values()}.isdisjoint(
            {first.key}
        )
        node = table_nodes(once.program.graph)[0].id
        assert not torch.equal(other.shared[node].m, first.shared[node].m), "another training, other masks"


def test_positions_of_the_program_are_those_of_the_batches():
    once = made(True, rows_of_two(table()), parties=PARTIES[:2])
    nodes = [node for node in once.program.graph.nodes if node.op == "rows"]
    assert {node.attrs["part"] for node in nodes} == {0, 1}
    for step in (0, 1, 5, 9):
        for node in nodes:
            of = once.batches.data.positions[node.attrs["part"]]
            places = rows_read(node, len(of), step).numpy()
            assert of[places].tolist() == once.batches.positions(step)[node.attrs["part"]].tolist()


def test_in_the_clear_it_is_the_same():
    once = made(True)
    numbers = once.captured.public_inputs().next()
    given = [*once.batches.inputs(0, lambda name: True), *(numbers[name] for name in once.captured.numbers)]
    with once.local() as run:
        (loss,) = fixed_point(once.program, *given)
        assert loss.item() == run.step()["loss"].item()


def test_a_run_that_failed_is_made_again_on_the_same_rows():
    with made(False).local() as run:
        right = [run.step()["loss"].item() for _ in range(3)]
    with made(True).local() as run:
        assert run.step()["loss"].item() == right[0]
        session, broken = run._where.session, iter([True])

        def failing(*inputs):
            raise KeyboardInterrupt

        session._run, working = failing, session._run
        with pytest.raises(KeyboardInterrupt):
            run.step()
        session._run = working
        session._runs += next(broken)  # it had begun
        assert [run.step()["loss"].item() for _ in range(2)] == right[1:]


def test_parties_at_different_steps_notice():
    with made(True).local() as run:
        run._where.parties["shop"].tables.first = 3
        program = run.job.program
        with pytest.raises(Mismatch):
            run._where.session.load(program, program.model)


def test_batches_of_ones_own_are_for_trainings_that_share_each():
    once, each = made(True), made(False)
    batch = each.batches.inputs(0, lambda name: True)
    with once.local() as run, pytest.raises(InputError, match="resident=False"):
        run.step(*batch)
    with each.local() as run:
        given = run.step(*batch)["loss"]
    with made(True).local() as run:
        assert run.step()["loss"] == given


def test_too_many_rows_are_shared_batch_by_batch(monkeypatch):
    assert not inputs(made(None).program)
    monkeypatch.setattr(resident, "MOST_BYTES", 8 * 48 * 7 - 1)
    assert inputs(made(None).program) == ["bank", "shop"] and not inputs(made(True).program)
    monkeypatch.setattr(resident, "MOST_BYTES", 8 * 48 * 7)
    assert not inputs(made(None).program)


def test_an_audit_says_that_rows_are_shared_once():
    text = str(audit(made(True).program))
    assert "rows of shop" in text and "all rows [48, 4], shared once" in text and "weights of shop" not in text
    assert "of rows that are shared once" in text


# ---- what an owner computes of its rows
class Step:
    """Scores of an owner's rows, after it changed them in the clear."""

    def __init__(self, change) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = nn.ModuleDict({"scores": nn.Linear(4, 3), "each": nn.Linear(1, 1)})
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1)
        self.change = change

    def __call__(self, x, y):
        loss = F.cross_entropy(self.model["scores"](self.change(x, self.model["each"])), y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss}


def changed(change, shared: bool):
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(30, 4, generator=generator), torch.randint(3, (30,), generator=generator)
    data = training.dataset(x=own("bank", x), y=own("shop", y))
    step, batches = Step(change), data.batches(8, seed=1, resident=shared)
    return training.compile_training(
        step, step.model, step.optimizer, batch=batches, parties=["bank", "shop"], reveal="all"
    )


ALONE = {
    "as they are": lambda x, _: x,
    "each by its own numbers": lambda x, _: (x / x.norm(dim=1, keepdim=True)).tanh(),
    "turned": lambda x, _: (x.t() * 2).t(),
    "smallest to largest in a row": lambda x, _: x.sort(1).values,
    "number by number": lambda x, each: each(x.reshape(-1, 1)).reshape(8, 4),
    "number by number, rows inside": lambda x, each: each(x.t().reshape(-1, 1)).reshape(4, 8).t(),
}
TOGETHER = {
    "less the mean of the batch": lambda x, _: x - x.mean(0),
    "with the row before": lambda x, _: x + x.roll(1, 0),
    "by its place": lambda x, _: x * torch.arange(8.0)[:, None],
    "by the largest of all": lambda x, _: torch.where(x.max() > 1000, x + 1, x),
    "by rank": lambda x, _: x.argsort(0).float(),
}


@pytest.mark.parametrize("name", [*ALONE, *TOGETHER])
def test_what_an_owner_computes_of_each_row_alone_is_shared_once(name):
    change = {**ALONE, **TOGETHER}[name]
    once, each = changed(change, True), changed(change, False)
    assert inputs(once.program) == (["bank"] if name in TOGETHER else [])
    assert inputs(each.program) == ["bank", "shop"]
    with once.local() as a, each.local() as b:
        for _ in range(4):
            assert a.step()["loss"] == b.step()["loss"]
        assert same(a.export(to="bank"), b.export(to="bank"))


# ---- stores
def test_a_store_deals_for_the_rows_of_its_runs(tmp_path, store_run):
    once = made(True, parties=PARTIES, evaluate=None)
    folders = prepare(once.program, 6, tmp_path / "stores")
    with made(False, evaluate=None).local() as run:
        right = [run.step()["loss"].item() for _ in range(5)]

    def first(run) -> list[float]:
        losses = [run.step()["loss"].item() for _ in range(3)]
        run.checkpoint(tmp_path / "kept")
        return losses

    def later(run) -> list[float]:
        run.resume(tmp_path / "kept")
        return [run.step()["loss"].item() for _ in range(2)]

    assert set(map(tuple, store_run(folders, first).values())) == {tuple(right[:3])}
    assert set(map(tuple, store_run(folders, later).values())) == {tuple(right[3:])}
    errors = store_run(folders, later)
    assert any(
        isinstance(error, PreprocessingError) and "next run is step 5" in str(error) for error in errors.values()
    )


def test_a_store_is_for_one_set_of_rows(tmp_path, store_run):
    once = made(True, evaluate=None)
    folders = prepare(once.program, 6, tmp_path / "stores")
    store_run(folders, lambda run: run.step())
    errors = store_run(folders, lambda run: run._load_session(run.job.program, 1), data=table(seed=8))
    assert {type(errors[name]) for name in ("bank", "shop")} == {PreprocessingReused}


@pytest.fixture
def store_run():
    """Runs a task at each party, over sockets of this host and with its folder of a store."""
    from protocols.channel.testing import free_addresses, run_together
    from protocols.identity import Timeouts, plain_config

    def together(folders, task, data: Dataset | None = None) -> dict[str, Any]:
        _, *addresses = free_addresses(len(PARTIES) + 1)
        times = Timeouts(connect_s=60.0, receive_s=60.0)
        config = plain_config(dict(zip(PARTIES, addresses, strict=True)), timeouts=times)
        jobs = {me: made(True, data, evaluate=None) for me in PARTIES}

        def party(me: str) -> Any:
            with jobs[me].connect(me, config, insecure_plain=True, ledger=False, store=folders[me]) as run:
                return task(run)

        return run_together({me: lambda me=me: party(me) for me in PARTIES}, 60.0)

    return together
