"""Every kernel variant against its torch twin, and the twins against what they mean."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import kernels
from protocols.gates.sign import groups, opened_planes
from protocols.kernels import twins
from protocols.kernels.checks import conv_sizes, sides
from protocols.kernels.cpu import build
from protocols.kernels.dispatch import bilinear as direct
from protocols.kernels.twins import bilinear

EDGES = (0, 1, -1, 2, 0xFFFF, 1 << 16, (1 << 31) - 1, 1 << 31, 1 << 32, (1 << 62) - 1, 1 << 62, -(1 << 62), -(1 << 63))
SIZES = (1, 63, 64, 65, 200, 1000)
COMPILED = [name for name in kernels.info()["available"] if name != "twins"]
EVERY = kernels.info()["available"]

seeds = st.integers(0, 2**32)
sizes = st.sampled_from(SIZES)
fractions = st.sampled_from((1, 13, 16, 31, 61, 62))


def ring(generator: np.random.Generator, *shape: int) -> torch.Tensor:
    """Ring values of which about half are edge values."""
    wild = generator.integers(-(1 << 63), (1 << 63) - 1, shape, dtype=np.int64, endpoint=True)
    edges = generator.choice(np.array(EDGES, dtype=np.int64), shape)
    return torch.from_numpy(np.where(generator.random(shape) < 0.5, wild, edges))


def words(generator: np.random.Generator, n: int) -> torch.Tensor:
    """A plane of n bits with garbage after the last one."""
    return ring(generator, (n + 63) // 64)


def valid(planes: torch.Tensor, n: int) -> torch.Tensor:
    """The bits of planes that mean something."""
    return torch.stack([twins.unpack_bits(p, n) for p in planes.reshape(-1, planes.shape[-1])])


def unsigned(t: torch.Tensor) -> list[int]:
    return [int(v) & (2**64 - 1) for v in t.reshape(-1).tolist()]


def signed(values) -> torch.Tensor:
    return torch.tensor([(v & (2**64 - 1)) - ((v & (1 << 63)) << 1) for v in values], dtype=torch.int64)


def shares(generator: np.random.Generator, value: torch.Tensor, parties: int, xor: bool = False) -> list[torch.Tensor]:
    """Random tensors that add (or XOR) up to a value."""
    parts = [ring(generator, *value.shape).to(value.dtype) for _ in range(parties - 1)]
    last = value.clone()
    for part in parts:
        last = last ^ part if xor else last - part
    return [*parts, last]


def total(parts: list[torch.Tensor], xor: bool = False) -> torch.Tensor:
    result = parts[0].clone()
    for part in parts[1:]:
        result = result ^ part if xor else result + part
    return result


# --- products -------------------------------------------------------------------------------------------------

DIMENSIONS = st.one_of(st.integers(1, 20), st.sampled_from((31, 33, 64, 100, 130, 300)))


@pytest.mark.parametrize("variant", COMPILED)
@given(seeds, DIMENSIONS, DIMENSIONS, DIMENSIONS, st.integers(0, 3), st.sampled_from((None, "add", "sub")))
@settings(max_examples=60, deadline=None)
def test_matmul_equals_torch(variant, seed, m, k, n, layout, accumulate):
    g = np.random.default_rng(seed)
    a = ring(g, k, m).t() if layout & 1 else ring(g, m, k)
    b = ring(g, n, k).t() if layout & 2 else ring(g, k, n)
    start = ring(g, m, n)
    expected = {None: a @ b, "add": start + a @ b, "sub": start - a @ b}[accumulate]
    with kernels.use(variant):
        assert torch.equal(kernels.matmul(a, b), a @ b)
        result = kernels.matmul(a, b, out=start, accumulate=accumulate)
    assert result is start and torch.equal(start, expected)


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize(
    ("left", "right"),
    [((3, 4, 5), (5, 6)), ((3, 4, 5), (3, 5, 6)), ((2, 1, 4, 5), (3, 5, 6)), ((4, 5), (2, 5, 6)), ((1, 2, 0), (0, 3))],
)
def test_matmul_broadcasts_batches(variant, left, right):
    g = np.random.default_rng(1)
    a, b = ring(g, *left), ring(g, *right)
    with kernels.use(variant):
        assert torch.equal(kernels.matmul(a, b), torch.matmul(a, b))
        heads = ring(g, 2, 7, 3, 8).transpose(1, 2)  # attention heads: neither batch dimension collapses
        assert torch.equal(kernels.matmul(heads, heads.transpose(2, 3)), torch.matmul(heads, heads.transpose(2, 3)))


@pytest.mark.parametrize("variant", EVERY)
def test_matmul_ignores_the_stride_of_an_axis_of_size_one(variant):
    g = np.random.default_rng(3)
    a, b = ring(g, 1, 6, 10).transpose(0, 1), ring(g, 10, 16)
    assert a.is_contiguous() and a.stride(1) != 10
    with kernels.use(variant):
        assert torch.equal(kernels.matmul(a, b), torch.matmul(a, b))


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("shape", [(700, 300, 40), (40, 700, 1100), (16, 5000, 24), (1, 3000, 1500)])
def test_large_products_on_several_threads(variant, shape):
    m, k, n = shape
    g = np.random.default_rng(2)
    for a, b in (
        (ring(g, m, k), ring(g, k, n)),
        (ring(g, m, k), ring(g, n, k).t()),
        (ring(g, k, m).t(), ring(g, k, n)),
    ):
        with kernels.use(variant):
            assert torch.equal(kernels.matmul(a, b), a @ b)


def test_product_wraps_as_python_integers_do():
    g = np.random.default_rng(3)
    a, b = ring(g, 1, 50), ring(g, 50, 1)
    expected = signed([sum(x * y for x, y in zip(unsigned(a), unsigned(b), strict=True))])
    for variant in EVERY:
        with kernels.use(variant):
            assert torch.equal(kernels.matmul(a, b).view(-1), expected)
    assert torch.equal(bilinear.product(a, b, exact_integers=False).view(-1), expected)
    assert torch.equal(bilinear.product(ring(g, 2, 0), ring(g, 0, 2), exact_integers=False), torch.zeros(2, 2).long())


def test_limb_product_equals_integer_product():
    g = np.random.default_rng(4)
    a, b = ring(g, 2, 9, 33), ring(g, 33, 5)
    assert torch.equal(bilinear.product(a, b, exact_integers=False), torch.matmul(a, b))


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("m, k, n", [(0, 5, 3), (1, 1, 1), (3, 513, 64), (9, 1100, 17), (5, 0, 4), (40, 2048, 96)])
def test_sign_products_equal_the_twins(variant, m, k, n):
    generator = np.random.default_rng(7)
    a = ring(generator, m, k).to(torch.int32)
    b = torch.from_numpy(generator.integers(-128, 127, (k, n), dtype=np.int8, endpoint=True))
    expected = (a.long() @ b.sign().long()).to(torch.int32)
    with kernels.use(variant):
        assert torch.equal(kernels.sign_product(a, b), expected)
    assert torch.equal(twins.sign_product(a, b), expected)
    with pytest.raises(TypeError, match="int32 and int8"):
        kernels.sign_product(a.long(), b)
    with pytest.raises(ValueError, match="cannot multiply"):
        kernels.sign_product(a, torch.zeros(k + 1, n, dtype=torch.int8))


def test_matmul_refuses_what_does_not_fit():
    a = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="cannot multiply"):
        kernels.matmul(a, a)
    with pytest.raises(TypeError, match="int64"):
        kernels.matmul(a, a.t().float())
    with pytest.raises(ValueError, match="needs out"):
        kernels.matmul(a, a.t(), accumulate="add")
    with pytest.raises(ValueError, match="out has shape"):
        kernels.matmul(a, a.t(), out=a)


# --- convolutions ---------------------------------------------------------------------------------------------

CONVOLUTIONS = [  # x, w, stride, padding, dilation, groups
    ((1, 1, 28, 28), (6, 1, 5, 5), 1, 2, 1, 1),
    ((3, 6, 14, 14), (16, 6, 5, 5), 1, 0, 1, 1),
    ((1, 40, 2, 2), (200, 40, 3, 3), 1, 1, 1, 1),
    ((5, 12, 2, 2), (20, 12, 3, 3), 1, 1, 1, 1),
    ((2, 9, 4, 4), (33, 9, 3, 3), 1, 1, 1, 1),
    ((2, 16, 9, 7), (24, 16, 1, 1), 2, 0, 1, 1),
    ((1, 3, 19, 23), (7, 3, 7, 3), (2, 3), (3, 1), (1, 2), 1),
    ((2, 8, 11, 11), (8, 1, 3, 3), 1, 1, 1, 8),
    ((2, 6, 8, 8), (9, 2, 3, 3), 2, 1, 1, 3),
    ((1, 2, 5, 6), (3, 2, 2, 4), 1, ((0, 2), (3, 1)), 1, 1),
    ((1, 1, 1, 1), (1, 1, 1, 1), 1, 0, 1, 1),
]


def direct_convolution(x, w, stride, padding, dilation, groups) -> torch.Tensor:
    """The definition, one kernel tap at a time."""
    (sh, sw), (dh, dw) = (v if isinstance(v, tuple) else (v, v) for v in (stride, dilation))
    (top, bottom), (left, right) = sides(padding)
    x = torch.nn.functional.pad(x, (left, right, top, bottom))
    o, per_group, kh, kw = w.shape
    rows, columns = (x.shape[2] - dh * (kh - 1) - 1) // sh + 1, (x.shape[3] - dw * (kw - 1) - 1) // sw + 1
    out = torch.zeros(x.shape[0], o, rows, columns, dtype=torch.int64)
    for j in range(o):
        first = j // (o // groups) * per_group
        for c in range(per_group):
            for r in range(kh):
                for s in range(kw):
                    view = x[:, first + c, r * dh :: sh, s * dw :: sw][:, :rows, :columns]
                    out[:, j] += w[j, c, r, s] * view
    return out


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_conv2d_equals_its_definition(variant, case):
    xs, ws, stride, padding, dilation, groups = case
    g = np.random.default_rng(5)
    x, w = ring(g, *xs), ring(g, *ws)
    expected = direct_convolution(x, w, stride, padding, dilation, groups)
    start = ring(g, *expected.shape)
    with kernels.use(variant):
        assert torch.equal(kernels.conv2d(x, w, stride, padding, dilation, groups), expected)
        for mode, result in ((None, expected), ("add", start + expected), ("sub", start - expected)):
            out = start.clone()
            kernels.conv2d(x, w, stride, padding, dilation, groups, out=out, accumulate=mode)
            assert torch.equal(out, result)


@pytest.mark.parametrize("variant", COMPILED)
@given(seeds, st.data())
@settings(max_examples=40, deadline=None)
def test_conv2d_equals_its_twin(variant, seed, data):
    g = np.random.default_rng(seed)
    n, groups, per_group, per_out = (data.draw(st.integers(1, 3)) for _ in range(4))
    kh, kw, dh, dw, sh, sw = (data.draw(st.integers(1, 3)) for _ in range(6))
    padding = tuple((data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(2))
    h, width = dh * (kh - 1) + data.draw(st.integers(1, 18)), dw * (kw - 1) + data.draw(st.integers(1, 18))
    x, w = ring(g, n, groups * per_group, h, width), ring(g, groups * per_out, per_group, kh, kw)
    arguments = (x, w, (sh, sw), padding, (dh, dw), groups)
    with kernels.use(variant):
        assert torch.equal(kernels.conv2d(*arguments), twins.conv2d(*arguments))


def _in_squares(x, w, padding, side, out, mode=0, threads=1):
    rows, columns = conv_sizes(x.shape, w.shape, (1, 1), padding, (1, 1))
    shape = (*x.shape, len(w), *w.shape[2:], rows, columns, 1, 1, 1, 1, padding[0][0], padding[1][0], 1)
    addresses = (out.data_ptr(), x.data_ptr(), w.data_ptr())
    build.module.conv2d_in_squares(*addresses, shape, mode, threads, *side)
    return out


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("side", list(itertools.product((2, 3, 4), repeat=2)), ids=str)
@given(seeds, st.data())
@settings(max_examples=12, deadline=None)
def test_convolutions_with_fewer_products_equal_their_twin(variant, side, seed, data):
    g = np.random.default_rng(seed)
    n, c, o = (data.draw(st.integers(1, most)) for most in (3, 70, 70))
    padding = tuple((data.draw(st.integers(0, 2)), data.draw(st.integers(0, 2))) for _ in range(2))
    x, w = ring(g, n, c, *(data.draw(st.integers(3, 15)) for _ in range(2))), ring(g, o, c, 3, 3)
    expected = twins.conv2d(x, w, (1, 1), padding)
    start, threads = ring(g, *expected.shape), data.draw(st.integers(1, 3))
    with kernels.use(variant):
        for mode, result in enumerate((expected, start + expected, start - expected)):
            assert torch.equal(_in_squares(x, w, padding, side, start.clone(), mode, threads), result)


@pytest.mark.parametrize("variant", COMPILED)
def test_only_small_kernels_with_steps_of_one_have_squares(variant):
    x, w = torch.zeros(1, 2, 5, 5).long(), torch.zeros(2, 2, 3, 3).long()
    with kernels.use(variant):
        for kernel, side in ((w, (1, 2)), (w, (2, 5)), (w[:, :, :2].contiguous(), (2, 2))):
            with pytest.raises(ValueError, match="conv2d_in_squares"):
                _in_squares(x, kernel, ((0, 0), (0, 0)), side, x)


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize(
    ("xs", "ws", "groups"),
    [
        ((2, 64, 9, 7), (64, 64, 3, 3), 1),
        ((16, 130, 4, 4), (70, 130, 3, 3), 1),
        ((1, 64, 20, 20), (64, 64, 3, 3), 1),
        ((1, 300, 4, 4), (600, 300, 3, 3), 1),
        ((1, 512, 32, 32), (512, 1, 3, 3), 512),
    ],
)
def test_large_convolutions_on_several_threads(variant, xs, ws, groups):
    g = np.random.default_rng(6)
    x, w = ring(g, *xs), ring(g, *ws)
    with kernels.use(variant):
        assert torch.equal(
            kernels.conv2d(x, w, 1, 1, 1, groups), twins.conv2d(x, w, (1, 1), ((1, 1), (1, 1)), (1, 1), groups)
        )


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize(
    "options", [(1, 0, 0, 1, 1), (2, 1, 1, 1, 1), (3, 2, 2, 2, 1), (2, 0, 1, 1, 2), (1, 3, 0, 1, 1)]
)
def test_transposed_convolution_equals_torch_on_small_integers(variant, options):
    stride, padding, extra, dilation, groups = options
    g = np.random.default_rng(7)
    x = torch.from_numpy(g.integers(-50, 50, (2, 4, 5, 6)))
    w = torch.from_numpy(g.integers(-50, 50, (4, 3, 3, 3)))
    expected = torch.nn.functional.conv_transpose2d(
        x.double(), w.double(), None, stride, padding, extra, groups, dilation
    ).long()
    with kernels.use(variant):
        assert torch.equal(kernels.conv_transpose2d(x, w, stride, padding, extra, dilation, groups), expected)


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize(
    "step,cut,extra,gap",
    [((2, 2), (1, 1), (1, 0), (1, 1)), ((1, 1), (0, 0), (0, 0), (1, 2)), ((3, 2), (2, 0), (2, 1), (2, 1))],
)
def test_transposed_convolutions_that_multiply_by_no_zeros(variant, step, cut, extra, gap, monkeypatch):
    g = np.random.default_rng(9)
    x, w = (torch.from_numpy(g.integers(-(2**63), 2**63, shape)) for shape in ((2, 4, 5, 6), (4, 3, 4, 3)))
    with kernels.use(variant):
        expected = kernels.conv2d(*bilinear.transposed_as_direct(x, w, step, cut, extra, gap, 1), 1, 0, gap)
        monkeypatch.setattr(direct, "conv2d", lambda *given: pytest.fail("an image between zeros"))
        assert torch.equal(kernels.conv_transpose2d(x, w, step, cut, extra, gap), expected)
        for accumulate, right in (("add", 7 + expected), ("sub", 7 - expected), (None, expected)):
            out = torch.full_like(expected, 7)
            made = kernels.conv_transpose2d(x, w, step, cut, extra, gap, out=out, accumulate=accumulate)
            assert made.data_ptr() == out.data_ptr() and torch.equal(out, right)
        with pytest.raises(ValueError, match="conv_transpose2d"):
            kernels.conv_transpose2d(x, w, step, cut, extra, gap, out=expected[..., :-1].contiguous())


@pytest.mark.parametrize("variant", EVERY)
def test_one_dimensional_convolutions(variant):
    g = np.random.default_rng(8)
    x, w = torch.from_numpy(g.integers(-9, 9, (2, 4, 30))), torch.from_numpy(g.integers(-9, 9, (6, 2, 5)))
    expected = torch.nn.functional.conv1d(x.double(), w.double(), None, 2, 3, 1, 2).long()
    back = torch.nn.functional.conv_transpose1d(expected.double(), w.double(), None, 2, 3, 1, 2).long()
    with kernels.use(variant):
        assert torch.equal(kernels.conv1d(x, w, 2, 3, 1, 2), expected)
        assert torch.equal(kernels.conv_transpose1d(expected, w, 2, 3, 1, 1, 2), back)
        out = torch.ones_like(expected)
        kernels.conv1d(x, w, 2, 3, 1, 2, out=out, accumulate="add")
        assert torch.equal(out, expected + 1)


def test_conv2d_refuses_what_does_not_fit():
    x, w = torch.zeros(1, 4, 5, 5, dtype=torch.int64), torch.zeros(6, 4, 3, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="do not fit"):
        kernels.conv2d(x, w, groups=2)
    with pytest.raises(ValueError, match="larger than"):
        kernels.conv2d(x, w, dilation=3)
    with pytest.raises(ValueError, match="stride"):
        kernels.conv2d(x, w, stride=0)


HUGE = (1 << 31, 1 << 62, 1 << 63)


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("kind", ["conv2d", "conv_transpose2d"])
def test_convolutions_refuse_sizes_that_would_leave_memory(variant, kind):
    convolve, x, w = getattr(kernels, kind), torch.ones(1, 2, 5, 5).long(), torch.ones(2, 2, 3, 3).long()
    with kernels.use(variant):
        for empty in ((x[:0], w), (x, w[:0]), (x[:, :0], w[:, :0]), (x[:, :, :0], w), (x, w[:, :, :0])):
            with pytest.raises(ValueError, match="nothing to multiply"):
                convolve(*empty)
        names = ("stride", "padding", "dilation", *(["output_padding"] if kind != "conv2d" else []))
        for name in names:
            for huge in (*HUGE, -1, 1.5):
                with pytest.raises(ValueError, match=name):
                    convolve(x, w, **{name: huge})
        most = (1 << 31) - 1
        with pytest.raises(ValueError, match="no size of a tensor|leaves nothing"):
            convolve(x, w, padding=most, dilation=most) if kind == "conv2d" else convolve(x, w, most, 0, 0, most)
        for groups in (0, -1, 3, 1 << 63):
            with pytest.raises(ValueError, match="nothing to multiply|do not fit"):
                convolve(x, w, groups=groups)


@pytest.mark.parametrize("variant", COMPILED)
def test_the_compiled_convolution_checks_sizes_again(variant):
    native, x = build.builds[variant], torch.ones(64, dtype=torch.int64)
    good = [1, 1, 3, 3, 1, 1, 1, 3, 3, 1, 1, 1, 1, 0, 0, 1]
    for place in range(16):
        for size in (0, -1, 1 << 62) if place not in (13, 14) else (-1, 1 << 62):
            sizes = [*good[:place], size, *good[place + 1 :]]
            if place not in (4, 9, 10, 11, 12, 15) or size <= 0:  # a step beside one tap or row is never taken
                with pytest.raises(ValueError, match="conv2d"):
                    native.conv2d(x.data_ptr(), x.data_ptr(), x.data_ptr(), sizes, 0, 1)


@pytest.mark.parametrize("variant", EVERY)
def test_transposed_convolutions_may_crop_all_of_the_image(variant):
    x, w = torch.tensor([[[[3]]]]), torch.tensor([[[[5]]]])
    with kernels.use(variant):
        assert kernels.conv_transpose2d(x, w, 5, 2, 4).tolist() == [[[[0]]]]


@pytest.mark.parametrize("variant", EVERY)
def test_results_too_large_for_any_memory_are_refused(variant):
    one = torch.ones(1, 1, dtype=torch.int64)
    with kernels.use(variant), pytest.raises(ValueError, match="no size of a tensor"):
        kernels.matmul(one.expand(1 << 32, 1), one.expand(1, 1 << 32))
    with kernels.use(variant):
        assert kernels.matmul(one[:0], one).shape == (0, 1)
        assert kernels.unit_lookup(one[:0].view(0), one[:0], torch.ones(1, 64, dtype=torch.int64)).shape == (1, 0)
        with pytest.raises(ValueError, match="no -10 bits"):
            kernels.unpack_bits(one[:0].view(0), -10)


# --- bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", EVERY)
@given(seeds, sizes, st.integers(0, 63))
@settings(max_examples=30, deadline=None)
def test_packing(variant, seed, n, bit):
    g = np.random.default_rng(seed)
    x = ring(g, n)
    bits = ((x >> bit) & 1).to(torch.uint8)
    with kernels.use(variant):
        packed = kernels.pack_bits(bits)
        assert sum(v << (64 * i) for i, v in enumerate(unsigned(packed))) % 2**n == sum(
            int(b) << i for i, b in enumerate(bits)
        )
        assert torch.equal(kernels.pack_bits(bits.bool()), packed)
        assert torch.equal(kernels.pack_bits(torch.stack([bits, bits], 1)[:, 0]), packed), "elements apart in memory"
        assert torch.equal(kernels.unpack_bits(packed, n), bits)
        assert torch.equal(kernels.unpack_bits(kernels.msb_plane(x, bit), n), bits)


bit_ranges = st.sampled_from(
    (
        (63, 0),
        (31, 0),
        (1, 0),
        (4, 0),
        (6, 3),
        (13, 16),
        (1, 63),
        (64, 0),
        (47, 16),
        (15, 1),
        (66, -3),
        (16, -4),
        (65, -63),
    )
)
offsets = st.sampled_from((0, 1, 1 << 15, (1 << 62) - 1))


@pytest.mark.parametrize("variant", EVERY)
@given(seeds, sizes, bit_ranges, offsets)
@settings(max_examples=40, deadline=None)
def test_leaves_compare_digits(variant, seed, n, bits, offset):
    low_bits, shift = bits
    g = np.random.default_rng(seed)
    lam = ring(g, n)
    m = torch.where(torch.from_numpy(g.random(n) < 0.3), lam, ring(g, n))
    with kernels.use(variant):
        therm = kernels.thermometer(lam, low_bits, shift)
        assert torch.equal(therm, twins.thermometer(lam, low_bits, shift))
        parts = [kernels.leaves(m, t, low_bits, shift, offset) for t in shares(g, therm, 3, xor=True)]
    seen = iter(valid(total(parts, xor=True), n).bool())
    seen_from = lambda v: (v >> shift if shift >= 0 else v << -shift) % (1 << low_bits)
    low = [[seen_from(v) for v in unsigned(t)] for t in (m + offset, lam)]
    for d in range((low_bits + 3) // 4):
        mine, mask = ([(v >> (4 * d)) & 15 for v in row] for row in low)
        assert next(seen).tolist() == [a < b for a, b in zip(mine, mask, strict=True)]
        if d:
            assert next(seen).tolist() == [a == b for a, b in zip(mine, mask, strict=True)]


def test_monomial_sets_are_the_documented_ones():
    assert kernels.monomial_sets(2, False) == ((0, 1),)
    assert kernels.monomial_sets(2, True) == ((0, 2), (1, 2))
    assert [len(kernels.monomial_sets(4, e)) for e in (False, True)] == [15, 22]


@pytest.mark.parametrize("variant", EVERY)
@given(seeds, st.sampled_from(((2, 0), (5, 0), (5, 2), (16, 0), (16, 4), (17, 1), (7, 3))), st.sampled_from((1, 3, 65)))
@settings(max_examples=15, deadline=None)
def test_a_layer_is_all_its_groups(variant, seed, digits, w):
    g, layout = np.random.default_rng(seed), groups(*digits)
    bits = ring(g, 2 * digits[0] - 1, w)
    masks = ring(g, len(opened_planes(*digits)), w)
    with kernels.use(variant):
        made = kernels.monomials_layer(masks, layout)
        assert torch.equal(made, twins.monomials_layer(masks, layout))
        for first in (0, 1):
            assert torch.equal(
                kernels.combine_layer(masks ^ 5, masks, made, bits, layout, first),
                twins.combine_layer(masks ^ 5, masks, made, bits, layout, first),
            )


def test_layers_of_no_groups_are_refused():
    x = torch.zeros(20, 1, dtype=torch.int64)
    for layout in (((1, 4),), ((0, 5),), ((0, 2), (3, 2))):
        with pytest.raises(ValueError, match="not groups of 1 to 4 digits"):
            kernels.monomials_layer(x, layout)
    with pytest.raises(ValueError, match="combine_layer: bits must hold 7 planes"):
        kernels.combine_layer(x[:6], x[:6], x[:15], x, ((0, 4),), 1)


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("with_eq", [False, True])
@pytest.mark.parametrize("k", [2, 3, 4])
@given(seeds, st.sampled_from((1, 2, 17)), st.sampled_from((2, 3)))
@settings(max_examples=10, deadline=None)
def test_combine_is_the_comparison_of_the_group(variant, k, with_eq, seed, w, parties):
    g = np.random.default_rng(seed)
    count = 2 * k if with_eq else 2 * k - 1
    bits, masks = ring(g, count, w), ring(g, count - 1, w)
    opened, top = torch.cat((bits[: count - 2], bits[count - 1 :])), bits[count - 2]
    less = {j: bits[2 * j if with_eq else max(2 * j - 1, 0)] for j in range(k)}
    equal = {j: bits[2 * j + 1 if with_eq else 2 * j] for j in range(0 if with_eq else 1, k)}
    lt, eq = less[0].clone(), torch.full((w,), -1)
    for j in range(1, k):
        lt = less[j] ^ (equal[j] & lt)
    for plane in equal.values():
        eq &= plane
    with kernels.use(variant):
        products = kernels.monomials(masks, k, with_eq)
        assert torch.equal(products, twins.monomials(masks, k, with_eq))
        dealt = zip(*(shares(g, x, parties, xor=True) for x in (masks, products, top)), strict=True)
        parts = [kernels.combine(opened ^ masks, *mine, k, with_eq, i == 1) for i, mine in enumerate(dealt)]
    assert torch.equal(total(parts, xor=True), torch.stack((lt, eq) if with_eq else (lt,)))


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("parties", [2, 3])
@given(seeds, sizes)
@settings(max_examples=10, deadline=None)
def test_sixteen_digits_compare_numbers(variant, parties, seed, n):
    """Leaves, then two layers of combination: [m < lam] on 63 bits, the way a sign is computed."""
    g = np.random.default_rng(seed)
    lam = ring(g, n)
    m = torch.where(torch.from_numpy(g.random(n) < 0.5), lam ^ (1 << g.integers(0, 62)), ring(g, n))

    def layer(parts, k, with_eq):
        count, w = parts[0].shape
        masks, whole = ring(g, count - 1, w), total(parts, xor=True)
        opened = torch.cat((whole[: count - 2], whole[count - 1 :])) ^ masks
        products = shares(g, kernels.monomials(masks, k, with_eq), parties, xor=True)
        mask_shares = shares(g, masks, parties, xor=True)
        return [
            kernels.combine(opened, mask_shares[i], products[i], parts[i][count - 2], k, with_eq, i == 0)
            for i in range(parties)
        ]  # fmt: skip

    with kernels.use(variant):
        therm = kernels.thermometer(lam, 63)
        parts = [kernels.leaves(m, t, 63) for t in shares(g, therm, parties, xor=True)]
        upper = [layer([p[:7] for p in parts], 4, False)]
        upper += [layer([p[8 * i - 1 : 8 * i + 7].contiguous() for p in parts], 4, True) for i in (1, 2, 3)]
        top = layer([torch.cat(groups) for groups in zip(*upper, strict=True)], 4, False)
    low = (1 << 63) - 1
    expected = [(a & low) < (b & low) for a, b in zip(unsigned(m), unsigned(lam), strict=True)]
    assert valid(total(top, xor=True), n)[0].bool().tolist() == expected


# --- elementwise ------------------------------------------------------------------------------------------------


def small_ring(g: np.random.Generator, n: int) -> torch.Tensor:
    """Values of magnitude below 2^62, the range in which truncation is right."""
    x = ring(g, n) >> int(g.integers(2, 50))
    return torch.where(torch.from_numpy(g.random(n) < 0.3), signed([(1 << 62) - 1] * n) * (1 - 2 * (x & 1)), x)


def narrow_shares(g: np.random.Generator, t: torch.Tensor, parties: int) -> list[torch.Tensor]:
    """Additive shares modulo 2 to the width of the tensor's type."""
    return [share.to(t.dtype) for share in shares(g, t.long(), parties)]


