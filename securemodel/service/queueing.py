"""Which waiting requests run next, and in a program of which size. Pure functions of what waits and what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil


def smallest(sizes: Sequence[int], rows: int) -> int:
    """The smallest of the ascending sizes that holds so many rows, or the largest there is."""
    return next((size for size in sizes if size >= rows), sizes[-1])


def choose(
    rows: Sequence[int], sizes: Sequence[int], seconds: Mapping[int, float], alone: bool = False
) -> tuple[int, list[int]]:
    """(size of the next run, which of the waiting requests it takes), for requests in the order of their deadlines.

    rows: of each request, none more than the largest size. seconds: how long a run of a size takes, as measured. The
    first request is always taken; later ones fill what is left. Several runs of a smaller size are chosen where they
    take less time together than a half-empty one. alone: rows of a run depend on each other, so it takes one request.
    """
    if alone:
        return smallest(sizes, rows[0]), [0]
    waiting = min(sum(rows), sizes[-1])
    size = smallest(sizes, waiting)
    if size in seconds:
        in_parts = [s for s in sizes if rows[0] <= s < size and s in seconds]
        size = min([size, *in_parts], key=lambda s: ceil(waiting / s) * seconds[s])
    taken, free = [], size
    for position, count in enumerate(rows):
        if count <= free:
            taken.append(position)
            free -= count
            if not free:
                break
    return smallest(sizes, size - free), taken


def wait_s(rows_ahead: int, sizes: Sequence[int], seconds: Mapping[int, float], lanes: int) -> float:
    """How long so many rows occupy the lanes, at the largest size; 0 before anything was measured."""
    return rows_ahead / sizes[-1] * seconds.get(sizes[-1], 0.0) / max(lanes, 1)
