"""Asks a service: every party gets a share of each input, and the client alone adds up the shares of the answer."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np

from securemodel.edge import sealing, service_file, wire
from securemodel.edge.errors import Disagreement, EdgeError, PartyDown, Refused, ServiceError, WireError
from securemodel.edge.lines import Line
from securemodel.edge.sealing import RELAY_PATH, Envelope
from securemodel.edge.service_file import Model, Party, Service
from securemodel.edge.sharing import add, split

_AGAIN = {"rate", "queue_full", "peer_down", "draining", "no_preprocessing", "share_missing", "result_lost"}
"""Refusals that may be over in a moment. They are asked again with a new id and fresh shares."""
_CONSEQUENCES = {"share_missing", "deadline"}
"""Refusals of one party that often follow from what another one says."""
_GRACE_S = 2.0
"""How much longer than the deadline an answer, or the refusal at the deadline, may be under way."""
_SERVICE_S = 10.0
"""How long a party may take to give service.json."""
_MAX_THREADS = 256
_MODELS = "/v2/models/"
_BYTES = "application/octet-stream"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Result:
    """The answer to some rows, from `first` on: outputs by name, and where the parties computed them."""

    first: int
    outputs: Mapping[str, np.ndarray] = field(repr=False)
    id: str
    version: str
    run: str
    row: int
    batch: int
    seconds: float

    @property
    def rows(self) -> int:
        return len(next(iter(self.outputs.values())))


class Client:
    """Asks the models of one service. Several threads may use it at a time.

    `service` is service.json: its path, its https address, or what it holds. Whoever gives it decides who gets the
    shares, so take it from somebody you trust. `key` is an API key, where the service asks for one. With `certificate`,
    the SHA-256 of the certificate in hex, an address is recognized by that. By `transport="relay"` only the leader is
    asked: the others' shares are sealed to them, and it passes them on. `parallel` is how many requests of one call
    are under way together.
    """

    def __init__(
        self,
        service: str | Path | Mapping[str, Any],
        *,
        key: str = "",
        certificate: str | None = None,
        parallel: int = 4,
        transport: Literal["direct", "relay"] = "direct",
        insecure_plain: bool = False,
    ) -> None:
        if not (key.isascii() and key.isprintable()) or " " in key:
            raise ServiceError("the key holds characters that no key has")
        self.service = _opened(service, certificate, insecure_plain)
        if self.service.keys and not key:
            what = f"the service {self.service.name!r} asks for a key"
            raise ServiceError(what, fix="give the one that the service made for you: key=")
        if transport == "relay":
            _check_relay(self.service)
        self._transport = transport
        self._key, self._parallel, self._clock_ms = key, max(1, parallel), 0
        self._lines = [Line(party, insecure_plain=insecure_plain) for party in self.service.parties]
        self._posts = ThreadPoolExecutor(_MAX_THREADS, "edge-post")
        self._requests = ThreadPoolExecutor(_MAX_THREADS, "edge-request")

    def infer(
        self,
        model: str,
        x: Any,
        *,
        version: int | None = None,
        timeout: float = 10.0,
        labels: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Any:
        """What a model says to rows of its input: (rows, …) array, or one for each output by name.

        x is an array whose first axis counts the rows, or a dict of one for each input. Scores and probabilities are
        float64, classes int64, or with `labels` their labels. Many rows are asked in several requests, each of which has
        `timeout` seconds; `progress` is told the rows done and all rows. Raises EdgeError, with nothing lost but time.
        """
        found = self.service.model(model)
        encoded = found.encode(_named(found, x))
        results, done = [], 0
        for result in self._parts(found, encoded, x, version, timeout):
            results.append(result)
            done += result.rows
            if progress is not None:
                progress(done, len(encoded[0]))
        found = self.service.model(model)
        outputs = {
            port.name: np.concatenate([result.outputs[port.name] for result in results]) for port in found.outputs
        }
        if labels:
            outputs = {port.name: _label(found, port.kind, outputs[port.name]) for port in found.outputs}
        return outputs if len(outputs) > 1 else outputs[found.outputs[0].name]

    def results(self, model: str, x: Any, *, version: int | None = None, timeout: float = 10.0) -> Iterator[Result]:
        """The same in parts, in the order of the rows, as they come."""
        found = self.service.model(model)
        return self._parts(found, found.encode(_named(found, x)), x, version, timeout)

    def check_ready(self, model: str | None = None, *, version: int | None = None, timeout: float = 10.0) -> None:
        """Asks every party whether it, or a model of it, can answer now; raises EdgeError with the name of one that cannot."""
        path = "/v2/health/ready" if model is None else f"{_path(self.service.model(model).name, version)}/ready"
        end = time.monotonic() + timeout
        _gathered([self._posts.submit(self._get_ready, line, path, end) for line in self._lines])

    def _get_ready(self, line: Line, path: str, end: float) -> None:
        status, _, body = line.ask("GET", path, b"", self._headers(), end)
        if status != 200:
            raise wire.read_problem(line.party.name, status, body)

    def _headers(self, message: wire.Message | None = None) -> dict[str, str]:
        more = {} if message is None else {wire.LENGTH_HEADER: str(len(message.header)), "Content-Type": _BYTES}
        return more | ({"Authorization": f"Bearer {self._key}"} if self._key else {})

    def _parts(
        self, found: Model, encoded: Sequence[np.ndarray], x: Any, version: int | None, timeout: float
    ) -> Iterator[Result]:
        """Results in the order of the rows. Where the service has another program by now, it is asked for with that."""
        given = False
        try:
            for result in self._asked(found, encoded, version, timeout):
                given = True
                yield result
        except Refused as error:
            new = self._renewed(found) if error.code == "wrong_program" and not given else None
            if new is None:
                raise
        else:
            return
        yield from self._asked(new, new.encode(_named(new, x)), version, timeout)

    def _renewed(self, old: Model) -> Model | None:
        """What all parties alike say of a model whose program is another one by now; it is asked for from now on.

        Each is recognized as before: this trusts nobody but the parties that the old program came from.
        """
        end = time.monotonic() + _SERVICE_S
        said = _gathered([self._posts.submit(self._get_models, line, end) for line in self._lines])
        found = [models[old.name] for models in said if old.name in models]
        same = len(found) == len(self._lines) and all((m.card, m.rows) == (found[0].card, found[0].rows) for m in found)
        if not same or found[0].digest == old.digest:
            return None
        new = found[0]
        self.service = replace(self.service, models={**self.service.models, old.name: new})
        return new

    def _get_models(self, line: Line, end: float) -> Mapping[str, Model]:
        status, _, body = line.ask("GET", "/service.json", b"", {}, end)
        if status != 200:
            raise wire.read_problem(line.party.name, status, body)
        return service_file.parse(body, line.party.url).models

    def _asked(
        self, found: Model, encoded: Sequence[np.ndarray], version: int | None, timeout: float
    ) -> Iterator[Result]:
        starts = range(0, len(encoded[0]), found.rows)
        parts = ([e[start : start + found.rows] for e in encoded] for start in starts)
        waiting: deque[Future[Result]] = deque()
        try:
            for start, part in zip(starts, parts, strict=True):
                if len(starts) == 1:
                    yield self._ask(found, version, part, start, timeout)
                    return
                waiting.append(self._requests.submit(self._ask, found, version, part, start, timeout))
                if len(waiting) == self._parallel:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _ask(self, model: Model, version: int | None, part: Sequence[np.ndarray], first: int, timeout: float) -> Result:
        """One request's answer. What is refused for a moment is asked again, under a new id."""
        start, pause = time.monotonic(), 0.1
        end = start + timeout
        while True:
            try:
                id, answer, outputs = self._once(model, version, part, end)
            except Refused as error:
                again = self._again(error, pause)
                if again is None or time.monotonic() + again >= end:
                    raise
                time.sleep(again)
                pause *= 2
            else:
                seconds = time.monotonic() - start
                return Result(first, outputs, id, answer.version, answer.run, answer.row, answer.batch, seconds)

    def _again(self, error: Refused, pause: float) -> float | None:
        """After how many seconds to ask again, or None."""
        if error.code == "clock_skew" and error.server_time is not None:
            before, self._clock_ms = self._clock_ms, error.server_time - _now_ms()
            return None if abs(self._clock_ms - before) < 1000 else 0.0  # it was right, or as right as it gets
        return max(pause, error.retry_after or 0.0) if error.code in _AGAIN else None

    def _once(
        self, model: Model, version: int | None, part: Sequence[np.ndarray], end: float
    ) -> tuple[str, wire.Answer, dict[str, np.ndarray]]:
        id, parties = os.urandom(16), len(self._lines)
        tensors = [
            (port.name, e.shape, split(e, parties, id, index))
            for index, (port, e) in enumerate(zip(model.inputs, part, strict=True))
        ]
        left_ms = min(max(int(1000 * (end - time.monotonic())), 1), wire.MAX_DEADLINE_MS)
        messages = wire.requests(id.hex(), model.digest, tensors, _now_ms() + self._clock_ms, left_ms)
        ask = self._direct if self._transport == "direct" else self._relayed
        answers = ask(_path(model.name, version), id.hex(), messages, end + _GRACE_S)
        names = [party.name for party in self.service.parties]
        for name, answer in zip(names, answers, strict=True):
            _check(name, model, version, id.hex(), len(part[0]), answer)
        _check_same(names, answers)
        outputs = {
            port.name: port.decode(add([answer.shares[port.name] for answer in answers])) for port in model.outputs
        }
        return id.hex(), answers[0], outputs

    def _direct(self, path: str, id: str, messages: Sequence[wire.Message], end: float) -> list[wire.Answer]:
        """All parties' answers, each asked by itself."""
        posts = [
            self._posts.submit(self._post, line, f"{path}/infer", message, end)
            for line, message in zip(self._lines, messages, strict=True)
        ]
        return _gathered(posts)

    def _post(self, line: Line, path: str, message: wire.Message, end: float) -> wire.Answer:
        status, told, body = line.ask("POST", path, message.body, self._headers(message), end)
        return _read(line.party.name, status, _length(told), body)

    def _relayed(self, path: str, id: str, messages: Sequence[wire.Message], end: float) -> list[wire.Answer]:
        """All parties' answers, by way of the leader, who cannot open those of the others."""
        own = sealing.one_time_key()
        envelope = Envelope(id, path.removeprefix(_MODELS), _key_id(self._key), sealing.public_of(own), {})
        parts = {
            rank: sealing.seal(
                party.hpke or "", envelope.info("request", rank), sealing.request_part(self._key, messages[rank])
            )
            for rank, party in enumerate(self.service.parties)
        }
        message, leader = replace(envelope, parts=parts).message(), self._lines[0]
        headers = {name: value for name, value in self._headers(message).items() if name != "Authorization"}
        status, told, body = leader.ask("POST", RELAY_PATH, message.body, headers, end)
        if status != 200:
            raise wire.read_problem(leader.party.name, status, body)
        try:
            length = _length(told)
            answers = sealing.read_parts(wire.load(body[:length], "the answer", 1 << 20), body[length:])
        except WireError as error:
            raise _unreadable(leader.party.name, error.what) from error
        opened: list[Future[wire.Answer]] = []
        for rank, party in enumerate(self.service.parties):
            future: Future[wire.Answer] = Future()
            try:
                future.set_result(_opened_part(party.name, own, envelope, rank, answers.get(rank)))
            except EdgeError as error:
                future.set_exception(error)
            opened.append(future)
        return _gathered(opened)

    def close(self) -> None:
        """Ends all connections; requests under way fail."""
        for line in self._lines:
            line.close()
        self._requests.shutdown(wait=False, cancel_futures=True)
        self._posts.shutdown(wait=False, cancel_futures=True)

    def __enter__(self):
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _path(model: str, version: int | None) -> str:
    return f"{_MODELS}{quote(model, safe='')}" + ("" if version is None else f"/versions/{version}")


