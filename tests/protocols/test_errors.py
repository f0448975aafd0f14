"""Errors: nothing that a peer wrote reaches a terminal raw, and nothing of our own files reaches a peer."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from protocols.channel import Label, Purpose, local_channels
from protocols.errors import (
    BadFrame,
    ConfigError,
    IdentityError,
    InputError,
    Mismatch,
    PeerAborted,
    PeerAbsent,
    PeerError,
    PeerStalled,
    PreprocessingError,
    ProtocolError,
    SecureModelError,
    explain,
    public_reason,
)
from securemodel.errors import ProgramError

FOREIGN = {
    "escape sequence": "\x1b[2J\x1b]0;owned\x07",
    "control characters": "a\rb\bc\0d\x9b31m",
    "direction of writing": "safe\u202eexe.\u2066txt\u200f",
    "zero width": "bank\u200b\ufeff",
    "line separators": "a\u2028b\u2029c\x85d",
    "surrogate": "\ud800",
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("kind", [ProgramError, InputError, ProtocolError, ConfigError])
def test_text_of_a_peer_never_reaches_the_terminal_raw(name: str, kind: type[SecureModelError]) -> None:
    text = FOREIGN[name]
    for error in (kind(f"line 3: {text}"), kind(explain(text, where=text, why=text, fix=text))):
        assert all(line.isprintable() for line in str(error).split("\n"))
    peer = Mismatch("bank", f"the program names {text}")
    assert str(peer).isprintable()
    assert PeerAborted("bank", text).reason.isprintable()


def test_text_of_a_peer_cannot_play_another_line_of_an_error() -> None:
    lines = explain("what", why="because\n  → send me your key\n  where: here", fix="do").splitlines()
    assert [line for line in lines if line.startswith("  →")] == ["  → do"]
    assert not any(line.startswith("  where:") for line in lines)
    assert "\n" not in PeerAborted("bank", "because\n  → send me your key").reason


def test_text_of_a_peer_is_short() -> None:
    assert len(str(PeerAborted("bank", "x" * 10**6))) < 2000
    assert len(str(ProgramError("x" * 10**6))) < 5000
    assert len(explain("what", why="x\n" * 10**6)) < 10**5


def test_a_reason_is_cleaned_in_one_process_too() -> None:
    made = local_channels(("a", "b"))
    made["a"].abort("disk full\x1b[31m\u202e")
    with pytest.raises(PeerAborted) as caught:
        made["b"].receive("a", Label(0, 0, Purpose.OPEN), 1)
    assert caught.value.reason.isprintable() and "disk full" in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def every_error() -> list[type[SecureModelError]]:
    found, todo = [], [SecureModelError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ in ("protocols.errors", "securemodel.errors")]


@pytest.mark.parametrize("kind", every_error())
def test_peers_are_told_no_path_and_no_address(kind: type[SecureModelError]) -> None:
    """The first line of what a peer did, and which message it was; nothing else that an error says to its own user."""
    secret = "/home/clinic/keys 10.1.2.3:7001"
    if issubclass(kind, PeerError):
        place = secret if kind in (PeerAbsent, IdentityError) else "message 7"
        error = kind("bank", explain("no connection with 'bank'", where=place, why=secret, fix=secret))
    else:
        what = "nothing goes on" if kind is ProtocolError else secret
        error = kind(explain(what, where=secret, why=secret, fix=secret))
    if kind is not PeerAborted:  # which says what the peer told us, and that is public
        told = public_reason(error)
        assert told and "/home" not in told and "10.1.2.3" not in told and "\n" not in told


def test_peers_are_told_what_a_peer_did_and_in_which_message() -> None:
    for kind in (BadFrame, PeerStalled, Mismatch):
        error = kind("bank", explain("party 'bank' sent the wrong message", where="message 7", why="secret"))
        assert public_reason(error) == "party 'bank' sent the wrong message (message 7)"
    assert public_reason(ZeroDivisionError("secret 42")) == "it was stopped by ZeroDivisionError"
    assert "given an input" in public_reason(InputError("731.4 is too large"))
    assert "preprocessing" in public_reason(PreprocessingError(str(Path("/var/store"))))
