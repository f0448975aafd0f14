"""Tables at a secret index, and splines, as they are called."""

from torch import Tensor

from protocols.kernels.checks import ring, same_size, spline_terms, table_size, whole_or_nothing
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


def spline(coefficients: Tensor, t: Tensor, products: Tensor, signed: bool, first: int) -> Tensor:
    """Share of the sum over r of c_r t^r for masked c_r and t, of which all know int64[C, *] and int64[*], C at most 3.

    products: additive shares of what `deal_spline` returns. signed: whether it had a sign u; then the sum is of
    u c_r t^r.
    """
    coefficients, t = ring(coefficients, "spline: coefficients"), ring(t, "spline: t")
    whole_or_nothing(first, "spline")
    terms = spline_terms(coefficients, t, "spline")
    products = same_size(products, (terms - (not signed) + terms * (terms + 1) // 2) * t.numel(), "spline: products")
    return kernels_for(coefficients, t, products).spline(coefficients, t, products.view(-1, *t.shape), signed, first)


def deal_spline(masks: Tensor, lam: Tensor, sign: Tensor | None) -> Tensor:
    """What `spline` needs of masks l_r of coefficients, of the mask l and of a sign u (None: 1, and u l^0 is left out).

    u l^i for i < C, then l_r u l^i for r < C and i <= r.
    """
    masks, lam = ring(masks, "deal_spline: masks"), ring(lam, "deal_spline: lam")
    spline_terms(masks, lam, "deal_spline")
    if sign is not None:
        sign = same_size(sign, lam.numel(), "deal_spline: sign").view(lam.shape)
    return kernels_for(masks, lam, sign).deal_spline(masks, lam, sign)
