"""One conformance suite for all gates: shares of two and three parties against one line in the clear.

Secrets are masked, dealt for, evaluated party by party and put together again, with nothing but
`protocols.correlations`; what comes out must equal the clear version in the ring, bit for bit.
"""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import correlations, kernels
from protocols.bilinear import BILINEAR
from protocols.gates import GATES, dealt_bytes
from protocols.gates.beyond import excess, factors
from protocols.gates.sign import digit_count, groups, leaf_planes, opened_bits, opened_planes
from protocols.prg import Stream, insecure_test_key
from protocols.shares import Masked, MaskedBits, Order, Role, add_shares, public_share, to_additive, words

EDGES = (0, 1, -1, 2, -2, 0xFFFF, 1 << 16, -(1 << 16), (1 << 31) - 1, 1 << 32, (1 << 62) - 1, 1 << 62, -(1 << 62))
WILD_EDGES = (*EDGES, (1 << 63) - 1, -(1 << 63), -(1 << 63) + 1)
PARTIES = (2, 3)
EVERYBODY = "everybody"

seeds = st.integers(0, 2**32)
party_counts = st.sampled_from(PARTIES)


@dataclass
class Table:
    """The parties and the dealer of one test: their streams, and fresh node numbers."""

    parties: int
    seed: int
    nodes: int = 0
    streams: list[Stream] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.streams = [Stream(insecure_test_key(self.seed, f"party {i}")) for i in range(self.parties)]

    def node(self) -> int:
        self.nodes += 1
        return self.nodes

    def roles(self) -> list[Role]:
        return [Role(rank, self.parties) for rank in range(self.parties)]

    def mask(self, x: torch.Tensor, by=EVERYBODY) -> tuple[list[Masked], torch.Tensor]:
        """Every party's masked form of ring values, and the whole mask; `by` a rank: an input of that party."""
        node, by = self.node(), range(self.parties) if by == EVERYBODY else [by]
        lams = [correlations.mask_share(s, 1, node, x.shape) if i in by else None for i, s in enumerate(self.streams)]
        full = correlations.full_mask([self.streams[i] for i in by], 1, node, x.shape)
        return [Masked(x + full, lam) for lam in lams], full

    def mask_bits(self, planes: torch.Tensor) -> tuple[list[MaskedBits], torch.Tensor]:
        """Every party's masked form of packed bits, and the whole mask."""
        node = self.node()
        betas = [correlations.bit_mask_share(s, 1, node, planes.shape) for s in self.streams]
        full = correlations.full_bit_mask(self.streams, 1, node, planes.shape)
        return [MaskedBits(planes ^ full, beta) for beta in betas], full

    def layer(self, attrs: dict, planes: torch.Tensor, shape) -> list[torch.Tensor]:
        """Every party's result of a layer over the planes of digits, of which it opens some under masks."""
        node = self.node()
        parts = [correlations.bit_mask_share(s, 1, node, planes.shape) for s in self.streams[1:]]
        shares = [xor([planes, *parts]), *parts]
        opened = self.mask_bits(opened_bits(attrs, planes))
        return self.gate("combine", attrs, [opened, (shares, torch.zeros_like(planes))], shape)

    def hide(self, positions: torch.Tensor, size: int, by: int) -> tuple[list[Order], torch.Tensor]:
        """Every party's form of positions that a party gives, and the order that it and the dealer know."""
        order = correlations.hidden_order(self.streams[by], 1, self.node(), size)
        at = correlations.hidden_positions(positions, order)
        return [Order(at, order if rank == by else None) for rank in range(self.parties)], order

    def gate(self, name: str, attrs: dict, operands, shape) -> list[torch.Tensor]:
        """Every party's result of a gate on what `mask` or `mask_bits` returned."""
        gate, node = GATES[name], self.node()
        masks = [full for _, full in operands]
        shapes = [tuple(full.shape) for full in masks]
        parts = gate.parts(attrs, shapes, shape)
        fixed = correlations.corrections(self.streams[:-1], 1, node, parts, gate.deal(attrs, masks))
        assert [(tuple(t.shape), t.dtype) for t in fixed] == [(p.shape, p.dtype) for p in parts]
        sent = correlations.packed(fixed, parts)
        assert sum(t.numel() * t.element_size() for t in sent) == dealt_bytes(gate, attrs, shapes, shape)
        results = []
        for role, stream in zip(self.roles(), self.streams, strict=True):
            dealt = correlations.expand_share(stream, 1, node, parts)
            if role.last:
                (dealt,) = correlations.unpacked([list(zip(parts, sent, strict=True))])
            results.append(gate.evaluate(role, attrs, [forms[role.rank] for forms, _ in operands], dealt))
        return results


def total(shares) -> torch.Tensor:
    """The value of additive shares."""
    out = None
    for share in shares:
        out = add_shares(out, share)
    return out


def xor(shares) -> torch.Tensor:
    """The planes of exclusive-or shares."""
    out = shares[0].clone()
    for share in shares[1:]:
        out ^= share
    return out


def ring(rng: np.random.Generator, *shape: int, edges=WILD_EDGES, low: int = -(1 << 63), high: int = (1 << 63) - 1):
    """Ring values within [low, high], about half of them edge values."""
    wild = rng.integers(low, high, shape, dtype=np.int64, endpoint=True)
    legal = np.array([e for e in edges if low <= e <= high], dtype=np.int64)
    return torch.from_numpy(np.where(rng.random(shape) < 0.5, wild, rng.choice(legal, shape)))