def _check_relay(service: Service) -> None:
    """Raises ServiceError where shares cannot be sealed to every party."""
    if not sealing.HAS_HPKE:
        raise ServiceError("this Python cannot seal shares", fix='pip install "cryptography>=50"')
    without = [party.name for party in service.parties if party.hpke is None]
    if without:
        what = f"the service has no keys to seal shares to for {', '.join(without)}"
        raise ServiceError(what, fix='ask directly: transport="direct"')


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _opened(service: str | Path | Mapping[str, Any], certificate: str | None, insecure_plain: bool) -> Service:
    if isinstance(service, Mapping):
        return service_file.read(service)
    if isinstance(service, str) and service.startswith(("https://", "http://")):
        return _fetched(service, certificate, insecure_plain)
    return service_file.open_file(service)


def _fetched(url: str, certificate: str | None, insecure_plain: bool) -> Service:
    parts = urlsplit(url)
    line = Line(
        Party("the service", f"{parts.scheme}://{parts.netloc}", certificate, None, None), insecure_plain=insecure_plain
    )
    try:
        status, _, body = line.ask(
            "GET", parts.path.rstrip("/") or "/service.json", b"", {}, time.monotonic() + _SERVICE_S
        )
    finally:
        line.close()
    if status != 200:
        raise ServiceError("there is no service.json", where=url, why=f"HTTP status {status}")
    return service_file.parse(body, url)


