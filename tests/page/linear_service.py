"""A service whose model is linear: each party computes on its own share alone, so answers are real without an engine.

y = W x + b with all numbers public here. Party i answers W x_i modulo 2^64, the first with b: the sum is W x + b.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from securemodel import page
from securemodel.edge import wire

FRAC_BITS = 16
LENGTH = wire.LENGTH_HEADER
OPEN = Middleware(
    CORSMiddleware, allow_origins=["*"], allow_methods=["*"], max_age=7200, expose_headers=[LENGTH, "Retry-After", "Location"],
    allow_headers=["Authorization", "Content-Type", LENGTH, "Prefer"],
)  # fmt: skip


@dataclass
class Model:
    """A linear model and what its service says about it."""

    name: str
    weights: np.ndarray
    bias: np.ndarray
    shape: list[int]
    recipe: list[list[Any]] = field(default_factory=list)
    labels: list[str] | None = None
    kind: str = "scores"
    columns: list[str] | None = None
    rows: int = 32

    def card(self) -> dict[str, Any]:
        port = {"name": "x", "shape": [-1, *self.shape], "frac_bits": FRAC_BITS, "kind": "real", "limit": 2.0**20}
        if self.columns:
            port["columns"] = self.columns
        out = {
            "name": "y",
            "shape": [-1, len(self.bias)],
            "frac_bits": 2 * FRAC_BITS,
            "kind": self.kind,
            "limit": 2.0**30,
        }
        plan = {"rounds": 0, "bytes_by_size": {"32": 0}, "preprocessing_by_size": {"32": 0}}
        return {"digest": "ab" * 32, "sizes": [self.rows], "inputs": [port], "outputs": [out], "labels": self.labels,
                "recipe": {"x": self.recipe}, "clamp": None, "reveal": "all", "plan": plan}  # fmt: skip

    def answer(self, rank: int, request: wire.Request) -> wire.Answer:
        """One party's answer, of its share alone."""
        (share,) = request.shares()
        out = share.reshape(len(share), -1) @ np.rint(self.weights * 2**FRAC_BITS).astype(np.int64).T
        if rank == 0:
            out += np.rint(self.bias * 4**FRAC_BITS).astype(np.int64)
        run = f"{request.id[:16]}:1"
        return wire.Answer(request.id, self.name, "1", run, 0, self.rows, {"y": out}, {"y": 2 * FRAC_BITS})


@dataclass
class Party:
    """One party: its rank, the faults that its next answers have, and what it was sent."""

    name: str
    rank: int
    models: dict[str, Model]
    key: str | None = None
    faults: list[Any] = field(default_factory=list)
    requests: list[wire.Request] = field(default_factory=list)
    service: dict[str, Any] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=lambda: dict(page.files()))

    def app(self) -> Starlette:
        routes = [
            Route("/v2/models/{model}/infer", self.infer, methods=["POST"]),
            Route("/v2/models/{model}/infer_many", self.infer_many, methods=["POST"]),
            Route("/service.json", lambda _: JSONResponse(self.service)),
            Route("/{path:path}", self.file),
        ]
        return Starlette(routes=routes, middleware=[OPEN])

    def file(self, request: Request) -> Response:
        path = request.path_params["path"] or "index.html"
        if path not in self.files:
            return Response(status_code=404)
        kind, content, _ = self.files[path]
        return Response(content, headers=page.headers(self.service), media_type=kind)

    async def infer(self, request: Request) -> Response:
        length, body = int(request.headers[LENGTH]), await request.body()
        if refusal := self.refusal(request):
            return refusal
        message = await self.answer(request.path_params["model"], body[:length], body[length:])
        return Response(message.body, headers={LENGTH: str(len(message.header))})

    async def infer_many(self, request: Request) -> Response:
        length, body = int(request.headers[LENGTH]), await request.body()
        if refusal := self.refusal(request):
            return refusal
        told, datas, start = [], [], length
        for header in json.loads(body[:length])["requests"]:
            size = sum(tensor["parameters"]["binary_data_size"] for tensor in header["inputs"])
            fault = self.faults.pop(0) if self.faults else None
            if isinstance(fault, dict):
                told.append({"status": fault["status"], "problem": fault})
            else:
                message = await self.answer(request.path_params["model"], wire.dump(header), body[start : start + size])
                told.append({"status": 200, "header": json.loads(message.header)})
                datas.append(message.data)
            start += size
        text = wire.dump({"responses": told})
        return Response(text + b"".join(datas), headers={LENGTH: str(len(text))})

    def refusal(self, request: Request) -> Response | None:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return problem(
                {"status": 401, "code": "key", "what": "the API key is not known", "fix": "ask for a new one"}
            )
        if request.url.path.endswith("infer") and self.faults:
            return problem(self.faults.pop(0))
        return None

    async def answer(self, name: str, header: bytes, data: bytes) -> wire.Message:
        request, model = wire.read_request(header, data, self.rank), self.models[name]
        self.requests.append(request)
        return wire.answer(await run_in_threadpool(model.answer, self.rank, request))


def problem(told: dict[str, Any]) -> Response:
    return Response(json.dumps(told), told["status"], media_type="application/problem+json")


@contextmanager
def running(*apps: Starlette) -> Iterator[list[str]]:
    """Serves each on a free port of this machine; yields their addresses."""
    started = []
    for app in apps:
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        started.append((server, thread, f"http://127.0.0.1:{listening.getsockname()[1]}"))
    while not all(server.started for server, _, _ in started):
        time.sleep(0.01)
    yield [url for _, _, url in started]
    for server, thread, _ in started:
        server.should_exit = True
        thread.join(10)


@contextmanager
def linear_service(
    *models: Model, parties: tuple[str, ...] = ("bank", "hospital"), key: str | None = None
) -> Iterator[list[Party]]:
    """Parties that compute these models; each has the service's `service.json`, with the real addresses in it."""
    made = [Party(name, rank, {model.name: model for model in models}, key) for rank, name in enumerate(parties)]
    with running(*(party.app() for party in made)) as urls:
        marks = {path: mark for path, (_, _, mark) in page.files().items()}
        service = {
            "securemodel_service": 1, "name": "Digits of the savings bank", "leader": parties[0], "dealer": "notary",
            "parties": [{"name": name, "url": url, "certificate": None, "ca": None, "hpke": None, "page": marks}
                        for name, url in zip(parties, urls, strict=True)],
            "keys": key is not None,
            "models": [{"name": model.name, "version": 1, "versions": [1], "rows": model.rows, "card": model.card()} for model in models],
            "trust": ["To see your input, bank and hospital would have to work together.",
                      "Whoever serves this page could serve one that keeps your input: compare the copies."],
        }  # fmt: skip
        for party in made:
            party.service = service
        yield made
