"""A gateway on the client's own machine: ordinary clients send it plain tensors, and it asks the parties in shares.

It speaks the Open Inference Protocol v2 as `tritonclient` and `kserve` do: no content type is needed, no id, outputs are
JSON unless binary ones are asked for, and errors have a member `error`, in `application/json`, as other types are not
looked into. Whoever reaches the gateway uses its API key, and inputs are in the clear on the way to it: so it listens
on loopback, and refuses pages of other sites.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from securemodel.edge import Client
from securemodel.edge.errors import Disagreement, EdgeError, InputError, PartyDown, Refused, ServiceError, WireError
from securemodel.edge.recipe import given_shape
from securemodel.edge.service_file import Model, Port
from securemodel.edge.wire import LENGTH_HEADER, dump
from securemodel.service import plain_tensors
from securemodel.service.desk import STATUS
from securemodel.version import __version__

MAX_BODY_BYTES = 64 << 20
_KINDS: tuple[tuple[type[EdgeError], str, int], ...] = (
    (InputError, "input", 422),
    (PartyDown, "peer_down", 503),
    (Disagreement, "disagreement", 502),
    (ServiceError, "not_found", 404),
)
"""Codes and statuses of errors that have none of their own."""


def app(client: Client, *, timeout_s: float = 10.0, hosts: frozenset[str] | None = None) -> Starlette:
    """The gateway of a client. `hosts` are the names it may be asked by; None allows all."""
    gateway = _Gateway(client, timeout_s)
    routes = {
        "/v2": gateway.server,
        "/v2/health/live": gateway.live,
        "/v2/health/ready": gateway.ready,
        **{
            f"/v2/models/{{model}}{version}{rest}": handler
            for version in ("", "/versions/{version}")
            for rest, handler in (("", gateway.metadata), ("/ready", gateway.model_ready), ("/infer", gateway.infer))
        },
    }
    methods = {gateway.infer: ["POST"]}
    return Starlette(
        routes=[
            Route(path, _told(handler, hosts), methods=methods.get(handler, ["GET"]))
            for path, handler in routes.items()
        ],
        exception_handlers={HTTPException: _other, Exception: _unexpected},
    )


class _Gateway:
    """What each address answers."""

    def __init__(self, client: Client, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s

    async def server(self, request: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return JSONResponse({"name": "securemodel edge gateway", "version": __version__, "extensions": extensions})

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True})

    async def ready(self, request: Request) -> Response:
        await run_in_threadpool(self._client.check_ready, timeout=self._timeout_s)
        return JSONResponse({"ready": True})

    async def model_ready(self, request: Request) -> Response:
        model, version = self._asked(request)
        await run_in_threadpool(self._client.check_ready, model.name, version=version, timeout=self._timeout_s)
        return JSONResponse({"name": model.name, "ready": True})

    async def metadata(self, request: Request) -> Response:
        model, _ = self._asked(request)
        inputs = [
            _described(port, given_shape(model.card.get("recipe", {}).get(port.name, ()), port.shape))
            for port in model.inputs
        ]
        outputs = [_described(port, port.shape) for port in model.outputs]
        told = {"name": model.name, "versions": [str(model.version)], "platform": "securemodel"}
        return JSONResponse({**told, "inputs": inputs, "outputs": outputs})

    async def infer(self, request: Request) -> Response:
        model, version = self._asked(request)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise plain_tensors.bad("compressed bodies are not supported", where="Content-Encoding")
        asked = plain_tensors.read(await _body(request), _length(request))
        names = [port.name for port in model.outputs]
        if unknown := sorted(set(asked.outputs or ()) - set(names)):
            raise WireError("shape", f"model {model.name!r} has no output {unknown[0]!r}", fix=f"ask for {names}")
        timeout = min(asked.timeout_s or self._timeout_s, 60.0)
        results = await run_in_threadpool(
            lambda: list(self._client.results(model.name, asked.inputs, version=version, timeout=timeout))
        )
        if len({result.version for result in results}) > 1:
            what = "the model was changed for another version while the rows were asked"
            raise Refused("gateway", "peer_down", STATUS["peer_down"], what, fix="ask again", retry_after=0.0)
        wanted = asked.outputs if asked.outputs is not None else dict.fromkeys(names, asked.binary)
        parts = [
            plain_tensors.output(name, np.concatenate([result.outputs[name] for result in results]), binary)
            for name, binary in wanted.items()
        ]
        header = {
            "id": asked.id or results[0].id,
            "model_name": model.name,
            "model_version": results[0].version,
            "outputs": [described for described, _ in parts],
        }
        data, text = b"".join(data for _, data in parts), dump(header)
        if not data:
            return Response(text, media_type="application/json")
        return Response(text + data, headers={LENGTH_HEADER: str(len(text))}, media_type="application/octet-stream")

    def _asked(self, request: Request) -> tuple[Model, int | None]:
        """The model that an address names, and its version."""
        version = request.path_params.get("version")
        if version is not None and not (version.isascii() and version.isdecimal() and len(version) < 10):
            raise ServiceError("a version is a whole number", where=request.url.path)
        return self._client.service.model(request.path_params["model"]), None if version is None else int(version)


def _described(port: Port, shape: tuple[int, ...]) -> dict[str, Any]:
    datatype = "INT64" if port.kind in ("index", "class") else "FP32"
    return {"name": port.name, "datatype": datatype, "shape": [-1, *shape]}


async def _body(request: Request) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > MAX_BODY_BYTES:
            raise WireError("too_large", f"a body has at most {MAX_BODY_BYTES} bytes", fix="ask in parts")
        parts.append(part)
    return b"".join(parts)


def _length(request: Request) -> int | None:
    text = request.headers.get(LENGTH_HEADER)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise plain_tensors.bad("the length of the JSON is no whole number", where=LENGTH_HEADER)
    return int(text)


def _told(
    handler: Callable[[Request], Awaitable[Response]], hosts: frozenset[str] | None
) -> Callable[[Request], Awaitable[Response]]:
    """A handler whose errors are told in JSON, and which pages of other sites cannot use."""

    async def answered(request: Request) -> Response:
        try:
            if "origin" in request.headers or (hosts is not None and _host(request) not in hosts):
                what = "pages of other sites, and other names, do not get through this gateway"
                raise Refused("gateway", "not_allowed", 403, what, fix="ask it by the address that it listens at")
            return await handler(request)
        except EdgeError as error:
            return _problem(error)

    return answered


def _host(request: Request) -> str:
    """The name that a gateway is asked by, without its port."""
    return request.headers.get("host", "").rpartition(":")[0].strip("[]")


def _problem(error: EdgeError) -> Response:
    code, status = _code(error)
    more: dict[str, Any] = {}
    if isinstance(error, Refused) and error.retry_after is not None:
        more["retry_after"] = error.retry_after
    if isinstance(error, PartyDown):
        more["parties"] = [error.party]
    return _as_json(code, status, error.what, error.where, error.why, error.fix, more)


def _code(error: EdgeError) -> tuple[str, int]:
    if isinstance(error, Refused):
        return error.code, error.status
    if isinstance(error, WireError):
        return error.code, STATUS.get(error.code, 502)
    return next(((code, status) for kind, code, status in _KINDS if isinstance(error, kind)), ("internal", 500))


def _as_json(
    code: str, status: int, what: str, where: str = "", why: str = "", fix: str = "", more: Mapping[str, Any] = {}
) -> Response:
    told = {"where": where, "why": why, "fix": fix}
    error = "; ".join(text for text in (what, *told.values()) if text)
    body = {"type": "about:blank", "title": code, "status": status, "detail": what, "code": code, "what": what, **told}
    headers = {"Retry-After": str(max(1, round(more["retry_after"])))} if "retry_after" in more else {}
    return JSONResponse({**body, "error": error, **more}, status, headers)


async def _other(request: Request, error: Exception) -> Response:
    """Addresses and methods that are not there."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    code = "method" if status == 405 else "not_found"
    return _as_json(
        code, status, f"the gateway has no {request.method} {request.url.path}", fix="GET /v2 tells what it is"
    )


async def _unexpected(request: Request, error: Exception) -> Response:
    return _as_json("internal", 500, f"the gateway was stopped by {type(error).__name__}")


def is_loopback(host: str) -> bool:
    """Whether everything that a name stands for is on this machine."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found)
