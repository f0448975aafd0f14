"""Runs one case with three processes over loopback, and tells what it took."""

from __future__ import annotations

import itertools
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

import securemodel
from benchmarks.cases import PARTIES, Case
from benchmarks.steps import StepCase, step_program
from protocols import identity
from protocols.channel import HEADER_BYTES
from securemodel.compiler.wire import message_bytes, steps

SYSTEM = {
    "tls": "securemodel",
    "plain": "securemodel, no TLS",
    "local": "securemodel, one process",
    "fast": "securemodel, fast rounding",
}


@dataclass(frozen=True)
class Row:
    """One measurement; seconds run from inputs shared to result shared, or from step to step, dealer included."""

    case: str
    system: str
    parties: int
    seconds: float | None
    rounds: int | None
    sent_bytes_per_party: int | None
    preprocessing_bytes: int | None
    error: float | None
    machine: str
    whole_run_seconds: float | None = None
    load_seconds: float | None = None
    compile_seconds: float | None = None
    peak_memory_bytes: int | None = None
    plaintext_seconds: float | None = None


def machine() -> str:
    """Cores and processor of this machine."""
    name = platform.processor() or platform.machine()
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text()
        name = next(line.split(":")[1].strip() for line in cpuinfo.splitlines() if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores, {name}"


def plaintext_seconds(case: Case | StepCase, repeat: int = 5) -> float:
    """Median time of plain torch, or of what the case says, on one thread."""
    trains = isinstance(case, StepCase)
    if trains:
        training = case.build()
        compute, inputs = training.step, training.batch
    else:
        compute, inputs = (case.clear(), ()) if case.clear else case.build()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = []
    with torch.set_grad_enabled(trains):
        for _ in range(repeat + 1):
            start = time.perf_counter()
            compute(*inputs)
            times.append(time.perf_counter() - start)
    torch.set_num_threads(threads)
    return statistics.median(times[1:])


def compiled(case: Case | StepCase, transport: str = "tls") -> tuple[securemodel.Program, Sequence[torch.Tensor]]:
    """The case's program and its inputs; results are truncated, as the peers' are."""
    rounding = "fast" if transport == "fast" else "exact"
    if isinstance(case, StepCase):
        return step_program(case, PARTIES, rounding)
    model, inputs = case.build()
    program = securemodel.compile(
        model,
        inputs,
        weights=PARTIES[0],
        inputs=case.inputs,
        outputs=PARTIES[1],
        parties=PARTIES,
        width=case.width,
        rounding=rounding,
        truncate_outputs=True,
    )
    return program, inputs


def evaluation_bytes(program: securemodel.Program) -> int:
    """Bytes the busiest party sends between inputs shared and result shared (the peers' definition); of a step, all."""
    start, *rest = ((step.talk, not index) for index, step in enumerate(steps(program.graph, "run")))
    if any(node.op == "keep" for node in program.graph.nodes):
        rest = [start, *rest]
    else:
        rest = [(tuple(node for node in talk if node.op != "reveal"), False) for talk, _ in rest]
    sent = {
        (a, b): [message_bytes(talk, a, b, first) for talk, first in rest]
        for a, b in itertools.permutations(program.parties, 2)
    }
    return max(
        sum(HEADER_BYTES + size for (a, _), sizes in sent.items() if a == me for size in sizes if size)
        for me in program.parties
    )


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for sock in sockets:
        sock.bind(("127.0.0.1", 0))
    ports = [sock.getsockname()[1] for sock in sockets]
    for sock in sockets:
        sock.close()
    return ports


def write_configuration(directory: Path, tls: bool) -> None:
    """Identities and one party file per process."""
    names = (*PARTIES, identity.DEALER)
    lines = []
    for name, port in zip(names, _free_ports(len(names)), strict=True):
        section = "dealer" if name == identity.DEALER else f"parties.{name}"
        lines += [f"[{section}]", f'address = "127.0.0.1:{port}"']
        if tls:
            made = identity.create(name, directory / name)
            lines.append(f'certificate = "{made.certificate_path.relative_to(directory).as_posix()}"')
    for name in names:
        own = [*lines, "[me]", f'identity = "{name}"'] if tls else lines
        (directory / f"{name}.toml").write_text("\n".join(own) + "\n")


def measure(case: Case, transport: str, repeat: int, plain: float) -> Row:
    """Medians over `repeat` runs after one warm-up run. Raises RuntimeError when a process fails.

    transport: "tls", "plain", or "fast" for TLS with fast rounding.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_configuration(directory, transport != "plain")
        names = (identity.DEALER, *PARTIES)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "benchmarks.worker", folder, case.name, transport, str(repeat)]
        processes = [subprocess.Popen([*command, name], env=environment) for name in names]
        _wait_for_all(case.name, processes)
        results = {name: json.loads((directory / f"{name}.json").read_text()) for name in PARTIES}
    times = _step_times(results) if isinstance(case, StepCase) else _run_times(results)
    first, last = (results[name] for name in PARTIES)
    return Row(
        case=case.name,
        system=SYSTEM[transport],
        parties=len(PARTIES),
        seconds=statistics.median(times),
        rounds=max(r["rounds"] for r in results.values()),
        sent_bytes_per_party=last["evaluation_bytes"],
        preprocessing_bytes=last["preprocessing_bytes"],
        error=last["error"],
        machine=machine(),
        whole_run_seconds=statistics.median(r["seconds"] for r in last["runs"]),
        load_seconds=last["load_seconds"],
        compile_seconds=first["compile_seconds"],
        peak_memory_bytes=max(r["peak_memory_bytes"] for r in results.values()),
        plaintext_seconds=plain,
    )


def _run_times(results: dict[str, dict]) -> list[float]:
    """Seconds of each run, from inputs shared to result shared."""
    runs = zip(*(results[name]["runs"] for name in PARTIES), strict=True)
    return [max(r["result_shared"] for r in run) - min(r["inputs_shared"] for r in run) for run in runs]


def _step_times(results: dict[str, dict]) -> list[float]:
    """Seconds from the end of each step to the end of the next one, at the party that is last."""
    ends = [max(run) for run in zip(*(results[name]["ends"] for name in PARTIES), strict=True)]
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def _wait_for_all(case: str, processes: list[subprocess.Popen]) -> None:
    """Waits; when one process fails, ends the others at once."""
    while any(process.poll() is None for process in processes):
        if any(process.poll() for process in processes):
            for process in processes:
                process.terminate()
        time.sleep(0.05)
    if any(process.returncode for process in processes):
        raise RuntimeError(f"case {case}: a process failed; its output is above")


def measure_local(case: Case, repeat: int, plain: float) -> Row:
    """All parties and the dealer in this process: no sockets, no second core."""
    start = time.perf_counter()
    program, inputs = compiled(case)
    compile_seconds = time.perf_counter() - start
    times = []
    with securemodel.local(program) as session:
        for _ in range(repeat + 1):
            session.run(*inputs)
            times.append(session.stats.seconds)
        stats = session.stats
        load_seconds = session.load_stats.seconds
    return Row(
        case=case.name,
        system=SYSTEM["local"],
        parties=len(PARTIES),
        seconds=statistics.median(times[1:]),
        rounds=stats.rounds,
        sent_bytes_per_party=evaluation_bytes(program),
        preprocessing_bytes=stats.preprocessing_bytes,
        error=None,
        machine=machine(),
        load_seconds=load_seconds,
        compile_seconds=compile_seconds,
        plaintext_seconds=plain,
    )


def as_json(rows: list[Row]) -> str:
    """Rows as JSON text."""
    return json.dumps([asdict(row) for row in rows], indent=1)
