"""Random streams two parties share: the same key on both sides gives the same bytes, without talking.

A stream is ChaCha20 (RFC 8439) under a key from the operating system, addressed by (epoch, node, purpose, index), so
that no two uses ever read the same bytes as long as no address is used twice with one key.
"""

import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256

import torch
from torch import Tensor

from protocols import kernels

KEY_BYTES = 32
EPOCHS = 1 << 40
"""Epochs under one key: at a thousand runs a second they last for 34 years."""
_NONCE = struct.Struct("<IIBBH")


class Use(IntEnum):
    """What a part of a stream is for; part of its address, so numbers never change meaning."""

    MASK = 1
    BIT_MASK = 2
    DEALT = 3
    ZERO = 6
    NOISE = 7


@dataclass(frozen=True)
class Place:
    """What is drawn for a node, in whatever epoch: the rest of its address, and the tensor it is drawn into.

    mode: as of `Stream.fill`.
    """

    node: int
    purpose: int
    shape: Sequence[int]
    dtype: torch.dtype = torch.int64
    index: int = 0
    mode: str = "set"


class Draws:
    """Several places of a stream that are drawn together, in one call. ValueError for addresses that no stream has."""

    def __init__(self, places: Sequence[Place]) -> None:
        self.places = tuple(places)
        self._modes = tuple(place.mode for place in places)
        self._made = tuple((tuple(place.shape), place.dtype) for place in places)
        first = [_nonce(0, place.node, place.purpose, place.index) for place in places]
        self._nonces, self._bytes = int.from_bytes(b"".join(first), "little"), len(b"".join(first))
        self._each = sum(1 << 8 * at for at in range(0, self._bytes, _NONCE.size))

    def draw(self, stream: "Stream", epoch: int) -> list[Tensor]:
        """New tensors of the bytes at all places, on the stream's device."""
        device = stream.device
        outs = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in self._made]
        self.fill(stream, epoch, outs)
        return outs

    def fill(self, stream: "Stream", epoch: int, outs: Sequence[Tensor]) -> None:
        """Combines the bytes at all places into contiguous tensors, each in the mode of its place."""
        if outs:
            nonces = self._nonces | int.from_bytes(_nonce(epoch, 0, 0, 0), "little") * self._each
            kernels.chacha20_many(outs, stream._key, nonces.to_bytes(self._bytes, "little"), self._modes)


class Stream:
    """Random bytes that two parties draw alike.

    key: 32 bytes, from `new_key` or received over a private channel. ValueError for another length. device: where what is
    drawn is made; it changes no byte.
    """

    __slots__ = ("_key", "device")

    def __init__(self, key: bytes, device: torch.device | str = "cpu") -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"Stream: the key must have {KEY_BYTES} bytes, not {len(key)}; make one with new_key()")
        self._key, self.device = bytes(key), torch.device(device)

    def __repr__(self) -> str:
        return "Stream(key hidden)"

    def __reduce__(self) -> str:
        raise TypeError("Stream: a key must not be pickled; send it over a private channel and build a new Stream")

    def draw(
        self,
        shape: Sequence[int],
        epoch: int,
        node: int,
        purpose: int,
        dtype: torch.dtype = torch.int64,
        index: int = 0,
    ) -> Tensor:
        """A new tensor of the bytes at one address, on the stream's device; see `fill`."""
        out = torch.empty(tuple(shape), dtype=dtype, device=self.device)
        return self.fill(out, epoch, node, purpose, index=index)

    def fill(self, out: Tensor, epoch: int, node: int, purpose: int, mode: str = "set", index: int = 0) -> Tensor:
        """Write, add, subtract or XOR the bytes at one address into a contiguous tensor, in place; returns it.

        epoch: below EPOCHS; node: below 2^32; purpose: below 2^8; index: below 2^16 (ValueError otherwise). mode: "set",
        "add", "sub", "xor", see `kernels.chacha20`. The nonce is, little-endian, so that no two addresses share one:
        epoch, low u32 | node u32 | purpose u8 | epoch, high u8 | index u16.
        """
        return kernels.chacha20(out, self._key, _nonce(epoch, node, purpose, index), mode)


def _nonce(epoch: int, node: int, purpose: int, index: int) -> bytes:
    try:
        return _NONCE.pack(epoch & 0xFFFFFFFF, node, purpose, epoch >> 32, index)
    except struct.error:
        raise ValueError(
            f"Stream.fill: epoch {epoch} must be below 2^40, node {node} below 2^32, purpose {int(purpose)} below 2^8 "
            f"and index {index} below 2^16, none negative; start a new key when numbers run out"
        ) from None


def new_key() -> bytes:
    """A fresh 32-byte key from the operating system."""
    return os.urandom(KEY_BYTES)


def insecure_test_key(seed: int, label: str) -> bytes:
    """A key anyone can compute, for tests that must repeat: SHA-256 of label and seed."""
    return sha256(f"{label}:{seed}".encode()).digest()
