"""Both parties' walks: through encrypted graphs, and through deep models, which are the masked engine's but for layers."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

import torch

from protocols.channel import Label, Purpose
from protocols.paillier import BlindingPool, PrivateKey
from protocols.paillier.cipher import Draw
from protocols.paillier.pool import InsecurePool
from securemodel.compiler.capture import ModelState
from securemodel.engines.masked.walk import MaskedWalk
from securemodel.engines.masked.walk import local_walks as masked_walks
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.owned_layers import ClientLayers, OwnerLayers
from securemodel.engines.paillier.party import Client, Server, blaming
from securemodel.engines.paillier.program import PaillierProgram
from securemodel.engines.walk import Inputs, Rows, Steps, Talk, Walk

_MOST_FACTORS = 4096


class PaillierWalk(Walk):
    """A party of an encrypted graph. With `ahead`, blinding factors for the next run are made while none is going on."""

    def __init__(self, party: Client | Server, ahead: bool = False) -> None:
        self.party = party
        if ahead:
            shape = party.program.shape
            mine = shape.groups * shape.inputs if isinstance(party, Client) else shape.reply_cells
            party.pool = BlindingPool(party.key, min(mine, _MOST_FACTORS))

    def load(self, epoch: int, model: ModelState | None) -> Steps[None]:
        self.party.load(model)
        yield from ()

    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list[torch.Tensor | None], Rows]]:
        self.party.agreed = self.agreed
        return (yield from self.party.run(epoch, inputs, rows))

    def close(self) -> None:
        if self.party.pool is not None:
            self.party.pool.close()


class DeepWalk(Walk):
    """The masked engine's walk, and before each run the two messages that make the parts of layers with known weights."""

    def __init__(self, masked: MaskedWalk, layers: ClientLayers | OwnerLayers) -> None:
        self.masked, self.layers, self._ready = masked, layers, 0
        self._peer = masked.party.peers[0]
        self._wanted = frozenset(node.args[0] for node in layers.nodes)
        masked.others = {node.id: partial(layers.part, node) for node in layers.nodes}

    @property
    def dealt_bytes(self) -> int:
        return self.masked.dealt_bytes

    def load(self, epoch: int, model: ModelState | None) -> Steps[None]:
        self._ready = 0
        self.layers.load(model)
        yield from self.masked.load(epoch, model)

    def prepare(self, epoch: int) -> Steps[None]:
        if self._ready == epoch:
            return
        labels = [Label(epoch, step, Purpose.TRANSFER) for step in (0, 1)]
        where = f"layers of run {epoch}"
        if isinstance(self.layers, ClientLayers):
            masks = self.masked.preparing.masks(epoch, self._wanted, self.masked.party.loaded_operands)
            yield Talk(labels[0], {self._peer: [self.layers.request(epoch, masks)]}, {})
            received = yield Talk(labels[1], {}, {self._peer: sum(self.layers.reply_sizes)})
            with blaming(self._peer, where):
                self.layers.finish(epoch, received[self._peer].numpy().tobytes())
        else:
            received = yield Talk(labels[0], {}, {self._peer: sum(self.layers.request_sizes)})
            with blaming(self._peer, where):
                reply = self.layers.reply(epoch, received[self._peer].numpy().tobytes())
            yield Talk(labels[1], {self._peer: [reply]}, {})
        self._ready = epoch

    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list[torch.Tensor | None], Rows]]:
        self.masked.ask(epoch)  # the dealer works meanwhile
        self.masked.agreed = self.agreed
        yield from self.prepare(epoch)
        return (yield from self.masked.run(epoch, inputs, rows))

    def abort(self, reason: str) -> None:
        self.masked.abort(reason)

    def close(self) -> None:
        self.masked.close()


def local_walks(
    program: PaillierProgram, key: PrivateKey, insecure_draw: Draw | None = None
) -> dict[str, PaillierWalk]:
    """Both parties' walks in this process. `insecure_draw` is for tests that must repeat."""
    nonce = (insecure_draw or os.urandom)(32)
    client, server = Client(program, nonce, key), Server(program, nonce, key.public)
    if insecure_draw:
        client.pool, server.pool = (InsecurePool(party.key, insecure_draw) for party in (client, server))
    return {party.me: PaillierWalk(party) for party in (client, server)}


def local_deep_walks(
    program: DeepProgram, key: PrivateKey, keys: Mapping[str, bytes] | None = None, insecure_draw: Draw | None = None
) -> dict[str, DeepWalk]:
    """The same for a deep model. `keys` and `insecure_draw` are for tests that must repeat."""
    nonce = (insecure_draw or os.urandom)(32)
    layers: dict[str, ClientLayers | OwnerLayers] = {
        program.client: ClientLayers(program, nonce, key),
        program.server: OwnerLayers(program, nonce, key.public),
    }
    for side in layers.values():
        side.insecure_draw = insecure_draw
    return {name: DeepWalk(walk, layers[name]) for name, walk in masked_walks(program, keys).items()}
