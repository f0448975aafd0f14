"""What the parties of an alignment agree on before anything that follows from an id is sent."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from protocols.channel import Channel, Label, Purpose
from protocols.errors import DecodeError, InputError, Mismatch, explain
from protocols.names import NAME_RULE, is_name
from protocols.strict import strict_fields

ALL, NOBODY, COUNT = "all", "nobody", "count"
EPOCH = 1 << 41
"""Epochs of programs are below 2^40: from here on they are the steps of an alignment."""
MOST_ROWS = 1 << 31
MOST_IDS = 10_000_000
"""Of one party, unless the parties agree on another number."""
_VERSION = 1
TEXT_BYTES = 1024
_AGREE = Label(EPOCH, 0, Purpose.CONTROL)
_KINDS: dict[str, type | tuple[type, ...]] = {
    "version": int, "dealer": bool, "learns": str, "unmatched": str, "rules": str, "largest": int, "rows": int, "commitment": str,
}  # fmt: skip
_WORDS = {
    "version": "version of securemodel",
    "dealer": "answers to whether there is a dealer",
    "learns": "learns",
    "unmatched": "unmatched",
    "rules": "rules for ids",
    "largest": "largest",
}


@dataclass(frozen=True)
class Terms:
    """What is found out, and for whom; the same at all parties.

    learns: "all": every party learns which of its rows are common; a party's name: it alone does; "nobody": each gets
    the places of its rows in the union of all ids, and none learns which are common; "count": how many are, and nothing
    else. rules: a digest of how ids are made of columns. largest: no party may bring more rows. unmatched, where one
    party learns: "keep": all its rows are joint rows, and the others do not learn how many are matched; "drop": the
    matched ones are, and the others learn their number. dealer: whether one helps; `align_with_dealer` says so itself.
    """

    learns: str
    rules: str = ""
    largest: int = MOST_IDS
    unmatched: str = "keep"
    dealer: bool = False

    def check(self, parties: tuple[str, ...]) -> None:
        """Raises InputError, with all that is wrong, unless these parties can align under these terms."""
        problems = []
        clash = [name for name in parties if name in (NOBODY, COUNT) or not is_name(name)]
        if clash:
            problems.append(
                f"no party of an alignment can be called {', '.join(clash)}: {NAME_RULE}, or a word of learns"
            )
        if len(set(parties)) < max(2, len(parties)):
            problems.append(f"an alignment has two or more parties with different names, not {', '.join(parties)}")
        if self.learns not in (ALL, NOBODY, COUNT, *parties):
            problems.append(f"learns={self.learns!r} is none of {', '.join((ALL, NOBODY, COUNT, *parties))}")
        if self.unmatched not in ("keep", "drop"):
            problems.append(f"unmatched={self.unmatched!r} is neither 'keep' nor 'drop'")
        if type(self.largest) is not int or not 0 < self.largest <= MOST_ROWS:
            problems.append(f"largest={self.largest!r} is not a whole number between 1 and {MOST_ROWS}")
        if problems:
            fix = "say who may learn which ids are common: that somebody is in a file is personal data"
            raise InputError(explain("this alignment cannot be made", why="; ".join(problems), fix=fix))


@dataclass(frozen=True)
class Peer:
    """What a party says of its set: how many rows, and its commitment."""

    rows: int
    commitment: str


def agree(channel: Channel, terms: Terms, mine: Peer) -> dict[str, Peer]:
    """Compares the terms with all peers and tells them one's number of rows. What all said, by name, in order of names.

    Raises Mismatch, which says what differs, and InputError for a set of one's own that is too large or empty.
    """
    if not 0 < mine.rows <= terms.largest:
        fix = "agree on a larger `largest` with all parties" if mine.rows else "give a file with rows"
        raise InputError(explain(f"{mine.rows} rows cannot be aligned", why=f"largest={terms.largest}", fix=fix))
    own = {"version": _VERSION, **asdict(terms)}
    text = json.dumps({**own, "rows": mine.rows, "commitment": mine.commitment}).encode().ljust(TEXT_BYTES)
    sizes = dict.fromkeys(channel.peers, TEXT_BYTES)
    received = channel.exchange(_AGREE, {peer: [text] for peer in channel.peers}, sizes)
    said = {peer: _read(own, payload.numpy().tobytes(), peer, terms) for peer, payload in received.items()}
    return dict(sorted({channel.me: mine, **said}.items()))


def _read(own: dict[str, object], text: bytes, peer: str, terms: Terms) -> Peer:
    try:
        theirs = strict_fields(text, "a statement", _KINDS, TEXT_BYTES)
        differ = [_WORDS[name] for name, value in own.items() if theirs[name] != value]
    except DecodeError:
        raise _mismatch(peer, "a different version of securemodel") from None
    if differ:
        raise _mismatch(peer, f"different {' and '.join(differ)}")
    if not 0 < theirs["rows"] <= terms.largest:
        raise _mismatch(peer, f"{theirs['rows']} rows, and at most {terms.largest} were agreed on")
    if len(theirs["commitment"]) != 64 or not set(theirs["commitment"]) <= set("0123456789abcdef"):
        raise _mismatch(peer, "a commitment to its ids that is none")
    return Peer(theirs["rows"], theirs["commitment"])


def _mismatch(peer: str, what: str) -> Mismatch:
    return Mismatch(
        peer,
        explain(
            f"party {peer!r} does not align what we align: {what}",
            where="agreement before the first message about ids",
            why="all parties must say alike who learns what, how ids are made and how many rows there may be",
            fix="compare the schema, learns=, unmatched=, largest= and the versions of both parties",
        ),
    )
