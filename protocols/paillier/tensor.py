"""Arrays of encrypted numbers with the manners of numpy.

All numbers of an array share one public scale (`frac_bits`) and one public bound on their magnitude. The bound grows
with each operation by what the operands' declared limits allow, whatever the values are, and an operation whose result
might not fit is refused before it begins. In a packed array each ciphertext holds several rows of axis 0 (the batch),
and every operation acts on all of them at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np

from protocols.errors import InputError, explain
from protocols.paillier import fixed
from protocols.paillier.cipher import Key, decrypt, encrypt, public, refreshing_factors, trivial
from protocols.paillier.keys import PrivateKey, PublicKey
from protocols.paillier.packing import Slots, slots_for, whole
from protocols.paillier.patches import Patches
from protocols.paillier.pool import BlindingPool
from protocols.paillier.powers import linear, power_each

FRAC_BITS = 16
LIMIT = 2.0**15


@dataclass(frozen=True, repr=False, eq=False)
class PaillierTensor:
    """Encrypted numbers. Made by `encrypt_array` and `wire.read`; never changed in place.

    cells: ciphertexts [*shape, *cell] (see `residues`); frac_bits: public scale; bound: the largest magnitude of the
    integers in the slots; batch: length of axis 0 where it is packed; fresh: no one can tell what was computed.
    """

    key: PublicKey
    cells: np.ndarray
    frac_bits: int
    bound: int
    slots: Slots
    batch: int | None = None
    fresh: bool = False

    __array_ufunc__ = None  # numpy arrays leave operators to this class

    def __repr__(self) -> str:
        packed = f", {self.slots.count} slots of {self.slots.width} bits" if self.packed else ""
        return f"PaillierTensor(shape={self.shape}, frac_bits={self.frac_bits}, bits={self.bits}{packed})"

    @property
    def packed(self) -> bool:
        """Whether ciphertexts hold several rows each."""
        return self.batch is not None

    @property
    def bits(self) -> int:
        """Bits that a number may take, the sign included."""
        return self.bound.bit_length() + 1

    @property
    def cell_shape(self) -> tuple[int, ...]:
        """Shape counted in ciphertexts."""
        return self.cells.shape[: self.cells.ndim - len(self.key.residues.cell)]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape counted in numbers."""
        return self.cell_shape if self.batch is None else (self.batch, *self.cell_shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of numbers."""
        return prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def T(self) -> PaillierTensor:
        """The axes in reverse order."""
        return self.transpose()

    def reshape(self, *shape: int) -> PaillierTensor:
        """The same numbers in another shape; axis 0 of a packed array must stay."""
        shape = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
        if self.packed and (not shape or shape[0] != self.batch):
            self._refuse_batch(f"reshape to {tuple(shape)}")
        sizes = (self.cell_shape[0], *shape[1:]) if self.packed else tuple(shape)
        if -1 in sizes:
            known = prod(s for s in sizes if s != -1)
            sizes = tuple(prod(self.cell_shape) // max(1, known) if s == -1 else s for s in sizes)
        return replace(self, cells=self.cells.reshape((*sizes, *self.key.residues.cell)))

    def transpose(self, *axes: int) -> PaillierTensor:
        """The axes in another order, by default reversed; axis 0 of a packed array must stay first."""
        axes = axes or tuple(reversed(range(self.ndim)))
        if self.packed and axes[0] != 0:
            self._refuse_batch("transpose")
        return replace(self, cells=self.cells.transpose(*axes, *range(self.ndim, self.cells.ndim)))

    def __getitem__(self, index: Any) -> PaillierTensor:
        index = index if isinstance(index, tuple) else (index,)
        if self.packed and not (isinstance(index[0], slice) and index[0] == slice(None)) and index[0] is not Ellipsis:
            self._refuse_batch("indexing")
        if not any(part is Ellipsis for part in index):
            index = (*index, Ellipsis)  # without it a single object would lose its array
        index += (slice(None),) * len(self.key.residues.cell)
        return replace(self, cells=self.cells[index])

    def __neg__(self) -> PaillierTensor:
        flat = self.key.residues.inverses(self._flat())
        return self._made(flat, self.cell_shape, self.bound)

    def __add__(self, other: Any) -> PaillierTensor:
        return self.add(other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> PaillierTensor:
        return self.add(-other if isinstance(other, PaillierTensor) else fixed.negative(other))

    def __rsub__(self, other: Any) -> PaillierTensor:
        return (-self).add(other)

    def __mul__(self, other: Any) -> PaillierTensor:
        return self.multiply(other)

    __rmul__ = __mul__

    def __matmul__(self, weights: Any) -> PaillierTensor:
        return self.matmul(weights)

    def __rmatmul__(self, weights: Any) -> PaillierTensor:
        weights = np.asarray(weights)
        if self.ndim < 1 or weights.ndim not in (1, 2):
            raise InputError(f"matmul: cannot multiply {weights.shape} by {self.shape}; the left side has 1 or 2 axes")
        axis = max(0, self.ndim - 2)
        order = (*(a for a in range(self.ndim) if a != axis), axis)
        turned = self.transpose(*order) if axis != self.ndim - 1 else self
        made = turned.matmul(weights.T)
        return made if weights.ndim == 1 or self.ndim == 1 else made.transpose(*np.argsort(order).tolist())

    def add(self, other: Any, limit: float | None = None) -> PaillierTensor:
        """Sum with another encrypted array of the same key, or with a public one that is rounded to this scale.

        limit: the largest magnitude in a public array, public itself; by default the next power of two.
        """
        if not isinstance(other, PaillierTensor):
            return self._add_public(np.asarray(other), limit)
        if other.key != self.key or (other.slots, other.batch) != (self.slots, self.batch):
            raise InputError(f"add: {self!r} and {other!r} have different keys or are packed differently")
        scale = max(self.frac_bits, other.frac_bits)
        a, b = self._at_scale(scale), other._at_scale(scale)
        bound = a._checked("sum", a.bound + b.bound)
        shape = np.broadcast_shapes(a.cell_shape, b.cell_shape)
        return a._made(a.key.residues.multiply(a._flat(shape), b._flat(shape)), shape, bound)

    def _add_public(self, values: np.ndarray, limit: float | None) -> PaillierTensor:
        limit = fixed.power_of_two(values) if limit is None else limit
        bound = self._checked("sum", self.bound + fixed.magnitude(limit, self.frac_bits))
        encoded = fixed.integers(values, self.frac_bits, limit, "add")
        shape = np.broadcast_shapes(self.shape, encoded.shape)
        cell_shape = shape
        if self.packed:
            if shape[0] != self.batch or len(shape) != self.ndim:
                self._refuse_batch("adding an array of more rows")
            cell_shape = (self.cell_shape[0], *shape[1:])
        plain = _plaintexts(np.broadcast_to(encoded, shape), self.slots, self.packed)
        added = trivial(self.key, plain)
        return self._made(self.key.residues.multiply(self._flat(cell_shape), added), cell_shape, bound)

    def _at_scale(self, frac_bits: int) -> PaillierTensor:
        more = frac_bits - self.frac_bits
        if not more:
            return self
        bound = self._checked("product", self.bound << more)
        powers = power_each(self.key.residues, self._flat(), [1 << more], more + 1)
        return replace(self._made(powers, self.cell_shape, bound), frac_bits=frac_bits)

    def multiply(self, weights: Any, frac_bits: int | None = None, limit: float | None = None) -> PaillierTensor:
        """Products by the numbers of a public array, which in a packed array is the same for all rows.

        frac_bits: scale of the weights, 0 for integers and 16 for others by default; limit: their largest magnitude,
        public, by default the next power of two. Raises InputError where a result might not fit.
        """
        weights = np.asarray(weights)
        if self.packed and (weights.ndim > self.ndim or (weights.ndim == self.ndim and weights.shape[0] != 1)):
            self._refuse_batch("multiplying rows by different numbers")
        weights, frac_bits, largest, bound = self._weights(weights, frac_bits, limit, 1, "product")
        shape, residues = np.broadcast_shapes(self.cell_shape, weights.shape), self.key.residues
        exponents = np.broadcast_to(weights, shape).reshape(-1)
        bases = self._flat(shape)
        negative = (exponents < 0).astype(bool).reshape(-1, *(1 for _ in residues.cell))
        bases = np.where(negative, residues.inverses(bases), bases)  # inverses of all, whatever the signs
        powers = power_each(residues, bases, np.abs(exponents).tolist(), largest.bit_length())
        return replace(self._made(powers, shape, bound), frac_bits=self.frac_bits + frac_bits)

    def matmul(self, weights: Any, frac_bits: int | None = None, limit: float | None = None) -> PaillierTensor:
        """[*, K] by public [K, M] or [K]; arguments as in `multiply`. The bound grows by K times the limit."""
        weights = np.asarray(weights)
        wide = weights.reshape(-1, 1) if weights.ndim == 1 else weights
        if wide.ndim != 2 or self.ndim < 1 or wide.shape[0] != self.shape[-1]:
            raise InputError(f"matmul: cannot multiply {self.shape} by {weights.shape}; expected [*, K] and [K, M]")
        if self.packed and self.ndim == 1:
            self._refuse_batch("a sum over rows")
        terms = self.shape[-1]
        wide, frac_bits, largest, bound = self._weights(wide, frac_bits, limit, max(1, terms), "matrix product")
        cell, rest = self.key.residues.cell, self.cell_shape[:-1]
        bases = np.moveaxis(self.cells.reshape((-1, terms, *cell)), 1, 0)
        made = np.moveaxis(linear(self.key.residues, bases, wide.T, largest), 0, 1)
        shape = rest if weights.ndim == 1 else (*rest, wide.shape[1])
        return replace(self._made(made, shape, bound), frac_bits=self.frac_bits + frac_bits)

    def layer(
        self, patches: Patches, weights: Any, frac_bits: int | None = None, limit: float | None = None
    ) -> PaillierTensor:
        """A linear layer or convolution of an array that is not packed; arguments as in `matmul`.

        Each ciphertext's powers are computed once, however many places of the output read it.
        """
        if self.packed:
            self._refuse_batch("a layer that reads axis 0")
        if self.shape != patches.input_shape:
            raise InputError(f"layer: the input has shape {self.shape}, the layer reads {patches.input_shape}")
        terms = max(1, patches.terms)
        wide, frac_bits, largest, bound = self._weights(np.asarray(weights), frac_bits, limit, terms, "layer")
        groups = zip(patches.weights(wide), patches.places, strict=True)
        made = np.stack([linear(self.key.residues, self._flat(), rows, largest, places) for rows, places in groups])
        scaled = self._made(patches.arrange(made), patches.output_shape, bound)
        return replace(scaled, frac_bits=self.frac_bits + frac_bits)

    def _weights(
        self, weights: np.ndarray, frac_bits: int | None, limit: float | None, terms: int, what: str
    ) -> tuple[np.ndarray, int, int, int]:
        """Weights as integers, their scale, their largest magnitude and the bound of a sum of that many products."""
        if frac_bits is None:
            frac_bits = FRAC_BITS if weights.dtype.kind == "f" else 0
        limit = fixed.power_of_two(weights) if limit is None else limit
        largest = fixed.magnitude(limit, frac_bits)
        bound = self._checked(what, self.bound * largest * terms)
        encoded = fixed.integers(weights, frac_bits, limit, what)
        if encoded.dtype == object and what != "product":
            raise InputError(f"{what}: weights of more than 62 bits; use a smaller frac_bits or limit")
        return encoded, frac_bits, largest, bound

    def sum(self, axis: int | tuple[int, ...] | None = None) -> PaillierTensor:
        """Sum over one, several or all axes; not over the rows of a packed array."""
        axes = tuple(range(self.ndim)) if axis is None else (axis,) if isinstance(axis, int) else tuple(axis)
        axes = tuple(a % self.ndim for a in axes)
        if self.packed and 0 in axes:
            self._refuse_batch("a sum over rows")
        kept = tuple(a for a in range(self.ndim) if a not in axes)
        shape = tuple(self.cell_shape[a] for a in kept)
        turned = self.transpose(*kept, *axes)
        terms = prod(self.cell_shape[a] for a in axes)
        bound = self._checked("sum", self.bound * max(1, terms))
        flat = turned._flat()
        index = np.arange(1, len(flat) + 1, dtype=np.int32).reshape(prod(shape), 1, terms)
        table = np.concatenate([self.key.residues.ones(1), flat])
        return self._made(self.key.residues.products(table, index), shape, bound)

    def rerandomized(self, pool: BlindingPool | None = None) -> PaillierTensor:
        """The same numbers in ciphertexts that nobody, the key's owner included, can link to how they were computed.

        pool: factors made ahead, of the public key (InputError for the private key's, which are not enough for this).
        """
        if pool is not None and not pool.refreshing:
            raise InputError(explain("a private key's pool cannot re-randomize", fix="make BlindingPool(public key)"))
        flat = self._flat()
        if not len(flat):
            return replace(self, fresh=True)
        factors = pool.take(len(flat)) if pool is not None else refreshing_factors(self.key, len(flat))
        return replace(self._made(self.key.residues.multiply(flat, factors), self.cell_shape, self.bound), fresh=True)

    def compressed(self) -> PaillierTensor:
        """The numbers of an array that is not packed, in order, in as few ciphertexts as their bound allows.

        The result has one axis of `size` numbers and is packed. Costs one squaring for each bit of a slot.
        """
        if self.packed:
            return self
        slots, flat = slots_for(self.key.bits, self.bound), self._flat()
        groups, levels = -(-len(flat) // slots.count), min(len(flat), slots.count)
        index = np.zeros(groups * levels, np.int32)
        index[: len(flat)] = np.arange(1, len(flat) + 1)
        index = index.reshape(groups, levels, 1)[:, ::-1]  # the highest slot first
        table = np.concatenate([self.key.residues.ones(1), flat])
        cells = self.key.residues.products(table, index, slots.width)
        return replace(self, cells=cells, slots=slots, batch=len(flat), fresh=False)

    def decrypt(self, key: PrivateKey) -> np.ndarray:
        """The numbers, float64[*shape]. InputError for another key, and for a number that no float is."""
        exact = self.decrypt_integers(key)
        try:
            return np.array([v / (1 << self.frac_bits) for v in exact.flat], float).reshape(exact.shape)
        except OverflowError:
            fix = "use decrypt_integers"
            raise InputError(explain("decrypt: a number is too large for a float", fix=fix)) from None

    def decrypt_integers(self, key: PrivateKey) -> np.ndarray:
        """The numbers times 2^frac_bits, as an array of Python integers. InputError for another key."""
        if key.public != self.key:
            raise InputError(
                explain(
                    f"cannot decrypt with the key {key.public.fingerprint}",
                    why=f"the array was encrypted for the key {self.key.fingerprint}",
                )
            )
        values = decrypt(key, self._flat())
        if self.batch is not None:
            columns = np.array(values, object).reshape(self.cell_shape[0], prod(self.cell_shape[1:])).T
            rows = zip(*(self.slots.unpack(column, self.batch) for column in columns), strict=True)
            values = [v for row in rows for v in row]
        out = np.empty(self.size, object)
        out[:] = [int(v) for v in values]
        return out.reshape(self.shape)

    def _flat(self, shape: tuple[int, ...] | None = None) -> np.ndarray:
        cell = self.key.residues.cell
        wide = self.cells if shape is None else _broadcast(self.cells, self.cell_shape, shape, cell)
        return np.ascontiguousarray(wide).reshape(-1, *cell)

    def _made(self, flat: np.ndarray, shape: tuple[int, ...], bound: int) -> PaillierTensor:
        return replace(self, cells=flat.reshape((*shape, *self.key.residues.cell)), bound=bound, fresh=False)

    def _checked(self, what: str, bound: int) -> int:
        if bound > self.slots.limit:
            raise InputError(
                explain(
                    f"this {what} may overflow: its numbers can take {bound.bit_length() + 1} bits, "
                    f"{'a slot' if self.packed else 'a plaintext'} has {self.slots.width}",
                    why=f"the operand {self!r} already takes {self.bits} bits",
                    fix="encrypt with wider slots (slot_bits), a smaller limit or frac_bits, or narrower weights",
                )
            )
        return bound

    def _refuse_batch(self, what: str) -> None:
        raise InputError(
            explain(
                f"a packed array cannot do this: {what}",
                why=f"axis 0, of {self.batch} rows, lies {self.slots.count} rows to a ciphertext",
                fix="encrypt without slot_bits, or keep axis 0 as it is",
            )
        )


def _broadcast(cells: np.ndarray, old: tuple[int, ...], new: tuple[int, ...], cell: tuple[int, ...]) -> np.ndarray:
    return np.broadcast_to(cells.reshape((1,) * (len(new) - len(old)) + old + cell), (*new, *cell))


def _plaintexts(values: np.ndarray, slots: Slots, packed: bool) -> list[int]:
    """Plaintexts, in order of cells, of integers [*shape]."""
    if not packed:
        return values.reshape(-1).tolist()
    columns = values.reshape(len(values), prod(values.shape[1:])).T.tolist()
    by_column = [slots.pack(column) for column in columns]
    return [plain for group in zip(*by_column, strict=True) for plain in group]


def encrypt_array(
    key: Key,
    values: Any,
    frac_bits: int = FRAC_BITS,
    limit: float = LIMIT,
    slot_bits: int | None = None,
    pool: BlindingPool | None = None,
) -> PaillierTensor:
    """Encrypts an array of real numbers (or integers) under a public key, or faster under the owner's private key.

    frac_bits: numbers are rounded to multiples of 2^-frac_bits; limit: the largest magnitude, public, InputError for a
    larger one; slot_bits: pack axis 0, giving each number that many bits for the results (see `slot_bits_for`); pool:
    blinding factors made ahead. Nothing but shape, scale and limit can be seen from the result.
    """
    known = public(key)
    encoded = fixed.integers(np.asarray(values), frac_bits, limit, "encrypt_array")
    packed = slot_bits is not None
    slots = whole(known.bits) if slot_bits is None else slots_for(known.bits, (1 << slot_bits - 1) - 1)
    bound = fixed.magnitude(limit, frac_bits)
    if bound > slots.limit:
        raise InputError(
            explain(
                f"encrypt_array: numbers of {bound.bit_length() + 1} bits do not fit "
                f"{'a slot' if packed else 'a plaintext'} of {slots.width}",
                fix="use a smaller limit or frac_bits, or wider slots",
            )
        )
    if packed and encoded.ndim < 1:
        raise InputError("encrypt_array: only an array with an axis 0 can be packed")
    plain = _plaintexts(encoded, slots, packed)
    cells = encrypt(key, plain, pool.take(len(plain)) if pool is not None else None)
    shape = (-(-encoded.shape[0] // slots.count), *encoded.shape[1:]) if packed else encoded.shape
    cells = cells.reshape((*shape, *known.residues.cell))
    return PaillierTensor(known, cells, frac_bits, bound, slots, encoded.shape[0] if packed else None, True)


def slot_bits_for(
    limit: float = LIMIT, frac_bits: int = FRAC_BITS, weight_limit: float = 1, weight_frac_bits: int = FRAC_BITS,
    terms: int = 1, extra: float = 0,
) -> int:  # fmt: skip
    """Bits of a slot for a sum of `terms` products by weights up to `weight_limit`, and a number up to `extra`."""
    products = fixed.magnitude(limit, frac_bits) * fixed.magnitude(weight_limit, weight_frac_bits) * terms
    return (products + fixed.magnitude(extra, frac_bits + weight_frac_bits)).bit_length() + 1
