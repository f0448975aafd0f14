"""Tables of fewer pieces: as few as an owner's data and the accuracy asked for allow, and what they are off by."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from running import TWO, Veiled
from torch import nn

import securemodel
from securemodel.compiler.approximations import SMOOTH, coarser
from securemodel.compiler.tuning import Halved, Tuning
from securemodel.errors import CompileError, InputError, UnsupportedOperator
from securemodel.inspect.audit import audit
from securemodel.inspect.fixed import fixed_point
from securemodel.inspect.halving import MOST_TRIALS, Read, halvings

FIRST = torch.linspace(-1, 1, 8)


FUNCTIONS = {
    "sigmoid": torch.sigmoid,
    "gelu": nn.functional.gelu,
    "softplus": nn.functional.softplus,
    "tanh": torch.tanh,
}
LINE = torch.cat([torch.linspace(-20, 20, 4001), torch.tensor([-7.75, 7.75, -15.5, 15.5, -7.5, 7.5, -15.0, 15.0])])


def with_halved(name: str, x: torch.Tensor, times: int, **more) -> securemodel.Program:
    tuning = Tuning("", 4.0, (), tables=(Halved(0, times, name, ""),) if times else ())
    return securemodel.compile(Veiled(FUNCTIONS[name]), x, tuned=tuning, **TWO, **more)


@pytest.mark.parametrize("rounding", ["exact", "fast"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_halved_table_is_off_by_eight_times_as_much(name, times, rounding):
    program = with_halved(name, LINE, times, rounding=rounding)
    (table,) = [node.attrs["table"] for node in program.graph.nodes if node.op == "lookup"]
    (whole,) = [n.attrs["table"] for n in with_halved(name, LINE, 0, rounding=rounding).graph.nodes if n.op == "lookup"]
    assert len(table[0]) == len(whole[0]) >> times and program.header.tuned.tables == 1
    off = (fixed_point(program, LINE)[0].double() - FUNCTIONS[name](LINE.double())).abs().max()
    assert 2 * SMOOTH[name].max_error < off < 8**times * SMOOTH[name].max_error + 2.0**-15


@pytest.mark.parametrize("name", SMOOTH)
def test_a_domain_ends_earlier_only_where_what_holds_outside_holds_there(name):
    fit = SMOOTH[name]
    for times in (1, 2):
        made = coarser(fit, times)
        if made is None:
            continue
        inside = torch.linspace(fit.low, fit.high, 10001, dtype=torch.float64)
        left, right = inside[inside < made.low], inside[inside > made.high]
        assert float((fit.function(left) - fit.below).abs().amax(0) if len(left) else 0) < 2.0**-18
        if len(right):
            assert float((fit.function(right) - fit.above - fit.slope * right).abs().max()) < 2.0**-18
    assert coarser(fit, 3) is None


def test_tables_are_halved_as_far_as_the_tolerance_allows(tmp_path):
    parties = ("a", "idle", "b")
    told: list[str] = []
    program = securemodel.compile(Veiled(torch.sigmoid), FIRST, parties=parties, **TWO)
    kept = securemodel.tune(program, FIRST, tolerance=1e-3, tables=False)
    found = securemodel.tune(program, FIRST, tolerance=1e-3, progress=told.append)
    ((number, times),) = found.tuning.halvings.items()
    assert number == 0 and times == 2 and found.error <= 1e-3 and len(told) == 2 and "sigmoid, 32 entries" in told[1]
    assert found.total.dealt[1] < kept.total.dealt[1] and not kept.tuning.tables
    with securemodel.local(found.program) as session:
        assert (session.run(FIRST) - torch.sigmoid(FIRST)).abs().max() < 1e-3
    assert not securemodel.tune(program, FIRST, tolerance=4e-5).tuning.tables
    assert "1 of sigmoid a quarter" in str(found) and "tables of fewer pieces" not in str(kept)
    assert "1 tables of smooth functions have fewer pieces" in str(securemodel.compare(found.program, FIRST))
    assert "fewer pieces" not in str(securemodel.compare(program, FIRST))
    assert "1 tables have fewer pieces" in next(
        w.what for w in audit(found.program).warnings if w.name == "tuned ranges"
    )
    found.save(tmp_path / "mine.tuning")
    assert securemodel.Tuning.load(tmp_path / "mine.tuning") == found.tuning
    again = securemodel.compile(Veiled(torch.sigmoid), FIRST, parties=parties, tuned=tmp_path / "mine.tuning", **TWO)
    assert again.digest == found.program.digest


def test_two_parties_would_open_more_for_a_quarter_of_a_table_than_the_dealer_saves():
    program, told = securemodel.compile(Veiled(torch.sigmoid), FIRST, parties=("a", "b"), **TWO), []
    found = securemodel.tune(program, FIRST, tolerance=1e-3, progress=told.append)
    assert found.tuning.halvings == {0: 1} and "no fewer bytes" in told[1]


def test_tables_stay_as_they_are_where_all_would_be_more_bytes():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(128, 128), nn.Softmax(1)).eval(), 4 * torch.randn(40, 128)
    program = securemodel.compile(model, x, rounding="fast", truncate_outputs=True, **TWO)
    kept, found = (securemodel.tune(program, x, tolerance=1e-3, tables=tables) for tables in (False, True))
    assert found.total.dealt[1] + found.total.sent[1] <= kept.total.dealt[1] + kept.total.sent[1]


def test_tables_that_are_too_coarse_together_are_tried_in_parts():
    tables = tuple(Read(number, "gelu", 10, "layer") for number in range(4)) + (Read(4, "exp", 1000, "layer"),)
    asked: list[dict[int, int]] = []

    def error(times):
        asked.append(dict(times))
        return 1.0 if times.get(2) or max(times.values()) > 1 else 0.0

    assert halvings(tables, error, 0.5, lambda line: None) == {4: 1, 0: 1, 1: 1, 3: 1}
    assert asked[0] == {4: 1} and asked[2] == {4: 1, 0: 1, 1: 1, 2: 1, 3: 1} and len(asked) <= MOST_TRIALS
    many = tuple(Read(number, f"f{number}", 1, "layer") for number in range(99))
    assert len(halvings(many, lambda times: 1.0, 0.5, lambda line: None)) == 0


def test_a_changed_table_of_a_tuning_is_refused(tmp_path):
    tuning, file = Tuning("0" * 64, 4.0, (), tables=(Halved(0, 1, "sigmoid", ""),)), tmp_path / "mine.tuning"
    changed = replace(tuning, of="", tables=(Halved(1, 1, "sigmoid", ""),))
    with pytest.raises(CompileError, match="the table 1, and the model has 1"):
        securemodel.compile(Veiled(torch.sigmoid), FIRST, tuned=changed, **TWO)
    with pytest.raises(UnsupportedOperator, match="by a table that is halved 2 times"):
        halved = replace(changed, tables=(Halved(0, 2, "silu", ""),))
        securemodel.compile(Veiled(nn.functional.silu), FIRST, tuned=halved, **TWO)
    for entry in ('[0, 3, "x", "y"]', '[-1, 1, "x", "y"]', '[0, 1, "x"]', '[true, 1, "x", "y"]', '[0, 1, "x", "y"]'):
        file.write_text(tuning.text().replace('"tables": [', f'"tables": [{entry},', 1))
        with pytest.raises(InputError, match="this is no tuning"):
            securemodel.Tuning.load(file)
