"""The linear gate with the key at the weights' owner: encrypted weights are sent once and serve every run.

x = x_C + x_S in Z_2^64 is shared between a client C and a server S, which knows the weights W and holds the key. The
result is shared as y_C + y_S = W x (as in Nimbus, Li et al., NeurIPS 2024, with Paillier in place of lattices):
  S  `KeyGate.publish`:    sends Enc(W), several outputs packed into each ciphertext; once for all runs
  C  `ShareGate.reply`:    sends Enc(W x_C + r), re-randomized, and keeps y_C = -r
  S  `KeyGate.finish`:     keeps y_S = W x_S + (W x_C + r) modulo 2^64

Ranges and masks are those of `linear_gate`, with the roles exchanged: here S decrypts, and r hides x_C from it. A run
sends ciphertexts only from C to S, one for as many outputs as there are slots; with few outputs slots stay empty. For
running ahead of time, x_C is a `random_share` and C later sends x - x_C, to which S applies W in the clear.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from protocols.errors import InputError, ProtocolError, explain
from protocols.paillier import wire
from protocols.paillier.keys import PrivateKey, PublicKey
from protocols.paillier.linear_gate import RING_BITS, GateShape, checked_weights, random_masks, to_ring
from protocols.paillier.pool import BlindingPool
from protocols.paillier.powers import linear
from protocols.paillier.tensor import PaillierTensor, encrypt_array


@dataclass(eq=False, repr=False)
class KeyGate:
    """The side that knows the weights, int64[*weight_shape] of at most `weight_bits` bits, and holds the key."""

    key: PrivateKey
    shape: GateShape
    weights: Tensor
    context: str = ""

    def publish(self, pool: BlindingPool | None = None) -> bytes:
        """The encrypted weights."""
        rows = checked_weights(self.shape, self.weights)
        width, limit = self.shape.mask_bits + 1, 1 << self.shape.weight_bits - 1
        return wire.write(
            encrypt_array(self.key, rows.transpose(1, 0, 2), 0, limit, slot_bits=width, pool=pool),
            self.context + "/weights",
        )

    def finish(self, reply: bytes, share: Tensor, run: str = "") -> Tensor:
        """This side's share of the result from its share of the input. Raises ProtocolError for another reply."""
        public, patches = self.key.public, self.shape.patches
        answer = wire.read(reply, public, f"{self.context}/reply/{run}")
        groups, _, columns = patches.places.shape
        _agree(answer, self.shape, public, (patches.rows, groups, columns))
        values = wire.integers(answer, self.key).transpose(1, 0, 2)
        opened = to_ring(values.reshape(-1).tolist()).numpy().reshape(values.shape)
        product = torch.from_numpy(np.ascontiguousarray(patches.arrange(opened)))
        return patches.apply(self.weights, share) + product


@dataclass(eq=False, repr=False)
class ShareGate:
    """The side that knows a share of the input; `published` is the owner's message, ProtocolError for another."""

    key: PublicKey
    shape: GateShape
    published: bytes
    context: str = ""

    def __post_init__(self) -> None:
        groups, terms, _ = self.shape.patches.places.shape
        self._weights = wire.read(self.published, self.key, self.context + "/weights")
        _agree(self._weights, self.shape, self.key, (self.shape.patches.rows, groups, terms))

    def reply(self, share: Tensor, run: str = "", pool: BlindingPool | None = None) -> tuple[bytes, Tensor]:
        """The message to the owner, and this side's share of the result, -r. run: names the run, on both sides."""
        patches, sealed = self.shape.patches, self._weights
        if tuple(share.shape) != patches.input_shape or share.dtype != torch.int64:
            raise InputError(f"ShareGate: the share must be int64{list(patches.input_shape)}")
        read = np.append(share.reshape(-1).numpy(), 0)[patches.places]  # [G, K, P]; place -1 is the zero
        made = [
            linear(self.key.residues, np.moveaxis(sealed.cells[:, g], 1, 0), columns.T, 1 << RING_BITS - 1)
            for g, columns in enumerate(read)
        ]
        cells = np.stack([np.moveaxis(part, 1, 0) for part in made], axis=1)
        sums = replace(sealed, cells=cells, bound=self.shape.bound, fresh=False)
        masks = np.array(random_masks(sums.size, self.shape.mask_bits), object).reshape(sums.shape)
        data = wire.write(sums.add(masks, 1 << self.shape.mask_bits - 1), f"{self.context}/reply/{run}", pool)
        kept = to_ring((-masks.transpose(1, 0, 2)).reshape(-1).tolist()).numpy()
        arranged = patches.arrange(kept.reshape(sums.shape[1], patches.rows, sums.shape[2]))
        return data, torch.from_numpy(np.ascontiguousarray(arranged))


def _agree(array: PaillierTensor, shape: GateShape, key: PublicKey, wanted: tuple[int, ...]) -> None:
    if array.slots != shape.slots(key.bits) or array.shape != wanted or array.frac_bits:
        raise ProtocolError(
            explain(
                "a message does not fit the layer", why=f"it is {array!r}", fix="use the same GateShape at both parties"
            )
        )
