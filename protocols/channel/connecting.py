"""Connecting: an online party with all others, or with the dealer."""

from __future__ import annotations

import hashlib

from protocols.channel.hello import SESSION_BYTES
from protocols.channel.link import Link
from protocols.channel.meeting import Meeting
from protocols.channel.notices import Say, silent
from protocols.channel.tcp import TcpChannel
from protocols.errors import ConfigError, InputError, explain
from protocols.identity import DEALER, Identity, PartiesConfig


def connect(
    me: str,
    config: PartiesConfig,
    identity: Identity | None = None,
    *,
    insecure_plain: bool = False,
    arrival: Meeting | None = None,
    say: Say = silent,
) -> TcpChannel:
    """Connect an online party to all others of the party file, over mutual TLS 1.3.

    `insecure_plain` leaves TLS out, for benchmarks inside one host; it refuses any other address. `arrival` is what
    `arrive` returned. `say` is told, after some seconds, who is waited for, and why. Returns when all are connected. Raises PeerAbsent after `connect_s` seconds, counted from the last
    sign of life of a party that is there and not ready; IdentityError, Mismatch, ConfigError.
    """
    meeting = arrival or _open(me, config, identity, insecure_plain, True)
    links = meeting.finish(say)
    nonces = {me: meeting.nonce, **meeting.nonces}
    session = hashlib.sha256(b"".join(name.encode() + b"\0" + nonces[name] for name in sorted(nonces))).digest()
    return TcpChannel(me, {name: links[name] for name in config.parties if name != me}, session)


def arrive(me: str, config: PartiesConfig, identity: Identity, *, dealer: bool = False) -> Meeting | None:
    """Tells the others, or the dealer, from now on, that this party is there, though not ready; they wait for it.

    `connect` goes on with what is returned, or `dial` with that of the dealer; whoever calls neither calls `close`.
    Returns None where that is not possible now: they then begin anew, and say why if it still is not.
    """
    try:
        if not dealer:
            return _open(me, config, identity, False, False)
        meeting = Meeting(me, config, identity, False)
        meeting.open(accept=[], dial=[DEALER], ready=False)
        return meeting
    except ConfigError:
        return None


def dial(
    me: str,
    name: str,
    config: PartiesConfig,
    identity: Identity | None = None,
    *,
    session: bytes = bytes(SESSION_BYTES),
    insecure_plain: bool = False,
    arrival: Meeting | None = None,
    say: Say = silent,
) -> Link:
    """A link to one role that listens, such as the dealer. Raises what `connect` raises.

    `session`: what a channel calls its session. The dealer puts links of the same lane and session together.
    """
    meeting = arrival or Meeting(me, config, identity, insecure_plain)
    meeting.session = session
    if not arrival:
        meeting.open(accept=[], dial=[name])
    return meeting.finish(say)[name]


def _open(me: str, config: PartiesConfig, identity: Identity | None, plain: bool, ready: bool) -> Meeting:
    config.entry(me)
    if me == DEALER:
        raise InputError(explain("the dealer has no online channel", fix="use Reception(DEALER, parties, ...)"))
    peers = [name for name in config.parties if name != me]
    meeting = Meeting(me, config, identity, plain)
    accept, dial = ([name for name in peers if name < me], [name for name in peers if name > me])
    meeting.open(accept, dial, ready=ready)
    return meeting
