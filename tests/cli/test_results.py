"""What predict keeps on disk: nothing finished is lost, whenever it stops, and nothing foreign is gone on with."""

from __future__ import annotations

import json
import resource
import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from securemodel.cli import results
from securemodel.cli.results import Record, Result, check_space
from securemodel.errors import ConfigError, FileError, InputError
from securemodel.files.rows import Rows
from securemodel.sessions.resume import Kept, Start

RESULTS = (Result("class", (), "int64"), Result("probability", (2,), "float32"))
CLASSES, PROBABILITIES = torch.tensor([3, 1, 2, 0, 4]), torch.linspace(0, 1, 10).reshape(5, 2)
SIZE, BATCHES = 2, 3


class Killed(BaseException):
    """Ends everything at once."""


class Source:
    id_name, notes = "", ()


def rows(text: str) -> Rows:
    """An input whose batches differ by a letter each."""
    return Rows(2 * len(text) - 1, b"".join(letter.encode() * 16 for letter in text), Source(), SIZE)


def record(folder: Path, name: str = "out.csv", program: str = "program", given: str = "abc") -> Record:
    made = Record(folder / name, folder / f"{name}.journal", RESULTS, program, SIZE)
    made.compare(rows(given))
    return made


def start(made: Record, job: str = "job", changed: str = "...", count: int = 5) -> Start:
    bits = np.array([letter == "x" for letter in changed])
    own = made.batches(len(bits))
    return Start(job, count, own.missing | own.changed | bits, own.changed | bits)


def begin(made: Record, *args, **options) -> Start:
    agreed = start(made, *args, **options)
    made.begin(agreed)
    made.begun()
    return agreed


def batch(made: Record, index: int) -> None:
    part = slice(index * SIZE, min(5, (index + 1) * SIZE))
    made.add(index, [CLASSES[part], PROBABILITIES[part]])


def begun(folder: Path, name: str = "out.csv") -> Record:
    made = record(folder, name)
    begin(made)
    return made


def finished(folder: Path, name: str = "out.csv", id_name="", names=()) -> Path:
    made = begun(folder, name)
    for index in range(BATCHES):
        batch(made, index)
    made.finish(id_name, names)
    return folder / name


def test_a_table(tmp_path: Path) -> None:
    path = finished(tmp_path, id_name="patient", names=iter(("007", "b", "c", "d", "e,f")))
    lines = path.read_text().splitlines()
    assert lines[0] == "patient,class,probability_0,probability_1" and lines[1].startswith("007,3,0.0,0.11")
    assert lines[5].startswith('"e,f",4,') and len(lines) == 6
    values = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(2, 3), dtype=np.float32, quotechar='"')
    assert np.array_equal(values, PROBABILITIES.numpy()), "every digit that counts"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {p.name for p in tmp_path.iterdir()} == {"out.csv", "out.csv.journal", "out.csv.digests"}


def test_rows_without_ids_are_counted(tmp_path: Path) -> None:
    lines = finished(tmp_path).read_text().splitlines()
    assert lines[0].startswith("row,class,") and [line.split(",")[0] for line in lines[1:]] == list("12345")


def test_arrays(tmp_path: Path) -> None:
    with np.load(finished(tmp_path, "out.npz", "file", list("abcde")), allow_pickle=False) as made:
        assert np.array_equal(made["class"], CLASSES) and np.array_equal(made["probability"], PROBABILITIES)
        assert made["file"].tolist() == list("abcde")


def test_results_of_a_type_that_numpy_lacks(tmp_path: Path) -> None:
    made = Record(tmp_path / "o.csv", tmp_path / "o.csv.journal", [Result("output", (), "float32")], "program", SIZE)
    made.begin(Start("job", 1, np.ones(1, bool), np.zeros(1, bool)))
    made.add(0, [torch.tensor([1.5], dtype=torch.bfloat16)])
    made.finish()
    assert (tmp_path / "o.csv").read_text() == "row,output\n1,1.5\n"


POINTS = [("write_secret", n) for n in range(5)] + [("os.fsync", n) for n in range(9)] + [("os.open", 0)]


