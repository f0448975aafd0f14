"""Times CrypTen with two parties.

Runs in .venv-crypten:

    .venv-crypten/bin/python benchmarks/peers/crypten_runner.py --cases relu,lenet5_b1 --out crypten.json

Two processes joined by gloo over TCP on this host, one torch thread each, links not encrypted, 16 fraction bits,
inputs and weights secret. Correlated randomness comes from CrypTen's default provider, in which party 0 makes, and so
knows, every triple: the figures are better than a safe setting would allow. Timed is a run after a warm-up, from a
common start until the slower party is done; sharing of inputs and opening of the result are outside.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import crypten_sequences
from common import (
    CASES,
    ELEMENTS,
    FEATURES,
    MLP_SIZES,
    RATE,
    RESNET18,
    VGG16,
    Row,
    arguments,
    batch_of,
    chosen_cases,
    is_training,
    row,
    run_all,
    run_children,
)

PARTIES = 2


def import_crypten() -> Any:
    """CrypTen 0.4.1 imports a private part of torch that is gone; its ONNX export alone would use it."""
    missing = types.ModuleType("torch.onnx._internal.registration")
    missing.registry = types.SimpleNamespace()
    sys.modules.setdefault(missing.__name__, missing)
    import crypten

    return crypten


def program(case: str) -> tuple[Callable[..., Any], list[Any]]:
    """The case as a function and its arguments; the function takes torch tensors and CrypTen's tensors alike.

    Both kinds of tensor have `relu`, `matmul`, `flatten` and arithmetic as methods; `convolve` and the poolings below
    bridge the rest.
    """
    import torch

    data = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=data)

    if case == "product":
        return (lambda x, y: x * y), [normal(ELEMENTS), normal(ELEMENTS)]
    if case == "relu":
        return (lambda x: x.relu()), [normal(ELEMENTS)]
    if case == "sign":
        return (lambda x: x > 0), [normal(ELEMENTS)]
    if case.startswith("matmul"):
        size = int(case.removeprefix("matmul"))
        return (lambda x, y: x.matmul(y)), [normal(size, size), normal(size, size)]
    if case == "conv":
        return (lambda x, w: convolve(x, w, padding=1)), [normal(1, 64, 56, 56), normal(64, 64, 3, 3)]
    if case == "maxpool":
        return max_pool, [normal(16, 32, 32, 32)]
    if case == "sort":
        raise SystemExit("CrypTen has no sort")
    if is_training(case):
        return training(case, data)
    return crypten_sequences.program(case) or model(case, data)


def training(case: str, data: Any) -> tuple[Callable[..., Any], list[Any]]:
    """A step of SGD: a function of (labels, images, weight, bias, ...), labels one-hot or of 0 and 1.

    It gives the first weight after the step, and computes all.
    """
    import torch

    forward, args = model(case, data)
    if case.startswith("logreg"):
        labels = torch.randint(2, (batch_of(case), 1), generator=data).float()
    else:
        labels = torch.eye(MLP_SIZES[-1])[torch.randint(MLP_SIZES[-1], (batch_of(case),), generator=data)]

    def step(y: Any, x: Any, *flat: Any) -> Any:
        import crypten

        weights = [w.detach() for w in flat]
        with torch.enable_grad(), crypten.enable_grad():
            for w in weights:
                w.requires_grad = True
            z = forward(x, *weights)
            chances = z.detach().sigmoid() if case.startswith("logreg") else z.detach().softmax(1)
            z.backward((chances - y) * (1 / batch_of(case)))
        after = [w.detach() - w.grad * RATE for w in weights]
        return after[0]

    return step, [labels, *args]


def convolve(x: Any, w: Any, stride: int = 1, padding: int = 0) -> Any:
    import torch

    if isinstance(x, torch.Tensor):
        return torch.nn.functional.conv2d(x, w, stride=stride, padding=padding)
    return x.conv2d(w, stride=stride, padding=padding)


def max_pool(x: Any) -> Any:
    import torch

    return torch.nn.functional.max_pool2d(x, 2) if isinstance(x, torch.Tensor) else x.max_pool2d(2)


def model(case: str, data: Any) -> tuple[Callable[..., Any], list[Any]]:
    """A model with random weights and random pixels: a function of (images, weight, bias, weight, bias, ...)."""
    import torch

    def layer(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A convolution's weight [out, in, height, width] or a dense layer's [in, out], and its bias."""
        outputs = shape[0] if len(shape) == 4 else shape[1]
        fan_in = torch.Size(shape).numel() // outputs
        bias = torch.randn((outputs, 1, 1) if len(shape) == 4 else (outputs,), generator=data) * 0.01
        return torch.randn(shape, generator=data) / fan_in**0.5, bias

    def images(*shape: int) -> torch.Tensor:
        return torch.rand((batch_of(case), *shape), generator=data)

    def conv(x: Any, wb: Any, stride: int = 1, padding: int = 0) -> Any:
        return convolve(x, wb[0], stride, padding) + wb[1]

    def convs(widths: list[int], size: int) -> list[Any]:
        return [layer(d, c, size, size) for c, d in pairwise(widths)]

    def dense(sizes: tuple[int, ...]) -> list[Any]:
        return [layer(*pair) for pair in pairwise(sizes)]

    def mlp(x: Any, layers: list[Any]) -> Any:
        for weight, bias in layers[:-1]:
            x = (x.matmul(weight) + bias).relu()
        return x.matmul(layers[-1][0]) + layers[-1][1]

    def lenet5(x: Any, layers: list[Any]) -> Any:
        x = max_pool(conv(x, layers[0], padding=2).relu())
        x = max_pool(conv(x, layers[1]).relu())
        return mlp(x.flatten(start_dim=1), layers[2:])

    def vgg16(x: Any, layers: list[Any]) -> Any:
        rest = list(layers)
        for channels in VGG16:
            x = conv(x, rest.pop(0), padding=1).relu() if channels else max_pool(x)
        return mlp(x.flatten(start_dim=1), rest)

    def resnet18(x: Any, layers: list[Any]) -> Any:
        rest = list(layers)
        x = conv(x, rest.pop(0), padding=1).relu()
        width = 64
        for channels, stride in RESNET18:
            y = conv(conv(x, rest.pop(0), stride, 1).relu(), rest.pop(0), padding=1)
            x = (y + (conv(x, rest.pop(0), stride) if channels != width else x)).relu()
            width = channels
        return mlp(x.mean((2, 3)), rest)

    def resnet18_layers() -> list[Any]:
        layers, width = [layer(64, 3, 3, 3)], 64
        for channels, _ in RESNET18:
            layers += convs([width, channels, channels], 3)
            layers += convs([width, channels], 1) if channels != width else []
            width = channels
        return [*layers, layer(512, 10)]

    if case.startswith("logreg"):
        forward, layers, x = mlp, dense((FEATURES, 1)), images(FEATURES)
    elif case.startswith("mlp"):
        forward, layers, x = mlp, dense(MLP_SIZES), images(784)
    elif case.startswith("lenet5"):
        forward, layers, x = lenet5, [*convs([1, 6, 16], 5), *dense((400, 120, 84, 10))], images(1, 28, 28)
    elif case.startswith("vgg16"):
        widths = [3, *(channels for channels in VGG16 if channels)]
        forward, layers, x = vgg16, [*convs(widths, 3), *dense((512, 256, 256, 10))], images(3, 32, 32)
    elif case.startswith("resnet18"):
        forward, layers, x = resnet18, resnet18_layers(), images(3, 32, 32)
    else:
        raise ValueError(f"no program for case {case!r}; the cases are {', '.join(CASES)}")

    def run(x: Any, *flat: Any) -> Any:
        return forward(x, list(zip(flat[::2], flat[1::2])))

    return run, [x, *(tensor for pair in layers for tensor in pair)]


