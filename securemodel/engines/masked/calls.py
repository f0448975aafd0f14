"""What a phase is at a party: steps of calls that are made once. Here those that need no more of it than its values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch

from protocols import linear
from protocols.shares import Masked, MaskedBits, part_of_bits, window
from securemodel.compiler.ir import Graph, Node, Phase
from securemodel.engines.masked.preparing import Prepared

TakePrepared = Callable[[int], Prepared]
Call = Callable[[dict, TakePrepared], Any]
"""Computes a node, from the values there are and what was prepared."""


@dataclass(frozen=True)
class Step:
    """Calls of local nodes, then the nodes whose openings share a message, whose label has the number `at`; of each the
    values that nobody reads after it, of calls also the operator where it leaves something after the run.

    `place`: which step of which phase; `tables`: whether rows are opened that may be shared already.
    """

    calls: tuple[tuple[Node, Call, tuple[int, ...], str], ...]
    talk: tuple[tuple[Node, tuple[int, ...]], ...]
    at: int
    reveals: bool
    place: tuple[Phase, int]
    tables: bool


def _masked_linear(made: Callable[..., torch.Tensor], node: Node) -> Call:
    i, args = node.id, node.args
    if len(args) == 1:
        (only,) = args
        return lambda env, take: Masked(made(env[only].m), take(i)["lam"])
    return lambda env, take: Masked(made(*[env[a].m for a in args]), take(i)["lam"])


def linear_call(graph: Graph, node: Node, device: torch.device) -> Call:
    """A linear map with public structure, of shares or of masked values."""
    kind, attrs, args, shape = node.attrs["kind"], node.attrs["attrs"], node.args, node.shape
    made = linear.ready(kind, attrs, device)
    if node.form == "masked":
        return _masked_linear(made, node)
    if len(args) == 1:
        (only,) = args
        return lambda env, take: None if (x := env[only]) is None else made(x)
    shapes = [graph[a].shape for a in args]

    def call(env: dict, take: TakePrepared) -> torch.Tensor | None:
        operands = [env[a] for a in args]
        if not any(x is None for x in operands):
            return made(*operands)
        if kind == "add" and operands[0] is not None and operands[0].shape == shape:
            return operands[0]
        return linear.apply(kind, operands, attrs, shapes, shape)

    return call


def public_masked(node: Node) -> Call:
    """A public value as a masked one, whose mask is zero."""
    (x,), i = node.args, node.id

    def call(env: dict, take: TakePrepared) -> Masked:
        take(i)
        return Masked(env[x], None)

    return call


def xor(node: Node) -> Call:
    """Exclusive or of bits, or of masked bits."""
    (x, y), i = node.args, node.id
    if node.form == "masked_bits":
        return lambda env, take: MaskedBits(env[x].hat ^ env[y].hat, cast(torch.Tensor, take(i)["lam"]))
    return lambda env, take: env[x] ^ env[y]


def part(node: Node) -> Call:
    """Some words of one row of masked bits."""
    (x,), i, attrs, shape = node.args, node.id, node.attrs, node.shape
    return lambda env, take: MaskedBits(part_of_bits(env[x].hat, attrs, shape), cast(torch.Tensor, take(i)["lam"]))


def window_call(node: Node) -> Call:
    """Some bits of an opening as one of their own."""
    (x,), attrs = node.args, node.attrs
    return lambda env, take: Masked(window(env[x].m, attrs), None)
