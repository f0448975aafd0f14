"""Measured ranges: the same results inside of them for fewer bytes, wrong ones outside, and nobody runs with others."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import TWO, Veiled
from torch import nn

import securemodel
from securemodel.compiler.ir import COMPARED, TUNED
from securemodel.errors import CompileError, FileError, InputError, OutOfRange, ProgramError
from securemodel.inspect.audit import audit
from securemodel.inspect.fixed import fixed_point
from securemodel.inspect.tuning import _Seen

UNIT, SIZE = 2.0**-16, 8
FIRST = torch.linspace(-1, 1, SIZE)


def network() -> nn.Module:
    torch.manual_seed(3)
    middle = [nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.GELU(), *middle, nn.Softmax(-1)).eval()


def rows(count: int) -> torch.Tensor:
    return torch.randn(count, 5, generator=torch.Generator().manual_seed(1))


@cache
def tuned(name: str, rounding: str = "exact", margin: float = 4.0) -> securemodel.TunedProgram:
    functions = {
        "relu": torch.relu,
        "gelu": nn.functional.gelu,
        "sigmoid": torch.sigmoid,
        "product": lambda x: torch.relu(x * x - 1),
        "maximum": lambda x: torch.maximum(x, x.flip(0)),
        "clamp": lambda x: x.clamp(-5.0, 0.5),
        "absolute": torch.abs,
        "max": lambda x: torch.maximum(x, 0 * x - 7.0),
    }
    program = securemodel.compile(Veiled(functions[name]), FIRST, rounding=rounding, **TWO)
    return securemodel.tune(program, FIRST, tolerance=1e-3, margin=margin, tables=False)


@pytest.mark.parametrize("rounding, parties", [("exact", ("a", "b")), ("fast", ("b", "idle", "a"))], ids=str)
def test_a_tuned_program_gives_the_same_for_less(rounding, parties):
    x, model = rows(12), network()
    program = securemodel.compile(model, x[:5], **TWO, rounding=rounding, parties=parties)
    found = securemodel.tune(program, x, tolerance=1e-3, margin=2)
    with securemodel.local(found.program) as session:
        made = session.run(x)
    assert (made - model(x)).abs().max() < 1e-3 and found.error < 1e-3
    stats, plan, before = session.stats, found.program.plan(), program.plan()
    assert stats.preprocessing_bytes == 3 * plan.preprocessing_bytes and stats.rounds == 3 * plan.rounds
    assert plan.preprocessing_bytes < 0.75 * before.preprocessing_bytes and plan.rounds <= before.rounds
    assert all(plan.sent_bytes[me] < 0.8 * before.sent_bytes[me] for me in ("a", "b"))
    total, gained = found.total, found.layers
    assert total.dealt == (before.preprocessing_bytes, plan.preprocessing_bytes)
    assert (
        sum(gain.dealt[1] for gain in gained) == total.dealt[1]
        and sum(gain.rounds[0] for gain in gained) == total.rounds[0]
    )
    text = str(found)
    assert "4 ReLU" in text and "a run" in text and "the result is wrong and nothing says so" in text
    assert max(map(len, text.splitlines())) <= 110


def test_exact_results_do_not_change_where_only_widths_do():
    found = tuned("product")
    tuning, header = found.tuning, found.program.header
    assert header.tuned and header.tuned.limits and not header.tuned.settled and not tuning.signs
    x = torch.tensor([0.0, 1.0, -1.0, UNIT, -UNIT, 1 - UNIT, 1.5, -1.25])
    assert torch.equal(fixed_point(found.program, x)[0], fixed_point(found.before, x)[0])


def edge(found: securemodel.TunedProgram) -> int:
    """The largest value of the one that is compared, in units of fixed point: a ReLU compares x - 1."""
    assert found.program.header.tuned
    graph = found.program.graph
    ((node, bits),) = [(a, n) for a, n in found.program.header.tuned.limits if graph[a].op != "reveal"]
    assert graph[node].frac == 16
    return 2**bits


@pytest.mark.parametrize("rounding", ["exact", "fast"])
@settings(max_examples=6, deadline=None)
@given(st.data())
def test_comparisons_are_right_up_to_the_last_number_of_their_range(rounding, data):
    found = tuned("relu", rounding)
    end = edge(found)
    number = st.sampled_from([1 - end, 2 - end, -1, 0, 1, end - 1, end]) | st.integers(1 - end, end)
    x = torch.tensor(data.draw(st.lists(number, min_size=SIZE, max_size=SIZE))).double() * UNIT
    assert torch.equal(fixed_point(found.program, x)[0].double(), torch.relu(x))


def test_a_value_beyond_its_range_is_wrong_and_compare_says_so():
    found = tuned("relu")
    x = FIRST.double().clone()
    x[0] = (edge(found) + 1) * UNIT
    assert x[0] > 4 and fixed_point(found.program, x)[0][0] == 0 < fixed_point(found.before, x)[0][0]
    compared = securemodel.compare(found.program, x)
    assert compared.first_out_of_range and compared.first_out_of_range.limit
    assert compared.first_out_of_range.limit.what == TUNED and TUNED in str(compared)
    assert securemodel.compare(found.program, FIRST).first_out_of_range is None


@pytest.mark.parametrize("rounding", ["exact", "fast"])
@pytest.mark.parametrize("name", ["gelu", "sigmoid", "clamp", "max"])
def test_comparisons_with_one_outcome_are_left_out(name, rounding):
    found = tuned(name, rounding)
    assert found.program.header.tuned and found.program.header.tuned.settled
    more = sum(node.op == "top_bit" for node in found.before.graph.nodes)
    assert sum(node.op == "top_bit" for node in found.program.graph.nodes) < more or name == "clamp"
    assert found.program.plan().preprocessing_bytes < 0.75 * found.before.plan().preprocessing_bytes
    wider = FIRST * 1.5
    right = found.program.model(wider)
    assert (fixed_point(found.program, wider)[0] - right).abs().max() < 1e-4
    with securemodel.local(found.program) as session:
        assert (session.run(wider) - right).abs().max() < 1e-4
    compared = securemodel.compare(found.program, torch.cat([FIRST[1:], torch.tensor([-30.0])]))
    assert compared.first_out_of_range and compared.first_out_of_range.limit.what == TUNED


@pytest.mark.parametrize("rounding", ["exact", "fast"])
@pytest.mark.parametrize("side", [1, -1])
def test_compare_names_a_value_that_is_just_on_the_other_side(rounding, side):
    program = securemodel.compile(Veiled(lambda x: torch.where(x < 5 * side, x, -x)), FIRST, rounding=rounding, **TWO)
    found = securemodel.tune(program, FIRST, tolerance=1e-3)
    assert found.program.header.tuned.settled == 1
    for number, inside in ((5 * side - UNIT, side > 0), (5.0 * side, side < 0)):
        x = FIRST.double().clone()
        x[3] = number
        same = torch.equal(fixed_point(found.program, x)[0], fixed_point(program, x)[0])
        assert same == inside == (securemodel.compare(found.program, x).first_out_of_range is None)


@pytest.mark.parametrize("name", ["maximum", "absolute"])
def test_what_both_outcomes_were_seen_of_stays(name):
    found = tuned(name)
    assert found.program.header.tuned and not found.program.header.tuned.settled
    assert torch.equal(fixed_point(found.program, FIRST)[0], fixed_point(found.before, FIRST)[0])


def test_a_larger_margin_costs_no_less():
    dealt = [tuned("relu", margin=margin).program.plan().preprocessing_bytes for margin in (1, 4, 1e3, 1e8)]
    assert dealt == sorted(dealt) and dealt[0] < dealt[-1]
    assert not tuned("gelu", margin=100.0).program.header.tuned.settled


def test_rows_that_fill_up_a_batch_are_in_range():
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0), layer.bias.fill_(-20.0)
    program = securemodel.compile(nn.Sequential(layer, nn.ReLU()), torch.zeros(2, 1), **TWO)
    found = securemodel.tune(program, torch.full((2, 1), 25.0), tolerance=1e-3, margin=1)
    graph = found.program.graph
    assert min(2.0 ** (bits - graph[node].frac) for node, bits in found.program.header.tuned.limits) > 20


def test_truncated_outputs_are_tuned_too():
    program = securemodel.compile(Veiled(lambda x: torch.relu(x) * x), FIRST, truncate_outputs=True, **TWO)
    found = securemodel.tune(program, FIRST, tolerance=1e-3)
    assert [n.frac for n in found.program.graph.nodes if n.op == "reveal"] == [16]


# ---- openings, truncations and results
class Scaled(nn.Module):
    """Both inputs times a secret 1 + 2^-16: the first product is truncated, and the second is the result."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1 + UNIT))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x * self.factor * y


