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


@pytest.mark.parametrize("variant", COMPILED)
@given(seeds, counts, columns, st.booleans(), st.booleans())
@settings(max_examples=30, deadline=None)
def test_splines_equal_their_twins(variant, seed, n, terms, signed, first):
    rng = np.random.default_rng(seed)
    c, t, sign = ring(rng, terms, n, 1), ring(rng, n, 1), ring(rng, n, 1) if signed else None
    products = ring(rng, terms - (not signed) + terms * (terms + 1) // 2, n, 1)
    with kernels.use(variant):
        assert torch.equal(kernels.spline(c, t, products, signed, first), twins.spline(c, t, products, signed, first))
        assert torch.equal(kernels.deal_spline(c, t, sign), twins.deal_spline(c, t, sign))


def test_splines_of_other_shapes_are_refused():
    c, t = torch.zeros(4, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match="1 to 3 coefficients"):
        kernels.deal_spline(c, t, None)
    with pytest.raises(ValueError, match="spline: products has 3 entries, expected 15"):
        kernels.spline(c[:2], t, t, True, 1)


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


@given(seeds, parties_, st.sampled_from([(1,), (65,), (3, 7)]), columns)
@settings(max_examples=60, deadline=None)
def test_spline_is_the_polynomial(seed, count, shape, terms):
    rng, parties = np.random.default_rng(seed), Setting(count, seed)
    coefficients, t = ring(rng, terms, *shape), ring(rng, *shape)
    operands = [parties.mask(coefficients), parties.mask(t)]
    made, _ = parties.run("spline", {"signed": False}, operands, shape)
    assert torch.equal(made, polynomial(coefficients, t))


@given(seeds, st.sampled_from([(1,), (65,), (3, 7)]), columns)
@settings(max_examples=60, deadline=None)
def test_spline_removes_the_sign_of_a_lookup(seed, shape, terms):
    """Lookup, opening and polynomial in a row, as a program of two parties runs them."""
    rng, parties = np.random.default_rng(seed), Setting(2, seed)
    index, t, table = ring(rng, *shape), ring(rng, *shape), ring(rng, terms, 32)
    signed, sign = parties.run("lookup", {"table": table.tolist()}, [parties.mask(index)], (terms, *shape))
    unused = [Masked(None, None)] * 2  # the sign is known to the dealer only
    operands = [parties.mask(signed), parties.mask(t), (unused, sign)]
    made, _ = parties.run("spline", {"signed": True}, operands, shape)
    assert torch.equal(made, polynomial(table[:, index & 31], t))


@given(seeds, parties_, st.sampled_from([(1,), (65,), (3, 7)]), st.sampled_from([1, 2, 8, 512]))
@settings(max_examples=60, deadline=None)
def test_unit_is_the_unit_vector(seed, count, shape, size):
    rng, parties = np.random.default_rng(seed), Setting(count, seed)
    index = ring(rng, *shape)
    made, _ = parties.run("unit", {"size": size}, [parties.mask(index)], (*shape, size))
    assert torch.equal(made, ((index & (size - 1)).unsqueeze(-1) == torch.arange(size)).long())