@pytest.mark.parametrize("variant", EVERY)
@given(seeds, sizes, fractions, st.sampled_from((2, 3)))
@settings(max_examples=30, deadline=None)
def test_truncation_is_floor_or_one_above(variant, seed, n, f, parties):
    g = np.random.default_rng(seed)
    x, lam = small_ring(g, n), ring(g, n)
    m = x + lam
    with kernels.use(variant):
        a, k = kernels.deal_truncation(lam, f)
        pairs = zip(shares(g, a, parties), narrow_shares(g, k, parties), strict=True)
        result = total([kernels.truncate(m, *pair, f, i == 0) for i, pair in enumerate(pairs)])
    excess = result - (x >> f)
    assert ((excess == 0) | (excess == 1)).all()


@pytest.mark.parametrize("variant", EVERY)
@given(seeds, sizes, fractions, st.sampled_from((2, 3)))
@settings(max_examples=30, deadline=None)
def test_selection_is_bit_times_value(variant, seed, n, f, parties):
    g = np.random.default_rng(seed)
    x, lam, opened = small_ring(g, n), ring(g, n), words(g, n)
    m, beta = x + lam, ring(g, n) & 1
    bit = twins.unpack_bits(opened, n).long() ^ beta
    with kernels.use(variant):
        split = [shares(g, t, parties) for t in (lam, beta, beta * lam)]
        parts = [kernels.select(opened, m, *(s[i] for s in split), i == 0) for i in range(parties)]
        assert torch.equal(total(parts), bit * x)
        assert torch.equal(total([kernels.bit_to_ring(opened, s, i == 0) for i, s in enumerate(split[1])]), bit)
        a, k = kernels.deal_truncation(lam, f)
        short = kernels.truncate(m, a, k, f, True)
        wraps = [narrow_shares(g, t, parties) for t in (k, beta.to(k.dtype) * k)]
        wide = [shares(g, t, parties) for t in (a, beta, beta * a)]
        split = (wide[0], wraps[0], wide[1], wide[2], wraps[1])
        parts = [kernels.select_truncated(opened, m, *(s[i] for s in split), f, i == 0) for i in range(parties)]
        assert torch.equal(total(parts), bit * short)
        assert torch.equal(kernels.bit_times(opened, x, n), twins.unpack_bits(opened, n).long() * x)
        assert torch.equal(kernels.bit_times(opened, None, n), twins.unpack_bits(opened, n).long())


