"""Aligning: what parties call who want to know which of their rows are about the same id."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protocols.channel import Channel
from protocols.errors import public_reason
from protocols.psi import costs, direct, ring, union
from protocols.psi.outcome import Outcome
from protocols.psi.sets import OwnSet
from protocols.psi.terms import ALL, COUNT, NOBODY, Peer, Terms, agree
from protocols.psi.workers import Workers


@dataclass(frozen=True)
class Alignment:
    """What was agreed on and found: by party its rows and commitment, and one's own part of the result."""

    parties: Mapping[str, Peer]
    outcome: Outcome


def align(
    channel: Channel,
    own: OwnSet,
    terms: Terms,
    commitment: str,
    workers: int | None = None,
    agreed: Callable[[Mapping[str, Peer]], None] | None = None,
) -> Alignment:
    """Finds out which ids the parties of a channel have in common, and tells those who may learn it.

    own: this party's ids, from `own_set`; commitment: what `OwnSet.commitment` made, told to all. workers: processes that
    multiply, as many as torch has threads by default. agreed: called with what all said of their sets, before anything
    that follows from an id is sent; what it raises ends the alignment. Every wait ends. Raises InputError before anything
    is sent, Mismatch where parties disagree, and other PeerErrors, which name the party; the peers are told.
    """
    terms.check((channel.me, *channel.peers))
    try:
        parties = agree(channel, terms, Peer(len(own.ids), commitment))
        if agreed is not None:
            agreed(parties)
        rows = {name: said.rows for name, said in parties.items()}
        with Workers.for_work(costs.multiplications(rows, terms, channel.me), workers) as helpers:
            return Alignment(parties, _run(channel, own, terms, rows, helpers))
    except BaseException as error:  # also an interrupt: the peers must not be left waiting
        channel.abort(public_reason(error))
        raise


def _run(channel: Channel, own: OwnSet, terms: Terms, rows: Mapping[str, int], workers: Workers) -> Outcome:
    if terms.learns == COUNT:
        return ring.count(channel, own, rows, workers)
    if terms.learns == NOBODY:
        return union.nobody_learns(channel, own, rows, workers)
    if terms.learns == ALL:
        learning = direct.both_learn if len(rows) == 2 else ring.all_learn
        return learning(channel, own, rows, workers)
    return direct.one_learns(channel, own, rows, terms.learns, terms.unmatched == "drop", workers)
