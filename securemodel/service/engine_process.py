"""An engine process: one lane of one version of a model at one party. It computes; its front tells it what.

It makes the family from the user's script, meets the other parties' engines of the same lane and the dealer, loads the
weights, tries them, and answers jobs. When the session ends, it says so and meets the others again, under fresh masks.
It ends with its front, whose socket it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from protocols.channel import Channel
from protocols.devices import chosen
from protocols.errors import ConfigError, PeerError, SecureModelError, explain, summary
from protocols.identity import PartiesConfig
from securemodel.api import connect
from securemodel.engines.labels import SERVICE
from securemodel.family import Family
from securemodel.scripts import explained, load_file
from securemodel.service import config as configs
from securemodel.service import frames, rest, trial
from securemodel.service.config import ServiceConfig
from securemodel.service.frames import Ahead, Computed, Down, Ready, Run, Stage
from securemodel.service.naming import Lane, lane_number, weights_folder
from securemodel.sessions.remote import arriving
from securemodel.sessions.serving import Result, ServingSession

_IDLE_S = 0.25
_RETRY_S = (0.1, 3.0)
_NOTHING = bytes(32)


@dataclass
class Engine:
    """One lane, between its front (`sock`) and the engines of the other parties."""

    sock: socket.socket
    config: ServiceConfig
    me: str
    lane: Lane
    weights: Path | None

    def __post_init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Run, list[np.ndarray]]] = queue.SimpleQueue()
        self._sessions = 0
        threading.Thread(target=self._read, daemon=True, name="front").start()

    def run(self) -> None:
        """Serves until the front ends. Raises SecureModelError for what meeting again cannot cure."""
        lane, self._device = lane_number(self.config, self.lane), chosen(self.config.own.device)
        with arriving(self.me, self.config.parties, lane=lane):  # the others wait, however long this one compiles
            self._say(Stage("compile"))
            family = self._family()
            self._meet_again_and_again(family, self._model(family), self.config.parties.at_lane(lane))

    def _meet_again_and_again(self, family: Family, model: nn.Module | None, parties: PartiesConfig) -> None:
        pause = _RETRY_S[0]
        while True:
            began = time.monotonic()
            try:
                self._say(Stage("connect"))
                with connect(family, self.me, parties, device=self._device) as session:
                    self._serve(family, session, model)
            except PeerError as error:
                self._say(Down(summary(error), error.party))
            pause = _RETRY_S[0] if time.monotonic() - began > 30 else min(2 * pause, _RETRY_S[1])
            time.sleep(pause)

    def _family(self) -> Family:
        """What the script's make_family() returns, or its `family`. Raises ConfigError, ScriptFailed."""
        model = self.config.model(self.lane.model)
        script = Path(model.script)
        module = load_file(script)
        with explained(script):
            make = getattr(module, "make_family", None)
            family = make(**model.options) if make else getattr(module, "family", None)
        if not isinstance(family, Family):
            fix = "define make_family() with what securemodel.compile_service() returns"
            raise ConfigError(explain("the script defines no family of programs", where=str(script), fix=fix))
        if family.parties != self.config.ranks:
            what = (
                f"the programs' parties are {', '.join(family.parties)}, the service's {', '.join(self.config.ranks)}"
            )
            raise ConfigError(explain(what, where=str(script), fix="name the same parties, the leader first, in both"))
        self.config.check_sizes(self.lane.model, family.sizes)
        self._load_model = getattr(module, "load_model", None)
        return family

    def _model(self, family: Family) -> nn.Module | None:
        """The model with the weights of this party, where it has a file of them. Raises ConfigError, ScriptFailed."""
        if self.weights is None or self.me not in trial.owners(family):
            return None
        script = Path(self.config.model(self.lane.model).script)
        if self._load_model is None:
            what, fix = "the script defines no load_model", "define load_model(weights), which returns the model"
            raise ConfigError(explain(what, where=str(script), fix=fix))
        with explained(script):
            return cast(nn.Module, self._load_model(self.weights))

    # ---- the session
    def _serve(self, family: Family, session: ServingSession, model: nn.Module | None) -> None:
        self._say(Stage("load"))
        loaded_from = self._load(family, session, model)
        self._say(Stage("try"))
        trial.check(family, session, model)
        seconds = {size: self._measured(family, session, size) for size in family.sizes}
        self._sessions += 1
        card = json.dumps(family.card()).encode()
        self._say(Ready(self._sessions, session.channel.session.hex()[:16], card, seconds, loaded_from))
        said: dict[int, int] = {}
        while True:
            try:
                job, shares = self._jobs.get(timeout=_IDLE_S)
            except queue.Empty:
                session.look()
                if (ahead := session.runs_ahead) != said:
                    self._say(Ahead(ahead))
                    said = ahead
                continue
            if job.session == self._sessions:
                self._answer(session, job, shares)

    def _answer(self, session: ServingSession, job: Run, shares: list[np.ndarray]) -> None:
        given = [torch.from_numpy(share.astype(np.int64)) for share in shares]
        if not (ahead := session.runs_ahead)[job.size]:
            self._say(Ahead(ahead, waiting=True))

        def tell(result: Result) -> None:
            stats, outputs = session.stats, [share.numpy() for share in result.shares]
            done = Computed(
                job.run,
                result.run,
                stats.seconds,
                stats.rounds,
                dict(stats.sent_bytes),
                frames.shapes_of(outputs),
                session.runs_ahead,
            )
            self._say(done, outputs)

        session.run_shares(job.size, given, job.rows, job.manifest, tell)

    def _measured(self, family: Family, session: ServingSession, size: int) -> float:
        """Seconds of a run of this size, which is also the first one: clients do not wait for what only that takes."""
        began = time.perf_counter()
        trial.run_on_zeros(family, session, size)
        return time.perf_counter() - began

    def _load(self, family: Family, session: ServingSession, model: nn.Module | None) -> str:
        """Loads the weights from all parties' stored shares, where these belong together, or from their owners' files."""
        key = self._rest_key()
        stored, sharing = self._stored(family, key)
        ready = model is not None or self.me not in trial.owners(family)
        said = _exchanged(session.channel, sharing + bytes([ready]))
        said[self.me] = sharing + bytes([ready])
        if sharing != _NOTHING and len({text[:32] for text in said.values()}) == 1:
            session.load_shares({name: torch.from_numpy(share.astype(np.int64)) for name, share in stored.items()})
            return "stored shares"
        if missing := [name for name in family.parties if not said[name][32]]:
            raise ConfigError(
                explain(
                    f"nobody can load the weights of {self.lane.model!r}",
                    why=f"{' and '.join(missing)} named no file of them, and the parties have no stored shares that belong together",
                    fix=f"at {' and '.join(missing)}, name the file in [me] weights, or publish it there",
                )
            )
        session.load(family, model)
        shares = session.weight_shares()
        if key:
            sharing = hashlib.sha256(b"sharing" + session.channel.session).digest()
            kept = {name: share.numpy() for name, share in shares.items()}
            rest.save(self._file, key, kept, family.digest, self.lane.model, self.lane.version, sharing)
        return "the owner's file"

    def _stored(self, family: Family, key: bytes | None) -> tuple[dict[str, np.ndarray], bytes]:
        if not key or not self._file.exists():
            return {}, _NOTHING
        return rest.read(self._file, key, family.digest, self.lane.version)

    @property
    def _file(self) -> Path:
        return weights_folder(self.config, self.lane.model) / f"{self.lane.version}-{self.lane.number}.shares"

    def _rest_key(self) -> bytes | None:
        own = self.config.own
        return rest.read_key(own.rest_key, own.rest_key_command) if own.rest_key or own.rest_key_command else None

    # ---- the front
    def _say(self, message: frames.Message, arrays: Any = ()) -> None:
        try:
            frames.send(self.sock, message, arrays)
        except OSError:
            os._exit(0)

    def _read(self) -> None:
        """Jobs as they come. The end of the front is the end of this process, whatever it waits for."""
        try:
            while True:
                message, shares = frames.receive(self.sock)
                self._jobs.put((cast(Run, message), shares))
        except (EOFError, OSError, SecureModelError):
            os._exit(0)


def _exchanged(channel: Channel, data: bytes) -> dict[str, bytes]:
    """The same to everybody, and as much from everybody."""
    received = channel.exchange(
        SERVICE, {peer: [data] for peer in channel.peers}, dict.fromkeys(channel.peers, len(data))
    )
    return {peer: payload.numpy().tobytes() for peer, payload in received.items()}


def main(words: list[str]) -> int:
    """`python -m securemodel.service.engine_process SOCKET CONFIG ME MODEL VERSION NUMBER [WEIGHTS]`."""
    for signum in (signal.SIGTERM, signal.SIGINT):  # to all of a service: its front drains, and then ends this
        signal.signal(signum, signal.SIG_IGN)
    handle, path, me, model, version, number, *weights = words
    sock = socket.socket(fileno=int(handle))
    try:
        lane = Lane(model, int(version), int(number))
        Engine(sock, configs.load(path), me, lane, Path(weights[0]) if weights else None).run()
    except SecureModelError as error:
        frames.send(sock, Down(str(error)))
        return 1
    except Exception as error:
        frames.send(sock, Down(summary(error)))
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