def bits(rng: np.random.Generator, n: int) -> tuple[torch.Tensor, torch.Tensor]:
    """n random bits as 0 and 1, and packed with garbage after the last one."""
    plain = torch.from_numpy(rng.integers(0, 2, n))
    packed = kernels.pack_bits(plain.to(torch.uint8))
    if n % 64:
        packed[-1] |= ring(rng, 1)[0] << (n % 64)
    return plain, packed.unsqueeze(0)


def floor(x: torch.Tensor, bits_: int) -> torch.Tensor:
    return x >> bits_


@pytest.mark.parametrize("parties", PARTIES)
def test_the_shares_of_a_public_value_add_up_to_it(parties):
    x, roles = torch.arange(5), [Role(rank, parties) for rank in range(parties)]
    assert sum(role.public for role in roles) == 1
    assert torch.equal(total(public_share(x, role) for role in roles), x)
    masked = [Masked(x, None) for _ in roles]
    assert torch.equal(total(to_additive(m, role) for m, role in zip(masked, roles, strict=True)), x)


def test_gates_take_their_part_of_public_terms_from_the_role():
    """A role whose number is not 0 or 1 has that many times the term: nobody asks for the rank instead."""

    class Thrice(Role):
        public = 3

    x, zero = torch.arange(4), torch.zeros(4, dtype=torch.int64)
    role, form = Thrice(1, 2), Masked(torch.arange(4), None)
    assert torch.equal(to_additive(form, role), 3 * x)
    assert torch.equal(GATES["square"].evaluate(role, {}, [form], {"square": zero}), 3 * x * x)
    attrs = {"kind": "mul", "attrs": {}}
    assert torch.equal(GATES["bilinear"].evaluate(role, attrs, [form, form], {"product": zero.clone()}), 3 * x * x)


# --- products -------------------------------------------------------------------------------------------------

CLEAR = {
    "mul": lambda x, y: x * y,
    "matmul": torch.matmul,
    "conv1d": F.conv1d,
    "conv2d": F.conv2d,
    "conv_transpose1d": F.conv_transpose1d,
    "conv_transpose2d": F.conv_transpose2d,
}


def _conv_case(draw, dims: int, turned: bool):
    one = lambda low, high: draw(st.integers(low, high))
    groups_ = one(1, 2)
    channels, filters, batch = groups_ * one(1, 2), groups_ * one(1, 3), one(1, 2)
    kernel, dilation, stride = ([one(1, 3) for _ in range(dims)], [one(1, 2) for _ in range(dims)], one(1, 3))
    size = [d * (k - 1) + one(1, 4) for k, d in zip(kernel, dilation, strict=True)]
    attrs = {"stride": [stride] * dims, "dilation": dilation, "groups": groups_}
    if turned:
        attrs["padding"] = [min(one(0, 1), (k - 1) * d) for k, d in zip(kernel, dilation, strict=True)]
        attrs["output_padding"] = [one(0, min(stride - 1, 1)) for _ in range(dims)]
        weight = (channels, filters // groups_, *kernel)
    else:
        attrs["padding"] = [one(0, 2) for _ in range(dims)]
        weight = (filters, channels // groups_, *kernel)
    if dims == 1:
        attrs = {name: value[0] if isinstance(value, list) else value for name, value in attrs.items()}
    return (batch, channels, *size), weight, attrs


@st.composite
def products(draw):
    """(kind, shape of x, shape of y, attributes)."""
    kind = draw(st.sampled_from(sorted(BILINEAR)))
    size = lambda: draw(st.integers(1, 5))
    if kind == "mul":
        pairs = [((3, 4), (3, 4)), ((2, 3, 4), (3, 1)), ((5,), ()), ((1, 4), (3, 1)), ((70,), (70,))]
        x, y = draw(st.sampled_from(pairs))
        return kind, x, y, {}
    if kind == "matmul":
        m, k, n = size(), size(), size()
        batch_x, batch_y = draw(st.sampled_from([((), ()), ((3,), ()), ((3,), (3,)), ((2, 1), (3,)), ((2, 3), ())]))
        return kind, (*batch_x, m, k), (*batch_y, k, n), {}
    return kind, *_conv_case(draw, 1 if kind.endswith("1d") else 2, "transpose" in kind)


@settings(deadline=None, max_examples=150)
@given(seeds, party_counts, products(), st.sampled_from([EVERYBODY, 0, 1]), st.sampled_from([EVERYBODY, 0, 1]))
def test_bilinear(seed, parties, product, x_by, y_by):
    kind, x_shape, y_shape, attrs = product
    rng = np.random.default_rng(seed)
    x, y, table = ring(rng, *x_shape), ring(rng, *y_shape), Table(parties, seed)
    clear = CLEAR[kind](x, y, **attrs)
    operands = [table.mask(x, x_by), table.mask(y, y_by)]
    shares = table.gate("bilinear", {"kind": kind, "attrs": attrs}, operands, tuple(clear.shape))
    assert torch.equal(total(shares), clear)


def test_every_bilinear_kind_is_drawn():
    assert set(CLEAR) == set(BILINEAR)


@pytest.mark.parametrize("parties", PARTIES)
def test_bilinear_in_two_halves_equals_one(parties):
    rng, attrs = np.random.default_rng(5), {"kind": "matmul", "attrs": {}}
    x, y, table, gate = ring(rng, 3, 7), ring(rng, 7, 2), Table(parties, 5), GATES["bilinear"]
    (xs, x_lam), (ys, y_lam) = table.mask(x), table.mask(y, by=0)
    parts = gate.parts(attrs, [x.shape, y.shape], (3, 2))
    last = correlations.corrections(table.streams[:-1], 1, 9, parts, gate.deal(attrs, [x_lam, y_lam]))
    shares = []
    for role, stream in zip(table.roles(), table.streams, strict=True):
        dealt = {"product": last[0]} if role.last else correlations.expand_share(stream, 1, 9, parts)
        prepared = gate.prepare(attrs, xs[role.rank].lam, ys[role.rank].m, dealt)
        shares.append(gate.finish(attrs, xs[role.rank].m, to_additive(ys[role.rank], role), prepared))
    assert torch.equal(total(shares), x @ y)


@settings(deadline=None, max_examples=30)
@given(seeds, party_counts, st.sampled_from([EVERYBODY, 0, 1]))
def test_square(seed, parties, by):
    x, table = ring(np.random.default_rng(seed), 3, 50), Table(parties, seed)
    assert torch.equal(total(table.gate("square", {}, [table.mask(x, by)], (3, 50))), x * x)


# --- truncation -------------------------------------------------------------------------------------------------

IN_RANGE = {"low": -(1 << 62), "high": (1 << 62) - 1}


@settings(deadline=None, max_examples=100)
@given(seeds, party_counts, st.integers(1, 61), st.sampled_from([EVERYBODY, 0]))
def test_truncate_is_floor_or_one_more(seed, parties, f, by):
    x, table = ring(np.random.default_rng(seed), 4, 50, **IN_RANGE), Table(parties, seed)
    error = total(table.gate("truncate", {"bits": f}, [table.mask(x, by)], (4, 50))) - floor(x, f)
    assert bool(((error == 0) | (error == 1)).all())
    exact = (x & ((1 << f) - 1)) == 0
    assert not error[exact].any(), "a multiple of 2^f has nothing to round"


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.9])
def test_truncate_rounds_without_bias(parties, fraction):
    count, f = 1 << 16, 16
    x, table = torch.full((count,), 5 * (1 << f) + int(fraction * (1 << f))), Table(parties, 77)
    made = total(table.gate("truncate", {"bits": f}, [table.mask(x)], (count,)))
    up = (made - 5).double().mean().item()
    assert abs(up - fraction) < 6 * (fraction * (1 - fraction) / count) ** 0.5


