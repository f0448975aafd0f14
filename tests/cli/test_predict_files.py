"""securemodel predict and its files: what is wrong is found before anybody connects, and nothing finished is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import securemodel
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import PeerError
from protocols.identity import PartiesConfig, Timeouts, plain_config
from securemodel.api import connect
from securemodel.cli import predict
from securemodel.cli.part import Given, Part, open_part
from securemodel.engines.masked.dealer import serve
from securemodel.errors import ConfigError, FileError, InputError, Mismatch
from securemodel.program import Program

OWNERS = ("clinic", "pharmacy")


class Killed(BaseException):
    """Ends a party at once."""


class Sum(nn.Module):
    """a + 100 b: tells from a result which rows met."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + 100 * b


class Codes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.Embedding(5, 3), nn.Linear(4, 1)

    def forward(self, code: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([self.table(code), x], 1))


@pytest.fixture(scope="module")
def joint() -> Program:
    owners = {"weights": "clinic", "inputs": OWNERS, "outputs": "clinic"}
    return securemodel.compile(Sum(), (torch.zeros(2, 1), torch.zeros(2, 1)), **owners)


@pytest.fixture(scope="module")
def config() -> PartiesConfig:
    """Two parties on plain sockets of this host, with a dealer that serves until the tests end."""
    first, *addresses = free_addresses(3)
    times = Timeouts(connect_s=20.0, receive_s=20.0)
    made = plain_config(dict(zip(OWNERS, addresses, strict=True)), dealer=first, timeouts=times)
    threading.Thread(
        target=serve, args=(made, None), kwargs={"insecure_plain": True, "say": lambda text: None}, daemon=True
    ).start()
    return made


def given(header: bool | None = None, **options: Any) -> Given:
    return Given(**{name: (str(value),) for name, value in options.items()}, header=header)


def opened(program: Program, me: str, options: Given, model=None) -> Part:
    with open_part(program, me, options, model) as part:
        return part


def take_part(
    program: Program, config: PartiesConfig, options: dict[str, Given], stop: dict[str, int] | None = None
) -> dict:
    """The rows each party has seen done, or its error; `stop` ends a party where so many are done."""

    def party(me: str) -> list[int]:
        seen: list[int] = []

        def shown(done: int, rows: int) -> None:
            seen.append(done)
            if (stop or {}).get(me) == done:
                raise Killed

        with open_part(program, me, options[me]) as part:
            with connect(program, me, config, insecure_plain=True) as session:
                predict._take_part(session, part, lambda: program.model, predict.Display(shown))
            if part.record:
                part.record.finish(part.rows.id_name, part.rows.names())
        return seen

    return run_together({me: lambda me=me: party(me) for me in OWNERS}, 30)


def numbers(path: Path) -> list[float]:
    return [round(float(line.split(",")[-1])) for line in path.read_text().splitlines()[1:]]


@pytest.fixture
def files(tmp_path: Path) -> Callable[..., dict[str, Given]]:
    """Writes both tables, and gives the options of both parties."""

    def write(clinic: str, pharmacy: str, **options: Any) -> dict[str, Given]:
        (tmp_path / "a.csv").write_text(clinic)
        (tmp_path / "b.csv").write_text(pharmacy)
        a = given(input=tmp_path / "a.csv", output=tmp_path / "out.csv", **options)
        return {"clinic": a, "pharmacy": given(input=tmp_path / "b.csv", **options)}

    return write


# ---- rows belong together
def test_a_patient_never_gets_the_dose_of_another(joint: Program, config, files) -> None:
    options = files("age\n1\n2\n\n4\n5\n6\n", "dose\n1\n2\n3\n4\n\n6\n")
    errors = take_part(joint, config, options)
    for me, line in (("clinic", 4), ("pharmacy", 6)):
        assert type(errors[me]) is InputError and f"line {line}" in str(errors[me])


