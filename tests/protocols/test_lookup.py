"""Tables at a secret index: kernels against their twins, gates against one line in the clear, ring values equal."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import correlations, kernels
from protocols.gates import GATES
from protocols.kernels import twins
from protocols.kernels.twins.ring import shift_right
from protocols.prg import Stream, insecure_test_key
from protocols.shares import Masked, Role

COMPILED = [name for name in kernels.info()["available"] if name != "twins"]
EVERY = kernels.info()["available"]
TABLE_SIZES = (8, 16, 32, 64, 128, 256)
EDGES = (0, 1, -1, 7, 8, 63, 64, 127, 128, 255, 256, (1 << 62) - 1, (1 << 63) - 1, -(1 << 63))

seeds = st.integers(0, 2**32)
counts = st.sampled_from((1, 2, 63, 65, 129))
table_sizes = st.sampled_from(TABLE_SIZES)
columns = st.integers(1, 3)
parties_ = st.sampled_from((2, 3))


def ring(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Ring values, about half of them edge values."""
    wild = rng.integers(-(1 << 63), (1 << 63) - 1, shape, dtype=np.int64, endpoint=True)
    return torch.from_numpy(np.where(rng.random(shape) < 0.5, wild, rng.choice(np.array(EDGES), shape)))


# --- kernels ----------------------------------------------------------------------------------------------------


moved = st.tuples(*[st.integers(0, 63)] * 3)


@pytest.mark.parametrize("variant", COMPILED)
@given(seeds, counts, moved, st.integers(0, 32), st.integers(0, 40), st.booleans(), st.booleans())
@settings(max_examples=60, deadline=None)
def test_splines_equal_their_twins(variant, seed, n, shifts, rest, drop, signed, first):
    rng = np.random.default_rng(seed)
    values, masks, powers = ([ring(rng, n, 1) for _ in range(3)] for _ in range(3))
    lam, sign = ring(rng, n, 1), ring(rng, n, 1) if signed else None
    powers[0] = powers[0] if signed else None
    with kernels.use(variant):
        made = kernels.spline(values, powers, lam, shifts, first)
        dealt = kernels.deal_spline(masks, lam, sign, shifts, rest, drop)
    assert torch.equal(made, twins.spline(values, powers, lam, shifts, first))
    right = twins.deal_spline(masks, lam, sign, shifts, rest, drop)
    assert all(torch.equal(a, b) for a, b in zip(dealt, right, strict=True))


def test_splines_of_other_shapes_are_refused():
    t = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="deal_spline: masks has 4 entries, expected 3"):
        kernels.deal_spline([t, t, torch.zeros(4, dtype=torch.int64)], t, None, (0, 0, 0), 0, 0)
    with pytest.raises(ValueError, match=r"spline: ring values cannot be moved by \[0, 64, 0\] bits"):
        kernels.spline([t, t, t], [t, t, t], t, (0, 64, 0), 1)


