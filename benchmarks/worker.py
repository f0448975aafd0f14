"""One process of a measurement: `python -m benchmarks.worker FOLDER CASE TRANSPORT REPEAT ROLE`."""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import torch

import securemodel
from benchmarks.cases import BY_NAME, PARTIES
from benchmarks.measure import compiled, evaluation_bytes
from benchmarks.steps import StepCase
from protocols import identity, kernels
from protocols.errors import PeerError
from protocols.names import PUBLIC
from securemodel.engines.masked.dealer import serve


def main(folder: str, case_name: str, transport: str, repeat: str, role: str) -> None:
    """Takes part in one measurement and writes what it saw to FOLDER/ROLE.json."""
    torch.set_num_threads(1)
    directory, tls = Path(folder), transport != "plain"
    config = identity.load_config(directory / f"{role}.toml", require_certificates=tls)
    if role == identity.DEALER:
        own = identity.load(config.identity) if tls else None
        serve(config, own, once=True, insecure_plain=not tls)
        return
    case = BY_NAME[case_name]
    start = time.perf_counter()
    program, inputs = compiled(case, transport)
    compile_seconds = time.perf_counter() - start
    trains = isinstance(case, StepCase)
    given = [x if owner in (role, PUBLIC) else None for x, owner in zip(inputs, program.header.inputs, strict=True)]
    options = {"ahead": trains, "insecure_plain": not tls, "ledger": False}
    with securemodel.connect(program, role, config, **options) as session:
        session.walk.deal_after_inputs = not trains
        session.load(program, program.model)
        before = _peak_memory()
        runs, ends, output = [], [], None
        for _ in range(int(repeat) + 1):
            output = session.run(*given)
            shared, done = session.shared_times
            ends.append(time.perf_counter())
            runs.append({"inputs_shared": shared, "result_shared": done, "seconds": session.stats.seconds})
        report = {
            "runs": runs[1:],
            "ends": ends,
            "rounds": session.stats.rounds,
            "evaluation_bytes": evaluation_bytes(program),
            "preprocessing_bytes": session.stats.preprocessing_bytes,
            "load_seconds": session.load_stats.seconds,
            "compile_seconds": compile_seconds,
            "peak_memory_bytes": _peak_memory() - before,
            "kernels": kernels.info()["variant"],
            "error": _error(program.model, inputs, output) if role == PARTIES[1] and not trains else None,
        }
    (directory / f"{role}.json").write_text(json.dumps(report))


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _error(model: torch.nn.Module, inputs, output: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(*inputs).to(torch.float64) - output.to(torch.float64)).abs().max().item()


def _tell(folder: str, role: str, error: Exception) -> None:
    """Leaves the first line of an error for who started this process."""
    line = next(iter(str(error).splitlines()), "")
    problem = {"line": f"{type(error).__name__}: {line}", "of_peer": isinstance(error, PeerError)}
    (Path(folder) / f"{role}.problem").write_text(json.dumps(problem))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Exception as error:
        _tell(sys.argv[1], sys.argv[-1], error)
        raise
