"""What is compared in the place of ids: points under the keys of all parties, or their first bytes."""

from __future__ import annotations

import numpy as np

from protocols.errors import BadFrame, explain

TAG_BYTES = 16
"""Two of 2^32 different ids have the same tag with a probability below 2^-63."""


def as_tags(rows: np.ndarray) -> np.ndarray:
    """uint8[n, w] as n values that numpy sorts and compares, byte by byte."""
    return np.ascontiguousarray(rows).view(f"S{rows.shape[1]}").reshape(-1)


def common(first: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """The tags that all lists have, sorted. Each list has none twice."""
    found = np.sort(as_tags(first))
    for other in others:
        found = np.intersect1d(found, as_tags(other), assume_unique=True)
    return found


def places(tags: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """int64: where in a list each of the wanted tags is, -1 where it is not there."""
    listed = as_tags(tags)
    if not len(listed):
        return np.full(len(wanted), -1)
    order = np.argsort(listed, kind="stable")
    found = order[np.minimum(np.searchsorted(listed, wanted, sorter=order), len(listed) - 1)]
    return np.where(listed[found] == wanted, found, -1)


def check_distinct(tags: np.ndarray, peer: str, whose: str = "") -> None:
    """Raises BadFrame, which names the peer, if its list holds a tag twice: then it sent an id twice, or no ids."""
    listed = np.sort(as_tags(tags))
    if np.any(listed[1:] == listed[:-1]):
        raise BadFrame(
            peer,
            explain(
                f"party {peer!r} sent a list that holds an element twice",
                where=f"the alignment of ids{whose}",
                why="every party checks that its ids differ before it sends them",
                fix="do not trust this party, or the version that it runs",
            ),
        )
