"""Joint training: in one process and between several, with checkpoints, evaluations and export."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

import securemodel
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import ConfigError, InputError, Mismatch, PeerError, SecureModelError
from protocols.identity import Timeouts, plain_config
from securemodel import training
from securemodel.engines.masked.dealer import serve
from securemodel.errors import CompileError, TrainingDiverged
from securemodel.ledger import read_ledger
from securemodel.training.checkpoints import path_of, steps_of
from securemodel.training.datasets import Dataset

ROWS, PARTIES, LIMIT_S = 60, ["bank", "shop", "registry"], 100.0
UNIT = 2.0**-16
PATIENT = Timeouts(connect_s=60.0, receive_s=60.0)


def table(seed: int = 3) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    bank, shop = torch.randn(ROWS, 4, generator=generator), torch.randn(ROWS, 3, generator=generator)
    label = torch.cat([bank, shop], 1) @ torch.randn(7, generator=generator)
    own = training.owned
    return training.dataset(bank=own("bank", bank), shop=own("shop", shop), label=own("registry", label))


@dataclass
class Made:
    """A job, and what it was made of."""

    job: training.Training
    optimizer: torch.optim.Optimizer
    step: Callable[..., Any]
    model: nn.Module
    test: Dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.job, name)


def step_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[..., dict[str, torch.Tensor]]:
    """A step on all columns of the table."""

    def step(bank, shop, label):
        loss = F.mse_loss(model(torch.cat([bank, shop], 1)).squeeze(1), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    return step


def job(data: Dataset | None = None, momentum: float = 0.9, **options: Any) -> Made:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Linear(7, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum)

    def error(bank, shop, label):
        return (model(torch.cat([bank, shop], 1)).squeeze(1) - label).abs().sum()

    train, test = (data or table()).split(0.8, seed=1)
    given = {
        "batch": train.batches(16, seed=2),
        "parties": PARTIES,
        "reveal": {"loss": "all"},
        "evaluate": {"error": (error, test, "all")},
    }
    step = step_of(model, optimizer)
    made = training.compile_training(step, model, optimizer, **{**given, **options})
    return Made(made, optimizer, step, model, test)


def eager(made: Made, steps: int) -> list[float]:
    """What the step returns in ordinary PyTorch on the same batches."""
    batches = made.batches
    return [made.step(*batches.inputs(n, lambda name: True))["loss"].item() for n in range(steps)]


class OddModel(nn.Module):
    """Frozen and tied layers, batch normalization, buffers that state_dict has and one that it leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.norm = nn.Linear(7, 7), nn.BatchNorm1d(7)
        self.head, self.tied = nn.Linear(7, 1), nn.Linear(7, 1, bias=False)
        self.tied.weight = self.head.weight
        for parameter in self.frozen.parameters():
            parameter.requires_grad = False
        self.register_buffer("scale", torch.rand(7))
        self.register_buffer("small", torch.rand(3).half())
        self.register_buffer("left_out", torch.ones(7), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.frozen(x)) * self.scale * self.left_out)


