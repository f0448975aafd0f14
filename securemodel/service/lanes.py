"""A front's engine processes: each is started, watched, and started again when it ends, less often if it keeps ending."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from protocols.errors import DecodeError
from securemodel.service import frames
from securemodel.service.config import ServiceConfig
from securemodel.service.desk import Job, LaneDown
from securemodel.service.frames import Ahead, Computed, Down, Ready, Run, Stage
from securemodel.service.naming import Lane

_PAUSES_S = (0.2, 5.0)
_STEADY_S = 30.0
_GRACE_S = 5.0
_WEIGHT = 0.2
"""Of the newest measurement, in the mean of a size's seconds."""

Told = Callable[["EngineLane", str], None]
"""Called after each change of a lane, with words for the log."""


class EngineLane:
    """One engine process and its session with the others; implements `desk.Lane`. `told` hears of every change."""

    def __init__(self, config: ServiceConfig, me: str, lane: Lane, weights: Path | None, told: Told) -> None:
        self.lane, self.weights = lane, weights
        self.number, self.model, self.version = lane.number, lane.model, lane.version
        self.state, self.reason, self.loaded_from, self.session = "starting", "", "", ""
        self.starts = self.rounds = 0
        self.sent_bytes: dict[str, int] = {}
        self.card: Mapping[str, Any] = {}
        self.ahead: Mapping[int, int] = {}
        """Runs of each size that are prepared."""
        self.dry_since: float | None = None
        self._config, self._me, self._told = config, me, told
        self._seconds: dict[int, float] = {}
        self._session, self._stopping = 0, False
        self._jobs: dict[int, tuple[Job, asyncio.Future[tuple[str, list[np.ndarray]]]]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None

    @property
    def up(self) -> bool:
        """Whether it has its weights and can run."""
        return self.state == "ready"

    @property
    def seconds(self) -> Mapping[int, float]:
        """How long a run of each size takes, as measured."""
        return self._seconds

    @property
    def pid(self) -> int | None:
        """The engine's process, while there is one."""
        return self._process.pid if self._process and self._process.returncode is None else None

    def start(self) -> None:
        """Begins to start and watch the engine."""
        self._watching = asyncio.create_task(self._watch(), name=f"lane {self.model} {self.version} {self.number}")

    async def stop(self) -> None:
        """Ends the engine, in good order where it is idle."""
        self._stopping = True
        if self._watching:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching
        self._changed("stopped")

    async def run(self, job: Job) -> tuple[str, list[np.ndarray]]:
        """(session and epoch of the run, this party's shares of each output). Raises LaneDown."""
        if not self.up or self._writer is None:
            raise LaneDown(self.reason or f"its engine is {self.state}")
        future: asyncio.Future[tuple[str, list[np.ndarray]]] = asyncio.get_running_loop().create_future()
        self._jobs[job.run] = (job, future)
        message = Run(self._session, job.run, job.size, job.rows, job.manifest, frames.shapes_of(job.shares))
        self._writer.writelines(frames.encode(message, job.shares))
        return await future

    # ---- the process
    async def _watch(self) -> None:
        pause = _PAUSES_S[0]
        while not self._stopping:  # wait_for before Python 3.12 may have lost the cancellation
            began = time.monotonic()
            await self._live()
            pause = _PAUSES_S[0] if time.monotonic() - began > _STEADY_S else min(2 * pause, _PAUSES_S[1])
            await asyncio.sleep(pause)

    async def _live(self) -> None:
        """One life of the engine, from its start to its end."""
        self.starts += 1
        here, there = socket.socketpair()
        try:
            with there:
                self._process = await asyncio.create_subprocess_exec(
                    *self._words(there.fileno()), pass_fds=[there.fileno()], stdin=asyncio.subprocess.DEVNULL,
                    env=_environment(self._config),
                )  # fmt: skip
        except OSError as error:
            here.close()
            self._fail("ended", f"its engine cannot be started: {error.strerror}")
            return
        reader, self._writer = await asyncio.open_unix_connection(sock=here)
        try:
            while True:
                self._hear(*await frames.receive_async(reader))
        except (EOFError, OSError, DecodeError):
            pass
        finally:
            self._writer.close()
            self._writer = None
            await _end(self._process)
            code = self._process.returncode
            ended = "its engine was ended by this party" if self._stopping else f"its engine ended with code {code}"
            self._fail("ended", self.reason if self.state == "down" else ended)

    def _words(self, handle: int) -> list[str]:
        lane = self.lane
        words = [handle, self._config.path, self._me, lane.model, lane.version, lane.number]
        words += [self.weights] if self.weights else []
        return [sys.executable, "-m", "securemodel.service.engine_process", *map(str, words)]

    def _hear(self, message: frames.Message, arrays: Sequence[np.ndarray]) -> None:
        if isinstance(message, Computed):
            self._answer(message, arrays)
        elif isinstance(message, Ready):
            self.card = json.loads(message.card)
            self._seconds, self._session, self.session = dict(message.seconds), message.session, message.name
            self.loaded_from, self.reason = message.loaded_from, ""
            self._changed("ready")
        elif isinstance(message, Ahead):
            self.ahead, self.dry_since = message.runs, time.monotonic() if message.waiting else None
        elif isinstance(message, Down):
            self._fail("down", message.reason, message.party)
        elif isinstance(message, Stage):
            self._changed(message.doing)

    def _answer(self, message: Computed, arrays: Sequence[np.ndarray]) -> None:
        job, future = self._jobs.pop(message.job, (None, None))
        self.ahead, self.dry_since = message.ahead, None
        self.rounds += message.rounds
        for peer, count in message.sent_bytes.items():
            self.sent_bytes[peer] = self.sent_bytes.get(peer, 0) + count
        if job is not None and future is not None and not future.done():
            mean = self._seconds.get(job.size, message.seconds)
            self._seconds[job.size] = mean + _WEIGHT * (message.seconds - mean)
            future.set_result((message.run, list(arrays)))

    def _fail(self, state: str, reason: str, party: str = "") -> None:
        """The session is over: every job that was begun fails."""
        self.reason, self.ahead, self.dry_since = reason, dict.fromkeys(self.ahead, 0), None
        failed, self._jobs = self._jobs, {}
        for _, future in failed.values():
            if not future.done():
                future.set_exception(LaneDown(reason, party))
        self._changed(state)

    def _changed(self, state: str) -> None:
        self.state = state
        self._told(self, state)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Its socket is closed, so it ends by itself; if it does not, it is ended."""
    with suppress(ProcessLookupError):
        try:
            await asyncio.wait_for(process.wait(), _GRACE_S)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()


def _environment(config: ServiceConfig) -> dict[str, str]:
    """The cores of this machine are for all lanes alike, unless somebody says otherwise."""
    threads = max(1, (os.cpu_count() or 1) // sum(model.lanes for model in config.models))
    return {"OMP_NUM_THREADS": str(threads), **os.environ, "PYTHONUNBUFFERED": "1"}
