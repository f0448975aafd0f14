"""A party's plaintext linear layer on the other party's share, without a dealer.

x = x_C + x_S in Z_2^64 is shared between a client C and a server S, which alone knows the weights W. The result is
shared as y_C + y_S = W x (Gilboa, CRYPTO 1999; linear layers as in Delphi, Mishra et al., USENIX Security 2020, §4.1):
  C  `ClientGate.request`: sends Enc(x_C) under its own key, shares read as integers from -2^63 to 2^63 - 1
  S  `ServerGate.reply`:   sends Enc(W x_C + r), packed and re-randomized
  C  `ClientGate.finish`:  decrypts and keeps y_C = W x_C + r modulo 2^64
  S  `ServerGate.finish`:  keeps y_S = W x_S - r

Range. Weights have at most `weight_bits` bits, the sign included, and an output has K terms, so T = W x_C, an integer,
has |T| <= K 2^(weight_bits - 1) 2^63 <= 2^t. A mask r is uniform from -2^(m-1) to 2^(m-1) - 1 with m = t + sigma, from
the operating system. So |T + r| <= 2^t + 2^(m-1) < 2^m for sigma >= 2: it fits a slot of m + 1 bits, slots never carry
(`packing`), and no sum reaches n/2.

What C sees. Each T + r is within statistical distance |T| / 2^m <= 2^-sigma of r, whatever T is; sigma = 40 by default.
Its low 64 bits, which are all that C keeps, are exactly uniform, because 2^64 divides 2^m. The ciphertexts it comes in
are within 2^-40 of random ones with that content (`cipher.refreshing_factors`). What S sees is encrypted. All this
holds for parties that follow the protocol: a client that encrypts larger numbers than shares learns more.

Ahead of time: with x_C = a uniform mask the three steps need no input. When x comes, C sends x - x_C, which is
uniform, and S computes y_S = W (x - x_C) - r: the online phase is plain ring arithmetic.
"""

import secrets
from dataclasses import dataclass, field, replace
from math import prod

import numpy as np
import torch
from torch import Tensor

from protocols.errors import InputError, ProtocolError, explain
from protocols.paillier import wire
from protocols.paillier.cipher import Draw, encrypt, trivial
from protocols.paillier.keys import PrivateKey, PublicKey
from protocols.paillier.packing import Slots, slots_for, whole
from protocols.paillier.patches import Patches
from protocols.paillier.pool import BlindingPool
from protocols.paillier.powers import linear
from protocols.paillier.tensor import PaillierTensor

SIGMA = 40
RING_BITS = 64


@dataclass(frozen=True)
class GateShape:
    """What both parties agree on: the layer's geometry, the width of its weights and the security of masks."""

    patches: Patches
    weight_bits: int
    sigma: int = SIGMA

    def __post_init__(self) -> None:
        if not 1 <= self.weight_bits <= 62 or self.sigma < 2:
            raise InputError(
                f"GateShape: weight_bits {self.weight_bits} must be from 1 to 62 and sigma {self.sigma} at least 2"
            )

    @property
    def bound(self) -> int:
        """The largest magnitude of an output as an integer: 2^t of the module's text, not rounded up."""
        return self.patches.terms << self.weight_bits - 1 + RING_BITS - 1

    @property
    def mask_bits(self) -> int:
        """m: bits of a mask."""
        return (self.bound - 1).bit_length() + self.sigma

    def slots(self, bits: int) -> Slots:
        """How the reply is packed under a key of that many bits. InputError for a key too small for one slot."""
        return slots_for(bits, (1 << self.mask_bits) - 1)


