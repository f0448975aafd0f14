"""What costs consist of: networks, machines, and the counts from which times are predicted.

Time is predicted as
    rounds * latency + bytes / bandwidth + multiply-adds / rate + touched bytes / rate + operations * overhead
where a party sends and receives at once, so the larger of the two counts (docs/costs.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from securemodel.errors import InputError


@dataclass(frozen=True)
class Network:
    """A network between the parties: bits per second a party can send and receive at once, seconds one way.

    One way is half a round trip; in a round all parties send at once, so a round takes it once.
    """

    bandwidth: float
    latency: float
    name: str = "custom"

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or not self.latency >= 0:
            raise InputError(
                f"no network has bandwidth {self.bandwidth} bit/s and latency {self.latency} s: "
                "give a positive bandwidth, and the time one way (half a round trip), 0 or more"
            )


NETWORKS = {
    "local": Network(10e9, 0.1e-3, "local"),
    "lan": Network(1e9, 0.25e-3, "lan"),
    "wan": Network(100e6, 20e-3, "wan"),
}
"""Processes of one host; a round trip of 0.5 ms; a round trip of 40 ms."""


@dataclass(frozen=True)
class Machine:
    """How fast a party or the dealer computes, on a machine of its own.

    The defaults are medians measured on 2 cores of an AMD EPYC server with AVX-512: ring multiply-adds of layers,
    bytes that operations read and write, bytes of masks and dealt shares made from a key, and the fixed time of
    one operation.
    """

    multiply_adds_per_s: float = 15e9
    bytes_per_s: float = 12e9
    prepared_bytes_per_s: float = 4e9
    seconds_per_operation: float = 30e-6

    def __post_init__(self) -> None:
        rates = (self.multiply_adds_per_s, self.bytes_per_s, self.prepared_bytes_per_s)
        if not all(rate > 0 for rate in rates) or not self.seconds_per_operation >= 0:
            raise InputError(f"{self} cannot be: rates are positive, and the time of one operation is 0 or more")

    def online_seconds(self, multiply_adds: int, moved_bytes: int, operations: int) -> float:
        """Time to compute with values that are there."""
        return self._seconds(multiply_adds, moved_bytes / self.bytes_per_s, operations)

    def preparing_seconds(self, multiply_adds: int, made_bytes: int, operations: int) -> float:
        """Time to make masks and dealt shares, and to multiply masks."""
        return self._seconds(multiply_adds, made_bytes / self.prepared_bytes_per_s, operations)

    def _seconds(self, multiply_adds: int, bytes_seconds: float, operations: int) -> float:
        return multiply_adds / self.multiply_adds_per_s + bytes_seconds + operations * self.seconds_per_operation


@dataclass(frozen=True)
class PartyCost:
    """One party's costs: exact counts, from which seconds are predicted. Costs can be added."""

    rounds: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    multiply_adds: int = 0
    prepared_multiply_adds: int = 0
    moved_bytes: int = 0
    prepared_bytes: int = 0
    operations: int = 0

    def __add__(self, other: PartyCost) -> PartyCost:
        return PartyCost(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def seconds(self, network: Network, machine: Machine) -> float:
        """Predicted time from sharing the inputs to holding the outputs, everything prepared."""
        talk = self.rounds * network.latency + 8 * max(self.sent_bytes, self.received_bytes) / network.bandwidth
        return talk + machine.online_seconds(self.multiply_adds, self.moved_bytes, self.operations)


@dataclass(frozen=True)
class Cost:
    """Costs of all parties and the dealer. Preprocessing bytes are what the dealer sends to the last party."""

    parties: Mapping[str, PartyCost]
    preprocessing_bytes: int = 0
    dealt_multiply_adds: int = 0
    dealt_messages: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            {name: cost + other.parties[name] for name, cost in self.parties.items()},
            self.preprocessing_bytes + other.preprocessing_bytes,
            self.dealt_multiply_adds + other.dealt_multiply_adds,
            self.dealt_messages + other.dealt_messages,
        )

    @property
    def rounds(self) -> int:
        """Rounds of the party that takes part in most."""
        return max(cost.rounds for cost in self.parties.values())

    @property
    def sent_bytes(self) -> dict[str, int]:
        """Bytes each party sends to the others, headers included."""
        return {name: cost.sent_bytes for name, cost in self.parties.items()}

    def seconds(self, network: Network, machine: Machine) -> float:
        """Predicted online time: the slowest party's."""
        return max(cost.seconds(network, machine) for cost in self.parties.values())

    def preparing_seconds(self, network: Network, machine: Machine) -> float:
        """Predicted time of preparing one run: dealing, sending and expanding overlap, the slowest counts."""
        made = max(cost.prepared_bytes for cost in self.parties.values())
        dealing = machine.preparing_seconds(self.dealt_multiply_adds, len(self.parties) * made, self.dealt_messages)
        sending = network.latency * bool(self.preprocessing_bytes) + 8 * self.preprocessing_bytes / network.bandwidth
        expanding = max(
            machine.preparing_seconds(cost.prepared_multiply_adds, cost.prepared_bytes, self.dealt_messages)
            for cost in self.parties.values()
        )
        return max(dealing, sending, expanding)


@dataclass(frozen=True)
class Layer:
    """A layer's name and its part of the costs. `steps`: of a recurrent layer, those it takes one after the other."""

    name: str
    cost: Cost
    steps: int = 0

    @property
    def rounds_per_step(self) -> float:
        """Rounds of one step of a recurrent layer; 0 for others."""
        return self.cost.rounds / self.steps if self.steps else 0.0


@dataclass(frozen=True)
class Expense:
    """A layer that takes much of a run: its share of the time, what takes most of that, and what would help."""

    layer: str
    share: float
    mostly: str
    hints: tuple[str, ...]


def find_network(network: str | Network) -> Network:
    """A network by its name in NETWORKS, or as given. Raises InputError for an unknown one."""
    if not isinstance(network, str):
        return network
    if network not in NETWORKS:
        raise InputError(
            f"no network is called {network!r}: use {', '.join(map(repr, NETWORKS))}, or "
            "securemodel.planning.plan.Network(bandwidth=bits per second, latency=seconds one way)"
        )
    return NETWORKS[network]
