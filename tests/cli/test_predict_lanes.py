"""securemodel predict --lanes: chunks of one job in several sessions, lanes that die, and going on after an interruption."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from protocols.channel.testing import free_addresses, loopback_parties, run_together
from protocols.errors import Mismatch, ProtocolError
from protocols.identity import PartiesConfig, Timeouts, plain_config
from securemodel.api import connect
from securemodel.cli import lane as one_lane
from securemodel.cli import predict
from securemodel.cli.lane import serve_chunks
from securemodel.cli.lanes import cut
from securemodel.cli.part import Given, open_part
from securemodel.engines.masked.dealer import serve
from securemodel.engines.packing import pack
from securemodel.invocation import Invocation, current
from securemodel.program import Program

BOTH = ("bank", "hospital")
ROWS = torch.randn(41, 4, generator=torch.Generator().manual_seed(4))
LIMIT_S = 120


class Killed(BaseException):
    """Ends a party at once."""


class Threads:
    """Lanes as threads of this process, with sessions over plain sockets; `spoil` may end one before a batch's result."""

    def __init__(
        self, program: Program, me: str, config: PartiesConfig, results: tuple[int, ...], spoil: Callable
    ) -> None:
        self._open = lambda lane: connect(program, me, config, lane=lane, insecure_plain=True, ledger=False)
        self._me, self._results, self._spoil = me, results, spoil
        self._model = program.model if me == "bank" else None
        self._replies: queue.SimpleQueue[tuple[int, int, bytes | None]] = queue.SimpleQueue()
        self._chunks: dict[int, queue.SimpleQueue[bytes | None]] = {}
        self._starts: dict[int, int] = {}
        self._threads: list[threading.Thread] = []

    def start(self, lane: int) -> None:
        self._starts[lane] = number = self._starts.get(lane, 0) + 1
        self._chunks[lane] = chunks = queue.SimpleQueue()

        def reply(message: bytes) -> None:
            self._spoil(self._me, lane, number, message)
            self._replies.put((lane, number, message))

        def run() -> None:
            try:
                with self._open(lane) as session:
                    session.load(session.program, self._model)
                    serve_chunks(session, self._results, chunks.get, reply)
            except BaseException as error:
                self._replies.put((lane, number, pack({"error": str(error)}, {}) if str(error) else None))

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def give(self, lane: int, chunk: bytes) -> None:
        self._chunks[lane].put(chunk)

    def stop(self, lane: int) -> None:
        self._chunks[lane].put(None)

    def events(self, timeout_s: float) -> list[tuple[int, bytes | None]]:
        try:
            lane, number, message = self._replies.get(timeout=max(timeout_s, 0.001))
        except queue.Empty:
            return []
        return [(lane, message)] if number == self._starts[lane] else []

    def close(self, patience_s: float = 0.0) -> None:
        for lane in self._chunks:
            self.stop(lane)
        for thread in self._threads:
            thread.join(LIMIT_S)


@pytest.fixture(scope="module")
def config() -> PartiesConfig:
    """Bank and hospital on plain sockets of this host, with room for lanes, and a dealer."""
    first, *addresses = free_addresses(3, lanes=4)
    times = Timeouts(connect_s=20.0, receive_s=10.0)
    made = plain_config(dict(zip(BOTH, addresses, strict=True)), dealer=first, timeouts=times)
    options = {"insecure_plain": True, "say": lambda text: None}
    threading.Thread(target=serve, args=(made, None), kwargs=options, daemon=True).start()
    return made


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Given]:
    np.savetxt(tmp_path / "x.csv", ROWS.numpy(), delimiter=",", header="a,b,c,d", comments="")
    return {"bank": Given(), "hospital": Given(input=(str(tmp_path / "x.csv"),), output=(str(tmp_path / "out.csv"),))}


