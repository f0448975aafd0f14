"""Whole programs on a GPU, in one process and between several, beside the CPU's engine and plain torch."""

from __future__ import annotations

import sys
import time
from copy import deepcopy
from functools import partial

import torch

import securemodel
from benchmarks.cases import PARTIES
from benchmarks.gpu import between
from benchmarks.gpu.place import Place, digest
from benchmarks.gpu.work import BETWEEN, named, names, program_of
from benchmarks.steps import StepCase
from protocols.devices import CPU


def time_work(place: Place, name: str) -> None:
    """All parties and the dealer in this process, on the device and on the CPU, beside the same in the clear."""
    work, started = named(name, place.dry), time.perf_counter()
    program, inputs = program_of(work)
    place.say(step="cases", case=name, what="compiled", seconds=time.perf_counter() - started)
    results = []
    for device in (place.device, CPU):
        with securemodel.local(program, device=device) as session:
            session.load(program, program.model)
            began = time.perf_counter()
            results.append(digest(session.run(*inputs)))
            took = time.perf_counter() - began
            if device == place.device:  # the first of many; of the CPU, which takes longer, it is the only one
                took = place.seconds(partial(session.run, *inputs))
            counted = session.stats
        place.say(step="cases", case=name, what="one process", device=str(device), seconds=took, rounds=counted.rounds,
                  preprocessing_bytes=counted.preprocessing_bytes, sent_bytes=counted.sent_bytes[PARTIES[0]],
                  digest=results[-1])  # fmt: skip
        _time_in_the_clear(place, name, device)
    place.say(step="cases", case=name, what="the same bits", equal=results[0] == results[1])
    if results[0] != results[1]:
        raise RuntimeError(f"{name} gives other bits on {place.device}")


def _time_in_the_clear(place: Place, name: str, device: torch.device) -> None:
    work = named(name, place.dry)
    for dtype in (torch.float32, torch.bfloat16):
        cast = lambda x, dtype=dtype: x.to(device, dtype) if x.is_floating_point() else x.to(device)
        if isinstance(work, StepCase):
            training = work.build()
            training.model.to(device, dtype)
            call = partial(training.step, *(cast(x) for x in training.batch))
        else:
            model, inputs = work.build()
            call = partial(deepcopy(model).to(device, dtype), *(cast(x) for x in inputs))
        with torch.set_grad_enabled(isinstance(work, StepCase)):
            place.say(step="cases", case=name, what="in the clear", device=str(device), dtype=str(dtype),
                      seconds=place.seconds(call))  # fmt: skip


def time_between(place: Place, kind: str, limit_s: float) -> None:
    """Three processes, or three threads, with sockets between them, with and without TLS, on the device and the CPU."""
    wanted = BETWEEN[:1] if place.dry and kind == "processes" else BETWEEN
    for job, found in between.measure(place, wanted, kind, limit_s):
        place.say(step="cases", case=job.name, what=kind, transport=job.transport, device=job.device, **found)


def time_all(place: Place, kind: str) -> None:
    """All "functions" or "models"; one that fails is a line that says why, and the others are measured. Raises SystemExit then."""
    failed = []
    for name in names(kind):
        try:
            time_work(place, name)
        except Exception as error:
            failed.append(name)
            place.say(step="cases", case=name, problem=f"{type(error).__name__}: {str(error)[:500]}")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")
