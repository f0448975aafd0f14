"""The most expensive layers of a plan: the hints are true, because what they promise is compiled and compared."""

from __future__ import annotations

import re

import pytest
import torch
from running import IDLE_THIRD, TWO, Fn
from torch import nn

import securemodel
from securemodel.planning.hints import Expense, narrowed
from securemodel.planning.plan import Machine, Network, make_plan
from securemodel.planning.table import bytes_text

SLOW_WIRE, SLOW_ANSWERS = Network(1e6, 1e-6), Network(1e12, 1.0)


def compiled(model: nn.Module, *shape: int, **changes) -> securemodel.Program:
    return securemodel.compile(model.eval(), torch.zeros(shape), **{**TWO, **changes})


def expense(program: securemodel.Program, layer: str, network: Network) -> Expense:
    (found,) = [e for e in program.plan(network).most_expensive if layer in e.layer]
    return found


def hint(found: Expense, words: str) -> str:
    (text,) = [text for text in found.hints if words in text]
    return text


class Both(nn.Module):
    """Returns probabilities, and what a further layer makes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.last = nn.Linear(6, 4), nn.Softmax(-1), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.act(self.first(x))
        return x, self.last(x)


def convolutional() -> nn.Module:
    pooled = [nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 40), nn.GELU()]
    return nn.Sequential(*pooled, nn.Linear(40, 3), nn.Softmax(-1))


@pytest.mark.parametrize("arguments", [TWO, IDLE_THIRD], ids=["two", "three"])
def test_a_narrowed_graph_is_what_the_smaller_width_gives(arguments):
    signs = nn.Sequential(nn.Linear(8, 4), Fn(lambda x: x > 0.5))  # masks that only comparisons read
    for model in (convolutional(), signs):
        wide, narrow = (compiled(model, 2, 1, 8, 8, **arguments, width=width) for width in (64, 32))
        assert wide.graph.text() != narrow.graph.text()
        assert narrowed(wide.graph, 16).text() == narrow.graph.text()
        assert narrowed(narrow.graph, 16).text() == narrow.graph.text()


def test_the_smaller_width_saves_what_the_hint_says():
    wide, narrow = (compiled(convolutional(), 2, 1, 8, 8, width=width) for width in (64, 32))
    text = hint(expense(wide, "MaxPool2d", SLOW_WIRE), "width=32")
    sent = [
        max(layer.cost.sent_bytes.values()) for p in (narrow, wide) for layer in p.plan().layers if "Max" in layer.name
    ]
    assert f"below 2^15: sends {bytes_text(sent[0])}, not {bytes_text(sent[1])}" in text
    assert not any("width=32" in text for e in narrow.plan(SLOW_WIRE).most_expensive for text in e.hints)
    assert not any("width=32" in text for e in wide.plan(SLOW_ANSWERS).most_expensive for text in e.hints)


@pytest.mark.parametrize("arguments", [TWO, IDLE_THIRD], ids=["two", "three"])
def test_relu_costs_what_the_hint_says(arguments):
    smooth, piecewise = (
        compiled(nn.Sequential(nn.Linear(5, 70), act, nn.Linear(70, 2)), 3, 5, **arguments)
        for act in (nn.GELU(), nn.ReLU())
    )
    text = hint(expense(smooth, "1 GELU", SLOW_WIRE), "ReLU")
    before, after = (next(layer.cost for layer in p.plan().layers if "1 " in layer.name) for p in (smooth, piecewise))
    promised, rounds = re.search(r"sends ([\d.]+ KB) in (\d+) rounds", text).groups()
    headers = 32 * after.rounds * (len(smooth.parties) - 1)
    assert promised == bytes_text(max(after.sent_bytes.values()) - headers) and int(rounds) == after.rounds
    assert f"not {bytes_text(max(before.sent_bytes.values()))} in {before.rounds}" in text


def test_more_rows_take_what_the_hint_says():
    once, often = (compiled(nn.Sequential(nn.Linear(50, 50), nn.ReLU()), rows, 50) for rows in (10, 100))
    text = hint(expense(once, "ReLU", SLOW_ANSWERS), "more rows")
    rounds = [layer.cost.rounds for p in (once, often) for layer in p.plan().layers if "ReLU" in layer.name]
    assert rounds == [3, 3] and "takes its 3 rounds once" in text
    assert "about 3.00 s here, not 30.00 s" in text


def test_what_only_the_receiver_reads_need_not_be_secret():
    model = nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1))
    assert "let the receiver compute it" in hint(expense(compiled(model, 2, 6), "Softmax", SLOW_WIRE), "return what")
    inside = nn.Sequential(*model, nn.Linear(4, 4))
    assert not any("return what" in text for e in compiled(inside, 2, 6).plan().most_expensive for text in e.hints)
    for needed in (nn.Sequential(nn.Linear(6, 4), nn.PReLU(4)), Both()):
        plan = compiled(needed, 2, 6).plan()
        assert not any("return what" in text for e in plan.most_expensive for text in e.hints)


def test_what_takes_the_time_is_named():
    program = compiled(convolutional(), 2, 1, 8, 8)
    networks = {"rounds": SLOW_ANSWERS, "bytes": SLOW_WIRE, "computing": Network(1e15, 1e-9)}
    for mostly, network in networks.items():
        found = program.plan(network).most_expensive
        assert len(found) == 3 and {e.mostly for e in found} == {mostly}
        assert [e.share for e in found] == sorted((e.share for e in found), reverse=True)
        assert 0 < sum(e.share for e in found) < 1
    slow = make_plan(program, SLOW_WIRE, Machine(multiply_adds_per_s=1.0)).most_expensive
    assert {"0 Conv2d", "4 Linear", "6 Linear"} == {e.layer for e in slow}


def test_the_plan_prints_them_within_its_width():
    text = str(compiled(convolutional(), 2, 1, 8, 8).plan())
    assert "most expensive:\n  7 Softmax" in text and "    -> return what goes into it" in text
    assert max(map(len, text.splitlines())) <= 110


def test_programs_without_layers_have_none():
    program = securemodel.compile(Fn(torch.add), (torch.zeros(2), torch.zeros(2)), weights="public",
                                  inputs=("a", "b"), outputs="b")  # fmt: skip
    text = str(program.plan())
    assert len(program.plan().most_expensive) <= 1 and "rounds and bytes are exact" in text
