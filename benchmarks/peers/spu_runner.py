"""Times SecretFlow SPU, with its ABY3 (three parties) and SEMI2K (two parties) protocols.

Runs in .venv-spu:  .venv-spu/bin/python benchmarks/peers/spu_runner.py --cases relu,lenet5_b1 --out spu.json

Ring of 64 bits, the default fixed point (18 fraction bits) and default approximations. All inputs and weights are
secret. The parties are threads of one process with links in memory, as in SPU's own simulator: no network and no
encryption of links is in the figures. SEMI2K takes its correlated randomness from SPU's default first-party dealer.
Timed is the run of a compiled program in a warm runtime: compilation, sharing of inputs, the first run and the opening
of the result are outside. Images are laid out with channels last, as SPU prefers them.
"""

from __future__ import annotations

import json
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import spu_sequences
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

PROTOCOLS = {"ABY3": 3, "SEMI2K": 2}
SENT = re.compile(r"Link details: total send bytes (\d+)")


def program(case: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The case as a JAX function and its arguments, every one of which will be secret."""
    import jax.numpy as jnp
    import numpy as np

    data = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return data.standard_normal(shape).astype(np.float32)

    if case == "product":
        return (lambda x, y: x * y), (normal(ELEMENTS), normal(ELEMENTS))
    if case == "relu":
        return (lambda x: jnp.maximum(x, 0)), (normal(ELEMENTS),)
    if case == "sign":
        return (lambda x: x > 0), (normal(ELEMENTS),)
    if case.startswith("matmul"):
        size = int(case.removeprefix("matmul"))
        return (lambda x, y: x @ y), (normal(size, size), normal(size, size))
    if case == "conv":
        return (lambda x, w: convolve(x, w, padding=1)), (normal(1, 56, 56, 64), normal(3, 3, 64, 64))
    if case == "maxpool":
        return pool, (normal(16, 32, 32, 32),)
    if is_training(case):
        return training(case, data)
    return spu_sequences.program(case) or model(case, data)


def training(case: str, data: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step of SGD: a function of (weights, samples, labels), one-hot or of 0 and 1, that gives the new weights."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    forward, (layers, x) = model(case, data)
    if case.startswith("logreg"):
        labels = data.integers(0, 2, (len(x), 1)).astype(np.float32)
    else:
        labels = np.eye(MLP_SIZES[-1], dtype=np.float32)[data.integers(0, MLP_SIZES[-1], len(x))]

    def step(layers: Any, x: Any, y: Any) -> Any:
        def loss(layers: Any) -> Any:
            z = forward(layers, x)
            if case.startswith("logreg"):
                return jnp.mean(jax.nn.softplus(z) - y * z)
            return -jnp.mean(jnp.sum(y * jax.nn.log_softmax(z), 1))

        return jax.tree_util.tree_map(lambda w, g: w - RATE * g, layers, jax.grad(loss)(layers))

    return step, (layers, x, labels)


def convolve(x: Any, w: Any, stride: int = 1, padding: int = 0) -> Any:
    from jax import lax

    return lax.conv_general_dilated(
        x, w, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def pool(x: Any) -> Any:
    import jax.numpy as jnp
    from jax import lax

    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def model(case: str, data: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A model with random weights and random pixels: a function of (weights, images)."""
    import jax.numpy as jnp
    import numpy as np

    def layer(*shape: int) -> tuple[np.ndarray, np.ndarray]:
        weight = data.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))
        return weight.astype(np.float32), (data.standard_normal(shape[-1]) * 0.01).astype(np.float32)

    def images(*shape: int) -> np.ndarray:
        return data.uniform(0, 1, (batch_of(case), *shape)).astype(np.float32)

    def relu(x: Any) -> Any:
        return jnp.maximum(x, 0)

    def conv(x: Any, wb: Any, stride: int = 1, padding: int = 0) -> Any:
        return convolve(x, wb[0], stride, padding) + wb[1]

    def dense(sizes: tuple[int, ...]) -> list[Any]:
        return [layer(*pair) for pair in pairwise(sizes)]

    def mlp(layers: Any, x: Any) -> Any:
        for weight, bias in layers[:-1]:
            x = relu(x @ weight + bias)
        return x @ layers[-1][0] + layers[-1][1]

    def flat(x: Any) -> Any:
        return x.reshape(x.shape[0], -1)

    def lenet5(layers: Any, x: Any) -> Any:
        x = pool(relu(conv(x, layers[0], padding=2)))
        return mlp(layers[2:], flat(pool(relu(conv(x, layers[1])))))

    def vgg16(layers: Any, x: Any) -> Any:
        rest = list(layers)
        for channels in VGG16:
            x = relu(conv(x, rest.pop(0), padding=1)) if channels else pool(x)
        return mlp(rest, flat(x))

    def resnet18(layers: Any, x: Any) -> Any:
        stem, blocks, last = layers
        x = relu(conv(x, stem, padding=1))
        for (first, second, *shortcut), (_, stride) in zip(blocks, RESNET18):
            y = conv(relu(conv(x, first, stride, 1)), second, padding=1)
            x = relu(y + (conv(x, shortcut[0], stride) if shortcut else x))
        return jnp.mean(x, (1, 2)) @ last[0] + last[1]

    if case.startswith("logreg"):
        return mlp, (dense((FEATURES, 1)), images(FEATURES))
    if case.startswith("mlp"):
        return mlp, (dense(MLP_SIZES), images(784))
    if case.startswith("lenet5"):
        return lenet5, ([layer(5, 5, 1, 6), layer(5, 5, 6, 16), *dense((400, 120, 84, 10))], images(28, 28, 1))
    if case.startswith("vgg16"):
        widths = [3, *(channels for channels in VGG16 if channels)]
        convs = [layer(3, 3, *pair) for pair in pairwise(widths)]
        return vgg16, ([*convs, *dense((512, 256, 256, 10))], images(32, 32, 3))
    if case.startswith("resnet18"):
        widths = [64, *(channels for channels, _ in RESNET18)]
        blocks = [
            [layer(3, 3, c, d), layer(3, 3, d, d), *([layer(1, 1, c, d)] if c != d else [])]
            for c, d in pairwise(widths)
        ]
        return resnet18, ((layer(3, 3, 3, 64), blocks, layer(512, 10)), images(32, 32, 3))
    raise ValueError(f"no program for case {case!r}; the cases are {', '.join(CASES)}")


