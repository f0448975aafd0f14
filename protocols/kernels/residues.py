"""Products of many large residues at once: eight at a time with AVX-512 IFMA, else one by one, on all cores.

Residues are rows of a uint64 array, in a form only these kernels read. Where `lanes()` is 0 they were not built and
there is no such array; `protocols.paillier.residues` then computes the same with GMP's integers, which is what tests
compare with.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from protocols.kernels.cpu import build

DIGIT_BITS = 52
_MOST_DIGITS = 1000


@dataclass(frozen=True, repr=False)
class ResidueModulus:
    """An odd number to compute modulo, and what the kernels need to know about it."""

    bytes: int
    digits: np.ndarray
    square: np.ndarray
    factor: int

    @property
    def width(self) -> int:
        """Words of one residue."""
        return len(self.digits)


def lanes() -> int:
    """How many products these kernels compute in the time of one, or 0 where they were not built."""
    return _native().residue_lanes() if hasattr(_native(), "residue_lanes") else 0


def _native() -> Any:
    return build.module


def residue_modulus(value: int) -> ResidueModulus:
    """Prepares computing modulo `value`; ValueError unless it is odd and above 1."""
    if value < 3 or value % 2 == 0:
        raise ValueError("residue_modulus: the modulus must be odd and above 1")
    width = -(-(value.bit_length() + 2) // DIGIT_BITS)
    width += width % 2
    if width > _MOST_DIGITS:
        raise ValueError(f"residue_modulus: {value.bit_length()} bits are too many")
    square = pow(2, 2 * DIGIT_BITS * width, value)
    factor = -pow(value, -1, 1 << DIGIT_BITS) % (1 << DIGIT_BITS)
    return ResidueModulus(-(-value.bit_length() // 8), _digits(value, width), _digits(square, width), factor)


def _digits(value: int, width: int) -> np.ndarray:
    mask = (1 << DIGIT_BITS) - 1
    return np.array([value >> DIGIT_BITS * j & mask for j in range(width)], dtype=np.uint64)


def residues_enter(numbers: bytes, modulus: ResidueModulus) -> np.ndarray:
    """uint64[N, width] from N numbers below the modulus, each `modulus.bytes` bytes, little-endian."""
    count, rest = divmod(len(numbers), modulus.bytes)
    if rest:
        raise ValueError(f"residues_enter: {len(numbers)} bytes are no multiple of {modulus.bytes}")
    out = np.empty((count, modulus.width), np.uint64)
    given = np.frombuffer(numbers, np.uint8)
    _native().residues_enter(out.ctypes.data, given.ctypes.data, count, modulus.bytes, *_arguments(modulus))
    return out


def residues_leave(residues: np.ndarray, modulus: ResidueModulus) -> bytes:
    """The numbers residues uint64[N, width] stand for, each `modulus.bytes` bytes, little-endian."""
    residues = _checked(residues, modulus)
    out = np.empty(len(residues) * modulus.bytes, np.uint8)
    _native().residues_leave(
        out.ctypes.data, residues.ctypes.data, len(residues), modulus.bytes, *_arguments(modulus)
    )  # fmt: skip
    return out.tobytes()


def residue_products(table: np.ndarray, index: np.ndarray, squarings: int, modulus: ResidueModulus) -> np.ndarray:
    """uint64[K, width]: for each k a product of rows of a table, squared `squarings` times between levels.

    table: uint64[R, width] whose row 0 is one; index: int32[K, levels, T] below R. With acc = 1 at the start, each
    level computes acc = acc^(2^squarings) * prod over t of table[index[k, level, t]]. What is multiplied depends on
    shapes alone. Raises ValueError for an index outside the table or other shapes.
    """
    table = _checked(table, modulus)
    index = np.ascontiguousarray(index, dtype=np.int32)
    if index.ndim != 3 or (index.size and not 0 <= index.min() <= index.max() < len(table)):
        raise ValueError(f"residue_products: index {index.shape} must have 3 axes and stay below {len(table)}")
    count, levels, terms = index.shape
    out = np.empty((count, modulus.width), np.uint64)
    _native().residue_products(
        out.ctypes.data, table.ctypes.data, index.ctypes.data, count, levels, terms, squarings, *_arguments(modulus)
    )
    return out


def _checked(residues: np.ndarray, modulus: ResidueModulus) -> np.ndarray:
    if residues.dtype != np.uint64 or residues.ndim != 2 or residues.shape[1] != modulus.width:
        raise ValueError(f"residues must be uint64[*, {modulus.width}], not {residues.dtype}{list(residues.shape)}")
    return np.ascontiguousarray(residues)


def _arguments(modulus: ResidueModulus) -> tuple[int, int, int, int, int]:
    digits, square = modulus.digits.ctypes.data, modulus.square.ctypes.data
    return digits, square, modulus.factor, modulus.width, torch.get_num_threads()
