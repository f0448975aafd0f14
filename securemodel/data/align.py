"""Alignment: which rows of the parties' tables are about the same id, as each party may know it.

What is found out, and for whom, has no default: that somebody is in a file is personal data. `protocols/psi` has the
protocols; here are what is written down of them, what they warn of, and what they give to a joint table.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from protocols.channel import Channel
from protocols.errors import InputError, explain, public_reason
from protocols.names import DEALER
from protocols.psi.aligning import align as align_ids
from protocols.psi.dealing import Line
from protocols.psi.outcome import Outcome
from protocols.psi.sets import SALT_BYTES, OwnSet, own_set, shuffled
from protocols.psi.terms import ALL, COUNT, NOBODY, Peer, Terms
from protocols.psi.with_dealer import align_with_dealer
from protocols.psi.with_dealer import check as check_with_dealer
from securemodel.data.remembered import Book
from securemodel.sessions.remote import aborting

IDS = Sequence[bytes]


class TooFewRows(InputError):
    """Fewer rows are joint than the schema wants for any result."""

    told = "fewer of the ids are common than the schema's minimum"


class ChangedSetWarning(UserWarning):
    """A set of ids is another one than in an earlier alignment of the same parties: the difference may name persons."""


@dataclass(frozen=True, repr=False)
class Aligned:
    """What an alignment gave one party; rows are counted from 0. Nothing of it is for other parties.

    rows: joint rows, known to all. common: how many ids all parties have, where this party learns it.
    parties: by party, rows and commitment of its set. terms: what was agreed on.
    outcome: positions, links, order or places, depending on who learns (see protocols.psi.outcome).
    id: 32 hexadecimal digits, the same at all parties and of this alignment alone.
    table: the digest of the table whose rows these are, where one was named.
    """

    me: str
    terms: Terms
    parties: Mapping[str, Peer]
    outcome: Outcome
    id: str
    table: str = ""

    def __repr__(self) -> str:
        sizes = ", ".join(f"{name} {said.rows}" for name, said in self.parties.items())
        return f"Aligned({self.me!r}, learns={self.terms.learns!r}, {self.rows} joint rows of {sizes})"

    @property
    def rows(self) -> int:
        """Joint rows; 0 with learns="count"."""
        return self.outcome.rows

    @property
    def common(self) -> int | None:
        """How many ids all parties have; None where this party does not learn it."""
        return self.outcome.common

    @property
    def hidden(self) -> bool:
        """Whether some joint rows may lack a party, and not all know which: then rows have secret weights 0 or 1."""
        learns = self.terms.learns
        return learns == NOBODY or (learns not in (ALL, COUNT) and self.terms.unmatched == "keep")

    @property
    def positions(self) -> np.ndarray | None:
        """int64[rows]: this party's row at each joint row, -1 where it has none; None where it does not know.

        Where one party learns, the others do not know: their rows are brought to it by `permute` (`links` and `order`).
        """
        if self.outcome.places is None:
            return self.outcome.positions
        positions = np.full(self.rows, -1)
        positions[self.outcome.places] = np.arange(len(self.outcome.places))
        return positions

    @property
    def presence(self) -> np.ndarray | None:
        """float64[rows], 0 or 1: this party's part of the weight of each joint row; None where it has none.

        The product of all parties' parts is 1 where all of them have the id. With learns="nobody" each has its own; where
        one party learns and keeps all its rows, it alone has one.
        """
        if self.outcome.places is not None:
            there = np.zeros(self.rows)
            there[self.outcome.places] = 1
            return there
        if self.hidden and self.outcome.links:
            return np.prod([places >= 0 for places in self.outcome.links.values()], axis=0, dtype=np.float64)
        return None


def revealed(parties: Sequence[str], terms: Terms) -> dict[str, list[str]]:
    """Who learns what, by receiver; "all" is every party. That is beside each party's number of rows, which all learn."""
    said: dict[str, list[str]] = {}
    several = len(parties) > 2
    if terms.learns == ALL:
        said["all"] = ["which of its ids all parties have"]
    elif terms.learns == COUNT:
        said["all"] = ["how many ids all parties have"]
    elif terms.learns == NOBODY:
        number = "how many different ids the parties have together"
        said["all"] = [number if several else f"{number}, so how many are common"]
    else:
        said[terms.learns] = ["which of its ids each other party has"]
        if terms.unmatched == "drop":
            said["all"] = ["how many ids all parties have"]
    if terms.dealer:
        said[DEALER] = ["about how many rows the party has whose ids are put into bins"]
    if several and terms.learns in (ALL, COUNT, NOBODY):
        said[min(parties)] = ["how many ids each set of parties has in common"]
    return said


