"""Every kernel once more in plain torch: slow, short, on any device, and the definition of what is right.

Ring values are int64 tensors with wrap-around. A bit plane is an int64 tensor of W = ceil(N / 64) words: bit e of
the plane is bit e % 64 of word e // 64; bits beyond N mean nothing. Arguments are taken as correct: the functions
of `protocols.kernels` check them before either the twin or the native kernel runs.
"""

from functools import cache, reduce
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k", RFC 8439 section 2.3


def shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of 64-bit lanes."""
    if bits == 0:
        return x.clone()
    return (x >> bits) & ((1 << (64 - bits)) - 1) if bits < 64 else torch.zeros_like(x)


# --- ChaCha20 ---------------------------------------------------------------------------------------------------


def _signed32(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _rotate(x: Tensor, bits: int) -> Tensor:
    return (x << bits) | ((x >> (32 - bits)) & ((1 << bits) - 1))


def _quarter_round(s: list[Tensor], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = s[x] + s[y]
        s[z] = _rotate(s[z] ^ s[x], bits)


def keystream(size: int, key: bytes, nonce: bytes, offset: int, device: torch.device) -> Tensor:
    """The first `size` key stream bytes from 64-byte block `offset` on, uint8[size] (RFC 8439, section 2.4)."""
    blocks = -(-size // 64)
    words = [int.from_bytes((key + nonce)[i : i + 4], "little") for i in range(0, 44, 4)]
    counter = torch.arange(offset, offset + blocks, device=device).to(torch.int32)
    start = [torch.full_like(counter, _signed32(v)) for v in (*_CONSTANTS, *words[:8])] + [counter]
    start += [torch.full_like(counter, _signed32(v)) for v in words[8:]]
    state = list(start)
    for _ in range(10):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            _quarter_round(state, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            _quarter_round(state, a, b, c, d)
    stream = torch.stack([x + y for x, y in zip(state, start)], dim=1)
    return stream.view(torch.uint8).reshape(-1)[:size]


def chacha20(out: Tensor, key: bytes, nonce: bytes, mode: str = "set", offset: int = 0) -> Tensor:
    """Combine the key stream into `out`, in place."""
    if out.numel() == 0:
        return out
    flat = out.view(-1)
    stream = keystream(out.numel() * out.element_size(), key, nonce, offset, out.device)
    if mode in ("set", "xor"):
        raw = flat.view(torch.uint8)
        raw.copy_(stream if mode == "set" else raw ^ stream)
    else:
        lanes = stream.clone().view(out.dtype)
        flat.add_(lanes) if mode == "add" else flat.sub_(lanes)
    return out


# --- Matrix products and convolutions -------------------------------------------------------------------------


def product(a: Tensor, b: Tensor, exact_integers: bool | None = None) -> Tensor:
    """a @ b in the ring. Where a device multiplies no integer matrices, by 16-bit limbs in float64.

    A limb product is below 2^32, so sums over up to 2^21 of them are exact; longer ones are cut.
    """
    if a.device.type == "cpu" if exact_integers is None else exact_integers:
        return torch.matmul(a, b)
    total: Tensor | int = 0
    for start in range(0, a.shape[-1], 1 << 20):
        left, right = (
            [(shift_right(t, 16 * i) & 0xFFFF).double() for i in range(4)]
            for t in (a[..., start : start + (1 << 20)], b[..., start : start + (1 << 20), :])
        )
        for i in range(4):
            for j in range(4 - i):
                total = total + (torch.matmul(left[i], right[j]).to(torch.int64) << (16 * (i + j)))
    return total if isinstance(total, Tensor) else torch.matmul(a.double(), b.double()).to(torch.int64)


def store(value: Tensor, out: Tensor | None, accumulate: str | None) -> Tensor:
    """Return `value`, or write, add or subtract it into `out`."""
    if out is None:
        return value
    if accumulate is None:
        return out.copy_(value)
    return out.add_(value) if accumulate == "add" else out.sub_(value)


def matmul(a: Tensor, b: Tensor, out: Tensor | None = None, accumulate: str | None = None) -> Tensor:
    """a @ b, batch dimensions broadcast."""
    return store(product(a, b), out, accumulate)


def conv2d(
    x: Tensor, w: Tensor, stride=(1, 1), padding=((0, 0), (0, 0)), dilation=(1, 1), groups: int = 1, out=None,
    accumulate=None,
) -> Tensor:  # fmt: skip
    """Cross-correlation of x[N,C,H,W] with w[O,C/groups,kh,kw], by unfolding."""
    (top, bottom), (left, right) = padding
    x = F.pad(x, (left, right, top, bottom)).contiguous()
    n, c, height, width = x.shape
    o, _, kh, kw = w.shape
    rows = (height - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    columns = (width - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    sn, sc, sh, sw = x.stride()
    patches = x.as_strided(
        (n, c, kh, kw, rows, columns),
        (sn, sc, sh * dilation[0], sw * dilation[1], sh * stride[0], sw * stride[1]),
    ).reshape(n, groups, c // groups * kh * kw, rows * columns)
    result = product(w.reshape(1, groups, o // groups, -1), patches).reshape(n, o, rows, columns)
    return store(result, out, accumulate)


def transposed_as_direct(x: Tensor, w: Tensor, stride, padding, output_padding, dilation, groups: int):
    """The image and kernel whose plain convolution (stride 1, no padding) is the transposed one of x and w."""
    n, c, height, width = x.shape
    spread = x.new_zeros(n, c, (height - 1) * stride[0] + 1, (width - 1) * stride[1] + 1)
    spread[:, :, :: stride[0], :: stride[1]] = x
    kh, kw = w.shape[2:]
    reach = (dilation[0] * (kh - 1), dilation[1] * (kw - 1))
    rows = (reach[0] - padding[0], reach[0] - padding[0] + output_padding[0])
    columns = (reach[1] - padding[1], reach[1] - padding[1] + output_padding[1])
    image = F.pad(spread, [max(side, 0) for side in (*columns, *rows)])
    cut = [
        slice(max(-low, 0), size - max(-high, 0))
        for (low, high), size in zip((rows, columns), image.shape[2:], strict=True)
    ]
    kernel = w.reshape(groups, c // groups, w.shape[1], kh, kw).transpose(1, 2).flip(3, 4)
    return image[:, :, cut[0], cut[1]], kernel.reshape(groups * w.shape[1], c // groups, kh, kw)


# --- Bit planes -------------------------------------------------------------------------------------------------


def pack_bits(bits: Tensor) -> Tensor:
    """Plane of the lowest bit of each entry: [..., N] -> int64[..., W]."""
    n = bits.shape[-1]
    padded = F.pad(bits.to(torch.int64) & 1, (0, -n % 64)).reshape(*bits.shape[:-1], -1, 64)
    return (padded << torch.arange(64, device=bits.device)).sum(-1)


def unpack_bits(words: Tensor, n: int) -> Tensor:
    """The first n bits of a plane, uint8[n]."""
    bits = (words.unsqueeze(-1) >> torch.arange(64, device=words.device)) & 1
    return bits.reshape(-1)[:n].to(torch.uint8)


def msb_plane(x: Tensor, bit: int, offset: int = 0) -> Tensor:
    """Plane of bit number `bit` of each element plus `offset`."""
    return pack_bits(((x.reshape(-1) + offset) >> bit) & 1)


def _digits(x: Tensor, low_bits: int, shift: int) -> Tensor:
    rows = []
    for start in range(0, low_bits, 4):
        by = shift + start
        rows.append((x >> by if by >= 0 else x << -by) & ((1 << min(4, low_bits - start)) - 1))
    return torch.stack(rows)


def thermometer(lam: Tensor, low_bits: int, shift: int = 0) -> Tensor:
    """For each 4-bit digit the word whose bit a says digit >= a, int16[D,N]."""
    return (torch.bitwise_left_shift(2, _digits(lam, low_bits, shift)) - 1).to(torch.int16)


def leaves(m: Tensor, therm: Tensor, low_bits: int, shift: int = 0, offset: int = 0) -> Tensor:
    """Shares of "digit of m + offset < digit of lam" and "digits equal", planes lt0, lt1, eq1, lt2, eq2, ..."""
    words = therm.to(torch.int64) & 0xFFFF
    digits = _digits(m + offset, low_bits, shift)
    at_least = (words >> digits) & 1
    less = (words >> (digits + 1)) & 1
    planes = torch.stack((less, at_least ^ less), dim=1).reshape(-1, m.numel())
    return pack_bits(torch.cat((planes[:1], planes[2:])))


@cache
def product_sets(k: int, with_eq: bool) -> tuple[tuple[tuple[int, ...], ...], ...]:
    """Which input planes each product multiplies: the products of LT, then (if asked for) the one of EQ."""
    lt = [2 * j if with_eq else max(2 * j - 1, 0) for j in range(k)]
    eq = [2 * j + 1 if with_eq else 2 * j for j in range(k)]
    less = tuple(tuple(sorted([lt[j], *eq[j + 1 :]])) for j in range(k))
    return (less, (tuple(eq),)) if with_eq else (less,)


@cache
def monomial_sets(k: int, with_eq: bool) -> tuple[tuple[int, ...], ...]:
    """The sets of two or more input planes whose mask products `combine` needs.

    Order: ascending as binary numbers in which plane p has weight 2^p.
    """
    products = [s for group in product_sets(k, with_eq) for s in group]
    subsets = {t for s in products for size in range(2, len(s) + 1) for t in combinations(s, size)}
    return tuple(sorted(subsets, key=lambda t: sum(1 << p for p in t)))


def monomials(masks: Tensor, k: int, with_eq: bool) -> Tensor:
    """Products of mask planes, int64[Q,W], in the order of `monomial_sets`."""
    sets = monomial_sets(k, with_eq)
    return torch.stack([reduce(torch.bitwise_and, (masks[p] for p in s)) for s in sets])


def combine(opened: Tensor, mask_share: Tensor, monomial_share: Tensor, k: int, with_eq: bool, first: bool) -> Tensor:
    """XOR share of LT (and EQ): every product of (opened ^ mask) multiplied out over the subsets of its planes."""
    place = {s: q for q, s in enumerate(monomial_sets(k, with_eq))}
    everywhere = torch.full_like(opened[0], -1)
    results = []
    for group in product_sets(k, with_eq):
        total = torch.zeros_like(opened[0])
        for planes in group:
            for size in range(0 if first else 1, len(planes) + 1):
                for masked in combinations(planes, size):
                    public = reduce(torch.bitwise_and, (opened[p] for p in planes if p not in masked), everywhere)
                    if size == 0:
                        total ^= public
                    else:
                        total ^= public & (mask_share[masked[0]] if size == 1 else monomial_share[place[masked]])
        results.append(total)
    return torch.stack(results)


# --- Elementwise: truncation, selection, fixed point ----------------------------------------------------------


def _bits(words: Tensor, like: Tensor) -> Tensor:
    return unpack_bits(words, like.numel()).to(torch.int64).reshape(like.shape)


def wrap_dtype(f: int) -> torch.dtype:
    """The narrowest type of at least f bits: what is multiplied by 2^(64-f) counts modulo 2^f only."""
    return torch.int16 if f <= 16 else torch.int32 if f <= 32 else torch.int64


def deal_truncation(lam: Tensor, f: int) -> tuple[Tensor, Tensor]:
    """lam >> f (logical), and the top bit of lam."""
    return shift_right(lam, f), shift_right(lam, 63).to(wrap_dtype(f))


def _shifted(m: Tensor, f: int, offset: int) -> tuple[Tensor, Tensor]:
    """The public part of the truncated value, and whether m's top bit is clear."""
    raised = m + (offset + (1 << 62))
    return shift_right(raised, f) - (1 << (62 - f)), 1 - shift_right(raised, 63)


