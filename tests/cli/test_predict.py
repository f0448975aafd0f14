"""securemodel predict: parties in threads that are interrupted and go on, and whole commands."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import securemodel
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import PeerError
from protocols.identity import PartiesConfig, Timeouts, plain_config
from securemodel.api import connect
from securemodel.cli import predict
from securemodel.cli.part import Given, Part, open_part
from securemodel.cli.programs import weights_of
from securemodel.engines.masked.dealer import serve
from securemodel.errors import InputError, Mismatch
from securemodel.program import Program

BOTH = ("bank", "hospital")
ROWS = torch.randn(7, 4, generator=torch.Generator().manual_seed(4))


class Killed(BaseException):
    """Ends a party at once."""


@pytest.fixture(scope="module")
def config() -> PartiesConfig:
    """Bank and hospital on plain sockets of this host, with a dealer that serves until the tests end."""
    first, *addresses = free_addresses(3)
    times = Timeouts(connect_s=20.0, receive_s=20.0)
    made = plain_config(dict(zip(("bank", "hospital"), addresses, strict=True)), dealer=first, timeouts=times)
    options = {"insecure_plain": True, "say": lambda text: None}
    threading.Thread(target=serve, args=(made, None), kwargs=options, daemon=True).start()
    return made


def given(header: bool | None = None, **options: Any) -> Given:
    return Given(**{name: (str(value),) for name, value in options.items()}, header=header)


def opened(program: Program, me: str, options: Given) -> Part:
    """A party's part, closed again."""
    with open_part(program, me, options) as part:
        return part


def take_part(
    program: Program, config: PartiesConfig, options: dict[str, Given], stops: Callable[[str, int], None] | None = None
) -> dict[str, Any]:
    """Both parties of the command, without its processes; rows that each began with, or its error.

    `stops` is called where the command shows its progress, and may end a party there.
    """

    def party(me: str) -> list[int]:
        seen = []

        def shown(done: int, rows: int) -> None:
            seen.append(done)
            if stops:
                stops(me, done)

        with open_part(program, me, options[me]) as part:
            with connect(program, me, config, insecure_plain=True) as session:
                predict._take_part(
                    session, part, lambda: program.model if me == "bank" else None, predict.Display(shown)
                )
            if part.record:
                part.record.finish(*((part.rows.id_name, part.rows.names()) if part.rows else ()))
        return seen

    return run_together({me: lambda me=me: party(me) for me in BOTH}, 30)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    np.savetxt(tmp_path / "x.csv", ROWS.numpy(), delimiter=",", header="a,b,c,d", comments="")
    return tmp_path / "x.csv"


def outputs(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.loadtxt(path, delimiter=",", skiprows=1, dtype=np.float32, ndmin=2)[:, 1:])


def check(path: Path, program: Program) -> None:
    torch.testing.assert_close(outputs(path), program.model(ROWS).detach(), atol=2**-9, rtol=0)


def kill(who: str, at: int) -> Callable[[str, int], None]:
    """Ends one party when so many rows are done."""

    def stops(me: str, done: int) -> None:
        if me == who and done == at:
            raise Killed

    return stops


def test_every_row_once(program: Program, config, table: Path, tmp_path: Path) -> None:
    options = {"bank": given(), "hospital": given(input=table, output=tmp_path / "out.csv")}
    assert take_part(program, config, options) == {me: [0, 2, 4, 6, 7] for me in BOTH}
    check(tmp_path / "out.csv", program)
    before = (tmp_path / "out.csv").read_bytes()
    assert take_part(program, config, options) == {me: [7] for me in BOTH}, "nothing is left to do"
    assert (tmp_path / "out.csv").read_bytes() == before


@pytest.mark.parametrize("who", ["bank", "hospital"])
@pytest.mark.parametrize("at", [0, 4, 7])
def test_killed_and_gone_on(program: Program, config, table: Path, tmp_path: Path, who: str, at: int) -> None:
    options = {"bank": given(), "hospital": given(input=table, output=tmp_path / "out.csv")}
    ended = take_part(program, config, options, kill(who, at))
    assert isinstance(ended[who], Killed)
    again = take_part(program, config, options)
    assert again["bank"] == again["hospital"] and again["bank"][-1] == 7
    assert again["bank"][0] >= (at if who == "hospital" else max(0, at - 2)), "no finished batch is done again"
    check(tmp_path / "out.csv", program)