@pytest.mark.parametrize("call, count", POINTS, ids=str)
def test_stopped_anywhere_and_gone_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, count: int) -> None:
    """The process ends at one of its writes; the next one does only what was not counted as finished."""
    expected = finished(tmp_path / "whole").read_text()
    calls = [0]

    def dies(*args, **options):
        calls[0] += 1
        if calls[0] > count:
            raise Killed
        return real(*args, **options)

    owner, _, name = call.rpartition(".")
    owner = results.os if owner else results
    real = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dies)
        with pytest.raises(Killed):
            finished(tmp_path)
    again = record(tmp_path)
    assert again.kept().job in ("", "job") and again.kept().done in (0, 2, 4, 5)
    for index in np.flatnonzero(begin(again).todo):
        batch(again, index)
    again.finish()
    assert (tmp_path / "out.csv").read_text() == expected


def test_what_is_finished_stays_as_it_is(tmp_path: Path) -> None:
    """Another party was behind: rows come again, and are not written again."""
    made = begun(tmp_path)
    batch(made, 0)
    batch(made, 1)
    for index in (0, 1):
        made.add(index, [CLASSES[:2] * 0 - 1, PROBABILITIES[:2] * 0 - 1])
        assert record(tmp_path).kept().done == 4
    batch(made, 2)
    made.finish()
    assert "-1" not in (tmp_path / "out.csv").read_text()


def test_batches_may_be_finished_in_any_order(tmp_path: Path) -> None:
    made = begun(tmp_path)
    batch(made, 2)
    assert made.kept().done == 1 and made.journal.done == ((2, 3),)
    again = record(tmp_path)
    assert begin(again).todo.tolist() == [True, True, False]
    batch(again, 0)
    batch(again, 1)
    again.finish()
    assert (tmp_path / "out.csv").read_text() == finished(tmp_path / "whole").read_text()


# ---- inputs that are corrected
def test_finished_rows_whose_input_did_not_change_stay(tmp_path: Path) -> None:
    made = begun(tmp_path)
    batch(made, 0)
    batch(made, 1)
    again = record(tmp_path, given="aXc")
    agreed = begin(again)
    assert agreed.todo.tolist() == [False, True, True] and again.kept().done == 2
    third = record(tmp_path, given="aXc")
    assert begin(third).todo.tolist() == [False, True, True], "the corrected batch is still to be run"
    batch(third, 1)
    assert begin(record(tmp_path, given="aXc")).todo.tolist() == [False, False, True]
    assert begin(record(tmp_path, given="aXcd"), changed="....", count=7).todo.tolist() == [False, False, True, True]


@pytest.mark.parametrize("point", ["begin", "begun"])
def test_a_crash_beside_a_corrected_input_never_counts_an_old_result(tmp_path: Path, point: str) -> None:
    made = begun(tmp_path)
    batch(made, 0)
    batch(made, 1)
    again = record(tmp_path, given="aXc")
    again.begin(start(again))
    if point == "begun":
        again.begun()
    for given in ("aXc", "aXc", "abc"):
        assert not record(tmp_path, given=given).journal.finished(BATCHES)[1]


def test_another_partys_correction_is_run_again(tmp_path: Path) -> None:
    made = begun(tmp_path)
    for index in range(BATCHES):
        batch(made, index)
    again = record(tmp_path)
    assert begin(again, changed=".x.").todo.tolist() == [False, True, False] and again.kept().done == 3


def test_an_input_of_which_nothing_is_the_same_is_refused(tmp_path: Path) -> None:
    batch(begun(tmp_path), 0)
    assert record(tmp_path, given="aYZ").kept().done == 2
    assert begin(record(tmp_path / "x", given="abc")).todo.all()
    batch(record(tmp_path / "x"), 0)
    assert begin(record(tmp_path / "x", given="Xbc")).todo.all(), "the only finished batch was corrected"
    with pytest.raises(InputError, match="different input"):
        record(tmp_path, given="XYZ")
    with pytest.raises(InputError, match="different program"):
        record(tmp_path, program="else")


def test_results_that_are_all_there_are_of_one_input(tmp_path: Path) -> None:
    before = finished(tmp_path).read_text()
    again = record(tmp_path)
    assert again.is_complete and again.kept() == Kept("job", 5, 5) and not begin(again).todo.any()
    batch(again, 2)
    again.finish()
    for given in ("abX", "abcd", "ab"):
        with pytest.raises(InputError, match="different input"):
            record(tmp_path, given=given)
    with pytest.raises(InputError, match="another party's input has changed"):
        again.begin(start(again, changed="..x"))
    assert (tmp_path / "out.csv").read_text() == before


