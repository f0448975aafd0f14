"""Whether all parties have the same ids at the same joint rows, before anybody uses them."""

from __future__ import annotations

import hashlib

import numpy as np

from protocols.channel import Channel
from protocols.equality import POINT_BYTES, Equality
from protocols.errors import BadFrame, Mismatch, ProtocolError, explain
from protocols.psi.flows import whole
from protocols.psi.sets import OwnSet


def check_same(channel: Channel, step: int, own: OwnSet, positions: np.ndarray) -> None:
    """Compares the ids of all joint rows, in their order, with every peer: two short rounds, steps `step` and the next.

    Nobody learns anything of a peer's ids but whether they are the same (see protocols.equality). Raises Mismatch.
    """
    digest = hashlib.sha256()
    for item in own.ordered(positions):
        digest.update(len(item).to_bytes(4, "little") + item)
    sides = {peer: Equality(digest.digest(), channel.session, channel.me, peer) for peer in channel.peers}
    sizes = dict.fromkeys(sides, POINT_BYTES)
    points = whole(channel, step, {peer: side.first for peer, side in sides.items()}, sizes)
    answers = whole(channel, step + 1, {peer: _answer(peer, sides[peer], points[peer]) for peer in sides}, sizes)
    for peer, side in sides.items():
        if not side.is_equal(answers[peer]):
            raise Mismatch(
                peer,
                explain(
                    f"the joint rows are not the same ids in the same order here and at party {peer!r}",
                    where="the end of the alignment",
                    why="a party did not follow the protocol, or computed something wrong",
                    fix="do not use this alignment; find out which party it was, and start again",
                ),
            )


def _answer(peer: str, side: Equality, point: bytes) -> bytes:
    try:
        return side.second(point)
    except ProtocolError as error:
        raise BadFrame(peer, str(error)) from None