def measure(case: str, repeat: int) -> Row:
    """One party's process: times one case and compares the opened result with torch's own."""
    crypten = import_crypten()
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    function, args = program(case)
    crypten.init()
    communicator = crypten.communicator.get()
    secret = [crypten.cryptensor(tensor, src=0) for tensor in args]

    def most(value: float) -> float:
        """The largest of all parties' values."""
        values = [torch.zeros(1, dtype=torch.float64) for _ in range(PARTIES)]
        dist.all_gather(values, torch.tensor([value], dtype=torch.float64))
        return max(each.item() for each in values)

    def timed() -> tuple[float, Any]:
        communicator.barrier()
        start = time.perf_counter()
        result = function(*secret)
        return most(time.perf_counter() - start), result

    with crypten.no_grad():
        first, _ = timed()
        times = [timed()[0] for _ in range(repeat)]
        crypten.cfg.communicator.verbose = True
        communicator.reset_communication_stats()
        result = function(*secret)
        counted = communicator.get_communication_stats()
        crypten.cfg.communicator.verbose = False
        opened = result.get_plain_text().double()
    return {
        "first_seconds": first,
        "seconds": statistics.median(times),
        "rounds": int(most(counted["rounds"])),
        "sent_bytes_per_party": int(most(counted["bytes"] / 2)),  # it counts what is sent and what is received
        "error": (opened - function(*args).double()).abs().max().item(),
    }


def measure_as(rank: int, meeting: str, case: str, repeat: int) -> None:
    """The whole life of a party's process."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(PARTIES), RENDEZVOUS=f"file://{meeting}", DISTRIBUTED_BACKEND="gloo"
    )
    report = measure(case, repeat)
    print(json.dumps(report), flush=True)
    import torch.distributed as dist

    dist.barrier()
    os._exit(0)  # gloo's threads need not be waited for


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--child", nargs=3, metavar=("RANK", "FILE", "CASE"), help="(internal) one party of one case")
    options = parser.parse_args()
    if options.child:
        rank, meeting, case = options.child
        return measure_as(int(rank), meeting, case, options.repeat)

    def rows(case: str) -> list[Row]:
        with tempfile.TemporaryDirectory() as folder:
            start = [sys.executable, "-W", "ignore", __file__, "--repeat", str(options.repeat), "--child"]
            commands = [[*start, str(rank), os.path.join(folder, "meeting"), case] for rank in range(PARTIES)]
            return [row(case, "CrypTen", PARTIES, run_children(commands, options.timeout))]

    run_all(chosen_cases(parser, options), rows, options.out)


if __name__ == "__main__":
    main()
