"""State: what a run keeps in shares and the next one reads."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import securemodel
from securemodel.compiler.ir import PHASES
from securemodel.compiler.reading import parse_program
from securemodel.engines.clear import ClearSide
from securemodel.engines.masked.party import OnlineParty
from securemodel.engines.masked.walk import local_walks
from securemodel.errors import CompileError, InputError, ProgramError, UnsupportedOperator
from securemodel.inspect.fixed import FixedPoint
from securemodel.sessions.session import Session

STEPS, HIDDEN = 6, 5


class Streamed(nn.Module):
    """An LSTM that takes one step, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTMCell(3, HIDDEN), nn.Linear(HIDDEN, 2)

    def forward(self, x: torch.Tensor, h: torch.Tensor, c: torch.Tensor):
        h, c = self.cell(x, (h, c))
        return self.head(h), h, c


def streamed(parties: tuple[str, ...] = ("bank", "hospital"), **options) -> securemodel.Program:
    torch.manual_seed(2)
    examples = {"x": torch.zeros(2, 3), "h": torch.zeros(2, HIDDEN), "c": torch.full((2, HIDDEN), 0.25)}
    given = {"weights": "bank", "inputs": {"x": "hospital"}, "outputs": "hospital", "state": {"h": 1, "c": 2}}
    return securemodel.compile(Streamed(), examples, parties=parties, **{**given, **options})


def in_float(model: nn.Module, xs: torch.Tensor) -> list[torch.Tensor]:
    h, c, out = torch.zeros(2, HIDDEN), torch.full((2, HIDDEN), 0.25), []
    for x in xs:
        y, h, c = model(x, h, c)
        out.append(y.detach())
    return out


@pytest.mark.parametrize("parties", [("bank", "hospital"), ("idle", "hospital", "bank")], ids=["two", "three"])
def test_an_lstm_that_takes_one_step_a_run_keeps_its_state_secret(parties):
    program, xs = streamed(parties), torch.randn(STEPS, 2, 3)
    text = program.text()
    assert [line for line in text.splitlines() if "reveal" in line and "0}" in line], (
        "the head's output alone is revealed"
    )
    assert text.count(" = reveal") == 1 and text.count(" = state") == 2 and text.count(" = keep") == 4
    with securemodel.local(program) as session:
        for x, right in zip(xs, in_float(program.model, xs), strict=True):
            assert (session.run(x) - right).abs().max() < 5e-3
        session.load(program, program.model)
        assert (session.run(xs[0]) - in_float(program.model, xs)[0]).abs().max() < 5e-3, "a load starts again"


def test_it_is_bit_for_bit_what_fixed_point_in_the_clear_gives():
    program, xs = streamed(), torch.randn(3, 2, 3)
    clear = {name: ClearSide(program, name) for name in program.parties}
    fixed = FixedPoint(program, clear)
    parties: list[OnlineParty] = []

    def noted(*args) -> OnlineParty:
        parties.append(OnlineParty(*args))
        return parties[-1]

    with Session(program, local_walks(program, make_party=noted)) as session:
        session.load(program, program.model)
        for side in clear.values():
            side.set_model(program.model)
        list(fixed.walk(PHASES[0]))
        for x in xs:
            session.run(x)
            for side in clear.values():
                side.set_inputs([x])
            list(fixed.walk("run"))
            for name, value in fixed.kept.items():
                shares = [party.kept[name] for party in parties]
                assert torch.equal(sum(share for share in shares if share is not None), value.ring)


def test_a_run_that_fails_changes_no_state():
    program, x = streamed(), torch.randn(2, 3)
    parties: list[OnlineParty] = []

    def noted(*args) -> OnlineParty:
        parties.append(OnlineParty(*args))
        return parties[-1]

    with Session(program, local_walks(program, make_party=noted)) as session:
        session.run(x)
        before = [dict(party.kept) for party in parties]
        with pytest.raises(InputError):
            session.run(torch.full((2, 3), float("nan")))
        assert all(a[name] is b.kept[name] for a, b in zip(before, parties, strict=True) for name in a)


def test_rows_of_a_state_belong_together():
    program = streamed()
    assert not program.row_independent
    with securemodel.local(program) as session, pytest.raises(InputError, match="depend on each other"):
        session.run(torch.randn(4, 3))


def test_what_cannot_be_kept_is_refused():
    with pytest.raises(CompileError, match="'y'"):
        streamed(state={"y": 1})
    with pytest.raises(CompileError, match="output 3"):
        streamed(state={"h": 1, "c": 3})
    with pytest.raises(CompileError, match="two inputs"):
        streamed(state={"h": 1, "c": 1})
    with pytest.raises(UnsupportedOperator, match="would change from"):
        streamed(state={"h": 0, "c": 2}, outputs=("hospital", "hospital"), inputs={"x": "hospital"})
    with pytest.raises(TypeError, match="protocol='masked'"):
        streamed(protocol="paillier")
    with pytest.raises(InputError, match="with state"):
        securemodel.compare(streamed(), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"start":true} : additive f16', '"start":true} : additive f15', "fractional bits"),
        ("state {", "states {", "no such operator"),
        ('{"name":"input h","start":true}', '{"name":"input z","start":true}', "does not start"),
        ('{"name":"input h","start":false}', '{"name":"input c","start":false}', "a second time"),
        (
            'state {"name":"input h"} : additive f16 [2,5]',
            'state {"name":"input h"} : additive f17 [2,5]',
            "fractional bits",
        ),
    ],
)
def test_texts_whose_states_do_not_fit_are_refused(old, new, why):
    text = streamed().text()
    assert parse_program(text)
    assert old in text
    with pytest.raises(ProgramError, match=why):
        parse_program(text.replace(old, new, 1))