OF_TWO = {"weights": "a", "inputs": ("b", "a"), "outputs": "b"}


@cache
def opened(rounding: str, parties: int, guard: bool = False) -> securemodel.TunedProgram:
    roles = {**OF_TWO, "parties": ("b", "a", "idle")[:parties]}
    program = securemodel.compile(Scaled(), (FIRST, FIRST), rounding=rounding, **roles)
    return securemodel.tune(program, FIRST, FIRST, tolerance=1e-3, guard=guard)


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("rounding", ["exact", "fast"])
@settings(max_examples=8, deadline=None)
@given(st.data())
def test_openings_of_few_bytes_are_right_up_to_the_ends_of_their_range(rounding, parties, data):
    found = opened(rounding, parties)
    assert found.program.plan().sent_bytes["a"] < 0.85 * found.before.plan().sent_bytes["a"]
    (cut,) = [n for n in found.program.graph.nodes if "modulo" in n.attrs]
    frac = found.program.graph[cut.args[-1 if rounding == "fast" else 1]].frac
    end = int(2 ** (cut.attrs["modulo"] - 2 - frac + 16) / (1 + UNIT))  # of x, in units
    number = st.sampled_from([1 - end, end - 1, 0, 1, -1, 1 << 16]) | st.integers(1 - end, end - 1)
    draw = lambda numbers: torch.tensor(data.draw(st.lists(numbers, min_size=SIZE, max_size=SIZE))).double() * UNIT
    x, y = draw(number), draw(st.sampled_from([0, 1, -1, 1 << 16, -(1 << 16)]) | st.integers(-(1 << 16), 1 << 16))
    with securemodel.local(found.program) as session:
        made = session.run(x, y).double()
    right = fixed_point(found.before, x, y)[0].double()
    assert torch.equal(fixed_point(found.program, x, y)[0].double(), right)
    room = y.abs() * UNIT * (rounding == "fast") + right.abs() * 2.0**-22
    assert bool(((made - right).abs() <= room).all())


