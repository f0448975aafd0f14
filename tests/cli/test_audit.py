"""securemodel audit: what it prints, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path

import torch

import securemodel
from securemodel.ledger import Ledger

COMMON = {"session": "s", "program": "p" * 64, "protocol": "masked", "me": "bank", "peers": ["hospital"]}


def test_a_ledger_is_summed_up(call, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    for epoch in (1, 2):
        Ledger(path).append({**COMMON, "reveals": {"hospital": ["class"]}, "epoch": epoch, "rows": 10})
    result = call("audit", "--ledger", path)
    assert result.exit_code == 0 and "total of hospital: 20 rows" in result.stdout
    made = json.loads(call("audit", "--ledger", path, "--json").stdout)
    assert made["answers"][0]["rows"] == 20 and made["breaks"] == []
    path.write_text(path.read_text().replace('"rows":10', '"rows":1', 1))
    broken = call("audit", "--ledger", path)
    assert broken.exit_code == 1 and "BROKEN at line 2" in broken.stdout


def test_no_ledger(call, tmp_path: Path) -> None:
    result = call("audit", "--ledger", tmp_path / "none")
    assert result.exit_code == 1 and "there is no ledger" in result.stderr


def test_parties_of_the_command_line_write_where_it_says(call, write, network: str, tmp_path: Path) -> None:
    text = f"""{network}
PARTIES = ("bank", "hospital")
program = securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")
if __name__ == "__main__":
    with securemodel.connect(program) as session:
        session.run(example_inputs[0] if session.me == "hospital" else None)
"""
    (tmp_path / "infer.py").write_text(text)
    result = call("run", tmp_path / "infer.py", "--local", "--ledger", tmp_path / "ledger")
    assert result.exit_code == 0, result.output
    made = json.loads(call("audit", "--ledger", tmp_path / "ledger", "--json").stdout)
    assert {(a["me"], a["receiver"], a["rows"]) for a in made["answers"]} == {
        ("bank", "hospital", 2),
        ("hospital", "hospital", 2),
    }


def test_a_program_is_audited(call, program_file, write, network: str, parties_file) -> None:
    result = call("audit", program_file)
    assert result.exit_code == 0 and "bank  brings 23 weights" in result.stdout and "weak choices" in result.stdout
    compiled = (
        'program = securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")'
    )
    script = write("infer.py", f"{network}\n{compiled}\n")
    assert "infer.py" not in result.stdout and call("audit", script).exit_code == 0
    made = json.loads(call("audit", program_file, "--json", "--config", parties_file(None)).stdout)
    assert {role["name"] for role in made["roles"]} == {"bank", "hospital", "dealer"}
    assert "dealer is a party" not in {weak["name"] for weak in made["warnings"]}


def test_names_in_a_text_reach_the_terminal_spelled_out(call, tmp_path) -> None:
    roles = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}
    program = securemodel.compile(torch.nn.Linear(3, 2), (torch.zeros(1, 3),), **roles)
    odd = json.dumps("\x1b]0;title\x07\x9b31m\u202e")
    assert '"target":"t"' in program.text()
    (tmp_path / "odd.txt").write_text(program.text().replace('"target":"t"', f'"target":{odd}'))
    for command in ("audit", "plan"):
        result = call(command, tmp_path / "odd.txt")
        assert result.exit_code == 0 and result.stdout.replace("\n", "").isprintable(), result.stdout


def test_called_wrongly(call, program_file) -> None:
    for words in (["audit", "--json"], ["audit", program_file, "--ledger"]):
        assert call(*words).exit_code == 2


def test_an_attack_from_the_command_line(call, write, network: str, program_file) -> None:
    compiled = (
        'program = securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")'
    )
    script = write("infer.py", f"{network}\n{compiled}\n")
    made = call("audit", script, "--attack", "--sessions", 8, "--json")
    assert made.exit_code == 0 and json.loads(made.stdout)["attack"]["passed"] is True
    text = call("audit", program_file, "--attack")
    assert text.exit_code == 1 and "cannot be attacked" in text.stderr
