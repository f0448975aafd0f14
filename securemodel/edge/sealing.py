"""Shares sealed to each party, so that one party can pass on those of the others: the relay's envelopes.

Sealing is HPKE (RFC 9180) in its base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-128-GCM. What is sealed is
bound to its place: direction, request, model, key, rank, and the one-time key that the answer is sealed to. So what is
stolen on the way cannot be used elsewhere, and an answer can be opened by nobody but who asked.

An envelope is a JSON header, {"securemodel_relay": 1, "id", "model", "key_id", "response_key", "parts": [{"rank",
"size"}, …]}, and then the sealed parts. `model` is what follows /v2/models/ in an address; `key_id` the first 16 digits
of the API key's SHA-256, or nothing. `vectors/share-v1.json` has sealed parts by example.
"""

from __future__ import annotations

import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from securemodel.edge.errors import WireError
from securemodel.edge.wire import MAX_HEADER_BYTES, Message, dump, load

try:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives import hpke
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
except ImportError:  # before version 47, or none at all: then there is no relay
    HAS_HPKE = False
else:
    HAS_HPKE = True
    _SUITE = hpke.Suite(hpke.KEM.X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_128_GCM)

RELAY_PATH = "/v2/relay"
_KEY = re.compile(r"[A-Za-z0-9_-]{43}")
_ID, _KEY_ID = re.compile(r"[0-9a-f]{32}"), re.compile(r"([0-9a-f]{16})?")


@dataclass(frozen=True)
class Envelope:
    """Sealed parts by rank, and what they are bound to."""

    id: str
    model: str
    key_id: str
    response_key: str
    parts: Mapping[int, bytes] = field(repr=False)

    def info(self, direction: str, rank: int) -> bytes:
        """What a part is bound to: each fact with its length as u32, little-endian."""
        facts = (
            b"securemodel relay 1",
            direction.encode(),
            bytes.fromhex(self.id),
            self.model.encode(),
            self.key_id.encode(),
            rank.to_bytes(4, "little"),
            _key_bytes(self.response_key),
        )
        return b"".join(len(fact).to_bytes(4, "little") + fact for fact in facts)

    def message(self) -> Message:
        parts = [{"rank": rank, "size": len(sealed)} for rank, sealed in self.parts.items()]
        header = {"securemodel_relay": 1, "id": self.id, "model": self.model, "key_id": self.key_id,
                  "response_key": self.response_key, "parts": parts}  # fmt: skip
        return Message(dump(header), b"".join(self.parts.values()))


def read_envelope(header: bytes) -> tuple[Envelope, dict[int, int]]:
    """An envelope without its parts, out of its header, and the size of each part by rank."""
    found = load(header, "the envelope's header", MAX_HEADER_BYTES)
    parts = found.get("parts")
    good = found.get("securemodel_relay") == 1 and isinstance(parts, list) and 1 <= len(parts) <= 64
    for name, pattern in (("id", _ID), ("key_id", _KEY_ID), ("response_key", _KEY)):
        good = good and isinstance(found.get(name), str) and bool(pattern.fullmatch(found[name]))
    model = found.get("model")
    if not good or not isinstance(model, str) or not 1 <= len(model) <= 600 or not model.isprintable():
        raise WireError("bad_header", "this is no envelope of the relay", fix="ask directly, or with securemodel.edge")
    sizes = {}
    for part in parts if isinstance(parts, list) else ():
        rank, size = (part.get("rank"), part.get("size")) if isinstance(part, dict) else (None, None)
        if type(rank) is not int or type(size) is not int or not (0 <= rank < 64 and 0 < size < 2**40) or rank in sizes:
            raise WireError("bad_header", "a part of the envelope has no rank or size", where="parts")
        sizes[rank] = size
    return Envelope(found["id"], model, found["key_id"], found["response_key"], {}), sizes


def seal(public_key: str, info: bytes, plain: bytes) -> bytes:
    """Bytes that only the owner of a key (base64url of an X25519 public key) can read. WireError where it is no such key."""
    try:
        return _SUITE.encrypt(plain, X25519PublicKey.from_public_bytes(_key_bytes(public_key)), info=info)
    except ValueError as error:
        why = "it is one of the few numbers that give everybody the same secret"
        raise WireError("bad_key", "nothing can be sealed to this public key", why=why, fix="make a new one") from error


