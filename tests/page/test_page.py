"""The page's files, what proves that they are unchanged, and the one-file page; without a browser."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from securemodel import page

SERVICE = {
    "parties": [{"name": "bank", "url": "https://bank.example:8443/"}, {"name": "shop", "url": "http://127.0.0.1:9000"}]
}


def sha384(content: bytes) -> str:
    return "sha384-" + base64.b64encode(hashlib.sha384(content).digest()).decode()


def sources(policy: str, directive: str) -> list[str]:
    return next(part.split()[1:] for part in policy.split(";") if part.split()[0] == directive)


def test_every_file_has_its_type_and_digest() -> None:
    found = page.files()
    assert (
        found["index.html"][0] == "text/html; charset=utf-8" and found["app.js"][0] == "text/javascript; charset=utf-8"
    )
    assert {mark for _, content, mark in found.values()} == {sha384(content) for _, content, _ in found.values()}
    assert set(found) == {"index.html", "style.css", *page.MODULES}


def test_the_page_loads_nothing_whose_digest_it_does_not_name() -> None:
    found = page.files()
    html = found["index.html"][1].decode()
    named = json.loads(re.search(r'<script type="importmap">(.*?)</script>', html, re.DOTALL)[1])["integrity"]
    assert named == {f"./{name}": found[name][2] for name in page.MODULES}
    for tag in re.findall(r"<(?:link|script)[^>]*(?:src|href)=[^>]*>", html):
        path = re.search(r'(?:src|href)="([^"]*)"', tag)[1]
        assert path == "data:," or path in page.MODULES or f'integrity="{found[path][2]}"' in tag
    imported = {name for module in page.MODULES for name in re.findall(r'from "\./([^"]*)"', found[module][1].decode())}
    assert imported == set(page.MODULES) - {"app.js"}


def test_modules_import_only_from_those_before() -> None:
    """Else they could not become one file."""
    for at, module in enumerate(page.MODULES):
        text = page.files()[module][1].decode()
        assert set(re.findall(r'from "\./([^"]*)"', text)) <= set(page.MODULES[:at])
        assert "import(" not in text and " as " not in "".join(re.findall(r"^import .*$", text, re.MULTILINE))


def test_the_page_has_less_than_60_kilobytes() -> None:
    assert sum(len(content) for _, content, _ in page.files().values()) <= 60_000


def test_nothing_writes_markup_or_keeps_anything() -> None:
    text = "".join(content.decode() for _, content, _ in page.files().values())
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "localStorage",
                 "sessionStorage", "indexedDB", "document.cookie", "console.", "history.", "Math.random", "sendBeacon"):  # fmt: skip
        assert word not in text, word


def test_the_policy_allows_these_scripts_and_parties_alone() -> None:
    policy = page.headers(SERVICE)["Content-Security-Policy"]
    marks = {f"'{page.files()[name][2]}'" for name in page.MODULES}
    html = page.files()["index.html"][1].decode()
    inline = re.search(r'<script type="importmap">(.*?)</script>', html, re.DOTALL)[1]
    assert set(sources(policy, "script-src")) == {*marks, f"'{sha384(inline.encode())}'"}
    assert sources(policy, "connect-src") == ["'self'", "https://bank.example:8443", "http://127.0.0.1:9000"]
    assert (
        sources(policy, "default-src")
        == ["'none'"]
        == sources(policy, "frame-ancestors")
        == sources(policy, "form-action")
    )


@pytest.mark.parametrize(
    "url", ["https://[::1]:8000", "https://x.example; script-src *", "javascript:alert(1)", "https://a b"]
)
def test_an_address_that_no_policy_can_name_is_refused_by_party(url: str) -> None:
    with pytest.raises(ValueError, match="'shop'"):
        page.headers({"parties": [{"name": "shop", "url": url}]})


def test_the_offline_page_is_one_file_with_a_policy_of_its_own() -> None:
    service = {**SERVICE, "name": "</script><script>alert(1)</script>"}
    html = page.offline_page(service).decode()
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)[1]
    (script,) = re.findall(r'<script type="module">(.*?)</script>', html, re.DOTALL)
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    assert sources(policy, "script-src") == [f"'{sha384(script.encode())}'"]
    assert sources(policy, "style-src") == [f"'{sha384(style.encode())}'"]
    assert sources(policy, "connect-src") == ["https://bank.example:8443", "http://127.0.0.1:9000"]
    assert "frame-ancestors" not in policy, "browsers complain about it in a meta element"
    (embedded,) = re.findall(r'<script type="application/json" id="service-json">(.*?)</script>', html, re.DOTALL)
    assert json.loads(embedded) == service
    assert not re.search(r"^(import|export) ", script, re.MULTILINE) and "src=" not in html


def test_the_offline_page_without_a_service_may_ask_any() -> None:
    html = page.offline_page().decode()
    assert "service-json" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)
    policy = re.search(r'content="(default-src[^"]*)"', html)[1]
    assert sources(policy, "connect-src") == ["https:", "http://localhost:*", "http://127.0.0.1:*"]


def test_top_level_names_differ_so_that_modules_can_be_one() -> None:
    names = [
        name
        for module in page.MODULES
        for line in page.files()[module][1].decode().splitlines()
        for name in re.findall(r"^(?:export )?(?:async )?(?:function|class|const) (\w+)", line)
    ]
    assert len(names) > 50 and len(names) == len(set(names))


# ---- verify
def served(service: dict, changed: dict[tuple[str, str], bytes] | None = None, policy: str | None = None):
    """What fetches the page of parties that serve it as it is, but for some files; an empty one cannot be reached."""
    whole = {(party["name"], path): text for party in SERVICE["parties"] for path, (_, text, _) in page.files().items()}
    whole |= {(party["name"], "service.json"): json.dumps(service).encode() for party in SERVICE["parties"]}
    whole |= changed or {}

    def fetch(party: dict, path: str) -> tuple[bytes, str]:
        if not whole[party["name"], path]:
            raise OSError("no route to host")
        return whole[party["name"], path], policy or page.headers(service)["Content-Security-Policy"]

    return fetch


@pytest.fixture
def listed() -> dict:
    marks = {path: mark for path, (_, _, mark) in page.files().items()}
    roles = {"name": "digits", "leader": "bank", "dealer": "dealer", "trust": ["nobody"]}
    return {**roles, "parties": [{**party, "page": dict(marks)} for party in SERVICE["parties"]]}


def wrong(found: list[page.Copy]) -> dict[tuple[str, str], str]:
    return {(copy.party, copy.what): copy.verdict for copy in found if copy.verdict != "same"}


def test_verify_finds_equal_copies_the_same(listed: dict) -> None:
    found = page.verify(listed, served(listed))
    assert not wrong(found) and len(found) == 2 * (len(page.files()) + 2)


def test_verify_names_the_party_and_file_of_one_byte_more(listed: dict) -> None:
    changed = {("shop", "share.js"): page.files()["share.js"][1] + b"\n", ("bank", "app.js"): b""}
    found = wrong(page.verify(listed, served(listed, changed)))
    assert found == {
        ("shop", "share.js"): "differs from what service.json says",
        ("bank", "app.js"): "could not be fetched: no route to host",
    }


def test_verify_is_not_content_with_parties_that_agree_on_another_page(listed: dict) -> None:
    other = b"export const stolen = 1;"
    for party in listed["parties"]:
        party["page"]["share.js"] = sha384(other)
    found = wrong(page.verify(listed, served(listed, {(name, "share.js"): other for name in ("bank", "shop")})))
    assert set(found.values()) == {"differs from this installation's"} and len(found) == 2


def test_verify_notices_a_file_that_is_listed_nowhere_else_and_another_policy(listed: dict) -> None:
    listed["parties"][0]["page"]["extra.js"] = sha384(b"1")
    extra = {(name, "extra.js"): b"1" for name in ("bank", "shop")}
    found = wrong(page.verify(listed, served(listed, extra, "default-src *")))
    assert found["shop", "extra.js"] == "is not in service.json"
    assert found["bank", "extra.js"] == "differs from this installation's"
    assert found["bank", "its policy"] == "differs from what service.json says"


@pytest.mark.parametrize("other", [b"[]", b"no JSON", b'{"name": "digits"}', None])
def test_verify_notices_a_party_that_names_others(listed: dict, other: bytes | None) -> None:
    told = other or json.dumps({**listed, "models": [], "trust": ["everybody"]}).encode()
    found = wrong(page.verify(listed, served(listed, {("shop", "service.json"): told})))
    assert found == {("shop", "service.json"): "differs from what service.json says"}


def test_verify_takes_other_models_for_the_same_service(listed: dict) -> None:
    """While a version is changed, parties may say so one after the other."""
    told = json.dumps({"models": [], **listed}).encode()
    assert not wrong(page.verify(listed, served(listed, {("shop", "service.json"): told})))