def carry(table: Table, x: torch.Tensor, lam: torch.Tensor, f: int, offset: int) -> torch.Tensor:
    """The carry that an exact truncation reads, as packed bits."""
    low = (1 << f) - 1
    return kernels.pack_bits((((x + lam + offset) & low) < (lam & low)).reshape(-1)).unsqueeze(0)


@settings(deadline=None, max_examples=100)
@given(seeds, party_counts, st.integers(1, 61), st.booleans(), st.sampled_from([EVERYBODY, 0]))
def test_truncate_with_a_carry_is_exact(seed, parties, f, nearest, by):
    x, table = ring(np.random.default_rng(seed), 4, 50, **IN_RANGE), Table(parties, seed)
    offset = 1 << (f - 1) if nearest else 0
    x = x.clamp(max=(1 << 62) - 1 - offset)
    (forms, lam), attrs = table.mask(x, by), {"bits": f, "offset": offset}
    operands = [(forms, lam), table.mask_bits(carry(table, x, lam, f, offset))]
    assert torch.equal(total(table.gate("truncate", attrs, operands, (4, 50))), floor(x + offset, f))


MODULI = range(8, 64, 8)


@dataclass
class Small:
    """Values that are known to be small, of which the low bits are opened, and a truncation of which few bits are read."""

    table: Table
    x: torch.Tensor
    opened: tuple[list[Masked], torch.Tensor]
    attrs: dict
    carried: list

    def right(self, made, factor: torch.Tensor | int = 1) -> None:
        """With a carry it is exact; else each is the floor or one more. Of multiples of 2^f there is nothing to round."""
        attrs = self.attrs
        offset, known = attrs.get("offset", 0), 64 - attrs.get("read", 64)
        error = (total(made) - factor * floor(self.x + offset, attrs["bits"])) << known
        more = (torch.full_like(self.x, 1) * factor) << known
        whole = (self.x & ((1 << attrs["bits"]) - 1)) == 0
        assert not error[whole].any() and bool(((error == 0) | (error == more)).all())
        assert "offset" not in attrs or not error.any()


def small(seed: int, parties: int, modulo: int, f: int, read: int, exact: bool, n: int = 60) -> Small:
    table, f, edge = Table(parties, seed), 1 + f % (modulo - 2), 1 << (modulo - 2)
    offset = (1 << f) // 2 if exact else 0
    x = ring(np.random.default_rng(seed), n, low=-edge, high=edge - 1 - offset)
    x[:6] = torch.tensor([-edge, edge - 1 - offset, 0, 1, -1, 1 << (f - 1)]).clamp(max=edge - 1 - offset)
    (forms, lam), low = table.mask(x), (1 << modulo) - 1
    attrs = {"bits": f, "modulo": modulo, **({"read": read} if read < 64 else {})}
    carried = [table.mask_bits(carry(table, x, lam, f, offset))] if exact else []
    opened = [Masked(form.m & low, form.lam) for form in forms], lam
    return Small(table, x, opened, attrs | ({"offset": offset} if exact else {}), carried)


SMALL = (
    seeds,
    party_counts,
    st.sampled_from(MODULI),
    st.integers(0, 60),
    st.sampled_from([*MODULI, 64]),
    st.booleans(),
)


@settings(deadline=None, max_examples=200)
@given(*SMALL)
def test_truncate_of_small_values_looks_at_their_low_bits(seed, parties, modulo, f, read, exact):
    case = small(seed, parties, modulo, f, read, exact)
    case.right(case.table.gate("truncate", case.attrs, [case.opened, *case.carried], (60,)))


