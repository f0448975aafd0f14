"""Errors of a client, in one tree; each says what happened, where, why, and what to do next.

    EdgeError
    ├── InputError      an input cannot be shared as it is (also a ValueError)
    ├── ServiceError    the service's file is wrong, or has not what was asked for
    ├── WireError       bytes from outside are not what they should be; `.code` is the refusal they get (also a ValueError)
    ├── Refused         a party refuses a request; `.party`, `.code`, `.status` and `.retry_after` say who and how
    ├── PartyDown       a party, named by `.party`, cannot be reached or does not answer in time
    └── Disagreement    the parties' answers do not belong together, so nothing was added up

They are no errors of `protocols.errors`, since a client has nothing but this package. None holds an input, share or key.
"""

from __future__ import annotations

_MAX_LINE = 500


def printable(text: str) -> str:
    """A text that does nothing to a terminal, in one line of at most 500 characters; parts of it may be a party's."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if len(shown) <= _MAX_LINE else shown[:_MAX_LINE] + " …"


class EdgeError(Exception):
    """Something that a client noticed and can explain."""

    def __init__(self, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.why, self.fix = map(printable, (what, where, why, fix))

    def __str__(self) -> str:
        rest = [("  where: ", self.where), ("  why:   ", self.why), ("  → ", self.fix)]
        return "\n".join([self.what, *(label + text for label, text in rest if text)])


class InputError(EdgeError, ValueError):
    """An input cannot be shared as it is."""


class ServiceError(EdgeError):
    """The service's file is wrong, or has not what was asked for."""


class WireError(EdgeError, ValueError):
    """Bytes from outside are not what they should be; `code` is the refusal that a party answers with."""

    def __init__(self, code: str, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what, where=where, why=why, fix=fix)
        self.code = code


class Refused(EdgeError):
    """A party refuses a request and says why."""

    def __init__(
        self,
        party: str,
        code: str,
        status: int,
        what: str,
        *,
        where: str = "",
        why: str = "",
        fix: str = "",
        retry_after: float | None = None,
        server_time: int | None = None,
    ) -> None:
        super().__init__(f"{party} refuses: {what} ({code})", where=where, why=why, fix=fix)
        self.party, self.code, self.status = party, code, status
        self.retry_after, self.server_time = retry_after, server_time


class PartyDown(EdgeError):
    """A party cannot be reached, or does not answer in time."""

    def __init__(self, party: str, what: str, *, where: str = "", why: str = "", fix: str = "") -> None:
        super().__init__(what, where=where, why=why, fix=fix)
        self.party = party


class Disagreement(EdgeError):
    """The parties' answers do not belong together."""