# ---- files that are gone, foreign, or cannot be written
def test_files_that_are_gone_or_foreign(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        record(tmp_path)
    assert (tmp_path / "out.csv").read_text() == "mine"
    finished(tmp_path / "moved").unlink()
    with pytest.raises(InputError, match="not there"):
        record(tmp_path / "moved")
    whole = {"program": "p", "version": 2, "job": "j", "rows": 1, "done": [[0, 1]]}
    other = [{"version": 1}, {"done": [[0, 2]]}, {"done": [[1, 0]]}, {"done": [[-1, 1]]}, {"done": [[0]]}, {"done": [0]}, {"rows": -1},
             {"done": [["a", "b"]]}, {"more": 1}, {"rows": "1"}]  # fmt: skip
    for text in ("", "[]", "{}", "\0", *(json.dumps(whole | change) for change in other)):
        (tmp_path / "bad.csv.journal").write_text(text)
        (tmp_path / "bad.csv.journal").chmod(0o600)
        with pytest.raises(InputError, match="not a journal"):
            record(tmp_path, "bad.csv")


def test_who_gets_no_results_keeps_the_job_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.journal"

    def opened(given: str, program: str = "program") -> Record:
        made = Record(None, path, RESULTS, program, SIZE)
        made.compare(rows(given))
        return made

    made = opened("abc")
    assert made.kept() == Kept("", 0, 5, False)
    begin(made)
    made.add(0, [])
    made.finish()
    assert opened("abc").kept() == Kept("job", 0, 5, False) and not opened("abc").batches(3).changed.any()
    assert opened("abX").batches(3).changed.tolist() == [False, False, True]
    assert opened("XYZ").kept() == Kept("", 0, 5, False) == opened("abc", "other").kept()
    assert {p.name for p in tmp_path.iterdir()} == {"x.csv.journal", "x.csv.digests"}


@pytest.fixture
def small_files():
    """No file of this process may grow above 4,000 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_room_for_the_results_is_taken_before_the_first_batch(tmp_path: Path, small_files) -> None:
    made = Record(tmp_path / "out.csv", tmp_path / "out.csv.journal", RESULTS, "program", SIZE)
    with pytest.raises(FileError, match="EFBIG") as caught:
        made.begin(Start("job", 1000, np.ones(500, bool), np.zeros(500, bool)))
    assert str(tmp_path / "out.csv.partial") in str(caught.value) and "→" in str(caught.value)


def test_a_disk_that_fills_at_the_end_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = begun(tmp_path)
    for index in range(BATCHES):
        batch(made, index)

    def full(*args) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(results, "_csv", full)
        with pytest.raises(FileError, match="No space left.*\n.*all results are there"):
            made.finish()
    assert not (tmp_path / "out.csv").exists()
    again = record(tmp_path)
    assert not begin(again).todo.any()
    again.finish()
    assert (tmp_path / "out.csv").read_text() == finished(tmp_path / "whole").read_text()


def test_a_disk_without_room_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_space(tmp_path, 5, RESULTS)
    with pytest.raises(FileError, match="no room for the results of 1000000000000 rows"):
        check_space(tmp_path, 10**12, RESULTS)


@pytest.mark.parametrize("done", [False, True])
def test_rows_do_not_go_into_a_file_that_somebody_prepared(tmp_path: Path, done: bool) -> None:
    """Neither through a link nor into a file that others can read."""
    partial, target = tmp_path / "out.csv.partial", tmp_path / "target"
    target.touch()
    if not done:
        partial.symlink_to(target)
        batch(begun(tmp_path), 0)
        assert not target.read_bytes() and not partial.is_symlink() and stat.S_IMODE(partial.stat().st_mode) == 0o600
        return
    made = begun(tmp_path)
    batch(made, 0)
    partial.chmod(0o666)
    with pytest.raises(ConfigError, match="other users"):
        batch(made, 1)
    partial.rename(target)
    partial.symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        batch(made, 1)


def test_a_folder_where_others_can_replace_files_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(ConfigError, match="other users of this machine can change"):
        record(tmp_path / "open")
