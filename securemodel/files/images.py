"""A folder of images as inputs: one file a row, in the order of the names, with values from 0 to 1.

An image is read as a viewer shows it (turned as its EXIF tag says), as gray or RGB with 8 bits, or gray with 16; another
size is resampled. What has no single meaning as such an input is refused by name: transparency, several pictures in a
file, CMYK, 16 bits a color. No file is left out without a word.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from protocols.errors import FileError, InputError, explain
from protocols.files import file_errors
from securemodel.files.batches import Batch, Choice, Problems, Wanted

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif")
FILE_NAME = "file_name"
_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF")
_MODES = ("1", "L", "P", "RGB", "LA", "PA", "RGBA", "YCbCr")
_PHOTOMETRIC, _SAMPLES = 262, 339  # of TIFF: 0 where white is 0; what a number is, 1 where it has no sign
_NAMED = 20


def open_images(path: Path, wanted: Sequence[Wanted], choice: Choice) -> Images:
    """Raises InputError where the input cannot be an image, FileError."""
    if choice.columns or choice.arrays or choice.divide_by != 1 or choice.id not in ("", FILE_NAME):
        fix = f"leave them out; images are read as 0 to 1, and their id is {FILE_NAME}"
        raise InputError(
            explain("images take no --columns, --arrays, --divide-by or other --id", where=str(path), fix=fix)
        )
    try:
        import PIL.Image  # noqa: F401
    except ImportError:
        raise InputError(explain("reading images needs Pillow", where=str(path), fix="pip install pillow")) from None
    shape = wanted[0].shape if len(wanted) == 1 else ()
    channels = shape[0] if len(shape) == 3 else 1
    if len(shape) not in (2, 3) or channels not in (1, 3) or not wanted[0].dtype.is_floating_point:
        raise InputError(explain(f"an image cannot be an input of {list(shape)}", where=str(path),
                                 fix="images fit [1, height, width], [3, height, width] and [height, width]"))  # fmt: skip
    with file_errors(path):
        found = sorted(path.iterdir())
    left_out: dict[str, list[str]] = {}
    files = []
    for file in found:
        reason = _left_out(file)
        left_out.setdefault(reason, []).append(_shown(file.name)) if reason else files.append(file)
    for file in files:
        if not file.name.isprintable():
            raise InputError(
                explain(f"a file name cannot be printed: {_shown(file.name)}", where=str(path), fix="rename it")
            )
    return Images(files, wanted[0], _notes(path, files, left_out))


def _left_out(file: Path) -> str:
    """Why a name in the folder is no row; "" for an image."""
    if file.is_symlink() and not file.exists():
        return "a link to nothing"
    if file.is_dir():
        return "a folder, which is not looked into"
    if not file.is_file():
        return "no ordinary file"
    if file.name.startswith("."):
        return "a hidden file"
    if file.suffix.lower() not in SUFFIXES:
        return f"not named like an image: {' '.join(SUFFIXES)}"
    return ""


def _shown(name: str) -> str:
    return name if name.isprintable() else ascii(name)


def _notes(path: Path, files: Sequence[Path], left_out: dict[str, list[str]]) -> tuple[str, ...]:
    names, notes = [file.name for file in files], []
    order = "in the order of their names, character by character"
    by_number = sorted(names, key=_natural)
    if by_number != names:
        first = next(i for i, (a, b) in enumerate(zip(names, by_number, strict=True)) if a != b)
        order += f": {names[first]} comes before {by_number[first]}"
    if names:
        notes.append(f"{path}: {len(names)} images, {order}")
    for reason, those in left_out.items():
        more = f" and {len(those) - _NAMED} more" if len(those) > _NAMED else ""
        notes.append(f"{path}: left out, {reason}: {', '.join(those[:_NAMED])}{more}")
    return tuple(notes)


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"([0-9]+)", name) if part]


class Images:
    """A folder as a source of rows, which are named by their files."""

    id_name = FILE_NAME

    def __init__(self, files: Sequence[Path], wanted: Wanted, notes: tuple[str, ...]) -> None:
        self._files, self._wanted, self.notes = tuple(files), wanted, notes

    def batches(
        self, size: int, problems: Problems, chosen: Container[int] | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """See Source."""
        for index, start in enumerate(range(0, len(self._files), size)):
            if chosen is None or index in chosen:
                files = self._files[start : start + size]
                rows = torch.stack([self._row(file, problems) for file in files]).to(self._wanted.dtype)
                place = lambda row, element, files=files: str(files[row])
                yield index, Batch([rows], place, [f.name for f in files])

    def names(self) -> Iterator[str]:
        """See Source."""
        return (file.name for file in self._files)

    def _row(self, file: Path, problems: Problems) -> torch.Tensor:
        try:
            return _pixels(file, self._wanted.shape)
        except _Unfit as error:
            problems.add(error.what, str(file), error.fix)
            return torch.zeros(self._wanted.shape)


class _Unfit(Exception):
    """An image that is not read: why, and what to do."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what, fix)
        self.what, self.fix = what, fix


