"""Debian's Chromium, driven through Playwright (whose own browsers are never fetched)."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


def needed(*names: str) -> str:
    """The path of the first of these programs that is there; without one the test fails in CI, and is skipped elsewhere."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{names[0]} is not installed; `make test` installs it")
    return found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=needed("chromium", "chromium-browser"), args=QUIET)
        yield browser
        browser.close()


@pytest.fixture
def visit(chromium: Browser) -> Iterator[Callable[..., Page]]:
    """Opens an address in a browser of its own; an error in its console, or one that nobody caught, fails the test.

    `expected` are parts of the texts of errors that have to come.
    """
    errors: list[str] = []
    wanted: list[str] = []
    contexts = []

    def note(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            errors.append(message.text)

    def opened(url: str, expected: tuple[str, ...] = (), **options: Any) -> Page:
        contexts.append(chromium.new_context(**{"viewport": {"width": 900, "height": 900}, **options}))
        contexts[-1].set_default_timeout(60_000)
        page = contexts[-1].new_page()
        page.on("console", note)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(f"a dialog: {dialog.message}"))
        wanted.extend(expected)
        page.goto(url)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not [text for text in errors if not any(part in text for part in wanted)]
    assert not [part for part in wanted if not any(part in text for text in errors)], "an error that must come did not"
