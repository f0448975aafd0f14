"""Compiles a model, runs all parties in this process and compares with torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch

import securemodel
from protocols.prg import Draws, Stream
from securemodel.compiler.approximations import PARTS, Smooth, fitted
from securemodel.engines.masked import party, preparing
from securemodel.inspect.fixed import fixed_point

TWO = {"weights": "a", "inputs": "b", "outputs": "b"}
IDLE_THIRD = {"weights": "a", "inputs": "b", "outputs": "all", "parties": ("idle", "b", "a")}
PUBLIC_WEIGHTS = {"weights": "public", "inputs": "b", "outputs": "a", "parties": ("b", "a")}
SETTINGS = {"two parties": TWO, "three parties, one owns nothing": IDLE_THIRD, "public weights": PUBLIC_WEIGHTS}

TOLERANCE = 2.0**-10


class Fn(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: torch.Tensor) -> Any:
        return self.function(*inputs)


class Veiled(torch.nn.Module):
    """A function of inputs, to the first of which a zero of the other party is added."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.zero = function, torch.nn.Parameter(torch.zeros(()))

    def forward(self, first: torch.Tensor, *others: torch.Tensor) -> Any:
        return self.function(first + self.zero, *others)


class Several(torch.nn.Module):
    """Several modules on the same secrets; returns all their outputs in one tuple.

    What one party alone can compute, it computes in the clear. So the second half of the inputs are veils
    of another party, and the modules get x + veil, or x * veil, which is nobody's and has more fractional bits.
    """

    def __init__(self, modules, veil: str = "add") -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList(m if isinstance(m, torch.nn.Module) else Fn(m) for m in modules)
        self.veil = getattr(torch, veil)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        half = len(inputs) // 2
        secrets = [self.veil(x, veil) for x, veil in zip(inputs[:half], inputs[half:], strict=True)]
        return tuple(t for part in self.parts for t in tensors(part(*secrets)))


def veils(inputs, kind: str) -> tuple[torch.Tensor, ...]:
    """What `Several` needs behind its inputs to change nothing."""
    return tuple(torch.zeros_like(x) if kind == "add" else torch.ones_like(x) for x in inputs)


def splined(fit: Smooth, x: torch.Tensor, exact: bool) -> list[torch.Tensor]:
    """A spline in exact arithmetic at x inside its domain, with each piece that an argument may get."""
    (c0, c1, c2), h = torch.tensor(fitted(fit, exact), dtype=torch.float64), 2.0**-fit.step_bits
    apart, start, out = (2 * h, 0.0, []) if exact else (2 * h / PARTS, -h, [])
    for around in (0.0,) if exact else torch.linspace(-h, h, 11).tolist():
        piece = ((x - fit.low - start + around) / apart).floor().long()
        t = x - fit.low - start - (piece + 0.5) * apart
        out.append(c0[piece] + c1[piece] * t + c2[piece] * t**2)
    return out


def tensors(result: Any) -> list[torch.Tensor]:
    """All tensors of a nest, in order."""
    return [result] if isinstance(result, torch.Tensor) else [t for part in result for t in tensors(part)]


def run(program: securemodel.Program, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of one run with all parties in this process, in which no mask address is read twice.

    With exact rounding they are, bit for bit, what fixed point in the clear gives: this is checked every time.
    """
    with addresses_read_once(), securemodel.local(program) as session:
        made = tensors(session.run(*inputs))
    compiled_for = [tuple(x.shape) for x in inputs] == list(program.header.input_shapes)
    if compiled_for and program.header.rounding == "exact" and program.protocol == "masked":
        for index, (secure, specified) in enumerate(zip(made, fixed_point(program, *inputs), strict=True)):
            assert secure.dtype == specified.dtype and torch.equal(secure, specified), (
                f"output {index} is not what fixed point in the clear gives: off by {difference(secure, specified)}"
            )
    return made


@contextmanager
def addresses_read_once() -> Iterator[Counter]:
    """Counts where parties read their streams, and fails where two masks or dealt values are the same bytes.

    The mask of an input is read twice by its owner, for the gates ahead of the run and for sharing it: that is one mask.
    """
    read: Counter[tuple] = Counter()

    def noted(function: Callable, what: str) -> Callable:
        def call(stream: Stream, epoch: int, node: int, *rest: Any) -> Any:
            read[stream, epoch, node, what] += 1
            return function(stream, epoch, node, *rest)

        return call

    class Noted(Draws):
        def draw(self, stream: Stream, epoch: int) -> list[torch.Tensor]:
            read.update((stream, epoch, place.node, place.purpose, place.index) for place in self.places)
            return super().draw(stream, epoch)

    with ExitStack() as patches:
        patches.enter_context(patch.object(preparing, "Draws", Noted))
        for module, name in ((party, "mask_share"), (party, "hidden_order")):
            what = f"{name} of {module.__name__}"
            patches.enter_context(patch.object(module, name, noted(getattr(module, name), what)))
        yield read
    twice = [address[1:] for address, count in read.items() if count > 1]
    assert not twice, f"read twice: {twice}"


def difference(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference; infinite when the shapes or kinds of number differ."""
    same_kind = made.is_floating_point() == expected.is_floating_point()
    if made.shape != expected.shape or not same_kind:
        return float("inf")
    return float((made.double() - expected.detach().double()).abs().max()) if made.numel() else 0.0


def check_agrees(model, inputs, tolerance: float = TOLERANCE, veil: str = "add", settings=TWO, **changes) -> None:
    """Raises AssertionError unless `model` on secret inputs gives what torch gives."""
    with torch.no_grad():
        whole, given = Several([model], veil).eval(), (*inputs, *veils(inputs, veil))
        expected = tensors(whole(*given))
    settings = {**settings, **changes}
    owners = (settings.pop("inputs"),) * len(inputs) + ("a",) * len(inputs)
    made = run(securemodel.compile(whole, given, inputs=owners, **settings), *given)
    off = [difference(m, e) for m, e in zip(made, expected, strict=True)]
    assert max(off) <= tolerance, f"off by {off}"
