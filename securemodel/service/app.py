"""The HTTP front of a party: strangers' requests are checked here, and what is right goes to the desk."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from securemodel.edge import wire
from securemodel.page import files as page_files
from securemodel.page import headers as page_headers
from securemodel.service import cors, headers, openapi, problems
from securemodel.service.bodies import Body, ClientGone, Room
from securemodel.service.desk import Answer, Desk, Refused, Submission
from securemodel.service.logs import Record, place_of
from securemodel.service.ratelimits import RateLimits
from securemodel.service.settings import OPEN, Settings
from securemodel.version import __version__

_ASYNC_SECONDS = 0.05
"""How long `respond-async` waits for a request that is answered or refused at once."""


def make_app(desk: Desk, settings: Settings) -> ASGIApp:
    """The ASGI application of a party."""
    return Front(desk, settings)


class Front:
    """Every request passes here: its head is checked, CORS is added, and whatever goes wrong becomes a problem."""

    def __init__(self, desk: Desk, settings: Settings) -> None:
        self._desk, self._settings = desk, settings
        self._limits = RateLimits(settings.per_second, settings.burst, settings.running_per_key, time.monotonic)
        self._running = 0
        self._room = Room(settings.reading)
        self._models: dict[tuple[str, int], headers.Model] = {}
        self._tasks: set[asyncio.Task[Answer]] = set()
        self._router = Router(self._routes(), redirect_slashes=False)

    def _routes(self) -> list[Route]:
        models = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
        return [
            *(Route(path + "/infer", self._infer, methods=["POST"]) for path in models),
            *(Route(path + "/infer_many", self._infer_many, methods=["POST"]) for path in models),
            Route("/v2/requests/{id}", self._asked_before, methods=["GET", "DELETE"]),
            *(Route(path, self._model) for path in models),
            *(Route(path + "/ready", self._ready) for path in models),
            Route("/v2", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
            Route("/service.json", self._document),
            Route("/openapi.json", self._description),
            Route("/docs", _docs),
            Route("/", self._page),
            Route("/{path}", self._page),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        record = Record(time.perf_counter())
        scope["app"], scope["record"] = self, record

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), *cors.RAW]
            await send(message)

        try:
            scope["head"] = headers.head_of(scope["headers"])
            await (_preflight if scope["method"] == "OPTIONS" else self._router)(scope, receive, answer)
        except ClientGone:
            record.code = "client_gone"
        except Exception as error:
            refused = self._refusal(error, scope["method"])
            record.code = refused.code
            if record.status == 0:
                await _problem(refused)(scope, receive, answer)
        self._settings.ended(record)

    def _refusal(self, error: Exception, method: str) -> Refused:
        """What a client is told of anything that went wrong."""
        if isinstance(error, Refused):
            return error
        if isinstance(error, HTTPException):
            return problems.of_router(error.status_code, method, (error.headers or {}).get("Allow", ""))
        self._settings.log.event("mistake", kind=type(error).__name__, place=place_of(error))
        return problems.unexpected(error)

    async def _infer(self, request: Request) -> Response:
        """One request. Only when its JSON says that it is one, and that its numbers are shares, are they read."""
        record, head = request.scope["record"], request.scope["head"]
        asked, key_id = self._asked(request), self._who(request)
        record.model = asked[0]
        self._limits.take(key_id)
        length = headers.length_of(head, wire.MAX_HEADER_BYTES)
        limit = min(self._settings.max_body, length + self._model_of(*asked).body)
        body = Body(request.receive, head, limit, self._room)
        with body.reading():
            found = headers.load(await body.take(length, "its JSON header"), wire.MAX_HEADER_BYTES)
            headers.refuse_plain(found)
            data = await body.take(headers.size_of(found), "its tensors")
            await body.end()
        record.stages["read"] = time.perf_counter() - record.began
        submission = self._submission(record, found, data, asked)
        with self._counted(key_id):
            task = self._begin(submission)
            if b"respond-async" in head.get(b"prefer", b""):
                await asyncio.wait({task}, timeout=_ASYNC_SECONDS)
                if not task.done():
                    return _state(submission.id, "received")
            return _framed(await self._finished(record, task))

    async def _infer_many(self, request: Request) -> Response:
        """Many requests, each with an answer or a refusal of its own; a mistake that hides where one ends is all theirs."""
        record, head = request.scope["record"], request.scope["head"]
        asked, key_id = self._asked(request), self._who(request)
        record.model = asked[0]
        length = headers.length_of(head, headers.MAX_MANY_HEADER)
        body = Body(request.receive, head, self._settings.max_body, self._room)
        with body.reading():
            found = headers.many(headers.load(await body.take(length, "its JSON header"), headers.MAX_MANY_HEADER))
            self._limits.take(key_id, len(found))
            parts = [await body.take(headers.size_of(one), "its tensors") for one in found]
            await body.end()
        record.stages["read"] = time.perf_counter() - record.began
        with self._counted(key_id):
            pairs = zip(found, parts, strict=True)
            outcomes = await asyncio.gather(*(self._one_of_many(one, part, key_id, asked) for one, part in pairs))
        header = msgspec.json.encode({"responses": [answer for answer, _ in outcomes]})
        return _framed(wire.Message(header, b"".join(data for _, data in outcomes)))

    async def _one_of_many(
        self, found: Mapping[str, Any], data: bytes, key_id: str, asked: tuple[str, int | None]
    ) -> tuple[dict[str, Any], bytes]:
        """(status, and header or problem; bytes) of one request of many, which is counted and logged for itself."""
        record = Record(time.perf_counter(), key_id=key_id, model=asked[0])
        try:
            message = await self._finished(record, self._begin(self._submission(record, found, data, asked)))
            record.status = 200
            return {"status": 200, "header": msgspec.Raw(message.header)}, message.data
        except Exception as error:
            refused = self._refusal(error, "POST")
            record.code, record.status = refused.code, refused.status
            return {"status": refused.status, "problem": problems.problem(refused)}, b""
        finally:
            self._settings.ended(record)

    def _submission(
        self, record: Record, found: Mapping[str, Any], data: bytes, asked: tuple[str, int | None]
    ) -> Submission:
        """A request for the desk, checked. The record is told who and what it is."""
        name, version = asked
        request = headers.read(found, data, self._settings.rank)
        model = self._model_of(name, version)
        headers.check(request, model, self._settings.now_ms())
        record.id, record.model, record.rows = request.id, name, request.rows
        record.stages["check"] = time.perf_counter() - record.began - record.stages.get("read", 0.0)
        return Submission(
            id=request.id,
            key_id=record.key_id,
            model=name,
            version=version,
            rows=request.rows,
            shares=request.shares(),
            body_digest=headers.digest_of(request, name, version, data),
            commit=request.commit,
            deadline=time.monotonic() + request.deadline_ms / 1000,
        )

    def _begin(self, submission: Submission) -> asyncio.Task[Answer]:
        """Hands a request to the desk. It goes on when the client leaves: the other parties have their shares, too."""
        task = asyncio.ensure_future(self._desk.submit(submission))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Answer]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()

    async def _finished(self, record: Record, task: asyncio.Task[Answer]) -> wire.Message:
        """The desk's answer as it is sent."""
        began = time.perf_counter()
        answer = await asyncio.shield(task)
        record.stages["desk"] = time.perf_counter() - began
        record.stages.update(answer.stages)
        record.run = answer.run
        return headers.message(record.id, self._model_of(record.model, answer.version), answer)

    @contextmanager
    def _counted(self, key_id: str) -> Iterator[None]:
        """While requests are being answered: only so many at once, of all clients and of one key."""
        if self._running >= self._settings.running:
            what = f"{self._running} requests are being answered"
            raise Refused("queue_full", what, fix="ask again later", retry_after=1.0)
        with self._limits.running(key_id):
            self._running += 1
            try:
                yield
            finally:
                self._running -= 1

    def _who(self, request: Request) -> str:
        """The id of the key that is shown, which is for the model that is asked, if one is. Raises Refused."""
        keys, record = self._settings.keys, request.scope["record"]
        if keys is None:
            record.key_id = OPEN
            return OPEN
        scheme, _, bearer = request.scope["head"].get(b"authorization", b"").decode("latin-1").partition(" ")
        shown = bearer.strip() if scheme.lower() == "bearer" else ""
        key = keys.lookup(shown) if shown else None
        if key is None:
            raise problems.no_key(bool(shown))
        record.key_id = key.id
        model = request.path_params.get("model")
        if model is not None and not key.allows(model):
            raise Refused("model_not_allowed", "this API key is not for this model", fix="ask the operator")
        return key.id

    def _asked(self, request: Request) -> tuple[str, int | None]:
        """The model and the version that the address names, both served here. Raises Refused."""
        self._settings.check_started()
        name, text = request.path_params["model"], request.path_params.get("version")
        version = int(text) if text and text.isascii() and text.isdigit() and len(text) < 10 else None
        versions = self._desk.models.get(name, {})
        if not versions or (text is not None and version not in versions):
            raise Refused("not_found", "this service has no such model or version", fix="read /service.json")
        return name, version

    def _model_of(self, name: str, version: int | None) -> headers.Model:
        """What requests to a version, or to the current one, have to look like; also of one that was removed meanwhile,
        as a request that came before has its answer still.
        """
        versions = self._desk.models.get(name, {})
        number = _current(versions) if version is None else version
        known, card = self._models.get((name, number)), versions.get(number)
        if card is not None and (known is None or known.digest != card["digest"]):
            known = self._models[name, number] = headers.model_of(name, card)
        if known is None:
            raise Refused("not_found", f"model {name} is no longer served", fix="read /service.json")
        return known

    async def _asked_before(self, request: Request) -> Response:
        """A request that was asked before: its answer or its state, or its end."""
        key_id, id = self._who(request), request.path_params["id"]
        if not headers.is_id(id):
            raise Refused("not_found", "an id has 32 hexadecimal digits in lower case")
        record = request.scope["record"]
        record.id = id
        if request.method == "DELETE":
            await self._desk.withdraw(id, key_id)
            return Response(status_code=204)
        found = self._desk.find(id, key_id)
        if isinstance(found, str):
            return _state(id, found)
        record.model, record.run = found.model, found.run
        return _framed(headers.message(id, self._model_of(found.model, found.version), found))

    async def _server(self, request: Request) -> Response:
        """What the Open Inference Protocol tells of a server."""
        extensions = ["binary_tensor_data", "securemodel"]
        return _json({"name": self._settings.name, "version": __version__, "extensions": extensions})

    async def _model(self, request: Request) -> Response:
        """What the Open Inference Protocol tells of a model; its card has the rest."""
        name, version = self._asked(request)
        versions = self._desk.models[name]
        return _json(headers.metadata(name, versions, _current(versions) if version is None else version))

    async def _live(self, request: Request) -> Response:
        return _json({"live": True})

    async def _ready(self, request: Request) -> Response:
        """Whether requests can be answered now, of any model or of one."""
        self._settings.check_started()
        asked = self._asked(request) if "model" in request.path_params else ()
        self._desk.check_ready(*asked)
        return _json({"ready": True})

    async def _document(self, request: Request) -> Response:
        self._settings.check_started()
        return _json(self._settings.document())

    async def _description(self, request: Request) -> Response:
        return _json(openapi.document(self._settings.keys is not None))

    async def _page(self, request: Request) -> Response:
        """A file of the web page, with the policy that lets it load and ask nothing but what belongs to the service."""
        self._settings.check_started()
        found = page_files().get(request.path_params.get("path", "index.html"))
        if found is None:
            raise HTTPException(404)
        return Response(found[1], media_type=found[0], headers=page_headers(self._settings.document()))


