"""Arrays of NumPy as inputs: one for each input, whose first axis is the rows."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from protocols.errors import InputError, SecureModelError, explain
from protocols.files import file_errors
from securemodel.files.batches import Batch, Choice, Problems, Wanted, as_input, check_division


def open_arrays(path: Path, wanted: Sequence[Wanted], choice: Choice) -> Arrays:
    """Raises InputError for arrays that do not fit, FileError."""
    if choice.columns:
        raise _refused("arrays have no columns to choose", path, fix="choose arrays of an NPZ file with --arrays")
    check_division(wanted, choice.divide_by, path)
    arrays, ids = _load(path, len(wanted), choice)
    notes = [_fit(path, name, array, w) for (name, array), w in zip(arrays.items(), wanted, strict=True)]
    counts = {name: len(array) for name, array in [*arrays.items(), *([(choice.id, ids)] if ids is not None else [])]}
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise _refused(f"different numbers of rows: {said}", path, fix="row by row, the arrays belong together")
    return Arrays(path, arrays, ids, wanted, choice, tuple(filter(None, notes)))


class Arrays:
    """Arrays as a source of rows."""

    def __init__(
        self, path: Path, arrays: dict[str, np.ndarray], ids: np.ndarray | None, wanted: Sequence[Wanted], choice: Choice,
        notes: tuple[str, ...],
    ) -> None:  # fmt: skip
        self._path, self._arrays, self._ids = path, arrays, ids
        self._wanted, self._divide_by = tuple(wanted), choice.divide_by
        self.id_name, self.notes = choice.id, notes

    def batches(
        self, size: int, problems: Problems, chosen: Container[int] | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """See Source."""
        for index, start in enumerate(range(0, len(next(iter(self._arrays.values()))), size)):
            if chosen is None or index in chosen:
                yield index, self._batch(start, size, problems)

    def names(self) -> Iterator[str]:
        """See Source."""
        return map(str, cast(np.ndarray, self._ids))

    def _batch(self, start: int, size: int, problems: Problems) -> Batch:
        names, sizes = list(self._arrays), [w.size for w in self._wanted]

        def place(row: int, element: int | None) -> str:
            if element is None:
                return f"{self._path}, row {start + row + 1}"
            which = 0
            while element >= sizes[which]:
                element, which = element - sizes[which], which + 1
            array = self._arrays[names[which]]
            at = np.unravel_index(element, array.shape[1:]) if array.ndim > 1 else ()
            return f"{self._path}, array {names[which]}, index [{', '.join(map(str, (start + row, *map(int, at))))}]"

        made, before = [], 0
        for array, w in zip(self._arrays.values(), self._wanted, strict=True):
            tensor, bad, what = as_input(np.asarray(array[start : start + size]), w, self._divide_by)
            if bad is not None:
                problems.add(what, place(bad // w.size, before + bad % w.size))
            made.append(tensor)
            before += w.size
        ids = [] if self._ids is None else [str(name) for name in self._ids[start : start + size]]
        for row, name in enumerate(ids):
            if not name.strip() or not name.isprintable():
                problems.add("there is no id that can be printed", place(row, None))
        return Batch(made, place, ids)


def _fit(path: Path, name: str, array: np.ndarray, w: Wanted) -> str:
    """What to tell about an array that fits an input otherwise than axis by axis. Raises InputError for one that does not."""
    where, kinds = f", array {name}", "fiub" if w.dtype.is_floating_point else "iub"
    _check_type(path, name, array, kinds, f"an input of {w.dtype}")
    if array.ndim == 0:
        raise _refused("an array without axes has no rows", path, where, "the first axis is the rows")
    rows, long = array.shape[1:], [n for n in array.shape[1:] if n != 1]
    if rows == w.shape or (len(rows) != len(w.shape) and long == [n for n in w.shape if n != 1]):
        return ""
    if math.prod(rows) == w.size and (len(w.shape) == 1 or len(rows) == 1) and len(rows) != len(w.shape):
        return (
            f"{path}{where}: rows of shape {list(rows)} fill the input of {list(w.shape)} in order, the last axis first"
        )
    fix = f"bring the axes into the order of the input, as with numpy.transpose; it takes [rows, {', '.join(map(str, w.shape))}]"
    raise _refused(f"rows of shape {list(rows)} for an input of {list(w.shape)}", path, where, fix)


def _check_type(path: Path, name: str, array: np.ndarray, kinds: str, wanted: str) -> None:
    if array.dtype.kind not in kinds or array.dtype.itemsize > 8:
        fix = "save the array with a type that fits: real numbers as float32 or float64"
        if array.dtype.kind == "V":
            fix = "bfloat16 and other types that NumPy does not have are saved as float32"
        raise _refused(f"{array.dtype} numbers for {wanted}", path, f", array {name}", fix)


def load_numbers(path: Path) -> list[np.ndarray]:
    """All arrays of a file, which are the inputs of a program in order. Raises InputError, FileError."""
    arrays, _ = _load(path, None, Choice())
    for name, array in arrays.items():
        _check_type(path, name, array, "fiub", "numbers")
    return [array.astype(array.dtype.newbyteorder("=")) for array in arrays.values()]


def _load(path: Path, count: int | None, choice: Choice) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """The arrays for the inputs in order (as many as there are, for None), and the one of ids."""
    try:
        with file_errors(path):
            loaded = np.load(path, mmap_mode="r", allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                if choice.id or choice.arrays:
                    raise _refused(
                        "a NPY file has a single array", path, fix="leave out --id and --arrays, or give an NPZ file"
                    )
                if isinstance(loaded, np.memmap) and loaded.offset + loaded.nbytes != path.stat().st_size:
                    raise _refused(
                        "there is more in the file than its array", path, fix="save each array in a file of its own"
                    )
                return {path.stem: loaded}, None
            with loaded:
                names = _names(path, loaded.files, count, choice)
                return {name: loaded[name] for name in names}, _ids(path, loaded[choice.id]) if choice.id else None
    except SecureModelError:
        raise
    except Exception as error:  # of a damaged file, NumPy and what it uses raise whatever they meet
        fix = "save plain arrays with numpy.save or numpy.savez; arrays of Python objects are not read"
        raise _refused(f"not a file of NumPy arrays: {type(error).__name__}", path, fix=fix) from None


def _names(path: Path, found: list[str], count: int | None, choice: Choice) -> list[str]:
    """Which arrays are the inputs: those that were named, all where there is one choice, or arr_0, arr_1, ... in order."""
    there = f"; there are {', '.join(found) or 'none'}"
    missing = [name for name in (*choice.arrays, *([choice.id] if choice.id else [])) if name not in found]
    if missing:
        raise _refused(f"there is no array {', '.join(missing)}", path, fix=f"choose with --arrays and --id{there}")
    twice = sorted({name for name in [*found, *choice.arrays] if max(found.count(name), choice.arrays.count(name)) > 1})
    if twice:
        raise _refused(
            f"an array is there, or asked for, twice: {', '.join(twice)}", path, fix=f"choose with --arrays{there}"
        )
    names = list(choice.arrays) or [name for name in found if name != choice.id]
    if count is not None and len(names) != count:
        raise _refused(f"{len(names)} arrays for {count} inputs", path, fix=f"choose with --arrays{there}")
    if len(names) > 1 and not choice.arrays:
        if not all(re.fullmatch("arr_[0-9]+", name) for name in names):
            fix = "save them in the order of the inputs and without names, as numpy.savez(file, a, b) does"
            raise _refused(f"it is not clear which of the arrays is which of the {len(names)} inputs", path,
                           fix=fix if count is None else f"name them in that order: --arrays {','.join(names)}")  # fmt: skip
        names.sort(key=lambda name: int(name[len("arr_") :]))
    return names


def _ids(path: Path, array: np.ndarray) -> np.ndarray:
    if array.ndim != 1 or array.dtype.kind not in "Uiu":
        raise _refused(f"ids are texts or whole numbers, one a row, not {array.dtype} of shape {list(array.shape)}", path,
                       fix="save them as one array of text")  # fmt: skip
    return array


def _refused(what: str, path: Path, where: str = "", fix: str = "") -> InputError:
    return InputError(explain(what, where=f"{path}{where}", fix=fix))
