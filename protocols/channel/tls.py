"""TLS 1.3 with both ends pinned to known certificates."""

from __future__ import annotations

import ssl
from collections.abc import Iterable

from protocols.channel.frame import PROTOCOL_VERSION
from protocols.errors import ConfigError, IdentityError, explain
from protocols.identity import Entry, Identity, fingerprint

SPOKEN = f"securemodel/{PROTOCOL_VERSION}"
"""What both ends say, in the handshake, that they speak inside (ALPN, RFC 7301)."""
_NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME: a pinned certificate is right or wrong on every day


def client_context(identity: Identity, peer: Entry) -> ssl.SSLContext:
    """For dialing one peer: it is trusted if it holds exactly the certificate its entry pins."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity, [peer])


def server_context(identity: Identity, peers: Iterable[Entry]) -> ssl.SSLContext:
    """For accepting any of these peers; `peer_name` says afterwards which one came."""
    return _context(ssl.PROTOCOL_TLS_SERVER, identity, peers)


def _context(protocol: int, identity: Identity, peers: Iterable[Entry]) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # names of hosts mean nothing here: the certificate itself is compared
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= _NO_CHECK_TIME
    context.options |= ssl.OP_NO_TICKET
    context.set_alpn_protocols([SPOKEN])
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # no session is resumed, so each one authenticates again
    for peer in peers:
        if not peer.certificate_pem:
            raise ConfigError(
                explain(
                    f"no certificate is known for party {peer.name!r}",
                    why="TLS links are authenticated by pinned certificates",
                    fix='add certificate = "..." to its entry in the party file',
                )
            )
        context.load_verify_locations(cadata=peer.certificate_pem)
    try:
        context.load_cert_chain(identity.certificate_path, identity.key_path)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(
            explain(
                "our own certificate or key cannot be used",
                where=str(identity.key_path.parent),
                why=error.strerror or type(error).__name__,
                fix="restore the folder, or make a new identity and give its certificate to the others",
            )
        ) from None
    return context


def peer_name(certificate: bytes, candidates: Iterable[Entry]) -> str:
    """Which of the candidates holds the certificate (DER) the other end showed. Raises IdentityError if none does."""
    shown = fingerprint(certificate)
    for entry in candidates:
        if entry.fingerprint == shown:
            return entry.name
    raise IdentityError(
        "",
        explain(
            "the other end of a connection is none of the expected parties",
            why=f"its certificate has {shown}",
            fix="compare the fingerprints in the party file with the parties",
        ),
    )
