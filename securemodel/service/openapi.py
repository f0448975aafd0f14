"""The description of the API (OpenAPI 3.1) that /openapi.json gives, and the page that shows it without scripts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from html import escape
from typing import Any

import msgspec

from securemodel.edge import wire
from securemodel.service.desk import STATUS
from securemodel.service.headers import MAX_MANY_HEADER, MAX_REQUESTS
from securemodel.service.problems import MEANING, MEDIA_TYPE, Problem
from securemodel.version import __version__

_ANYWHERE = ("bad_header", "not_found", "internal")
_KEY = ("key", "model_not_allowed", "rate")
_BODY = ("too_large", "plaintext_refused")
_ANSWER = tuple(code for code in STATUS if code not in (*_ANYWHERE, *_KEY, *_BODY, "method"))
_HEX32 = {"type": "string", "pattern": "^[0-9a-f]{32}$"}
_HEX64 = {"type": "string", "pattern": "^[0-9a-f]{64}$"}
_TEXT = {"type": "string"}
_SHARE = {
    "type": "object",
    "required": ["binary_data_size", "share"],
    "properties": {"binary_data_size": {"type": "integer", "minimum": 1}, "share": {"enum": ["values", "seed"]}},
}


def _object(required: Sequence[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": properties}


def _tensor(parameters: dict[str, Any]) -> dict[str, Any]:
    shape = {"type": "array", "items": {"type": "integer", "minimum": 1}, "minItems": 1, "maxItems": 16}
    names = ("name", "shape", "datatype", "parameters")
    return _object(names, name=_TEXT, shape=shape, datatype={"const": "INT64"}, parameters=parameters)


_ONE = "JSON as in RequestHeader, then the tensors' bytes in its order: little-endian int64, or 32 bytes of a seed."
_MANY = (
    f'JSON {{"requests": [RequestHeader, …]}} of at most {MAX_REQUESTS} requests and {MAX_MANY_HEADER} bytes, '
    "then the bytes of all their tensors."
)


def _schemas() -> dict[str, Any]:
    """What the JSON parts look like. Those before bytes are described here, as OpenAPI cannot say where bytes begin."""
    deadline = {"type": "integer", "minimum": 1, "maximum": wire.MAX_DEADLINE_MS, "default": wire.DEFAULT_DEADLINE_MS}
    parameters = _object(
        ("securemodel", "program", "commit", "time"),
        securemodel={"const": 1},
        program=_HEX64,
        commit=_HEX64,
        time={"type": "integer", "description": "milliseconds since 1970 on the client's clock"},
        deadline_ms=deadline,
    )
    whole = {"type": "integer", "minimum": 0}
    output = _object(("binary_data_size", "frac_bits"), binary_data_size=whole, frac_bits=whole)
    place = _object(("run", "row", "batch"), run=_TEXT, row=whole, batch=whole)
    (_, components) = msgspec.json.schema_components([Problem], ref_template="#/components/schemas/{name}")
    tensors = {"minItems": 1, "maxItems": 64, "type": "array", "items": _tensor(_SHARE)}
    return {
        **components,
        "RequestHeader": _object(("id", "inputs", "parameters"), id=_HEX32, inputs=tensors, parameters=parameters),
        "AnswerHeader": _object(
            ("id", "model_name", "model_version", "outputs", "parameters"),
            id=_HEX32,
            model_name=_TEXT,
            model_version=_TEXT,
            outputs={"type": "array", "items": _tensor(output)},
            parameters=place,
        ),
        "State": _object(("id", "state"), id=_HEX32, state=_TEXT),
        "Ready": _object(("ready",), ready={"const": True}),
        "Live": _object(("live",), live={"const": True}),
        "Server": _object(
            ("name", "version", "extensions"),
            name=_TEXT,
            version=_TEXT,
            extensions={"type": "array", "items": _TEXT},
        ),
        "Model": _object(
            ("name", "versions", "platform", "inputs", "outputs", "parameters"),
            name=_TEXT,
            versions={"type": "array", "items": _TEXT},
            platform={"const": "securemodel"},
            inputs={"type": "array"},
            outputs={"type": "array"},
            parameters={"type": "object"},
        ),
        "Service": _object(
            ("securemodel_service", "name", "parties", "models"),
            securemodel_service={"const": 1},
            name=_TEXT,
            parties={"type": "array"},
            models={"type": "array"},
        ),
    }


def _refusals(codes: Sequence[str]) -> dict[str, Any]:
    """The answers of these codes, by status."""
    by_status: dict[int, list[str]] = {}
    for code in codes:
        by_status.setdefault(STATUS[code], []).append(code)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        str(status): {
            "description": " ".join(f"`{code}`: {MEANING[code]}" for code in here),
            "content": content,
            **({"headers": {"Retry-After": {"schema": {"type": "string"}}}} if status in (429, 503) else {}),
        }
        for status, here in sorted(by_status.items())
    }


def _json(name: str, description: str) -> dict[str, Any]:
    schema = {"$ref": f"#/components/schemas/{name}"}
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _framed(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {wire.LENGTH_HEADER: {"required": True, "schema": {"type": "string", "pattern": "^[0-9]+$"}}},
        "content": {"application/octet-stream": {}},
    }


def _get(summary: str, name: str, codes: Sequence[str] = ()) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": _json(name, summary), **_refusals((*_ANYWHERE, *codes))}}}


def _post(summary: str, body: str, more: dict[str, Any]) -> dict[str, Any]:
    length = {
        "name": wire.LENGTH_HEADER,
        "in": "header",
        "required": True,
        "description": "how many bytes of JSON come before those of the tensors",
        "schema": {"type": "integer", "minimum": 1},
    }
    prefer = {"name": "Prefer", "in": "header", "description": "respond-async: answer 202 and a place to ask later"}
    return {
        "post": {
            "summary": summary,
            "security": [{"key": []}],
            "parameters": [length, {**prefer, "schema": _TEXT}],
            "requestBody": {
                "required": True,
                "description": body,
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
            },
            "responses": {**more, **_refusals((*_ANYWHERE, *_KEY, *_BODY, *_ANSWER))},
        }
    }


def _parameter(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _asked() -> dict[str, Any]:
    """A request that was made before."""
    refusals = _refusals((*_ANYWHERE, *_KEY, *_ANSWER))
    security: list[dict[str, list[str]]] = [{"key": []}]
    waiting = _json("State", "It waits.")
    answered = _framed("The answer: AnswerHeader and the bytes of this party's shares.")
    return {
        "parameters": [_parameter("id", _HEX32)],
        "get": {
            "summary": "The answer to a request, or its state",
            "security": security,
            "responses": {"200": answered, "202": waiting, **refusals},
        },
        "delete": {
            "summary": "Take a request back that no batch has begun with",
            "security": security,
            "responses": {"204": {"description": "It is taken back."}, **refusals},
        },
    }


def _paths() -> dict[str, Any]:
    paths: dict[str, Any] = {
        "/v2": _get("What this server is", "Server"),
        "/v2/health/live": _get("Whether it runs", "Live"),
        "/v2/health/ready": _get("Whether it can answer now", "Ready", _ANSWER),
        "/service.json": _get("Parties, models, and who is trusted", "Service", ("peer_down",)),
        "/v2/requests/{id}": _asked(),
    }
    model = _parameter("model", {"type": "string", "minLength": 1})
    version = _parameter("version", {"type": "integer", "minimum": 1})
    answer = _framed("AnswerHeader and the bytes of this party's shares")
    answers = _framed('{"responses": [{"status", "header" or "problem"}, …]} and the bytes of all answers')
    for base, parameters in (
        ("/v2/models/{model}", [model]),
        ("/v2/models/{model}/versions/{version}", [model, version]),
    ):
        operations = {
            "": _get("What a model is", "Model", ("peer_down",)),
            "/ready": _get("Whether a model can answer now", "Ready", _ANSWER),
            "/infer": _post("Ask with shares", _ONE, {"200": answer, "202": _json("State", "It waits.")}),
            "/infer_many": _post("Ask many times at once", _MANY, {"200": answers}),
        }
        for end, operation in operations.items():
            paths[base + end] = {"parameters": parameters, **operation}
    return paths


@cache
def document(keys: bool) -> dict[str, Any]:
    """The whole description; `keys` is whether API keys are asked for."""
    description: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "securemodel",
            "version": __version__,
            "description": "Open Inference Protocol v2 with binary tensors that are additive shares modulo 2^64.",
        },
        "paths": _paths(),
        "components": {
            "schemas": _schemas(),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    if not keys:
        for operation in (one for item in description["paths"].values() for one in item.values()):
            if isinstance(operation, dict):
                operation.pop("security", None)
    return description


@cache
def page() -> bytes:
    """The description for people, as one HTML text."""
    rows = [
        f"<tr><td><code>{method.upper()} {escape(path)}</code></td><td>{escape(operation['summary'])}</td></tr>"
        for path, operations in _paths().items()
        for method, operation in operations.items()
        if method != "parameters"
    ]
    codes = [
        f'<tr id="{code}"><td><code>{code}</code></td><td>{status}</td><td>{escape(MEANING[code])}</td></tr>'
        for code, status in STATUS.items()
    ]
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>API</title><h1>API</h1>'
        f'<p>The whole description is <a href="/openapi.json">openapi.json</a>. {escape(_ONE)}</p>'
        f"<table><tr><th>address</th><th></th></tr>{''.join(rows)}</table>"
        f"<h2>Refusals</h2><table><tr><th>code</th><th>status</th><th>meaning</th></tr>{''.join(codes)}</table></html>"
    ).encode()
