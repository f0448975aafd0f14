"""What a party remembers of alignments, in its ledger: whose sets of ids they were, so that a changed one is noticed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from protocols.errors import ConfigError, DecodeError, explain
from protocols.files import read_secret, write_secret
from protocols.psi.sets import SALT_BYTES, new_salt
from protocols.psi.terms import Peer
from protocols.strict import typed
from securemodel.errors import LedgerError
from securemodel.ledger import SETS, Ledger, book_of, read_ledger

_WHAT = "the salt of the ledger's commitments"
_KINDS: dict[str, type | tuple[type, ...]] = {"rows": int, "commitment": str}


@dataclass(frozen=True)
class Book:
    """A ledger in which alignments are written, and the salt beside it, which is one's own secret."""

    ledger: Ledger

    @property
    def salt_path(self) -> Path:
        """Where the salt is."""
        return self.ledger.path.with_name(self.ledger.path.name + ".salt")

    def salt(self) -> bytes:
        """32 bytes, made once: with them the same set has the same commitment in every alignment. Raises LedgerError."""
        try:
            if not self.salt_path.exists():
                try:
                    write_secret(self.salt_path, new_salt(), _WHAT, new=True)
                except FileExistsError:
                    pass  # another process was faster
            salt = read_secret(self.salt_path, _WHAT)
        except (OSError, ConfigError) as error:
            raise LedgerError(explain(f"{_WHAT} cannot be used", where=str(self.salt_path), why=str(error))) from None
        if len(salt) != SALT_BYTES:
            fix = "restore it, or remove it: then sets count as changed in the next alignment"
            raise LedgerError(explain(f"{_WHAT} is damaged", where=str(self.salt_path), fix=fix))
        return salt

    def write(
        self, me: str, parties: Mapping[str, Peer], session: str, schema: str, reveals: Mapping[str, list[str]]
    ) -> None:
        """Writes down an alignment before it is made. Raises LedgerError."""
        self.ledger.append(
            {
                "session": session,
                "epoch": 0,
                "program": schema,
                "protocol": "alignment",
                "me": me,
                "peers": [name for name in parties if name != me],
                "reveals": reveals,
                "rows": parties[me].rows,
                SETS: {name: asdict(said) for name, said in parties.items()},
            }
        )

    def changed(self, me: str, parties: Mapping[str, Peer]) -> Iterator[tuple[str, str]]:
        """Parties whose set is another than in the last alignment of the same ones, and when that was.

        Raises LedgerError where the ledger cannot be read.
        """
        for when, before in self._last(me, set(parties)):
            yield from ((name, when) for name, said in parties.items() if before[name] != said)

    def _last(self, me: str, names: set[str]) -> Iterator[tuple[str, dict[str, Peer]]]:
        for line in reversed(read_ledger(self.ledger.path).lines):
            fields = line.fields
            if fields["me"] == me and set(fields.get(SETS, ())) == names:
                try:
                    yield fields["time"], {name: _peer(value) for name, value in fields[SETS].items()}
                except DecodeError:
                    continue
                return


def alignments_of(ledger: str | Path | bool) -> Book | None:
    """The book of that path; True: that of the user's own ledger; False: none. Raises LedgerError."""
    found = book_of(ledger)
    return Book(found) if found else None


def _peer(value: Any) -> Peer:
    fields = typed(value, "a set of the ledger", _KINDS)
    return Peer(fields["rows"], fields["commitment"])
