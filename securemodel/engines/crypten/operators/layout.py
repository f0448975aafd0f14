"""Operators that move elements or add them up: torch's own, on the shares."""

from __future__ import annotations

from typing import Any

import torch

from securemodel.compiler.builder import CannotLower
from securemodel.engines.crypten.operators.registry import runs

aten = torch.ops.aten

ON_SHARES = (
    aten.reshape.default, aten.permute.default, aten.transpose.int, aten.t.default, aten.squeeze.default,
    aten.squeeze.dim, aten.squeeze.dims, aten.unsqueeze.default, aten.expand.default, aten.repeat.default,
    aten.slice.Tensor, aten.select.int, aten.narrow.default,
    aten.split.Tensor, aten.split_with_sizes.default, aten.unbind.int, aten.flip.default, aten.roll.default,
    aten.cat.default, aten.stack.default, aten.sum.default, aten.sum.dim_IntList, aten.cumsum.default,
    aten.neg.default,
)  # fmt: skip


def with_share(x: Any, share: torch.Tensor) -> Any:
    """A secret of the scale of `x` with this share. The share is copied: CrypTen rescales secrets in place."""
    out = type(x).from_shares(share.clone())
    out.encoder = x.encoder
    return out


def _shares(arg: Any) -> Any:
    if isinstance(arg, (list, tuple)):
        return [_shares(a) for a in arg]
    return arg.share if hasattr(arg, "share") else arg


def on_shares(target: Any, *args: Any, **kwargs: Any) -> Any:
    """An operator that commutes with sharing, on each party's own share: linear, and 0 goes to 0."""
    like = args[0][0] if isinstance(args[0], list) else args[0]
    made = target(*_shares(args), **{name: value for name, value in kwargs.items() if not isinstance(value, str)})
    if isinstance(made, torch.Tensor):
        return with_share(like, made)
    return tuple(with_share(like, part) for part in made)


def _register(target: Any, *names: Any) -> None:
    @runs(*names)
    def moved(*args: Any, **kwargs: Any) -> Any:
        return on_shares(target, *args, **kwargs)


for _target in ON_SHARES:
    _register(_target, _target)
# Shares need not lie in memory as the model's tensors did, which is what a view is possible for.
_register(aten.reshape.default, aten.view.default, aten._unsafe_view.default)


def _evaluates(x, *args, **kwargs) -> None:
    if len(args) > 1 and args[1] is True:
        raise CannotLower("dropout in training mode", "call model.eval() before compiling")


@runs(
    aten.clone.default, aten.alias.default, aten.contiguous.default, aten.detach.default, aten.dropout.default,
    aten.feature_dropout.default, aten.lift_fresh_copy.default, check=_evaluates,
)  # fmt: skip
def same(x, *args, **kwargs):
    """The value itself."""
    return x


def _stays_a_number(x, dtype=None, **kwargs) -> None:
    if dtype is not None and not dtype.is_floating_point and not x.integer:
        raise CannotLower(f"a secret real number cannot become {dtype}", "keep it a float")


@runs(aten._to_copy.default, check=_stays_a_number)
def to_copy(x, **kwargs):
    """Change of float type or device: nothing to do for fixed-point values."""
    return x


def _constant(x, pads, mode="constant", value=None) -> None:
    if mode != "constant":
        raise CannotLower(f"padding of mode {mode!r}", "pad with a constant")


@runs(aten.constant_pad_nd.default)
def constant_pad(x, pads, value=0):
    """A public number around the tensor."""
    return x.pad(pads, value=value)


@runs(aten.pad.default, check=_constant)
def pad(x, pads, mode="constant", value=None):
    """A public number around the tensor."""
    return x.pad(pads, value=value or 0)
