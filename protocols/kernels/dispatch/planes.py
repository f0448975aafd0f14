"""Comparison and other work on packed bits, as it is called."""

import torch
from torch import Tensor

from protocols.kernels.checks import Groups, digits, group_inputs, layer_planes, plane, planes, ring, whole_or_nothing
from protocols.kernels.twins.planes import monomial_sets
from protocols.kernels.variant import kernels_for


def pack_bits(bits: Tensor) -> Tensor:
    """Pack the lowest bit of each uint8 or bool entry, [N] -> int64[ceil(N/64)]."""
    if bits.dtype not in (torch.uint8, torch.bool):
        raise TypeError(f"pack_bits: bits must be uint8 or bool, not {bits.dtype}")
    bits = bits.reshape(-1).contiguous()
    return kernels_for(bits).pack_bits(bits)


def unpack_bits(words: Tensor, n: int) -> Tensor:
    """The first n bits of a plane, uint8[n]."""
    words = plane(words, n, "unpack_bits: words")
    return kernels_for(words).unpack_bits(words, n)


def msb_plane(x: Tensor, bit: int, offset: int = 0) -> Tensor:
    """Plane of bit number `bit` (0 to 63) of each element plus `offset`, |offset| < 2^62."""
    x = ring(x, "msb_plane: x")
    if not 0 <= bit <= 63:
        raise ValueError(f"msb_plane: a 64-bit element has bits 0 to 63, no bit {bit}")
    return kernels_for(x).msb_plane(x, bit, offset)


def thermometer(lam: Tensor, low_bits: int, shift: int = 0) -> Tensor:
    """For each element of lam and each 4-bit digit, the 16-bit word whose bit a says "digit >= a".

    lam: int64[N]; the digits cover bits shift to shift + low_bits - 1, lowest digit first -> int16[D,N]. A negative
    shift makes the lowest digits short or empty.
    """
    lam = ring(lam, "thermometer: lam")
    digits(low_bits, shift, "thermometer")
    return kernels_for(lam).thermometer(lam, low_bits, shift)


def leaves(m: Tensor, therm: Tensor, low_bits: int, shift: int = 0, offset: int = 0) -> Tensor:
    """Compare the digits of a public m + offset with masks given as shares of their thermometer words.

    m: int64[N], therm: int16[D,N], XOR share of `thermometer(lam, low_bits, shift)` -> int64[2D-1,W], shares of the
    planes lt0, lt1, eq1, lt2, eq2, ...; lt: digit of m + offset < digit of lam, eq: the digits are equal.
    """
    m = ring(m, "leaves: m")
    count, n = digits(low_bits, shift, "leaves"), m.numel()
    if therm.dtype is not torch.int16 or therm.numel() != count * n:
        raise ValueError(
            f"leaves: therm must be int16[{count},{n}] for {low_bits} bits of {n} elements, "
            f"not {therm.dtype}{list(therm.shape)}"
        )
    therm = therm if therm.is_contiguous() else therm.contiguous()
    return kernels_for(m, therm).leaves(m, therm, low_bits, shift, offset)


def monomials(masks: Tensor, k: int, with_eq: bool) -> Tensor:
    """Products of the masks of what is opened of one group, int64[P,W] -> int64[Q,W], in the order of `monomial_sets`."""
    masks = planes(masks, group_inputs(k, with_eq, "monomials"), "monomials: masks")
    return kernels_for(masks).monomials(masks, k, with_eq)


def combine(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, top: Tensor, k: int, with_eq: bool, first: int
) -> Tensor:
    """Share of "lower than" (and of "equal") for a group of k digits, from masked bits every party knows.

    LT = lt_{k-1} ^ eq_{k-1} lt_{k-2} ^ ..., EQ = eq_0 ... eq_{k-1}. opened, mask_share: int64[P,W], planes in the
    order lt0, (eq0 if with_eq), lt1, eq1, ..., eq_{k-1}; monomial_share: int64[Q,W], XOR share of `monomials`; top:
    int64[W], XOR share of lt_{k-1}, which is not opened. -> int64[1 + with_eq, W], XOR shares.
    """
    count = group_inputs(k, with_eq, "combine")
    whole_or_nothing(first, "combine")
    opened = planes(opened, count, "combine: opened")
    mask_share = planes(mask_share, count, "combine: mask_share")
    monomial_share = planes(monomial_share, len(monomial_sets(k, bool(with_eq))), "combine: monomial_share")
    w, top = opened.shape[1], ring(top, "combine: top")
    sizes = [mask_share.shape[1], monomial_share.shape[1], top.numel()]
    if any(size != w for size in sizes):
        raise ValueError(f"combine: planes of {w}, {', '.join(map(str, sizes))} words do not fit together")
    chosen = kernels_for(opened, mask_share, monomial_share, top)
    return chosen.combine(opened, mask_share, monomial_share, top, k, bool(with_eq), first)


def monomials_layer(masks: Tensor, groups: Groups) -> Tensor:
    """`monomials` of all groups of a layer, int64[P,W] -> int64[Q,W], for each after the other the planes that it opens.

    groups: (first digit, count) for each, from digit 0 on; a group of one digit opens nothing.
    """
    opened, _, _ = layer_planes(groups, "monomials_layer")
    masks = planes(masks, opened, "monomials_layer: masks")
    return kernels_for(masks).monomials_layer(masks, groups)


def combine_layer(
    opened: Tensor, mask_share: Tensor, monomial_share: Tensor, bits: Tensor, groups: Groups, first: int
) -> Tensor:
    """`combine` of all groups of a layer: shares of the planes lt0, lt1, eq1, ... of as many digits as there are groups.

    opened, mask_share, monomial_share, groups: as of `monomials_layer`. bits: shares of all planes of all digits, of which
    each group's highest lt is read, and a digit that is a group alone goes on as it is.
    """
    inputs, products, every = layer_planes(groups, "combine_layer")
    whole_or_nothing(first, "combine_layer")
    opened = planes(opened, inputs, "combine_layer: opened")
    mask_share = planes(mask_share, inputs, "combine_layer: mask_share")
    monomial_share = planes(monomial_share, products, "combine_layer: monomial_share")
    bits = planes(bits, every, "combine_layer: bits")
    w = bits.shape[1]
    if not opened.shape[1] == mask_share.shape[1] == monomial_share.shape[1] == w:
        raise ValueError(f"combine_layer: planes of {w} words, and others of another size")
    chosen = kernels_for(opened, mask_share, monomial_share, bits)
    return chosen.combine_layer(opened, mask_share, monomial_share, bits, groups, first)
