"""Rows of a party's inputs out of files: tables in CSV, arrays of NumPy, folders of images."""

from __future__ import annotations

import csv
import hashlib
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from protocols.errors import InputError, explain

IMAGES = (".jpeg", ".jpg", ".png")
_CHUNK = 1 << 20
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Wanted:
    """What one row of an input looks like."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Choice:
    """Which part of a file is meant: columns of a table or arrays of an archive, and what to divide numbers by."""

    columns: tuple[str, ...] = ()
    arrays: tuple[str, ...] = ()
    divide_by: float = 1.0


@dataclass(frozen=True)
class Rows:
    """A file that was looked through: `read(first row, rows per batch)` yields this party's inputs, batch by batch.

    `digest` tells files, and choices out of them, apart; `names` has a name for each row, where the file has them.
    """

    count: int
    digest: str = field(repr=False)
    read: Callable[[int, int], Iterator[list[torch.Tensor]]] = field(repr=False)
    names: tuple[str, ...] = field(default=(), repr=False)


def open_rows(path: Path, wanted: Sequence[Wanted], choice: Choice) -> Rows:
    """Looks a file through for these inputs. Raises InputError, which names places and no contents."""
    if path.is_dir():
        made = _images(path, wanted, choice)
    elif path.suffix == ".csv":
        made = _csv(path, wanted, choice)
    elif path.suffix in (".npy", ".npz"):
        made = _arrays(path, wanted, choice)
    else:
        raise InputError(explain("not a kind of file that rows can be read from", where=str(path),
                                 fix="give a .csv, .npy or .npz file, or a folder of images"))  # fmt: skip
    if not made.count:
        raise InputError(explain("there are no rows", where=str(path), fix="give a file with at least one row"))
    return made


def _digest(files: Sequence[Path], choice: Choice) -> str:
    digest = hashlib.sha256(repr(choice).encode())
    for path in files:
        name = path.name if len(files) > 1 else ""  # a single file may be renamed, those of a folder may not
        digest.update(f"{name} {path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _refused(what: str, path: Path, where: str = "", fix: str = "") -> InputError:
    return InputError(explain(what, where=f"{path}{where}", fix=fix))


# ---- tables
def _csv(path: Path, wanted: Sequence[Wanted], choice: Choice) -> Rows:
    """Each line fills this party's inputs, one after the other."""
    if choice.arrays:
        raise _refused("a CSV file has columns, no arrays", path, fix="choose with --columns")
    first, cells = next(_lines(path), (0, []))
    indices, size = _columns(path, cells, choice.columns), sum(w.size for w in wanted)
    if len(indices) != size:
        raise _refused(
            f"{len(indices)} columns for inputs of {size} numbers a row", path, fix="choose the columns with --columns"
        )
    whole = [not w.dtype.is_floating_point for w in wanted for _ in range(w.size)]
    header = not all(index < len(cells) and _is_number(cells[index]) for index in indices)

    def lines() -> Iterator[list[float]]:
        for number, line in _lines(path):
            if not header or number != first:
                yield [_number(line, i, w, path, number) for i, w in zip(indices, whole, strict=True)]

    def read(start: int, size: int) -> Iterator[list[torch.Tensor]]:
        source = islice(lines(), start, None)
        while batch := list(islice(source, size)):
            yield _split(batch, wanted, choice.divide_by)

    return Rows(sum(1 for _ in lines()), _digest([path], choice), read)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and cells of lines that are not empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            for line in reader:
                if any(cell.strip() for cell in line):
                    yield reader.line_num, line
    except (UnicodeDecodeError, csv.Error) as error:
        raise _refused(f"not a CSV file in UTF-8: {type(error).__name__}", path) from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _columns(path: Path, cells: Sequence[str], chosen: Sequence[str]) -> list[int]:
    """Positions of the chosen columns, which are counted from 1 or named by the first line."""
    if all(name.isdecimal() and name != "0" for name in chosen):
        return [int(name) - 1 for name in chosen] or list(range(len(cells)))
    names = [cell.strip() for cell in cells]
    missing = [name for name in chosen if names.count(name) != 1]
    if missing:
        fix = "correct --columns; without a line of names, count the columns from 1: --columns 1,3,4"
        raise _refused(f"the first line does not name {', '.join(missing)} exactly once", path, fix=fix)
    return [names.index(name) for name in chosen]


def _number(line: Sequence[str], index: int, whole: bool, path: Path, number: int) -> float:
    try:
        value = int(line[index]) if whole else float(line[index])
        if math.isfinite(value):
            return value
    except (ValueError, IndexError):
        pass
    kind = "whole number" if whole else "finite number"
    raise _refused(
        f"there is no {kind}", path, f", line {number}, column {index + 1}", "correct the file, or leave it out"
    )


