"""The HTTP front of an aggregator: clients read the round's card, hand in their parts, and get the round's result.

    GET  /v2/federation/round                                the card of the round that takes uploads now
    POST /v2/federation/rounds/{number}/uploads/{client}     this aggregator's part of a client's update
    GET  /v2/federation/rounds/{number}/card                 the card of a round that has ended
    GET  /v2/federation/rounds/{number}/result               this aggregator's part of the result (of ?client=, sealed to it)

Connections, limits of bodies, keys and problem details are those of a service. A key is for the clients that it names, or,
where it names none, for all: such a one is for a relay, which passes on parts that clients sealed. A client with a key of its
own may name another one with ?seal=, to which a result is sealed: so who comes late, or lost what it had, gets it, too.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from protocols.errors import FileError
from securemodel.service import headers, problems
from securemodel.service.bodies import Body, ClientGone, Room
from securemodel.service.desk import Refused
from securemodel.service.logs import Log, place_of
from securemodel.service.settings import KeyBook

PATH = "/v2/federation"
_ROOM_BYTES = 512 << 20
_DISK = Refused(
    "queue_full",
    "this aggregator cannot write to its disk now",
    fix="send it again, before the deadline",
    retry_after=1.0,
)
_Answer = Callable[[Request], Awaitable[Response]]


class Rounds(Protocol):
    """What the front asks of its aggregator. All raise Refused."""

    def card(self) -> bytes:
        """The card of the round that takes uploads now."""
        ...

    def most_bytes(self, number: int) -> int:
        """The most bytes of a part of a round's uploads."""
        ...

    def receive(self, number: int, client: str, data: bytes) -> None:
        """Takes this aggregator's part of a client's upload."""
        ...

    def card_of(self, number: int) -> bytes:
        """The card of a round that has ended with a result."""
        ...

    def result(self, number: int, client: str, seal: str = "") -> bytes:
        """This aggregator's part of the result of a round, sealed to the client, or to a key of it that it names."""
        ...


class Front:
    """The application. `keys` None: nobody is asked for a key."""

    def __init__(self, rounds: Rounds, keys: KeyBook | None, log: Log) -> None:
        self._rounds, self._keys, self._log, self._room = rounds, keys, log, Room(_ROOM_BYTES)
        self._router = Router(
            [
                Route(f"{PATH}/round", self._told(self._card)),
                Route(f"{PATH}/rounds/{{number}}/card", self._told(self._card_of)),
                Route(f"{PATH}/rounds/{{number}}/uploads/{{client:path}}", self._told(self._upload), methods=["POST"]),
                Route(f"{PATH}/rounds/{{number}}/result", self._told(self._result)),
            ],
            redirect_slashes=False,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"] = self  # then the router raises what it would answer
        try:
            await self._router(scope, receive, send)
        except HTTPException as error:
            allow = (error.headers or {}).get("Allow", "")
            fix = "ask with securemodel.edge.federation, of the same version"
            await _problem(problems.of_router(error.status_code, scope["method"], allow, fix))(scope, receive, send)
        except ClientGone:
            pass

    def _told(self, answer: _Answer) -> _Answer:
        """An answer, or what went wrong as a problem."""

        async def told(request: Request) -> Response:
            try:
                request.scope["head"] = headers.head_of(request.scope["headers"])
                return await answer(request)
            except Refused as refused:
                return _problem(refused)
            except ClientGone:
                raise
            except Exception as error:
                self._log.event("mistake", kind=type(error).__name__, place=place_of(error))
                return _problem(_DISK if isinstance(error, FileError) else problems.unexpected(error))

        return told

    async def _card(self, request: Request) -> Response:
        return Response(await run_in_threadpool(self._rounds.card), 200, problems.OWN, "application/json")

    async def _card_of(self, request: Request) -> Response:
        data = await run_in_threadpool(self._rounds.card_of, _number(request))
        return Response(data, 200, problems.OWN, "application/json")

    async def _upload(self, request: Request) -> Response:
        number, client = _number(request), request.path_params["client"]
        self._check_key(request.scope["head"], client)
        most = await run_in_threadpool(self._rounds.most_bytes, number)  # it waits while another upload is written
        body = Body(request.receive, request.scope["head"], most, self._room)
        with body.reading():
            size = request.scope["head"].get(b"content-length", b"")
            if not size.isdigit():
                raise Refused("bad_header", "the body's length is not told", fix="send Content-Length")
            data = await body.take(int(size), "a part of an update")
            await body.end()
            await run_in_threadpool(self._rounds.receive, number, client, data)
        self._log.event("upload", round=number, client=client, bytes=len(data))
        return Response(status_code=204, headers=problems.OWN)

    async def _result(self, request: Request) -> Response:
        client, seal = (request.query_params.get(name, "") for name in ("client", "seal"))
        own = self._check_key(request.scope["head"], client)
        if seal and not own:
            why = "whoever may ask for every client could read what is for clients alone"
            raise Refused("model_not_allowed", "a key to seal to is taken from the client itself", why=why,
                          fix="show the API key of this client")  # fmt: skip
        data = await run_in_threadpool(self._rounds.result, _number(request), client, seal)
        return Response(data, 200, problems.OWN, "application/octet-stream")

    def _check_key(self, head: Mapping[bytes, bytes], client: str) -> bool:
        """Whether the key that is shown is of this client alone. Raises Refused where a key is asked for, and it is another's."""
        if self._keys is None:
            return False
        scheme, _, bearer = head.get(b"authorization", b"").decode("latin-1").partition(" ")
        key = self._keys.lookup(bearer.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise Refused("key", "the API key is missing or not known", fix="send 'Authorization: Bearer KEY'")
        if not key.allows(client):
            raise Refused("model_not_allowed", "this API key is of another client", fix="ask the operator")
        return bool(key.models)


def _number(request: Request) -> int:
    """The round that an address names. Raises Refused."""
    text = request.path_params["number"]
    if not (text.isascii() and text.isdigit() and len(text) <= 15):
        raise Refused("not_found", "there is no such round", fix="take the number of the current round's card")
    return int(text)


def _problem(refused: Refused) -> Response:
    body, more = problems.body_of(refused)
    return Response(body, refused.status, more)