def test_names_that_are_numbers_are_no_row(joint: Program, config, files, tmp_path: Path) -> None:
    options = files("0\n1\n2\n", "dose\n1\n2\n")
    with pytest.raises(InputError, match="not clear whether the first line"):
        opened(joint, "clinic", options["clinic"])
    options = files("0\n1\n2\n", "dose\n1\n2\n", header=True)
    assert take_part(joint, config, options)["clinic"] == [0, 2] and numbers(tmp_path / "out.csv") == [101, 202]
    assert (tmp_path / "out.csv").read_text().startswith("row,output_0\n1,10")


def test_ids_are_compared_and_carried(joint: Program, config, files, tmp_path: Path) -> None:
    table = lambda name, *ids: f"id,{name}\n" + "".join(f"{i},{n}\n" for n, i in enumerate(ids, 1))
    ids = ("007", "NA", "ann")
    for others in (("007", "ann", "NA"), ("007", "NA", "bob"), ("7", "NA", "ann")):
        errors = take_part(joint, config, files(table("age", *ids), table("dose", *others), id="id"))
        assert all(
            isinstance(error, Mismatch) and "not the same in the same order" in str(error) for error in errors.values()
        )
        assert not any(word in str(error) for error in errors.values() for word in ("007", "ann", "bob"))
    assert take_part(joint, config, files(table("age", *ids), table("dose", *ids), id="id"))["clinic"] == [0, 2, 3]
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0] == "id,output_0" and [line.split(",")[0] for line in lines[1:]] == list(ids)


def test_ids_at_one_party_only_are_refused(joint: Program, config, files) -> None:
    options = files("id,age\n1,1\n", "id,dose\n1,1\n", columns=2)
    options["clinic"] = given(**{k: v[0] for k, v in vars(options["clinic"]).items() if v}, id="id")
    errors = take_part(joint, config, options)
    assert all(isinstance(error, Mismatch) and "give --id at every party" in str(error) for error in errors.values())


def test_numbers_of_rows_are_compared_before_anything_else(joint: Program, config, files) -> None:
    errors = take_part(joint, config, files("age\n1\n2\n3\n", "dose\n1\n2\n"))
    assert all(isinstance(error, Mismatch) and "different numbers of rows: 'clinic' 3, 'pharmacy' 2" in str(error)
               for error in errors.values())  # fmt: skip


# ---- what a party can see of its input
def test_numbers_out_of_range_are_named_before_anybody_connects(joint: Program, files) -> None:
    rows = [*map(str, range(499)), "1e15"]
    with pytest.raises(InputError, match=r"out of range.*\n.*a\.csv, line 501, column 1 \('age'\)"):
        opened(joint, "clinic", files("age\n" + "\n".join(rows) + "\n", "")["clinic"])


def test_inputs_that_have_names_are_read_as_others(tmp_path: Path) -> None:
    example, names = {"input": torch.zeros(3, 2)}, {"weights": "pharmacy", "inputs": "clinic", "outputs": "clinic"}
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3,4\n")
    options = given(input=tmp_path / "x.csv", output=tmp_path / "out.csv")
    part = opened(securemodel.compile(torch.nn.Linear(2, 1), example, **names), "clinic", options)
    assert part.rows.count == 2


def test_indices_out_of_range_are_named_before_anybody_connects(tmp_path: Path) -> None:
    owners = {"weights": "clinic", "inputs": "pharmacy", "outputs": "pharmacy"}
    program = securemodel.compile(Codes(), (torch.zeros(2, dtype=torch.int64), torch.zeros(2, 1)), **owners)
    table = tmp_path / "x.csv"
    for code in ("5", "-1", "9223372036854775807"):
        table.write_text(f"code,x\n4,1\n0,2\n{code},3\n1,1\n")
        with pytest.raises(InputError, match=r"outside of its table.*\n.*line 4, column 1 \('code'\)"):
            opened(program, "pharmacy", given(input=table, output=tmp_path / "o.csv"))


