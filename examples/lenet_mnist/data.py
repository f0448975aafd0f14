"""Reads MNIST from an .npz file or from its original files, and splits it into training and held-out images.

An .npz file has two arrays: `images`, uint8 [N, 28, 28], 0 = paper and 255 = ink, and `labels`, uint8 [N], 0 to 9.
It has no split of its own, so a part of it is held out. A folder has the four original files (gzipped or not), whose
10,000 test images are the held-out ones.
"""

from __future__ import annotations

import gzip
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HELD_OUT_OF_NPZ = 1000
IDX_FILES = {"train": ("train-images", "train-labels"), "test": ("t10k-images", "t10k-labels")}


@dataclass(frozen=True)
class Digits:
    """Images, uint8 [N, 28, 28], and which digit each one shows, uint8 [N]."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: np.ndarray) -> Digits:
        return Digits(self.images[indices], self.labels[indices])


def load(path: Path, rng: np.random.Generator) -> tuple[Digits, Digits]:
    """Training and held-out images, each in random order. Raises ValueError for anything that is not MNIST."""
    if path.is_dir():
        train, held_out = (_checked(_from_idx(path, part), path) for part in ("train", "test"))
        return train.take(rng.permutation(len(train))), held_out.take(rng.permutation(len(held_out)))
    everything = _checked(_from_npz(path), path)
    if len(everything) < 2 * HELD_OUT_OF_NPZ:
        raise ValueError(
            f"{path} has {len(everything)} images, and {HELD_OUT_OF_NPZ} are held out for testing: "
            "give a file with at least twice that many"
        )
    order = rng.permutation(len(everything))
    return everything.take(order[HELD_OUT_OF_NPZ:]), everything.take(order[:HELD_OUT_OF_NPZ])


def _from_npz(path: Path) -> Digits:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is neither an .npz file nor a folder")
    with np.load(path, allow_pickle=False) as file:
        missing = {"images", "labels"} - set(file.files)
        if missing:
            raise ValueError(f"{path} lacks the array {min(missing)!r}; it has {', '.join(file.files) or 'none'}")
        return Digits(file["images"], file["labels"])


def _from_idx(folder: Path, part: str) -> Digits:
    images, labels = (_read_idx(_find(folder, stem)) for stem in IDX_FILES[part])
    return Digits(images, labels)


def _find(folder: Path, stem: str) -> Path:
    """The file of this name; it is spelled with '-idx' or '.idx' and may be compressed."""
    candidates = sorted(folder.glob(f"{stem}[-.]idx[13]-ubyte*"))
    found = [path for path in candidates if path.name.endswith(("-ubyte", "-ubyte.gz"))]
    if not found:
        raise ValueError(f"{folder} has no file {stem}-idx…-ubyte or {stem}-idx…-ubyte.gz; it needs MNIST's four files")
    return found[0]


def _read_idx(path: Path) -> np.ndarray:
    """An array in MNIST's own format: two zero bytes, type 8 (uint8), number of axes, big-endian sizes, the bytes."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    axes = raw[3] if len(raw) >= 4 and raw[:3] == b"\0\0\x08" else 0
    shape = tuple(int(size) for size in np.frombuffer(raw[4 : 4 + 4 * axes], dtype=">u4"))
    content = raw[4 + 4 * axes :]
    if axes == 0 or len(shape) != axes or len(content) != int(np.prod(shape)):
        raise ValueError(f"{path} is not an idx file of bytes, or is cut short")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _checked(digits: Digits, path: Path) -> Digits:
    images, labels = digits.images, digits.labels
    if images.dtype != np.uint8 or images.ndim != 3 or images.shape[1:] != (28, 28):
        raise ValueError(f"{path}: the images are {images.dtype} {list(images.shape)}; they must be uint8 [N, 28, 28]")
    if labels.shape != images.shape[:1] or len(labels) == 0 or labels.min() < 0 or labels.max() > 9:
        raise ValueError(f"{path}: the labels must be [{len(images)}] numbers from 0 to 9")
    return Digits(images, labels.astype(np.uint8))
