"""Times Flower's own SecAgg+ on updates of given sizes; run by benchmarks/federated.py in .venv-flower.

Clients and server are in one process, joined by no network: the time is that of computing and of packing messages. Updates
are those of benchmarks/updates.py: client i's are drawn with the seed i. A row has seconds, bytes that a client sends
and gets in a round (without the model itself), and the largest difference from the mean in the clear.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
import time
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict, UserConfig
from flwr.client import ClientApp, NumPyClient
from flwr.client.mod import secaggplus_mod
from flwr.common import FitIns, Parameters, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, ServerConfig
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.supercore.task_identity import TaskIdentity


def update_of(client: int, size: int) -> np.ndarray:
    """The update of a client, as benchmarks/federated.py draws it."""
    return np.random.default_rng(client).uniform(-1, 1, size).astype(np.float32)


def peak_mib() -> float:
    """The most memory that this process had (VmHWM of Linux: what `getrusage` tells includes that of its parent)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


class Site(NumPyClient):
    """A client that has its update ready."""

    def __init__(self, update: np.ndarray) -> None:
        self.update = update

    def fit(self, parameters, config):
        return [self.update], 1, {}


class Grid:
    """Calls the clients in this process, and counts the bytes of their records; `dropped` do not answer with their update."""

    def __init__(self, size: int, clients: int, dropped: set[int]) -> None:
        self.size, self.dropped, self.stage, self.drawing, self.sent, self.got = size, dropped, 0, 0.0, {}, {}
        self.contexts = {
            node: Context(1, node, UserConfig({"partition-id": node}), RecordDict(), UserConfig())
            for node in range(1, clients + 1)
        }
        self.app = ClientApp(client_fn=self._site, mods=[secaggplus_mod])

    def _site(self, context: Context):
        start = time.process_time()
        update = update_of(context.node_id, self.size)
        self.drawing += time.process_time() - start
        return Site(update).to_client()

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        self.stage += 1
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        if self.stage == 3 and node in self.dropped:
            return Message(Error(2, "lost"), reply_to=message)
        _count(self.got, node, message)
        own = Message(copy.deepcopy(message.content), metadata=message.metadata)  # the mod takes it apart
        reply = self.app(own, self.contexts[node])
        _count(self.sent, node, reply)
        return reply


def _count(counts: dict[int, int], node: int, message: Message) -> None:
    """Adds the size of a message's configs; a record with an empty list cannot tell its own (IndexError)."""
    for record in message.content.config_records.values():
        told = ConfigRecord({name: value for name, value in record.items() if value != []})
        counts[node] = counts.get(node, 0) + told.count_bytes()


class Strategy:
    """What the workflow asks of a strategy: whom to ask, and what becomes of the mean."""

    def __init__(self, clients: int) -> None:
        self.clients, self.mean = clients, None

    def configure_fit(self, server_round, parameters, client_manager):
        proxy = lambda node: type("Proxy", (), {"node_id": node})()
        return [(proxy(node), FitIns(parameters, {})) for node in range(1, self.clients + 1)]

    def aggregate_fit(self, server_round, results, failures):
        self.mean = results[0][1].parameters
        return None, {}


class Manager:
    def num_available(self) -> int:
        return 0


def measure(clients: int, size: int, dropouts: float, neighbors: int) -> dict:
    """One round of SecAgg+; whoever drops out does so with the update, the kindest moment for the protocol."""
    dropped = set(range(1, round(clients * dropouts) + 1))
    grid, strategy = Grid(size, clients, dropped), Strategy(clients)
    empty = Context(1, 0, UserConfig(), RecordDict(), UserConfig())
    context = LegacyContext(empty, ServerConfig(num_rounds=1), strategy, Manager())
    context.state.config_records["config"] = ConfigRecord({"current_round": 1})
    nothing = ndarrays_to_parameters([np.zeros(1)])
    context.state.array_records["parameters"] = compat.parameters_to_arrayrecord(nothing, True)
    threshold = neighbors // 2 + 1
    workflow = SecAggPlusWorkflow(neighbors, threshold, max_weight=1, clipping_range=1.0, modulus_range=2**32)
    start, cpu_start = time.perf_counter(), time.process_time()
    workflow(grid, context)
    seconds, cpu_seconds = time.perf_counter() - start - grid.drawing, time.process_time() - cpu_start - grid.drawing
    peak = peak_mib()
    kept = [client for client in range(1, clients + 1) if client not in dropped]
    clear = sum(update_of(client, size).astype(np.float64) for client in kept) / len(kept)
    return {
        "system": f"Flower {version('flwr')} SecAgg+, {neighbors} neighbors", "clients": clients, "size": size,
        "dropouts": dropouts, "seconds": seconds, "cpu_seconds": cpu_seconds, "sent_bytes": max(grid.sent.values()),
        "received_bytes": max(grid.got.values()), "error": _error(strategy.mean, clear), "peak_mib": peak,
    }  # fmt: skip


def _error(mean: Parameters | None, clear: np.ndarray) -> float | None:
    """The largest difference, or None where too many dropped out for their masks to be made again: the round is lost."""
    return None if mean is None else float(np.abs(parameters_to_ndarrays(mean)[0] - clear).max())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--dropouts", type=float, default=0.0)
    parser.add_argument("--neighbors", type=int, default=3)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    row = measure(given.clients, given.size, given.dropouts, given.neighbors)
    print(json.dumps(row), file=sys.stderr)
    if given.out:
        given.out.write_text(json.dumps([row]))


if __name__ == "__main__":
    main()
