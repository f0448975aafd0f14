"""One party of a service: its front for clients, its desk among the parties, its engine processes, its commands.

All but the engines is one process and one event loop. What is on disk is in the party's data folder: `journal.db`,
`keys.json`, `versions.json` (which version of each model is current), `weights/` (shares at rest, and files of published
versions where this party owns the weights).
"""

from __future__ import annotations

import asyncio
import base64
import gc
import logging
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from protocols import identity
from protocols.errors import ConfigError, explain
from protocols.identity import Identity
from protocols.sealing import decryption_key, encryption_key
from securemodel import page
from securemodel.edge import service_file as edge_file
from securemodel.edge.lines import Line
from securemodel.service import admin, agreement, certificates, server
from securemodel.service.app import make_app
from securemodel.service.config import ServiceConfig
from securemodel.service.control import ControlLinks
from securemodel.service.desk import Refused
from securemodel.service.journal import Journal
from securemodel.service.keys import KeyBook
from securemodel.service.lanes import EngineLane
from securemodel.service.logs import Handler, Log
from securemodel.service.metrics import Metrics
from securemodel.service.naming import Lane
from securemodel.service.party import Model, make_desk
from securemodel.service.publishing import Publishing, Versions
from securemodel.service.relay import Relay
from securemodel.service.settings import Settings

_MEASURE_S, _STARTING_S = 1.0, 1.0
_LOCALHOST = "127.0.0.1"