def test_what_an_owner_computes_with_own_weights_is_looked_at_too(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    owners = {"inputs": "pharmacy", "outputs": "clinic"}
    program = securemodel.compile(model, torch.zeros(2, 1), weights="pharmacy", **owners)
    large = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    nn.init.constant_(large[0].weight, 2.0**28)
    (tmp_path / "x.csv").write_text("a\n1\n2\n100\n")
    options = given(input=tmp_path / "x.csv")
    assert opened(program, "pharmacy", options, lambda: model).rows.count == 3
    with pytest.raises(InputError, match=r"out of range.*\n.*line 4, column 1"):
        opened(program, "pharmacy", options, lambda: large)


class Asserting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch._check_tensor_all(x >= self.low, lambda: "doses are at least low")
        return torch.relu(x)


@pytest.mark.parametrize("weights", ["clinic", "pharmacy"])
def test_what_the_model_asserts_of_an_input_is_checked_before_anybody_connects(tmp_path: Path, weights: str) -> None:
    model = Asserting().eval()
    program = securemodel.compile(model, torch.ones(2, 1), weights=weights, inputs="pharmacy", outputs="clinic")
    (tmp_path / "x.csv").write_text("dose\n1\n2\n3\n-1\n")
    options = given(input=tmp_path / "x.csv")
    if weights == "clinic":
        assert opened(program, "pharmacy", options).rows.count == 4, "nobody can check a secret"
        return
    with pytest.raises(InputError, match=r"doses are at least low\n.*x\.csv, line 5"):
        opened(program, "pharmacy", options, lambda: model)


def test_an_encrypted_graph_of_many_rows_gives_a_result_for_each(tmp_path: Path) -> None:
    owners = {"weights": "clinic", "inputs": "pharmacy", "outputs": "pharmacy"}
    program = securemodel.compile(nn.Linear(2, 1), torch.zeros(100, 2), protocol="paillier", **owners)
    (tmp_path / "x.csv").write_text("a,b\n" + "1,2\n" * 150)
    options = given(input=tmp_path / "x.csv", output=tmp_path / "o.csv")
    part = opened(program, "pharmacy", options)
    assert part.rows.count == 150 and part.results == (0,)
    (tmp_path / "x.csv").write_text("a,b\n" + "1,2\n" * 120 + "1,257\n")
    with pytest.raises(InputError, match=r"out of range.*\n.*line 122, column 2 \('b'\)"):
        opened(program, "pharmacy", options)


# ---- finished rows stay
def test_a_corrected_row_is_run_again_and_others_stay(joint: Program, config, files, tmp_path: Path) -> None:
    ages, doses = list(range(1, 10)), list(range(1, 10))
    write = lambda: files("age\n" + "\n".join(map(str, ages)) + "\n", "dose\n" + "\n".join(map(str, doses)) + "\n")
    take_part(joint, config, write(), {"clinic": 6})
    before = np.fromfile(tmp_path / "out.csv.partial", np.float32)
    doses[2], ages[8] = 50, 90
    made = take_part(joint, config, write())
    assert made["clinic"] == made["pharmacy"] == [4, 6, 8, 9], "of the rows that were done, two are done again"
    assert numbers(tmp_path / "out.csv") == [a + 100 * b for a, b in zip(ages, doses, strict=True)]
    after = np.array(
        [float(line.split(",")[1]) for line in (tmp_path / "out.csv").read_text().splitlines()[1:]], np.float32
    )
    assert np.array_equal(before[[0, 1, 4, 5]], after[[0, 1, 4, 5]]), "to the last digit"


def test_a_partner_that_ended_between_loses_no_correction(joint: Program, config, files, tmp_path: Path) -> None:
    """The dose is corrected, and both end before the batch is run again, at one party or the other."""
    table = lambda third: ("age\n1\n2\n3\n4\n5\n", f"dose\n1\n2\n{third}\n4\n5\n")
    take_part(joint, config, files(*table(3)), {"clinic": 4})
    for stops in ({"clinic": 2}, {"pharmacy": 2}, None):
        take_part(joint, config, files(*table(7)), stops)
    assert numbers(tmp_path / "out.csv") == [101, 202, 703, 404, 505]


def test_rows_that_are_added_are_run_and_the_others_stay(joint: Program, config, files, tmp_path: Path) -> None:
    take_part(joint, config, files("age\n1\n2\n3\n", "dose\n1\n2\n3\n"), {"clinic": 2})
    made = take_part(joint, config, files("age\n1\n2\n3\n4\n5\n", "dose\n1\n2\n3\n4\n5\n"))
    assert made["clinic"] == [2, 4, 5] and numbers(tmp_path / "out.csv") == [101, 202, 303, 404, 505]


def test_another_partys_correction_of_what_is_all_there_is_refused(
    joint: Program, config, files, tmp_path: Path
) -> None:
    take_part(joint, config, files("age\n1\n2\n3\n", "dose\n1\n2\n3\n"))
    errors = take_part(joint, config, files("age\n1\n2\n3\n", "dose\n1\n2\n4\n"))
    assert type(errors["clinic"]) is InputError and "another party's input has changed" in str(errors["clinic"])
    assert isinstance(errors["pharmacy"], PeerError) and numbers(tmp_path / "out.csv") == [101, 202, 303]


# ---- places
def test_the_journal_has_a_place_of_its_own(joint: Program, config, files, tmp_path: Path) -> None:
    options = files("age\n1\n2\n3\n", "dose\n1\n2\n3\n")
    options["pharmacy"] = given(input=tmp_path / "b.csv", journal=tmp_path / "kept" / "job")
    take_part(joint, config, options, {"clinic": 2})
    assert {p.name for p in (tmp_path / "kept").iterdir()} == {"job", "job.digests"}
    assert not (tmp_path / "b.csv.journal").exists()
    assert take_part(joint, config, options)["pharmacy"] == [2, 3]


def test_beside_an_input_that_lies_where_nothing_can_be_written(
    joint: Program, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = files("age\n1\n", "dose\n1\n")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    part = opened(joint, "pharmacy", options["pharmacy"])
    assert part.record.path.parent == tmp_path / "state" / "securemodel" and part.record.path.name.startswith("b.csv-")
    assert str(part.record.path) in part.notes[-1]


PLACES = {
    "output in no folder": {"output": "a.csv/out.csv"},
    "output where nobody writes": {"output": "/proc/out.csv"},
    "journal where nobody writes": {"journal": "/proc/out.journal"},
    "the input as journal": {"journal": "a.csv"},
    "the output as journal": {"journal": "out.csv"},
    "the input as output": {"output": "a.csv"},
    "a folder as output": {"output": "folder.csv"},
    "a folder as journal": {"journal": "folder.csv"},
    "a folder as input": {"input": "folder.csv"},
    "a name that is too long": {"output": "x" * 300 + ".csv"},
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_place_that_cannot_be_used_is_named_before_anybody_connects(
    joint: Program, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    files("age\n1\n", "dose\n1\n")
    Path("folder.csv").mkdir()
    with pytest.raises((ConfigError, InputError, FileError)) as caught:
        opened(joint, "clinic", given(**{"input": "a.csv", "output": "out.csv", **PLACES[kind]}))
    assert "where:" in str(caught.value) and not Path("out.csv").exists() and not Path("out.csv.journal").exists()


@pytest.mark.parametrize("path", ["a.csv", "out.csv.journal", "out.csv.digests"])
def test_every_error_of_a_file_is_named(
    joint: Program, config, files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A disk that fails, or a right that is missing, at any of the files."""
    options, opening = files("age\n1\n2\n3\n", "dose\n1\n2\n3\n"), os.open
    take_part(joint, config, options, {"clinic": 2})

    def fails(name, *args, **more):
        if os.fspath(name) == str(tmp_path / path):
            raise PermissionError(13, "Permission denied", name)
        return opening(name, *args, **more)

    def reading(self, *args, **more):
        if str(self) == str(tmp_path / path):
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **more)

    real = Path.open
    monkeypatch.setattr(os, "open", fails)
    monkeypatch.setattr(Path, "open", reading)
    with pytest.raises(FileError, match="a file cannot be used\n.*\n.*Permission denied"):
        opened(joint, "clinic", options["clinic"])


# ---- one output, two jobs
def test_an_output_or_journal_in_use_is_refused(joint: Program, files, tmp_path: Path) -> None:
    options = files("age\n1\n", "dose\n1\n")
    with open_part(joint, "clinic", options["clinic"]):
        for more in (
            {},
            {"journal": tmp_path / "other.journal"},
            {"output": tmp_path / "o.csv", "journal": tmp_path / "out.csv.journal"},
        ):
            again = {"input": tmp_path / "a.csv", "output": tmp_path / "out.csv", **more}
            with pytest.raises(
                InputError, match=f"another process works with this file.*\n.*\n.*process {os.getpid()}"
            ):
                opened(joint, "clinic", given(**again))
    assert not [p for p in tmp_path.iterdir() if "lock" in p.name]


SCRIPT = """
import torch, securemodel
PARTIES = ("bank", "hospital")
class Twice(torch.nn.Module):
    def forward(self, x):
        return torch.relu(x * 2)
def make_program():
    return securemodel.compile(Twice(), torch.zeros({rows}, 1{dtype}), weights="bank", inputs="hospital", outputs="hospital"{more})
"""


def command(*words: object) -> subprocess.Popen:
    words = [sys.executable, "-m", "securemodel.cli", "predict", *map(str, words)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_the_same_job_started_twice_loses_no_rows(write, tmp_path: Path) -> None:
    script, table = write("infer.py", SCRIPT.format(rows=20, dtype="", more="")), tmp_path / "x.csv"
    table.write_text("a\n" + "".join(f"{i}\n" for i in range(1, 4001)))
    words = (script, "--local", "--input", table, "--output", tmp_path / "out.csv")
    first, second = command(*words), command(*words)
    said = [process.communicate(timeout=200) for process in (first, second)]
    assert sorted((first.returncode, second.returncode)) == [0, 1], said
    loser = said[0] if first.returncode else said[1]
    assert "another process works with this file" in loser[1] and "process " in loser[1]
    assert numbers(tmp_path / "out.csv") == [2 * i for i in range(1, 4001)]


@pytest.mark.slow
def test_a_job_that_is_killed_goes_on_after_a_correction(write, tmp_path: Path) -> None:
    script, table = write("infer.py", SCRIPT.format(rows=5, dtype="", more="")), tmp_path / "x.csv"
    values = list(range(1, 2001))
    write_table = lambda: table.write_text("id,a\n" + "".join(f"P{i},{i}\n" for i in values))
    write_table()
    words = (script, "--local", "--id", "id", "--input", table, "--output", tmp_path / "out.csv")
    process, partial = command(*words), tmp_path / "out.csv.partial"
    while not (partial.exists() and np.fromfile(partial, np.float32)[300:305].any()):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=200)
    values[99] = 5000
    write_table()
    process = command(*words)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert int(next(line for line in out.splitlines() if " of 2000 rows" in line).split()[0]) >= 300, "most was kept"
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert (
        lines[0] == "id,output_0"
        and lines[1].startswith("P1,")
        and numbers(tmp_path / "out.csv") == [2 * i for i in values]
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bfloat16", "paillier"])
def test_programs_of_other_kinds(write, tmp_path: Path, kind: str) -> None:
    more = {"bfloat16": ("", ", dtype=torch.bfloat16"), "paillier": (', protocol="paillier"', "")}[kind]
    text = SCRIPT.format(rows=100, more=more[0], dtype=more[1])
    if kind == "paillier":
        text = text.replace("Twice()", "torch.nn.Linear(1, 1)") + "\ntorch.manual_seed(0)\nDEALER = False\n"
        text += "def load_model(party):\n    m = torch.nn.Linear(1, 1); m.weight.data[:] = 2; m.bias.data[:] = 0; return m\n"
    script, table = write("infer.py", text), tmp_path / "x.csv"
    table.write_text("a\n" + "".join(f"{i}\n" for i in range(1, 111)))
    process = command(script, "--local", "--input", table, "--output", tmp_path / "out.csv")
    _, err = process.communicate(timeout=250)
    assert process.returncode == 0, err
    assert numbers(tmp_path / "out.csv") == [2 * i for i in range(1, 111)]
