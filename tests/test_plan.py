"""The plan against what is then counted: rounds, bytes, preprocessing, products, memory."""

from __future__ import annotations

import functools
import runpy
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import securemodel
from protocols import bilinear as bilinear_maps
from protocols.gates import bilinear as bilinear_gates
from securemodel.compiler.ir import Graph
from securemodel.engines.masked import dealing, party, preparing, walk
from securemodel.errors import InputError
from securemodel.planning.memory import peak_bytes
from securemodel.planning.plan import AHEAD_BYTES, Cost, Machine, Network, PartyCost, make_plan
from securemodel.planning.table import bytes_text, count_text, seconds_text
from securemodel.planning.work import multiply_adds


class Pooled(nn.Module):
    """A convolution, ReLU and pooling, in modules and in lines of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.act = nn.ReLU()
        self.out = nn.Linear(27, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.act(self.features(x) - 0.5)
        flat = hidden.flatten(1)
        return self.act(self.out(flat))


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor):
        return self.function(*inputs)


class Mixed(nn.Module):
    """Values that are read masked by one product and as shares by another, with a public matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 5))
        self.public = torch.rand(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + (x + self.weight) @ self.public


class Turned(nn.Module):
    """Transposed convolutions, and weights on the left of a product."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(2, 3, 3, stride=2)
        self.left = nn.Parameter(torch.randn(4, 9))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.left @ self.up(x).flatten(2).transpose(1, 2)[:, :9]


class Joined(nn.Module):
    """Two parties' values, joined before a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.net(x - y)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 5))


AB, ABC = ("alice", "bob"), ("alice", "bob", "carol")
TWO = {"weights": "alice", "inputs": "bob", "outputs": "bob"}
BOTH = {"weights": "public", "inputs": ("alice", "bob"), "outputs": "all"}

# name: (model, input shapes, arguments of compile)
CASES = {
    "mlp": (mlp, [(3, 6)], {**TWO}),
    "mlp_three": (mlp, [(3, 6)], {**TWO, "parties": ABC}),
    "mlp_other_order": (mlp, [(3, 6)], {**TWO, "parties": ("carol", "bob", "alice"), "outputs": "carol"}),
    "mlp_to_all": (mlp, [(3, 6)], {**TWO, "parties": ABC, "outputs": "all"}),
    "mlp_truncated": (mlp, [(3, 6)], {**TWO, "truncate_outputs": True}),
    "mlp_width_32": (mlp, [(3, 6)], {**TWO, "width": 32}),
    "mlp_width_24": (mlp, [(3, 6)], {**TWO, "width": 24, "frac_bits": 8, "parties": ABC}),
    "public_weights": (mlp, [(3, 6)], {**TWO, "weights": "public", "parties": AB}),
    "public_weights_of_a_secret": (Joined, [(3, 6), (3, 6)], {**BOTH, "parties": ABC}),
    "public_inputs": (mlp, [(3, 6)], {**TWO, "inputs": "public"}),
    "pooled": (Pooled, [(2, 1, 6, 6)], {**TWO}),
    "pooled_three": (Pooled, [(2, 1, 6, 6)], {**TWO, "parties": ABC}),
    "turned": (Turned, [(2, 2, 3, 3)], {**TWO, "parties": ABC}),
    "mixed": (Mixed, [(5, 5)], {**TWO, "parties": ("carol", "alice", "bob")}),
    "sums": (lambda: Function(lambda x, y: (x - y) * (x + y)), [(5, 5), (5, 5)], {**BOTH, "parties": ABC}),
    "product": (lambda: Function(torch.mul), [(70,), (70,)], BOTH),
    "matmul_three": (lambda: Function(torch.matmul), [(5, 5), (5, 3)], {**BOTH, "parties": ABC}),
    "power": (lambda: Function(lambda x, y: (x - y).pow(3)), [(4, 4), (4, 4)], BOTH),
    "sign": (lambda: Function(lambda x, y: torch.relu(x - y)), [(65,), (65,)], {**BOTH, "width": 24}),
    "two_outputs": (
        lambda: Function(lambda x, y: (x * y, x + y)),
        [(5,), (5,)],
        {**BOTH, "parties": ABC, "outputs": ("alice", "carol")},
    ),
    "all_owners": (
        lambda: Function(lambda x, y, z: torch.relu(x * y) @ z),
        [(6, 6), (6, 6), (6, 2)],
        {"weights": "public", "inputs": ABC, "outputs": "all"},
    ),
}


@functools.cache
def compiled(name: str) -> tuple[securemodel.Program, list[torch.Tensor]]:
    make, shapes, arguments = CASES[name]
    torch.manual_seed(1)
    inputs = [torch.rand(shape) for shape in shapes]
    return securemodel.compile(make(), tuple(inputs), **arguments), inputs


# ---- exact costs
@pytest.mark.parametrize("name", CASES)
def test_rounds_and_bytes_are_those_counted(name: str) -> None:
    program, inputs = compiled(name)
    plan = program.plan()
    with securemodel.local(program) as session:
        session.run(*inputs)
        for cost, counted in ((plan.total, session.stats), (plan.load, session.load_stats)):
            assert cost.rounds == counted.rounds
            assert cost.sent_bytes == dict(counted.sent_bytes)
            assert cost.preprocessing_bytes == counted.preprocessing_bytes
        for me, channel in session.channels.items():
            received = plan.total.parties[me].received_bytes + plan.load.parties[me].received_bytes
            assert received == channel.stats.received_bytes
            assert plan.total.parties[me].rounds + plan.load.parties[me].rounds == channel.stats.rounds
    assert (plan.rounds, plan.sent_bytes) == (plan.total.rounds, plan.total.sent_bytes)
    assert plan.preprocessing_bytes == plan.total.preprocessing_bytes


def test_every_batch_costs_what_is_planned() -> None:
    program, _ = compiled("mlp_three")
    plan = program.plan()
    with securemodel.local(program) as session:
        session.run(torch.rand(7, 6))
    assert session.stats.rounds == 3 * plan.rounds
    assert dict(session.stats.sent_bytes) == {name: 3 * count for name, count in plan.sent_bytes.items()}
    assert session.stats.preprocessing_bytes == 3 * plan.preprocessing_bytes


@pytest.mark.parametrize("name", CASES)
def test_a_program_from_text_has_the_same_totals(name: str, tmp_path) -> None:
    program, _ = compiled(name)
    program.save(tmp_path / "program.txt")
    plan, read = program.plan("wan"), securemodel.Program.load(tmp_path / "program.txt").plan("wan")
    assert read.total == plan.total
    assert (read.load, read.peak_bytes, read.seconds) == (plan.load, plan.peak_bytes, plan.seconds)


@pytest.mark.parametrize("name", CASES)
def test_layers_add_up(name: str) -> None:
    program, _ = compiled(name)
    plan = make_plan(program)
    total = plan.layers[0].cost
    for layer in plan.layers[1:]:
        total += layer.cost
    assert total == plan.total
    names = [layer.name for layer in plan.layers]
    assert len(set(names)) == len(names)


# ---- products
def _torch_products(function, *operands: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as flops:
        function(*operands)
    return flops.get_total_flops() // 2


@pytest.mark.parametrize("case", ["matmul", "batched", "conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d"])
def test_products_are_counted_as_torch_counts_them(case: str) -> None:
    functional = torch.nn.functional
    kind, function, x, y = {
        "matmul": ("matmul", torch.matmul, (5, 7), (7, 3)),
        "batched": ("matmul", torch.matmul, (2, 5, 7), (2, 7, 3)),
        "conv1d": ("conv1d", lambda x, w: functional.conv1d(x, w, stride=2, groups=2), (2, 4, 11), (6, 2, 3)),
        "conv2d": ("conv2d", lambda x, w: functional.conv2d(x, w, padding=1), (2, 4, 7, 8), (6, 4, 3, 2)),
        "conv_transpose1d": ("conv_transpose1d", functional.conv_transpose1d, (2, 4, 7), (4, 3, 3)),
        "conv_transpose2d": (
            "conv_transpose2d",
            lambda x, w: functional.conv_transpose2d(x, w, stride=2),
            (2, 4, 5, 6),
            (4, 3, 3, 2),
        ),
    }[case]
    first, second = torch.rand(x), torch.rand(y)
    shape = tuple(function(first, second).shape)
    assert multiply_adds(kind, (x, y), shape) == _torch_products(function, first, second)


def test_an_unknown_product_is_not_counted_as_nothing() -> None:
    with pytest.raises(ValueError, match="conv3d"):
        multiply_adds("conv3d", ((1,), (1,)), (1,))


class _Meter:
    """Counts the ring products each party and the dealer really make, by who is working at the moment."""

    def __init__(self, monkeypatch) -> None:
        self.counts: dict[tuple[str, str], int] = defaultdict(int)
        self._working: list[tuple[str, str]] = []
        for name in ("_gate", "_public_product", "_owned_layer"):
            self._patch(monkeypatch, party.OnlineParty, name, lambda worker: ("online", worker.me))
        self._patch(monkeypatch, preparing.Preparing, "_half", lambda worker: ("prepared", worker._me))
        self._patch(monkeypatch, dealing.Dealing, "_gate", lambda worker: ("dealt", ""))
        real = bilinear_maps.bilinear

        def counted(kind, x, y, attrs, out=None, accumulate=None):
            made = real(kind, x, y, attrs, out=out, accumulate=accumulate)
            self.counts[self._working[-1]] += multiply_adds(kind, (tuple(x.shape), tuple(y.shape)), tuple(made.shape))
            return made

        monkeypatch.setattr(bilinear_gates, "bilinear", counted)
        monkeypatch.setattr(party, "bilinear", counted)

    def _patch(self, monkeypatch, kind, name: str, who) -> None:
        real, working = getattr(kind, name), self._working

        def method(worker, *args):
            working.append(who(worker))
            try:
                return real(worker, *args)
            finally:
                working.pop()

        monkeypatch.setattr(kind, name, method)


@pytest.mark.parametrize("name", [name for name in CASES if name != "power"])
def test_products_are_those_made(name: str, monkeypatch) -> None:
    program, inputs = compiled(name)
    with securemodel.local(program) as session:
        session.load(program, program.model)
        meter = _Meter(monkeypatch)
        session.run(*inputs)
    total = program.plan().total
    for me, cost in total.parties.items():
        assert cost.multiply_adds == meter.counts["online", me]
        assert cost.prepared_multiply_adds == meter.counts["prepared", me]
    assert total.dealt_multiply_adds == meter.counts["dealt", ""]


# ---- memory
def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    parts = [getattr(value, name, None) for name in ("m", "lam", "hat", "beta", "share")]
    return [part for part in parts if part is not None]


def _held_bytes(values) -> int:
    """Bytes of the storages behind values, each storage once."""
    storages = [tensor.untyped_storage() for value in values for tensor in _tensors(value)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def _measured_peaks(session, inputs, monkeypatch) -> dict[str, int]:
    """The most that each party held after any operation, with what was dealt for it."""
    peaks: dict[str, int] = defaultdict(int)
    release, gate = party.OnlineParty._release, party.OnlineParty._gate

    def note(worker, env, *more) -> None:
        held = _held_bytes([*env.values(), *worker.loaded_operands.values(), *more])
        peaks[worker.me] = max(peaks[worker.me], held)

    def noted_release(worker, env, *args):
        note(worker, env)
        return release(worker, env, *args)

    def noted_gate(worker, node, attrs, env, dealt):
        parts = list(dealt.values())
        made = gate(worker, node, attrs, env, dealt)
        note(worker, env, made, *parts)
        return made

    monkeypatch.setattr(party.OnlineParty, "_release", noted_release)
    monkeypatch.setattr(party.OnlineParty, "_gate", noted_gate)
    session.run(*inputs)
    return peaks


@pytest.mark.parametrize("name", CASES)
def test_memory_is_about_what_is_held(name: str, monkeypatch) -> None:
    """Local sessions prepare nothing ahead, so the plan is asked for that."""
    program, inputs = compiled(name)
    with securemodel.local(program) as session:
        session.load(program, program.model)
        peaks = _measured_peaks(session, inputs, monkeypatch)
    for me, measured in peaks.items():
        planned = peak_bytes(program.graph, program.parties, me, 0)
        assert abs(planned - measured) <= 0.05 * measured + 64  # an input's message has headers and padding


def _moved(shape_between: list[int], kind: str, attrs: dict) -> int:
    """Memory for an input of 24 elements, moved and then reshaped."""
    graph = Graph()
    graph.add("placeholder", (), (2, 3, 4), "float", owner="alice")
    graph.add("input", [0], (2, 3, 4), "masked", owner="alice")
    graph.add("linear", [1], shape_between, "masked", attrs={"kind": kind, "attrs": attrs})
    graph.add("linear", [2], (24,), "masked", attrs={"kind": "reshape", "attrs": {"shape": [24]}})
    return peak_bytes(graph, AB, "bob", 0)


def test_reshaping_costs_memory_where_elements_are_out_of_order() -> None:
    one = 24 * 8
    assert _moved([6, 4], "reshape", {"shape": [6, 4]}) == one
    assert _moved([2, 3, 4], "slice", {"dim": 0, "start": 0, "stop": 2, "step": 1}) == one
    assert _moved([4, 3, 2], "permute", {"dims": [2, 1, 0]}) == 2 * one


def test_what_waits_prepared_counts_as_memory() -> None:
    program, _ = compiled("pooled")
    graph, parties = program.graph, program.parties
    one = [peak_bytes(graph, parties, "alice", ahead) for ahead in (0, 1000, AHEAD_BYTES)]
    assert one[0] < one[1] < one[2] == program.plan().peak_bytes["alice"]
    assert walk._AHEAD_BYTES == AHEAD_BYTES


# ---- layers
def test_layers_are_modules_and_lines() -> None:
    program, _ = compiled("pooled")
    names = [layer.name for layer in program.plan().layers]
    assert names[0] == "inputs" and names[-1] == "outputs"
    assert {"features.0 Conv2d", "features.1 ReLU", "features.2 MaxPool2d", "act ReLU", "out Linear"} < set(names)
    assert "act@1 ReLU" in names  # called twice: two layers
    lines = [name for name in names if name.startswith("test_plan.py:")]
    assert lines and all("- 0.5" in line for line in lines)  # flatten only moves elements: no layer of its own


def test_layers_of_a_program_from_text_are_products_and_comparisons(tmp_path) -> None:
    program, _ = compiled("mlp")
    program.save(tmp_path / "program.txt")
    names = [layer.name for layer in securemodel.Program.load(tmp_path / "program.txt").plan().layers]
    assert [name.split()[-1] for name in names] == ["inputs", "matmul", "comparison", "matmul", "outputs"]


# ---- time
def test_seconds_follow_the_stated_formula() -> None:
    cost = PartyCost(rounds=5, sent_bytes=1000, received_bytes=3000, multiply_adds=70, moved_bytes=90, operations=2)
    machine = Machine(multiply_adds_per_s=7.0, bytes_per_s=9.0, seconds_per_operation=3.0)
    assert cost.seconds(Network(24000.0, 2.0), machine) == 5 * 2.0 + 8 * 3000 / 24000 + 70 / 7 + 90 / 9 + 2 * 3.0


def test_preparing_takes_as_long_as_its_slowest_part() -> None:
    machine = Machine(multiply_adds_per_s=7.0, prepared_bytes_per_s=9.0, seconds_per_operation=3.0)
    cost = Cost({"a": PartyCost(prepared_multiply_adds=70, prepared_bytes=90), "b": PartyCost()}, 1000, 140, 2)
    dealing, expanding, sending = 140 / 7 + 2 * 90 / 9 + 2 * 3.0, 70 / 7 + 90 / 9 + 2 * 3.0, 8 * 1000 / 10.0 + 0.5
    assert dealing > expanding
    assert cost.preparing_seconds(Network(1e12, 0.0), machine) == pytest.approx(dealing)
    assert cost.preparing_seconds(Network(10.0, 0.5), machine) == pytest.approx(sending)


def test_impossible_machines_are_refused() -> None:
    for wrong in ({"multiply_adds_per_s": 0}, {"bytes_per_s": -1.0}, {"seconds_per_operation": float("nan")}):
        with pytest.raises(InputError, match="positive"):
            Machine(**wrong)


def test_total_time_is_the_slowest_party_s() -> None:
    machine, network = Machine(), Network(1e9, 1e-3)
    slow, fast = PartyCost(rounds=9), PartyCost(rounds=2, sent_bytes=8)
    assert Cost({"a": fast, "b": slow}).seconds(network, machine) == slow.seconds(network, machine)


def test_worse_networks_and_machines_take_longer() -> None:
    program, _ = compiled("pooled")
    seconds = [program.plan(name).seconds for name in ("local", "lan", "wan")]
    assert seconds == sorted(seconds) and seconds[0] < seconds[-1]
    slow = make_plan(program, "lan", Machine(multiply_adds_per_s=1e6))
    assert slow.seconds > program.plan("lan").seconds
    assert slow.preparing_seconds > program.plan("lan").preparing_seconds
    assert slow.total == program.plan("lan").total


def test_unknown_networks_are_refused_with_what_is_possible() -> None:
    program, _ = compiled("mlp")
    with pytest.raises(InputError, match="'lan', 'wan'.*Network") as error:
        program.plan("moon")
    assert "'moon'" in str(error.value)
    for bandwidth, latency in ((0, 0.1), (-1.0, 0.1), (1e9, -1.0), (float("nan"), 0.1)):
        with pytest.raises(InputError, match="bandwidth"):
            Network(bandwidth, latency)
    assert program.plan(Network(1e6, 0.5)).network.latency == 0.5


# ---- the table
@pytest.mark.parametrize("name", ["mlp", "pooled_three", "all_owners", "public_weights"])
def test_the_table_shows_every_layer_within_its_width(name: str) -> None:
    program, _ = compiled(name)
    plan = program.plan("wan")
    lines = str(plan).splitlines()
    assert max(map(len, lines)) <= 110
    assert program.digest[:12] in lines[0] and "100 Mbit/s, 20 ms one way" in lines[0]
    total = next(line for line in lines if line.startswith("total")).split()
    assert total[1] == str(plan.rounds)
    rules = [at for at, line in enumerate(lines) if set(line) == {"-"}]
    assert rules[1] - rules[0] - 1 == len(plan.layers)
    for layer, line in zip(plan.layers, lines[rules[0] + 1 :]):
        assert line.startswith(" ".join(layer.name.split())[:20])


def test_long_names_are_cut() -> None:
    parties = ("a" * 40, "b" * 40, "c" * 40)
    model = Function(lambda x, y: torch.relu(x * y * 3 + 1) + torch.relu(x - 1) + torch.relu(y - 2))  # a long line
    arguments = {"weights": "public", "inputs": parties[:2], "outputs": "all", "parties": parties}
    program = securemodel.compile(model, (torch.zeros(3), torch.zeros(3)), **arguments)
    table = str(program.plan()).split("\none run sends")[0].splitlines()[1:]
    assert max(map(len, table)) <= 110
    assert any(line.startswith("test_plan.py:") and "..." in line for line in table)


def test_numbers_are_short() -> None:
    assert [bytes_text(n) for n in (0, 999, 1000, 99_949, 99_950, 999_499, 999_500, 12_345_678)] == [
        "0 B", "999 B", "1.0 KB", "99.9 KB", "100 KB", "999 KB", "1.0 MB", "12.3 MB",
    ]  # fmt: skip
    assert [count_text(n) for n in (7, 1500, 3 * 10**12)] == ["7", "1.5 K", "3.0 T"]
    assert [seconds_text(s) for s in (0.00123, 2.0)] == ["1.23 ms", "2.00 s"]
    assert [seconds_text(s) for s in (599.0, 3600.0, 90_000.0)] == ["599.00 s", "60 min", "25 h"]


@pytest.mark.parametrize(
    ("document", "word"), [("document", ""), pytest.param("training_document", "training ", marks=pytest.mark.slow)]
)
def test_the_pages_of_costs_are_what_the_code_declares(document: str, word: str) -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    page = f"{word.strip()}-costs.md".removeprefix("-")
    printed = runpy.run_path(str(docs / "make_costs.py"))[document]()
    same = printed == (docs / page).read_text()
    assert same, f"costs have changed: run `python docs/make_costs.py {word}> docs/{page}`"


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, True)])
def test_a_plan_states_the_rounds_of_a_recurrent_step(layers: int, bidirectional: bool) -> None:
    """Both directions run side by side, layers one after the other."""

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(3, 4, layers, bidirectional=bidirectional, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0][:, -1]

    owners = {"weights": "alice", "inputs": "bob", "outputs": "bob"}
    plan = securemodel.compile(Last(), torch.zeros(2, 6, 3), **owners).plan()
    (layer,) = [layer for layer in plan.layers if layer.steps]
    assert layer.steps == 6 * layers and layer.name == "rnn GRU"
    assert layer.rounds_per_step == layer.cost.rounds / layer.steps and 5 < layer.rounds_per_step < 27
    assert f"rnn GRU ({layer.steps} steps of {layer.rounds_per_step:.0f} rounds)" in str(plan)