def measure(case: str, protocol: str, repeat: int) -> Row:
    """Times one case in this process and compares its result with JAX's own."""
    import jax
    import numpy as np
    from spu import api, libspu
    from spu.utils import frontend

    function, args = program(case)
    inputs = jax.tree_util.tree_leaves(args)
    secret = libspu.Visibility.VIS_SECRET
    names = [f"in{k}" for k in range(len(inputs))]
    config = libspu.RuntimeConfig(protocol=getattr(libspu.ProtocolKind, protocol), field=libspu.FieldType.FM64)
    start = time.perf_counter()
    executable, _ = frontend.compile(
        frontend.Kind.JAX,
        function,
        args,
        {},
        names,
        [secret] * len(names),
        lambda outs: [f"out{k}" for k in range(len(outs))],
    )
    report: Row = {"compile_seconds": time.perf_counter() - start}
    io = api.Io(PROTOCOLS[protocol], config)
    shares = dict(zip(names, [io.make_shares(np.asarray(x), secret) for x in inputs]))

    times, opened = run_parties(executable, shares, io, config, protocol, 1 + repeat)
    report.update(first_seconds=times[0], seconds=statistics.median(times[1:]))
    expected = jax.tree_util.tree_leaves(jax.jit(function)(*args))
    report["error"] = max(
        float(np.max(np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64))))
        for got, want in zip(opened, expected)
    )
    profiled = libspu.RuntimeConfig(config)
    profiled.enable_pphlo_profile = True
    text = printed_by(lambda: run_parties(executable, shares, io, profiled, protocol, 1))
    sent = [int(count) for count in SENT.findall(text)]  # how a total falls on the parties varies between runs
    report["sent_bytes_per_party"] = max(sent) if len(sent) == PROTOCOLS[protocol] else None
    return report


def run_parties(
    executable: Any, shares: dict[str, Any], io: Any, config: Any, protocol: str, runs: int
) -> tuple[list[float], list[Any]]:
    """Runs a program several times in fresh runtimes, one thread per party.

    Gives the seconds of each run, from a common start until the slowest party is done, and the opened outputs.
    """
    from spu import api, libspu

    parties = PROTOCOLS[protocol]
    link = libspu.link.Desc()
    link.recv_timeout_ms = 3_600_000
    for rank in range(parties):
        link.add_party(f"party{rank}", f"thread{rank}")
    start_line = threading.Barrier(parties)
    times: list[list[float]] = [[] for _ in range(parties)]
    outputs: list[Any] = [None] * parties

    def party(rank: int) -> None:
        try:
            runtime = api.Runtime(libspu.link.create_mem(link, rank), libspu.RuntimeConfig(config))
            for name, share in shares.items():
                runtime.set_var(name, share[rank])
            for _ in range(runs):
                start_line.wait()
                start = time.perf_counter()
                runtime.run(executable)
                times[rank].append(time.perf_counter() - start)
            outputs[rank] = [runtime.get_var(name) for name in executable.output_names]
        except Exception as error:
            # the other parties wait inside C++, where only the end of the process reaches them
            sys.__stderr__.write(f"party {rank}: {error!r}\n")
            sys.__stderr__.flush()
            os._exit(3)

    threads = [threading.Thread(target=party, args=(rank,)) for rank in range(parties)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [max(run) for run in zip(*times)], [io.reconstruct(list(share)) for share in zip(*outputs)]


def printed_by(action: Callable[[], Any]) -> str:
    """What an action writes to standard output and error, C++ code included."""
    sys.stdout.flush()
    sys.stderr.flush()
    with tempfile.TemporaryFile() as sink:
        kept = os.dup(1), os.dup(2)
        os.dup2(sink.fileno(), 1)
        os.dup2(sink.fileno(), 2)
        try:
            action()
        finally:
            for number, original in zip((1, 2), kept):
                os.dup2(original, number)
                os.close(original)
        sink.seek(0)
        return sink.read().decode(errors="replace")


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--protocols", default=",".join(PROTOCOLS), help="comma-separated; both by default")
    parser.add_argument("--child", nargs=2, metavar=("CASE", "PROTOCOL"), help="(internal) one case, in this process")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(measure(*options.child, options.repeat)), flush=True)
        os._exit(0)  # SPU's threads need not be waited for
    cases = chosen_cases(parser, options)
    protocols = options.protocols.split(",")
    if not set(protocols) <= set(PROTOCOLS):
        parser.error(f"--protocols takes {' and '.join(PROTOCOLS)}")

    def rows(case: str) -> list[Row]:
        command = [sys.executable, __file__, "--repeat", str(options.repeat), "--child", case]
        return [
            row(case, f"SPU {protocol}", PROTOCOLS[protocol], run_children([[*command, protocol]], options.timeout))
            for protocol in protocols
        ]

    run_all(cases, rows, options.out)


if __name__ == "__main__":
    main()