def truncate(
    m: Tensor, a: Tensor, k: Tensor, f: int, first: bool, offset: int = 0, chat: Tensor | None = None,
    gamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of (x + offset) >> f."""
    public, clear = _shifted(m, f, offset)
    carry = 0 if chat is None else bit_to_ring(chat, gamma, first)
    return (public if first else 0) - a + (clear * k.to(torch.int64) << (64 - f)) - carry


def bit_times(words: Tensor, v: Tensor | None, n: int) -> Tensor:
    """bit * v; the bit itself as 0 or 1 when v is None."""
    bits = unpack_bits(words, n).to(torch.int64)
    return bits if v is None else bits.reshape(v.shape) * v


def select(bhat: Tensor, m: Tensor, lam: Tensor | None, beta: Tensor, beta_lam: Tensor, first: bool) -> Tensor:
    """Share of b * x."""
    bits = _bits(bhat, m)
    own = (m if first else 0) - (0 if lam is None else lam)
    return bits * own + (1 - 2 * bits) * (m * beta - beta_lam)


def select_truncated(
    bhat: Tensor, m: Tensor, a: Tensor, k: Tensor, b: Tensor, ba: Tensor, bk: Tensor, f: int, first: bool,
    offset: int = 0, chat: Tensor | None = None, gamma: Tensor | None = None, bgamma: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Share of b * ((x + offset) >> f)."""
    bits = _bits(bhat, m)
    public, clear = _shifted(m, f, offset)
    other = public * b - ba + (clear * bk.to(torch.int64) << (64 - f))
    if chat is not None:  # b c = bhat c + (1 - 2 bhat) (chat beta + (1 - 2 chat) beta gamma)
        carries = _bits(chat, m)
        other -= carries * b + (1 - 2 * carries) * bgamma
    return bits * truncate(m, a, k, f, first, offset, chat, gamma) + (1 - 2 * bits) * other


def bit_to_ring(bhat: Tensor, beta: Tensor, first: bool) -> Tensor:
    """Share of the bit b as a ring value."""
    bits = _bits(bhat, beta)
    return (bits if first else 0) + (1 - 2 * bits) * beta


def encode(x: Tensor, frac_bits: int) -> Tensor:
    """Nearest integer to x * 2^frac_bits, ties to even."""
    return torch.round(x.double() * 2.0**frac_bits).to(torch.int64)


def decode(x: Tensor, frac_bits: int) -> Tensor:
    """x / 2^frac_bits as float32."""
    return (x.double() * 2.0**-frac_bits).float()


# --- Tables ------------------------------------------------------------------------------------------------------


def unit_vectors(lam: Tensor, size: int) -> Tensor:
    """For each entry the packed unit vector of `size` bits with bit lam mod size set."""
    at = (lam.reshape(-1) & (size - 1)).unsqueeze(1)
    count = max(1, size // 64)
    word = torch.arange(count, device=lam.device).unsqueeze(0)
    return torch.where(word == at // 64, torch.ones_like(at) << (at % 64), torch.zeros_like(at))


def unit_lookup(m: Tensor, bits: Tensor, table: Tensor) -> Tensor:
    """Per column and entry: the sum of table[c][(m - v) mod size] over the set bits v."""
    size, flat = table.shape[1], m.reshape(-1)
    out = m.new_zeros(table.shape[0], flat.numel())
    for v in range(size):
        bit = shift_right(bits[:, v // 64], v % 64) & 1
        out += table[:, (flat - v) & (size - 1)] * bit
    return out
