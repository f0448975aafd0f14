"""Every kernel as the rest of the project calls it: arguments are checked here, and nowhere else, and whose kernel runs
is decided here by the device of the operands.

Ring values are int64 tensors that wrap around. A plane of N bits is W = ceil(N / 64) int64 words, bit e in bit e % 64 of
word e // 64; bits beyond N may be anything. Element by element, values keep the shape of their first ring argument,
and bits come as one packed plane over its elements in row-major order. `first` is true at exactly one party, which
adds the public terms; m is the opened masked value, x = m - lam. Formulas: docs/protocol.md. All raise TypeError or
ValueError when dtypes, shapes or devices do not fit.
"""

import itertools
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from protocols.kernels.checks import (
    Groups,
    Padding,
    Pair,
    accumulation,
    check_out,
    conv_sizes,
    convolution,
    digits,
    fraction,
    group_inputs,
    layer_planes,
    pair,
    plane,
    planes,
    ring,
    same_size,
    sides,
    spline_terms,
    table_size,
    whole_or_nothing,
    within_memory,
    wrap,
)
from protocols.kernels.twins.bilinear import transposed_as_direct
from protocols.kernels.twins.planes import monomial_sets
from protocols.kernels.variant import kernels_for

_MODES = ("set", "add", "sub", "xor")
_STREAM_BYTES = 64 << 32
_LANES = (torch.int64, torch.int32, torch.int16, torch.uint8)


def chacha20(out: Tensor, key: bytes, nonce: bytes, mode: str = "set", offset: int = 0) -> Tensor:
    """Combine a ChaCha20 key stream into a tensor, in place, and return it.

    out: contiguous; its bytes are taken in little-endian order. key: 32 bytes. nonce: 12 bytes. offset: the first
    64-byte block of the stream to use. mode: "set" and "xor" work on any dtype but bool, "add" and "sub" wrap around
    on int64, int32, int16 or uint8 lanes. ValueError also when the stream would pass its 2^32 blocks.
    (RFC 8439, section 2.4)
    """
    if len(key) != 32 or len(nonce) != 12:
        raise ValueError(f"chacha20: key and nonce must have 32 and 12 bytes, not {len(key)} and {len(nonce)}")
    _streamable(out, mode)
    size = out.numel() * out.element_size()
    if not 0 <= offset <= (1 << 32) - (size + 63) // 64:
        raise ValueError(
            f"chacha20: {size} bytes from block {offset} on do not fit in one stream of 2^32 blocks (256 GiB); "
            "continue under another nonce"
        )
    return kernels_for(out).chacha20(out, key, nonce, mode, offset)


def _streamable(out: Tensor, mode: str) -> None:
    """TypeError or ValueError unless a key stream can be combined into a tensor in this mode."""
    if mode not in _MODES:
        raise ValueError(f"chacha20: mode must be one of {', '.join(_MODES)}, not {mode!r}")
    if not out.is_contiguous():
        raise ValueError(f"chacha20: out must be contiguous, but has shape {tuple(out.shape)}, strides {out.stride()}")
    if out.dtype not in _LANES:
        if mode in ("add", "sub"):
            raise TypeError(f"chacha20: {mode!r} works on int64, int32, int16 and uint8, not on {out.dtype}")
        if out.dtype is torch.bool:
            raise TypeError(
                "chacha20: a bool tensor cannot hold random bytes; fill a uint8 tensor and take its low bits"
            )


def chacha20_many(outs: Sequence[Tensor], key: bytes, nonces: bytes, modes: Sequence[str]) -> None:
    """`chacha20` from block 0 on for several tensors, each with a nonce of its own and a mode, in one call.

    nonces: 12 bytes for each tensor, one after the other. No tensor may have more than 256 GiB.
    """
    if len(key) != 32 or not len(nonces) == 12 * len(outs) == 12 * len(modes):
        raise ValueError(
            f"chacha20_many: a key of 32 bytes, and for each of {len(outs)} tensors a mode and a nonce of 12 bytes; not "
            f"{len(key)}, {len(modes)} and {len(nonces)}"
        )
    for out, mode in zip(outs, modes, strict=True):
        _streamable(out, mode)
        if out.numel() > _STREAM_BYTES // out.element_size():
            raise ValueError("chacha20_many: a tensor has more bytes than the 2^32 blocks of a stream (256 GiB)")
    if outs:
        kernels_for(*outs).chacha20_many(outs, key, nonces, modes)