def _pixels(file: Path, shape: tuple[int, ...]) -> torch.Tensor:
    """One image as [channels, height, width] or [height, width], from 0 to 1. Raises _Unfit, FileError."""
    from PIL import Image, ImageOps

    try:
        with file_errors(file), Image.open(file, formats=_FORMATS) as image:
            _check_kind(image)
            deep = image.mode.startswith("I")
            image = ImageOps.exif_transpose(image)
            if deep:
                array = np.asarray(image, dtype=np.float32) / 65535
                bands = [Image.fromarray(array)]
            else:
                bands = list(_opaque(image).convert("RGB" if shape[0] == 3 and len(shape) == 3 else "L").split())
            if image.size != (shape[-1], shape[-2]):
                bands = [band.resize((shape[-1], shape[-2]), Image.Resampling.BILINEAR) for band in bands]
            arrays = [np.asarray(band, dtype=np.float32) / (1 if deep else 255) for band in bands]
    except (FileError, _Unfit):
        raise
    except Exception as error:  # of a damaged file, decoders raise whatever they meet
        raise _Unfit(f"not an image that can be read: {type(error).__name__}", "mend or remove the file") from None
    made = torch.from_numpy(np.stack(arrays))
    return (
        made.expand(3, -1, -1).clone()
        if len(shape) == 3 and shape[0] == 3 and len(arrays) == 1
        else made.reshape(shape)
    )


def _check_kind(image: Any) -> None:
    """Raises _Unfit for an image that has no single meaning as gray or RGB."""
    raw = " ".join(str(tile[3]) for tile in image.tile)
    deep = image.mode.startswith("I;16") or (image.mode == "I" and "I;16" in raw)
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # those of a phone begin with the picture itself
        raise _Unfit(f"the file has {image.n_frames} pictures", "give each picture a file of its own")
    if not deep and image.mode not in _MODES:
        raise _Unfit(f"images of the mode {image.mode} are not read", "convert it to gray or RGB")
    if ";12" in raw:
        raise _Unfit("the image has 12 bits a color", "convert it to 8 bits a color; gray may have 16")
    if not deep and ";16" in raw:
        raise _Unfit("the image has 16 bits a color", "convert it to 8 bits a color; gray may have 16")
    if deep and "transparency" in image.info:
        raise _Unfit("the image is transparent in places", "lay it on a background")
    if image.format == "TIFF":
        if deep and image.tag_v2.get(_PHOTOMETRIC) == 0:
            raise _Unfit("in this TIFF white is 0", "convert it to one where black is 0")
        if set(image.tag_v2.get(_SAMPLES, (1,))) != {1}:
            raise _Unfit(
                "the numbers of this TIFF have a sign",
                "convert it to one where black is 0 and white the largest number",
            )


def _opaque(image: Any) -> Any:
    """The image without a transparency that hides nothing. Raises _Unfit for one that does."""
    if "transparency" in image.info or image.mode in ("LA", "PA", "RGBA"):
        image = image.convert("RGBA")
        if image.getchannel("A").getextrema()[0] < 255:
            raise _Unfit("the image is transparent in places", "lay it on a background")
    return image
