"""Masks that are added to scores: what a softmax is where they forbid a whole row."""

from __future__ import annotations

import torch

from securemodel.compiler.builder import Builder, Value


def _sink(mask: torch.Tensor, least: float, forbidden: float) -> torch.Tensor:
    most = mask.amax(-1, keepdim=True)
    return torch.where(most <= least, 0.0, most + forbidden)


SINK = _sink.__name__
"""What computes sinks, as a program's text names it: 0 where a row is forbidden, and nowhere else."""


def _fill(mask: torch.Tensor, least: float) -> torch.Tensor:
    """What is left of a softmax where a mask is so large that nothing else counts; 0 where it is infinite."""
    return torch.where(mask.amax(-1, keepdim=True) <= least, mask.softmax(-1).nan_to_num(0.0), 0.0)


def _allow_every_row(mask: torch.Tensor, least: float) -> None:
    """What an owner checks of its masks where a program takes it for granted. Raises RuntimeError."""
    if bool((mask.amax(-1) <= least).any()):
        raise RuntimeError("it forbids a whole row of scores, and the program is tuned on data without such rows")


def note_masked_rows(g: Builder, scores: Value, mask: Value) -> None:
    """Tells a softmax of scores that a mask was added which may forbid whole rows.

    There, a further score, the sink, takes all that would be shared among the forbidden ones. It costs no product. Where no
    mask is to forbid a row (`whole_rows`), its owner checks that in each run.
    """
    known = g.public(mask)
    if mask.secret or mask.integer or not mask.shape:
        return
    if g.graph[mask.id].phase != "run" if known is None else not bool((known.amax(-1) <= g.least).any()):
        return  # of weights, or without such a row
    if known is None and g.whole_rows:
        g.float(_allow_every_row, mask, g.least, shape=())
        return
    shape = (*scores.shape[:-1], 1)
    if mask.shape[-1] != scores.shape[-1]:
        whole = (*mask.shape[:-1], scores.shape[-1])
        mask = g.float(torch.broadcast_to, mask, whole, shape=whole)
    sink = g.float(_sink, mask, g.least, g.forbidden, shape=(*mask.shape[:-1], 1))
    sink = g.float(torch.broadcast_to, sink, shape, shape=shape)
    g.notes["masked rows", scores.id] = sink, g.float(_fill, mask, g.least, shape=mask.shape)