# --- Matrix products and convolutions -------------------------------------------------------------------------


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, accumulate: str | None = None) -> Tensor:
    """a @ b with wrap-around, written, added ("add") or subtracted ("sub") into `out` when that is given.

    a: int64[*, M, K], b: int64[*, K, N]; batch dimensions broadcast as in torch.matmul; any strides.
    """
    if a.dtype is not torch.int64 or b.dtype is not torch.int64:
        raise TypeError(f"matmul: both operands must be int64, not {a.dtype} and {b.dtype}")
    if a.dim() < 2 or b.dim() < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"matmul: cannot multiply {tuple(a.shape)} by {tuple(b.shape)}; expected [*,M,K] and [*,K,N]")
    accumulation(out, accumulate, "matmul")
    m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
    if b.dim() == 2 and (a.dim() == 2 or a.is_contiguous()):
        shape = (*a.shape[:-1], n)
    else:
        batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        shape = (*batch, m, n)
        a, b = a.expand(*batch, m, k), b.expand(*batch, k, n)
    within_memory("matmul: the result", *shape)
    if out is not None:
        check_out(out, shape, "matmul")
    return kernels_for(a, b, out).matmul(a, b, out, accumulate)


def sign_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ sign(b) modulo 2^32: int32[M, K] and int8[K, N] make int32[M, N]."""
    if a.dtype is not torch.int32 or b.dtype is not torch.int8:
        raise TypeError(f"sign_product: takes int32 and int8, not {a.dtype} and {b.dtype}")
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[0]:
        raise ValueError(f"sign_product: cannot multiply {tuple(a.shape)} by {tuple(b.shape)}")
    return kernels_for(a, b).sign_product(a.contiguous(), b.contiguous())


def conv2d(
    x: Tensor, w: Tensor, stride: Pair = 1, padding: Padding = 0, dilation: Pair = 1, groups: int = 1,
    out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Two-dimensional convolution (as torch has it: no flip) with wrap-around.

    x: int64[N,C,H,W], w: int64[O,C/groups,kh,kw] -> int64[N,O,H',W']. padding: one number, (rows, columns) or
    ((top, bottom), (left, right)). out and accumulate as in `matmul`.
    """
    x, w = ring(x, "conv2d: x"), ring(w, "conv2d: w")
    convolution("conv2d", x, w, groups, False)
    accumulation(out, accumulate, "conv2d")
    step, gap, pads = pair(stride, "conv2d: stride", 1), pair(dilation, "conv2d: dilation", 1), sides(padding)
    (n, c, height, width), (o, _, kh, kw) = x.shape, w.shape
    rows, columns = conv_sizes(x.shape, w.shape, step, pads, gap)
    if rows < 1 or columns < 1:
        raise ValueError(f"conv2d: kernel {kh}x{kw} with dilation {gap} is larger than the padded image")
    within_memory("conv2d: the padded image", n, c, height + sum(pads[0]), width + sum(pads[1]))
    within_memory("conv2d: the result", n, o, rows, columns)
    if out is not None:
        check_out(out, (n, o, rows, columns), "conv2d")
    return kernels_for(x, w, out).conv2d(x, w, step, pads, gap, groups, out, accumulate)


