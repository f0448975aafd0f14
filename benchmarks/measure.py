"""Runs one case with three processes over loopback, of one build or of two in turns, and tells what it took."""

from __future__ import annotations

import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch

import securemodel
from benchmarks.builds import Build
from benchmarks.cases import PARTIES, Case
from benchmarks.rows import NOT_KNOWN, SYSTEM, Row, row_of
from benchmarks.steps import StepCase, step_program
from protocols import identity, kernels
from protocols.channel import HEADER_BYTES
from protocols.channel.testing import free_addresses
from securemodel.compiler.wire import message_bytes, steps

_CONNECT_S = 900  # parties of a large model compile for minutes; when one process fails, all are ended at once
_TUNED_ERROR = 2.0**-8
_GRACE_S = 2.0
_LOCAL = """
import json, sys
from dataclasses import asdict
from benchmarks.cases import BY_NAME
from benchmarks.measure import measure_local
print(json.dumps(asdict(measure_local(BY_NAME[sys.argv[1]], int(sys.argv[2]), 0.0))))
"""


class CaseFailed(RuntimeError):
    """A case that could not be measured; the text is the first line of what went wrong."""


@dataclass(frozen=True)
class Turn:
    """What one turn of a build brought: seconds of each timed run, and the rest as a row."""

    times: list[float]
    row: Row


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
    if case.margin:
        found = securemodel.tune(program, *inputs, tolerance=_TUNED_ERROR, margin=case.margin, tables=False)
        program = found.program
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


def write_configuration(directory: Path, tls: bool) -> None:
    """Identities and one party file per process."""
    names = (*PARTIES, identity.DEALER)
    lines = []
    for name, address in zip(names, free_addresses(len(names)), strict=True):
        section = "dealer" if name == identity.DEALER else f"parties.{name}"
        lines += [f"[{section}]", f'address = "{address}"']
        if tls:
            made = identity.create(name, directory / name)
            lines.append(f'certificate = "{made.certificate_path.relative_to(directory).as_posix()}"')
    lines += ["[timeouts]", f"connect_s = {_CONNECT_S}"]
    for name in names:
        own = [*lines, "[me]", f'identity = "{name}"'] if tls else lines
        (directory / f"{name}.toml").write_text("\n".join(own) + "\n")


def measure(
    case: Case | StepCase, transport: str, repeat: int, plain: float, builds: Sequence[Build], turns: int = 1
) -> list[Row]:
    """A row for each build: medians over `repeat` runs of each turn, after a warm-up run; the builds take turns.

    transport: "tls", "plain", "fast" for TLS with fast rounding, or "local" for one process. A build that fails is a
    row that says why, and has no more turns. The first build is compared with the second where both were measured.
    """
    found: dict[str, list[Turn]] = {build.name: [] for build in builds}
    failed: dict[str, Row] = {}
    for _ in range(turns):
        for build in (build for build in builds if build.name not in failed):
            try:
                found[build.name].append(_turn(case, transport, repeat, build))
            except CaseFailed as error:
                failed[build.name] = failed_row(case, transport, repeat, build, str(error))
    rows = []
    for build in builds:
        seconds = statistics.median(x for turn in found[build.name] for x in turn.times) if found[build.name] else None
        made = {"seconds": seconds, "plaintext_seconds": plain, "repeat": repeat, "items": case.items}
        made |= {"system": build.system(SYSTEM[transport]), "commit": build.commit, "machine": machine()}
        rows.append(failed.get(build.name) or replace(found[build.name][-1].row, **made))
    if len(builds) == 2 and not failed:
        rows[0] = _compared(rows[0], *found.values())
    return rows


def failed_row(case: Case | StepCase, transport: str, repeat: int, build: Build, problem: str) -> Row:
    """The row of a case that could not be measured."""
    made = {"kernels": kernels.info()["variant"], "commit": build.commit, "repeat": repeat, "items": case.items}
    system = build.system(SYSTEM[transport])
    return Row(case.name, system, len(PARTIES), None, None, None, None, None, machine(), problem=problem, **made)


