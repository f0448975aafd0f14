"""Deep models: layers with the owner's weights by the Paillier gate, all else by the masked engine and its dealer."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from protocols.channel import HEADER_BYTES
from protocols.errors import explain
from protocols.gates import GATES
from protocols.paillier.powers import schedule
from securemodel.backends.paillier.layers import gate_shape, owned_layers, reply_bytes, request_bytes
from securemodel.backends.paillier.operators import ENCRYPTED_ROWS, client_of
from securemodel.backends.paillier.party import key_bytes
from securemodel.backends.paillier.plan import Rates
from securemodel.backends.paillier.program import KIND, PaillierProgram
from securemodel.compiler.compile import compile_again
from securemodel.compiler.ops import MAX_PROGRAM_BYTES, Wrong
from securemodel.compiler.plan import Network, Plan, find_network
from securemodel.compiler.plan import make_plan as masked_plan
from securemodel.compiler.plantable import bytes_text, seconds_text
from securemodel.compiler.reading import parse_program
from securemodel.errors import ProgramError
from securemodel.program import Program
from securemodel.shown import Shown

_COLUMNS = 110
_EXTRA_ROUNDS = 2


@dataclass(frozen=True, repr=False)
class DeepProgram(Program):
    """A program of the masked engine whose `owned_layer` nodes need no masked weights and no dealt products."""

    protocol: ClassVar[str] = "paillier"

    @property
    def server(self) -> str:
        """The party that owns the weights."""
        return self.header.weights

    @property
    def client(self) -> str:
        """The party that has the key."""
        return next(name for name in self.parties if name != self.server)

    @property
    def settings(self) -> Mapping[str, Any]:
        """key_bits, insecure, weight_limit."""
        return owned_layers(self.graph)[0].attrs

    def plan(self, network: Any = "lan") -> DeepPlan:
        """What a run costs, beside what the masked engine alone would cost."""
        network, masked = find_network(network), None
        if self.model is not None:
            masked = compile_again(self, "masked").plan(network)
        nodes = owned_layers(self.graph)
        request, reply = (sum(size(self.graph, n) for n in nodes) for size in (request_bytes, reply_bytes))
        bits = self.settings["key_bits"]
        dealt = Counter(node.op for node in self.graph.nodes if node.op in GATES)
        return DeepPlan(
            self.digest, self.client, self.server, bits, len(nodes), dict(dealt), request, reply,
            _preparing(self, Rates().for_bits(bits)), masked_plan(self, network), masked,
        )  # fmt: skip


def _preparing(program: DeepProgram, rates: Rates) -> float:
    """Predicted seconds of the gates of one run, without what the network takes."""
    total, graph = 0.0, program.graph
    for node in owned_layers(graph):
        shape, bits = gate_shape(graph, node), program.settings["key_bits"]
        slots, patches = shape.slots(bits), shape.patches
        groups, terms, columns = patches.places.shape
        inputs = len(np.unique(patches.places[patches.places >= 0]))
        uses = patches.rows * groups * terms * columns / max(1, inputs)
        cells = -(-patches.outputs // slots.count)
        products = inputs * schedule(1 << shape.weight_bits - 1, uses).products
        products += patches.outputs * (shape.weight_bits + slots.width)
        total += inputs * rates.encryption + products * rates.product + cells * (rates.blinding + rates.decryption)
    return total


@dataclass(frozen=True, repr=False)
class DeepPlan(Shown):
    """The costs of one run with the compiled number of rows; print it.

    `online` is the masked engine's plan of all but the gates' two messages, `masked` that of the masked engine alone.
    """

    digest: str
    client: str
    server: str
    key_bits: int
    layers: int
    dealt: Mapping[str, int]
    request_bytes: int
    reply_bytes: int
    gate_seconds: float
    online: Plan
    masked: Plan | None

    @property
    def network(self) -> Network:
        """What times are predicted for."""
        return self.online.network

    @property
    def rounds(self) -> int:
        """Rounds of a run, the gates' two messages included; exact."""
        return self.online.rounds + _EXTRA_ROUNDS

    @property
    def sent_bytes(self) -> dict[str, int]:
        """Bytes each party sends in a run, headers included; exact."""
        extra = {self.client: self.request_bytes, self.server: self.reply_bytes}
        return {name: count + HEADER_BYTES + extra[name] for name, count in self.online.sent_bytes.items()}

    @property
    def preprocessing_bytes(self) -> int:
        """Bytes the dealer sends for one run; exact."""
        return self.online.preprocessing_bytes

    @property
    def opening_bytes(self) -> int:
        """Bytes of the client's key, once a session, header included; exact."""
        return HEADER_BYTES + key_bytes(self.key_bits)

    @property
    def preparing_seconds(self) -> float:
        """Predicted time of the gates, which need no input (`session.prepare`)."""
        sent = self.request_bytes + self.reply_bytes
        return self.gate_seconds + _EXTRA_ROUNDS * self.network.latency + 8 * sent / self.network.bandwidth

    @property
    def seconds(self) -> float:
        """Predicted time of a run that was not prepared."""
        return self.preparing_seconds + self.online.seconds

    @property
    def recommended(self) -> str:
        """The protocol whose run is predicted to be shorter: "paillier" or "masked"."""
        return "masked" if self.masked is not None and self.masked.seconds < self.seconds else "paillier"

    @property
    def trust(self) -> str:
        """Who learns what, and who must not work together."""
        gates = ", ".join(f"{count} {name}" for name, count in self.dealt.items())
        return (
            f"{self.server} computes {self.layers} linear layers with weights that never leave it, on values that "
            f"{self.client}'s masks and its Paillier key hide; the dealer has no part in them. It deals for everything else "
            f"({gates or 'nothing'}), sees no data and no message, and must not work together with {self.client} or "
            f"{self.server}. All must follow the protocol"
        )

    def __str__(self) -> str:
        named = lambda counts: ", ".join(f"{name} {bytes_text(count)}" for name, count in counts.items())
        lines = [
            f"program {self.digest[:12]} for Paillier and the masked engine, key of {self.key_bits} bits at {self.client}",
            (f"ahead of the input, each run: {self.client} sends {bytes_text(self.request_bytes + HEADER_BYTES)}, "
            f"{self.server} {bytes_text(self.reply_bytes + HEADER_BYTES)}, about {seconds_text(self.preparing_seconds)}"),
            (f"one run, this included: rounds {self.rounds}; sends: {named(self.sent_bytes)}; "
            f"about {seconds_text(self.seconds)}"),
            f"opening a session, once: {bytes_text(self.opening_bytes)}",
            "",
            "the online part:",
            str(self.online),
        ]
        if self.masked:
            lines += ["", *self._beside(self.masked)]
        return "\n".join([*lines, *textwrap.wrap(f"trust: {self.trust}", _COLUMNS)])

    def _beside(self, other: Plan) -> list[str]:
        rows = [
            ("", "paillier", "masked"),
            ("rounds", str(self.rounds), str(other.rounds)),
            ("sent by both", *(bytes_text(sum(plan.sent_bytes.values())) for plan in (self, other))),
            ("sent at loading", *(bytes_text(sum(p.load.sent_bytes.values())) for p in (self.online, other))),
            ("dealt by a third party", *(bytes_text(plan.preprocessing_bytes) for plan in (self, other))),
            ("seconds", seconds_text(self.seconds), seconds_text(other.seconds)),
            ("of them with the input", seconds_text(self.online.seconds), seconds_text(other.seconds)),
        ]
        made = f"recommended: {self.recommended}, the shorter run on this network; both need a dealer"
        return [*(f"{a:<26}{b:>12}{c:>14}" for a, b, c in rows), made]


_KEY = ("key_bits", "insecure", "weight_limit")


def read_program(text: str, max_bytes: int = MAX_PROGRAM_BYTES) -> Program:
    """The program in a text that `save` of an encrypted graph or a deep program wrote. Raises ProgramError."""
    encrypted = text.startswith(KIND)
    if encrypted:
        header, graph = parse_program(text, KIND, ENCRYPTED_ROWS, max_bytes)
        settings = [node.attrs for node in graph.nodes if node.op == "settings"]
    else:
        header, graph = parse_program(text, max_bytes=max_bytes)
        settings = [{name: node.attrs[name] for name in _KEY} for node in owned_layers(graph)]
        if not settings:  # the words that it was known by stand somewhere else
            return Program(header, graph)
    try:
        client_of(header)
        if not settings or any(other != settings[0] for other in settings[1:]) or (encrypted and len(settings) > 1):
            raise Wrong("a program states the key and its limits once, or the same with each layer")
    except Wrong as wrong:
        raise ProgramError(explain("this is no secure program", why=str(wrong), fix="write it with Program.save()")) from None
    return (PaillierProgram if encrypted else DeepProgram)(header, graph)
