"""One file, two jobs: the second is refused and told whose it is, however they meet."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from securemodel.cli.locks import locked
from securemodel.errors import FileError, InputError

HOLD = "import sys; from pathlib import Path; from securemodel.cli.locks import locked\nwith locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


def test_the_other_process_is_named(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    words = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        for name in (path, tmp_path / "x" / ".." / "out.csv"):
            with (
                pytest.raises(
                    InputError, match=f"another process works with this file\n.*out.csv\n.*process {other.pid}\n"
                ),
                locked(name),
            ):
                pass
        other.kill()
    with locked(path):
        pass
    assert not [p for p in tmp_path.iterdir() if "lock" in p.name]


def test_a_link_to_the_file_is_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").symlink_to(tmp_path / "a.csv")
    with (
        locked(tmp_path / "a.csv"),
        pytest.raises(InputError, match=f"process {os.getpid()}"),
        locked(tmp_path / "b.csv"),
    ):
        pass


def test_only_one_holds_it_at_any_moment(tmp_path: Path) -> None:
    """Locks are taken and removed all the time: a removed one is never held beside a new one."""
    holding, most = [0], [0]

    def work() -> None:
        left = 40
        while left:
            try:
                with locked(tmp_path / "x"):
                    holding[0] += 1
                    most[0] = max(most[0], holding[0])
                    holding[0] -= 1
                    left -= 1
            except InputError:
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most[0] == 1


def test_a_place_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "out.csv", Path("/proc/out.csv"), tmp_path / ("x" * 300)):
        with pytest.raises(FileError, match="a file cannot be used") as caught, locked(path):
            pass
        assert path.name[:8] in str(caught.value) or "file" in str(caught.value)


def test_a_lock_is_not_followed_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".out.csv.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(FileError, match="ELOOP"), locked(tmp_path / "out.csv"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