def test_an_opening_beyond_its_range_is_wrong_and_compare_says_so():
    found, x = opened("exact", 2), FIRST.clone()
    x[1] = -100.0
    assert (fixed_point(found.program, x, FIRST)[0] - Scaled()(x, FIRST)).abs().max() > 1
    compared = securemodel.compare(found.program, x, FIRST)
    assert compared.first_out_of_range and compared.first_out_of_range.limit
    assert compared.first_out_of_range.limit.what == TUNED and compared.first_out_of_range.limit.low > -100
    assert securemodel.compare(found.program, FIRST, FIRST).first_out_of_range is None


def test_a_result_is_sent_in_as_few_bytes_as_it_has():
    program = securemodel.compile(Veiled(lambda x: x + 1.0), FIRST, **TWO)
    found = securemodel.tune(program, FIRST, tolerance=1e-3)
    (revealed,) = [node for node in found.program.graph.nodes if node.op == "reveal"]
    assert revealed.attrs["width"] == 24 and found.program.header.tuned.limits == ((revealed.id, 23),)
    x = torch.arange(SIZE) / 4.0
    x[0], x[-1] = -129.0, 127.0 - UNIT
    with securemodel.local(found.program) as session:
        assert torch.equal(session.run(x), x + 1)
    x[3] = 127.0
    assert fixed_point(found.program, x)[0][3] == -128.0
    assert securemodel.compare(found.program, x).first_out_of_range.limit.what == TUNED