@settings(deadline=None, max_examples=200)
@given(*SMALL, st.booleans())
def test_select_truncated_of_small_values_looks_at_their_low_bits(seed, parties, modulo, f, read, exact, invert):
    case = small(seed, parties, modulo, f, read, exact)
    b, packed = bits(np.random.default_rng(seed), 60)
    attrs = {**case.attrs, "invert": invert}
    made = case.table.gate("select_truncated", attrs, [case.table.mask_bits(packed), case.opened, *case.carried], (60,))
    case.right(made, 1 - b if invert else b)


@settings(deadline=None, max_examples=200)
@given(*SMALL)
def test_multiply_truncated_of_small_values_looks_at_their_low_bits(seed, parties, modulo, f, read, exact):
    case = small(seed, parties, modulo, f, read, exact)
    y = ring(np.random.default_rng(seed + 1), 60)
    made = case.table.gate("multiply_truncated", case.attrs, [case.table.mask(y), case.opened, *case.carried], (60,))
    case.right(made, y)


def test_a_wrap_bit_that_counts_for_nothing_is_not_dealt():
    names = lambda **more: [p.name for p in GATES["truncate"].parts({"bits": 16, **more}, [(9,)], (9,))]
    assert names() == names(modulo=40) == names(modulo=40, read=32) == ["high", "wrap"]
    assert names(modulo=40, read=24) == names(read=48) == ["high"]


@settings(deadline=None, max_examples=200)
@given(seeds, party_counts, st.integers(1, 61), st.sampled_from([EVERYBODY, 0, 1]), st.sampled_from((None, 8, 24, 48)))
def test_shift(seed, parties, f, by, read):
    """A masked form, in its low bits, of the floor or one more, whatever the value is: the truncation's own result."""
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    x = ring(rng, 60)
    opened, attrs = table.mask(x, by), {"bits": f, **({"read": read} if read else {})}
    made = table.gate("shift", attrs, [opened], (60,))
    assert all(torch.equal(form.m, made[0].m) for form in made)
    right = 64 - min(64 - f, read or 64)
    left = made[0].m - total([form.lam for form in made]) - floor(x, f) << right
    assert {*left.unique().tolist()} <= {0, _signed(1 << right)}
    inside = (x >= -(1 << 61)) & (x < 1 << 61)
    truncated = total(table.gate("truncate", {"bits": f}, [opened], (60,)))
    assert torch.equal((truncated - floor(x, f) << right)[inside], left[inside])


def _signed(x: int) -> int:
    return x - (1 << 64) if x >= 1 << 63 else x


@settings(deadline=None, max_examples=100)
@given(
    seeds,
    party_counts,
    st.integers(1, 61),
    st.sampled_from([EVERYBODY, 0, 1]),
    st.sampled_from([(4, 50), (4, 1), (1,)]),
)
def test_multiply_truncated(seed, parties, f, by, shape):
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    x, y = ring(rng, 4, 50, **IN_RANGE), ring(rng, *shape)
    made = total(table.gate("multiply_truncated", {"bits": f}, [table.mask(y, by), table.mask(x)], (4, 50)))
    error = made - y * floor(x, f)
    assert bool(((error == 0) | (error == y)).all()), "y times floor, or floor + 1"
    exact = (x & ((1 << f) - 1)) == 0
    assert not error[exact].any()


@settings(deadline=None, max_examples=100)
@given(seeds, party_counts, st.integers(1, 61), st.booleans(), st.sampled_from([EVERYBODY, 0]))
def test_multiply_truncated_with_a_carry_is_exact(seed, parties, f, nearest, by):
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    offset = 1 << (f - 1) if nearest else 0
    x, y = ring(rng, 4, 50, **IN_RANGE).clamp(max=(1 << 62) - 1 - offset), ring(rng, 50)
    (forms, lam), attrs = table.mask(x, by), {"bits": f, "offset": offset}
    operands = [table.mask(y), (forms, lam), table.mask_bits(carry(table, x, lam, f, offset))]
    assert torch.equal(total(table.gate("multiply_truncated", attrs, operands, (4, 50))), y * floor(x + offset, f))


# --- bits times values ------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(seeds, party_counts, st.sampled_from([1, 63, 64, 65, 130]), st.booleans(), st.sampled_from([EVERYBODY, 0, 1]))
def test_select(seed, parties, n, invert, by):
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    x, (b, packed) = ring(rng, n), bits(rng, n)
    shares = table.gate("select", {"invert": invert}, [table.mask_bits(packed), table.mask(x, by)], (n,))
    assert torch.equal(total(shares), (1 - b if invert else b) * x)


@settings(deadline=None, max_examples=60)
@given(
    seeds, party_counts, st.sampled_from([1, 64, 65, 130]), st.booleans(), st.integers(1, 61),
    st.sampled_from([0, 1, -1, 7 << 15, 1 << 60, -(1 << 60)]),
)  # fmt: skip
def test_select_truncated(seed, parties, n, invert, f, added):
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    x, (b, packed) = ring(rng, n, **IN_RANGE), bits(rng, n)
    attrs = {"invert": invert, "bits": f, **({"added": added} if added else {})}
    made = total(table.gate("select_truncated", attrs, [table.mask_bits(packed), table.mask(x)], (n,)))
    b = 1 - b if invert else b
    error = made - b * (floor(x, f) + added)
    assert bool(((error == 0) | (error == b)).all()), "b = 0 gives 0, b = 1 gives floor or floor + 1"


