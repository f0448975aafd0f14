"""A client's model update in shares, one for each aggregator: what it is made of, how it is encoded, how it is sent.

An update is named arrays. Its real ones, flattened in order, are numbers x of magnitude up to `limit`, encoded as whole
numbers e = round(weight * x / unit), to even where it is half-way. Shares of e add up to it modulo 2^bits, those of the
weight itself modulo 2^64. Rank 0 gets numbers of bits / 8 bytes, and 8 bytes of the weight; each other aggregator a seed of
32 bytes that its shares follow from.

A part, what one aggregator gets, is MAGIC, the length of its JSON header as u32 (little-endian), the header, a nonce of 32
bytes, and the numbers or the seed. The header binds it to its round (`card`, the digest of the round's card), client, rank
and upload, and to the other parts: `commit` is SHA-256 over the SHA-256 of each part's nonce and what follows it. The nonces
keep an aggregator from trying out updates against it. Sealed, a part is encrypted to its aggregator's key, and bound to
the same facts, which stand before it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from hashlib import sha256
from typing import Any, Literal

import numpy as np

from securemodel.edge import sealing
from securemodel.edge.errors import Disagreement, InputError, WireError
from securemodel.edge.rounds import BITS, Aggregator, Layout, RoundCard
from securemodel.edge.sharing import HAS_AES, SEED_BYTES, expand, keystream
from securemodel.edge.wire import dump, load

__all__ = ["Aggregator", "Layout", "Part", "RoundCard", "Uploads", "add_results", "read_part", "share_update"]

MAGIC, SEALED_MAGIC, RESULT_MAGIC = b"SMU1", b"SMS1", b"SMR1"
NONCE_BYTES = 32
MAX_HEADER_BYTES = 4096
NO_WEIGHT = "the clients' weights add up to zero"
Form = Literal["values", "seed"]


# ---- parts
@dataclass(frozen=True)
class Part:
    """What one aggregator got of one upload. `body` holds a nonce, and the numbers or the seed."""

    card: str
    round: int
    client: str
    rank: int
    id: str
    form: Form
    commit: str
    answer_key: str
    body: bytes | memoryview = field(repr=False)

    @property
    def data(self) -> bytes | memoryview:
        """The numbers or the seed."""
        return self.body[NONCE_BYTES:]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the body; together, those of all parts give `commit`."""
        return sha256(self.body).hexdigest()

    def bytes(self) -> bytes:
        told = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "body"}
        return b"".join([MAGIC, _framed(dump(told)), self.body])

    def share(self, card: RoundCard, start: int = 0, stop: int | None = None) -> np.ndarray:
        """This aggregator's share of the numbers from `start` (a multiple of 16) to `stop`, as elements of the ring."""
        stop = card.count if stop is None else stop
        if self.form == "values":
            return np.frombuffer(self.data, card.dtype, stop - start, start * card.bits // 8)
        more = keystream(bytes(self.data), bytes.fromhex(self.id), 0, start * card.bits // 64)
        return _elements(more, card, stop - start)

    def pieces(self, card: RoundCard, start: int, stop: int) -> Iterator[tuple[slice, np.ndarray]]:
        """The same piece by piece: which numbers, and the shares of them."""
        if self.form == "values":
            yield slice(start, stop), self.share(card, start, stop)
            return
        more, size = keystream(bytes(self.data), bytes.fromhex(self.id), 0, start * card.bits // 64), _piece(card)
        for at in range(start, stop, size):
            end = min(at + size, stop)
            yield slice(at, end), _elements(more, card, end - at)

    def weight(self) -> int:
        """This aggregator's share of the weight, modulo 2^64."""
        if self.form == "values":
            return int.from_bytes(self.data[-8:], "little")
        return _weight_of(bytes(self.data), self.id)


def _elements(more: Callable[[int], np.ndarray], card: RoundCard, count: int) -> np.ndarray:
    """So many elements of the ring that follow from a seed."""
    return more(-(-count * card.bits // 64)).view(card.dtype)[:count]


def _weight_of(seed: bytes, id: str) -> int:
    """The share of a weight that follows from a seed."""
    return int(expand(seed, bytes.fromhex(id), 1, 1).view("<u8")[0])


def _framed(header: bytes) -> bytes:
    return len(header).to_bytes(4, "little") + header


def _unframed(data: bytes | memoryview, magic: bytes, what: str) -> tuple[Mapping[str, Any], memoryview]:
    """The JSON header of bytes that start with `magic`, and what follows it."""
    size = int.from_bytes(data[4:8], "little") if _is_bytes(data) else 0
    if not _is_bytes(data) or data[:4] != magic or size > MAX_HEADER_BYTES or len(data) < 8 + size:
        raise WireError("bad_part", f"these bytes are no {what}", fix="send what share_update gave, unchanged")
    return load(bytes(data[8 : 8 + size]), f"the header of {what}", MAX_HEADER_BYTES), memoryview(data)[8 + size :]


def read_part(card: RoundCard, rank: int, client: str | None, data: bytes | memoryview) -> Part:
    """What a client (None: whoever it says) sent to the aggregator of this rank. WireError names what is wrong; its `.code`
    says it in a word."""
    found, body = _unframed(data, MAGIC, "part of an update")
    told = {each.name for each in fields(Part)} - {"body"}
    texts = all(isinstance(found.get(name), str) for name in told - {"round", "rank"})
    if set(found) != told or not texts or type(found["round"]) is not int or not _is_hex(found["id"], 32):
        raise WireError("bad_part", "the header of a part is not as it should be", where=client or "")
    key = found["answer_key"]
    sealable = sealing.can_seal_to(key) if card.reveal == "clients" else not key
    if not _is_hex(found["commit"], 64) or not sealable:
        raise WireError("bad_part", "the commitment or the key of a part is none", where=client or "")
    client = found["client"] if client is None else client
    _check_place(card, rank, client, found)
    part = Part(**found, body=body)
    expected = {"values": card.value_bytes, "seed": SEED_BYTES}.get(part.form, -1)
    if rank == 0 and part.form == "seed":
        raise WireError("bad_part", "the first aggregator gets numbers, not a seed", where=client)
    if len(body) != NONCE_BYTES + expected:
        why = f"{card.count} numbers of {card.bits} bits or a seed of {SEED_BYTES} bytes are expected"
        what = f"a part has {len(body)} bytes"
        raise WireError("length", what, where=client, why=why, fix="use the round's own card")
    return part


def _is_hex(text: str, digits: int) -> bool:
    return len(text) == digits and all(char in "0123456789abcdef" for char in text)


def _check_place(card: RoundCard, rank: int, client: str, found: Mapping[str, Any]) -> None:
    """Raises WireError unless a header's facts are those of this round, client and aggregator."""
    if found.get("round") != card.round:
        raise WireError(
            "other_round",
            f"a part is of round {found.get('round')!r:.30}, not {card.round}",
            where=client,
            why="it was sent before, or too late",
            fix="share the update of this round with this round's card",
        )
    if found.get("card") != card.digest:
        raise WireError(
            "other_card",
            "a part was made for another card of this round",
            where=client,
            why="its model, program, layout, limits or aggregators differ",
            fix="take the round's card again, and train the model that it names",
        )
    if found.get("client") != client or found.get("rank") != rank:
        raise WireError(
            "relabeled", "a part is of another client or for another aggregator", where=client,
            why=f"it says client {found.get('client')!r:.80}, rank {found.get('rank')!r:.20}",
        )  # fmt: skip


@dataclass(frozen=True)
class Uploads:
    """A client's parts by the aggregators' ranks."""

    card: RoundCard
    client: str
    parts: Mapping[int, bytes] = field(repr=False)
    key: Any = field(default=None, repr=False)
    """The private key that results are sealed to, where clients get them."""

    def __getitem__(self, rank: int) -> bytes:
        return self.parts[rank]

    def items(self):
        """(rank, bytes) of each part."""
        return self.parts.items()

    def sealed(self) -> dict[int, bytes]:
        """The parts by rank, each sealed to its aggregator, so that others may pass them on."""
        return {rank: seal_part(self.card, rank, self.client, part) for rank, part in self.parts.items()}


CLIENT_RULE = "a client's name has 1 to 128 characters that print"


def is_client(name: Any) -> bool:
    """Whether it follows CLIENT_RULE."""
    return isinstance(name, str) and 1 <= len(name) <= 128 and name.isprintable()


def share_update(card: RoundCard, arrays: Mapping[str, Any], *, weight: int = 1, id: str | None = None) -> Uploads:
    """An update in shares. `weight`: the whole number from 0 to the card's `max_weight` that it counts; nobody learns it.

    `id`: the client's name, by default a random one. InputError names what of the update is not as the card says.
    """
    weight = int(weight) if isinstance(weight, np.integer) else weight
    if type(weight) is not int or not 0 <= weight <= card.max_weight:
        raise InputError(
            "this is no weight of the round", why=f"weights are whole numbers (int) from 0 to {card.max_weight}"
        )
    client = os.urandom(16).hex() if id is None else id
    if not is_client(client):
        raise InputError(CLIENT_RULE)
    return share_elements(card, encode(card, arrays, weight), weight, client)


def share_elements(card: RoundCard, encoded: np.ndarray, weight: int, client: str) -> Uploads:
    """Elements of the ring in shares, whatever they stand for; they are used up."""
    upload = os.urandom(16).hex()
    bodies = _bodies(card, encoded, weight, upload)
    commit = commitment([_digest(body) for body in bodies])
    key = sealing.one_time_key() if card.reveal == "clients" else None
    answer = sealing.public_of(key) if key else ""
    heads = [
        Part(card.digest, card.round, client, rank, upload, _form(rank), commit, answer, b"").bytes()
        for rank in range(len(bodies))
    ]
    parts = {rank: b"".join([heads[rank], *body]) for rank, body in enumerate(bodies)}
    return Uploads(card, client, parts, key)


def _form(rank: int) -> Form:
    return "seed" if rank and HAS_AES else "values"


def encode(card: RoundCard, arrays: Mapping[str, Any], weight: int = 1) -> np.ndarray:
    """An update's numbers, weighted, as elements of the ring. InputError says what of it is not as the card says."""
    whole = card.positions is None
    given = card.layout.pieces(arrays, card.limit, _piece(card)) if whole else [_chosen(card, arrays)]
    encoded = np.empty(card.count, card.dtype)
    signed = encoded.view(f"<i{card.bits // 8}")  # the card says that every number fits
    times, square, start = (weight if card.premultiplied else 1) / card.unit, 0.0, 0
    for piece in given:
        if card.bound is not None:
            square += float(np.einsum("i,i->", piece, piece))
        piece *= times
        np.copyto(signed[start : start + len(piece)], np.rint(piece, out=piece), casting="unsafe")
        start += len(piece)
    if card.bound is not None and not math.sqrt(square) <= card.bound:
        what = "the update's norm is beyond the round's bound"
        raise InputError(what, why=f"it would be dropped: at most {card.bound:g} counts", fix="clip it to this norm")
    return encoded


def _chosen(card: RoundCard, arrays: Mapping[str, Any]) -> np.ndarray:
    """The numbers at the card's positions."""
    return card.layout.flatten(arrays, card.limit)[np.array(card.positions)]


PIECE_BYTES = 1 << 17
"""How much of a share is made at a time: it stays in the processor's cache, and in memory that was used before."""


def _piece(card: RoundCard) -> int:
    """How many numbers are encoded and split at a time."""
    return 8 * PIECE_BYTES // card.bits


def _bodies(card: RoundCard, encoded: np.ndarray, weight: int, upload: str) -> list[list[bytes | memoryview]]:
    """Of each rank, what its part ends with: a nonce, and the numbers and the weight, or the seed."""
    others: list[list[bytes | memoryview]] = []
    for rank in range(1, len(card.aggregators)):
        data = os.urandom(SEED_BYTES if HAS_AES else card.value_bytes)
        part = Part("", 0, "", rank, upload, _form(rank), "", "", bytes(NONCE_BYTES) + data)
        for place, share in part.pieces(card, 0, card.count):
            encoded[place] -= share
        weight -= part.weight()
        others.append([data])
    first: list[bytes | memoryview] = [encoded.data, (weight % 2**64).to_bytes(8, "little")]
    return [[os.urandom(NONCE_BYTES), *data] for data in (first, *others)]


def _digest(body: Sequence[bytes | memoryview]) -> str:
    found = sha256()
    for piece in body:
        found.update(piece)
    return found.hexdigest()


def commitment(digests: Sequence[str]) -> str:
    """What ties the parts of one upload together, of their digests by rank."""
    return sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


# ---- sealing
_SEALED_FIX = "share the update again with the card that the aggregators give now"
_RESULT_FIX = "open a result with the key of this client's last upload, or ask for it once more"


def seal_part(card: RoundCard, rank: int, client: str, part: bytes) -> bytes:
    """A part that only its aggregator can read, with what it is bound to before it."""
    _need_hpke()
    place = _place(card, rank, client)
    sealed = sealing.seal(card.aggregators[rank].key, SEALED_MAGIC + place, part)
    return b"".join([SEALED_MAGIC, _framed(place), sealed])


def unseal_part(private_key: Any, card: RoundCard, rank: int, client: str, data: bytes) -> bytes:
    """The part that was sealed to this aggregator for this client. WireError names what is wrong."""
    _need_hpke()
    found, sealed = _unframed(data, SEALED_MAGIC, "sealed part of an update")
    _check_place(card, rank, client, found)
    return sealing.unseal(private_key, SEALED_MAGIC + _place(card, rank, client), sealed, fix=_SEALED_FIX)


def is_sealed(data: bytes) -> bool:
    """Whether a part was sealed."""
    return _is_bytes(data) and data[:4] == SEALED_MAGIC


def _is_bytes(data: object) -> bool:
    return isinstance(data, bytes | bytearray | memoryview)


def _place(card: RoundCard, rank: int, client: str) -> bytes:
    return dump({"card": card.digest, "round": card.round, "client": client, "rank": rank})


def _need_hpke() -> None:
    if not sealing.HAS_HPKE:
        raise InputError("parts cannot be sealed here", why="the package cryptography is missing, or older than 47",
                         fix="pip install 'cryptography>=47', or send each part to its aggregator over TLS")  # fmt: skip


# ---- results
def result_part(
    card: RoundCard, rank: int, total: np.ndarray, divisor: int, unit: float, answer_key: str = ""
) -> bytes:
    """An aggregator's share of the round's result, for the clients: of a total, in units of `unit`, and of its divisor.

    With a key, it is sealed to the client who has it.
    """
    told = {"card": card.digest, "round": card.round, "rank": rank, "bits": 8 * total.itemsize, "unit": unit}
    plain = b"".join([_framed(dump(told)), (divisor % 2**64).to_bytes(8, "little"), total.tobytes()])
    if not answer_key:
        return RESULT_MAGIC + plain
    return SEALED_MAGIC + sealing.seal(answer_key, _result_place(card, rank), RESULT_MAGIC + plain)


def _result_place(card: RoundCard, rank: int) -> bytes:
    return RESULT_MAGIC + dump({"card": card.digest, "round": card.round, "rank": rank})


def add_results(card: RoundCard, blobs: Mapping[int, bytes], key: Any = None) -> dict[str, np.ndarray]:
    """The round's result, of what every aggregator handed out by rank. `key`: `Uploads.key`, where they sealed it.

    WireError, Disagreement where they do not belong together.
    """
    if set(blobs) != set(range(len(card.aggregators))):
        raise Disagreement("a result has a part of each aggregator", where=f"{len(blobs)} of {len(card.aggregators)}")
    found = [_read_result(card, rank, blobs[rank], key) for rank in sorted(blobs)]
    if len({(unit, share.dtype) for share, _, unit in found}) != 1:
        raise Disagreement("the aggregators give results of different kinds", fix="ask them again")
    total, divisor = combine([share for share, _, _ in found]), sum(part for _, part, _ in found) % 2**64
    return arrays_of(card, total, divisor, found[0][2])


def _read_result(card: RoundCard, rank: int, blob: bytes, key: Any) -> tuple[np.ndarray, int, float]:
    """(share of the total, share of the divisor, unit) of one aggregator."""
    if is_sealed(blob):
        if key is None:
            fix = "give the key of the upload, Uploads.key, from the round that it was in"
            raise InputError("this result is for a client alone, sealed to its key", fix=fix)
        blob = sealing.unseal(key, _result_place(card, rank), blob[len(SEALED_MAGIC) :], fix=_RESULT_FIX)
    told, data = _unframed(blob, RESULT_MAGIC, "part of a result")
    place = {"card": card.digest, "round": card.round, "rank": rank}
    if any(told.get(name) != value for name, value in place.items()):
        raise WireError("other_round", "a part of a result is of another round or aggregator", where=f"rank {rank}")
    bits, unit = told.get("bits"), told.get("unit")
    if bits not in BITS or not isinstance(unit, float) or len(data) != 8 + card.count * bits // 8:
        raise WireError("length", "a part of a result has not the size that its header says", where=f"rank {rank}")
    return np.frombuffer(data, f"<u{bits // 8}", offset=8), int.from_bytes(data[:8], "little"), unit


def combine(shares: Sequence[np.ndarray]) -> np.ndarray:
    """What shares add up to, as signed whole numbers."""
    total = shares[0].copy()
    for share in shares[1:]:
        total += share
    return total.view(np.dtype(f"<i{total.itemsize}"))


def arrays_of(card: RoundCard, total: np.ndarray, divisor: int, unit: float) -> dict[str, np.ndarray]:
    """The arrays of a total in units of `unit`; zeros at positions that nobody sent. InputError for a divisor of zero."""
    if divisor == 0:
        raise InputError(NO_WEIGHT, fix="let a client with a weight above 0 take part")
    flat = total.astype(np.float64) * unit / divisor
    if card.positions is not None:
        spread = np.zeros(card.layout.size)
        spread[np.array(card.positions)] = flat
        flat = spread
    return card.layout.unflatten(flat)