def test_what_may_be_chosen_counts_as_large_as_what_it_is_chosen_from():
    found = securemodel.tune(
        securemodel.compile(Veiled(lambda x: torch.relu(x - 1)), FIRST, **TWO), FIRST, tolerance=1e-3
    )
    x = torch.arange(SIZE) / 2.0  # of the data, nothing is above 1
    assert torch.equal(fixed_point(found.program, x)[0], torch.relu(x - 1))


def test_comparisons_of_one_mask_take_the_same_bits_where_those_are_few_more():
    largest = {1: 2.0**40, 2: 2.0**34, 3: 2.0**20, 4: 2.0**16, 5: 2.0**34}
    seen = _Seen(
        ends={n: (-most, 1.0) for n, most in largest.items()},
        masked=dict.fromkeys(range(1, 5), 7) | {5: 8},
        layers=dict.fromkeys(largest, "ReLU"),
    )
    assert [limit.bits for limit in seen.limits(1.0)] == [41, 41, 21, 21, 35]


def test_a_guard_leaves_openings_as_they_are():
    found = opened("exact", 2, guard=True)
    assert not found.tuning.values and not found.program.header.tuned.limits
    assert found.total.sent[0] == found.total.sent[1]


def test_a_changed_value_of_a_tuning_is_refused(tmp_path):
    found, file = opened("exact", 2), tmp_path / "mine.tuning"
    number = next(each.value for each in found.tuning.values if each.value >= 0)
    changed = replace(found.tuning, values=(replace(found.tuning.values[0], value=number + 1),))
    with pytest.raises(CompileError, match=f"a limit of the value {number + 1}, and the model truncates no such value"):
        securemodel.compile(Scaled(), (FIRST, FIRST), rounding="exact", tuned=changed, **OF_TWO, parties=("b", "a"))
    for entry in ("[1, 2]", '[true, 3, "x"]', '[1, 200, "x"]', '[1, 3, "x"], [1, 3, "x"]'):
        file.write_text(found.tuning.text().replace('"values": [', f'"values": [{entry},', 1))
        with pytest.raises(InputError, match="this is no tuning"):
            securemodel.Tuning.load(file)


@pytest.mark.parametrize("old, new", [('"modulo":40', '"modulo":48'), ('"modulo":40', '"modulo":16'),
                                      ('"width":40', '"width":12'), ('"modulo":40', '"modulo":41')])  # fmt: skip
def test_a_text_with_other_openings_than_its_ranges_is_refused(tmp_path, old, new):
    text, file = opened("exact", 2).program.text(), tmp_path / "program.txt"
    assert old in text
    file.write_text(text)
    assert securemodel.Program.load(file).digest == opened("exact", 2).program.digest
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ProgramError):
        securemodel.Program.load(file)


