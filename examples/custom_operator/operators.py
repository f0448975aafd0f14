"""Two operators of a library of one's own, `pace`, and how each runs on secrets.

`squareplus` is written with PyTorch's operators, which is enough where these have secure versions. `bucket` has a
secure version built by hand: it asks for fewer comparisons than its definition would.
"""

from __future__ import annotations

import torch

import securemodel
from securemodel.compiler.builder import Builder, CannotLower, Value


@torch.library.custom_op("pace::squareplus", mutates_args=())
def squareplus(x: torch.Tensor, b: float) -> torch.Tensor:
    """(x + sqrt(x^2 + b)) / 2: a smooth ReLU."""
    return (x + (x * x + b).sqrt()) / 2


@squareplus.register_fake
def _(x: torch.Tensor, b: float) -> torch.Tensor:
    return torch.empty_like(x)


@securemodel.decomposes(torch.ops.pace.squareplus.default)
def squareplus_in_torch(x: torch.Tensor, b: float) -> torch.Tensor:
    """The same with operators of PyTorch, all of which have secure versions."""
    return (x + torch.sqrt(x * x + b)) / 2


@torch.library.custom_op("pace::bucket", mutates_args=())
def bucket(x: torch.Tensor, first: float, step: float, count: int) -> torch.Tensor:
    """In which of count + 1 classes each element is: how many of the bounds first, first + step, ... are not above it."""
    bounds = first + step * torch.arange(count)
    return (x.unsqueeze(-1) >= bounds).sum(-1)


@bucket.register_fake
def _(x: torch.Tensor, first: float, step: float, count: int) -> torch.Tensor:
    return torch.empty_like(x, dtype=torch.int64)


@securemodel.lowers(torch.ops.pace.bucket.default)
def secure_bucket(g: Builder, x: Value, first: float, step: float, count: int) -> Value:
    """A sum of secret bits, [x - bound >= 0]; one comparison for each bound, all of them at once."""
    if count < 1:
        raise CannotLower("no bounds at all", "give a count of 1 or more")
    bounds = g.constant(first + step * torch.arange(count, dtype=torch.float32))
    distance = g.sub(g.reshape(x, (*x.shape, 1)), bounds)
    reached = g.bit_to_ring(g.is_negative(distance), invert=True)
    return g.linear("sum", reached, dims=[x.ndim], keepdim=False)
