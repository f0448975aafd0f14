"""Reports: one page with nothing to load, readable without pictures, with the numbers of the JSON beside it."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from securemodel.data import metrics
from securemodel.data.evaluate import Evaluation
from securemodel.errors import FileError, InputError

NAMES = ["accuracy", "auc", "roc", "pr", "gains", "calibration", "confusion"]
FACTS = {
    "rows": 500, "weighted": False, "minimum": 20, "parties": ["bank", "shop"], "schema": "ab" * 32, "data": "cd" * 32,
    "programs": ["ef" * 32], "revealed": dict.fromkeys(NAMES, "all"),
    "costs": [{"query": "evaluation", "rounds": 60, "sent_bytes": {"bank": 1000}, "dealt_bytes": 10}],
}  # fmt: skip
LINE = {"time": "2026-01-01T00:00:00Z", "me": "bank", "peers": ["shop"], "program": "ef" * 32,
        "reveals": {"auc <value>": "all"}, "rows": 500}  # fmt: skip


def _evaluation(minimum: int = 20) -> Evaluation:
    made = torch.Generator().manual_seed(0)
    score = torch.randn(500, generator=made)
    label = (torch.rand(500, generator=made) < torch.sigmoid(score)).long()
    return Evaluation({m.name: m.measure(label, score, minimum=minimum) for m in metrics.named(NAMES)}, FACTS)


class _Page(HTMLParser):
    """Elements with attributes, and the text of the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict]:
    path = _evaluation().save(tmp_path_factory.mktemp("out") / "new" / "report.html", ledger=[LINE])
    return path.read_text(), json.loads(path.with_suffix(".json").read_text())


def test_a_page_has_nothing_to_run_or_load(saved: tuple[str, dict]) -> None:
    text, _ = saved
    page = _Page(text)
    loading = {"script", "link", "img", "iframe", "object", "embed", "image", "a", "base", "form"}
    assert not loading & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") or name in ("src", "srcset", "action") for name in attributes)
        assert (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"https?:|//\w|@import|javascript:|xmlns", text)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))
    assert "default-src &#x27;none&#x27;" in text


def test_a_page_can_be_read_without_seeing_it(saved: tuple[str, dict]) -> None:
    page = _Page(saved[0])
    pictures = [attributes for tag, attributes in page.tags if tag == "svg"]
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(pictures) == page.count("desc") == 4 and len(ids) == len(set(ids))
    for attributes in pictures:
        assert attributes["role"] == "img"
        assert set((attributes["aria-labelledby"] or "").split()) <= set(ids)
    assert page.count("caption") == page.count("table") > 6
    assert all(attributes.get("scope") in ("col", "row") for tag, attributes in page.tags if tag == "th")
    assert ("html", {"lang": "en"}) in page.tags


def test_a_page_and_its_json_say_the_same(saved: tuple[str, dict]) -> None:
    text, numbers = saved
    evaluation, words = _evaluation(), " ".join(_Page(text).text)
    for name, made in evaluation.metrics.items():
        assert numbers["metrics"][name]["value"] == made.value
        if made.value is not None:
            assert f"{made.value:.6g}" in words
    assert f"± {numbers['metrics']['auc']['error']:.2g}" in words
    assert numbers["metrics"]["roc"]["curve"]["true_positive_rate"] == evaluation["roc"].curve["true_positive_rate"]
    for rate in numbers["metrics"]["roc"]["curve"]["true_positive_rate"]:
        assert f"{rate:.6g}" in words
    for row in numbers["metrics"]["confusion"]["curve"]["matrix"]:
        assert all(f"{cell:,}" in words for cell in row)
    assert numbers["facts"]["data"] in words and numbers["facts"]["programs"][0] in words
    assert numbers["ledger"] == [LINE] and "auc <value>" in words


def test_withheld_and_undefined_are_named(tmp_path: Path) -> None:
    label, score = torch.zeros(40).long(), torch.linspace(-1, 1, 40)
    made = Evaluation({m.name: m.measure(label, score, minimum=5) for m in metrics.named(["auc", "roc", "confusion"])})
    path = made.save(tmp_path / "report.html")
    text, numbers = path.read_text(), json.loads(path.with_suffix(".json").read_text())
    assert "withheld: fewer than 5 rows of a class" in text and "nan" not in text.lower()
    assert numbers["metrics"]["auc"]["value"] is None and "withheld" in numbers["metrics"]["auc"]["why"]
    assert numbers["metrics"]["confusion"]["curve"]["matrix"][1] == [None, None]


def test_a_report_that_cannot_be_written_is_an_error_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"report\.html"):
        _evaluation().save(tmp_path / "report.pdf")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="file"):
        _evaluation().save(tmp_path / "file" / "report.html")