def _compared(row: Row, ours: Sequence[Turn], theirs: Sequence[Turn]) -> Row:
    """Our row with the ratio of the fastest runs, and the spread of the ratios of medians over turns."""
    fastest = [min(x for turn in turns for x in turn.times) for turns in (ours, theirs)]
    ratios = [statistics.median(a.times) / statistics.median(b.times) for a, b in zip(ours, theirs, strict=True)]
    return replace(row, ratio=fastest[0] / fastest[1], lowest_ratio=min(ratios), highest_ratio=max(ratios))


def _turn(case: Case | StepCase, transport: str, repeat: int, build: Build) -> Turn:
    """Measures one build once. Raises CaseFailed."""
    if build.cases is not None and case.name not in build.cases:
        raise CaseFailed(NOT_KNOWN)
    if transport != "local":
        return _by_processes(case, build.transport(transport), repeat, build)
    asked = build.ask("-c", _LOCAL, case.name, str(repeat))
    if asked.returncode:
        raise CaseFailed(f"the process ended with {_status(asked.returncode)}; its output is above")
    row = row_of(json.loads(asked.stdout.splitlines()[-1]))
    return Turn([cast(float, row.seconds)], replace(row, kernels=row.kernels or str(kernels.info()["variant"])))


def _by_processes(case: Case | StepCase, transport: str, repeat: int, build: Build) -> Turn:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write_configuration(directory, transport != "plain")
        words = ["-m", "benchmarks.worker", folder, case.name, transport, str(repeat)]
        processes = {name: build.start(*words, name) for name in (identity.DEALER, *PARTIES)}
        _wait_for_all(directory, processes)
        results = {name: json.loads((directory / f"{name}.json").read_text()) for name in PARTIES}
    times = _step_times(results) if isinstance(case, StepCase) else _run_times(results)
    first, last = (results[name] for name in PARTIES)
    row = Row(
        case=case.name,
        system=SYSTEM[transport],
        parties=len(PARTIES),
        seconds=None,
        rounds=max(r["rounds"] for r in results.values()),
        sent_bytes_per_party=last["evaluation_bytes"],
        preprocessing_bytes=last["preprocessing_bytes"],
        error=last["error"],
        machine=machine(),
        whole_run_seconds=statistics.median(r["seconds"] for r in last["runs"]),
        load_seconds=last["load_seconds"],
        compile_seconds=first["compile_seconds"],
        peak_memory_bytes=max(r["peak_memory_bytes"] for r in results.values()),
        kernels=last.get("kernels", kernels.info()["variant"]),
    )
    return Turn(times, row)


def _run_times(results: dict[str, dict]) -> list[float]:
    """Seconds of each run, from inputs shared to result shared."""
    runs = zip(*(results[name]["runs"] for name in PARTIES), strict=True)
    return [max(r["result_shared"] for r in run) - min(r["inputs_shared"] for r in run) for run in runs]


def _step_times(results: dict[str, dict]) -> list[float]:
    """Seconds from the end of each step to the end of the next one, at the party that is last."""
    ends = [max(run) for run in zip(*(results[name]["ends"] for name in PARTIES), strict=True)]
    return [later - earlier for earlier, later in itertools.pairwise(ends)]


def _wait_for_all(directory: Path, processes: Mapping[str, subprocess.Popen]) -> None:
    """Waits; when one process fails, ends the others. Raises CaseFailed with what the one said that failed first."""
    failed: dict[str, int] = {}
    try:
        while not failed and any(process.poll() is None for process in processes.values()):
            time.sleep(0.05)
            failed = {name: process.returncode for name, process in processes.items() if process.poll()}
        deadline = time.monotonic() + _GRACE_S  # for the others to say what they saw
        while failed and time.monotonic() < deadline and any(process.poll() is None for process in processes.values()):
            time.sleep(0.05)
        failed |= {name: process.returncode for name, process in processes.items() if process.poll()}
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    if failed:
        raise CaseFailed(_cause(directory, failed))


def _cause(directory: Path, failed: Mapping[str, int]) -> str:
    """One line; a process that complains about another is not the cause, even if it ended first."""
    said = {}
    for name, code in failed.items():
        path = directory / f"{name}.problem"
        said[name] = json.loads(path.read_text()) if path.exists() else {"line": _status(code), "of_peer": False}
    name = next((name for name, problem in said.items() if not problem["of_peer"]), next(iter(said)))
    return f"{name}: {said[name]['line']}"


def _status(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code} ({signal.strsignal(-code)})"


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
        kernels=str(kernels.info()["variant"]),
    )