@pytest.mark.parametrize("variant", COMPILED)
@pytest.mark.parametrize("first", [False, True])
@given(seeds, sizes, fractions)
@settings(max_examples=20, deadline=None)
def test_elementwise_kernels_equal_their_twins(variant, first, seed, n, f):
    g = np.random.default_rng(seed)
    m, a, k, b, ba, bk = (ring(g, n) for _ in range(6))
    k, bk = k.to(kernels.wrap_dtype(f)), bk.to(kernels.wrap_dtype(f))
    plane, other = words(g, n), words(g, n)
    calls = [
        ("deal_truncation", (m, f)),
        ("truncate", (m, a, k, f, first)),
        ("truncate", (m, a, k, f, first, 1 << (f - 1), other, b)),
        ("msb_plane", (m, 63, 1 << (f - 1))),
        ("bit_times", (plane, m, n)),
        ("select", (plane, m, a, b, ba, first)),
        ("select", (plane, m, None, b, ba, first)),
        ("select_truncated", (plane, m, a, k, b, ba, bk, f, first)),
        ("select_truncated", (plane, m, a, k, b, ba, bk, f, first, 1 << (f - 1), other, a, ba)),
        ("bit_to_ring", (plane, b, first)),
        ("decode", (m, 16)),
        ("encode", ((m >> 16).double() / 2**20, 13)),
        ("encode", ((m >> 40).float() / 2**20, 21)),
    ]
    with kernels.use(variant):
        for name, arguments in calls:
            mine, twin = getattr(kernels, name)(*arguments), getattr(twins, name)(*arguments)
            pairs = zip(mine, twin, strict=True) if isinstance(mine, tuple) else [(mine, twin)]
            assert all(torch.equal(x, y) for x, y in pairs), name


