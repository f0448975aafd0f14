"""Aligning two parties' rows with a dealer: the one function that callers use, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from protocols.channel import HEADER_BYTES, Channel
from protocols.errors import BadFrame, InputError, explain, public_reason
from protocols.psi import evaluating
from protocols.psi.aligning import Alignment
from protocols.psi.costs import Cost
from protocols.psi.cuckoo import CHOICES, bins_for
from protocols.psi.dealing import NUMBER_BYTES, PIECE, Line, Request
from protocols.psi.direct import COUNT_BYTES
from protocols.psi.evaluating import ATTEMPT_BYTES, tag_size
from protocols.psi.flows import whole
from protocols.psi.outcome import Outcome
from protocols.psi.same import check_same
from protocols.psi.sets import OwnSet
from protocols.psi.terms import ALL, COUNT, NOBODY, TEXT_BYTES, Peer, Terms, agree

JOINT, SAME = 3, 5
"""Steps; the last takes two."""
PLACE_BYTES = 4
ROW_S = 3e-6
"""Seconds of a core for each row of a party, where nothing was measured."""


def align_with_dealer(
    channel: Channel,
    dealer: Line,
    own: OwnSet,
    terms: Terms,
    commitment: str,
    agreed: Callable[[Mapping[str, Peer]], None] | None = None,
) -> Alignment:
    """What `aligning.align` gives two parties, all or one of which learn, by a dealer's numbers and no curve.

    channel: to the other party. dealer: a link to a dealer that both trust to work together with neither of them, closed in
    the end; it learns how many bins there are, which follows from a number of rows. Other arguments are those of `align`.
    Raises InputError before anything is sent where three parties align, or where nobody is to learn which ids are common;
    Mismatch where parties disagree, and other PeerErrors, which name the party. The peer and the dealer are told.
    """
    check(terms, (channel.me, *channel.peers))
    try:
        parties = agree(channel, replace(terms, dealer=True), Peer(len(own.ids), commitment))
        if agreed is not None:
            agreed(parties)
        rows = {name: said.rows for name, said in parties.items()}
        asker = asker_of(rows, terms)
        (answerer,) = set(rows) - {asker}
        request = Request(asker, answerer, bins_for(rows[asker]), channel.session.hex())
        theirs = rows[channel.peers[0]]
        if channel.me == asker:
            links = evaluating.asked(channel, dealer, own, request, theirs)
            dealer.close()
            return Alignment(parties, _told(channel, own, terms, links))
        order = evaluating.answered(channel, dealer, own, request, theirs)
        dealer.close()
        return Alignment(parties, _learned(channel, own, terms, order, rows))
    except BaseException as error:  # also an interrupt: the others must not be left waiting
        channel.abort(public_reason(error))
        dealer.abort(public_reason(error))
        raise


def check(terms: Terms, parties: tuple[str, ...]) -> None:
    """Raises InputError unless these parties can align with a dealer under these terms."""
    terms.check(parties)
    why = []
    if len(parties) > 2:
        why.append(f"it is between two parties, not {', '.join(parties)}")
    if terms.learns in (NOBODY, COUNT):
        why.append(f"one party at least learns which ids are common, and learns={terms.learns!r} says that none does")
    if why:
        fix = "align without a dealer, on curves: it takes longer"
        raise InputError(explain("this alignment cannot be made with a dealer", why="; ".join(why), fix=fix))


def asker_of(rows: Mapping[str, int], terms: Terms) -> str:
    """The party whose ids are put into bins: the one that learns, and where both do, that with fewer rows."""
    return min(sorted(rows), key=rows.__getitem__) if terms.learns == ALL else terms.learns


def _told(channel: Channel, own: OwnSet, terms: Terms, links: np.ndarray) -> Outcome:
    """The asker's outcome; what it tells the other."""
    (peer,) = channel.peers
    matched = links >= 0
    common = int(matched.sum())
    if terms.learns == ALL:
        found = np.sort(links[matched])
        count = common.to_bytes(COUNT_BYTES, "little")
        whole(channel, JOINT, {peer: count}, {})
        if common:
            whole(channel, JOINT + 1, {peer: found.astype("<u4").tobytes()}, {})
        positions = np.nonzero(matched)[0][np.argsort(links[matched])]
        check_same(channel, SAME, own, positions)
        return Outcome(common, common, positions)
    positions = np.nonzero(matched)[0] if terms.unmatched == "drop" else np.arange(len(links))
    whole(channel, JOINT, {peer: len(positions).to_bytes(COUNT_BYTES, "little")}, {})
    return Outcome(len(positions), common, positions, {peer: links[positions]})


def _learned(channel: Channel, own: OwnSet, terms: Terms, order: np.ndarray, rows: Mapping[str, int]) -> Outcome:
    """The answerer's outcome, of what it is told."""
    (peer,) = channel.peers
    count = int.from_bytes(whole(channel, JOINT, {}, {peer: COUNT_BYTES})[peer], "little")
    exact = terms.learns != ALL and terms.unmatched == "keep"
    if count != rows[peer] if exact else count > min(rows.values()):
        raise _wrong(peer, f"it says that there are {count} joint rows")
    if terms.learns != ALL:
        return Outcome(count, None if exact else count, order=order)
    found = np.zeros(0, np.int64)
    if count:
        came = whole(channel, JOINT + 1, {}, {peer: PLACE_BYTES * count})[peer]
        found = np.frombuffer(came, "<u4").astype(np.int64)
    if np.any(found >= len(order)) or np.any(found[1:] <= found[:-1]):
        raise _wrong(peer, "it names places of our list that are none, or not in order")
    positions = order[found]
    check_same(channel, SAME, own, positions)
    return Outcome(count, count, positions)


def _wrong(peer: str, why: str) -> BadFrame:
    what = f"party {peer!r} sent an end of the alignment that cannot be"
    fix = "do not trust this party, or the version that it runs"
    return BadFrame(peer, explain(what, where="the alignment of ids", why=why, fix=fix))


def cost_with_dealer(rows: Mapping[str, int], terms: Terms, me: str, joint: int | None = None) -> Cost:
    """What party `me` does on its channel, as `costs.cost` says it; what it tells the dealer is one short message."""
    asker = asker_of(rows, terms)
    joint = min(rows.values()) if joint is None else joint
    both = terms.learns == ALL
    sent = HEADER_BYTES + TEXT_BYTES + both * 2 * (HEADER_BYTES + 32)
    if me != asker:
        sizes = [CHOICES * rows[me] * tag_size(rows[asker], rows[me])]
    else:
        sizes = [ATTEMPT_BYTES + NUMBER_BYTES * bins_for(rows[asker]), COUNT_BYTES]
        sizes += [PLACE_BYTES * joint] if both and joint else []
    rounds = 4 + both * (2 + (joint > 0))
    return Cost(rounds, sent + sum(HEADER_BYTES + size for size in sizes), 0)


def dealt_bytes(rows: Mapping[str, int], terms: Terms) -> int:
    """Bytes that the dealer sends the party that answers, with their headers; to the other one it sends a key alone."""
    bins = bins_for(rows[asker_of(rows, terms)])
    return NUMBER_BYTES * bins + HEADER_BYTES * -(-bins // PIECE)
