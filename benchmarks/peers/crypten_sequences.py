"""Functions, orders and sequence models on CrypTen's tensors, for crypten_runner.py.

CrypTen has no GELU, LSTM or attention of its own: GELU is x sigmoid(1.702 x) here, and the rest is written out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import ENCODER, FOREST, FUNCTION_ELEMENTS, FUNCTIONS, LSTM, TABLE

Program = tuple[Callable[..., Any], list[Any]]


def program(case: str) -> Program | None:
    """The case as a function of torch's or CrypTen's tensors, and its arguments; None where it is not one of these."""
    import torch

    data = torch.Generator().manual_seed(0)

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn(shape, generator=data) * scale

    if case in FUNCTIONS:
        kind, *numbers = FUNCTIONS[case]
        if kind == "normal":
            given = normal(FUNCTION_ELEMENTS, scale=numbers[0])
        else:
            low, high = numbers
            given = torch.rand(FUNCTION_ELEMENTS, generator=data) * (high - low) + low
        functions = {"gelu": _gelu, "rsqrt": _rsqrt}
        return functions.get(case, lambda x: getattr(x, case)()), [given]
    if case == "softmax":
        return (lambda x: x.softmax(1)), [normal(1000, 128)]
    if case == "argmax":
        return _argmax, [normal(10_000, 10)]
    if case == "lstm":
        return _lstm(normal)
    if case in ("encoder_layer", "minilm6"):
        return _encoder(normal, 1 if case == "encoder_layer" else 6)
    if case == "correlation":
        return (lambda a, b: a.t().matmul(b) / TABLE[0]), [normal(*TABLE), normal(*TABLE)]
    if case == "forest":
        return _forest(data)
    return None


def _forest(data: Any) -> Program:
    """As in spu_sequences.py."""
    import torch

    rows, columns, trees, depth = FOREST
    inner = 2**depth - 1
    reads = torch.randint(columns, (trees * inner,), generator=data)

    def run(x: Any, thresholds: Any, leaves: Any) -> Any:
        below = x[:, reads] < thresholds
        below = (below.long() if _plain(below) else below).reshape(rows, trees, inner)
        left = below[:, :, :1]
        reached = [left, 1 - left]
        for level in range(1, depth):
            holds = below[:, :, 2**level - 1 : 2 ** (level + 1) - 1]
            before = _cat(x, reached)
            left = before * holds
            reached = [left, before - left]
            # each level's nodes are those to the left of all the last ones, then those to their right
        return (_cat(x, reached) * leaves).sum(2).sum(1) / trees

    x = (torch.randn(rows, columns, generator=data) * 1024).round() / 1024
    thresholds = ((torch.randn(trees * inner, generator=data) * 1024).round() + 0.5) / 1024
    return run, [x, thresholds, torch.randn(trees, inner + 1, generator=data)]


def _cat(like: Any, parts: list[Any]) -> Any:
    import crypten
    import torch

    return torch.cat(parts, 2) if _plain(like) else crypten.cat(parts, 2)


def _plain(x: Any) -> bool:
    import torch

    return isinstance(x, torch.Tensor)


def _gelu(x: Any) -> Any:
    import torch

    return torch.nn.functional.gelu(x) if _plain(x) else x * (x * 1.702).sigmoid()


def _rsqrt(x: Any) -> Any:
    return x.rsqrt() if _plain(x) else x.inv_sqrt()


def _argmax(x: Any) -> Any:
    return x.argmax(1) if _plain(x) else x.argmax(1, one_hot=False).squeeze()


def _lstm(normal: Callable[..., Any]) -> Program:
    batch, steps, features, hidden = LSTM

    def run(x: Any, given: Any, recurrent: Any, bias: Any) -> Any:
        h = c = None
        for t in range(steps):
            gates = x[t].matmul(given) + bias
            gates = gates if h is None else gates + h.matmul(recurrent)
            i, f, g, o = (gates[:, k * hidden : (k + 1) * hidden] for k in range(4))
            new = i.sigmoid() * g.tanh()
            c = new if c is None else f.sigmoid() * c + new
            h = o.sigmoid() * c.tanh()
        return h

    weights = [normal(n, 4 * hidden, scale=n**-0.5) for n in (features, hidden)]
    return run, [normal(steps, batch, features), *weights, normal(4 * hidden, scale=0.01)]


def _encoder(normal: Callable[..., Any], layers: int) -> Program:
    import torch

    length, width, heads, inner = ENCODER
    size = width // heads

    def normalized(x: Any, scale: Any, shift: Any) -> Any:
        centered = x - x.mean(-1, keepdim=True)
        return centered * _rsqrt((centered * centered).mean(-1, keepdim=True) + 1e-5) * scale + shift

    def split(x: Any) -> Any:
        return x.reshape(1, length, heads, size).transpose(1, 2)

    def layer(x: Any, unit: list[Any], dense: list[Any]) -> Any:
        q, k, v, out, up, down = [lambda x, w=w, b=b: x.matmul(w) + b for w, b in zip(dense[::2], dense[1::2])]
        scores = (split(q(x)).matmul(split(k(x)).transpose(2, 3)) / size**0.5).softmax(-1)
        x = normalized(x + out(scores.matmul(split(v(x))).transpose(1, 2).reshape(1, length, width)), *unit)
        return normalized(x + down(_gelu(up(x))), *unit)

    def run(x: Any, scale: Any, shift: Any, *flat: Any) -> Any:
        for start in range(0, len(flat), 12):
            x = layer(x, [scale, shift], list(flat[start : start + 12]))
        return x

    shapes = [(width, width)] * 4 + [(width, inner), (inner, width)]
    flat = [t for _ in range(layers) for i, o in shapes for t in (normal(i, o, scale=i**-0.5), normal(o, scale=0.01))]
    return run, [normal(1, length, width), torch.ones(width), torch.zeros(width), *flat]