@dataclass(eq=False, repr=False)
class ClientGate:
    """The side that knows a share of the input and holds the key."""

    key: PrivateKey
    shape: GateShape
    context: str = ""

    def request(self, share: Tensor, pool: BlindingPool | None = None) -> bytes:
        """The message to the server: the share int64[*input_shape], encrypted."""
        if tuple(share.shape) != self.shape.patches.input_shape or share.dtype != torch.int64:
            raise InputError(f"ClientGate: the share must be int64{list(self.shape.patches.input_shape)}")
        values = share.reshape(-1).tolist()
        cells = encrypt(self.key, values, pool.take(len(values)) if pool is not None else None)
        public = self.key.public
        return wire.write(
            PaillierTensor(public, cells, 0, 1 << RING_BITS - 1, whole(public.bits), fresh=True),
            self.context + "/request",
        )

    def finish(self, reply: bytes) -> Tensor:
        """This side's share of the result, int64[*output_shape]. Raises ProtocolError for another reply."""
        public, patches = self.key.public, self.shape.patches
        answer = wire.read(reply, public, self.context + "/reply")
        if answer.slots != self.shape.slots(public.bits) or answer.shape != (patches.outputs,) or answer.frac_bits:
            raise ProtocolError(
                explain(
                    "the reply does not fit the layer",
                    why=f"it is {answer!r}",
                    fix="use the same GateShape at both parties",
                )
            )
        return to_ring(wire.integers(answer, self.key).tolist()).reshape(patches.output_shape)


@dataclass(eq=False, repr=False)
class ServerGate:
    """The side that knows the weights.

    weights: int64[*weight_shape] of at most `weight_bits` bits, the sign included (InputError otherwise).
    """

    key: PublicKey
    shape: GateShape
    weights: Tensor
    context: str = ""
    _rows: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self._rows = checked_weights(self.shape, self.weights)

    def reply(
        self, request: bytes, pool: BlindingPool | None = None, insecure_draw: Draw | None = None
    ) -> tuple[bytes, Tensor]:
        """The message to the client, and r: int64[*output_shape], to be subtracted from W x_S.

        insecure_draw: where a test that must repeat takes r from, instead of the operating system.
        """
        patches, residues = self.shape.patches, self.key.residues
        asked = wire.read(request, self.key, self.context + "/request")
        if (
            asked.packed
            or asked.shape != (prod(patches.input_shape),)
            or asked.bound > 1 << RING_BITS - 1
            or asked.frac_bits
        ):
            raise ProtocolError(
                explain(
                    "the request does not fit the layer",
                    why=f"it is {asked!r}",
                    fix="use the same GateShape at both parties",
                )
            )
        groups = zip(self._rows, patches.places, strict=True)
        limit = 1 << self.shape.weight_bits - 1
        products = np.stack([linear(residues, asked.cells, rows, limit, places) for rows, places in groups])
        flat = patches.arrange(products).reshape(-1, *residues.cell)
        masks = random_masks(len(flat), self.shape.mask_bits, insecure_draw)
        sums = PaillierTensor(self.key, flat, 0, (1 << self.shape.mask_bits) - 1, whole(self.key.bits)).compressed()
        masked = residues.multiply(sums.cells, trivial(self.key, sums.slots.pack(masks)))
        answer = replace(sums, cells=masked)
        return wire.write(answer, self.context + "/reply", pool), to_ring(masks).reshape(patches.output_shape)

    def finish(self, share: Tensor, masks: Tensor) -> Tensor:
        """This side's share of the result, W x_S - r, from its share of the input and what `reply` returned."""
        return self.shape.patches.apply(self.weights, share) - masks


def checked_weights(shape: GateShape, weights: Tensor) -> np.ndarray:
    """Weights int64[*weight_shape] as [G, M, K]. InputError for others and for more than `weight_bits` bits."""
    if weights.dtype != torch.int64:
        raise InputError(f"the weights must be int64, not {weights.dtype}")
    rows, top = shape.patches.weights(weights.numpy()), 1 << shape.weight_bits - 1
    if rows.size and not -top <= rows.min() <= rows.max() < top:
        raise InputError(
            explain(
                f"a weight does not fit {shape.weight_bits} bits",
                fix="use a larger weight_bits at both parties, or a smaller scale",
            )
        )
    return rows


def random_masks(count: int, bits: int, draw: Draw | None = None) -> list[int]:
    """Uniform integers from -2^(bits-1) to 2^(bits-1) - 1, from the operating system's randomness."""
    each, half = -(-bits // 8), 1 << bits - 1
    drawn = (draw or secrets.token_bytes)(count * each)
    numbers = (int.from_bytes(drawn[at : at + each], "little") for at in range(0, len(drawn), each))
    return [(number & (1 << bits) - 1) - half for number in numbers]


def to_ring(values: list[int]) -> Tensor:
    """Integers modulo 2^64, as int64."""
    low = np.array([int(v) & (1 << RING_BITS) - 1 for v in values], np.uint64)
    return torch.from_numpy(low.view(np.int64))
