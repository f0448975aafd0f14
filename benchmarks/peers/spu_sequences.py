"""Functions, orders and sequence models as JAX programs, for spu_runner.py."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from common import ENCODER, FOREST, FUNCTION_ELEMENTS, FUNCTIONS, LSTM, TABLE

Program = tuple[Callable[..., Any], tuple[Any, ...]]


def program(case: str) -> Program | None:
    """The case as a JAX function and its arguments, or None where it is not one of these."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    data = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (data.standard_normal(shape) * scale).astype(np.float32)

    if case in FUNCTIONS:
        kind, *numbers = FUNCTIONS[case]
        functions = {
            "exp": jnp.exp,
            "sigmoid": jax.nn.sigmoid,
            "tanh": jnp.tanh,
            "gelu": jax.nn.gelu,
            "reciprocal": lambda x: 1 / x,
            "rsqrt": jax.lax.rsqrt,
        }
        if kind == "normal":
            return functions[case], (normal(FUNCTION_ELEMENTS, scale=numbers[0]),)
        return functions[case], (data.uniform(*numbers, FUNCTION_ELEMENTS).astype(np.float32),)
    if case == "softmax":
        return (lambda x: jax.nn.softmax(x, 1)), (normal(1000, 128),)
    if case == "argmax":
        return (lambda x: jnp.argmax(x, 1)), (normal(10_000, 10),)
    if case == "sort":
        return jnp.sort, (normal(10_000),)
    if case == "lstm":
        return _lstm(normal)
    if case in ("encoder_layer", "minilm6"):
        return _encoder(normal, 1 if case == "encoder_layer" else 6)
    if case == "correlation":
        return (lambda a, b: a.T @ b / len(a)), (normal(*TABLE), normal(*TABLE))
    if case == "forest":
        return _forest(data)
    return None


def _forest(data: Any) -> Program:
    """Conditions on public columns with secret thresholds, then products along the paths, a level at a time.

    Numbers and thresholds are never equal, nor nearer than fixed point can tell.
    """
    import jax.numpy as jnp
    import numpy as np

    rows, columns, trees, depth = FOREST
    inner = 2**depth - 1
    reads = data.integers(0, columns, trees * inner)

    def run(x: Any, thresholds: Any, leaves: Any) -> Any:
        below = (x[:, reads] < thresholds).astype(jnp.int32).reshape(rows, trees, inner)
        reached = jnp.ones((rows, trees, 1), jnp.int32)
        for level in range(depth):
            left = reached * below[:, :, 2**level - 1 : 2 ** (level + 1) - 1]
            reached = jnp.stack([left, reached - left], -1).reshape(rows, trees, -1)
        return (reached * leaves).sum((1, 2)) / trees

    x = np.round(data.standard_normal((rows, columns)) * 1024) / 1024
    thresholds = (np.round(data.standard_normal(trees * inner) * 1024) + 0.5) / 1024
    return run, tuple(part.astype(np.float32) for part in (x, thresholds, data.standard_normal((trees, inner + 1))))


def _lstm(normal: Callable[..., Any]) -> Program:
    import jax
    import jax.numpy as jnp

    batch, steps, features, hidden = LSTM

    def run(x: Any, given: Any, recurrent: Any, bias: Any) -> Any:
        h = c = jnp.zeros((batch, hidden), jnp.float32)
        for t in range(steps):
            i, f, g, o = jnp.split(x[t] @ given + h @ recurrent + bias, 4, axis=1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return h

    weights = (normal(n, 4 * hidden, scale=n**-0.5) for n in (features, hidden))
    return run, (normal(steps, batch, features), *weights, normal(4 * hidden, scale=0.01))


def _encoder(normal: Callable[..., Any], layers: int) -> Program:
    import jax
    import jax.numpy as jnp
    import numpy as np

    length, width, heads, inner = ENCODER
    size = width // heads

    def dense(x: Any, weights: Any) -> Any:
        return x @ weights[0] + weights[1]

    def normalized(x: Any, scale: Any, shift: Any) -> Any:
        centered = x - jnp.mean(x, -1, keepdims=True)
        return centered * jax.lax.rsqrt(jnp.mean(centered**2, -1, keepdims=True) + 1e-5) * scale + shift

    def attention(x: Any, q: Any, k: Any, v: Any, out: Any) -> Any:
        q, k, v = (dense(x, w).reshape(1, length, heads, size).transpose(0, 2, 1, 3) for w in (q, k, v))
        scores = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(size), -1)
        return dense((scores @ v).transpose(0, 2, 1, 3).reshape(1, length, width), out)

    def run(x: Any, *parameters: Any) -> Any:
        for first, second, *projections, up, down in parameters:
            x = normalized(x + attention(x, *projections), *first)
            x = normalized(x + dense(jax.nn.gelu(dense(x, up)), down), *second)
        return x

    def linear(i: int, o: int) -> tuple[Any, Any]:
        return normal(i, o, scale=i**-0.5), normal(o, scale=0.01)

    unit = (np.ones(width, np.float32), np.zeros(width, np.float32))
    parameters = [
        [unit, unit, *(linear(width, width) for _ in range(4)), linear(width, inner), linear(inner, width)]
        for _ in range(layers)
    ]
    return run, (normal(1, length, width), *parameters)