# ---- masks that are added to scores
class Masked(nn.Module):
    """Attention's weights of a secret matrix under a mask that is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return (x @ self.matrix + mask).softmax(-1)


@pytest.mark.parametrize("guard", [False, True])
@pytest.mark.parametrize("owner", ["b", "public"])
def test_no_row_has_a_sink_where_no_row_was_forbidden(owner, guard):
    x, mask = torch.randn(4, 4, generator=torch.Generator().manual_seed(3)), torch.zeros(4, 4)
    mask[0, 1] = -1e30
    program = securemodel.compile(
        Masked(), (x, mask), weights="a", inputs=("b", owner), outputs="b", parties=("a", "b")
    )
    found = securemodel.tune(program, x, mask, tolerance=1e-3, guard=guard, tables=False)
    assert "_sink" in program.text() and "_sink" not in found.program.text() and found.tuning.whole_rows
    with securemodel.local(found.program) as session:
        assert torch.allclose(session.run(x, mask), Masked()(x, mask), atol=1e-4)
        with pytest.raises(InputError, match="forbids a whole row of scores"):
            session.run(x, mask.index_fill(0, torch.tensor([2]), -1e30))
    forbidden = mask.index_fill(0, torch.tensor([2]), -1e30)
    kept = securemodel.tune(program, x, forbidden, tolerance=1e-3, guard=guard, tables=False)
    assert "_sink" in kept.program.text() and not kept.tuning.whole_rows
    assert torch.allclose(fixed_point(kept.program, x, forbidden)[0], Masked()(x, forbidden), atol=1e-4)


# ---- the guard
@cache
def guarded(rounding: str) -> tuple[securemodel.TunedProgram, torch.Tensor]:
    x = rows(4)
    program = securemodel.compile(
        network(), x, rounding=rounding, **TWO, parties=("a", "idle", "b")[:: 2 - (rounding == "fast")]
    )
    return securemodel.tune(program, x, tolerance=1e-3, guard=True), x


@pytest.mark.parametrize("rounding", ["exact", "fast"])
def test_a_guard_catches_one_value_and_the_session_goes_on(rounding):
    found, x = guarded(rounding)
    program, header = found.program, found.program.header
    assert header.tuned and header.tuned.guard and not header.tuned.settled and header.results == ("b",)
    assert found.before.plan().preprocessing_bytes + 12_000 > program.plan().preprocessing_bytes
    assert any(gain.layer == "guard of tuned ranges" and 0 < gain.dealt[1] < 12_000 for gain in found.layers)
    outside = x.clone()
    outside[2] *= 1000
    with securemodel.local(program) as session:
        assert (session.run(x) - network()(x)).abs().max() < 1e-3
        with pytest.raises(OutOfRange, match="nobody is told which value"):
            session.run(outside)
        assert (session.run(x) - network()(x)).abs().max() < 1e-3
    assert "by one bit" in str(found) and securemodel.compare(program, x).first_out_of_range is None
    left = securemodel.compare(program, outside).first_out_of_range  # on an owner's own data one may look which value
    assert left.limit.what == TUNED and left.limit.outside
    assert (
        program.result_names == ("output", "a tuned range was left")
        and not torch.isnan(fixed_point(program, x)[0]).any()
    )


@pytest.mark.parametrize("rounding", ["exact", "fast"])
def test_a_guard_is_right_to_the_last_number(rounding):
    program = securemodel.compile(Veiled(torch.relu), FIRST, rounding=rounding, **TWO)
    found = securemodel.tune(program, FIRST, tolerance=1e-3, guard=True)
    end = edge(found)
    with securemodel.local(found.program) as session:
        for number in (1 - end, end, 0, -1):
            x = torch.zeros(SIZE, dtype=torch.float64)
            x[3] = number * UNIT
            assert torch.equal(session.run(x).double(), torch.relu(x))
        for number in (-end, end + 1, 3 * end, -2 * end, 200 * end):
            x[3] = number * UNIT
            with pytest.raises(OutOfRange):
                session.run(x)


def test_a_guarded_program_is_read_back_and_another_one(tmp_path):
    found, _ = guarded("exact")
    found.save(tmp_path / "mine.tuning")
    assert securemodel.Tuning.load(tmp_path / "mine.tuning") == found.tuning and found.tuning.guard
    found.program.save(tmp_path / "program.txt")
    assert securemodel.Program.load(tmp_path / "program.txt").digest == found.program.digest
    text = found.program.text().replace('"outputs":["b","all"]', '"outputs":["b","b"]', 1)
    (tmp_path / "other.txt").write_text(text.replace("reveal@all", "reveal@b"))
    with pytest.raises(ProgramError, match="a guard is the last output"):
        securemodel.Program.load(tmp_path / "other.txt")
    assert "one bit" in next(weak.what for weak in audit(found.program).warnings if weak.name == "tuned ranges")


def test_there_is_no_guard_where_nothing_was_measured():
    program = securemodel.compile(nn.Linear(5, 2), rows(4), **TWO)
    found = securemodel.tune(program, rows(4), tolerance=1e-3, guard=True)
    assert (
        found.program.header.tuned and not found.program.header.guarded and found.total.dealt[0] == found.total.dealt[1]
    )


# ---- the choice is in the program's text
def test_a_tuning_is_read_back_and_makes_the_same_program(tmp_path):
    found, file = tuned("gelu"), tmp_path / "mine.tuning"
    found.save(file)
    assert securemodel.Tuning.load(file) == found.tuning
    again = [
        securemodel.compile(Veiled(nn.functional.gelu), FIRST, tuned=given, **TWO) for given in (file, found.tuning)
    ]
    assert {program.digest for program in again} == {found.program.digest} != {found.before.digest}
    assert securemodel.compile(Veiled(nn.functional.gelu), FIRST, tuned=None, **TWO).digest == found.before.digest
    found.program.save(tmp_path / "program.txt")
    read = securemodel.Program.load(tmp_path / "program.txt")
    assert read.digest == found.program.digest and read.header == found.program.header
    assert read.plan().preprocessing_bytes == found.program.plan().preprocessing_bytes
    assert "tuned" not in found.before.text().partition("\n")[0]


def test_a_tuning_of_another_model_is_refused():
    for function, example, more in ((torch.relu, FIRST, {}), (nn.functional.gelu, FIRST[1:], {}),
                                    (nn.functional.gelu, FIRST, {"rounding": "fast"})):  # fmt: skip
        with pytest.raises(CompileError, match="another model or of other settings"):
            securemodel.compile(Veiled(function), example, tuned=tuned("gelu").tuning, **TWO, **more)
    right = tuned("gelu").tuning
    for other in (0, 10**9):
        changed = replace(right, limits=(replace(right.limits[0], comparison=other), *right.limits[1:]))
        with pytest.raises(CompileError, match=f"a limit of {other}, and that is no comparison"):
            securemodel.compile(Veiled(nn.functional.gelu), FIRST, tuned=changed, **TWO)
    with pytest.raises(InputError, match="tuned= is no tuning but dict"):
        securemodel.compile(Veiled(torch.relu), FIRST, tuned={}, **TWO)
    with pytest.raises(TypeError, match="tuned"):
        securemodel.compile(Veiled(torch.relu), FIRST, tuned=None, protocol="crypten", **TWO)


@pytest.mark.parametrize(
    "old, new",
    [
        ('"margin": 4.0', '"margin": 0.5'),
        ('"margin": 4.0', '"margin": 4'),
        ('"limits": [', '"limits": [[1, 2, 3, "x"],'),
        ('"limits": [', '"limits": [[1, 64, 0, "x"],'),
        ('"limits": [', '"limits": [[1, 20, 0, "x"], [1, 20, 0, "x"],'),
        ('"limits": [', '"limits": [[true, 20, 0, "x"],'),
        ('"kind"', '"sort"'),
        ('"of": "', '"of": "Z'),
        ("{", "{{"),
    ],
)
def test_a_damaged_tuning_is_refused(tmp_path, old, new):
    assert refusal_of(tmp_path, tuned("relu").tuning.text().replace(old, new, 1))


def refusal_of(tmp_path, text: str) -> str:
    file = tmp_path / "mine.tuning"
    file.write_text(text)
    with pytest.raises(InputError, match="this is no tuning") as refused:
        securemodel.Tuning.load(file)
    assert str(file) in str(refused.value)
    with pytest.raises(FileError):
        securemodel.Tuning.load(tmp_path / "none")
    return str(refused.value)


def test_a_refused_tuning_says_why(tmp_path):
    """Also one of an earlier version, which has other fields."""
    text = tuned("relu").tuning.text()
    old = {"kind": "securemodel-tuning", "version": 1, "of": "0" * 64, "margin": 4.0, "guard": False, "limits": []}
    assert "it is of version 1, and this is version 2" in refusal_of(tmp_path, json.dumps(old))
    assert "it is of version 3" in refusal_of(tmp_path, text.replace('"version": 2', '"version": 3'))
    assert "it is no securemodel-tuning" in refusal_of(tmp_path, "[]")
    assert "its field 'margin' is no float" in refusal_of(tmp_path, text.replace('"margin": 4.0', '"margin": 4'))
    assert "it is not JSON" in refusal_of(tmp_path, text[: len(text) // 2])


@pytest.mark.parametrize(
    "old, new",
    [
        ('"margin":4.0', '"margin":0.5'),
        ('"settled":0', '"settled":-1'),
        ('"settled":0', '"settled":true'),
        ('"tables":0', '"tables":-1'),
        ('"tables":0', '"tables":true'),
        ('"limits":[[', '"limits":[[0,20],['),
        ('"limits":[[', '"limits":[[[1],20],['),
        ('"of":"', '"of":"zz'),
        ('"tuned":{', '"tuned":{"more":1,'),
    ],
)
def test_a_text_with_other_ranges_than_its_comparisons_is_refused(tmp_path, old, new):
    text, file = tuned("relu").program.text(), tmp_path / "program.txt"
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(ProgramError, match="line 1"):
        securemodel.Program.load(file)


def test_an_audit_names_the_choice():
    weak = {choice.name: choice for choice in audit(tuned("gelu").program).warnings}
    assert "2 comparisons are left out" in weak["tuned ranges"].what
    assert "tuned ranges" not in {choice.name for choice in audit(tuned("gelu").before).warnings}


def test_what_is_measured_is_no_part_of_an_ordinary_program():
    program = tuned("relu").before
    assert any(mark.name == COMPARED for node in program.graph.nodes for mark in node.marks)
    assert COMPARED not in program.text() and COMPARED not in str(securemodel.compare(program, FIRST))


# ---- what it refuses
def test_data_that_cannot_be_measured():
    program = tuned("relu").before
    tune = lambda x, **more: securemodel.tune(program, x, **{"tolerance": 1e-3, **more})
    for bad in (torch.nan, torch.inf):
        x = FIRST.clone()
        x[3] = bad
        with pytest.raises(InputError, match=r"not finite[\s\S]*at \[3\]"):
            tune(x)
    for x, says in ((torch.zeros(0), "has shape"), (torch.zeros(2, 8), "has shape"), (FIRST * 2**40, "outside|range"),
                    ([1.0], "must be a tensor"), (FIRST.to(torch.complex64), "complex")):  # fmt: skip
        with pytest.raises(InputError, match=says):
            tune(x)
    for tolerance in (0, -1.0, float("nan"), float("inf"), True, "1"):
        with pytest.raises(InputError, match="is no tolerance"):
            tune(FIRST, tolerance=tolerance)
    for margin in (0.5, float("nan"), True, "4", 2.0**64):
        with pytest.raises(InputError, match="is no margin"):
            tune(FIRST, margin=margin)
    with pytest.raises(InputError, match="takes 1 inputs"):
        securemodel.tune(program, tolerance=1e-3)
    for name in ("guard", "tables"):
        with pytest.raises(InputError, match=f"{name} = 'no'"):
            tune(FIRST, **{name: "no"})


def test_numbers_of_another_type_are_the_same_numbers():
    """As in a run: whole ones for a model of reals, and the other way round. And what has no values is refused."""
    real = securemodel.compile(nn.Linear(5, 2).eval(), torch.zeros(4, 5), **TWO)
    whole = securemodel.compile(nn.Embedding(7, 3).eval(), torch.zeros(4, 5, dtype=torch.int64), **TWO)
    ones = torch.ones(4, 5)
    for program in (real, whole):
        expected = securemodel.compare(program, ones.to(program.examples[0].dtype)).rows
        for dtype in (torch.int64, torch.uint8, torch.bool, torch.float16, torch.float64):
            assert securemodel.compare(program, ones.to(dtype)).rows == expected
            assert securemodel.tune(program, ones.to(dtype), tolerance=1e-3).error < 1e-3
    for program, x in ((real, ones.to(torch.complex64)), (whole, ones / 2)):
        with pytest.raises(InputError, match="where the model reads"):
            securemodel.compare(program, x)


@pytest.mark.parametrize("form", [lambda x: x.to("meta"), torch.Tensor.to_sparse, torch.Tensor.to_mkldnn])
def test_tensors_without_values_are_refused_wherever_a_model_runs(form):
    x, program = form(torch.ones(4, 5)), securemodel.compile(nn.Linear(5, 2).eval(), torch.zeros(4, 5), **TWO)
    with securemodel.local(program) as session:
        for call in (
            session.run,
            partial(securemodel.compare, program),
            partial(securemodel.tune, program, tolerance=1),
        ):
            with pytest.raises(InputError, match="whose values cannot be read"):
                call(x)


@pytest.mark.parametrize("of", [securemodel.compare, securemodel.local, partial(securemodel.connect, me="a"), audit,
                                partial(securemodel.tune, tolerance=1)])  # fmt: skip
def test_what_takes_a_program_says_so(of):
    with pytest.raises(InputError, match="a program is wanted, and this is of the type Linear"):
        of(nn.Linear(3, 2))
    with pytest.raises(InputError, match="model= is no model but int"):
        securemodel.tune(tuned("relu").before, FIRST, tolerance=1, model=3)


def test_rows_of_which_the_model_gives_no_number_are_none_to_measure_on():
    class Forbidding(nn.Module):
        def forward(self, x, mask):
            return torch.softmax(x.masked_fill(~mask, -torch.inf), -1)

    mask = torch.ones(5, 3, dtype=torch.bool)
    owners = {**TWO, "inputs": ["a", "b"]}
    program = securemodel.compile(Forbidding(), (torch.zeros(2, 3), mask[:2]), **owners)
    found = securemodel.tune(program, torch.ones(5, 3), mask, tolerance=1e-2)
    with securemodel.local(found.program) as session:
        assert (session.run(torch.ones(5, 3), mask) - 1 / 3).abs().max() < 1e-2
    mask[4] = False
    with pytest.raises(InputError, match="the model itself, in float64, gives results that are not finite"):
        securemodel.tune(program, torch.ones(5, 3), mask, tolerance=1e-2)


def test_a_tolerance_that_fixed_point_does_not_meet():
    with pytest.raises(InputError, match="more than the tolerance 1e-09"):
        securemodel.tune(tuned("sigmoid").before, FIRST, tolerance=1e-9)


def test_programs_that_cannot_be_tuned(tmp_path):
    found = tuned("relu")
    with pytest.raises(InputError, match="tuned already"):
        securemodel.tune(found.program, FIRST, tolerance=1e-3)
    found.before.save(tmp_path / "program.txt")
    with pytest.raises(InputError, match="read from a file"):
        securemodel.tune(securemodel.Program.load(tmp_path / "program.txt"), FIRST, tolerance=1e-3)
    encrypted = securemodel.compile(
        nn.Linear(3, 2), torch.zeros(2, 3), protocol="paillier", insecure_key_bits=512, **TWO
    )
    with pytest.raises(InputError, match="protocol 'paillier' cannot be tuned"):
        securemodel.tune(encrypted, torch.zeros(2, 3), tolerance=1e-3)
