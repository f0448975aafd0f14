"""Commands as forks of one process: the same as commands that are started one by one."""

from __future__ import annotations

import os
import signal
import time

import pytest

from securemodel.cli import forks
from securemodel.cli.processes import folder_with_heir
from securemodel.errors import SecureModelError

pytestmark = pytest.mark.skipif(not forks.HAVE_FORKS, reason="forks are for Linux")
GUARD_S = 120.0


@pytest.fixture(scope="module")
def started():
    made = forks.Forks(os.environ)
    yield made
    made.close()


def ended(process: forks.Forked) -> int:
    deadline = time.monotonic() + GUARD_S
    while (code := process.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return code


def test_exit_codes_and_outputs_are_told_apart(started: forks.Forks) -> None:
    good, bad = started.start(["--version"]), started.start(["nothing"])
    assert (good.stdout.read().split()[0], good.stderr.read()) == (b"securemodel,", b"")
    assert b"No such command 'nothing'" in bad.stderr.read() and bad.stdout.read() == b""
    assert (ended(good), ended(bad)) == (0, 2)


def test_a_fork_is_the_leader_of_its_own_session(started: forks.Forks) -> None:
    process = started.start(["dealer", "--config", "/dev/stdin"])
    assert os.getpgid(process.pid) == process.pid or process.poll() is not None
    assert ended(process) == 1 and b"/dev/stdin" in process.stderr.read()


def test_a_signal_that_ends_a_fork_is_its_code(started: forks.Forks, write) -> None:
    script = write("waits.py", "PARTIES = ('a', 'b')\nDEALER = False\nimport time\nprint('ready')\ntime.sleep(600)\n")
    process = started.start(["run", str(script), "--local"])
    assert b"ready" in process.stdout.readline()
    os.killpg(process.pid, signal.SIGTERM)
    assert ended(process) == 130
    process = started.start(["dealer", "--config", "/dev/stdin"])
    os.killpg(process.pid, signal.SIGKILL)
    assert ended(process) == -signal.SIGKILL


def test_numbers_of_numpy_differ_between_forks(call, write) -> None:
    script = write("draws.py", "PARTIES = ('a', 'b')\nDEALER = False\nimport numpy\nprint(numpy.random.random())\n")
    result = call("run", script, "--local")
    assert result.exit_code == 0 and len({line.split()[-1] for line in result.stdout.splitlines()}) == 2


def test_without_the_process_that_forks_none_is_started_and_none_is_waited_for() -> None:
    made = forks.Forks(os.environ)
    process = made.start(["--version"])
    os.kill(made.pid, signal.SIGKILL)
    try:
        assert ended(process) in (0, -signal.SIGKILL)
        with pytest.raises(SecureModelError, match="could not be started"):
            made.start(["--version"])
    finally:
        made.close()


def test_a_shell_that_cannot_be_started_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("subprocess.Popen", lambda *given, **more: 1 / 0)
    with pytest.raises(ZeroDivisionError), folder_with_heir():
        pass
    assert not list(tmp_path.iterdir())