def in_lanes(
    program: Program,
    config: PartiesConfig,
    files: dict[str, Given],
    *,
    lanes: int = 3,
    spoil: Callable[[str, int, int, bytes], None] = lambda *of: None,
    shown: Callable[[str, int], None] = lambda me, done: None,
    said: list[str] | None = None,
) -> dict[str, Any]:
    """Both parties of the command, with threads as lanes; the rows that each showed, or its error."""

    def party(me: str) -> list[int]:
        seen: list[int] = []

        def rows(done: int, of: int) -> None:
            seen.append(done)
            shown(me, done)

        with open_part(program, me, files[me]) as part:
            crew = Threads(program, me, config, part.results, spoil)
            for lane in range(1, lanes + 1):
                crew.start(lane)
            display = predict.Display(rows, (said if said is not None else []).append)
            try:
                with connect(program, me, config, insecure_plain=True, ledger=False) as session:
                    predict._take_part(session, part, lambda: None, display, crew)
            finally:
                crew.close()
            if part.record:
                part.record.finish(*((part.rows.id_name, part.rows.names()) if part.rows else ()))
        return seen

    return run_together({me: lambda me=me: party(me) for me in BOTH}, LIMIT_S)


@pytest.fixture(autouse=True)
def three_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predict, "current", lambda: Invocation(lanes=3))


def check(files: dict[str, Given], program: Program) -> None:
    made = np.loadtxt(files["hospital"].output[0], delimiter=",", skiprows=1, dtype=np.float32, ndmin=2)
    assert made[:, 0].tolist() == list(range(1, len(ROWS) + 1))
    torch.testing.assert_close(torch.from_numpy(made[:, 1:]), program.model(ROWS).detach(), atol=2**-9, rtol=0)


def test_every_row_once_and_in_order(program: Program, config, files) -> None:
    results = in_lanes(program, config, files)
    for seen in results.values():
        assert seen[0] == 0 and seen[-1] == 41 and seen == sorted(seen) and len(seen) == 22
    check(files, program)


@pytest.mark.parametrize("who", BOTH)
def test_a_lane_that_dies_gives_its_chunk_back(program: Program, config, files, who: str) -> None:
    """It dies in its first life, before anybody hears of its third batch; the chunk is run again, elsewhere or later."""
    heard, said = [], []

    def spoil(me: str, lane: int, start: int, message: bytes) -> None:
        if (me, lane, start) == (who, 2, 1) and b'"batch"' in message[:40]:
            heard.append(lane)
            if len(heard) == 3:
                raise Killed("lane 2 was killed")

    results = in_lanes(program, config, files, spoil=spoil, said=said)
    assert [seen[-1] for seen in results.values()] == [41, 41], results
    check(files, program)
    assert any(line.startswith("lane 2: ") for line in said) and not any(line.startswith("lane 1: ") for line in said)


def test_killed_and_gone_on(program: Program, config, files) -> None:
    """What was finished is not run again."""

    def shown(me: str, done: int) -> None:
        if me == "hospital" and done >= 20:
            raise Killed

    ended = in_lanes(program, config, files, shown=shown)
    assert isinstance(ended["hospital"], Killed) and isinstance(ended["bank"], ProtocolError)
    again = in_lanes(program, config, files)
    assert again["hospital"][0] >= 18 and again["hospital"][-1] == 41, again
    check(files, program)


def test_a_job_of_which_every_lane_fails_ends_by_name(program: Program, config, files) -> None:
    said: list[str] = []

    def spoil(me: str, lane: int, start: int, message: bytes) -> None:
        if me == "bank":
            raise Killed("no lane of the bank works")

    results = in_lanes(program, config, files, spoil=spoil, said=said)
    assert all(isinstance(error, ProtocolError) and "every lane has failed" in str(error) for error in results.values())
    assert any("no lane of the bank works" in line for line in said)


def test_parties_with_different_numbers_of_lanes_are_refused(program: Program, config, monkeypatch) -> None:
    from securemodel.sessions import agree

    lanes = {"bank": 2, "hospital": 3}
    monkeypatch.setattr(agree, "current", lambda: Invocation(lanes=lanes[threading.current_thread().name]))

    def party(me: str) -> None:
        threading.current_thread().name = me
        connect(program, me, config, insecure_plain=True, ledger=False)

    results = run_together({me: lambda me=me: party(me) for me in BOTH}, LIMIT_S)
    assert all(isinstance(error, Mismatch) and "different --lanes" in str(error) for error in results.values())


