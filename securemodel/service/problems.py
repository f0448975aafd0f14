"""Refusals as problem details (RFC 9457): what, where, why and what to do, in words of their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from protocols.errors import printable
from securemodel.service.desk import STATUS, Refused

MEDIA_TYPE = "application/problem+json"
OWN: Mapping[str, str] = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
"""Headers of every answer that is not a file of the page: nobody keeps it, nobody guesses at its type."""

MEANING: Mapping[str, str] = {
    "bad_header": "The request cannot be read.",
    "clock_skew": "The clocks of client and server differ by more than two minutes.",
    "key": "The API key is missing or not known.",
    "model_not_allowed": "The API key is not for this model.",
    "not_found": "There is nothing of this name here.",
    "method": "This address does not take this method.",
    "id_reused": "Another request has the same id.",
    "wrong_program": "The request was made for another program than the one that is served.",
    "commit_mismatch": "The parties hold shares that do not belong together.",
    "result_lost": "A party lost its share of the result. It is not charged: ask again with a new id.",
    "gone": "The request was answered or withdrawn, and its answer is no longer kept.",
    "too_large": "The body is larger than the program takes.",
    "plaintext_refused": "Plain numbers are not taken: only shares are. The body was not read.",
    "shape": "The inputs are not of the program's shape.",
    "rate": "Too many requests at a time.",
    "budget": "The rows of the day are used up.",
    "internal": "The server made a mistake.",
    "draining": "The service is being stopped.",
    "peer_down": "A party of the service cannot be reached.",
    "no_preprocessing": "No correlated randomness is ready.",
    "queue_full": "Too many requests are waiting.",
    "share_missing": "A party has no share of this request.",
    "deadline": "The request cannot be answered within its deadline.",
}
"""What each code of `desk.STATUS` means, in a sentence."""


class Problem(msgspec.Struct, omit_defaults=True):
    """The body of every answer that is not a success. `error` says the same in one line."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    what: str
    error: str
    where: str = ""
    why: str = ""
    fix: str = ""
    retry_after: float | None = None
    server_time: int | None = None
    parties: Sequence[str] = ()


def problem(refused: Refused) -> Problem:
    """The problem that tells of a refusal. Parts of a text may come from the client, so all of it is made printable."""
    what, where, why, fix = (printable(text)[:2000] for text in (refused.what, refused.where, refused.why, refused.fix))
    return Problem(
        type=f"/docs#{refused.code}",
        title=MEANING[refused.code],
        status=refused.status,
        detail=what,
        code=refused.code,
        what=what,
        error=f"{what}: {fix}" if fix else what,
        where=where,
        why=why,
        fix=fix,
        retry_after=refused.retry_after,
        server_time=getattr(refused, "server_time", None),
        parties=refused.parties,
    )


def body_of(refused: Refused) -> tuple[bytes, dict[str, str]]:
    """(the JSON text of a refusal, headers of the answer)."""
    headers = {"Content-Type": MEDIA_TYPE, **OWN}
    if refused.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(refused.retry_after)))
    if refused.code == "key":
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(refused, WrongMethod):
        headers["Allow"] = refused.allow
    return msgspec.json.encode(problem(refused)), headers


def no_key(shown: bool) -> Refused:
    """No API key is shown, or one that this party does not know."""
    if not shown:
        return Refused("key", "no API key is shown", fix="send 'Authorization: Bearer KEY'")
    why = "it is mistyped or revoked, or was never added at this party"
    return Refused("key", "this party does not know the API key", why=why, fix="ask the operator of this party for one")


class ClockSkew(Refused):
    """The client's clock is off; `server_time` is this host's, in milliseconds since 1970."""

    def __init__(self, server_time: int) -> None:
        super().__init__(
            "clock_skew",
            "the time of this request is more than 120 s off",
            where="parameters.time",
            fix="set the clock, or make the request anew with the server_time of this answer",
        )
        self.server_time = server_time


class WrongMethod(Refused):
    """An address takes other methods only: those that `allow` lists."""

    def __init__(self, method: str, allow: str) -> None:
        super().__init__("method", f"this address does not take {method}", fix=f"use {allow}")
        self.allow = allow


def of_router(status: int, method: str, allow: str, fix: str = "read /openapi.json") -> Refused:
    """What a router's own answer is in our words; `status` is 404 or 405, and `fix` for the former."""
    if status == 405:
        return WrongMethod(method, allow)
    return Refused("not_found", "there is nothing at this address", fix=fix)


def closed(refused: Refused, more: Sequence[tuple[str, str]]) -> bytes:
    """A whole HTTP/1.1 answer for a connection whose bytes no request could be made of; it is closed afterwards."""
    body, headers = body_of(refused)
    lines = [f"HTTP/1.1 {refused.status} {refused.code}"]
    lines += [f"{name}: {value}" for name, value in (*headers.items(), *more)]
    lines += [f"Content-Length: {len(body)}", "Connection: close", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def from_status() -> dict[int, list[str]]:
    """The codes of each HTTP status, in order."""
    table: dict[int, list[str]] = {}
    for code, status in STATUS.items():
        table.setdefault(status, []).append(code)
    return dict(sorted(table.items()))


def unexpected(error: BaseException) -> Refused:
    """What a client is told of a mistake of ours: its kind alone, for its text may hold data."""
    return Refused("internal", f"the server was stopped by {type(error).__name__}", fix="tell the operator the time")
