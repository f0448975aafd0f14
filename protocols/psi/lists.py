"""A party's own list as it is sent, and lists of peers that are multiplied as they come."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import NoReturn

import numpy as np

from protocols.errors import BadFrame, explain
from protocols.psi import flows
from protocols.psi.curve import POINT_BYTES, BadPoint, check_points
from protocols.psi.flows import In, Shape
from protocols.psi.sets import OwnSet
from protocols.psi.workers import Workers


def blinded(own: OwnSet, order: np.ndarray, key: bytes, salt: bytes, workers: Workers) -> Iterator[bytes]:
    """The points of one's own ids times a key, in pieces; of which some are made ahead."""
    pieces = Shape(len(order), POINT_BYTES).pieces
    return workers.ahead(pieces, lambda at: workers.blind(own.ordered(order[flows.span(at)]), key, salt))


def raised(rows: np.ndarray, key: bytes, workers: Workers) -> Iterator[bytes]:
    """Points uint8[n, 32] times a key, in pieces; of which some are made ahead."""
    pieces = Shape(len(rows), POINT_BYTES).pieces
    return workers.ahead(pieces, lambda at: workers.multiply(rows[flows.span(at)].tobytes(), key))


class Multiplied:
    """A list of a peer's points, multiplied by a key piece by piece as it comes."""

    def __init__(self, peer: str, items: int, key: bytes, size: int, workers: Workers) -> None:
        """size: how many bytes of each product are kept."""
        self.peer, self.rows = peer, np.empty((items, size), np.uint8)
        self._key, self._workers = key, workers
        self._under_way: dict[int, Future[bytes]] = {}

    def arriving(self, *others: Multiplied) -> In:
        """The list as it comes from the peer; `others` are products with other keys of the same list."""

        def put(piece: int, data: memoryview) -> None:
            try:
                check_points(data)
            except BadPoint as error:
                self._refuse(error)
            for each in (self, *others):
                each._under_way[piece] = self._workers.multiply(bytes(data), each._key, each.rows.shape[1])

        return In(self.peer, Shape(len(self.rows), POINT_BYTES), put)

    def pieces(self) -> Iterator[bytes]:
        """The products, in the order in which the points come, for as long as they do."""
        for piece in range(Shape(len(self.rows), POINT_BYTES).pieces):
            yield self._finished(piece)

    def all(self) -> np.ndarray:
        """uint8[items, size]: all products, when all points are there. Raises BadFrame where one was no point."""
        for piece in sorted(self._under_way):
            self._finished(piece)
        return self.rows

    def _finished(self, piece: int) -> bytes:
        try:
            data = self._under_way.pop(piece).result()
        except BadPoint as error:
            self._refuse(error)
        self.rows[flows.span(piece)] = np.frombuffer(data, np.uint8).reshape(-1, self.rows.shape[1])
        return data

    def _refuse(self, error: BadPoint) -> NoReturn:
        raise BadFrame(
            self.peer,
            explain(
                f"party {self.peer!r} sent bytes that are no point of Curve25519 as this protocol has them",
                where="the alignment of ids",
                why=str(error),
                fix="do not trust this party, or the version that it runs",
            ),
        ) from None
