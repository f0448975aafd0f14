"""Where the parties of this process are, and how they reach the others: all in one process, or one linked with its peers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Protocol, cast

import torch

from protocols.channel import Channel, Label
from protocols.devices import Device
from protocols.errors import ConfigError, explain
from protocols.files import read_secret
from protocols.identity import PartiesConfig
from securemodel.engines.masked.tables import Tables
from securemodel.invocation import current
from securemodel.ledger import book_of, record_for
from securemodel.program import Program
from securemodel.sessions.masked import open_local
from securemodel.sessions.remote import aborting, place
from securemodel.sessions.session import Session
from securemodel.training import checkpoints


class Party(Protocol):
    """What a run needs of the party of a walk: its shares of the states, and the same under fresh shares of zero."""

    kept: Any  # dict[str, torch.Tensor | None]

    def fresh(self, times: int) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True, repr=False)
class Place(ABC):
    """The parties of this process in a session, which is of one program at a time."""

    session: Session

    @property
    def parties(self) -> Mapping[str, Party]:
        return {name: cast(Any, walk).party for name, walk in self.session.walks.items()}

    @abstractmethod
    def swap(
        self, label: Label, sends: Mapping[str, bytes], to: Sequence[str] = (), sizes: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, bytes]]:
        """Each party here sends the same bytes to all others (or those in `to`); what each party here got, by sender.

        `sizes`: how many bytes each party sends; without it, all send as many.
        """

    @abstractmethod
    def key(self, me: str, folder: Path) -> bytes:
        """The key of a party's checkpoints."""

    @abstractmethod
    def fail(self, error: BaseException) -> None:
        """Tells the peers why this party stops."""

    @abstractmethod
    def opened(self, program: Program, tables: Mapping[str, Tables]) -> Place:
        """Ends the session, and opens one of another program."""


@dataclass(frozen=True, repr=False)
class Local(Place):
    """All parties in this process. `device`: what they compute on."""

    device: Device = None

    @classmethod
    def of(cls, session: Session, device: Device = None) -> Local:
        """The first session of a run. Raises ConfigError in a process that was started as one party."""
        if me := current().me:
            what = f"this process is party {me!r}, and its script calls local() of a job"
            why = "every party would train alone, with the data of all in its own process"
            raise ConfigError(
                explain(what, why=why, fix="call job.connect(); job.local() is for scripts that python runs")
            )
        return cls(session, device)

    def swap(
        self, label: Label, sends: Mapping[str, bytes], to: Sequence[str] = (), sizes: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, bytes]]:
        return {me: {peer: data for peer, data in sends.items() if peer != me} for me in sends if not to or me in to}

    def key(self, me: str, folder: Path) -> bytes:
        return checkpoints.key_in(folder)

    def fail(self, error: BaseException) -> None:
        """Nobody waits for the parties of this process."""

    def opened(self, program: Program, tables: Mapping[str, Tables]) -> Local:
        self.session.close()
        return Local(open_local(program, self.device, tables=tables), self.device)


@dataclass(frozen=True, repr=False)
class Remote(Place):
    """One party, linked with the others. `open` makes a session of another program, over the channel of the one before."""

    secret: bytes
    open: Callable[[Program, Tables, Channel | None], Session]

    def swap(
        self, label: Label, sends: Mapping[str, bytes], to: Sequence[str] = (), sizes: Mapping[str, int] | None = None
    ) -> dict[str, dict[str, bytes]]:
        me, channel = self.session.me, self.session.channel
        ((_, data),) = sends.items()
        peers = [name for name in self.session.program.parties if name != me]
        out = {peer: [torch.frombuffer(bytearray(data), dtype=torch.uint8)] for peer in peers if not to or peer in to}
        expected = {peer: sizes[peer] if sizes else len(data) for peer in peers if not to or me in to}
        with self.session._guarded():
            got = channel.exchange(label, out, expected)
        return {me: {peer: part.numpy().tobytes() for peer, part in got.items()}}

    def key(self, me: str, folder: Path) -> bytes:
        return checkpoints.key_for(self.secret, me)

    def fail(self, error: BaseException) -> None:
        self.session._fail(error)

    def opened(self, program: Program, tables: Mapping[str, Tables]) -> Remote:
        channel = self.session.leave()
        with aborting(*([channel] if channel else [])):
            return Remote(self.open(program, tables[self.session.me], channel), self.secret, self.open)


def remote(
    program: Program,
    me: str | None,
    config: str | Path | PartiesConfig | None,
    connect: Callable[[Program, str, PartiesConfig, Tables, Channel | None], Session],
    tables: Tables | None = None,
    *,
    ledger: str | Path | bool,
    insecure_plain: bool,
) -> Remote:
    """This party's end between processes, whose sessions are written into its ledger. `connect` opens each of them."""
    counted = count()
    name, parties, own = place(program.parties, me, config, insecure_plain, "train")
    book = book_of(ledger)

    def opened(program: Program, tables: Tables, channel: Channel | None) -> Session:
        session = connect(program, name, parties, tables, channel)
        number = next(counted).to_bytes(
            8, "little"
        )  # the same at all parties, and no two sessions of a channel are one
        if book:
            session.record = record_for(book, program, session.me, session.channel.session + number)
        return session

    secret = b"insecure" if own is None else read_secret(own.key_path, "a private key")
    return Remote(opened(program, tables or Tables(), None), secret, opened)
