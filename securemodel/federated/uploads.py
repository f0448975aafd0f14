"""What one aggregator has of a round: parts of uploads as they come, what it tells the others of them, who is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from protocols.errors import InputError, explain
from securemodel.edge.errors import EdgeError, WireError
from securemodel.edge.updates import (
    CLIENT_RULE,
    Part,
    RoundCard,
    commitment,
    is_client,
    is_sealed,
    read_part,
    unseal_part,
)
from securemodel.federated.spool import Spool

MOST_REFUSED = 1000
"""So many names are kept, beside as many as there are slots: anybody could think of more."""


@dataclass(frozen=True)
class Receipt:
    """What an aggregator tells the others of a part: nothing of these says anything of an update."""

    id: str
    commit: str
    digest: str
    answer_key: str


@dataclass(frozen=True)
class Presence:
    """Who is in, in the order of slots; whose parts did not come everywhere; whose do not belong together, and why."""

    present: tuple[str, ...]
    absent: tuple[str, ...]
    refused: Mapping[str, str]


@dataclass
class Inbox:
    """The parts of a round at one aggregator. `key`: its private X25519 key, for those that were sealed."""

    card: RoundCard
    rank: int
    spool: Spool
    key: Any = field(default=None, repr=False)
    receipts: dict[str, Receipt] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    received_bytes: int = 0
    closed: bool = False
    _known: dict[str, tuple[Part, int]] = field(default_factory=dict, repr=False)
    """By client, its part, which has no body if that is numbers, and where in the file these begin."""

    def __post_init__(self) -> None:
        for path, data in self.spool.all():  # of a process that ended
            try:
                self._keep(read_part(self.card, self.rank, None, data), len(data))
            except WireError as error:
                if error.code in ("other_round", "other_card"):
                    why = "the script, or a version of what it needs, is another one than when they came"
                    fix = "start with what there was then, or begin anew in empty folders at all aggregators"
                    what = f"the uploads to round {self.card.round} were made for another card"
                    raise InputError(explain(what, where=str(self.spool.folder), why=why, fix=fix)) from None
                self.spool.remove(path)  # cut short: nobody counts on it, or the others name who lost it
            else:
                self.received_bytes += len(data)

    def receive(self, client: str, data: bytes) -> None:
        """Takes a client's part. InputError says what is wrong with it; a part that was taken before stays."""
        if not is_client(client):  # other aggregators would not take what this one says of it
            raise InputError(explain(CLIENT_RULE, where=f"client {client!r:.40}", fix="take another name"))
        try:
            self._receive(client, data)
        except InputError as error:
            if client not in self.receipts and len(self.refused) < self.card.slots + MOST_REFUSED:
                self.refused[client] = str(error).split("\n", 1)[0]
            raise

    def _receive(self, client: str, data: bytes) -> None:
        try:
            plain = unseal_part(self.key, self.card, self.rank, client, data) if is_sealed(data) else data
            part = read_part(self.card, self.rank, client, plain)
        except EdgeError as error:
            raise InputError(explain(error.what, where=f"client {client!r}", why=error.why, fix=error.fix)) from error
        if self.closed:
            what = f"an upload came after round {self.card.round} was closed"
            raise InputError(explain(what, where=f"client {client!r}", fix="take part in the next round"))
        before, now = self.receipts.get(client), receipt(part)
        if before == now:
            return  # sent again, as after an answer that was lost
        if before is not None:
            what = f"a second upload in round {self.card.round}: the first one counts"
            raise InputError(explain(what, where=f"client {client!r}", fix="share one update a round"))
        if len(self.receipts) >= self.card.slots:
            what = f"all {self.card.slots} slots of round {self.card.round} are taken"
            raise InputError(explain(what, where=f"client {client!r}", fix="take part in the next round"))
        self.spool.put(client, plain)
        self.received_bytes += len(data)
        self._keep(part, len(plain))
        self.refused.pop(client, None)

    def _keep(self, part: Part, size: int) -> None:
        self.receipts[part.client] = receipt(part)
        body = bytes(part.body) if part.form == "seed" else b""
        self._known[part.client] = (replace(part, body=body), size - len(part.body))

    def part(self, client: str) -> Part:
        """A client's part; its numbers are read in place."""
        part, start = self._known[client]
        return part if part.form == "seed" else replace(part, body=self.spool.get(client)[start:])


def receipt(part: Part) -> Receipt:
    """What an aggregator tells the others of a part."""
    return Receipt(part.id, part.commit, part.digest, part.answer_key)


def agree(receipts: Sequence[Mapping[str, Receipt]], slots: int) -> Presence:
    """Who is in, of what all aggregators have, by rank: every one of them comes to the same."""
    known = sorted(set().union(*receipts))
    everywhere = [client for client in known if all(client in mine for mine in receipts)]
    refused = {client: why for client in everywhere if (why := _apart([mine[client] for mine in receipts]))}
    present = [client for client in everywhere if client not in refused]
    refused |= {client: "all slots are taken" for client in present[slots:]}
    return Presence(tuple(present[:slots]), tuple(c for c in known if c not in everywhere), refused)


def _apart(parts: Sequence[Receipt]) -> str:
    """Why parts are not those of one upload, or nothing."""
    whole = commitment([part.digest for part in parts])
    same = len({(part.id, part.commit, part.answer_key) for part in parts}) == 1 and parts[0].commit == whole
    return "" if same else "its parts belong to different uploads"
