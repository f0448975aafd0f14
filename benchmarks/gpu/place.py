"""What is measured, the GPU or with a dry run the CPU, and where results go: a line of JSON for each, at once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from protocols import devices

REPEAT = 3


@dataclass(frozen=True)
class Place:
    """The device that is measured, and the file of results."""

    file: Path
    dry: bool

    @property
    def device(self) -> torch.device:
        return devices.chosen("cpu" if self.dry else "cuda")

    def say(self, **result: object) -> None:
        """A line of the file and of the terminal, at once."""
        line = json.dumps({**result, "dry_run": True} if self.dry else result)
        print(line, flush=True)
        with self.file.open("a") as file:
            file.write(line + "\n")

    def seconds(self, call: Callable[[], object], repeat: int = REPEAT) -> float:
        """The shortest of a few times, after one that is not counted."""
        times = []
        for _ in range(1 + repeat):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def digest(output: torch.Tensor | tuple | None) -> str:
    """What tells whether two runs gave the same bits; empty where nothing is revealed."""
    tensors = [x for x in (output if isinstance(output, tuple) else (output,)) if x is not None]
    return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in tensors)).hexdigest() if tensors else ""
