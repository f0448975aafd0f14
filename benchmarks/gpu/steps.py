"""One step of `benchmarks/gpu/run.sh`: `python -m benchmarks.gpu.steps STEP FILE [--dry-run]`."""

from __future__ import annotations

import json
import platform
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import securemodel
from benchmarks.cases import BY_NAME, PARTIES
from benchmarks.measure import compiled, machine
from protocols import devices, kernels

KEY, NONCE = bytes(range(32)), bytes(12)
SMALL = ("relu", "matmul1024", "lenet5_b32", "encoder_layer")
LARGE = ("resnet18_b1", "vgg16_b1", "minilm6", "bert_base_128")
_REPEAT = 3


@dataclass(frozen=True)
class Place:
    """Where results go, and what is measured: the GPU, or with a dry run the CPU, on little."""

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

    def seconds(self, call: Callable[[], object]) -> float:
        """The shortest of a few times, after one that is not counted."""
        times = []
        for _ in range(1 + _REPEAT):
            self.wait()
            start = time.perf_counter()
            call()
            self.wait()
            times.append(time.perf_counter() - start)
        return min(times[1:])

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def ring(*shape: int) -> torch.Tensor:
    """Ring values, the same each time."""
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=torch.Generator().manual_seed(5))


def look_at_machine(place: Place) -> None:
    """Versions, and how fast bytes move on the device and between it and main memory."""
    name = machine() if place.dry else torch.cuda.get_device_name(place.device)
    place.say(step="machine", device=name, torch=torch.__version__, python=platform.python_version(), **kernels.info())
    x = ring(1 << (16 if place.dry else 27)).to(place.device)
    moved: dict[str, tuple[Callable[[], object], int]] = {
        "copy": (x.clone, 2),
        "to the host": (lambda: devices.to_host([x]), 1),
    }
    host = devices.to_host([x])[0]
    moved["from the host"] = (lambda: devices.to_device(host, place.device), 1)
    for what, (call, times) in moved.items():
        place.say(step="machine", what=what, gb_per_s=times * 8 * x.numel() / place.seconds(call) / 1e9)


On = Callable[[torch.Tensor], torch.Tensor]


def families(n: int) -> dict[str, Callable[[On], torch.Tensor]]:
    """A call of each family of kernels, of operands that are brought somewhere first."""
    x, y, bits, small = ring(n), ring(n) >> 3, ring(-(-n // 64)), torch.zeros(n, dtype=torch.int16)
    side = min(256, int(n**0.5))
    square, image = x[: side * side].view(side, side), x[:64].view(1, 1, 8, 8)
    return {
        "chacha20": lambda on: kernels.chacha20(on(x.clone()), KEY, NONCE, "sub", 3),
        "chacha20, 16 bits": lambda on: kernels.chacha20(on(small.clone()), KEY, NONCE, "add"),
        "matmul": lambda on: kernels.matmul(on(square), on(square.t())),
        "conv2d": lambda on: kernels.conv2d(on(image), on(image[..., :3, :3].contiguous()), 1, 1),
        "thermometer": lambda on: kernels.thermometer(on(x), 47, 3),
        "leaves": lambda on: kernels.leaves(on(x), kernels.thermometer(on(y), 47), 47, 0, 5),
        "msb_plane": lambda on: kernels.msb_plane(on(x), 63, 9),
        "truncate": lambda on: kernels.truncate(on(x), on(y), on(small), 16, 1, 1 << 15),
        "select": lambda on: kernels.select(on(bits), on(x), None, on(y), on(x), 1),
        "bit_to_ring": lambda on: kernels.bit_to_ring(on(bits), on(y), 1),
        "unit_vectors": lambda on: kernels.unit_vectors(on(x), 256),
    }


def compare(place: Place) -> None:
    """Every family of kernels on the device against the same on the CPU, bit for bit. Raises SystemExit."""
    for n in (64, 1000, 5000 if place.dry else 1 << 20):
        for what, call in families(n).items():
            here, there = call(lambda t: t), call(lambda t: t.to(place.device)).cpu()
            same = here.dtype == there.dtype and bool(torch.equal(here, there))
            place.say(step="parity", what=what, elements=n, equal=same)
            if not same:
                sys.exit(f"{what} of {n} elements differs on {place.device}")


def time_kernels(place: Place) -> None:
    """Key streams in GB/s, products in 10^12 operations a second (two for each multiplication)."""
    streams = torch.empty(1 << (16 if place.dry else 27), dtype=torch.int64, device=place.device)
    for mode in ("set", "sub"):
        took = place.seconds(partial(kernels.chacha20, streams, KEY, NONCE, mode))
        place.say(step="kernels", what=f"chacha20, {mode}", gb_per_s=8 * streams.numel() / took / 1e9)
    sizes = ((128, 768, 3072), (1024, 1024, 1024), (4096, 4096, 4096))
    for m, k, n in sizes[:1] if place.dry else sizes:
        a, b = ring(m, k).to(place.device), ring(k, n).to(place.device)
        for which in ("own", "twins"):
            with kernels.use("twins") if which == "twins" else nullcontext():
                took = place.seconds(partial(kernels.matmul, a, b))
            place.say(step="kernels", what=f"matmul {m}x{k}x{n}", kernels=which, tera_per_s=2 * m * k * n / took / 1e12)


def time_case(place: Place, name: str) -> None:
    """A case with all parties and the dealer in this process, on the device and on the CPU, beside the model in the clear."""
    case = BY_NAME[name]
    program, inputs = compiled(case, "plain")
    both, results = dict.fromkeys((str(place.device), "cpu")), []
    for device in both:
        with securemodel.local(program, device=device) as session:
            session.load(program, program.model)
            took = place.seconds(partial(session.run, *inputs))
            results.append(session.run(*inputs))
            counted = session.stats
        place.say(step="cases", case=name, device=device, seconds=took, rounds=counted.rounds,
                  preprocessing_bytes=counted.preprocessing_bytes, sent_bytes=counted.sent_bytes[PARTIES[0]])  # fmt: skip
    same = all(torch.equal(results[0], other) for other in results)
    place.say(step="cases", case=name, what="the same bits", equal=same)
    for device in both:
        for dtype in (torch.float32, torch.bfloat16):
            model, given = deepcopy(program.model).to(device, dtype), [x.to(device, dtype) for x in inputs]
            with torch.no_grad():
                took = place.seconds(partial(model, *given))
            place.say(step="cases", case=name, what="in the clear", device=device, dtype=str(dtype), seconds=took)
    if not same:
        sys.exit(f"{name} gives other bits on {place.device}")


def time_cases(place: Place, names: tuple[str, ...]) -> None:
    """These cases; of a dry run one of the small ones."""
    for name in [name for name in names if name == "lenet5_b32"] if place.dry else names:
        time_case(place, name)


STEPS: dict[str, Callable[[Place], None]] = {
    "machine": look_at_machine,
    "parity": compare,
    "kernels": time_kernels,
    "small": lambda place: time_cases(place, SMALL),
    "large": lambda place: time_cases(place, LARGE),
}

if __name__ == "__main__":
    step, file, *rest = sys.argv[1:]
    STEPS[step](Place(Path(file), "--dry-run" in rest))