@pytest.mark.parametrize("variant", EVERY)
def test_fixed_point_rounds_to_nearest_even(variant):
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 0.25, 3.0, -(2.0**40)])
    with kernels.use(variant):
        assert kernels.encode(x, 0).tolist() == [0, 2, 2, 0, -2, 0, 3, -(2**40)]
        assert kernels.encode(x[:2], 16).tolist() == [1 << 15, 3 << 15]
        assert torch.equal(kernels.decode(kernels.encode(x, 16), 16), x)
        assert kernels.encode(x.view(2, 4).t(), 16).shape == (4, 2)


@pytest.mark.parametrize("variant", COMPILED)
def test_large_elementwise_work_on_several_threads(variant):
    n = (1 << 20) + 77
    g = np.random.default_rng(9)
    m, a, k = (ring(g, n) for _ in range(3))
    plane = words(g, n)
    with kernels.use(variant):
        narrow = k.to(kernels.wrap_dtype(16))
        assert torch.equal(kernels.truncate(m, a, narrow, 16, True), twins.truncate(m, a, narrow, 16, True))
        assert torch.equal(kernels.bit_times(plane, m, n), twins.bit_times(plane, m, n))
        therm = kernels.thermometer(m, 21, 8)
        assert torch.equal(therm, twins.thermometer(m, 21, 8))
        assert torch.equal(valid(kernels.leaves(a, therm, 21, 8), n), valid(twins.leaves(a, therm, 21, 8), n))


