"""Where the parties of this process are, and how programs run among all parties: one after the other, over one connection."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, cast

import torch

from protocols.channel import Channel, Label, Link, dial
from protocols.errors import ConfigError, InputError, ProtocolError, explain
from protocols.identity import DEALER, Identity, PartiesConfig
from protocols.psi.terms import Terms
from securemodel.data.align import Aligned, align, align_here
from securemodel.data.query import CompiledQuery, Piece
from securemodel.data.remembered import Book
from securemodel.invocation import current
from securemodel.ledger import QUESTION, Ledger, book_of, record_for
from securemodel.program import Program
from securemodel.sessions.masked import open_connection, open_local
from securemodel.sessions.remote import aborting, join
from securemodel.sessions.session import Session

States = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class About:
    """What the ledger has of the rows that a question is about: how many there are, and a digest that tells which."""

    rows: int
    digest: str

    def said(self, name: str) -> dict[str, Any]:
        """The field of a line."""
        return {QUESTION: {"name": name, "rows": self.digest}}


class Place(ABC):
    """The parties of this process, and their way to the others. A context manager."""

    parties: tuple[str, ...]
    here: tuple[str, ...]
    """The parties of this process."""

    def ask(self, compiled: CompiledQuery, about: About | None = None) -> dict[str, torch.Tensor | None]:
        """Runs a query's programs; its results by name, None for what nobody here may learn. Every party asks the same.

        `about`: what the ledger has of the rows.
        """
        states: States = {me: {} for me in self.here}
        for piece in compiled.pieces:
            found = self._run(
                piece, states, about.said(compiled.query.name) if about else {}, about.rows if about else None
            )
        names = compiled.pieces[-1].program.result_names
        values = found if isinstance(found, tuple) else (found,)
        return dict(zip(names, values, strict=True))

    def _run(self, piece: Piece, states: States, said: Mapping[str, Any], rows: int | None) -> Any:
        """The runs of one program, which goes on with the shares that the one before it kept; what the last one returns."""
        session = self.opened(piece)
        if session.record:
            common = {**session.record.common, **said}
            session.record = replace(session.record, common=common, about=None if piece.batches else rows)
        session.load(piece.program, piece.program.model)
        for me, walk in session.walks.items():
            party = cast(Any, walk).party
            party.kept = {name: states[me].get(name, share) for name, share in party.kept.items()}
        found = None
        for run in range(piece.runs):
            found = session.run(*piece.inputs(run, lambda name: name in self.here))
        for me, walk in session.walks.items():
            states[me].update(cast(Any, walk).party.kept)
        self.left(session)
        return found

    @abstractmethod
    def opened(self, piece: Piece) -> Session:
        """A session of a program."""

    @abstractmethod
    def left(self, session: Session) -> None:
        """The end of such a session."""

    @abstractmethod
    def swap(self, label: Label, sends: Mapping[str, bytes], sizes: Mapping[str, int]) -> dict[str, dict[str, bytes]]:
        """Each party here sends the same bytes to all others; what each party here got, by sender. `sizes`: of each party's."""

    @abstractmethod
    def aligned(
        self, ids: Mapping[str, Sequence[bytes]], terms: Terms, minimum: int, tables: Mapping[str, str]
    ) -> dict[str, Aligned]:
        """What the parties here learn of whose rows belong together. `ids` of their rows, `tables`: digests of their tables."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Tells the peers why this party stops."""

    @abstractmethod
    def close(self) -> None:
        """Ends the connection. Harmless when it has ended."""

    def __enter__(self):
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.fail(error)
        self.close()


@dataclass
class Here(Place):
    """All parties in this process."""

    parties: tuple[str, ...]
    ledger: Ledger | None = None

    def __post_init__(self) -> None:
        if me := current().me:
            what = f"this process is party {me!r}, and its script calls local()"
            why = "it would read the files of all parties"
            raise ConfigError(
                explain(what, why=why, fix="call data.connect(); data.local() is for scripts that python runs")
            )
        self.here = self.parties

    def opened(self, piece: Piece) -> Session:
        session = open_local(piece.program)
        if self.ledger:
            session.record = record_for(self.ledger, piece.program, "all", os.urandom(16))
        return session

    def left(self, session: Session) -> None:
        session.close()

    def swap(self, label: Label, sends: Mapping[str, bytes], sizes: Mapping[str, int]) -> dict[str, dict[str, bytes]]:
        return {me: {peer: data for peer, data in sends.items() if peer != me} for me in sends}

    def aligned(
        self, ids: Mapping[str, Sequence[bytes]], terms: Terms, minimum: int, tables: Mapping[str, str]
    ) -> dict[str, Aligned]:
        return align_here(ids, terms, minimum=minimum, tables=tables)

    def fail(self, error: BaseException) -> None:
        """Nobody waits for the parties of this process."""

    def close(self) -> None:
        """Nothing is open between two queries."""