def align(
    ids: IDS,
    channel: Channel,
    terms: Terms,
    *,
    minimum: int = 0,
    table: str = "",
    book: Book | None = None,
    workers: int | None = None,
    number: int = 0,
    dealer: Callable[[], Line] | None = None,
) -> Aligned:
    """Aligns this party's rows with those of all peers of a channel.

    ids: canonical bytes, one for each row (`Table.ids`). minimum: fewer common ids are an error at all who may learn it.
    table: the digest of the table. book: where the sets are written down and compared with earlier ones, which may give a
    ChangedSetWarning. number: of the alignments of this channel, from 0. dealer: opens a link to the dealer, where the
    terms say that one helps. Raises InputError before anything is sent for missing or equal ids, and for terms that need
    no dealer; TooFewRows; LedgerError; Mismatch and other PeerErrors.
    """
    own = own_set(ids)
    salt = book.salt() if book else os.urandom(SALT_BYTES)

    def agreed(parties: Mapping[str, Peer]) -> None:
        if book is None:
            return
        for name, when in book.changed(channel.me, parties):
            warnings.warn(ChangedSetWarning(_changed(name, when)), stacklevel=4)
        session = hashlib.sha256(b"ledger" + channel.session).hexdigest()[:16]
        book.write(channel.me, parties, session, terms.rules, revealed(tuple(parties), terms))

    commitment = own.commitment(channel.me, salt)
    if terms.dealer and dealer is not None:
        check_with_dealer(terms, (channel.me, *channel.peers))
        with aborting(channel):
            line = dealer()
        made = align_with_dealer(channel, line, own, terms, commitment, agreed)
    else:
        made = align_ids(channel, own, terms, commitment, workers, agreed)
    aligned = Aligned(
        channel.me,
        terms,
        made.parties,
        made.outcome,
        _id_of(channel.session + number.to_bytes(8, "little"), made.parties),
        table,
    )
    try:
        check_minimum(aligned, minimum)
    except TooFewRows as error:
        channel.abort(public_reason(error))
        raise
    return aligned


def align_here(
    ids: Mapping[str, IDS], terms: Terms, *, minimum: int = 0, tables: Mapping[str, str] | None = None
) -> dict[str, Aligned]:
    """The same for parties who are all in this process, by name: a plain join, as nothing has to be hidden from anybody.

    Joint rows are in a random order, and each party gets what it would get from the protocol.
    """
    names = tuple(sorted(ids))
    (check_with_dealer if terms.dealer else Terms.check)(terms, names)
    owns = {name: own_set(ids[name]) for name in names}
    for name, own in owns.items():
        if not 0 < len(own.ids) <= terms.largest:
            fix = f"give between 1 and {terms.largest} rows, or another `largest`"
            raise InputError(explain(f"{len(own.ids)} rows of {name!r} cannot be aligned", fix=fix))
    salt = os.urandom(SALT_BYTES)
    parties = {name: Peer(len(own.ids), own.commitment(name, salt)) for name, own in owns.items()}
    rows = {name: {item: row for row, item in enumerate(own.ids)} for name, own in owns.items()}
    tables, number = tables or {}, _id_of(salt, parties)
    made = {
        name: Aligned(name, terms, parties, each, number, tables.get(name, ""))
        for name, each in _joined(owns, rows, terms).items()
    }
    for aligned in made.values():
        check_minimum(aligned, minimum)
    return made


def _id_of(session: bytes, parties: Mapping[str, Peer]) -> str:
    """No two alignments of a session have the same: sets that did not change are aligned in another order each time."""
    said = "".join(f" {name}:{each.rows}:{each.commitment}" for name, each in sorted(parties.items()))
    return hashlib.sha256(b"alignment " + session + said.encode()).hexdigest()[:32]


def check_minimum(aligned: Aligned, minimum: int) -> None:
    """Raises TooFewRows where this party learns how many ids are common, and there are fewer than `minimum`, or none."""
    common = aligned.common
    if common is None or common >= max(1, minimum) or aligned.terms.learns == COUNT:
        return
    why = f"the schema's minimum is {minimum}" if common else "all ids of all parties are different"
    fix = (
        "see whether all write ids alike (case, blanks, leading zeros, dates), and whether the files belong together; "
        "the rules are in the schema: normalize"
    )
    raise TooFewRows(explain(f"{common} common ids", where="the alignment", why=why, fix=fix))


def _joined(owns: Mapping[str, OwnSet], rows: Mapping[str, Mapping[bytes, int]], terms: Terms) -> dict[str, Outcome]:
    names = tuple(owns)
    shared = [item for item in owns[names[0]].ids if all(item in rows[name] for name in names)]
    common = len(shared)
    if terms.learns == COUNT:
        return dict.fromkeys(names, Outcome(0, common))
    if terms.learns == ALL:
        order = [shared[at] for at in shuffled(common).tolist()]
        return {name: Outcome(common, common, _rows(rows[name], order)) for name in names}
    if terms.learns == NOBODY:
        every = list(dict.fromkeys(item for name in names for item in owns[name].ids))
        place = dict(zip(every, shuffled(len(every)).tolist(), strict=True))
        known = common if len(names) == 2 else None
        return {name: Outcome(len(every), known, places=_rows(place, owns[name].ids)) for name in names}
    return _learned(owns, rows, terms, common)


def _learned(
    owns: Mapping[str, OwnSet], rows: Mapping[str, Mapping[bytes, int]], terms: Terms, common: int
) -> dict[str, Outcome]:
    learner, drop = terms.learns, terms.unmatched == "drop"
    others = [name for name in owns if name != learner]
    kept = [row for row, item in enumerate(owns[learner].ids) if not drop or all(item in rows[name] for name in others)]
    made, links = {}, {}
    for name in others:
        order = shuffled(len(owns[name].ids))
        places = np.empty(len(order) + 1, np.int64)
        places[order], places[-1] = np.arange(len(order)), -1
        found = [rows[name].get(owns[learner].ids[row], -1) for row in kept]
        links[name] = places[np.array(found, np.int64)]
        made[name] = Outcome(len(kept), common if drop else None, order=order)
    made[learner] = Outcome(len(kept), common, np.array(kept, np.int64), links)
    return made


def _rows(rows: Mapping[bytes, int], order: Sequence[bytes]) -> np.ndarray:
    return np.array([rows[item] for item in order], np.int64)


def _changed(name: str, when: str) -> str:
    return explain(
        f"the ids of {name!r} are not those of the alignment of {when[:16].replace('T', ' ')} (UTC)",
        why="who sees the results of both may find out which persons came or went",
        fix="align the same set again, or go on if that is known and wanted; the ledger has both",
    )