@pytest.mark.parametrize("who", ["bank", "hospital"])
def test_results_of_one_party_for_rows_of_another(
    model: torch.nn.Module, config, table: Path, tmp_path: Path, who: str
) -> None:
    """The bank gets what comes of the hospital's rows; the hospital keeps its part of the job beside its input."""
    program = securemodel.compile(model, torch.zeros(2, 4), weights="bank", inputs="hospital", outputs="bank")
    options = {"bank": given(output=tmp_path / "out.csv"), "hospital": given(input=table)}
    take_part(program, config, options, kill(who, 4))
    assert (tmp_path / "x.csv.journal").exists() and not (tmp_path / "out.csv").exists()
    other = tmp_path / "other.csv"
    np.savetxt(other, ROWS.numpy() + 1, delimiter=",", header="a,b,c,d", comments="")
    errors = take_part(program, config, {**options, "hospital": given(input=other)})
    assert all(isinstance(error, (Mismatch, PeerError)) for error in errors.values()), "another input"
    again = take_part(program, config, options)
    assert again["bank"] == again["hospital"] and again["bank"][0] in (2, 4) and again["bank"][-1] == 7
    check(tmp_path / "out.csv", program)


def test_another_input_or_program_is_refused(program: Program, model, config, table: Path, tmp_path: Path) -> None:
    options = {"bank": given(), "hospital": given(input=table, output=tmp_path / "out.csv")}
    take_part(program, config, options, kill("hospital", 4))
    other = tmp_path / "other.csv"
    np.savetxt(other, ROWS.numpy() + 1, delimiter=",", header="a,b,c,d", comments="")
    with pytest.raises(InputError, match="different input"):
        opened(program, "hospital", given(input=other, output=tmp_path / "out.csv"))
    with pytest.raises(InputError, match="different input"):
        opened(program, "hospital", given(input=table, output=tmp_path / "out.csv", divide_by=2))
    longer = securemodel.compile(model, torch.zeros(3, 4), weights="bank", inputs="hospital", outputs="hospital")
    with pytest.raises(InputError, match="different program"):
        opened(longer, "hospital", options["hospital"])
    assert take_part(program, config, options)["hospital"] == [4, 6, 7]


# ---- options
def compiled(model: torch.nn.Module, **changes: Any) -> Program:
    return securemodel.compile(
        model, torch.zeros(2, 4), **{"weights": "bank", "inputs": "hospital", "outputs": "hospital", **changes}
    )


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)).eval()


def test_whose_files_are_meant() -> None:
    of = lambda me, concerned, *values: given_many(*values).of(me, "input", BOTH, concerned)
    assert of("bank", ["bank"], "x.csv") == "x.csv"
    assert of("bank", BOTH, "bank=x.csv", "hospital=y.csv") == "x.csv"
    assert of("hospital", BOTH, "bank=x.csv", "hospital=y.csv") == "y.csv"
    assert of("bank", ["bank"], "clinic=x.csv") == "clinic=x.csv", "no party, so a part of the name"
    assert of("bank", ["bank"], "*=x.csv") == "x.csv" and of("hospital", ["bank"], "*=x.csv") is None
    assert of("bank", BOTH, "hospital=y.csv") is None and of("bank", ["bank"]) is None
    with pytest.raises(InputError, match="--input bank=... --input hospital=..."):
        of("bank", BOTH, "*=x.csv")
    for values in (["x.csv"], ["bank=x.csv"]):
        with pytest.raises(InputError, match="has no use for --input"):
            of("bank", ["hospital"], *values)


def given_many(*values: str) -> Given:
    return Given(input=values)


def test_options_for_all_processes() -> None:
    given = Given(
        ("x.csv", "bank=y.csv"), ("out.csv",), (), ("hospital=a,b",), ("255",), delimiter=("=",), header=False
    )
    made = given.words(BOTH)
    assert made == ["--no-header", "--input", "*=x.csv", "--input", "bank=y.csv", "--output", "*=out.csv",
                    "--arrays", "hospital=a,b", "--divide-by", "*=255", "--delimiter", "*=="]  # fmt: skip


MISSING = [
    ({}, {}, "hospital", "owns inputs of this program and gives none"),
    ({}, {"input": "x.csv"}, "hospital", "gets results of this program"),
    ({}, {"input": "nowhere.csv", "output": "o.csv"}, "hospital", "no such file"),
    ({}, {"input": "x.csv", "output": "o.txt"}, "hospital", "written as .csv or .npz"),
    ({}, {"input": "x.csv", "output": "o.csv", "divide_by": "0"}, "hospital", "not a number to divide by"),
    ({}, {"input": "x.csv", "output": "o.csv", "divide_by": "x"}, "hospital", "not a number to divide by"),
    ({}, {"input": "x.csv"}, "bank", "has no use for --input"),
    ({}, {"output": "o.csv"}, "bank", "has no use for --output"),
    ({"outputs": "all"}, {"input": "x.csv"}, "hospital", "gets results of this program"),
]


