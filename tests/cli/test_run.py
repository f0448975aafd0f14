"""securemodel run: scripts at one party or at all of them, and how everything ends when one fails."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocols.channel.testing import loopback_parties
from protocols.identity import Timeouts
from securemodel.api import ENGINES
from securemodel.cli import launch
from securemodel.cli.run import PROTOCOLS
from securemodel.cli.script import declared_parties
from securemodel.errors import ConfigError

SECURE = """
import os
import sys
from pathlib import Path
{network}
PARTIES = ("bank", "hospital")
OUT = Path(sys.argv[1])

if __name__ == "__main__":
    program = securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")
    with securemodel.connect(program) as session:
        (OUT / f"{{session.me}}.pid").write_text(str(os.getpid()))
        x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, -1.0, 1.0, 0.5], [9.0, 0.0, 0.0, 0.0]])
        y = session.run(x if session.me == "hospital" else None)
        {then}
    if y is not None:
        print("off by at most", (y - model(x)).abs().max().item() < 2**-10, sys.argv[2:])
"""
NO_CHILD_LEFT_S = 10.0


@pytest.fixture(autouse=True)
def own_temporary_folder(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch):
    """Each test has a folder for temporary files, empty again at its end."""
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    deadline = time.monotonic() + NO_CHILD_LEFT_S
    while left := [p.name for p in folder.iterdir() if p.name.startswith("securemodel-")]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def gone(pid_file: Path) -> bool:
    """Whether the process that wrote its number into a file has ended."""
    deadline = time.monotonic() + NO_CHILD_LEFT_S
    while time.monotonic() < deadline:
        try:
            os.kill(int(pid_file.read_text()), 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_two_parties_and_a_dealer(call, write, network: str, tmp_path: Path) -> None:
    script = write("secure.py", SECURE.format(network=network, then="pass"))
    result = call("run", script, tmp_path, "--local", "--", "--epochs", "3")
    assert result.exit_code == 0, result.output
    assert "hospital | off by at most True ['--epochs', '3']" in result.output
    assert "  dealer | session of bank, hospital" in result.output
    assert "    bank | off" not in result.output
    assert gone(tmp_path / "bank.pid") and gone(tmp_path / "hospital.pid")


def test_the_command_line_names_the_protocol_where_the_script_names_none(call, write, tmp_path: Path) -> None:
    linear = """
    import securemodel, torch
    torch.manual_seed(3)
    model, example_inputs = torch.nn.Linear(4, 2), torch.zeros(3, 4)
    """
    script = write("linear.py", SECURE.format(network=textwrap.dedent(linear), then="print(program.protocol)"))
    result = call("run", script, tmp_path, "--local", "--protocol", "paillier")
    assert result.exit_code == 0, result.output
    assert "hospital | paillier" in result.output and "bank | paillier" in result.output
    assert "hospital | off by at most True" in result.output and "session of" not in result.output


def test_a_party_that_fails_ends_all(call, write, network: str, tmp_path: Path) -> None:
    """The other party is busy with something else: it must be stopped, not waited for."""
    then = "x / 'two' if session.me == 'bank' else __import__('time').sleep(600)"
    script = write("failing.py", SECURE.format(network=network, then=then))
    start = time.monotonic()
    result = call("run", script, tmp_path, "--local")
    assert result.exit_code == 1, result.output
    assert time.monotonic() - start < 60
    assert "bank | error: TypeError" in result.stderr and "failing.py, line" in result.stderr
    assert "error: bank ended with exit code 1; stopped hospital" in result.stderr
    assert "Traceback" not in result.output
    assert gone(tmp_path / "bank.pid") and gone(tmp_path / "hospital.pid")


def test_the_party_at_fault_gives_the_exit_code(call, write, network: str, tmp_path: Path) -> None:
    """The other one notices and ends with 3, perhaps first; what counts is the code of the cause."""
    then = "sys.exit(7) if session.me == 'hospital' else session.run(None)"
    script = write("failing.py", SECURE.format(network=network, then=then))
    result = call("run", script, tmp_path, "--local")
    assert result.exit_code == 7, result.output
    assert "error: hospital ended with exit code 7" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.slow
def test_traceback_of_a_party(call, write) -> None:
    script = write("failing.py", "PARTIES = ('a', 'b')\n[][0]")
    result = call("run", script, "--local", "--traceback")
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "IndexError" in result.stderr


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Processes started here hear SIGINT, also where the tests run with SIGINT ignored, as `nohup` and some shells do."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


SIGNALS = [
    pytest.param(signal.SIGINT, id="Ctrl-C"),
    pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.slow),
    pytest.param(signal.SIGHUP, id="closed terminal", marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, id="kill -9"),
]


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("signum", SIGNALS)
def test_signals_stop_all(write, tmp_path: Path, own_temporary_folder: Path, signum: int) -> None:
    """Children end with their parent, with what they started, and the private keys are gone, whatever ends it."""
    text = """
    import os, pathlib, subprocess, sys, time
    from securemodel.invocation import current
    PARTIES = ("a", "b")
    me = current().me
    child = subprocess.Popen(["sleep", "600"])
    (pathlib.Path(sys.argv[1]) / f"{me}.child").write_text(str(child.pid))
    (pathlib.Path(sys.argv[1]) / f"{me}.pid").write_text(str(os.getpid()))
    print("ready", flush=True)
    time.sleep(600)
    """
    command = [sys.executable, "-m", "securemodel.cli", "run", str(write("long.py", text)), str(tmp_path), "--local"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        ready = (line for line in process.stdout if "ready" in line)  # the dealer speaks, too, before or after them
        assert next(ready, None) and next(ready, None), process.stderr.read()
        process.send_signal(signum)
        _, errors = process.communicate(timeout=200)
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
    else:
        assert process.returncode == 130
        assert errors.strip() == "stopped"
    for name in ("a.pid", "b.pid", "a.child", "b.child"):
        assert gone(tmp_path / name)


def test_every_protocol_can_be_named_but_that_which_starts_its_own_processes() -> None:
    assert {*PROTOCOLS, "crypten"} == set(ENGINES)


def test_names_can_be_given(monkeypatch: pytest.MonkeyPatch, call, write) -> None:
    seen = []

    def run_local(script: Path, args: tuple, names: tuple, *_, **__) -> launch.Outcome:
        seen.append(names)
        return launch.Outcome(5, "x", ("y",))

    monkeypatch.setattr("securemodel.cli.run.run_local", run_local)
    result = call("run", write("any.py", "PARTIES = ('a', 'b')"), "--local", "--parties", "x, y,z")
    assert seen == [("x", "y", "z")]
    assert result.exit_code == 5 and "x ended with exit code 5; stopped y" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("slow", ["bank", "hospital"])
def test_a_party_that_compiles_longer_than_connect_s_does_not_end_the_others(
    write, network: str, tmp_path: Path, slow: str
) -> None:
    roster, identities = loopback_parties(("bank", "hospital"), tmp_path, dealer=True, timeouts=Timeouts(12.0, 20.0))
    compiling = f'__import__("time").sleep(20 if "{slow}" in sys.argv else 0)'
    script = write(
        "slow.py",
        SECURE.format(network=network, then="pass").replace("    program = ", f"    {compiling}\n    program = "),
    )
    text, started = roster.path.read_text(), {}
    for name in identities:
        (tmp_path / f"{name}.toml").write_text(f'{text}[me]\nidentity = "{name}"\n')
        config = ["--config", str(tmp_path / f"{name}.toml")]
        words = (
            ["dealer", *config]
            if name == "dealer"
            else ["run", str(script), str(tmp_path), name, "--me", name, *config]
        )
        started[name] = subprocess.Popen(
            [sys.executable, "-m", "securemodel.cli", *words], stdout=-1, stderr=-2, text=True
        )
    said = {}
    for name in ("bank", "hospital"):
        said[name], _ = started[name].communicate(timeout=200)
    started["dealer"].kill()
    started["dealer"].communicate()
    assert started["bank"].returncode == started["hospital"].returncode == 0, said
    assert "off by at most True" in said["hospital"]


# ---- which parties
@pytest.mark.parametrize(
    "text",
    [
        'PARTIES = ("bank", "hospital")',
        'PARTIES: tuple[str, ...] = ("bank", "hospital")',
        'import nothing_of_this_name\nPARTIES = NAMES = ["bank", "hospital"]',
    ],
)
def test_parties_are_read_without_running_the_script(write, text: str) -> None:
    assert declared_parties(write("script.py", text)) == ("bank", "hospital")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "has no top-level PARTIES"),
        ("def f():\n    PARTIES = ('a', 'b')", "has no top-level PARTIES"),
        ("\nPARTIES = tuple(names())", "line 2"),
        ("PARTIES = ('a', 3)", "not a plain list"),
        ("PARTIES = ('a',)", "at least two"),
        ("PARTIES = ('a', 'a')", "different names"),
        ("PARTIES = ('a', 'dealer')", "dealer"),
        ("PARTIES = (", "not valid Python"),
        ("PARTIES: tuple", "not a plain list"),
    ],
)
def test_scripts_that_do_not_say_who_takes_part(call, write, text: str, says: str) -> None:
    script = write("script.py", text)
    with pytest.raises(ConfigError, match=says):
        declared_parties(script)
    result = call("run", script, "--local")
    assert result.exit_code == 1 and says in result.stderr and "Traceback" not in result.output


def test_names_no_identity_can_have(call, write) -> None:
    result = call("run", write("script.py", ""), "--local", "--parties", "ok,not ok")
    assert result.exit_code == 1 and "'not ok' cannot be a party's name" in result.stderr


# ---- one party
@pytest.mark.parametrize(
    "words",
    [[], ["--me", "bank"], ["--local", "--me", "bank"], ["--parties", "a,b"], ["--me", "bank", "--config", "/nowhere"]],
    ids=" ".join,
)
def test_called_wrongly(call, write, words: list[str]) -> None:
    result = call("run", write("script.py", "PARTIES = ('a', 'b')"), *words)
    assert result.exit_code == 2, result.output
    assert "Usage: " in result.stderr


def test_a_name_the_file_does_not_list(call, write, parties_file) -> None:
    result = call("run", write("script.py", "raise SystemExit(9)"), "--me", "clinic", "--config", parties_file("bank"))
    assert result.exit_code == 1
    assert "there is no party 'clinic'" in result.stderr and "it lists bank, hospital" in result.stderr


@pytest.mark.parametrize(
    ("me", "identity", "says"),
    [
        ("bank", "hospital", "the identity is of 'hospital', not 'bank'"),
        ("bank", None, "securemodel keys new bank"),
        ("dealer", "dealer", "securemodel dealer --config"),
    ],
)
def test_who_this_is_must_fit(call, write, parties_file, me: str, identity: str | None, says: str) -> None:
    result = call("run", write("script.py", "raise SystemExit(9)"), "--me", me, "--config", parties_file(identity))
    assert result.exit_code == 1 and says in result.stderr


def test_the_script_runs_as_if_started_by_python(call, write, parties_file, tmp_path: Path) -> None:
    write("beside.py", "NUMBER = 3")
    text = """
    import os, sys
    import beside
    from securemodel.invocation import current
    if __name__ == "__main__":
        said = current()
        print(beside.NUMBER, sys.argv[1:], said.me, said.config, said.script, said.store, sep="|")
        sys.exit(4)
    """
    script, config = write("script.py", text), parties_file("bank")
    before = dict(os.environ), list(sys.argv), list(sys.path)
    result = call("run", script, "one", "--me", "bank", "--config", config, "--", "--two")
    assert result.exit_code == 4
    number, args, me, path, digest, store = result.stdout.strip().split("|")
    assert (number, args, me, path, store) == ("3", "['one', '--two']", "bank", str(config), "None")
    assert len(digest) == 64
    assert (dict(os.environ), list(sys.argv), list(sys.path)) == before
    with_store = call("run", script, "--me", "bank", "--config", config, "--store", tmp_path)
    assert with_store.stdout.strip().endswith(f"|{tmp_path}")
    other = call("run", write("other.py", text.replace("os, sys", "sys, os")), "--me", "bank", "--config", config)
    assert other.stdout.split("|")[4] not in ("", digest)


def test_an_absent_peer_ends_with_3(call, write, network: str, parties_file, tmp_path: Path) -> None:
    script = write("secure.py", SECURE.format(network=network, then="pass"))
    result = call("run", script, tmp_path, "--me", "bank", "--config", parties_file("bank", connect_s=0.3))
    assert result.exit_code == 3, result.output
    assert "'hospital'" in result.stderr and "Traceback" not in result.output
