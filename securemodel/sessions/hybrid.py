"""Sessions of deep models: those of the masked engine, with the gates' two messages before each run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from protocols.channel import Label, Purpose
from protocols.paillier import PrivateKey
from protocols.paillier.cipher import Draw
from securemodel.engines.labels import PAILLIER_KEY
from securemodel.engines.masked.party import OnlineParty, Talk
from securemodel.engines.masked.preparing import Preparing
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.owned_layers import ClientLayers, OwnerLayers
from securemodel.engines.paillier.party import blaming, key_bytes, key_text, read_key
from securemodel.sessions.remote import RemoteSession, drive_one
from securemodel.sessions.session import LocalSession, drive


class _Exchange:
    """One party's half of the gates' two messages."""

    def __init__(self, party: OnlineParty, preparing: Preparing, layers: ClientLayers | OwnerLayers) -> None:
        self.layers, self._party, self._preparing = layers, party, preparing
        self._peer = party.peers[0]
        self._wanted = frozenset(node.args[0] for node in layers.nodes)
        party.layers = layers

    def walk(self, epoch: int):
        """Prepares a run: request and answer."""
        labels = [Label(epoch, step, Purpose.TRANSFER) for step in (0, 1)]
        if isinstance(self.layers, ClientLayers):
            masks = self._preparing.masks(epoch, self._wanted, self._party.loaded_operands)
            yield Talk(labels[0], {self._peer: [self.layers.request(epoch, masks)]}, {})
            received = yield Talk(labels[1], {}, {self._peer: sum(self.layers.reply_sizes)})
            with blaming(self._peer, f"layers of run {epoch}"):
                self.layers.finish(epoch, received[self._peer].numpy().tobytes())
        else:
            received = yield Talk(labels[0], {}, {self._peer: sum(self.layers.request_sizes)})
            with blaming(self._peer, f"layers of run {epoch}"):
                reply = self.layers.reply(epoch, received[self._peer].numpy().tobytes())
            yield Talk(labels[1], {self._peer: [reply]}, {})


class LocalDeepSession(LocalSession):
    """All parties and the dealer in this process. `keys` and `insecure_draw` are for tests that must repeat."""

    def __init__(
        self,
        program: DeepProgram,
        key: PrivateKey,
        keys: Mapping[str, bytes] | None = None,
        insecure_draw: Draw | None = None,
    ) -> None:
        super().__init__(program, keys)
        nonce = (insecure_draw or os.urandom)(32)
        made: dict[str, Any] = {
            program.client: ClientLayers(program, nonce, key),
            program.server: OwnerLayers(program, nonce),
        }
        made[program.server].key = key.public
        for layers in made.values():
            layers.insecure_draw = insecure_draw
        self._exchanges = {n: _Exchange(p, self._preparing[n], made[n]) for n, p in self._parties.items()}

    def _load(self, model: torch.nn.Module | None) -> None:
        self._exchanges[self.program.server].layers.load(model)
        super()._load(model)

    def _before_run(self, epoch: int) -> None:
        drive({name: exchange.walk(epoch) for name, exchange in self._exchanges.items()}, self.channels)


class RemoteDeepSession(RemoteSession):
    """One party's end of a session between processes. `take_key` comes before everything else."""

    def take_key(self, key: PrivateKey | None) -> None:
        """Sends the client's public key, or receives it at the weights' owner."""
        try:
            self._exchange_key(key)
        except BaseException as error:
            self._fail(error)
            raise

    def _exchange_key(self, key: PrivateKey | None) -> None:
        program, peer = self.program, self._party.peers[0]
        size = key_bytes(program.settings["key_bits"])
        if key is not None:
            layers: ClientLayers | OwnerLayers = ClientLayers(program, self.channel.session, key)
            self.channel.exchange(PAILLIER_KEY, {peer: [key_text(key, size)]}, {})
        else:
            layers = OwnerLayers(program, self.channel.session)
            received = self.channel.exchange(PAILLIER_KEY, {}, {peer: size})
            layers.key = read_key(received[peer].numpy().tobytes(), peer, program.settings)
        self._exchange, self._ready = _Exchange(self._party, self._preparing, layers), 0

    def prepare(self) -> None:
        """Runs the gates for the next run before its input is known. Every party calls it at the same time."""
        with self._in_turn(self._turns.ask()):
            self._check_ready()
            with self._guarded():
                self._before_run(self._epochs.run(self._runs + 1))

    def _load(self, model: torch.nn.Module | None) -> None:
        self._ready = 0
        if isinstance(self._exchange.layers, OwnerLayers):
            try:
                self._exchange.layers.load(model)
            except BaseException as error:
                self._fail(error)
                raise
        super()._load(model)

    def _before_run(self, epoch: int) -> None:
        if self._ready != epoch:
            drive_one(self._exchange.walk(epoch), self.channel)
            self._ready = epoch