def _current(versions: Mapping[int, Any]) -> int:
    """The version that requests without one get: the last. 0 where there is none."""
    return [0, *versions][-1]


async def _docs(request: Request) -> Response:
    return Response(
        openapi.page(),
        media_type="text/html",
        headers={**problems.OWN, "Content-Security-Policy": "default-src 'none'"},
    )


async def _preflight(scope: Scope, receive: Receive, send: Send) -> None:
    response = Response(status_code=204)
    response.raw_headers = list(cors.RAW_PREFLIGHT)
    await response(scope, receive, send)


def _json(value: Any, status: int = 200, more: Mapping[str, str] | None = None) -> Response:
    headers = {**problems.OWN, **(more or {})}
    return Response(msgspec.json.encode(value), status, headers, "application/json")


def _state(id: str, state: str) -> Response:
    """A request that waits, and where to ask for it again."""
    return _json({"id": id, "state": state}, 202, {"Location": f"/v2/requests/{id}"})


def _framed(message: wire.Message) -> Response:
    """JSON and the bytes of tensors after it."""
    headers = {wire.LENGTH_HEADER: str(len(message.header)), **problems.OWN}
    return Response(message.body, 200, headers, "application/octet-stream")


def _problem(refused: Refused) -> Response:
    body, headers = problems.body_of(refused)
    return Response(body, refused.status, headers)