@pytest.mark.parametrize("batches, lanes", [(1, 2), (7, 2), (21, 3), (1000, 4)])
def test_chunks_are_of_neighbors_and_enough_for_all_lanes(program: Program, batches: int, lanes: int) -> None:
    pieces = cut(program, list(range(batches)), lanes)
    assert [batch for piece in pieces for batch in piece] == list(range(batches))
    assert len(pieces) >= min(batches, 3 * lanes)


def test_chunks_of_large_batches_are_single(program: Program, monkeypatch) -> None:
    monkeypatch.setattr("securemodel.cli.lanes._CHUNK_BYTES", 100)
    assert cut(program, [0, 1, 2, 5], 1) == [[0], [1], [2], [5]]


def test_lanes_compute_on_the_device_that_was_named(tmp_path: Path, monkeypatch) -> None:
    """Each lane is told, and opens its session there."""
    asked: list[dict[str, Any]] = []

    class Told:
        def __init__(self, job: dict[str, Any], lanes: int) -> None:
            self.job = job

        def start(self, lane: int) -> None:
            asked.append({**self.job, "lane": lane})

        def close(self) -> None:
            pass

    monkeypatch.setattr(predict, "Processes", Told)
    roster, _ = loopback_parties(BOTH, tmp_path, dealer=True)
    config = tmp_path / "bank.toml"
    config.write_text(roster.path.read_text() + '[me]\nidentity = "bank"\n')
    part = SimpleNamespace(results=(0,))
    said = Invocation("bank", config, lanes=2, device="cuda:1")
    monkeypatch.setattr(predict, "current", lambda: said)
    with predict._crew(tmp_path / "infer.py", part, "none", None) as crew:
        assert crew
    assert [(job["lane"], job["device"]) for job in asked] == [(1, "cuda:1"), (2, "cuda:1")]
    chosen: list[object] = []

    def loaded(script: Path) -> None:
        chosen.append(current().device)
        raise ProtocolError("that is all")

    monkeypatch.setattr(one_lane, "load_file", loaded)
    (tmp_path / "infer.py").write_text("import securemodel\n")
    replies: list[bytes] = []
    one_lane.run_lane({**asked[0], "lane": 0}, lambda: None, replies.append)  # there is no room for others
    assert chosen == ["cuda:1"] and b"that is all" in replies[0]


SCRIPT = """
PARTIES = ("bank", "hospital")
program = securemodel.compile(model, example_inputs, weights="bank", inputs="hospital", outputs="hospital")
"""


def lanes_below(pid: int) -> list[int]:
    """The processes of lanes that descend from a process."""
    parents, lanes = {}, []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        parents[int(folder.name)] = int(stat[1])
        lanes += [int(folder.name)] if b"securemodel.cli.lane" in words else []

    def descends(child: int) -> bool:
        return child == pid or (child in parents and descends(parents[child]))

    return [lane for lane in lanes if descends(lane)]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes as Linux shows them")
@pytest.mark.slow
def test_the_command_with_a_lane_that_is_killed(network: str, write, tmp_path: Path, program: Program) -> None:
    script, table = write("infer.py", network + SCRIPT), tmp_path / "x.csv"
    rows = torch.randn(400, 4, generator=torch.Generator().manual_seed(4))
    np.savetxt(table, rows.numpy(), delimiter=",", header="a,b,c,d", comments="")
    words = ["predict", script, "--local", "--lanes", 2, "--input", table, "--output", tmp_path / "out.csv"]
    command = [sys.executable, "-m", "securemodel.cli", *map(str, words)]
    killed: list[int] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout
        said = []
        for line in process.stdout:
            said.append(line)
            if not killed and (found := re.match(r"(\d+) of 400 rows", line)) and int(found[1]) > 20:
                killed = lanes_below(process.pid)[:1]
                os.kill(killed[0], signal.SIGKILL)
        code = process.wait(300)
    text = "".join(said)
    assert code == 0 and killed, text
    assert re.search(r"(bank|hospital) \| lane [12]: .*(has ended|is gone)", text), text
    made = np.loadtxt(tmp_path / "out.csv", delimiter=",", skiprows=1, dtype=np.float32)
    torch.testing.assert_close(torch.from_numpy(made[:, 1:]), program.model(rows).detach(), atol=2**-9, rtol=0)
    until = time.monotonic() + 60
    while lanes_below(process.pid):
        assert time.monotonic() < until, "lanes outlive their party"
        time.sleep(0.1)
