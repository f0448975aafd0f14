"""The page that `securemodel predict --report` writes: what it says, what it loads (nothing), and labels that do not fit."""

from __future__ import annotations

import re
import stat
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import securemodel
from securemodel.cli.part import Given, page_of
from securemodel.cli.results_page import read_labels, write_page
from securemodel.errors import InputError
from securemodel.program import Program

SCORES = np.array([[0.5, 2.0], [3.0, -1.0], [0.25, 0.125], [9.0, 1.0]])
LABELS = np.array([1, 0, 1, 0])


def table_of(path: Path, names: str, numbers: np.ndarray, ids: list[str] | None = None) -> Path:
    lines = [
        names,
        *(f"{i},{','.join(map(str, row))}" for i, row in zip(ids or range(1, 999999), numbers, strict=False)),
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def page_about(path: Path, program: Program, output: Path, labels: np.ndarray | None = None) -> str:
    write_page(path, program, "hospital", output, labels)
    return path.read_text()


def test_the_page_says_what_the_results_are(program: Program, tmp_path: Path) -> None:
    output = table_of(tmp_path / "out.csv", "patient,output_0,output_1", SCORES, ["<b>", "b", "c", "d"])
    text = page_about(tmp_path / "page.html", program, output, LABELS)
    assert "3 of 4 rows are right (75.0%)" in text
    assert '<th scope="row">class 1</th><td class="number">1</td><td class="number">1</td>' in text
    assert "<td>25.0%</td>" in text and "<td>75.0%</td>" in text
    assert program.digest in text and "hospital (who has this report) learns" in text and "bank learns" in text
    assert "&lt;b&gt;" in text and "<b>" not in text
    assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == 0o600


class Loads(HTMLParser):
    """Notes what a page would load or run, and whether every picture is said in words."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.pictures = self.words = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.pictures += tag == "svg"
        self.words += tag == "desc"
        for name, value in attrs:
            if (name in ("src", "href", "xlink:href") and not (value or "").startswith("#")) or name.startswith("on"):
                self.found.append(f"{tag} {name}={value}")
        if tag in ("script", "link", "iframe", "object", "img"):
            self.found.append(tag)


def test_the_page_loads_nothing_and_says_its_pictures(program: Program, tmp_path: Path) -> None:
    output = table_of(tmp_path / "out.csv", "row,output_0,output_1", SCORES)
    parser = Loads()
    text = page_about(tmp_path / "page.html", program, output)
    parser.feed(text)
    assert parser.found == [] and parser.pictures == parser.words == 2
    assert "default-src &#x27;none&#x27;" in text and not re.search(r"url\((?!#)", text)


@pytest.mark.parametrize("rows", [1, 100, 101, 1234])
def test_many_rows_are_in_pages_that_open(program: Program, tmp_path: Path, rows: int) -> None:
    numbers = np.random.default_rng(0).normal(size=(rows, 2))
    text = page_about(tmp_path / "page.html", program, table_of(tmp_path / "out.csv", "row,output_0,output_1", numbers))
    assert text.count("<summary>Rows ") == min(-(-rows // 100), 10)
    assert ("234 further rows are in the output" in text) == (rows == 1234)
    assert ("smallest largest score" in text) == (rows > 20)


def test_classes_and_arrays(tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 3).eval()
    owners = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}
    program = securemodel.compile(model, torch.zeros(2, 4), **owners, reveal=("top", 2))
    classes, scores = np.array([[2, 0], [2, 1]]), np.array([[0.75, 0.25], [0.5, 0.375]])
    np.savez(tmp_path / "out.npz", row=np.array([1, 2]), **{"class": classes, "probability": scores})
    text = page_about(tmp_path / "page.html", program, tmp_path / "out.npz", np.array([2, 0]))
    assert "1 of 2 rows are right" in text and "From 0.5 to 0.75" in text
    assert '<th scope="row">class 2</th><td class="number">2</td><td>100.0%</td>' in text


def test_one_number_a_row_has_no_class(program: Program, tmp_path: Path) -> None:
    output = table_of(tmp_path / "out.csv", "row,output_0", SCORES[:, :1])
    assert "Classes" not in page_about(tmp_path / "page.html", program, output)
    with pytest.raises(InputError, match="tell no class"):
        page_about(tmp_path / "page.html", program, output, LABELS)


@pytest.mark.parametrize(
    "labels, says", [([0, 1], "2 labels for 4 rows"), ([0, 1, 0, 1000], "a label or a class is 1000")]
)
def test_labels_that_do_not_fit(program: Program, tmp_path: Path, labels: list, says: str) -> None:
    output = table_of(tmp_path / "out.csv", "row,output_0,output_1", SCORES)
    with pytest.raises(InputError, match=says):
        page_about(tmp_path / "page.html", program, output, np.array(labels))
    assert not (tmp_path / "page.html").exists()


def test_labels_are_read_from_tables_and_arrays(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("age,truth\n31,1\n44,0\n")
    np.save(tmp_path / "x.npy", np.array([1, 0], np.uint8))
    (tmp_path / "one.csv").write_text("truth\n1\n0\n")
    for text in ("x.csv:truth", "x.csv:2", "x.npy", "one.csv"):
        assert read_labels(str(tmp_path / text)).tolist() == [1, 0]


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("x.csv", "age,truth\n31,1\n44,0\n", "labels are one column, and there are 2"),
        ("x.csv:truth", "age,truth\n31,1\n44,-1\n", "line 3, column 2"),
        ("x.csv:truth", "age,truth\n31,1.5\n", "it is '1.5'"),
        ("x.csv:truth", "age,truth\n31,cat\n", "it is 'cat'"),
        ("x.csv:lie", "age,truth\n31,1\n", "lie"),
    ],
)
def test_labels_that_are_none(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(InputError, match=says):
        read_labels(str(tmp_path / name))


@pytest.mark.parametrize(
    "me, options, says",
    [
        ("bank", {"report": ("a.html",)}, "has no use for --report"),
        ("hospital", {"report": ("a.pdf",), "output": ("o.csv",)}, "a report is a page"),
        ("hospital", {"labels": ("l.csv",), "output": ("o.csv",)}, "give --report"),
        ("hospital", {"report": ("a.html",)}, "give --output"),
    ],
)
def test_a_page_that_cannot_be_is_refused_before_anything_runs(
    program: Program, me: str, options: dict, says: str
) -> None:
    with pytest.raises(InputError, match=says):
        page_of(program, me, Given(**options))