# --- choice of variant ----------------------------------------------------------------------------------------


def test_use_names_what_is_missing():
    before = kernels.info()["variant"]
    with pytest.raises(ValueError, match="not available"), kernels.use("v9"):
        pass
    with kernels.use("twins"):
        assert kernels.info()["variant"] == "twins"
    assert kernels.info()["variant"] == before


def test_wrong_sizes_are_refused_before_memory_is_touched():
    x, plane = torch.zeros(100, dtype=torch.int64), torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match="words"):
        kernels.bit_to_ring(plane[:1], x, True)
    with pytest.raises(ValueError, match="entries"):
        kernels.truncate(x, x[:50], x, 16, True)
    with pytest.raises(ValueError, match="truncate by 63"):
        kernels.deal_truncation(x, 63)
    with pytest.raises(ValueError, match="int16"):
        kernels.leaves(x, torch.zeros(15, 100, dtype=torch.int16), 63)
    with pytest.raises(ValueError, match="2 to 4"):
        kernels.monomials(x.view(10, 10), 5, False)
    with pytest.raises(ValueError, match="planes"):
        kernels.combine(x.view(10, 10), x.view(10, 10), x.view(10, 10), x[:10], 4, False, True)
    with pytest.raises(ValueError, match="fit together"):
        kernels.combine(x[:20].view(2, 10), x[:20].view(2, 10), x[:10].view(1, 10), x[:9], 2, False, True)