def odd(**options: Any) -> tuple[training.Training, OddModel]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = OddModel()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.05)

    def step(bank, shop, label):
        loss = F.mse_loss(model(torch.cat([bank, shop], 1)).squeeze(1), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    batch = table().batches(16)
    return training.compile_training(step, model, optimizer, batch=batch, parties=PARTIES, **options), model


class TestLocal:
    def test_steps_are_those_of_ordinary_pytorch(self):
        made = job()
        with made.local() as run:
            losses = [float(run.step()["loss"]) for _ in range(6)]
            weights = run.export(to="bank")
        right = eager(made, 6)
        assert max(abs(a - b) for a, b in zip(losses, right, strict=True)) < 64 * UNIT
        for name, tensor in made.model.state_dict().items():
            assert (weights[name] - tensor).abs().max() < 8 * UNIT, name

    def test_a_schedule_is_an_input_of_one_program(self):
        made = job()
        schedule = torch.optim.lr_scheduler.StepLR(made.optimizer, 1, 0.5)
        with made.local() as run:
            for _ in run.epochs(2, schedule):
                run.train_epoch()
            weights = run.export(to="shop")
        again = job()
        schedule = torch.optim.lr_scheduler.StepLR(again.optimizer, 1, 0.5)
        for epoch in range(2):
            for n in range(again.batches.steps_per_epoch):
                again.step(*again.batches.inputs(epoch * again.batches.steps_per_epoch + n, lambda name: True))
            schedule.step()
        assert (weights["weight"] - again.model.weight).abs().max() < 8 * UNIT

    def test_an_evaluation_sees_the_weights_as_they_are_and_all_rows(self):
        made = job()
        with made.local() as run:
            before = float(run.evaluate()["error"])
            run.train_epoch()
            after = float(run.evaluate()["error"])
            run.train_epoch()
        data = made.test.batches(len(made.test), shuffle=False)
        right = lambda: float(
            (
                made.model(torch.cat(data.inputs(0, lambda n: True)[:2], 1)).squeeze(1)
                - data.inputs(0, lambda n: True)[2]
            )
            .abs()
            .sum()
        )
        assert abs(before - right()) < 1e-2
        eager(made, made.batches.steps_per_epoch)
        assert abs(after - right()) < 1e-2

    @pytest.mark.parametrize("counts", [(256, 257), (20, 21), (5, 300)])
    def test_an_evaluation_of_rows_that_make_odd_batches(self, counts):
        parts = [training.owned(me, torch.randn(n, 2)) for me, n in zip(PARTIES, counts, strict=False)]
        data = training.dataset(x=training.rows(a=parts[0], b=parts[1]))
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)

        def step(x):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()

        evaluate = {"sum": (lambda x: model(x).sum(), data, "all")}
        batch = data.batches(sum(counts))
        made = training.compile_training(step, model, optimizer, batch=batch, parties=PARTIES, evaluate=evaluate)
        right = model(torch.cat([part.tensor for part in parts])).sum()
        with made.local() as run:
            assert abs(run.evaluate()["sum"] - right) < 1e-2

    def test_a_resumed_training_ends_in_the_same_weights(self, tmp_path):
        with job().local() as run:
            run.resume(tmp_path / "whole")
            run.train_epoch()
            run.train_epoch()
            whole = run.export(to="bank")
        with job().local() as run:
            assert run.resume(tmp_path / "parts") == 0
            run.train_epoch()
            run.step()
            run.checkpoint(tmp_path / "parts")
            run.step()  # lost
        with job().local() as run:
            assert run.resume(tmp_path / "parts") == 4
            run.train_epoch()
            parts = run.export(to="bank")
        assert all(torch.equal(whole[name], parts[name]) for name in whole), "exact rounding: shares do not matter"

    def test_a_checkpoint_keeps_the_schedule(self, tmp_path):
        made = job()
        with made.local() as run:
            for _ in run.epochs(1, torch.optim.lr_scheduler.StepLR(made.optimizer, 1, 0.5)):
                run.train_epoch()
            run.checkpoint(tmp_path)
        again = job()
        schedule = torch.optim.lr_scheduler.StepLR(again.optimizer, 1, 0.5)
        with again.local() as run:
            run.resume(tmp_path)
            assert list(run.epochs(1, schedule)) == []
            assert again.optimizer.param_groups[0]["lr"] == 0.025 and schedule.last_epoch == 1

    def test_checkpoints_of_different_times_give_nothing(self, tmp_path):
        made = job()
        with made.local() as run:
            run.train_epoch()
            run.checkpoint(tmp_path)
            first = {me: dict(party.kept) for me, party in run._where.parties.items()}
            a, b = run._fresh(), run._fresh()
        name = "model.weight"
        value = sum(share[name] for share in a.values())
        assert torch.equal(value, sum(share[name] for share in b.values()))
        assert torch.equal(value, sum(share[name] for share in first.values() if share[name] is not None))
        mixed = a["bank"][name] + b["shop"][name] + a["registry"][name]
        assert (mixed - value).double().abs().min() > 2.0**40

    def test_more_checkpoints_than_their_numbers_are_refused_and_nothing_is_lost(self, tmp_path):
        with job().local() as run:
            run.step()
            run.checkpoint(tmp_path)
            run._times = (1 << 16) - 1
            run.step()
            with pytest.raises(InputError, match="made 65535 checkpoints and exports"):
                run.checkpoint(tmp_path)
        with job().local() as run:
            assert run.resume(tmp_path) == 1

    def test_a_checkpoint_that_was_changed_or_is_anothers_is_refused(self, tmp_path):
        with job().local() as run:
            run.checkpoint(tmp_path)
        path = path_of(tmp_path / "bank", 0)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        with job().local() as run, pytest.raises(ConfigError, match="'bank'"):
            run.resume(tmp_path)
        data[-1] ^= 1
        path.write_bytes(data)
        with job(momentum=0.0).local() as run, pytest.raises(InputError, match="is of program"):
            run.resume(tmp_path)
        with job().local() as run:
            run.checkpoint(tmp_path / "other")
        path.write_bytes(path_of(tmp_path / "other" / "bank", 0).read_bytes())
        with job().local() as run, pytest.raises(SecureModelError):
            run.resume(tmp_path)

    def test_two_checkpoints_stay(self, tmp_path):
        with job().local() as run:
            for _ in range(4):
                run.step()
                run.checkpoint(tmp_path)
        assert steps_of(tmp_path / "shop") == [3, 4]

    def test_export_is_what_torch_loads(self, tmp_path):
        made = job()
        with made.local() as run:
            run.step()
            weights = run.export(tmp_path / "new" / "model.safetensors", to="bank")
        made.model.load_state_dict(safetensors.torch.load_file(tmp_path / "new" / "model.safetensors"))
        assert torch.equal(made.model.weight, weights["weight"])

    def test_export_is_the_whole_state_dict(self, tmp_path):
        """Frozen, tied, buffers that no step changes, of batch norm, none that state_dict leaves out."""
        made, model = odd(weights={"model.frozen": "shop", "model.head": "bank"})
        with made.local() as run:
            run.step()
            weights = run.export(tmp_path / "model.safetensors", to="registry")
        assert weights.keys() == model.state_dict().keys()
        again = OddModel()
        again.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
        start = model.state_dict()
        for name in ("frozen.weight", "frozen.bias", "scale", "small"):
            assert torch.equal(again.state_dict()[name], start[name]), name
        assert weights["norm.num_batches_tracked"] == 1
        assert torch.equal(weights["head.weight"], weights["tied.weight"])
        assert not torch.equal(weights["head.weight"], start["head.weight"])

    def test_one_of_two_models_is_exported_alone(self):
        both = {"first": nn.Linear(7, 1), "second": nn.Linear(1, 1)}
        optimizer = torch.optim.SGD([p for model in both.values() for p in model.parameters()], lr=0.05)

        def step(bank, shop, label):
            loss = F.mse_loss(both["second"](both["first"](torch.cat([bank, shop], 1))).squeeze(1), label)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        made = training.compile_training(step, both, optimizer, batch=table().batches(16), parties=PARTIES)
        with made.local() as run:
            run.step()
            alone, whole = run.export(to="bank", only="second"), run.export(to="bank")
            with pytest.raises(InputError, match="no model 'third'"):
                run.export(to="bank", only="third")
        assert alone.keys() == {"weight", "bias"}, "names as the model has them"
        assert all(torch.equal(tensor, whole[f"second.{name}"]) for name, tensor in alone.items())

    def test_what_nobody_learns_is_not_revealed(self):
        made = job(reveal=None, evaluate=None)
        assert "reveal" not in made.text()
        with made.local() as run:
            assert run.step() == {"loss": None}

    def test_simulation_says_what_will_be(self):
        made = job()
        said = made.simulate(4)
        with made.local() as run:
            losses = [float(run.step()["loss"]) for _ in range(4)]
        assert [round(fixed, 9) for fixed, _ in said.returned] == [round(loss, 9) for loss in losses]
        assert said.difference < 32 and not said.overflowed and said.tight[0].bits > 2
        assert "least room" in str(said) and "fixed point" in str(said)

    def test_a_simulation_notices_what_leaves_the_ring(self):
        made = job()
        large = lambda step: [400.0 * x for x in made.batches.inputs(step, lambda name: True)]
        assert made.simulate(5, large).overflowed

    def test_a_guard_goes_back_before_numbers_leave_their_range(self):
        made = job(momentum=0.0, guard_every=2, evaluate=None)
        made.optimizer.param_groups[0]["lr"] = 0.05
        with made.local() as run:
            run.step()
            run.step()
            good = run.export(to="bank")
            made.optimizer.param_groups[0]["lr"] = 1e3
            with pytest.raises(TrainingDiverged, match="model.weight"):
                for _ in range(4):
                    run.step()
            assert run.step_number == 2
            assert all(torch.equal(tensor, good[name]) for name, tensor in run.export(to="bank").items())
            made.optimizer.param_groups[0]["lr"] = 0.05
            run.step()
        assert "reveal" not in job(reveal=None, evaluate=None, guard_every=2).text(), (
            "the guard is a program of its own"
        )

    def test_rows_of_two_parties(self):
        data = table()
        whole = {name: column[0].tensor for name, column in data.columns.items()}
        own, cut = training.owned, 25
        parts = lambda t, a, b: training.rows(a=own(a, t[:cut]), b=own(b, t[cut:]))
        rows = training.dataset(**{name: parts(whole[name], "bank", "shop") for name in whole})
        made = job(rows, parties=["bank", "shop"])
        with made.local() as run:
            losses = [float(run.step()["loss"]) for _ in range(3)]
        joined = [made.batches.joined(made.batches.inputs(n, lambda name: True)) for n in range(3)]
        right = [made.step(**batch)["loss"].item() for batch in joined]
        assert max(abs(a - b) for a, b in zip(losses, right, strict=True)) < 64 * UNIT
        assert made.batches.sizes == (7, 9)


