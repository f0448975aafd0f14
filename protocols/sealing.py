"""A message from one identity to another that no link carries: only its receiver can read it, and only its sender made it.

It is encrypted to the receiver's key by HPKE (RFC 9180: X25519, HKDF-SHA256, AES-256-GCM), then signed with the sender's
Ed25519 key (RFC 8032). Identities have Ed25519 keys alone, so the key that decrypts is the same one on the curve's other
form (RFC 7748, section 4.1); that one key may sign and decrypt so is shown by Thormarker (CT-RSA 2021). The encryption
depends on both names and on what the message is about, so nobody can take it out and sign it as its own.
"""

from __future__ import annotations

import hashlib
import struct

from cryptography import x509
from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives import hpke, serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from protocols.errors import ConfigError, DecodeError, explain
from protocols.files import read_secret
from protocols.identity import Entry, Identity

MOST_BYTES = (1 << 31) - (1 << 16)
"""Of a message: AES-GCM of the library takes no more at once."""
_SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
_LENGTH, _SIGNATURE_BYTES = struct.Struct("<I"), 64
_P = 2**255 - 19


def seal(data: bytes, head: bytes, sender: Identity, receiver: Entry) -> bytes:
    """`head`, which anybody may read, and `data`, which only the receiver can, both signed. Raises ConfigError."""
    signing = _private(sender)
    body = _SUITE.encrypt(data, encryption_key(receiver), _bound(head, sender.fingerprint, receiver.fingerprint))
    signed = _LENGTH.pack(len(head)) + head + body
    return signing.sign(signed) + signed


def head_of(sealed: bytes) -> bytes:
    """What a message says it is, before anybody knows whether it is true. Raises DecodeError."""
    start = _SIGNATURE_BYTES + _LENGTH.size
    if len(sealed) < start:
        raise DecodeError("it is too short")
    (size,) = _LENGTH.unpack_from(sealed, _SIGNATURE_BYTES)
    if len(sealed) < start + size:
        raise DecodeError("it is too short")
    return sealed[start : start + size]


def unseal(sealed: bytes, sender: Entry, receiver: Identity) -> bytes:
    """The data of a message of this sender to this receiver. Raises DecodeError, ConfigError."""
    head, signed = head_of(sealed), sealed[_SIGNATURE_BYTES:]
    try:
        _public(sender).verify(sealed[:_SIGNATURE_BYTES], signed)
    except InvalidSignature:
        raise DecodeError(f"it is damaged, or not made by whoever has the certificate of {sender.name!r}") from None
    try:
        bound = _bound(head, sender.fingerprint, receiver.fingerprint)
        return _SUITE.decrypt(signed[_LENGTH.size + len(head) :], decryption_key(receiver), bound)
    except (InvalidTag, ValueError):
        raise DecodeError(f"it is not for the identity of {receiver.name!r}") from None


def decryption_key(own: Identity) -> X25519PrivateKey:
    """The key with which an identity reads what is encrypted to it. Raises ConfigError."""
    return X25519PrivateKey.from_private_bytes(_scalar(_private(own)))


def encryption_key(receiver: Entry) -> X25519PublicKey:
    """The key to encrypt to an identity with, from its certificate. Raises ConfigError."""
    return _montgomery(_public(receiver))


def _bound(head: bytes, sender: str, receiver: str) -> bytes:
    return b"\n".join((b"securemodel sealed 1", sender.encode(), receiver.encode(), head))


def _private(own: Identity) -> Ed25519PrivateKey:
    key = serialization.load_pem_private_key(read_secret(own.key_path, "a private key"), password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise _other_key(own.name, str(own.key_path))
    return key


def _scalar(key: Ed25519PrivateKey) -> bytes:
    """What the key multiplies points by, before bits are set as both algorithms set them."""
    secret = key.private_bytes(
        serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption()
    )
    return hashlib.sha512(secret).digest()[:32]


def _public(entry: Entry) -> Ed25519PublicKey:
    key = x509.load_pem_x509_certificate(entry.certificate_pem.encode()).public_key() if entry.certificate_pem else None
    if not isinstance(key, Ed25519PublicKey):
        raise _other_key(entry.name, "the parties file")
    return key


def _other_key(name: str, where: str) -> ConfigError:
    why, fix = "messages are sealed to such a key, and signed with it", f"make one: securemodel keys new {name}"
    return ConfigError(explain(f"{name!r} has no certificate with an Ed25519 key", where=where, why=why, fix=fix))


def _montgomery(key: Ed25519PublicKey) -> X25519PublicKey:
    """The same point as X25519 has it: u = (1 + y) / (1 - y)."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    y = int.from_bytes(raw, "little") & ((1 << 255) - 1)
    u = (1 + y) * pow(1 - y, -1, _P) % _P
    return X25519PublicKey.from_public_bytes(u.to_bytes(32, "little"))
