"""Lanes of one party as actors of Ray, on the machines of its own organization: `securemodel predict --ray`.

Actors are given words, numbers and bytes; script, parties file and identity are files that every machine of the cluster
has at the same place. One cluster across organizations would run one party's code at another: each party starts its own.
"""

from __future__ import annotations

import importlib.util
import os
import queue
import threading
from collections.abc import Mapping
from typing import Any

from protocols.errors import ConfigError, explain
from securemodel.cli.lane import run_lane
from securemodel.engines.packing import pack

LOCAL = "local"
_MEMORY_BYTES = 200 << 20  # of Ray's store of objects, which holds chunks on their way
_WAIT_S = 0.5


class LaneActor:
    """What runs in an actor's process: a lane in a thread of its own, and messages to and from it."""

    def __init__(self, job: Mapping[str, Any]) -> None:
        self._chunks: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        arguments = (job, self._chunks.get, self._replies.put)
        threading.Thread(target=run_lane, args=arguments, daemon=True, name="lane").start()

    def give(self, chunk: bytes | None) -> None:
        """The next chunk, or None where there will be no more."""
        self._chunks.put(chunk)

    def replies(self) -> list[bytes]:
        """What the lane has replied since, waiting a moment for the first."""
        found: list[bytes] = []
        try:
            found.append(self._replies.get(timeout=_WAIT_S))
            while True:
                found.append(self._replies.get_nowait())
        except queue.Empty:
            return found


class RayLanes:
    """Lanes as actors, of a cluster that is running, or ("local") of one that is started on this machine and ended.

    Raises ConfigError where Ray is not installed, or does not start.
    """

    def __init__(self, job: Mapping[str, Any], lanes: int, address: str = LOCAL) -> None:
        if importlib.util.find_spec("ray") is None:
            fix = 'pip install "securemodel[ray]", or leave --ray out: lanes are then processes of this machine'
            raise ConfigError(explain("--ray wants Ray, which is not installed", fix=fix))
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        import ray

        self._ray, self._job, self._lanes = ray, job, lanes
        own = {"include_dashboard": False, "object_store_memory": _MEMORY_BYTES, "num_cpus": lanes,
               "_node_ip_address": "127.0.0.1"}  # fmt: skip
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **(own if address == LOCAL else {}))
        except Exception as error:  # Ray's own are of no kind of their own
            why = (str(error).splitlines() or [type(error).__name__])[0]
            fix = "on a busy machine Ray's own processes start too slowly: try again, or leave --ray out"
            raise ConfigError(explain("Ray cannot be started or reached", where=address, why=why, fix=fix)) from error
        self._actor = ray.remote(num_cpus=1, max_concurrency=2, max_restarts=0)(LaneActor)
        self._running: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}

    def start(self, lane: int) -> None:
        """Starts an actor, which connects."""
        self._running[lane] = self._actor.remote({**self._job, "lane": lane})
        self._ask(lane)

    def _ask(self, lane: int) -> None:
        self._asked[self._running[lane].replies.remote()] = lane

    def give(self, lane: int, chunk: bytes) -> None:
        """Hands an actor its next chunk."""
        self._running[lane].give.remote(chunk)

    def stop(self, lane: int) -> None:
        """Ends an actor's process."""
        self._ray.kill(self._running.pop(lane))
        self._asked = {asked: of for asked, of in self._asked.items() if of != lane}

    def events(self, timeout_s: float) -> list[tuple[int, bytes | None]]:
        """What actors have replied; None from one whose process has ended."""
        ready, _ = self._ray.wait(list(self._asked), num_returns=1, timeout=timeout_s) if self._asked else ([], [])
        found: list[tuple[int, bytes | None]] = []
        for asked in ready:
            lane = self._asked.pop(asked)
            try:
                found += [(lane, reply) for reply in self._ray.get(asked)]
                self._ask(lane)
            except self._ray.exceptions.RayError:
                found.append((lane, pack({"error": "its actor has ended"}, {})))
        return found

    def close(self, patience_s: float = 0.0) -> None:
        """Lets the lanes end, and leaves the cluster, which ends if it was started here."""
        for actor in self._running.values():
            actor.give.remote(None)
        if self._running and patience_s:
            self._ray.wait([actor.replies.remote() for actor in self._running.values()], timeout=min(patience_s, 1.0))
        for lane in list(self._running):
            self.stop(lane)
        self._ray.shutdown()
