"""What a run of a deep model costs, beside what the masked engine alone would cost."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from protocols.channel import HEADER_BYTES
from protocols.gates import GATES
from protocols.paillier.powers import schedule
from securemodel.engines.compiling import compile_again
from securemodel.engines.masked import compiling as masked_compiling
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.owned_layers import gate_shape, owned_layers, reply_bytes, request_bytes
from securemodel.engines.paillier.party import key_bytes
from securemodel.planning.costs import Network, find_network
from securemodel.planning.paillier import Rates
from securemodel.planning.plan import make_plan as masked_plan
from securemodel.planning.table import Plan
from securemodel.planning.units import bytes_text, seconds_text
from securemodel.shown import Shown

_COLUMNS = 110
_EXTRA_ROUNDS = 2


def make_plan(program: DeepProgram, network: Any = "lan") -> DeepPlan:
    """What a run costs, beside what the masked engine alone would cost."""
    network, masked = find_network(network), None
    if program.model is not None:
        masked = masked_plan(compile_again(program, masked_compiling), network)
    nodes = owned_layers(program.graph)
    request, reply = (sum(size(program.graph, n) for n in nodes) for size in (request_bytes, reply_bytes))
    bits = program.settings["key_bits"]
    dealt = Counter(node.op for node in program.graph.nodes if node.op in GATES)
    return DeepPlan(
        program.digest, program.client, program.server, bits, len(nodes), dict(dealt), request, reply,
        _preparing(program, Rates().for_bits(bits)), masked_plan(program, network), masked,
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
            (
                f"ahead of the input, each run: {self.client} sends {bytes_text(self.request_bytes + HEADER_BYTES)}, "
                f"{self.server} {bytes_text(self.reply_bytes + HEADER_BYTES)}, about {seconds_text(self.preparing_seconds)}"
            ),
            (
                f"one run, this included: rounds {self.rounds}; sends: {named(self.sent_bytes)}; "
                f"about {seconds_text(self.seconds)}"
            ),
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