def _named(model: Model, x: Any) -> Mapping[str, Any]:
    return x if isinstance(x, Mapping) else {model.inputs[0].name: x}


def _gathered(posts: Sequence[Future[_T]]) -> list[_T]:
    """All parties' answers, or the error that explains best why there are none."""
    errors = [error for error in (post.exception() for post in posts) if error is not None]
    if errors:
        raise min(errors, key=_distance)
    return [post.result() for post in posts]


def _distance(error: BaseException) -> int:
    """How far from the cause an error is: that of one party often makes another one of the next."""
    if isinstance(error, PartyDown):
        return 1
    return 2 if isinstance(error, Refused) and error.code in _CONSEQUENCES else 0


def _length(told: Mapping[str, str]) -> int:
    """How long the JSON of an answer is, out of its HTTP headers; 0 where they do not say."""
    text = told.get(wire.LENGTH_HEADER.lower(), "")
    return int(text) if text.isdecimal() and len(text) < 10 else 0


def _read(party: str, status: int, length: int, body: bytes) -> wire.Answer:
    """What a party answered, or the refusal of it."""
    if status != 200:
        raise wire.read_problem(party, status, body)
    try:
        return wire.read_answer(body[:length], body[length:])
    except WireError as error:
        raise _unreadable(party, error.what) from error


