"""Both parties of a session hand the dealer one text that no compiler wrote: it names the line, and serves the next session."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocols.channel.testing import loopback_parties, run_together
from protocols.errors import PeerAborted
from securemodel.api import connect
from securemodel.engines.masked.dealer import serve
from securemodel.program import Program


def claiming(program: Program, old: str, new: str) -> Program:
    """The program, with another text."""
    assert old in program.text()
    made = replace(program)
    made.__dict__["_text"] = program.text().replace(old, new)
    return made


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"kind":"matmul"} : additive f32 [2,3]', '"kind":"matmul"} : additive f32 [2,0]', "no secure program .line "),
        ('"input_shapes":[[2,4]]', f'"input_shapes":[[{1 << 62},4]]', "no secure program .line 1"),
        ('"inputs":["hospital"]', '"inputs":["../../X"]', "no secure program .line 1"),
        ("{", "[" * 10_000 + "{", "damaged"),
    ],
)
def test_the_dealer_names_the_line_and_goes_on(worlds, program, tools, old: str, new: str, says: str) -> None:
    world = worlds(program)
    bad = claiming(program, old, new)
    results = world.run(tools.tasks(program, tools.rows(2)), program=bad)
    assert any(isinstance(error, PeerAborted) for error in results.values()), results
    world.wait_until_said("session failed")
    assert any(says.split(" .")[0] in line for line in world.said), world.said
    tools.works(world, tools.rows(2))


def test_the_dealer_over_tls_refuses_a_program_above_its_limit(program, tools, tmp_path) -> None:
    config, own = loopback_parties(program.parties, tmp_path, dealer=True)
    said: list[str] = []

    def dealing() -> None:
        serve(config, own["dealer"], once=True, max_bytes=100, say=said.append)

    def party(me: str) -> None:
        connect(program, me, replace(config, identity=own[me].key_path.parent)).close()

    results = run_together({"dealer": dealing, **{me: lambda me=me: party(me) for me in program.parties}})
    assert "too large" in str(results["dealer"]) and "allowed are 100" in str(results["dealer"])
    assert any("too large" in str(results[me]) for me in program.parties), results