def _split(batch: list[list[float]], wanted: Sequence[Wanted], divide_by: float) -> list[torch.Tensor]:
    made, at = [], 0
    for w in wanted:
        dtype = torch.float64 if w.dtype.is_floating_point else torch.int64
        part = torch.tensor([line[at : at + w.size] for line in batch], dtype=dtype)
        made.append(_as_wanted(part, w, divide_by))
        at += w.size
    return made


def _as_wanted(part: torch.Tensor, w: Wanted, divide_by: float) -> torch.Tensor:
    part = part.reshape(part.shape[0], *w.shape)
    return (part / divide_by).to(w.dtype) if divide_by != 1 else part.to(w.dtype)


# ---- arrays
def _arrays(path: Path, wanted: Sequence[Wanted], choice: Choice) -> Rows:
    """One array for each of this party's inputs; the first axis of each is the rows."""
    if choice.columns:
        raise _refused("arrays have no columns to choose", path, fix="choose arrays of an NPZ file with --arrays")
    arrays = _chosen(path, _load(path), len(wanted), choice.arrays)
    for (name, array), w in zip(arrays.items(), wanted, strict=True):
        where, kinds = f", array {name}", "fiub" if w.dtype.is_floating_point else "iub"
        if array.dtype.kind not in kinds:
            raise _refused(f"{array.dtype} numbers for an input of {w.dtype}", path, where)
        if array.ndim == 0 or math.prod(array.shape[1:]) != w.size:
            raise _refused(f"rows of shape {list(array.shape[1:])} for an input of {list(w.shape)}", path, where)
        for start in range(0, len(array), _ROWS_AT_ONCE):
            if not np.isfinite(array[start : start + _ROWS_AT_ONCE]).all():
                raise _refused("there are numbers that are not finite", path, where)
    counts = {name: len(array) for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise _refused(f"different numbers of rows: {said}", path, fix="row by row, the arrays belong together")

    def read(start: int, size: int) -> Iterator[list[torch.Tensor]]:
        for at in range(start, len(next(iter(arrays.values()))), size):
            parts = [torch.from_numpy(np.array(array[at : at + size])) for array in arrays.values()]
            yield [_as_wanted(part, w, choice.divide_by) for part, w in zip(parts, wanted, strict=True)]

    return Rows(next(iter(counts.values())), _digest([path], choice), read)


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        loaded = np.load(path, mmap_mode="r" if path.suffix == ".npy" else None, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return {path.stem: loaded}
        with loaded:
            return {name: loaded[name] for name in loaded.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise _refused(f"not a file of NumPy arrays: {type(error).__name__}", path) from None


def _chosen(path: Path, found: dict[str, np.ndarray], count: int, names: Sequence[str]) -> dict[str, np.ndarray]:
    names = names or tuple(found)
    missing = [name for name in names if name not in found]
    if missing or len(names) != count:
        what = f"there is no array {', '.join(missing)}" if missing else f"{len(names)} arrays for {count} inputs"
        raise _refused(what, path, fix=f"choose with --arrays; there are {', '.join(found) or 'none'}")
    return {name: found[name] for name in names}


# ---- images
def _images(path: Path, wanted: Sequence[Wanted], choice: Choice) -> Rows:
    """The images of a folder by name: gray or RGB as the input has channels, resized to it, from 0 to 1."""
    if choice != Choice():
        raise _refused("images take no --columns, --arrays or --divide-by", path, fix="they are read as 0 to 1")
    try:
        from PIL import Image
    except ImportError:
        raise _refused("reading images needs Pillow", path, fix="pip install pillow") from None
    shape = wanted[0].shape if len(wanted) == 1 else ()
    channels = shape[0] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3) or not wanted[0].dtype.is_floating_point:
        raise _refused(f"an image cannot be an input of {list(shape)}", path,
                       fix="images fit [1, height, width], [3, height, width] and [height, width]")  # fmt: skip
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGES)

    def pixels(file: Path) -> torch.Tensor:
        try:
            with Image.open(file) as image:
                image = image.convert("RGB" if channels == 3 else "L")
                if image.size != (shape[-1], shape[-2]):
                    image = image.resize((shape[-1], shape[-2]), Image.Resampling.BILINEAR)
                array = np.asarray(image, dtype=np.float32) / 255
        except (OSError, ValueError, Image.DecompressionBombError) as error:
            raise _refused(f"not an image that can be read: {type(error).__name__}", file) from None
        return torch.from_numpy(array if array.ndim == 2 else array.transpose(2, 0, 1).copy()).reshape(shape)

    def read(start: int, size: int) -> Iterator[list[torch.Tensor]]:
        for at in range(start, len(files), size):
            yield [torch.stack([pixels(file) for file in files[at : at + size]]).to(wanted[0].dtype)]

    return Rows(len(files), _digest(files, choice), read, tuple(file.name for file in files))