@settings(deadline=None, max_examples=60)
@given(seeds, party_counts, st.sampled_from([1, 64, 65, 130]), st.booleans(), st.integers(1, 61))
def test_select_truncated_with_a_carry_is_exact(seed, parties, n, invert, f):
    rng, table, offset = np.random.default_rng(seed), Table(parties, seed), 1 << (f - 1)
    x, (b, packed) = ring(rng, n, **IN_RANGE).clamp(max=(1 << 62) - 1 - offset), bits(rng, n)
    (forms, lam), attrs = table.mask(x), {"invert": invert, "bits": f, "offset": offset}
    operands = [table.mask_bits(packed), (forms, lam), table.mask_bits(carry(table, x, lam, f, offset))]
    made = total(table.gate("select_truncated", attrs, operands, (n,)))
    assert torch.equal(made, (1 - b if invert else b) * floor(x + offset, f))


@settings(deadline=None, max_examples=30)
@given(seeds, party_counts, st.sampled_from([(1,), (5, 13), (64,), (2, 65)]), st.booleans())
def test_bit_to_ring(seed, parties, shape, invert):
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    b, packed = bits(rng, int(np.prod(shape)))
    attrs = {"invert": invert, "shape": list(shape)}
    made = total(table.gate("bit_to_ring", attrs, [table.mask_bits(packed)], shape))
    assert torch.equal(made.reshape(-1), 1 - b if invert else b)


# --- comparison -------------------------------------------------------------------------------------------------


OFFSETS = st.sampled_from([0, 1, -1, 1 << 15, -(1 << 15), 1 << 61])


def unpack(planes: torch.Tensor, n: int) -> torch.Tensor:
    return torch.stack([kernels.unpack_bits(p, n) for p in planes])


@settings(deadline=None, max_examples=40)
@given(seeds, party_counts, st.lists(st.integers(0, 63), min_size=1, max_size=3), OFFSETS)
def test_top_bit(seed, parties, at, offset):
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    operands = [table.mask(ring(rng, size)) for size in (70, 1, 64)[: len(at)]]
    counts = [words(lam.numel()) for _, lam in operands]
    attrs = {"bit": at, "offset": [offset] * len(at)}
    made = xor(table.gate("top_bit", attrs, operands, (1, sum(counts)))).split(counts, dim=1)
    for plane, bit, (forms, lam) in zip(made, at, operands, strict=True):
        clear = (((forms[0].m + offset) >> bit) ^ (lam >> bit)) & 1
        assert torch.equal(unpack(plane, lam.numel())[0].long(), clear)


@settings(deadline=None, max_examples=40)
@given(
    seeds, party_counts, st.lists(st.integers(-9, 30), min_size=1, max_size=3), st.integers(10, 33),
    OFFSETS,
)  # fmt: skip
def test_digits(seed, parties, shifts, low_bits, offset):
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    operands = [table.mask(ring(rng, size)) for size in (70, 1, 64)[: len(shifts)]]
    counts, digits = [words(lam.numel()) for _, lam in operands], digit_count(low_bits)
    attrs = {"shift": shifts, "low_bits": low_bits, "offset": [offset] * len(shifts)}
    made = xor(table.gate("digits", attrs, operands, (leaf_planes(digits), sum(counts)))).split(counts, dim=1)
    for planes, shift, (forms, lam) in zip(made, shifts, operands, strict=True):
        clear = []
        for start in range(0, low_bits, 4):
            keep, by = (1 << min(4, low_bits - start)) - 1, shift + start
            a, d = ((v >> by if by >= 0 else v << -by) & keep for v in (forms[0].m + offset, lam))
            clear += [a < d, a == d]
        assert torch.equal(unpack(planes, lam.numel()).long(), torch.stack([clear[0], *clear[2:]]).long())


@settings(deadline=None, max_examples=40)
@given(seeds, party_counts, st.sampled_from((8, 24, 32, 56)), st.integers(17, 60))
def test_of_a_result_that_is_read_in_few_bits_few_bytes_are_dealt(seed, parties, read, f):
    rng, n = np.random.default_rng(seed), 70
    table = Table(parties, seed)
    x, y = (table.mask(ring(rng, n, low=-(1 << 61), high=1 << 61, edges=EDGES[:6])) for _ in range(2))
    bit = table.mask_bits(bits(rng, n)[1].reshape(1, -1))
    for gate, attrs, operands in (
        ("bilinear", {"kind": "mul", "attrs": {}}, [x, y]),
        ("square", {}, [x]),
        ("truncate", {"bits": f}, [x]),
        ("multiply_truncated", {"bits": f}, [y, x]),
        ("select", {"invert": False}, [bit, x]),
        ("select_truncated", {"invert": True, "bits": f}, [bit, x]),
        ("bit_to_ring", {"invert": False, "shape": [n]}, [bit]),
    ):
        whole, low = (total(table.gate(gate, made, operands, (n,))) for made in (attrs, {**attrs, "read": read}))
        assert torch.equal(whole.reshape(-1) << (64 - read), low.reshape(-1) << (64 - read)), gate
        sizes = [dealt_bytes(GATES[gate], made, [(n,)] * 2, (n,)) for made in (attrs, {**attrs, "read": read})]
        assert sizes[1] < sizes[0], gate


