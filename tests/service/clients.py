"""Clients of a service who ask every party until it says a last word, and keep a log of all that was said; for tests."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from securemodel.edge import service_file, sharing, wire
from securemodel.edge.errors import PartyDown
from securemodel.edge.lines import Line
from tests.service.engines import SCALE

PATIENCE_S = 240.0


@dataclass(frozen=True)
class Problem:
    """A refusal by name: its JSON members."""

    code: str
    members: Mapping[str, Any] = field(repr=False)


Word = wire.Answer | Problem


def share_of(answer: wire.Answer) -> np.ndarray:
    """A party's share of the only output."""
    [share] = answer.shares.values()
    return share


@dataclass
class Asked:
    """A request with its bodies, and each party's last word on it. `rows`: the client's own."""

    id: str
    rows: np.ndarray = field(repr=False)
    messages: Mapping[str, wire.Message] = field(repr=False)
    said: dict[str, Word] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def answers(self) -> list[wire.Answer]:
        return [word for word in self.said.values() if isinstance(word, wire.Answer)]

    @property
    def codes(self) -> set[str]:
        return {word.code if isinstance(word, Problem) else "ok" for word in self.said.values()}

    def scores(self) -> np.ndarray:
        """The result: shares of all parties, added."""
        assert self.codes == {"ok"}, self.said
        assert len({(word.run, word.row, word.version, word.batch) for word in self.answers}) == 1, self.said
        return sharing.decode(sharing.add([share_of(word) for word in self.answers]), 16)


class Clients:
    """Clients of one service, with one key."""

    def __init__(self, document: Mapping[str, Any], key: str) -> None:
        self.service = service_file.read(document)
        self.model, self.key = self.service.model("small"), key
        self.lines = {party.name: Line(party) for party in self.service.parties}
        self.log: list[Asked] = []
        self._posts = ThreadPoolExecutor(96)

    def request(self, rows: np.ndarray, *, id: bytes = b"", now_ms: int = 0, deadline_ms: int = 20_000) -> Asked:
        """A request of its own, shared for all parties."""
        id = id or os.urandom(16)
        shares = sharing.split(np.rint(rows * SCALE).astype(np.int64), len(self.lines), id, 0)
        tensor = (self.model.inputs[0].name, rows.shape, shares)
        made = wire.requests(id.hex(), self.model.digest, [tensor], now_ms or int(time.time() * 1000), deadline_ms)
        return Asked(id.hex(), rows, dict(zip(self.lines, made, strict=True)))

    def send(self, asked: Asked, *parties: str, key: str = "") -> Asked:
        """Sends the bodies to these parties, or to all, and again to those that cannot be reached."""
        start = time.monotonic()
        posts = {
            name: self._posts.submit(self._until_told, name, asked.messages[name], key or self.key)
            for name in parties or self.lines
        }
        asked.said |= {name: post.result() for name, post in posts.items()}
        asked.seconds = time.monotonic() - start
        self.log.append(asked)
        return asked

    def ask(self, rows: np.ndarray, **changes: Any) -> Asked:
        return self.send(self.request(rows, **changes))

    def again(self, asked: Asked, **changes: Any) -> Asked:
        """The same bytes once more."""
        return self.send(Asked(asked.id, asked.rows, asked.messages), **changes)

    def _until_told(self, name: str, message: wire.Message, key: str) -> Word:
        headers = {wire.LENGTH_HEADER: str(len(message.header)), "Authorization": f"Bearer {key}"}
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                path = f"/v2/models/{self.model.name}/infer"
                status, told, body = self.lines[name].ask("POST", path, message.body, headers, until)
            except PartyDown:
                assert time.monotonic() < until, f"{name} said nothing"
                time.sleep(0.2)
                continue
            if status == 200:
                length = int(told[wire.LENGTH_HEADER.lower()])
                return wire.read_answer(body[:length], body[length:])
            members = json.loads(body)
            return Problem(members["code"], members)

    @contextmanager
    def loading(self, count: int, pause_s: Callable[[], float] = lambda: 0.0) -> Iterator[None]:
        """Meanwhile so many clients ask, one request after the other."""
        stop, errors = threading.Event(), list[BaseException]()

        def one(number: int) -> None:
            random = np.random.default_rng(number)
            try:
                while not stop.is_set():
                    told = self.ask(random.uniform(-1.9, 1.9, (random.integers(1, 4), 4)))
                    stop.wait(pause_s() if told.codes == {"ok"} else 0.3)
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert not errors, errors

    def close(self) -> None:
        self._posts.shutdown()
        for line in self.lines.values():
            line.close()

    def secrets(self) -> set[bytes]:
        """All shares that were sent or answered, the inputs and the key, in every way in which they could be written."""
        words: set[bytes] = set()
        found = {self.key.encode()}
        for asked in self.log:
            for message in asked.messages.values():
                words |= {message.data[at : at + 8] for at in range(0, len(message.data), 8)}
            words |= {word.tobytes() for answer in asked.answers for word in share_of(answer).reshape(-1)}
            encoded = np.rint(asked.rows * SCALE).astype(np.int64)
            found |= {row.tobytes() for row in encoded}
            found |= {repr(value).encode() for value in asked.rows.reshape(-1).tolist()}
        for word in words:
            signed, unsigned = (str(int.from_bytes(word, "little", signed=one)).encode() for one in (True, False))
            found |= {word, word.hex().encode(), base64.b64encode(word)[:10], signed, unsigned}
        return {secret for secret in found if len(secret) >= 8}


def holds_any(data: bytes, secrets: set[bytes]) -> bytes | None:
    """One of the secrets that stands in the data."""
    by_length: dict[int, set[bytes]] = defaultdict(set)
    for secret in secrets:
        by_length[len(secret)].add(secret)
    for length, those in by_length.items():
        for at in range(len(data) - length + 1):
            if data[at : at + length] in those:
                return data[at : at + length]
    return None