def _opened_part(
    party: str, own: Any, envelope: Envelope, rank: int, part: bytes | Mapping[str, Any] | None
) -> wire.Answer:
    """A party's answer out of what came back through the relay."""
    if part is None:
        raise _unreadable(party, "the leader sent none back")
    if not isinstance(part, bytes):
        raise wire.read_problem(party, 503, wire.dump(part))
    try:
        answer = sealing.read_answer_part(sealing.unseal(own, envelope.info("answer", rank), part))
    except WireError as error:
        raise _unreadable(party, error.what) from error
    return _read(party, *answer)


def _key_id(key: str) -> str:
    """The first digits of a key's SHA-256, which say which key it is and nothing of the key."""
    return sha256(key.encode()).hexdigest()[:16] if key else ""


def _unreadable(party: str, why: str) -> Disagreement:
    return Disagreement(
        f"the answer of {party} is not one to this request", why=why, fix="nothing was added up; ask again"
    )


def _check(party: str, model: Model, version: int | None, id: str, rows: int, answer: wire.Answer) -> None:
    """Raises Disagreement where a party's answer is not to this request, or not of the model's outputs."""
    if answer.id != id or answer.model != model.name or version not in (None, _number(answer.version)):
        raise _unreadable(party, "it names another request, model or version")
    expected = {port.name: ((rows, *port.shape), port.frac_bits) for port in model.outputs}
    if {name: (share.shape, answer.frac_bits[name]) for name, share in answer.shares.items()} != expected:
        raise _unreadable(party, "its outputs are not those that the service's file says")


def _number(text: str) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 10 else None


def _check_same(names: Sequence[str], answers: Sequence[wire.Answer]) -> None:
    """Raises Disagreement unless all answers are of one version, run and row: else their sum would mean nothing."""
    for name, answer in zip(names[1:], answers[1:], strict=True):
        for what in ("version", "run", "row"):
            if getattr(answer, what) != getattr(answers[0], what):
                raise Disagreement(
                    f"the answers of {names[0]} and {name} do not belong together",
                    why=f"they are of another {what}: {getattr(answers[0], what)} and {getattr(answer, what)}",
                    fix="nothing was added up; ask again, and tell the service if it goes on",
                )


def _label(model: Model, kind: str, values: np.ndarray) -> np.ndarray:
    """Labels of classes; other outputs stay as they are."""
    if kind != "class":
        return values
    if model.labels is None:
        raise ServiceError(f"the service gives no labels for the classes of {model.name!r}")
    if values.size and not 0 <= values.min() <= values.max() < len(model.labels):
        raise EdgeError("a class has no label", why=f"there are {len(model.labels)}", fix="ask without labels=True")
    return np.array(model.labels)[values]
