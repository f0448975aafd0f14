"""securemodel page: all parties' copies of the page compared, and the page as one file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from securemodel import page
from tests.page.linear_service import Model, Party, linear_service

MODEL = Model("digits", np.ones((2, 3)), np.zeros(2), [3])


@pytest.fixture
def parties() -> Iterator[list[Party]]:
    with linear_service(MODEL) as made:
        yield made


def address(parties: list[Party]) -> str:
    return parties[0].service["parties"][0]["url"]


def test_equal_copies_are_the_same(call, parties: list[Party]) -> None:
    result = call("page", "verify", address(parties))
    assert result.exit_code == 0, result.output
    assert [line.split()[1:-1] for line in result.output.splitlines() if "all" in line] == [
        [name, "│", "all", str(len(page.files()) + 2), "│", "same"] for name in ("bank", "hospital")
    ]


def test_a_changed_copy_and_a_changed_role_are_named(call, parties: list[Party]) -> None:
    kind, content, mark = parties[1].files["share.js"]
    parties[1].files["share.js"] = kind, content + b" ", mark
    parties[1].service = {**parties[1].service, "trust": ["Nobody can see anything."]}
    result = call("page", "verify", address(parties))
    assert result.exit_code == 1
    rows = [line.split("│")[1:4] for line in result.output.splitlines() if "differs" in line]
    assert [[cell.strip() for cell in row[:2]] for row in rows] == [
        ["hospital", "service.json"],
        ["hospital", "share.js"],
    ]


def test_a_party_that_does_not_answer_is_named(call, parties: list[Party], tmp_path: Path) -> None:
    service = json.loads(json.dumps(parties[0].service))
    service["parties"][1]["url"] = "http://127.0.0.1:9"
    (tmp_path / "service.json").write_text(json.dumps(service))
    result = call("page", "verify", tmp_path / "service.json")
    assert result.exit_code == 1 and "hospital" in result.output and "could not be fetched" in result.output


@pytest.mark.parametrize("text", ["{}", "[1]", "no JSON", '{"securemodel_service": 2}'])
def test_what_is_no_service_file_is_refused(call, tmp_path: Path, text: str) -> None:
    (tmp_path / "service.json").write_text(text)
    for words in (["page", "verify"], ["page", "offline", "-o", tmp_path / "page.html", "--service"]):
        result = call(*words, tmp_path / "service.json")
        assert result.exit_code == 1 and "error: " in result.output and not (tmp_path / "page.html").exists()
        assert "ask the service for its service.json again" in result.output


def test_an_address_where_no_service_is(call) -> None:
    result = call("page", "verify", "http://127.0.0.1:9")
    assert result.exit_code == 1 and "the service cannot be reached" in result.output


def test_the_offline_page_is_written_whole(call, parties: list[Party], tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    result = call("page", "offline", "--service", address(parties), "-o", out)
    assert result.exit_code == 0, result.output
    assert out.read_bytes() == page.offline_page(parties[0].service)
    assert page.digest(out.read_bytes()) in result.output.replace("\n", "")
    assert call("page", "offline", "-o", out).exit_code == 0 and out.read_bytes() == page.offline_page()
