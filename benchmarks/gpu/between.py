"""Cases between three processes and between three threads over loopback sockets: both parties, and the dealer.

One of the processes: `python -m benchmarks.gpu.between FOLDER ROLE DEVICE DRY NAME...`, which takes part in all jobs.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import securemodel
from benchmarks.cases import PARTIES
from benchmarks.gpu.place import Place, digest
from benchmarks.gpu.work import named, program_of
from benchmarks.measure import write_configuration
from protocols import identity
from protocols.channel.testing import run_together
from protocols.names import PUBLIC
from securemodel.engines.masked.dealer import serve

REPEAT = 3
_ROLES = (identity.DEALER, *PARTIES)
_POLL_S = 0.05


class Job(NamedTuple):
    """What is measured: a case, what all three compute on, and "tls" or "plain"."""

    name: str
    device: str
    transport: str


Report = dict[str, Any]


def jobs(names: Sequence[str], device: str) -> list[Job]:
    """All of these cases on the device and on the CPU, without TLS and with it."""
    devices = dict.fromkeys((device, "cpu"))
    return [Job(name, on, transport) for name in names for on in devices for transport in ("plain", "tls")]


def measure(place: Place, names: Sequence[str], kind: str, limit_s: float) -> Iterator[tuple[Job, Report]]:
    """Each job with what came of it, as soon as it is there. kind: "processes" or "threads".

    Seconds are those of a run from inputs shared to result shared, and of whole runs. Raises what ended a party.
    """
    with tempfile.TemporaryDirectory() as folder:
        for transport in ("plain", "tls"):
            (Path(folder) / transport).mkdir()
            write_configuration(Path(folder) / transport, transport == "tls")
        run = _by_processes if kind == "processes" else _by_threads
        for job, reports in run(place, Path(folder), names, limit_s):
            yield job, _together(reports)


def _together(reports: Sequence[Report]) -> Report:
    runs = list(zip(*(report["runs"] for report in reports), strict=True))[1:]
    online = [max(run["shared"][1] for run in each) - min(run["shared"][0] for run in each) for each in runs]
    last = reports[-1]
    return {
        "seconds": statistics.median(online), "fastest": min(online),
        "whole_run_seconds": statistics.median(max(run["seconds"] for run in each) for each in runs),
        "rounds": last["rounds"], "preprocessing_bytes": last["preprocessing_bytes"],
        "sent_bytes": [report["sent_bytes"] for report in reports], "digest": last["digest"],
    }  # fmt: skip


def _take_part(folder: Path, role: str, job: Job, made: tuple[securemodel.Program, Sequence[torch.Tensor]]) -> Report:
    """One party's runs."""
    (program, inputs), tls = made, job.transport == "tls"
    config = identity.load_config(folder / job.transport / f"{role}.toml", require_certificates=tls)
    given = [x if owner in (role, PUBLIC) else None for x, owner in zip(inputs, program.header.inputs, strict=True)]
    options = {"ahead": False, "insecure_plain": not tls, "ledger": False, "device": job.device}
    runs, output = [], None
    with _own_stream(job.device), securemodel.connect(program, role, config, **options) as session:
        session.walk.deal_after_inputs = True
        session.load(program, program.model)
        for _ in range(1 + REPEAT):
            output = session.run(*given)
            runs.append({"shared": session.shared_times, "seconds": session.stats.seconds})
        counted = session.stats
    return {
        "runs": runs, "rounds": counted.rounds, "preprocessing_bytes": counted.preprocessing_bytes,
        "sent_bytes": counted.sent_bytes[role], "digest": digest(output),
    }  # fmt: skip


def _own_stream(device: str) -> AbstractContextManager[object]:
    """Threads that compute on a GPU do not wait for each other there."""
    return torch.cuda.stream(torch.cuda.Stream(device)) if torch.device(device).type == "cuda" else nullcontext()


def _deal(folder: Path, job: Job) -> None:
    tls = job.transport == "tls"
    config = identity.load_config(folder / job.transport / f"{identity.DEALER}.toml", require_certificates=tls)
    own = identity.load(config.identity) if tls else None
    serve(config, own, once=True, insecure_plain=not tls, device=job.device)


def _by_threads(
    place: Place, folder: Path, names: Sequence[str], limit_s: float
) -> Iterator[tuple[Job, Sequence[Report]]]:
    deadline = time.monotonic() + limit_s
    for name in names:
        made = program_of(named(name, place.dry))
        for job in jobs([name], str(place.device)):
            calls: dict[str, Callable[[], Any]] = {
                role: partial(_take_part, folder, role, job, made) for role in PARTIES
            }
            results = run_together({**calls, identity.DEALER: partial(_deal, folder, job)}, deadline - time.monotonic())
            for result in results.values():
                if isinstance(result, BaseException):
                    raise result
            yield job, [results[role] for role in PARTIES]


def _by_processes(
    place: Place, folder: Path, names: Sequence[str], limit_s: float
) -> Iterator[tuple[Job, Sequence[Report]]]:
    words = [sys.executable, "-m", "benchmarks.gpu.between", str(folder)]
    rest = [str(place.device), str(int(place.dry)), *names]
    processes = {role: subprocess.Popen([*words, role, *rest]) for role in _ROLES}
    deadline = time.monotonic() + limit_s
    try:
        for at, job in enumerate(jobs(names, str(place.device))):
            while not all(_told(folder, role, at) for role in PARTIES):
                failed = [role for role, process in processes.items() if process.poll()]
                if failed or time.monotonic() > deadline:
                    why = f"{failed[0]} failed" if failed else f"not done after {limit_s:.0f} s"
                    raise RuntimeError(f"{job}: {why}")
                time.sleep(_POLL_S)
            yield job, [json.loads(_told(folder, role, at)) for role in PARTIES]
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def _told(folder: Path, role: str, at: int) -> str:
    """What a party wrote of a job; empty while it has not."""
    path = folder / f"{role}.{at}.json"
    return path.read_text() if path.exists() else ""


def main(folder: str, role: str, device: str, dry: str, *names: str) -> None:
    """Takes part in all jobs as one process, and writes what it saw of each to FOLDER/ROLE.NUMBER.json."""
    at = 0
    for name in names:
        made = None if role == identity.DEALER else program_of(named(name, dry == "1"))
        for job in jobs([name], device):
            if made is None:
                _deal(Path(folder), job)
            else:
                path = Path(folder) / f"{role}.{at}.json"
                path.with_suffix(".new").write_text(json.dumps(_take_part(Path(folder), role, job, made)))
                path.with_suffix(".new").rename(path)
            at += 1


if __name__ == "__main__":
    main(*sys.argv[1:])
