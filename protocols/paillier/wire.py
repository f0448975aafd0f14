"""Encrypted arrays as bytes, and the checks on what arrives.

Layout, little-endian: magic "SMPAIL01", key fingerprint 16 bytes, context SHA-256 16 bytes, bits u32, frac_bits i32,
slot width u32, slots u32, packed u8, axes u8, bytes of the bound u16, batch u64, cell shape u64 each, bound,
ciphertexts of bits/4 bytes each, SHA-256 of all before it. The hash finds damage. It is no proof of who wrote the
bytes: ciphertexts can be changed by anyone, so they belong on an authenticated channel.
"""

import struct
from collections.abc import Sequence
from hashlib import sha256
from math import prod

import gmpy2
import numpy as np
from gmpy2 import mpz

from protocols.errors import InputError, ProtocolError, explain
from protocols.paillier.keys import PrivateKey, PublicKey
from protocols.paillier.packing import Slots, whole
from protocols.paillier.pool import BlindingPool
from protocols.paillier.tensor import PaillierTensor

_MAGIC = b"SMPAIL01"
_HEADER = struct.Struct("<8s16s16sIiIIBBHQ")
_HASH_BYTES = 32
_LARGEST_SCALE = 1 << 14
_MOST_AXES = 16
_MOST_CELLS = 1 << 40
"""Along all axes together, those without a number counted as one: what a program may be asked to index."""


def write(tensor: PaillierTensor, context: str = "", pool: BlindingPool | None = None) -> bytes:
    """The array as bytes. What was computed is re-randomized first, see `PaillierTensor.rerandomized`.

    context: names session, step and sender; `read` wants the same, so that no message passes for another.
    """
    if tensor.ndim > _MOST_AXES:
        raise InputError(f"wire.write: an array of {tensor.ndim} axes; at most {_MOST_AXES} can be sent")
    sent = tensor if tensor.fresh else tensor.rerandomized(pool)
    bound = sent.bound.to_bytes(-(-sent.bound.bit_length() // 8), "little")
    header = _HEADER.pack(
        _MAGIC, bytes.fromhex(sent.key.fingerprint), _context(context), sent.key.bits, sent.frac_bits, sent.slots.width,
        sent.slots.count, sent.packed, len(sent.cell_shape), len(bound), sent.batch or 0,
    )  # fmt: skip
    shape = struct.pack(f"<{len(sent.cell_shape)}Q", *sent.cell_shape)
    body = header + shape + bound + ciphertext_bytes(sent.key, sent.cells)
    return body + sha256(body).digest()


def message_bytes(bits: int, cell_shape: Sequence[int], bound: int) -> int:
    """Bytes that `write` makes of an array of that shape and bound under a key of that many bits."""
    rest = 8 * len(cell_shape) + -(-bound.bit_length() // 8) + _HASH_BYTES
    return _HEADER.size + rest + prod(cell_shape) * (bits // 4)


def read(data: bytes, key: PublicKey, context: str = "") -> PaillierTensor:
    """The array in bytes that `write` made with the same key and context.

    Raises ProtocolError for another key or context, for bytes that were cut off or changed, for a header that makes no
    sense and for ciphertexts that are none.
    """
    if len(data) < _HEADER.size + _HASH_BYTES:
        _refuse("it is too short")
    magic, fingerprint, where, bits, frac_bits, width, count, packed, axes, bound_bytes, batch = _HEADER.unpack_from(
        data
    )
    if magic != _MAGIC:
        _refuse("it does not begin as one, or has another version")
    if fingerprint.hex() != key.fingerprint or bits != key.bits:
        _refuse(f"it is for the key {fingerprint.hex()}, not for {key.fingerprint}")
    if where != _context(context):
        _refuse("it belongs to another step, session or sender; it may be a message sent again")
    if axes > _MOST_AXES or packed > 1 or not 0 <= frac_bits <= _LARGEST_SCALE:
        _refuse("its header makes no sense")
    start = _HEADER.size + 8 * axes + bound_bytes
    if len(data) < start + _HASH_BYTES:
        _refuse("it is too short")
    shape = struct.unpack_from(f"<{axes}Q", data, _HEADER.size)
    if prod(max(1, size) for size in shape) > _MOST_CELLS:
        _refuse("its shape makes no sense")
    if len(data) != start + prod(shape) * key.cipher_bytes + _HASH_BYTES:
        _refuse(f"it has {len(data)} bytes, which does not fit its shape: it was cut off")
    if sha256(data[:-_HASH_BYTES]).digest() != data[-_HASH_BYTES:]:
        _refuse("its checksum does not fit: it was changed or damaged")
    bound = int.from_bytes(data[start - bound_bytes : start], "little")
    slots = Slots(width, count)
    if not _sensible(key, slots, bound, bool(packed), shape, batch):
        _refuse("its slots, bound and shape do not fit each other")
    cells = read_ciphertexts(key, data[start:-_HASH_BYTES]).reshape((*shape, *key.residues.cell))
    return PaillierTensor(key, cells, frac_bits, bound, slots, batch if packed else None)


def integers(array: PaillierTensor, key: PrivateKey) -> np.ndarray:
    """The integers in an array that was read, as `PaillierTensor.decrypt_integers` has them.

    Raises ProtocolError where they do not fit their slots, or for another key.
    """
    try:
        return array.decrypt_integers(key)
    except InputError as error:
        raise ProtocolError(str(error)) from None


def _sensible(key: PublicKey, slots: Slots, bound: int, packed: bool, shape: tuple[int, ...], batch: int) -> bool:
    if not packed:
        return slots == whole(key.bits) and bound <= slots.limit
    fits = slots.width > 1 and slots.count > 0 and slots.width * slots.count <= key.bits - 1 and bound <= slots.limit
    return fits and len(shape) > 0 and shape[0] == -(-batch // slots.count)


def _context(context: str) -> bytes:
    return sha256(context.encode()).digest()[:16]


def ciphertext_bytes(key: PublicKey, cells: np.ndarray) -> bytes:
    """Ciphertexts [*, *cell] as bits/4 little-endian bytes each."""
    flat = np.ascontiguousarray(cells).reshape((-1, *key.residues.cell))
    return b"".join(int(c).to_bytes(key.cipher_bytes, "little") for c in key.residues.leave(flat))


def read_ciphertexts(key: PublicKey, data: bytes) -> np.ndarray:
    """[N, *cell] from `ciphertext_bytes`. Raises ProtocolError for bytes that are no ciphertexts of this key."""
    size = key.cipher_bytes
    if len(data) % size:
        _refuse(f"{len(data)} bytes are no multiple of the {size} bytes of a ciphertext")
    values = [mpz(int.from_bytes(data[at : at + size], "little")) for at in range(0, len(data), size)]
    check_ciphertexts(key, values)
    return key.residues.enter(values)


def check_ciphertexts(key: PublicKey, values: Sequence[int]) -> None:
    """ProtocolError unless all are from 1 to n^2 - 1 and prime to n, as every ciphertext is."""
    product = mpz(1)
    for value in values:
        if not isinstance(value, (int, mpz)) or not 0 < value < key.square:
            _refuse("a ciphertext is not between 0 and n^2")
        product = product * value % key.n
    if gmpy2.gcd(product, key.n) != 1:
        _refuse("a ciphertext has a factor in common with n")


def _refuse(why: str) -> None:
    raise ProtocolError(
        explain(
            "this message is not an encrypted array", why=why, fix="check that both parties use the same key and step"
        )
    )
