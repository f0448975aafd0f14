"""Rows out of files: what is read, and what is said about files that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from securemodel.cli.tables import Choice, Wanted, open_rows
from securemodel.errors import InputError

FOUR = [Wanted((4,), torch.float32)]
SECRET = "98765.25"


def read(rows, start: int = 0, size: int = 2) -> list[list[torch.Tensor]]:
    return list(rows.read(start, size))


def joined(rows, start: int = 0) -> torch.Tensor:
    return torch.cat([batch[0] for batch in rows.read(start, 2)])


NUMBERS = torch.tensor([[1.0, 2.5, -3.0, 4e-3], [5, 6, 7, 8], [0, 0, 0, 1]])
LINES = "1,2.5,-3,4e-3\n5,6,7,8\n0,0,0,1\n"


@pytest.mark.parametrize(
    "text",
    [LINES, "a,b,c,d\n" + LINES, "\ufeffa,b,c,d\r\n" + LINES.replace("\n", "\r\n"), "\n" + LINES + "\n,,,\n", LINES[:-1]],
)
def test_tables_with_and_without_names(write, text: str) -> None:
    rows = open_rows(write("x.csv", text), FOUR, Choice())
    assert rows.count == 3 and torch.equal(joined(rows), NUMBERS)
    assert [len(batch[0]) for batch in rows.read(0, 2)] == [2, 1]
    assert torch.equal(joined(rows, 2), NUMBERS[2:]), "going on at a row"


@pytest.mark.parametrize("columns", [("c", "a"), ("4", "2")], ids=["named", "counted"])
def test_columns_are_chosen(write, columns) -> None:
    wanted = [Wanted((2,), torch.float32)]
    table = write("x.csv", "patient,a,b,c\nP-17,1,x,3\nP-18,4,,6\n")
    assert torch.equal(joined(open_rows(table, wanted, Choice(columns))), torch.tensor([[3.0, 1], [6, 4]]))
    bare = write("y.csv", "P-17,1,x,3\nP-18,4,,6\n")
    assert open_rows(bare, wanted, Choice(("4", "2"))).count == 2, "the first line is a row: what is chosen is numbers"


def test_columns_fill_several_inputs_in_order(write) -> None:
    wanted = [Wanted((1, 2), torch.float32), Wanted((), torch.int64), Wanted((1,), torch.float64)]
    ((x, y, z),) = read(open_rows(write("x.csv", "a,b,c,d\n1,2,3,0.1\n4,5,-9007199254740993,6\n"), wanted, Choice()))
    assert x.tolist() == [[[1, 2]], [[4, 5]]] and x.dtype == torch.float32
    assert y.tolist() == [3, -9007199254740993] and y.dtype == torch.int64
    assert z.tolist() == [[0.1], [6]] and z.dtype == torch.float64


BAD_TABLES = {
    "a word": ("a,b,c,d\n1,2,3,4\n1,98765.25x,3,4\n", "line 3, column 2"),
    "nothing": ("1,2,3,4\n98765.25,,3,4\n", "line 2, column 2"),
    "too short": ("1,2,3,4\n98765.25,2,3\n", "line 2, column 4"),
    "infinite": ("1,2,3,4\n98765.25,inf,3,4\n", "line 2, column 2"),
    "not a number": ("1,2,3,4\n98765.25,nan,3,4\n", "line 2, column 2"),
    "too many columns": ("1,2,3,4,98765.25\n", "5 columns for inputs of 4"),
    "empty": ("", "0 columns"),
    "names alone": ("a,b,c,d\n", "no rows"),
}


@pytest.mark.parametrize("kind", BAD_TABLES)
def test_tables_that_cannot_be_read(write, kind: str) -> None:
    text, says = BAD_TABLES[kind]
    with pytest.raises(InputError, match=says) as caught:
        open_rows(write("x.csv", text), FOUR, Choice())
    assert SECRET not in str(caught.value) and "→" in str(caught.value)


def test_whole_numbers_are_whole(write) -> None:
    with pytest.raises(InputError, match="no whole number"):
        open_rows(write("x.csv", "1\n2.5\n"), [Wanted((1,), torch.int64)], Choice())


def test_columns_that_are_not_there(write) -> None:
    table = write("x.csv", f"a,b,a\n1,2,{SECRET}\n")
    for columns, says in ((("a", "b"), "name a exactly once"), (("b", "x"), "name x"), (("9", "1"), "column 9")):
        with pytest.raises(InputError, match=says) as caught:
            open_rows(table, [Wanted((2,), torch.float32)], Choice(columns))
        assert SECRET not in str(caught.value)
    (tmp := write("z.csv", "")).write_bytes(b"1,2\n\xff\xfe,3\n")
    with pytest.raises(InputError, match="UTF-8"):
        open_rows(tmp, [Wanted((2,), torch.float32)], Choice())


# ---- arrays
def test_arrays(tmp_path: Path) -> None:
    x, y = np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([[1], [2], [3]])
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, y=y, z=np.zeros(7))
    rows = open_rows(tmp_path / "x.npy", [Wanted((1, 2, 2), torch.float32)], Choice(divide_by=2))
    assert rows.count == 3 and torch.equal(joined(rows), torch.from_numpy(x).reshape(3, 1, 2, 2) / 2)
    wanted = [Wanted((1,), torch.int64), Wanted((4,), torch.float32)]
    rows = open_rows(tmp_path / "x.npz", wanted, Choice(arrays=("y", "x")))
    (first, second) = next(rows.read(1, 2))
    assert first.tolist() == [[2], [3]] and second.tolist() == x.reshape(3, 4)[1:].tolist()


BAD_ARRAYS = {
    "which": ({"x": np.zeros((2, 4)), "y": np.zeros((2, 4))}, (), "2 arrays for 1 inputs"),
    "missing": ({"x": np.zeros((2, 4))}, ("y",), "there is no array y"),
    "shape": ({"x": np.zeros((2, 5))}, (), "array x"),
    "no axis": ({"x": np.zeros(())}, (), "rows of shape"),
    "kind": ({"x": np.array([["98765.25"] * 4])}, (), "numbers for an input"),
    "complex": ({"x": np.zeros((2, 4), complex)}, (), "complex128"),
    "infinite": ({"x": np.full((5000, 4), np.inf)}, (), "not finite"),
    "objects": ({"x": np.array([[None] * 4])}, (), "not a file of NumPy arrays"),
    "no rows": ({"x": np.zeros((0, 4))}, (), "no rows"),
}


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_arrays_that_do_not_fit(tmp_path: Path, kind: str) -> None:
    arrays, names, says = BAD_ARRAYS[kind]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=says) as caught:
        open_rows(tmp_path / "x.npz", FOUR, Choice(arrays=names))
    assert SECRET not in str(caught.value)


def test_arrays_of_different_lengths(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 4)), y=np.zeros((3, 4)))
    with pytest.raises(InputError, match="different numbers of rows: x 2, y 3"):
        open_rows(tmp_path / "x.npz", FOUR * 2, Choice())


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_files_that_are_no_arrays(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x80\x04K*.")
    with pytest.raises(InputError, match="not a file of NumPy arrays"):
        open_rows(tmp_path / name, FOUR, Choice())


# ---- images
def test_a_folder_of_images(tmp_path: Path) -> None:
    Image = pytest.importorskip("PIL.Image")
    gradient = np.arange(0, 60, dtype=np.uint8).reshape(4, 5, 3)
    Image.fromarray(gradient).save(tmp_path / "b.png")
    Image.fromarray(gradient[:, :, 0]).save(tmp_path / "a.PNG")
    (tmp_path / "notes.txt").write_text("not an image")
    rows = open_rows(tmp_path, [Wanted((3, 4, 5), torch.float32)], Choice())
    made = joined(rows)
    assert rows.count == 2 and rows.names == ("a.PNG", "b.png")
    assert torch.equal(made[1], torch.from_numpy(gradient).permute(2, 0, 1) / 255)
    assert torch.equal(made[0], made[0][:1].expand(3, 4, 5)), "gray as RGB"
    gray = joined(open_rows(tmp_path, [Wanted((1, 4, 5), torch.float32)], Choice()))
    assert torch.equal(gray[0, 0], made[0, 0])
    small = joined(open_rows(tmp_path, [Wanted((2, 3), torch.float32)], Choice()))
    assert small.shape == (2, 2, 3) and 0 <= small.min() and small.max() <= 1


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    image = [Wanted((1, 4, 5), torch.float32)]
    with pytest.raises(InputError, match="no rows"):
        open_rows(tmp_path, image, Choice())
    (tmp_path / "x.png").write_text("not an image")
    with pytest.raises(InputError, match="not an image that can be read"):
        joined(open_rows(tmp_path, image, Choice()))
    for wanted in ([Wanted((2, 4, 5), torch.float32)], FOUR, image * 2, [Wanted((1, 4, 5), torch.int64)]):
        with pytest.raises(InputError, match="cannot be an input"):
            open_rows(tmp_path, wanted, Choice())
    with pytest.raises(InputError, match="images take no"):
        open_rows(tmp_path, image, Choice(divide_by=255))


# ---- digests
def test_digests_tell_contents_and_choices_apart(write, tmp_path: Path) -> None:
    first, again = write("x.csv", LINES), write("renamed.csv", LINES)
    other = write("other.csv", LINES.replace("8", "9"))
    made = [open_rows(path, FOUR, Choice()).digest for path in (first, again, other)]
    made += [open_rows(first, FOUR, choice).digest for choice in (Choice(("1", "2", "4", "3")), Choice(divide_by=2))]
    assert made[0] == made[1] and len(set(made)) == 4


def test_other_kinds_of_files(write) -> None:
    with pytest.raises(InputError, match="not a kind of file"):
        open_rows(write("x.parquet", ""), FOUR, Choice())