@pytest.mark.parametrize("parties", PARTIES)
def test_digits_of_one_mask_are_dealt_once(parties):
    table = Table(parties, 5)
    x, y = (table.mask(ring(np.random.default_rng(seed), 70)) for seed in (1, 2))
    less = ([Masked(form.m - 1000, form.lam) for form in x[0]], x[1])
    window = {"shift": [3, 3, 3], "low_bits": 30, "offset": [0, 7, -9]}
    shape = (leaf_planes(digit_count(30)), 3 * words(70))
    once = {**window, "of": [0, 1, 0]}
    assert torch.equal(*(xor(table.gate("digits", attrs, [x, y, less], shape)) for attrs in (window, once)))
    dealt = [dealt_bytes(GATES["digits"], attrs, [(70,)] * 3, shape) for attrs in (window, once)]
    assert dealt[1] * 3 == dealt[0] * 2


@settings(deadline=None, max_examples=60)
@given(seeds, party_counts, st.integers(2, 16), st.integers(0, 15))
def test_combine(seed, parties, digits, apart):
    apart = min(apart, digits - 1) if apart > 1 and digits > 2 else 0  # one digit apart is at its end
    rng, n, table = np.random.default_rng(seed), 70, Table(parties, seed)
    rows = [bits(rng, n) for _ in range(leaf_planes(digits))]
    lt = [rows[0][0]] + [rows[2 * d - 1][0] for d in range(1, digits)]
    eq = [torch.zeros_like(lt[0])] + [rows[2 * d][0] for d in range(1, digits)]
    layout, clear = groups(digits, apart), []
    assert sum(count for _, count in layout) == digits and apart in [0, *(start for start, _ in layout)]
    for start, count in layout:
        less, same = lt[start], eq[start]
        for d in range(start + 1, start + count):
            less, same = lt[d] ^ (eq[d] & less), eq[d] & same
        clear += [less] if start == 0 else [less, same]
    packed = torch.cat([plane for _, plane in rows])
    attrs = {"digits": digits, "apart": apart}
    made = xor(table.layer(attrs, packed, (leaf_planes(len(layout)), 2)))
    assert torch.equal(unpack(made, n).long(), torch.stack(clear))


@pytest.mark.parametrize("low_bits, sent", [(63, 34), (47, 25), (31, 16), (17, 10)])
def test_the_highest_lt_of_a_group_is_not_opened(low_bits, sent):
    digits, planes = digit_count(low_bits), 1
    while digits > 1:
        planes, digits = planes + len(opened_planes(digits)), len(groups(digits))
    assert planes == sent
    assert opened_planes(5, 2) == (0, 2, 3, 4, 5, 6, 8)


@settings(deadline=None, max_examples=60)
@given(seeds, party_counts, st.sampled_from([1, 5, 63, 64, 70]), st.integers(2, 7), st.integers(1, 3))
def test_conjunction(seed, parties, size, fan_in, terms):
    rng, table = np.random.default_rng(seed), Table(parties, seed)
    rows = rng.integers(0, 2, (fan_in + 1, size)) | (rng.random((fan_in + 1, size)) < 0.7)
    chosen = [
        [[int(row), bool(rng.integers(0, 2))] for row in rng.permutation(fan_in + 1)[:fan_in]] for _ in range(terms)
    ]
    clear = np.stack([np.all([rows[row] ^ invert for row, invert in term], axis=0) for term in chosen])
    packed = kernels.pack_bits(torch.from_numpy(rows).to(torch.uint8)).unsqueeze(0)
    attrs = {"size": size, "terms": chosen}
    shares = table.gate("conjunction", attrs, [table.mask_bits(packed)], (1, words(terms * size)))
    assert torch.equal(unpack(xor(shares), terms * size)[0].long(), torch.from_numpy(clear).reshape(-1).long())


@settings(deadline=None, max_examples=40)
@given(seeds, party_counts, st.sampled_from([1, 63, 64, 130]), st.integers(0, 55), st.integers(-3, 3))
def test_beyond(seed, parties, n, bit, offset):
    """Right modulo 2^8, for any value and any bit that is taken for the sign; zero where all are within their range."""
    rng, table, attrs = (
        np.random.default_rng(seed),
        Table(parties, seed),
        {"bit": bit, "offset": offset, "checks": 4, "key": 5},
    )
    inside = ring(rng, n, edges=(-(1 << bit), (1 << bit) - 1, 0, -1), low=-(1 << bit), high=(1 << bit) - 1) - offset
    for x in (inside, ring(rng, n)):
        sign = ((x + offset) >> bit) & 1
        operands = [table.mask(x), table.mask_bits(kernels.pack_bits(sign.to(torch.uint8)).unsqueeze(0))]
        made = total(table.gate("beyond", attrs, operands, (4,)))
        clear = (factors(n, 4, 5, x.device) * excess(x, sign, bit, offset)).sum(1)
        assert torch.equal(made & 255, clear & 255)
    assert not bool(excess(inside, ((inside + offset) >> bit) & 1, bit, offset).any())


def test_what_one_value_is_beyond_its_range_is_seen():
    sign = torch.zeros(254)
    excesses = excess(torch.arange(1, 255) * 16 + 3, sign, 4, 0)
    assert excesses.min() == 1 and bool(((factors(254, 4, 9, sign.device) * excesses) & 255 != 0).all())
    assert bool((factors(1000, 4, 1, sign.device) & 1 == 1).all())