@pytest.mark.parametrize("variant", COMPILED)
@given(
    seeds,
    counts,
    st.sampled_from((16, 32, 64, 128, 256)),
    st.integers(5, 32),
    moved,
    st.sampled_from((1, 8, 20, 40, 63)),
)
@settings(max_examples=60, deadline=None)
def test_lookup_around_equals_its_twin(variant, seed, n, size, rest, cuts, bits):
    """With entries of few bits, which narrow lanes hold, and with any; on shares: any bits may be set."""
    rng, cuts = np.random.default_rng(seed), tuple(min(cut, 62) for cut in cuts)
    m, vectors = ring(rng, n), ring(rng, n, max(1, size // 64))
    table = ring(rng, 3, 16 * size) >> (63 - bits)
    with kernels.use(variant):
        made = kernels.lookup_around(m, vectors, table, rest, cuts)
    assert torch.equal(made, twins.lookup_around(m, vectors, table, rest, cuts))


@pytest.mark.parametrize("variant", EVERY)
@pytest.mark.parametrize("bits", [4, 12, 19, 20, 21, 22, 30])
def test_no_number_on_the_way_leaves_narrow_lanes(variant, bits):
    """All entries as large as they are, all bits set: where sums or products first leave 32 bits."""
    for sign, cuts in ((1, (0, 0, 0)), (-1, (8, 8, 0)), (1, (13, 10, 5))):
        table = torch.full((3, 2048), sign * ((1 << bits) - 1))
        m, vectors = torch.arange(0, 1 << 13, 37), torch.full((222, 2), -1)
        with kernels.use(variant):
            made = kernels.lookup_around(m, vectors, table, 13, cuts)
        assert torch.equal(made, twins.lookup_around(m, vectors, table, 13, cuts))


def test_wrong_coefficients_are_refused():
    m, bits, table = torch.zeros(3).long(), torch.zeros(3, 2).long(), torch.zeros(3, 2048).long()
    for wrong in (table[:2], table[:, :128], table[:, :100]):
        with pytest.raises(ValueError, match="lookup_around"):
            kernels.lookup_around(m, bits, wrong, 13, (0, 0, 0))
    for rest, cuts in ((4, (0, 0, 0)), (33, (0, 0, 0)), (13, (0, 63, 0)), (13, (0, 0))):
        with pytest.raises(ValueError, match="are no coefficients"):
            kernels.lookup_around(m, bits, table, rest, cuts)
    with pytest.raises(ValueError, match="weighted_around: weights has 6 entries, expected 384"):
        kernels.weighted_around(m, bits, table, 13, (0, 0, 0))


@pytest.mark.parametrize("variant", EVERY)
@given(seeds, counts, table_sizes)
@settings(max_examples=30, deadline=None)
def test_unit_vectors_have_one_bit(variant, seed, n, size):
    lam = ring(np.random.default_rng(seed), n)
    with kernels.use(variant):
        packed = kernels.unit_vectors(lam, size)
    assert packed.shape == (n, max(1, size // 64))
    bits = torch.cat([shift_right(packed, v) & 1 for v in range(64)], 1).view(n, 64, -1)
    plain = bits.transpose(1, 2).reshape(n, -1)
    assert torch.equal(plain.argmax(1), lam & (size - 1))
    assert torch.equal(plain.sum(1), torch.ones(n, dtype=torch.int64))


@pytest.mark.parametrize("variant", COMPILED)
@given(seeds, counts, table_sizes, columns)
@settings(max_examples=60, deadline=None)
def test_unit_lookup_equals_its_twin(variant, seed, n, size, rows):
    """On shares: any bits may be set, also those beyond a table of fewer than 64 entries."""
    rng = np.random.default_rng(seed)
    m, bits, table = ring(rng, n), ring(rng, n, max(1, size // 64)), ring(rng, rows, size)
    with kernels.use(variant):
        assert torch.equal(kernels.unit_lookup(m, bits, table), twins.unit_lookup(m, bits, table))


@pytest.mark.parametrize("variant", EVERY)
@given(seeds, counts, table_sizes, columns)
@settings(max_examples=30, deadline=None)
def test_unit_lookup_of_a_unit_vector_is_the_entry(variant, seed, n, size, rows):
    rng = np.random.default_rng(seed)
    index, lam, table = ring(rng, n), ring(rng, n), ring(rng, rows, size)
    with kernels.use(variant):
        made = kernels.unit_lookup(index + lam, kernels.unit_vectors(lam, size), table)
    assert torch.equal(made, table[:, index & (size - 1)])


@pytest.mark.parametrize("variant", COMPILED)
def test_unit_lookup_on_several_threads(variant):
    rng = np.random.default_rng(3)
    m, bits, table = ring(rng, 40_001), ring(rng, 40_001, 4), ring(rng, 3, 256)
    with kernels.use(variant):
        assert torch.equal(kernels.unit_lookup(m, bits, table), twins.unit_lookup(m, bits, table))


def test_wrong_sizes_are_refused():
    x = torch.zeros(10, dtype=torch.int64)
    for size in (0, 4, 12, 512):
        with pytest.raises(ValueError, match=f"not {size}"):
            kernels.unit_vectors(x, size)
        with pytest.raises(ValueError, match=f"not {size}"):
            kernels.unit_lookup(x, x, torch.zeros(1, size, dtype=torch.int64))
    with pytest.raises(ValueError, match="bits"):
        kernels.unit_lookup(x, x, torch.zeros(1, 128, dtype=torch.int64))


# --- gates ------------------------------------------------------------------------------------------------------


class Setting:
    """The parties of one test and their streams; runs one gate on operands made by `mask`."""

    def __init__(self, parties: int, seed: int) -> None:
        self.streams = [Stream(insecure_test_key(seed, f"party {i}")) for i in range(parties)]
        self.roles = [Role(rank, parties) for rank in range(parties)]
        self.node = 0

    def mask(self, x: torch.Tensor) -> tuple[list[Masked], torch.Tensor]:
        """Every party's masked form of ring values, and the whole mask."""
        self.node += 1
        full = correlations.full_mask(self.streams, 1, self.node, x.shape)
        lams = [correlations.mask_share(s, 1, self.node, x.shape) for s in self.streams]
        return [Masked(x + full, lam) for lam in lams], full

    def run(self, name: str, attrs: dict, operands, shape) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The sum of all parties' results, and the sign that the dealer knows."""
        self.node += 1
        gate, masks = GATES[name], [full for _, full in operands]
        parts = gate.parts(attrs, [tuple(f.shape) for f in masks], shape)
        sign = None
        if name == "lookup":
            first = correlations.expand_share(self.streams[0], 1, self.node, parts)
            sign = gate.sign(attrs, masks, first)
        fixed = correlations.corrections(self.streams[:-1], 1, self.node, parts, gate.deal(attrs, masks))
        assert [(tuple(t.shape), t.dtype) for t in fixed] == [(p.shape, p.dtype) for p in parts]
        result = torch.zeros(shape, dtype=torch.int64)
        for role, stream in zip(self.roles, self.streams, strict=True):
            dealt = correlations.expand_share(stream, 1, self.node, parts)
            if role.last:
                dealt = {part.name: share for part, share in zip(parts, fixed, strict=True)}
            share = gate.evaluate(role, attrs, [forms[role.rank] for forms, _ in operands], dealt)
            assert share.shape == shape
            result += share
        return result, sign


@given(seeds, st.sampled_from([(1,), (65,), (3, 7)]), table_sizes, columns)
@settings(max_examples=60, deadline=None)
def test_lookup_gives_the_signed_entry(seed, shape, size, rows):
    rng, parties = np.random.default_rng(seed), Setting(2, seed)
    index, table = ring(rng, *shape), ring(rng, rows, size)
    made, sign = parties.run("lookup", {"table": table.tolist()}, [parties.mask(index)], (rows, *shape))
    assert sign.shape == shape and ((sign == 1) | (sign == -1)).all()
    assert torch.equal(made, sign * table[:, index & (size - 1)])


def test_the_sign_of_a_lookup_is_a_fair_coin():
    parties, index, table = Setting(2, 8), torch.full((4096,), 5), torch.arange(1, 9).unsqueeze(0)
    made, sign = parties.run("lookup", {"table": table.tolist()}, [parties.mask(index)], (1, 4096))
    assert torch.equal(made[0], 6 * sign)
    assert abs(int(sign.sum())) < 6 * 64


@given(seeds, parties_, st.sampled_from([(1,), (65,), (3, 7)]), table_sizes, columns)
@settings(max_examples=60, deadline=None)
def test_lookup_shared_gives_the_entry(seed, count, shape, size, rows):
    rng, parties = np.random.default_rng(seed), Setting(count, seed)
    index, table = ring(rng, *shape), ring(rng, rows, size)
    made, _ = parties.run("lookup_shared", {"table": table.tolist()}, [parties.mask(index)], (rows, *shape))
    assert torch.equal(made, table[:, index & (size - 1)])


def polynomial(coefficients: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return sum(c * t**r for r, c in enumerate(coefficients))


@given(seeds, parties_, st.sampled_from([(1,), (65,), (3, 7)]))
@settings(max_examples=60, deadline=None)
def test_spline_is_the_polynomial(seed, count, shape):
    """Lookup around a masked t, opening and polynomial in a row, as a program with exact rounding runs them."""
    rng, parties = np.random.default_rng(seed), Setting(count, seed)
    index, t, table = ring(rng, *shape), ring(rng, *shape), ring(rng, 3, 32)
    hidden = parties.mask(t)
    made, operands = looked_up(parties, {"table": table.tolist()}, [parties.mask(index), hidden], shape)
    attrs = {"signed": count == 2, "shifts": [0, 0, 0], "drop": 0}
    value, _ = parties.run("spline", attrs, [*operands[:3], hidden, *operands[3:]], shape)
    assert torch.equal(value, polynomial(table[:, index & 31], t))
    assert torch.equal(made[2], table[2][index & 31])


@given(
    seeds, parties_, st.sampled_from([(1,), (65,), (3, 7)]), st.sampled_from([5, 13, 14]), st.sampled_from([0, 8, 15])
)
@settings(max_examples=60, deadline=None)
def test_spline_around_a_window_is_the_polynomial_around_what_all_know(seed, count, shape, rest, drop):
    """... and as one with fast rounding does: in the low bits that are read, for numbers that all lanes hold."""
    rng, parties, shifts, cuts = np.random.default_rng(seed), Setting(count, seed), [8, 0, 4], [9, 7, 3]
    z, table = ring(rng, *shape), ring(rng, 3, 16 * 128) >> 44
    forms, full = parties.mask(z)
    low = (1 << rest + 7) - 1
    place = [Masked(form.m & low, None) for form in forms], full & low
    attrs = {"table": table.tolist(), "rest": rest, "cuts": cuts}
    coefficients, operands = looked_up(parties, attrs, [place], shape)
    attrs = {"signed": count == 2, "shifts": shifts, "drop": drop, "rest": rest, "read": 48}
    value, _ = parties.run("spline", attrs, [*operands[:3], place, *operands[3:]], shape)

    m, lam = place[0][0].m, place[1]
    j, inner = ((m >> rest) - (lam >> rest)) & 127, rest - 4
    c0, c1, c2 = table[:, 16 * j + ((m >> inner) & 15)]
    r, cut = (m & ((1 << inner) - 1)) - (1 << inner >> 1), lambda x, bits: (x + (1 << bits >> 1)) >> bits
    y = [c0 + cut((c1 + cut(c2 * r, 7)) * r, 9), cut(c1 + cut(2 * c2 * r, 7), 3), c2]
    assert torch.equal(coefficients, torch.stack(y))
    g = (1 << rest - 1) - (lam & ((1 << rest) - 1))
    right = (y[0] << 8) + y[1] * g + (y[2] * cut(g * g, drop) << 4)
    assert torch.equal((value - right) << 16, torch.zeros_like(value))


def looked_up(parties: Setting, attrs: dict, operands: list, shape):
    """The coefficients, and what a spline reads of them: each in masked form, and for two parties who gave the sign."""
    name, unused = "lookup" if len(parties.roles) == 2 else "lookup_shared", [Masked(None, None)] * 2
    made, sign = parties.run(name, attrs, operands, (3, *shape))
    rows = [parties.mask(made[i : i + 1]) for i in range(3)]
    return made if sign is None else made * sign, [*rows, *([] if sign is None else [(unused, sign)])]


@given(seeds, parties_, st.sampled_from([(1,), (65,), (3, 7)]), st.sampled_from([1, 2, 8, 512]))
@settings(max_examples=60, deadline=None)
def test_unit_is_the_unit_vector(seed, count, shape, size):
    rng, parties = np.random.default_rng(seed), Setting(count, seed)
    index = ring(rng, *shape)
    made, _ = parties.run("unit", {"size": size}, [parties.mask(index)], (*shape, size))
    assert torch.equal(made, ((index & (size - 1)).unsqueeze(-1) == torch.arange(size)).long())
