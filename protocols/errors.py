"""Every error this project raises on purpose, in one tree.

    SecureModelError
    ├── ConfigError              a configuration or key file is wrong
    ├── InputError               a call was given something it cannot use (also a ValueError)
    ├── FileError                a file cannot be read or written
    ├── DecodeError              a text or bytes from outside are not what they should be (also a ValueError)
    ├── PreprocessingError       something is wrong with the stored correlated randomness
    │   ├── PreprocessingUsedUp      there is none left
    │   └── PreprocessingReused      it was used before, and using it twice would leak
    └── ProtocolError            the parties cannot go on together
        └── PeerError                because of one party; `.party` is its name
            ├── PeerAbsent           it never came
            ├── PeerDied             its connection ended
            ├── PeerStalled          it is connected, but silent for too long
            ├── PeerAborted          it stopped and told us why
            ├── BadFrame             it sent a message other than the one the protocol says is next
            ├── Mismatch             it runs another program, version or configuration
            └── IdentityError        it is not who it should be

`str(error)` is a complete text for a person: what happened, where, why, and what to do next. It never contains
a share, a key or a secret value. All errors can be pickled, so they survive a process pool.
"""

from __future__ import annotations

_MAX_LINE, _MAX_LINES = 2000, 40
_MAX_REASON = 1024


def printable(text: str) -> str:
    """A text that does nothing to a terminal: all that does not print, but for line ends, is spelled out (`\\x1b`).

    These are control characters, escape sequences, and marks that hide or that turn the direction of writing.
    Parts of a text may come from a peer, so lines are cut at 2000 characters.
    """
    shown = (char if char == "\n" or char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return "\n".join(line if len(line) <= _MAX_LINE else line[:_MAX_LINE] + " …" for line in "".join(shown).split("\n"))


def explain(what: str, *, where: str = "", why: str = "", fix: str = "") -> str:
    """The text of an error: what happened, and on lines of their own where, why and what to do next."""
    parts = [what]
    if where:
        parts.append(f"  where: {where}")
    if why:
        parts.append(f"  why:   {why}")
    if fix:
        parts.append(f"  → {fix}")
    return "\n".join("\n         ".join(printable(part).split("\n")[:_MAX_LINES]) for part in parts)


def summary(error: BaseException) -> str:
    """What an error says happened and where, in one line. Of errors that are not ours only the kind: they may hold data."""
    if not isinstance(error, SecureModelError):
        return f"it was stopped by {type(error).__name__}"
    if isinstance(error, PeerAborted):
        return f"party {error.party!r} stopped the session: {error.reason}"
    lines = str(error).splitlines() or [type(error).__name__]
    places = [line.strip()[len("where:") :].strip() for line in lines[1:] if line.startswith("  where:")]
    return f"{lines[0]} ({places[0]})" if places else lines[0]


def reason_of(error: BaseException) -> str:
    """Why, out of an error's text: that line where it has one, else the first."""
    lines = str(error).splitlines() or [type(error).__name__]
    whys = [line.strip()[len("why:") :].strip() for line in lines if line.startswith("  why:")]
    return whys[0] if whys else lines[0]


def public_reason(error: BaseException) -> str:
    """What other parties are told about an error, in one line: nothing of this party's values, files and addresses.

    They are told what a party did and in which message; of this party's own troubles only the kind.
    """
    if isinstance(error, (BadFrame, Mismatch, PeerAborted, PeerDied, PeerStalled)):  # where: a message
        return summary(error)
    if isinstance(error, ProtocolError):  # where: perhaps an address
        return str(error).split("\n", 1)[0]
    return f"{error.told}; its own output says more" if isinstance(error, SecureModelError) else summary(error)


class SecureModelError(Exception):
    """Something this project noticed and can explain. `told` is what the peers learn of it (see `public_reason`)."""

    told = "it had an error of its own"

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(SecureModelError):
    """A configuration or key file is wrong."""

    told = "something is wrong with its configuration"


class InputError(SecureModelError, ValueError):
    """A call was given something it cannot use."""

    told = "it was given an input or weights it cannot use"


class FileError(SecureModelError):
    """A file cannot be read or written."""

    told = "it cannot read or write one of its files"


class DecodeError(SecureModelError, ValueError):
    """A text or bytes from outside are not what they should be."""


class PreprocessingError(SecureModelError):
    """Something is wrong with the stored correlated randomness."""

    told = "something is wrong with its preprocessing"


class PreprocessingUsedUp(PreprocessingError):
    """No correlated randomness is left."""

    told = "its preprocessing is used up"


class PreprocessingReused(PreprocessingError):
    """Correlated randomness would be used a second time, which would leak."""

    told = "its preprocessing was used before"


class ProtocolError(SecureModelError):
    """The parties cannot go on together."""


class PeerError(ProtocolError):
    """The parties cannot go on because of one of them, named by `party`."""

    def __init__(self, party: str, text: str) -> None:
        super().__init__(party, text)
        self.party = party
        self.text = text

    def __str__(self) -> str:
        return printable(self.text)


class PeerAbsent(PeerError):
    """The peer never connected."""


class PeerDied(PeerError):
    """The peer's connection ended."""


class PeerStalled(PeerError):
    """The peer is connected, but was silent for too long."""


class PeerAborted(PeerError):
    """The peer stopped the session and said why; its public reason is `reason`."""

    def __init__(self, party: str, reason: str) -> None:
        reason = printable(" ".join(reason[:_MAX_REASON].split()))[:_MAX_REASON]
        text = explain(
            f"party {party!r} stopped the session",
            why=reason or "it gave no reason",
            fix="look at that party's own output, correct the cause there, and start all parties again",
        )
        super().__init__(party, text)
        self.args = (party, reason)
        self.reason = reason


class BadFrame(PeerError):
    """The peer sent a message other than the one the protocol says is next."""


class Mismatch(PeerError):
    """The peer runs another program, version or configuration."""


class IdentityError(PeerError):
    """The peer is not who it should be."""