def negative(table: Table, x: torch.Tensor, shift: int, low_bits: int) -> torch.Tensor:
    """The whole comparison as a program runs it: digits, layers, top bit; 1 where x looks negative."""
    n, masked = x.numel(), table.mask(x)
    digits, count = digit_count(low_bits), words(x.numel())
    attrs = {"shift": [shift], "low_bits": low_bits, "offset": [0]}
    shares = table.gate("digits", attrs, [masked], (leaf_planes(digits), count))
    while digits > 1:
        shape = (leaf_planes(len(groups(digits))), count)
        shares, digits = table.layer({"digits": digits}, xor(shares), shape), len(groups(digits))
    top = table.gate("top_bit", {"bit": [shift + low_bits], "offset": [0]}, [masked], (1, count))
    return kernels.unpack_bits((xor(shares) ^ xor(top))[0], n).long()


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("width", range(24, 65))
def test_sign(parties, width):
    rng = np.random.default_rng(width)
    for shift in sorted({0, 1, 8, 13, 16, 24} & set(range(65 - width))):
        reach = 1 << (width - 1 + shift)
        step = 1 << shift
        near = (0, 1, -1, step, -step, -step - 1, reach - step - 1, -reach, -reach + 1, 5 * step, -5 * step)
        x = ring(rng, 200, edges=(*near, *EDGES), low=-reach, high=reach - step - 1 if shift else reach - 1)
        made = negative(Table(parties, width), x, shift, width - 1)
        # Below 2^shift in magnitude the dropped low bits may carry: a tiny negative number may count as zero.
        certain = (x >= 0) | (x < -step) if shift else torch.ones_like(x, dtype=torch.bool)
        assert torch.equal(made[certain], (x < 0).long()[certain]), f"shift {shift}"


# --- rows in an order that one party knows ----------------------------------------------------------------------


@st.composite
def choices(draw, most: int = 40) -> tuple[int, list[int]]:
    """(how many rows there are, different ones of them in any order)."""
    rows = draw(st.integers(1, most))
    order = draw(st.permutations(range(rows)))
    return rows, list(order[: draw(st.integers(1, rows))])


@settings(deadline=None, max_examples=100)
@given(seeds, party_counts, choices(), st.sampled_from([(), (3,), (2, 5)]), st.data())
def test_permute(seed, parties, choice, rest, data):
    (rows, chosen), table = choice, Table(parties, seed)
    by = data.draw(st.integers(0, parties - 1))
    x_by = data.draw(st.sampled_from([EVERYBODY, *range(parties)]))
    x, positions = ring(np.random.default_rng(seed), rows, *rest), torch.tensor(chosen)
    shares = table.gate("permute", {}, [table.hide(positions, rows, by), table.mask(x, x_by)], (len(chosen), *rest))
    assert torch.equal(total(shares), x[positions])


@settings(deadline=None, max_examples=30)
@given(seeds, party_counts, st.integers(1, 40), st.data())
def test_two_permutations_by_two_parties_are_a_shuffle(seed, parties, rows, data):
    """Each knows its own order alone; what comes between is in shares, and is masked anew."""
    orders = [torch.tensor(data.draw(st.permutations(range(rows)))) for _ in range(2)]
    table, x = Table(parties, seed), ring(np.random.default_rng(seed), rows, 2)
    between = table.gate("permute", {}, [table.hide(orders[0], rows, 0), table.mask(x)], (rows, 2))
    made = table.gate("permute", {}, [table.hide(orders[1], rows, 1), table.mask(total(between))], (rows, 2))
    assert torch.equal(total(made), x[orders[0]][orders[1]])


@settings(deadline=None, max_examples=50)
@given(seeds, choices())
def test_hidden_positions_are_found_in_their_order(seed, choice):
    rows, chosen = choice
    order = correlations.hidden_order(Stream(insecure_test_key(seed, "order")), 1, 2, rows)
    assert torch.equal(order.sort()[0], torch.arange(rows))
    assert torch.equal(order[correlations.hidden_positions(torch.tensor(chosen), order)], torch.tensor(chosen))


@pytest.mark.parametrize("chosen", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3]])
def test_what_is_sent_of_positions_does_not_depend_on_them(chosen):
    """Every choice of different positions is sent equally often, whatever the positions are."""
    trials, rows, positions = 12_000, 4, torch.tensor(chosen)
    sent: dict[tuple[int, ...], int] = {}
    for seed in range(trials):
        order = correlations.hidden_order(Stream(insecure_test_key(seed, "order")), 1, 2, rows)
        at = tuple(correlations.hidden_positions(positions, order).tolist())
        sent[at] = sent.get(at, 0) + 1
    count = 24 if len(chosen) == 4 else 12
    assert len(sent) == count
    wanted = trials / count
    assert max(abs(found - wanted) for found in sent.values()) < SIGMAS * wanted**0.5


def test_an_order_sorts_by_both_words():
    """Numbers that agree in one word are told apart by the other one."""

    class Fixed(Stream):
        def draw(self, *args, **rest):
            return torch.tensor([[5, 5, -1, 5], [3, -2, 0, 3]])

    order = correlations.hidden_order(Fixed(insecure_test_key(1, "order")), 1, 2, 4)
    assert order.tolist() == [2, 1, 0, 3]


# --- what a single party sees -----------------------------------------------------------------------------------

COUNT = 1 << 12
FORMS = (*sorted(GATES), "truncate, exact", "select_truncated, exact", "multiply_truncated, exact")
SIGMAS = 6.0


def balanced(t: torch.Tensor) -> None:
    """Every bit position of independent elements is set about half of the time."""
    width = 8 * t.element_size()
    lanes = t.reshape(-1).to(torch.int64)
    ones = torch.stack([(lanes >> b) & 1 for b in range(width)]).double().mean(1)
    assert float((ones - 0.5).abs().max()) < SIGMAS * 0.5 / lanes.numel() ** 0.5