@pytest.mark.parametrize("changes, options, me, says", MISSING)
def test_options_that_are_missing_or_wrong(
    model, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes, options, me: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says):
        opened(compiled(model, **changes), me, given(**options))


def test_of_results_for_all_a_copy_may_be_left_out(model, tmp_path: Path) -> None:
    program = compiled(model, outputs="all")
    assert opened(program, "bank", given()).record is None
    assert opened(program, "bank", given(output=tmp_path / "o.csv")).results == (0,)


class Centered(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x - x.mean(0))


class Whole(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x).sum(0)


@pytest.mark.parametrize(
    "model, says", [(Centered(), "7 rows, which is no multiple of 2"), (Whole(), "no multiple|a result for each row")]
)
def test_rows_that_depend_on_each_other(model, table: Path, tmp_path: Path, says: str) -> None:
    program = compiled(model, weights="bank")
    with pytest.raises(InputError, match=says):
        opened(program, "hospital", given(input=table, output=tmp_path / "o.csv"))


# ---- whole commands
SCRIPT = """
{network}
PARTIES = ("bank", "hospital")

def make_program():
    with torch.device("meta"):
        empty = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    return securemodel.compile(empty, example_inputs, weights="bank", inputs="hospital", outputs="hospital", reveal="class")

def load_model(party):
    assert party == "bank"
    {then}
    return model
"""


@pytest.mark.slow
def test_a_command_for_all(call, write, network: str, program: Program, table: Path, tmp_path: Path) -> None:
    script = write("infer.py", SCRIPT.format(network=network, then="print('weights of', party)"))
    words = ("predict", script, "--local", "--input", table, "--output", tmp_path / "out.npz")
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert "7 of 7 rows" in result.output and "hospital | 7 rows of results in" in result.output
    assert result.output.count("weights of") == 1
    with np.load(tmp_path / "out.npz") as made:
        assert list(made) == ["row", "class"] and made["row"].tolist() == list(range(1, 8))
        assert made["class"].tolist() == program.model(ROWS).argmax(1).tolist()
    again = call(*words)
    assert again.exit_code == 0 and "weights of" not in again.output
    table.write_text("a,b,c,d\n1,2,3,4\n")
    refused = call(*words)
    assert refused.exit_code == 1 and "different input" in refused.stderr and "Traceback" not in refused.output


@pytest.mark.slow
def test_a_command_that_fails_on_the_way(call, write, network: str, table: Path, tmp_path: Path) -> None:
    script = write("infer.py", SCRIPT.format(network=network, then="raise OSError('weights are away')"))
    words = ("predict", script, "--local", "--input", table, "--output", tmp_path / "out.csv")
    result = call(*words)
    assert result.exit_code == 1 and "bank | error: OSError: weights are away" in result.stderr
    script.write_text(script.read_text().replace("raise OSError('weights are away')", "pass"))
    result = call(*words)
    assert result.exit_code == 0, result.output
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    "words",
    [[], ["--me", "bank"], ["--local", "--me", "bank"], ["--parties", "a,b"], ["--me", "bank", "--config", "/nowhere"]],
    ids=" ".join,
)
def test_called_wrongly(call, write, words: list[str]) -> None:
    result = call("predict", write("script.py", "PARTIES = ('a', 'b')"), *words)
    assert result.exit_code == 2 and "Usage: " in result.stderr


def test_scripts_that_cannot_be_used(call, write, parties_file, program_file: Path, table: Path, tmp_path) -> None:
    me = ("--me", "bank", "--config", parties_file("bank"))
    for script, says in ((program_file, "predict needs a script"), (write("x.py", "a = 1"), "defines no program")):
        result = call("predict", script, *me)
        assert result.exit_code == 1 and says in result.stderr and "Traceback" not in result.output
    result = call("predict", program_file, "--me", "clinic", "--config", parties_file("bank"))
    assert result.exit_code == 1 and "there is no party 'clinic'" in result.stderr


def test_where_weights_come_from(write, program: Program) -> None:
    class Module:
        load_model = staticmethod(lambda party: seen.append(party) or made)

    seen: list[str] = []
    made: Any = torch.nn.Linear(1, 1)
    script = write("script.py", "")
    assert weights_of(Module, script, program, "bank") is made and seen == ["bank"]
    assert weights_of(Module, script, program, "hospital") is None and seen == ["bank"]
    assert weights_of(object(), script, program, "bank") is program.model
    made = "model.pt"
    with pytest.raises(InputError, match="returns no model"):
        weights_of(Module, script, program, "bank")


def test_progress_is_said_at_every_percent(capsys: pytest.CaptureFixture[str]) -> None:
    with predict._display() as display:
        for done in range(1001):
            display.rows(done, 1000)
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 101 and said[0] == "0 of 1000 rows" and said[-1] == "1000 of 1000 rows"
