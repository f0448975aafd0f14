"""Arrays of NumPy: axis by axis as the input has them, or an error that names the array."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from securemodel.errors import InputError
from securemodel.files.rows import Choice, Wanted, open_rows

FOUR = [Wanted((4,), torch.float32)]
SECRET = "98765.25"


def save(path: Path, *plain: np.ndarray, **arrays: np.ndarray) -> Path:
    np.save(path, *plain) if path.suffix == ".npy" else np.savez(path, *plain, **arrays)
    return path


def test_arrays(tmp_path: Path, joined) -> None:
    x, y = np.arange(12, dtype=np.uint8).reshape(3, 2, 2), np.array([[1], [2], [3]])
    rows = open_rows(save(tmp_path / "x.npy", x), [Wanted((1, 2, 2), torch.float32)], Choice(divide_by=2), 2)
    assert rows.count == 3 and torch.equal(joined(rows), torch.from_numpy(x).reshape(3, 1, 2, 2) / 2) and not rows.notes
    path, wanted = (
        save(tmp_path / "x.npz", x=x, y=y, z=np.zeros(7)),
        [Wanted((1,), torch.int64), Wanted((4,), torch.float32)],
    )
    rows = open_rows(path, wanted, Choice(arrays=("y", "x")), 2)
    ((first, second),) = rows.read([1])
    assert first.tolist() == [[3]] and second.tolist() == x.reshape(3, 4)[2:].tolist()


SHAPES = [
    ((3, 8, 8), (3, 8, 8), ""), ((8, 8, 3), (3, 8, 8), "no"), ((8, 3, 8), (3, 8, 8), "no"), ((192,), (3, 8, 8), "told"),
    ((3, 8, 8), (192,), "told"), ((8, 24), (3, 8, 8), "no"), ((24, 8), (192,), "told"), ((8, 8), (1, 8, 8), ""),
    ((1, 8, 8), (8, 8), ""), ((8, 8, 1), (1, 8, 8), "no"), ((4, 2), (2, 4), "no"), ((8,), (8, 1), ""), ((1, 8), (8, 1), "no"),
    ((), (1,), ""), ((1,), (), ""), ((5,), (4,), "no"), ((2, 2, 2), (2, 4), "no"),
]  # fmt: skip


@pytest.mark.parametrize("given, wanted, outcome", SHAPES, ids=str)
def test_axes_are_those_of_the_input_or_flattened_in_order(tmp_path: Path, joined, given, wanted, outcome: str) -> None:
    array = np.arange(4 * np.prod(given, dtype=int), dtype=np.float32).reshape(4, *given)
    path = save(tmp_path / "x.npy", array)
    open_it = lambda: open_rows(path, [Wanted(wanted, torch.float32)], Choice(), 4)
    if outcome == "no":
        with pytest.raises(InputError, match="rows of shape .* for an input of"):
            open_it()
        return
    rows = open_it()
    assert torch.equal(joined(rows), torch.from_numpy(array).reshape(4, *wanted))
    assert bool(rows.notes) == (outcome == "told")


ORDERS = {
    "Fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "big-endian": np.arange(24.0).reshape(2, 3, 4).astype(">f4"),
    "half": np.arange(24.0).reshape(2, 3, 4).astype(np.float16),
    "booleans": np.arange(24).reshape(2, 3, 4) % 2 == 0,
    "large unsigned": np.arange(24, dtype=np.uint64).reshape(2, 3, 4),
    "transposed": np.arange(24.0).reshape(4, 3, 2).T,
}


@pytest.mark.parametrize("kind", ORDERS)
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_how_numbers_lie_in_the_file_does_not_matter(tmp_path: Path, joined, kind: str, name: str) -> None:
    rows = open_rows(save(tmp_path / name, ORDERS[kind]), [Wanted((3, 4), torch.float32)], Choice(), 1)
    assert torch.equal(joined(rows), torch.from_numpy(ORDERS[kind].astype(np.float32)))


BAD = {
    "which": ({"x": np.zeros((2, 4)), "y": np.zeros((2, 4))}, (), "2 arrays for 1 inputs"),
    "missing": ({"x": np.zeros((2, 4))}, ("y",), "there is no array y"),
    "twice": ({"x": np.zeros((2, 4))}, ("x", "x"), "twice: x"),
    "shape": ({"x": np.zeros((2, 5))}, (), "array x"),
    "no axis": ({"x": np.zeros(())}, (), "array without axes"),
    "kind": ({"x": np.array([["98765.25"] * 4])}, (), "numbers for an input"),
    "complex": ({"x": np.zeros((2, 4), complex)}, (), "complex128"),
    "long": ({"x": np.zeros((2, 4), np.longdouble)}, (), "longdouble|float128"),
    "dates": ({"x": np.zeros((2, 4), "datetime64[s]")}, (), "datetime64"),
    "raw": ({"x": np.zeros((2, 4), "V2")}, (), "V2.*\n.*\n.*bfloat16"),
    "fields": ({"x": np.zeros((2, 4), [("a", "f4")])}, (), "numbers for an input"),
    "infinite": ({"x": np.full((5000, 4), np.inf)}, (), r"not finite.*\n.*array x, index \[0, 0\]"),
    "one not a number": ({"x": np.where(np.arange(20).reshape(5, 4) == 14, np.nan, 1)}, (), r"index \[3, 2\]"),
    "too large": ({"x": np.array([[1, 2, 1e39, 4]])}, (), r"too large for torch.float32\n.*index \[0, 2\]"),
    "beyond 2^53": ({"x": np.array([[1, 2, 2**53 + 1, 4]])}, (), r"beyond 2\^53.*\n.*index \[0, 2\]"),
    "far beyond": ({"x": np.array([[1, 2, 2**64 - 1, 4]], np.uint64)}, (), r"beyond 2\^53.*\n.*index \[0, 2\]"),
    "objects": ({"x": np.array([[None] * 4])}, (), "not a file of NumPy arrays.*\n.*\n.*Python objects"),
    "no rows": ({"x": np.zeros((0, 4))}, (), "no rows"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_arrays_that_do_not_fit(tmp_path: Path, kind: str, name: str) -> None:
    arrays, names, says = BAD[kind]
    if name == "x.npy" and (names or len(arrays) > 1):
        return
    path = save(tmp_path / name, arrays["x"]) if name == "x.npy" else save(tmp_path / name, **arrays)
    with pytest.raises(InputError, match=says) as caught:
        open_rows(path, FOUR, Choice(arrays=names), 2)
    assert SECRET not in str(caught.value) and "→" in str(caught.value)


@pytest.mark.parametrize("value, dtype", [(2**63, np.uint64), (-1, np.int8), (2, np.int64)])
def test_whole_numbers_without_room_are_refused_and_not_wrapped(tmp_path: Path, value: int, dtype) -> None:
    wanted = {2**63: torch.int64, -1: torch.uint8, 2: torch.bool}[value]
    path = save(tmp_path / "x.npy", np.array([[1], [value]], dtype))
    with pytest.raises(InputError, match=r"whole number is not from .*\n.*index \[1, 0\]"):
        open_rows(path, [Wanted((1,), wanted)], Choice(), 2)


def test_real_numbers_are_no_whole_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="float64 numbers for an input of torch.int64"):
        open_rows(save(tmp_path / "x.npy", np.zeros((2, 1))), [Wanted((1,), torch.int64)], Choice(), 2)
    with pytest.raises(InputError, match="whole numbers would be rounded"):
        open_rows(save(tmp_path / "y.npy", np.zeros((2, 1), int)), [Wanted((1,), torch.int64)], Choice(divide_by=2), 2)


def test_which_array_is_which_input_is_not_guessed(tmp_path: Path) -> None:
    age, dose = np.full((2, 4), 1.0), np.full((2, 4), 2.0)
    path = save(tmp_path / "x.npz", dose=dose, age=age)
    with pytest.raises(InputError, match="not clear which .*\n.*\n.*--arrays dose,age"):
        open_rows(path, FOUR * 2, Choice(), 2)
    ((first, second),) = open_rows(path, FOUR * 2, Choice(arrays=("age", "dose")), 2).read([0])
    assert first[0, 0] == 1 and second[0, 0] == 2
    plain = save(tmp_path / "y.npz", *[np.full((2, 4), float(i)) for i in range(11)])
    ((made),) = open_rows(plain, FOUR * 11, Choice(), 2).read([0])
    assert [int(x[0, 0]) for x in made] == list(range(11)), "without names they have an order"


def test_arrays_of_different_lengths(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", x=np.zeros((2, 4)), y=np.zeros((3, 4)))
    with pytest.raises(InputError, match="different numbers of rows: x 2, y 3"):
        open_rows(path, FOUR * 2, Choice(arrays=("x", "y")), 2)


def test_an_array_twice_in_an_archive(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npz", x=np.zeros((2, 4)))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x.npy", archive.read("x.npy"))
    with pytest.raises(InputError, match="twice: x"):
        open_rows(path, FOUR, Choice(), 2)


def test_ids_of_arrays(tmp_path: Path) -> None:
    path = save(
        tmp_path / "x.npz",
        x=np.zeros((3, 4)),
        who=np.array(["007", "008", "009"]),
        number=np.array([7, 8, 2**63], np.uint64),
    )
    rows = open_rows(path, FOUR, Choice(arrays=("x",), id="who"), 2)
    assert list(rows.names()) == ["007", "008", "009"] and rows.id_name == "who"
    assert list(open_rows(path, FOUR, Choice(arrays=("x",), id="number"), 2).names()) == [
        "7",
        "8",
        "9223372036854775808",
    ]
    twice = save(tmp_path / "y.npz", x=np.zeros((3, 4)), who=np.array([7, 8, 7]))
    with pytest.raises(InputError, match=r"the same id\n.*row 1; and .*row 3\n"):
        open_rows(twice, FOUR, Choice(id="who"), 2)
    with pytest.raises(InputError, match="ids are texts or whole numbers"):
        open_rows(path, FOUR, Choice(arrays=("x",), id="x"), 2)
    with pytest.raises(InputError, match="a single array"):
        open_rows(save(tmp_path / "x.npy", np.zeros((2, 4))), FOUR, Choice(id="who"), 2)


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
@pytest.mark.parametrize("content", [b"\x80\x04K*.", b"", b"\x93NUMPY", b"PK\x03\x04"], ids=repr)
def test_files_that_are_no_arrays(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="not a file of NumPy arrays"):
        open_rows(tmp_path / name, FOUR, Choice(), 2)


def test_what_follows_an_array_in_its_file_is_not_left_out(tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file:
        np.save(file, np.zeros((2, 4)))
        np.save(file, np.ones((2, 4)))
    with pytest.raises(InputError, match="more in the file than its array"):
        open_rows(tmp_path / "x.npy", FOUR, Choice(), 2)


@pytest.mark.parametrize("name", ["x.npz", "x.npy"])
def test_files_that_are_cut_off(tmp_path: Path, name: str) -> None:
    path = save(tmp_path / name, np.zeros((100, 4)))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(InputError, match="not a file of NumPy arrays"):
        open_rows(path, FOUR, Choice(), 2)


def test_digests_know_contents_types_and_choices(tmp_path: Path) -> None:
    x = np.arange(8.0).reshape(2, 4)
    digest = lambda array, **choice: open_rows(save(tmp_path / "x.npy", array), FOUR, Choice(**choice), 2).digests
    made = [digest(x), digest(x.astype(np.float32)), digest(x + 1), digest(x, divide_by=2)]
    assert made[0] == made[1] and len(set(made)) == 3


@pytest.mark.parametrize("error", [RuntimeError, TypeError, MemoryError, SyntaxError, zlib.error])
def test_whatever_a_decoder_raises_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error
) -> None:
    def load(*args, **options):
        raise error(SECRET)

    path = save(tmp_path / "x.npy", np.zeros((2, 4)))
    monkeypatch.setattr(np, "load", load)
    with pytest.raises(InputError, match="not a file of NumPy arrays") as caught:
        open_rows(path, FOUR, Choice(), 2)
    assert SECRET not in str(caught.value)