class Party:
    """One party. `start`, `listen`, then `ended` once a signal or a command has drained it; `stop` in any case."""

    def __init__(self, config: ServiceConfig, me: str, own: Identity, log: Log) -> None:
        self.config, self.me, self.log = config, me, log
        self.metrics = Metrics()
        self.lanes: dict[tuple[str, int], list[EngineLane]] = {}
        self.versions = Versions(config)
        self.keys = KeyBook(config.data / "keys.json")
        self._drained = asyncio.Event()
        self._opened = AsyncExitStack()
        self._certificates = self._read_certificates()
        self._hpke = {name: _base64(encryption_key(entry)) for name, entry in config.parties.parties.items()}
        self._own = own
        limits = config.limits
        links = ControlLinks(me, config, own)
        self.desk = make_desk(
            me, config.ranks, [], Journal(config.data / "journal.db"), links,
            agreement.Limits(
                share_wait_s=limits.share_wait_s, restart_wait_s=limits.restart_wait_s, drain_s=limits.drain_s,
                queue_rows=limits.queue_rows,
            ),
        )  # fmt: skip
        self.desk.allowance = self._allowance
        self.desk.observers.append(self._count)
        self.publishing = Publishing(self)

    async def start(self) -> None:
        """Everything begins but clients are not listened to yet. Raises ConfigError."""
        own, opened = self.config.own, self._opened
        await opened.enter_async_context(admin.listening(self.config.data, self._do))
        await self.desk.start()
        opened.push_async_callback(self.desk.close)
        for model in self.config.models:
            self.begin(model.name, self.versions.current(model.name))
        opened.push_async_callback(self._stop_lanes)
        if own.metrics:
            opened.enter_context(self.metrics.served(int(own.metrics.rpartition(":")[2])))
        measuring = asyncio.create_task(self._measure())
        opened.callback(measuring.cancel)

    async def listen(self) -> None:
        """Listens to clients. Until it is known what each model takes, from the last start or from its engine, they are
        told that the party starts. Raises ConfigError."""
        own = self.config.own
        settings = Settings(
            self.config.service.name, self.config.ranks.index(self.me), self.document,
            keys=self.keys if self.config.service.keys else None, metrics=self.metrics, log=self.log,
            per_second=self.config.limits.requests_per_second, check_started=self._check_started,
        )  # fmt: skip
        host, _, port = (own.listen or "0.0.0.0:8443").rpartition(":")
        tls = (Path(own.tls_certificate), Path(own.tls_key)) if own.tls_certificate and own.tls_key else None
        relay = Relay(make_app(self.desk, settings), settings, decryption_key(self._own), self._followers())
        front = await server.start(relay, host.strip("[]"), int(port), tls=tls)
        self._opened.push_async_callback(front.stop)

        def renew() -> None:
            self._certificates = self._read_certificates()
            relay.followers = self._followers()
            if tls:
                front.renew(tls)

        fronts = self.config.fronts.values()
        files = [file for front in fronts for file in (front.certificate, front.ca) if file]
        watching = asyncio.create_task(certificates.watch([*files, *(tls or ())], renew, self.log))
        self._opened.callback(watching.cancel)

    def _check_started(self) -> None:
        if unknown := [model.name for model in self.config.models if model.name not in self.desk.models]:
            doing = {lane.state for key, lanes in self.lanes.items() if key[0] in unknown for lane in lanes}
            raise Refused(
                "peer_down", f"party {self.me!r} is starting",
                why=f"the engines of {', '.join(unknown)} are at: {', '.join(sorted(doing))}", fix="try again in some seconds",
                retry_after=_STARTING_S, parties=(self.me,),
            )  # fmt: skip

    def _read_certificates(self) -> Mapping[str, str | None]:
        return {name: certificates.fingerprint(front.certificate) for name, front in self.config.fronts.items()}

    def _followers(self) -> dict[int, Line]:
        """The leader's lines to the others, for what is sealed to them; by rank."""
        ranks, document = self.config.ranks, self.document()["parties"]
        return {rank: Line(_edge_party(document[rank])) for rank in range(1, len(ranks)) if self.me == ranks[0]}

    def begin(self, model: str, version: int) -> list[EngineLane]:
        """Starts the lanes of a version. It can be asked for once the first of them is ready."""
        weights = self.versions.weights(model, version)
        lanes = [
            EngineLane(self.config, self.me, Lane(model, version, number), weights, self._lane_changed)
            for number in range(self.config.model(model).lanes)
        ]
        self.lanes[model, version] = lanes
        if (card := self.versions.card(model, version)) is not None:
            self._offer(model, version, card)
        for lane in lanes:
            lane.start()
        return lanes

    async def end(self, model: str, version: int) -> None:
        """Stops the lanes of a version that nobody asks for any more."""
        self.desk.remove(model, version)
        await asyncio.gather(*(lane.stop() for lane in self.lanes.pop((model, version), [])))

    def _lane_changed(self, lane: EngineLane, state: str) -> None:
        facts = {"reason": lane.reason} if lane.reason else {}
        self.log.event("lane", model=lane.model, version=lane.version, lane=lane.number, state=state, **facts)
        key = (lane.model, lane.version)
        if lane.up and key in self.lanes and self.desk.models.get(lane.model, {}).get(lane.version) != lane.card:
            self.versions.keep_card(*key, lane.card)
            self._offer(*key, lane.card)
        self.desk.lanes_changed()
        self.publishing.lane_changed(lane)

    def _offer(self, model: str, version: int, card: Mapping[str, Any]) -> None:
        """A version can be asked for: its requests wait until a lane is ready."""
        limit = self.config.model(model).rows_per_day or self.config.limits.rows_per_day
        made = Model(
            model, version, card, tuple(card["sizes"]), bytes.fromhex(card["digest"]),
            alone=not card["row_independent"], rows_per_day=limit,
        )  # fmt: skip
        self.desk.add(made, self.lanes[model, version])

    async def drain(self) -> None:
        """Takes nothing new, finishes what waits, and then lets `ended` return."""
        self.log.event("draining")
        await self.desk.drain()
        self._drained.set()

    async def ended(self) -> None:
        """Returns when the party has been drained."""
        await self._drained.wait()

    async def stop(self) -> None:
        """Ends everything at once."""
        await self._opened.aclose()

    async def _stop_lanes(self) -> None:
        await asyncio.gather(*(lane.stop() for lanes in self.lanes.values() for lane in lanes))

    def _allowance(self, key_id: str, model: str) -> int | None:
        return self.keys.find(key_id).rows_per_day if self.config.service.keys else None

    # ---- what others read
    def document(self) -> Mapping[str, Any]:
        """service.json (docs/service.md)."""
        fronts, files = self.config.fronts, page.files()
        integrity = {path: digest for path, (_, _, digest) in files.items()}
        parties = [
            {
                "name": name,
                "url": fronts[name].url.rstrip("/"),
                "certificate": self._certificates[name],
                "ca": _text(fronts[name].ca),
                "hpke": self._hpke[name],
                "page": integrity,
            }
            for name in self.config.ranks
        ]
        models = []
        for name, versions in self.desk.models.items():
            *_, (version, card) = versions.items()
            rows = max(card["sizes"])
            models.append({"name": name, "version": version, "versions": list(versions), "rows": rows, "card": card})
        return {
            "securemodel_service": 1,
            "name": self.config.service.name,
            "parties": parties,
            "leader": self.config.service.leader,
            "dealer": identity.DEALER,
            "keys": self.config.service.keys,
            "models": models,
            "trust": trust(self.config.ranks),
        }

    def status(self) -> Mapping[str, Any]:
        """What `securemodel status` shows: states and counts, nothing of any request."""
        lanes = [
            {
                "model": lane.model, "version": lane.version, "lane": lane.number, "state": lane.state,
                "reason": lane.reason, "starts": lane.starts, "weights": lane.loaded_from, "pid": lane.pid,
                "milliseconds": {size: round(1000 * seconds, 1) for size, seconds in lane.seconds.items()},
            }
            for lanes in self.lanes.values() for lane in lanes
        ]  # fmt: skip
        current = {name: next(reversed(versions)) for name, versions in self.desk.models.items()}
        return {
            "service": self.config.service.name, "party": self.me, "leader": self.config.service.leader,
            "current": current, "lanes": lanes, "waiting": self.desk.waiting, "connected": self.desk.connected,
        }  # fmt: skip

    def _count(self, what: str, facts: Mapping[str, Any]) -> None:
        if what == "batch":
            self.metrics.batch_rows.observe(facts["rows"])
            self.metrics.batch_seconds.labels("run").observe(facts["seconds"])
        elif "queue" in facts["stages"]:
            self.metrics.queue_seconds.observe(facts["stages"]["queue"])

    async def _measure(self) -> None:
        rounds, sent = 0, dict[str, int]()
        while True:
            await asyncio.sleep(_MEASURE_S)
            lanes = [lane for lanes in self.lanes.values() for lane in lanes]
            self.metrics.queue_rows.set(self.desk.waiting["rows"])
            ahead = Counter[tuple[str, int]]()
            for lane in lanes:
                ahead.update({(lane.model, size): runs for size, runs in lane.ahead.items()})
            for (model, size), runs in ahead.items():
                self.metrics.runs_ahead.labels(model, str(size)).set(runs)
            for peer, up in self.desk.connected.items():
                self.metrics.peer_up.labels(peer).set(up)
            now = sum(lane.rounds for lane in lanes)
            self.metrics.rounds.inc(max(0, now - rounds))
            rounds = now
            for peer in self.config.ranks:
                total = sum(lane.sent_bytes.get(peer, 0) for lane in lanes)
                if total > sent.get(peer, 0):
                    self.metrics.sent_bytes.labels(peer).inc(total - sent.get(peer, 0))
                sent[peer] = total

    # ---- commands
    async def _do(self, name: str, given: Mapping[str, Any], say: admin.Say) -> Mapping[str, Any]:
        if name == "status":
            return self.status()
        if name == "drain":
            await self.drain()
            return {}
        if name == "publish":
            return await self.publishing.publish(str(given.get("model")), Path(str(given.get("weights"))), say)
        raise ConfigError(explain(f"a front knows no command {name!r}", fix="use the same version of securemodel"))


