"""What predict keeps on disk: nothing finished is lost, whenever it stops, and nothing foreign is gone on with."""

from __future__ import annotations

import stat
from pathlib import Path

import numpy as np
import pytest
import torch

from securemodel.cli import results
from securemodel.cli.results import Journal, Record, Result
from securemodel.errors import ConfigError, InputError
from securemodel.runtime.resume import Kept

RESULTS = (Result("class", (), "int64"), Result("probability", (2,), "float32"))
FRESH = Journal("program", "input")
CLASSES, PROBABILITIES = torch.tensor([3, 1, 2, 0, 4]), torch.linspace(0, 1, 10).reshape(5, 2)


class Killed(BaseException):
    """Ends everything at once."""


def record(folder: Path, name: str = "out.csv", fresh: Journal = FRESH) -> Record:
    return Record(folder / name, folder / f"{name}.journal", RESULTS, fresh)


def batch(made: Record, first: int, rows: int) -> None:
    made.add(first, rows, [CLASSES[first : first + rows], PROBABILITIES[first : first + rows]])


def begun(folder: Path, name: str = "out.csv") -> Record:
    made = record(folder, name)
    made.begin(Kept("job", 0, 5))
    return made


def finished(folder: Path, name: str = "out.csv", names=()) -> Path:
    made = begun(folder, name)
    for first, rows in ((0, 2), (2, 2), (4, 1)):
        batch(made, first, rows)
    made.finish(names)
    return folder / name


def test_a_table(tmp_path: Path) -> None:
    path = finished(tmp_path, names=("a", "b", "c", "d", "e,f"))
    lines = path.read_text().splitlines()
    assert lines[0] == "file_name,class,probability_0,probability_1" and lines[1].startswith("a,3,0.0,0.11")
    assert lines[5].startswith('"e,f",4,') and len(lines) == 6
    values = np.loadtxt(path, delimiter=",", skiprows=1, usecols=(2, 3), dtype=np.float32, quotechar='"')
    assert np.array_equal(values, PROBABILITIES.numpy()), "every digit that counts"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert {p.name for p in tmp_path.iterdir()} == {"out.csv", "out.csv.journal"}


def test_arrays(tmp_path: Path) -> None:
    with np.load(finished(tmp_path, "out.npz", names=list("abcde")), allow_pickle=False) as made:
        assert np.array_equal(made["class"], CLASSES) and np.array_equal(made["probability"], PROBABILITIES)
        assert made["file_name"].tolist() == list("abcde")


POINTS = [("write_secret", n) for n in range(5)] + [("os.fsync", n) for n in range(9)] + [("os.open", n) for n in (0, 2)]


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
    start = again.kept(5).done
    assert again.kept(5).job in ("", "job") and start in (0, 2, 4, 5)
    again.begin(Kept("job", start, 5))
    for first in (0, 2, 4):
        if first >= start:
            batch(again, first, min(2, 5 - first))
    again.finish()
    assert (tmp_path / "out.csv").read_text() == expected


def test_what_is_finished_stays_as_it_is(tmp_path: Path) -> None:
    """Another party was behind: rows come again, and are not written again."""
    made = begun(tmp_path)
    batch(made, 0, 2)
    batch(made, 2, 2)
    for first in (0, 2):
        made.add(first, 2, [CLASSES[:2] * 0 - 1, PROBABILITIES[:2] * 0 - 1])
        assert record(tmp_path).kept(5).done == 4
    batch(made, 4, 1)
    made.finish()
    assert "-1" not in (tmp_path / "out.csv").read_text()


def test_bytes_of_a_batch_that_was_not_counted_are_dropped(tmp_path: Path) -> None:
    made = begun(tmp_path)
    batch(made, 0, 2)
    with (tmp_path / "out.csv.partial").open("ab") as file:
        file.write(b"half of a batch")
    again = record(tmp_path)
    batch(again, 2, 2)
    batch(again, 4, 1)
    again.finish()
    assert (tmp_path / "out.csv").read_text() == finished(tmp_path / "whole").read_text()


@pytest.mark.parametrize(
    "other, says", [(Journal("else", "input"), "different program"), (Journal("program", "else"), "different input file")]
)
def test_something_else_is_refused(tmp_path: Path, other: Journal, says: str) -> None:
    batch(begun(tmp_path), 0, 2)
    with pytest.raises(InputError, match=says) as caught:
        record(tmp_path, fresh=other)
    assert "2 of 5 rows are done" in str(caught.value)
    finished(tmp_path / "all")
    with pytest.raises(InputError, match=says):
        record(tmp_path / "all", fresh=other)


def test_a_complete_record_is_left_alone(tmp_path: Path) -> None:
    before = finished(tmp_path).read_text()
    again = record(tmp_path)
    assert again.is_complete and again.kept(5) == Kept("job", 5, 5)
    batch(again, 4, 1)
    again.finish()
    assert (tmp_path / "out.csv").read_text() == before


def test_files_that_are_gone_or_foreign(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        record(tmp_path)
    assert (tmp_path / "out.csv").read_text() == "mine"
    finished(tmp_path / "moved").unlink()
    with pytest.raises(InputError, match="not there"):
        record(tmp_path / "moved")
    for text in ("", "[]", "{}", '{"program": 1}', '{"program":"p","input":"i","job":"j","rows":1,"done":2}'):
        (tmp_path / "bad.csv.journal").write_text(text)
        (tmp_path / "bad.csv.journal").chmod(0o600)
        with pytest.raises(InputError, match="not a journal"):
            record(tmp_path, "bad.csv")


def test_who_gets_no_results_keeps_the_job_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.journal"
    made = Record(None, path, RESULTS, FRESH)
    assert made.kept(5) == Kept("", 0, 5, False)
    made.begin(Kept("job", 0, 5))
    made.add(0, 2, [])
    made.finish()
    assert Record(None, path, RESULTS, FRESH).kept(5) == Kept("job", 0, 5, False)
    assert Record(None, path, RESULTS, Journal("program", "other")).kept(6) == Kept("", 0, 6, False)
    assert [p.name for p in tmp_path.iterdir()] == ["x.csv.journal"]


@pytest.mark.parametrize("done", [0, 2])
def test_rows_do_not_go_into_a_file_that_somebody_prepared(tmp_path: Path, done: int) -> None:
    """Neither through a link nor into a file that others can read."""
    made, partial, target = begun(tmp_path), tmp_path / "out.csv.partial", tmp_path / "target"
    target.touch()
    if not done:
        partial.symlink_to(target)
        batch(made, 0, 2)
        assert not target.read_bytes() and not partial.is_symlink() and stat.S_IMODE(partial.stat().st_mode) == 0o600
        return
    batch(made, 0, 2)
    partial.chmod(0o666)
    with pytest.raises(ConfigError, match="other users"):
        batch(made, 2, 2)
    partial.rename(target)
    partial.symlink_to(target)
    with pytest.raises(ConfigError, match="symbolic link"):
        batch(made, 2, 2)