class TestRefusals:
    def test_names(self):
        with pytest.raises(CompileError, match="'registry' owns data"):
            job(parties=["bank", "shop"])
        with pytest.raises(CompileError, match="it returns loss"):
            job(reveal={"lose": "all"})
        with pytest.raises(CompileError, match="is no party"):
            job(reveal={"loss": "stranger"})

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"batch": table()}, "no batches"),
            ({"parties": "bank"}, "no list of names"),
            ({"parties": [*PARTIES, "shop"]}, "parties have different names"),
            ({"parties": [*PARTIES, "all"]}, "bad party names 'all'"),
            ({"weights": "stranger"}, "unknown party stranger"),
            ({"weights": {"model.encoder": "bank"}}, "prefix 'model.encoder'"),
            ({"rounding": "up"}, "none of 'exact', 'fast'"),
            ({"guard_every": -1}, "guard_every = -1"),
            ({"reveal": ["loss"]}, "reveal is a list"),
            ({"evaluate": [max]}, "evaluate is a list"),
            ({"evaluate": {"error": max}}, "'error' is no function, data set and receiver"),
            ({"evaluate": {"error": (max, table().batches(4), "all")}}, "of a Batches and no data set"),
            ({"evaluate": {"error": (max, table(), "stranger")}}, "'stranger' is to learn the evaluation 'error'"),
            ({"evaluate": {"error": (lambda bank, label: bank, table(), "all")}}, "takes \\(bank, label\\)"),
            ({"evaluate": {"error": (lambda shop, bank, label: bank, table(), "all")}}, "into one order"),
        ],
    )
    def test_arguments(self, options, words):
        with pytest.raises(CompileError, match=words):
            job(**options)

    @pytest.mark.parametrize("left_out", ["backward", "update", "order"])
    def test_steps_that_train_nothing(self, left_out):
        model = nn.Linear(7, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def step(bank, shop, label):
            loss = F.mse_loss(model(torch.cat([bank, shop], 1)).squeeze(1), label)
            if left_out != "backward":
                loss.backward()
            if left_out == "order":
                optimizer.zero_grad()
            if left_out != "update":
                optimizer.step()
            optimizer.zero_grad()

        with pytest.raises(CompileError, match="changes no weight|reads model.weight.grad"):
            training.compile_training(step, model, optimizer, batch=table().batches(16), parties=PARTIES)

    def test_weights_without_values(self):
        def compiled(device: str, weights: str) -> training.Training:
            model = nn.Linear(7, 1, device=device)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            return training.compile_training(
                step_of(model, optimizer), model, optimizer, batch=table().batches(16), parties=PARTIES, weights=weights
            )

        with pytest.raises(CompileError, match="model.weight is on the meta device"):
            compiled("meta", "public")
        assert compiled("meta", "shop").digest == compiled("cpu", "shop").digest

    def test_a_schedule_that_needs_a_loss(self):
        made = job()
        with made.job.local() as run, pytest.raises(InputError, match="schedule.step\\(loss\\)"):
            next(run.epochs(1, torch.optim.lr_scheduler.ReduceLROnPlateau(made.optimizer)))
        assert run.step_number == 0

    def test_data(self):
        own = training.owned
        with pytest.raises(InputError, match="is given a ndarray"):
            own("a", np.zeros((3, 2)))
        with pytest.raises(InputError, match="'x' is a Tensor that nobody owns"):
            training.dataset(x=torch.zeros(3, 1))
        with pytest.raises(InputError, match="a whole number"):
            table().batches(2.5)
        with pytest.raises(InputError, match="different rows"):
            training.dataset(x=own("a", torch.zeros(3, 2)), y=own("b", torch.zeros(4)))
        with pytest.raises(InputError, match="not what was said"):
            _ = own("a", lambda: torch.zeros(3), (4,)).tensor
        with pytest.raises(InputError, match="no batches"):
            table().batches(ROWS + 1)
        with pytest.raises(InputError, match="needs a shape"):
            own("a", lambda: torch.zeros(3))
        with pytest.raises(InputError, match="no rows on one side"):
            table().split(1.0)


@pytest.mark.parametrize("options", [{}, {"weight": [1e-3, 4e-3, 2e-3]}, {"ignore_index": 1}, {"label_smoothing": 0.1}])
def test_labels_of_rows_of_several_parties_have_weights_and_ignored_classes(options):
    """Each owner makes unit vectors of its own labels, and the mean's weights are added up in shares."""
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    options = {key: torch.tensor(x) if key == "weight" else x for key, x in options.items()}

    def step(x, y):
        loss = F.cross_entropy(model(x), y, **options)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    owned, rows = training.owned, training.rows
    x = {name: owned(name, torch.randn(12, 5)) for name in ("a", "b")}
    y = {name: owned(name, torch.randint(3, (12,))) for name in ("a", "b")}
    data = training.dataset(x=rows(**x), y=rows(**y)).batches(8, seed=1)
    job = securemodel.compile_training(step, model, optimizer, batch=data, parties=("a", "b"), reveal="all")
    assert not any(node.op == "unit" and node.shape[-1] < 64 for node in job.program.graph.nodes), (
        "labels are looked up"
    )
    with job.local() as run:
        made = run.step()
        weights = run.export(to="a")
    loss = step(*data.joined(data.inputs(0, lambda name: True)).values())
    assert made == pytest.approx(loss.item(), abs=2**-11)
    for name, value in model.state_dict().items():
        assert (weights[name] - value).abs().max() < 8 * 2**-16, name


def parts_of(counts: Sequence[int]) -> Dataset:
    """Rows of several parties, so many of each."""
    return training.dataset(
        x=training.rows(**{f"p{at}": training.owned(f"p{at}", shape=(n, 1)) for at, n in enumerate(counts)})
    )


class TestBatches:
    def test_every_row_comes_once_an_epoch_in_another_order(self):
        batches = table().batches(20, seed=5)
        epochs = [[row for n in range(3) for row in batches.positions(3 * e + n)[0].tolist()] for e in range(2)]
        assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(ROWS)) and epochs[0] != epochs[1]
        assert batches.positions(0)[0].tolist() == table().batches(20, seed=5).positions(0)[0].tolist()
        assert batches.positions(0)[0].tolist() != table().batches(20, seed=6).positions(0)[0].tolist()

    @pytest.mark.parametrize(
        ("counts", "size", "left", "says"),
        [
            ((50, 50), 25, 25, "20 (0 left out) or 50 (0 left out)"),
            ((51, 50), 25, 26, "20 (1 left out) or 50 (1 left out)"),
            ((50, 50), 20, 0, ""),
            ((60,), 16, 12, ""),  # as PyTorch's drop_last
            ((100, 37), 32, 9, ""),
        ],
    )
    def test_rows_that_are_left_out_are_told(self, counts, size, left, says):
        data = parts_of(counts)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            batches = data.batches(size, seed=4)
        assert batches.left_out == left and [says in str(warning.message) for warning in caught] == [True] * bool(says)
        assert not caught or (
            caught[0].filename == __file__ and f"leave {left} of {sum(counts)}" in str(caught[0].message)
        )
        read: set[tuple[int, int]] = set()
        for step in range(12 * batches.steps_per_epoch):
            read |= {(part, int(row)) for part, at in enumerate(batches.positions(step)) for row in at}
        assert len(read) == sum(counts), "all are read in time"

    def test_rows_that_are_never_read_are_told(self):
        with pytest.warns(UserWarning, match="12 of 60 rows.*\n.*the same in each epoch\n.*15 \\(0 left"):
            parts_of((60,)).batches(16, shuffle=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            parts_of((60,)).batches(15, shuffle=False)

    def test_only_the_owner_reads(self):
        read = []
        source = lambda: read.append(1) or torch.zeros(4, 1)
        data = training.dataset(x=training.owned("a", source, (4, 1)), y=training.owned("b", torch.zeros(4)))
        inputs = data.batches(2).inputs(0, lambda name: name == "b")
        assert not read and inputs[0] is None and inputs[1].shape == (2,)


# ---- between processes
def together(
    tasks: dict[str, Callable[[Any], Any]],
    make: Callable[[], Any] = job,
    stores: Path | None = None,
    times: Timeouts = PATIENT,
    **options: Any,
) -> dict[str, Any]:
    """Each party's end of a run in a thread of its own, over sockets of this host; with its folder of the stores."""
    first, *addresses = free_addresses(len(PARTIES) + 1)
    config = plain_config(dict(zip(PARTIES, addresses, strict=True)), dealer=first, timeouts=times)
    threading.Thread(target=serve, args=(config, None), kwargs={"insecure_plain": True}, daemon=True).start()

    jobs = {me: make() for me in tasks}  # one after the other: the weights come from torch's own generator

    def party(me: str) -> Any:
        store = stores / me if stores else None
        with jobs[me].connect(me, config, insecure_plain=True, store=store, **{"ledger": False, **options}) as run:
            return tasks[me](run)

    return run_together({me: lambda me=me: party(me) for me in tasks}, LIMIT_S)


def test_parties_in_processes_of_their_own(tmp_path):
    def task(run) -> Any:
        run.resume(tmp_path)
        losses = [float(returned["loss"]) for returned in run.train_epoch()]
        error = run.evaluate()["error"]
        losses += [float(run.step()["loss"])]
        run.checkpoint(tmp_path)
        return losses, float(error), run.export(to="shop")

    results = together(dict.fromkeys(PARTIES, task))
    with job().local() as run:
        losses = [float(returned["loss"]) for returned in run.train_epoch()]
        error = float(run.evaluate()["error"])
        losses += [float(run.step()["loss"])]
        weights = run.export(to="shop")
    assert {(tuple(r[0]), r[1]) for r in results.values()} == {(tuple(losses), error)}
    assert torch.equal(results["shop"][2]["weight"], weights["weight"])
    assert results["bank"][2] is None and results["registry"][2] is None
    again = together(dict.fromkeys(PARTIES, lambda run: (run.resume(tmp_path), float(run.step()["loss"]))))
    assert len(set(again.values())) == 1 and {step for step, _ in again.values()} == {4}


def test_an_owner_sends_frozen_weights_to_the_receiver_alone():
    make = lambda: odd(weights={"model.frozen": "shop", "model.head": "bank"})[0]
    results = together(dict.fromkeys(PARTIES, lambda run: (run.step(), run.export(to="bank"))[1]), make)
    assert results["shop"] is results["registry"] is None
    made, model = odd(weights={"model.frozen": "shop", "model.head": "bank"})
    with made.local() as run:
        run.step()
        weights = run.export(to="bank")
    assert torch.equal(results["bank"]["frozen.weight"], model.frozen.weight)
    assert all(torch.equal(results["bank"][name], tensor) for name, tensor in weights.items())


def test_handing_out_weights_is_in_the_ledger(tmp_path):
    together(dict.fromkeys(PARTIES, lambda run: run.export(to="shop")), ledger=tmp_path / "ledger.jsonl")
    entries = read_ledger(tmp_path / "ledger.jsonl").lines
    assert [entry.fields["reveals"] for entry in entries] == [{"shop": ["weights of model"]}] * len(PARTIES)


def test_every_step_is_in_the_ledger(tmp_path):
    together(dict.fromkeys(PARTIES, lambda run: run.step()), ledger=tmp_path / "ledger.jsonl")
    entries = read_ledger(tmp_path / "ledger.jsonl").lines
    assert len(entries) == len(PARTIES) and all(entry.fields["reveals"] == {"all": ["loss"]} for entry in entries)


def test_evaluations_and_guards_go_over_the_connections_of_the_steps(tmp_path):
    def task(run) -> bool:
        channel = run._where.session.channel
        run.step()
        run.evaluate()
        run.step()  # and the guard
        run.step()
        return run._where.session.channel is channel

    results = together(dict.fromkeys(PARTIES, task), lambda: job(guard_every=2), ledger=tmp_path / "ledger.jsonl")
    assert results == dict.fromkeys(PARTIES, True)
    lines = [line.fields for line in read_ledger(tmp_path / "ledger.jsonl").lines]
    runs = {(line["me"], line["session"], line["epoch"]) for line in lines}
    assert len(runs) == len(lines) == len(PARTIES) * (3 + 1 + 1), "no two lines are about one run"


def test_folders_of_different_trainings_are_refused(tmp_path):
    for name in ("one", "two"):
        made = together(dict.fromkeys(PARTIES, lambda run, name=name: run.checkpoint(tmp_path / name)))
        assert set(made.values()) == {None}, made
    tasks = {me: (lambda run, me=me: run.resume(tmp_path / ("two" if me == "shop" else "one"))) for me in PARTIES}
    results = together(tasks)
    assert all(isinstance(result, SecureModelError) for result in results.values()), results
    assert any(isinstance(result, Mismatch) for result in results.values()), results


def with_seed(seed: int, resident: bool = False) -> Made:
    return job(batch=table().split(0.8, seed=1)[0].batches(16, seed=seed, resident=resident))


def with_rate(rate: float) -> Made:
    made = job()
    made.optimizer.param_groups[0]["lr"] = rate
    return made


OTHERWISE: dict[str, tuple[Callable[[], Made], str]] = {
    "rows that are shared once in another order": (lambda: with_seed(3, True), "program"),
    "batches of another size": (lambda: job(batch=table().split(0.8, seed=1)[0].batches(12, seed=2)), "program"),
    "no evaluation": (lambda: job(evaluate=None), "different evaluations"),
    "a guard": (lambda: job(guard_every=2), "different guard"),
    "another rate": (lambda: with_rate(0.06), "other public numbers in step 1"),
    "another receiver": (lambda: job(reveal={"loss": "shop"}), "program"),
}


@pytest.mark.parametrize("what", OTHERWISE)
def test_a_party_that_trains_otherwise_is_named(what):
    makes = [job, OTHERWISE[what][0], job]
    results = together(dict.fromkeys(PARTIES, lambda run: run.step()), lambda: makes.pop(0)())
    assert all(isinstance(result, SecureModelError) for result in results.values()), results
    found = {me: str(result) for me, result in results.items() if isinstance(result, Mismatch)}
    assert any(OTHERWISE[what][1] in text for text in found.values()), results
    assert all("'shop'" in text for me, text in found.items() if me != "shop"), "who is alone with it is named"


def test_a_party_with_batches_in_another_order_is_named():
    makes = [lambda: with_seed(2), lambda: with_seed(3), lambda: with_seed(2)]
    results = together(dict.fromkeys(PARTIES, lambda run: run.step()), lambda: makes.pop(0)())
    assert all(isinstance(result, PeerError) for result in results.values()), results
    assert any(isinstance(result, Mismatch) and "order of rows" in str(result) for result in results.values()), results


def test_a_resumed_party_in_another_order_is_named(tmp_path):
    makes = [lambda: with_seed(2), lambda: with_seed(3), lambda: with_seed(2)]
    results = together(dict.fromkeys(PARTIES, lambda run: run.resume(tmp_path)), lambda: makes.pop(0)())
    assert all(isinstance(result, PeerError) for result in results.values()), results
    assert any(isinstance(result, Mismatch) and "order of rows" in str(result) for result in results.values()), results


def test_a_party_that_ends_in_the_middle_is_named():
    def task(me: str) -> Callable[[Any], Any]:
        def run_some(run) -> Any:
            for number in range(4):
                if me == "shop" and number == 2:
                    raise ValueError("a secret number: 4711")
                run.step()

        return run_some

    results = together({me: task(me) for me in PARTIES})
    assert isinstance(results.pop("shop"), ValueError)
    for result in results.values():
        assert isinstance(result, PeerError) and "'shop'" in str(result) and "4711" not in str(result), result


def test_weights_of_float64_are_exported_with_all_their_digits():
    model = torch.nn.Linear(2, 1, bias=False).double()
    start = torch.tensor([[256 + 2.0**-16, -3.5]], dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-10)

    def step(x, y):
        loss = (model(x).squeeze(1) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    wide = torch.float64
    zeros = lambda party, *s: securemodel.owned(party, lambda: torch.zeros(s, dtype=wide), shape=s, dtype=wide)
    data = securemodel.dataset(x=zeros("bank", 4, 2), y=zeros("shop", 4))
    batch = data.batches(4, seed=1)
    job = securemodel.compile_training(step, model, optimizer, batch=batch, parties=["bank", "shop"], reveal="all")
    with job.local() as run:
        for _ in run.epochs(1):
            run.train_epoch()
        assert torch.equal(run.export(to="bank")["weight"], start)