def trust(ranks: tuple[str, ...]) -> list[str]:
    """Who would have to work together to see what, and who serves the page: a sentence each."""
    everybody = " and ".join(ranks)
    return [
        f"Your input and your result are seen by nobody unless {everybody} work together, or one of them and the dealer.",
        "The weights of a model are seen by nobody but their owner, under the same condition.",
        "Every party sees when you ask, how many rows, which model, and your address.",
        "Whoever serves this page to you serves its code: compare it at another party, or use the offline page.",
    ]


async def serve(config: ServiceConfig, me: str, say: Callable[[str], None]) -> None:
    """Serves as a party until SIGTERM or SIGINT, or the command `drain`. Raises ConfigError, FileError."""
    if config.parties.identity is None:
        fix = f'make one with `securemodel keys new {me}`, and name it in the parties file: [me] identity = "keys/{me}"'
        raise ConfigError(explain(f"nothing says where the identity of {me!r} is", where=str(config.path), fix=fix))
    own = identity.load(config.parties.identity)
    if own.name != me:
        fix = "use this party's own parties file and identity"
        raise ConfigError(explain(f"the identity is of {own.name!r}, not {me!r}", where=str(config.path), fix=fix))
    config.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    admin.check_unserved(config.data)  # before the journal, which the other process has open
    log = Log(sys.stderr.buffer)
    logging.getLogger("securemodel.service").addHandler(Handler(log))
    party = Party(config, me, own, log)
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Future[None]] = set()

    def drain() -> None:
        tasks.add(asyncio.ensure_future(party.drain()))

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, drain)
    try:
        await party.start()
        await party.listen()
        gc.collect()
        gc.freeze()  # what is there now stays: whenever it was looked through again, all clients waited
        _notify("READY=1")
        say(f"{me} listens for {config.fronts[me].url}")
        await party.ended()
    finally:
        for task in tasks:
            task.cancel()
        await party.stop()


def _notify(state: str) -> None:
    """Tells systemd, where it started this process (sd_notify(3))."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), address.replace("@", "\0", 1) if address.startswith("@") else address)


def _base64(key: X25519PublicKey) -> str:
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _edge_party(described: Mapping[str, Any]) -> edge_file.Party:
    return edge_file.Party(*(described[name] for name in ("name", "url", "certificate", "ca", "hpke")))


def _text(path: str | None) -> str | None:
    return None if path is None else Path(path).read_text()
