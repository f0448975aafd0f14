"""Rows of one party in an order that another party alone knows: `permute`, which runs in the clear as well."""

from __future__ import annotations

import torch

from protocols.errors import explain
from protocols.names import PUBLIC
from securemodel.compiler.builder import Builder, CannotLower, Value
from securemodel.compiler.lower.choosing import rows_at
from securemodel.compiler.lower.registry import lowers
from securemodel.errors import InputError


def permute(x: torch.Tensor, positions: torch.Tensor, *, missing: bool = False) -> torch.Tensor:
    """The rows of x at these positions, each of which stands there at most once: `x[positions]`.

    x: [rows, ...]; positions: whole numbers from 0 on, [n], all different. With `missing`, -1 stands for a row of zeros,
    and may stand there more than once. Raises InputError for other positions; no message says what they are.

    Where x is secret or another party's, this costs no multiplication: the owner of the positions sends them in an order
    that hides them, with its inputs, and the dealer 8 bytes for each element of x (and, with `missing`, of n rows more).
    The others learn n, and whether -1 is allowed.
    """
    return torch.ops.securemodel.permute(x, positions, missing)


@torch.library.custom_op("securemodel::permute", mutates_args=())
def _permute(x: torch.Tensor, positions: torch.Tensor, missing: bool) -> torch.Tensor:
    at = checked(positions, x.shape[0], missing)
    return torch.cat([x, x.new_zeros(len(at) if missing else 0, *x.shape[1:])]).index_select(0, at)


@_permute.register_fake
def _(x: torch.Tensor, positions: torch.Tensor, missing: bool) -> torch.Tensor:
    return x.new_empty(positions.shape[0], *x.shape[1:])


def _keep(ctx, inputs, output) -> None:
    x, positions, _ = inputs
    ctx.rows = x.shape[0]
    ctx.save_for_backward(positions)


def _gradient(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
    (positions,) = ctx.saved_tensors
    return torch.ops.securemodel.permute(gradient, torch.ops.securemodel.inverse(positions, ctx.rows), True), None, None


_permute.register_autograd(_gradient, setup_context=_keep)


@torch.library.custom_op("securemodel::inverse", mutates_args=())
def _inverse(positions: torch.Tensor, rows: int) -> torch.Tensor:
    """Where each of the rows went, or -1."""
    where = positions.new_full((rows + 1,), -1)  # the last one is for positions of -1
    where[positions] = torch.arange(len(positions), dtype=positions.dtype, device=positions.device)
    return where[:-1].clone()


@_inverse.register_fake
def _(positions: torch.Tensor, rows: int) -> torch.Tensor:
    return positions.new_empty(rows)


def checked(positions: torch.Tensor, rows: int, missing: bool) -> torch.Tensor:
    """Different positions of `rows` rows, and of as many rows after these as there are positions, where -1 may stand.

    Raises InputError, which says where among the positions something is wrong.
    """
    what = "permute takes each row at most once"
    if positions.ndim != 1 or positions.dtype.is_floating_point:
        raise InputError(explain(f"{what}, at positions that are one axis of whole numbers", fix="give int64[n]"))
    at = positions.to(torch.int64)
    outside = (at < (-1 if missing else 0)) | (at >= rows)
    if bool(outside.any()):
        where = f"position {int(outside.nonzero()[0])} of {len(at)}"
        fix = f"give whole numbers from 0 to {rows - 1}" + ("" if missing else "; missing=True lets -1 stand for zeros")
        raise InputError(explain(f"{what}, and one is outside of its {rows} rows", where=where, fix=fix))
    if missing:
        at = torch.where(at < 0, rows + torch.arange(len(at), device=at.device), at)
    order = at.argsort(stable=True)
    again = (at[order][1:] == at[order][:-1]).nonzero()
    if len(again):
        first, second = (int(order[int(again[0]) + more]) for more in (0, 1))
        fix = "index with x[positions] where rows repeat: it multiplies by unit vectors"
        raise InputError(explain(what, where=f"positions {first} and {second} name the same row", fix=fix))
    return at


@lowers(torch.ops.securemodel.permute.default)
def secure_permute(g: Builder, x: Value, positions: Value, missing: bool) -> Value:
    """The gate `permute` at one party's positions; elements moved, or products with unit vectors, at others."""
    if positions.secret:
        what = "permute at positions that nobody knows"
        raise CannotLower(what, "x[positions] reads at secret positions, by unit vectors")
    rows, many = x.shape[0], positions.shape[0]
    if many > rows and not missing:
        raise CannotLower(
            f"permute at {many} positions of {rows} rows, each at most once", "allow missing=True for zeros"
        )
    at = g.float(checked, positions, rows, missing, shape=positions.shape, integer=True)
    known = g.public(at)
    if missing:
        x = _with_zeros(g, x, many)
    if known is not None and x.secret:
        return g.linear("index", x, dim=0, index=known.tolist())
    return rows_at(g, x, at) if at.owner == PUBLIC else g.permute(x, at)


def _with_zeros(g: Builder, x: Value, many: int) -> Value:
    """x with rows of zeros after it: these need no mask."""
    return g.linear("pad", x, pads=[0, 0] * (x.ndim - 1) + [0, many])
