"""Tables at a secret index, and splines, as they are called."""

from collections.abc import Sequence

from torch import Tensor

from protocols.kernels.checks import places, ring, same_size, table_size, whole_or_nothing
from protocols.kernels.twins.tables import PARTS
from protocols.kernels.variant import kernels_for


def unit_vectors(lam: Tensor, size: int) -> Tensor:
    """Packed unit vectors int64[N, max(1, size / 64)]: bit v of entry e is set where v = lam[e] mod size."""
    table_size(size, "unit_vectors")
    lam = ring(lam, "unit_vectors: lam")
    return kernels_for(lam).unit_vectors(lam, size)


def unit_lookup(m: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """int64[C, N]: for each column c and entry e the sum of table[c][(m[e] - v) mod size] over the set bits v.

    m: int64 of N entries, read modulo size; bits: shares of what `unit_vectors` returns; table: int64[C, size].
    """
    m, table = ring(m, "unit_lookup: m"), ring(table, "unit_lookup: table")
    if table.dim() != 2:
        raise ValueError(f"unit_lookup: a table has columns of entries, int64[C, size], not {list(table.shape)}")
    size, n = table.shape[1], m.numel()
    table_size(size, "unit_lookup")
    bits = same_size(bits, n * max(1, size // 64), "unit_lookup: bits").view(n, max(1, size // 64))
    return kernels_for(m, bits, table).unit_lookup(m, bits, table)


def lookup_around(m: Tensor, bits: Tensor, table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    """int64[3, N]: for each entry e the sum, over the set bits v, of what the coefficients of the table's entry
    (m[e] >> rest) - v are around the low `rest` bits of m[e] (protocols.gates.lookup says how).

    m: int64 of N entries; bits: as for `unit_lookup`; table: int64[3, size PARTS], the centers of an entry side by side.
    """
    m, table, size = _coefficients(m, table, rest, cuts, "lookup_around")
    bits = same_size(bits, m.numel() * max(1, size // 64), "lookup_around: bits").view(-1, max(1, size // 64))
    return kernels_for(m, bits, table).lookup_around(m, bits, table, rest, cuts)


def weighted_around(m: Tensor, weights: Tensor, table: Tensor, rest: int, cuts: Sequence[int]) -> Tensor:
    """The same with weights: int64[N, size] in place of bits."""
    m, table, size = _coefficients(m, table, rest, cuts, "weighted_around")
    weights = same_size(weights, m.numel() * size, "weighted_around: weights").view(-1, size)
    return kernels_for(m, weights, table).weighted_around(m, weights, table, rest, cuts)


def _coefficients(m: Tensor, table: Tensor, rest: int, cuts: Sequence[int], what: str) -> tuple[Tensor, Tensor, int]:
    m, table = ring(m, f"{what}: m"), ring(table, f"{what}: table")
    if table.dim() != 2 or table.shape[0] != 3 or table.shape[1] % PARTS:
        raise ValueError(f"{what}: a table of coefficients is int64[3, {PARTS} entries], not {list(table.shape)}")
    size = table.shape[1] // PARTS
    table_size(size, what)
    if size < 16 or not PARTS.bit_length() <= rest <= 32 or len(cuts) != 3 or not all(0 <= c <= 62 for c in cuts):
        raise ValueError(f"{what}: {size} entries, {rest} bits of t and cuts of {list(cuts)} bits are no coefficients")
    return m, table, size


def spline(
    values: Sequence[Tensor], powers: Sequence[Tensor | None], masks: Tensor, shifts: Sequence[int], first: int
) -> Tensor:
    """Share of the sum of values[i] powers[i] 2^shifts[i], i = 0, 1, 2, less `masks`, for public values.

    powers: additive shares of what `deal_spline` returns, None for 1; masks: of its last tensor.
    """
    masks = ring(masks, "spline: masks")
    whole_or_nothing(first, "spline")
    places(shifts, "spline")
    values = [same_size(v, masks.numel(), "spline: values") for v in values]
    powers = [None if p is None else same_size(p, masks.numel(), "spline: powers") for p in powers]
    given = [t for t in (*values, *powers, masks) if t is not None]
    return kernels_for(*given).spline(values, powers, masks, shifts, first)


def deal_spline(
    masks: Sequence[Tensor], lam: Tensor, sign: Tensor | None, shifts: Sequence[int], rest: int, drop: int
) -> list[Tensor]:
    """What `spline` needs of the masks of coefficients, of the mask lam of t and of a sign u (None: 1).

    u g_i for g_0 = 1, g_1 = g, g_2 = g^2 / 2^drop, where g is -lam, or with `rest` 2^(rest-1) less its low `rest` bits; then
    the sum of masks[i] u g_i 2^shifts[i].
    """
    lam = ring(lam, "deal_spline: lam")
    places((*shifts, rest, drop), "deal_spline")
    masks = [same_size(mask, lam.numel(), "deal_spline: masks") for mask in masks]
    if sign is not None:
        sign = same_size(sign, lam.numel(), "deal_spline: sign").view(lam.shape)
    return kernels_for(*masks, lam, sign).deal_spline(masks, lam, sign, shifts, rest, drop)