def conv1d(
    x: Tensor, w: Tensor, stride: int = 1, padding: int | tuple[int, int] = 0, dilation: int = 1, groups: int = 1,
    out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """One-dimensional convolution: x int64[N,C,L], w int64[O,C/groups,k]; padding one number or (left, right)."""
    ends = (padding, padding) if isinstance(padding, int) else padding
    wide_out = None if out is None else out.unsqueeze(2)
    y = conv2d(x.unsqueeze(2), w.unsqueeze(2), (1, stride), ((0, 0), ends), (1, dilation), groups, wide_out, accumulate)
    return y.squeeze(2) if out is None else out


def conv_transpose2d(
    x: Tensor, w: Tensor, stride: Pair = 1, padding: Pair = 0, output_padding: Pair = 0, dilation: Pair = 1,
    groups: int = 1, out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Transposed convolution: x int64[N,C,H,W], w int64[C,O/groups,kh,kw]; arguments as torch names them."""
    x, w = ring(x, "conv_transpose2d: x"), ring(w, "conv_transpose2d: w")
    convolution("conv_transpose2d", x, w, groups, True)
    step, gap = pair(stride, "conv_transpose2d: stride", 1), pair(dilation, "conv_transpose2d: dilation", 1)
    cut = pair(padding, "conv_transpose2d: padding", 0)
    extra = pair(output_padding, "conv_transpose2d: output_padding", 0)
    spread = []
    for size, taps, s, d, p, e in zip(x.shape[2:], w.shape[2:], step, gap, cut, extra, strict=True):
        if e >= max(s, d):
            raise ValueError(f"conv_transpose2d: output_padding {e} is not below stride {s} or dilation {d}")
        reach = d * (taps - 1)
        if (size - 1) * s + reach + e < 2 * p:
            raise ValueError(f"conv_transpose2d: padding {p} leaves nothing of the result")
        spread.append((size - 1) * s + 1 + max(reach - p, 0) + max(reach - p + e, 0))
    within_memory("conv_transpose2d: the image between its zeros", *x.shape[:2], *spread)
    sizes = [
        (size - 1) * s + d * (taps - 1) + 1 + e - 2 * p
        for size, taps, s, d, p, e in zip(x.shape[2:], w.shape[2:], step, gap, cut, extra, strict=True)
    ]
    between = step != (1, 1) or w.shape[1] < 16  # zeros between pixels, or too few channels for fast products
    if groups == 1 and between and 2 * sizes[0] * sizes[1] > 3 * x.shape[2] * x.shape[3]:
        return _transposed_by_taps(x, w, step, cut, extra, gap, out, accumulate)
    image, kernel = transposed_as_direct(x, w, step, cut, extra, gap, groups)
    return conv2d(image, kernel, 1, 0, gap, groups, out, accumulate)


def _transposed_by_taps(
    x: Tensor, w: Tensor, step: tuple[int, int], cut: tuple[int, int], extra: tuple[int, int], gap: tuple[int, int],
    out: Tensor | None, accumulate: str | None,
) -> Tensor:  # fmt: skip
    """One product for all taps of the kernel, each then added where it belongs: multiplies by no zeros between pixels."""
    (n, c, height, width), (_, o, kh, kw) = x.shape, w.shape
    rows, columns = ((size - 1) * s for size, s in zip((height, width), step, strict=True))
    whole = rows + gap[0] * (kh - 1) + 1 + extra[0], columns + gap[1] * (kw - 1) + 1 + extra[1]
    shape = n, o, whole[0] - 2 * cut[0], whole[1] - 2 * cut[1]
    accumulation(out, accumulate, "conv_transpose2d")
    if out is not None:
        check_out(out, shape, "conv_transpose2d")
    within_memory("conv_transpose2d: the taps", n, o * kh * kw, height, width)
    taps = matmul(w.reshape(c, -1).t(), x.reshape(n, c, -1)).view(n, o, kh, kw, height, width)
    y = x.new_zeros((n, o, *whole))
    for i, j in itertools.product(range(kh), range(kw)):
        top, left = i * gap[0], j * gap[1]
        y[:, :, top : top + rows + 1 : step[0], left : left + columns + 1 : step[1]] += taps[:, :, i, j]
    y = y[:, :, cut[0] : whole[0] - cut[0], cut[1] : whole[1] - cut[1]]
    if out is None:
        return y.contiguous()
    return out.copy_(y) if accumulate is None else (out.add_(y) if accumulate == "add" else out.sub_(y))


def conv_transpose1d(
    x: Tensor, w: Tensor, stride: int = 1, padding: int = 0, output_padding: int = 0, dilation: int = 1,
    groups: int = 1, out: Tensor | None = None, accumulate: str | None = None,
) -> Tensor:  # fmt: skip
    """Transposed one-dimensional convolution: x int64[N,C,L], w int64[C,O/groups,k]."""
    wide_out = None if out is None else out.unsqueeze(2)
    y = conv_transpose2d(
        x.unsqueeze(2), w.unsqueeze(2), (1, stride), (0, padding), (0, output_padding), (1, dilation), groups,
        wide_out, accumulate,
    )  # fmt: skip
    return y.squeeze(2) if out is None else out


# --- Bit planes -------------------------------------------------------------------------------------------------


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


# --- Element by element: truncation, selection, fixed point ----------------------------------------------------


def deal_truncation(lam: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """What a truncation by f bits needs of a mask: (lam >> f, top bit of lam in the type `wrap_dtype(f)`)."""
    lam = ring(lam, "deal_truncation: lam")
    fraction(f, "deal_truncation")
    return kernels_for(lam).deal_truncation(lam, f)


def truncate(
    m: Tensor, a: Tensor, k: Tensor, f: int, first: int, offset: int = 0, chat: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of (x + offset) >> f for |x + offset| < 2^62; exact with the carry, else it may be one too high.

    a, k: additive shares of what `deal_truncation` returns. With m' = m + offset + 2^62 and s = 1 - msb(m'):
    first * ((m' >> f) - 2^(62-f)) - a + s * k * 2^(64-f) - carry. The carry [m' mod 2^f < lam mod 2^f] is the masked
    bit chat ^ gamma, a packed plane and additive shares of its mask as a ring value.
    """
    m = ring(m, "truncate: m")
    whole_or_nothing(first, "truncate")
    n = m.numel()
    fraction(f, "truncate")
    a, k = same_size(a, n, "truncate: a"), wrap(k, n, f, "truncate: k")
    if chat is not None:
        chat, gamma = plane(chat, n, "truncate: chat"), same_size(cast(Tensor, gamma), n, "truncate: gamma")
    return kernels_for(m, a, k, chat, gamma).truncate(m, a, k, f, first, offset, chat, gamma)


def bit_times(words: Tensor, v: Tensor | None, n: int) -> Tensor:
    """bit * v for each of n packed bits; the bit itself as 0 or 1 when v is None."""
    words = plane(words, n, "bit_times: words")
    if v is not None:
        v = same_size(v, n, "bit_times: v")
    return kernels_for(words, v).bit_times(words, v, n)


def select(bhat: Tensor, m: Tensor, lam: Tensor | None, beta: Tensor, beta_lam: Tensor, first: int) -> Tensor:
    """Share of b * x for x = m - lam and the masked bit b = bhat ^ beta.

    lam (None: zero), beta, beta_lam: additive shares of the mask, of beta and of beta * lam.
    bhat * (first * m - lam) + (1 - 2 bhat) * (m * beta - beta_lam).
    """
    m = ring(m, "select: m")
    whole_or_nothing(first, "select")
    n = m.numel()
    bhat = plane(bhat, n, "select: bhat")
    beta, beta_lam = same_size(beta, n, "select: beta"), same_size(beta_lam, n, "select: beta_lam")
    if lam is not None:
        lam = same_size(lam, n, "select: lam")
    return kernels_for(m, bhat, lam, beta, beta_lam).select(bhat, m, lam, beta, beta_lam, first)


def select_truncated(
    bhat: Tensor, m: Tensor, a: Tensor, k: Tensor, b: Tensor, ba: Tensor, bk: Tensor, f: int, first: int,
    offset: int = 0, chat: Tensor | None = None, gamma: Tensor | None = None, bgamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of b * ((x + offset) >> f) for the masked bit b = bhat ^ beta; offset, chat and gamma as for `truncate`.

    a, k: additive shares of what `deal_truncation` returns; b, ba, bk, bgamma: additive shares of beta, beta * a,
    beta * k, beta * gamma. With s as in `truncate`, p its public part less the bit chat, and K = k * 2^(64-f):
    bhat * (first * p - a + s K - (1 - 2 chat) gamma) + (1 - 2 bhat) * (p b - ba + s beta K - (1 - 2 chat) bgamma).
    """
    m = ring(m, "select_truncated: m")
    whole_or_nothing(first, "select_truncated")
    n = m.numel()
    bhat = plane(bhat, n, "select_truncated: bhat")
    fraction(f, "select_truncated")
    a, k = same_size(a, n, "select_truncated: a"), wrap(k, n, f, "select_truncated: k")
    b, ba = same_size(b, n, "select_truncated: b"), same_size(ba, n, "select_truncated: ba")
    bk = wrap(bk, n, f, "select_truncated: bk")
    if chat is not None:
        chat = plane(chat, n, "select_truncated: chat")
        gamma = same_size(cast(Tensor, gamma), n, "select_truncated: gamma")
        bgamma = same_size(cast(Tensor, bgamma), n, "select_truncated: bgamma")
    chosen = kernels_for(m, bhat, a, k, b, ba, bk, chat, gamma, bgamma)
    return chosen.select_truncated(bhat, m, a, k, b, ba, bk, f, first, offset, chat, gamma, bgamma)


def bit_to_ring(bhat: Tensor, beta: Tensor, first: int) -> Tensor:
    """Share of the masked bit b = bhat ^ beta as a ring value: first * bhat + (1 - 2 bhat) * beta."""
    beta = ring(beta, "bit_to_ring: beta")
    whole_or_nothing(first, "bit_to_ring")
    bhat = plane(bhat, beta.numel(), "bit_to_ring: bhat")
    return kernels_for(beta, bhat).bit_to_ring(bhat, beta, first)


def encode(x: Tensor, frac_bits: int) -> Tensor:
    """Nearest integer to x * 2^frac_bits, ties to even; float32 or float64 -> int64. The range is not checked."""
    if x.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"encode: x must be float32 or float64, not {x.dtype}")
    x = x.contiguous()
    return kernels_for(x).encode(x, frac_bits)


def decode(x: Tensor, frac_bits: int) -> Tensor:
    """x / 2^frac_bits as float32 (through float64)."""
    x = ring(x, "decode: x")
    return kernels_for(x).decode(x, frac_bits)


# --- Tables at a secret index ---------------------------------------------------------------------------------


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