def _gate_run(name: str, parties: int, seed: int, value: int, bit: int) -> list[torch.Tensor]:
    """Every party's result where all elements hold the same secret."""
    table, x = Table(parties, seed), torch.full((COUNT,), value)
    planes = lambda count: torch.full((count, COUNT), -bit)  # one word for each element
    n = (COUNT,)
    if name == "bilinear":
        return table.gate(name, {"kind": "mul", "attrs": {}}, [table.mask(x), table.mask(x, by=0)], n)
    if name == "shift":
        return [made.lam for made in table.gate(name, {"bits": 16}, [table.mask(x)], n)]
    if name in ("square", "truncate"):
        return table.gate(name, {"bits": 16}, [table.mask(x)], n)
    if name == "truncate, exact":
        carried = table.mask_bits(torch.full((1, words(COUNT)), -bit))
        return table.gate("truncate", {"bits": 16, "offset": 1 << 15}, [table.mask(x), carried], n)
    if name.startswith("multiply_truncated"):
        exact = name.endswith("exact")
        carried = [table.mask_bits(torch.full((1, words(COUNT)), -bit))] if exact else []
        attrs = {"bits": 16, **({"offset": 1 << 15} if exact else {})}
        return table.gate("multiply_truncated", attrs, [table.mask(x), table.mask(x), *carried], n)
    if name == "digits":
        attrs = {"shift": [0], "low_bits": 31, "offset": [0]}
        return table.gate(name, attrs, [table.mask(x)], (leaf_planes(8), words(COUNT)))
    if name == "top_bit":
        return table.gate(name, {"bit": [31], "offset": [0]}, [table.mask(x)], (1, words(COUNT)))
    if name == "combine":
        return table.layer({"digits": 8}, planes(leaf_planes(8)), (leaf_planes(2), COUNT))
    if name in ("lookup", "lookup_shared"):
        entries = ring(np.random.default_rng(1), 1, 256)
        return [share[0] for share in table.gate(name, {"table": entries.tolist()}, [table.mask(x)], (1, COUNT))]
    if name == "unit":
        return [share.reshape(-1) for share in table.gate(name, {"size": 8}, [table.mask(x)], (COUNT, 8))]
    if name == "permute":
        return table.gate(name, {}, [table.hide(torch.arange(COUNT).flip(0), COUNT, by=0), table.mask(x)], n)
    if name == "spline":
        attrs = {"signed": False, "shifts": [16, 0, 8], "drop": 15, "rest": 13}
        return table.gate(name, attrs, [*(table.mask(x.unsqueeze(0)) for _ in range(3)), table.mask(x)], n)
    if name == "conjunction":
        attrs = {"size": COUNT, "terms": [[[0, False], [1, True]]]}
        return table.gate(name, attrs, [table.mask_bits(torch.full((1, words(2 * COUNT)), -bit))], (1, words(COUNT)))
    b = table.mask_bits(torch.full((1, words(COUNT)), -bit))
    if name == "beyond":
        return table.gate(name, {"bit": 20, "offset": 0, "checks": 7, "key": 1}, [table.mask(x), b], (7,))
    if name == "bit_to_ring":
        return table.gate(name, {"invert": False, "shape": [COUNT]}, [b], n)
    attrs = {"invert": False, "bits": 16, "offset": 1 << 15}
    if name == "select_truncated, exact":
        carried = table.mask_bits(torch.full((1, words(COUNT)), bit - 1))
        return table.gate("select_truncated", attrs, [b, table.mask(x), carried], n)
    return table.gate(name, attrs, [b, table.mask(x)], n)


@pytest.mark.parametrize("name, parties", [(name, n) for name in FORMS for n in PARTIES if (name, n) != ("lookup", 3)])
@pytest.mark.parametrize("value, bit", [(0, 0), (12345, 1), (-1, 1)])
def test_a_share_does_not_depend_on_the_secret(name, parties, value, bit):
    shares = _gate_run(name, parties, 1 + value % 7, value, bit)
    for rank in range(parties):
        balanced(shares[rank])
        coalition = [s for i, s in enumerate(shares) if i != rank]
        balanced(xor(coalition) if name in ("digits", "top_bit", "combine", "conjunction") else total(coalition))


@pytest.mark.parametrize("parties", PARTIES)
@pytest.mark.parametrize("value", [0, -1, 1 << 40])
def test_what_is_opened_does_not_depend_on_the_secret(parties, value):
    table = Table(parties, 3)
    x = torch.full((COUNT,), value)
    (first, _), (second, _) = table.mask(x), table.mask(x)
    balanced(first[0].m)
    assert not torch.equal(first[0].m, second[0].m), "a mask was used twice"
    balanced(first[0].m - second[0].m)
    (hats, _), (other, _) = table.mask_bits(x.view(1, -1)), table.mask_bits(x.view(1, -1))
    balanced(hats[0].hat)
    balanced(hats[0].hat ^ other[0].hat)
    for form in first:
        balanced(form.lam)


def test_inputs_are_hidden_by_their_owner_alone():
    forms, full = Table(3, 1).mask(torch.zeros(4, dtype=torch.int64), by=1)
    assert forms[0].lam is None and forms[2].lam is None
    assert torch.equal(forms[1].lam, full)


@pytest.mark.parametrize("parties", PARTIES)
def test_no_form_shows_its_contents(parties):
    table = Table(parties, 1)
    (masked, _), (hidden, _) = table.mask(torch.arange(3)), table.mask_bits(torch.ones(1, 2).long())
    for form in (masked[0], hidden[0], table.hide(torch.arange(3), 3, by=0)[0][0]):
        assert "tensor" not in repr(form) and "[" in repr(form)
