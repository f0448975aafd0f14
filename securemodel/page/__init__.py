"""The web page of a service: its files as every party serves them, and what proves that they are all the same.

The page is made of plain ES modules in `static/`. Nothing is built and nothing comes from elsewhere. `index.html` names
the SHA-384 digest of every file that it loads (Subresource Integrity), and the Content-Security-Policy allows nothing
but these files and requests to the service's parties.

This package needs the standard library alone. A wrong service.json is a ValueError.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

MODULES = ("share.js", "recipe.js", "table.js", "client.js", "view.js", "draw.js", "plot.js", "app.js")
"""Each imports only from those before it; index.html starts the last."""
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "css": "text/css; charset=utf-8",
}
_SERVICE = "service.json"
_HEAD = "<!-- what the page loads -->\n"
_ANY_PARTY = ("https:", "http://localhost:*", "http://127.0.0.1:*")
_HOST = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?", re.IGNORECASE)
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export ", re.MULTILINE)


@cache
def files() -> Mapping[str, tuple[str, bytes, str]]:
    """The page's files by path: media type, bytes, and digest ("sha384-" and base64). `/` is `index.html`."""
    contents = {"style.css": _static("style.css"), **{name: _static(name) for name in MODULES}}
    contents["index.html"] = _static("index.html").replace(_HEAD, _links(contents))
    return {
        path: (MEDIA_TYPES[path.rpartition(".")[2]], text.encode(), digest(text.encode()))
        for path, text in sorted(contents.items())
    }


def headers(service: Mapping[str, Any]) -> dict[str, str]:
    """What is sent along with each file of the page of this service (a parsed service.json)."""
    page = files()["index.html"][1].decode()
    scripts = [_quoted(text) for text in _inline(page)] + [f"'{files()[name][2]}'" for name in MODULES]
    return {
        "Content-Security-Policy": _policy(scripts, "'self'", ("'self'", *origins(service)))
        + "; frame-ancestors 'none'",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }


def offline_page(service: Mapping[str, Any] | None = None) -> bytes:
    """The page as one HTML file that works from a disk. Without a service.json it asks for one."""
    style, script = _static("style.css"), _one_module()
    allowed = origins(service) if service is not None else _ANY_PARTY
    policy = _policy([_quoted(script)], _quoted(style), allowed)
    known = ""
    if service is not None:
        text = json.dumps(service, ensure_ascii=True).replace("<", "\\u003c")
        known = f'<script type="application/json" id="service-json">{text}</script>\n'
    head = (
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        f'<style>{style}</style>\n{known}<script type="module">{script}</script>\n'
    )
    return _static("index.html").replace(_HEAD, head).encode()


@dataclass(frozen=True)
class Copy:
    """What one party serves under a name: its digest, the one it should have, and that of this installation."""

    party: str
    what: str
    found: str | None
    listed: str | None
    ours: str | None
    why: str = ""
    """Why nothing was found."""

    @property
    def verdict(self) -> str:
        """ "same", or what is wrong with it in a few words."""
        if self.found is None:
            return f"could not be fetched: {self.why}"
        if self.found != self.listed:
            return "differs from what service.json says" if self.listed else "is not in service.json"
        return "same" if self.found == self.ours else "differs from this installation's"


def verify(service: Mapping[str, Any], fetch: Callable[[Mapping[str, Any], str], tuple[bytes, str]]) -> list[Copy]:
    """Compares every party's copy of the page, and who its service.json says takes part, with this service.json.

    `fetch(party, path)` gives a file's bytes and the Content-Security-Policy that came with it, or raises OSError.
    """
    ours = {path: mark for path, (_, _, mark) in files().items()}
    paths = sorted(set(ours).union(*(party.get("page", {}) for party in service["parties"])))
    policy, roles = headers(service)["Content-Security-Policy"], _roles(service)
    out = []

    def compare(party: Mapping[str, Any], path: str, listed: str | None, mine: str | None) -> None:
        try:
            content, told = fetch(party, path)
        except OSError as error:
            out.append(Copy(party["name"], path, None, listed, mine, str(error)))
            return
        out.append(Copy(party["name"], path, _roles(content) if path == _SERVICE else digest(content), listed, mine))
        if path == "index.html":
            out.append(Copy(party["name"], "its policy", told, policy, policy))

    for party in service["parties"]:
        compare(party, _SERVICE, roles, roles)
        for path in paths:
            compare(party, path, party.get("page", {}).get(path), ours.get(path))
    return out


def _roles(service: Mapping[str, Any] | bytes) -> str:
    """A digest of who takes part by a service.json, and with which page; of what is no such file, of its bytes."""
    try:
        found = json.loads(service) if isinstance(service, bytes) else service
        told = [found[name] for name in ("name", "parties", "leader", "dealer", "trust")]
    except (ValueError, KeyError, TypeError):
        return digest(bytes(service)) if isinstance(service, bytes) else ""
    return digest(json.dumps(told, sort_keys=True).encode())


def digest(content: bytes) -> str:
    """SHA-384 as browsers write it in `integrity` and in policies."""
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def origins(service: Mapping[str, Any]) -> tuple[str, ...]:
    """Scheme, host and port of each party's address, as a policy names them. Raises ValueError with the party's name."""
    found = []
    for party in service["parties"]:
        parts = urlsplit(party["url"])
        if parts.scheme not in ("https", "http") or not _HOST.fullmatch(parts.hostname or ""):
            raise ValueError(
                f"the page cannot ask party {party['name']!r}: its url {party['url']!r} is not http(s)://NAME[:PORT]; "
                "policies of browsers know no IPv6 addresses in digits: name the host"
            )
        found.append(f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else ""))
    return tuple(dict.fromkeys(found))


def _static(name: str) -> str:
    return (resources.files(__name__) / "static" / name).read_text(encoding="utf-8")


def _links(contents: Mapping[str, str]) -> str:
    """What index.html loads, each with its digest."""
    marks = {name: digest(text.encode()) for name, text in contents.items()}
    modules = json.dumps({"integrity": {f"./{name}": marks[name] for name in MODULES}}, indent=0)
    return (
        f'<link rel="stylesheet" href="style.css" integrity="{marks["style.css"]}">\n'
        f'<script type="importmap">{modules}</script>\n'
        f'<script type="module" src="{MODULES[-1]}"></script>\n'
    )


def _one_module() -> str:
    """All modules as one: their top-level names differ, so imports and exports can simply go."""
    return "".join(_EXPORT.sub("", _IMPORT.sub("", _static(name))) for name in MODULES)


def _inline(page: str) -> list[str]:
    """The scripts that stand in a page."""
    return re.findall(r'<script type="(?:importmap|module)">(.*?)</script>', page, re.DOTALL)


def _quoted(content: str) -> str:
    return f"'{digest(content.encode())}'"


def _policy(scripts: list[str], style: str, connect: tuple[str, ...]) -> str:
    """A Content-Security-Policy that allows these scripts, this style, and requests to these origins."""
    return (
        f"default-src 'none'; script-src {' '.join(scripts)}; style-src {style}; img-src data:; "
        f"connect-src {' '.join(connect)}; base-uri 'none'; form-action 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