def unseal(
    private_key: X25519PrivateKey, info: bytes, sealed: bytes | memoryview, *, fix: str = "take a new service.json"
) -> bytes:
    """What was sealed to this key, bound to this place. WireError where it was not."""
    try:
        return _SUITE.decrypt(sealed, private_key, info=info)
    except (InvalidTag, ValueError) as error:
        raise WireError(
            "bad_header",
            "a sealed part cannot be opened",
            why="it was sealed to another key, for another request, or changed on the way",
            fix=fix,
        ) from error


def one_time_key() -> X25519PrivateKey:
    """A key for one answer."""
    return X25519PrivateKey.generate()


def public_of(private_key: X25519PrivateKey) -> str:
    """The public key of a private one, in base64url."""
    return urlsafe_b64encode(private_key.public_key().public_bytes_raw()).rstrip(b"=").decode()


def bytes_of(private_key: X25519PrivateKey) -> bytes:
    """A private key, for its owner to keep."""
    return private_key.private_bytes_raw()


def key_of(data: bytes) -> X25519PrivateKey:
    """The private key that its owner kept."""
    return X25519PrivateKey.from_private_bytes(data)


def is_key(text: str) -> bool:
    """Whether a text is a public key in base64url."""
    return bool(_KEY.fullmatch(text))


def can_seal_to(text: str) -> bool:
    """Whether a text is a public key that something can be sealed to: one of the few of small order gives no secret."""
    if not (HAS_HPKE and is_key(text)):
        return False
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(_key_bytes(text)))
    except ValueError:
        return False
    return True


def _key_bytes(text: str) -> bytes:
    return urlsafe_b64decode(text + "=")


def request_part(key: str, message: Message) -> bytes:
    """What is sealed to a party: its API key, the JSON header and the tensors' bytes, the former with their lengths."""
    return b"".join(_framed([key.encode(), message.header])) + message.data


def read_request_part(plain: bytes) -> tuple[str, bytes, bytes]:
    """(API key, JSON header, tensors' bytes) of what a client sealed."""
    (key, header), data = _unframed(plain, 2)
    return key.decode("ascii", "replace"), header, data


def answer_part(status: int, length: int, body: bytes) -> bytes:
    """What a party seals to the client: HTTP status, length of the JSON in the body (0: no tensors), and the body."""
    return status.to_bytes(4, "little") + length.to_bytes(4, "little") + body


def read_answer_part(plain: bytes) -> tuple[int, int, bytes]:
    if len(plain) < 8:
        raise WireError("bad_answer", "a sealed answer is cut short")
    return int.from_bytes(plain[:4], "little"), int.from_bytes(plain[4:8], "little"), plain[8:]


def _framed(pieces: Sequence[bytes]) -> list[bytes]:
    return [len(piece).to_bytes(4, "little") + piece for piece in pieces]


def _unframed(data: bytes, count: int) -> tuple[list[bytes], bytes]:
    pieces = []
    for _ in range(count):
        size = int.from_bytes(data[:4], "little")
        if len(data) < 4 + size:
            raise WireError("bad_header", "a sealed part is cut short")
        pieces.append(data[4 : 4 + size])
        data = data[4 + size :]
    return pieces, data


def read_parts(found: Mapping[str, Any], data: bytes) -> dict[int, bytes | Mapping[str, Any]]:
    """Each party's answer by rank in what the leader sent back: its sealed bytes, or the problem in place of them."""
    answers: dict[int, bytes | Mapping[str, Any]] = {}
    parts, start = found.get("parts"), 0
    for part in parts if isinstance(parts, list) else ():
        if not isinstance(part, dict) or type(part.get("rank")) is not int:
            raise WireError("bad_answer", "a part of the relay's answer has no rank")
        problem, size = part.get("problem"), part.get("size")
        if isinstance(problem, dict):
            answers[part["rank"]] = problem
        elif type(size) is int and 0 < size <= len(data) - start:
            answers[part["rank"]] = data[start : start + size]
            start += size
        else:
            raise WireError("bad_answer", "a part of the relay's answer is cut short")
    return answers