@dataclass
class There(Place):
    """One party, linked with the others."""

    parties: tuple[str, ...]
    me: str
    channel: Channel
    connect: Callable[[Program, Channel, bool], Session]
    dealer: Callable[[], Link]
    """Opens a link to the dealer."""
    ledger: Ledger | None = None
    numbers: Any = field(default_factory=count)
    session: Session | None = None

    def __post_init__(self) -> None:
        self.here = (self.me,)

    def opened(self, piece: Piece) -> Session:
        self._check_open()
        with aborting(self.channel):
            self.session = session = self.connect(piece.program, self.channel, piece.runs > 1)
        number = next(self.numbers).to_bytes(
            8, "little"
        )  # the same at all parties, and no two sessions of a channel are one
        if self.ledger:
            session.record = record_for(self.ledger, piece.program, self.me, self.channel.session + number)
        return session

    def left(self, session: Session) -> None:
        session.leave()
        self.session = None

    def swap(self, label: Label, sends: Mapping[str, bytes], sizes: Mapping[str, int]) -> dict[str, dict[str, bytes]]:
        self._check_open()
        peers = [name for name in self.parties if name != self.me]
        data = torch.frombuffer(bytearray(sends[self.me]), dtype=torch.uint8)
        with aborting(self.channel):
            got = self.channel.exchange(label, {peer: [data] for peer in peers}, {peer: sizes[peer] for peer in peers})
        return {self.me: {peer: part.numpy().tobytes() for peer, part in got.items()}}

    def aligned(
        self, ids: Mapping[str, Sequence[bytes]], terms: Terms, minimum: int, tables: Mapping[str, str]
    ) -> dict[str, Aligned]:
        self._check_open()
        book, number = Book(self.ledger) if self.ledger else None, next(self.numbers)
        return {
            self.me: align(
                ids[self.me],
                self.channel,
                terms,
                minimum=minimum,
                table=tables[self.me],
                book=book,
                number=number,
                dealer=self.dealer,
            )
        }

    def _check_open(self) -> None:
        if self.channel.closed:
            raise ProtocolError(explain("the connection has ended", fix="connect again; every party has to"))

    def fail(self, error: BaseException) -> None:
        if self.session:
            self.session._fail(error)
        elif not self.channel.closed:
            with aborting(self.channel):
                raise error

    def close(self) -> None:
        if self.session:
            self.session.close()
        elif not self.channel.closed:
            self.channel.close()


@dataclass
class Nowhere(Place):
    """One party before it has reached the others, which it takes to have as many rows: for plans alone."""

    parties: tuple[str, ...]
    me: str

    def __post_init__(self) -> None:
        self.here = (self.me,)

    def _refuse(self) -> Any:
        raise InputError(explain("nobody is connected yet", fix="ask the table that data.connect returns"))

    def opened(self, piece: Piece) -> Session:
        return self._refuse()

    def left(self, session: Session) -> None:
        self._refuse()

    def swap(self, label: Label, sends: Mapping[str, bytes], sizes: Mapping[str, int]) -> dict[str, dict[str, bytes]]:
        return {self.me: {peer: sends[self.me] for peer in self.parties if peer != self.me}}

    def aligned(
        self, ids: Mapping[str, Sequence[bytes]], terms: Terms, minimum: int, tables: Mapping[str, str]
    ) -> dict[str, Aligned]:
        return self._refuse()

    def fail(self, error: BaseException) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Nothing is open."""


def here(parties: tuple[str, ...], ledger: str | Path | None = None) -> Here:
    """All parties in this process. Raises ConfigError where a command started it as one party."""
    return Here(parties, book_of(ledger or False))


def there(
    parties: tuple[str, ...],
    me: str,
    config: PartiesConfig,
    own: Identity | None,
    ledger: str | Path | bool = True,
) -> There:
    """Connects one party with the others; without an identity, not encrypted. Raises LedgerError, PeerAbsent, IdentityError."""
    book, plain = book_of(ledger), own is None

    def connect(program: Program, channel: Channel, ahead: bool) -> Session:
        return open_connection(program, me, config, channel=channel, insecure_plain=plain, ahead=ahead)

    def dealer() -> Link:
        return dial(me, DEALER, config, own, session=joined.session, insecure_plain=plain)

    joined = join(me, config, own, plain)
    return There(parties, me, joined, connect, dealer, book)
