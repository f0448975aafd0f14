"""Products and powers of residues, with the kernels and with GMP, against Python's integers."""

from collections.abc import Iterator
from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols import kernels
from protocols.kernels import residues as native
from protocols.paillier.powers import fixed_base, linear, power_all, power_each, power_table, schedule, signed_digits
from protocols.paillier.residues import residues_modulo

PRIME = (1 << 521) - 1  # every number below it has an inverse
SIZES = (64, 102, 103, 104, 128, 521, 1024, 2078, 2080, 4096)

few = settings(max_examples=40, deadline=None)


@pytest.fixture(scope="module", params=kernels.info()["available"])
def variant(request) -> Iterator[str]:
    """One build of the kernels after the other, and "twins": GMP."""
    with kernels.use(request.param):
        assert bool(residues_modulo(PRIME).fast) == (request.param != "twins")
        yield request.param


def edges(modulus: int) -> st.SearchStrategy[int]:
    """Residues, often those at the ends and those that are all ones in some digit."""
    special = {0, 1, 2, modulus - 1, modulus - 2, modulus // 2, modulus >> 52 << 52, modulus >> 53 << 51}
    return st.one_of(st.sampled_from(sorted(special)), st.integers(0, modulus - 1))


@given(data=st.data(), bits=st.sampled_from(SIZES), full=st.booleans())
@few
def test_products(variant, data, bits, full):
    modulus = (1 << bits) - 1 if full else data.draw(st.integers(1 << bits - 1, (1 << bits) - 1)) | 1
    r = residues_modulo(modulus)
    values = [1, *data.draw(st.lists(edges(modulus), min_size=1, max_size=20))]
    table = r.enter(values)
    assert r.leave(table) == values
    count, levels, terms = data.draw(st.tuples(st.integers(0, 17), st.integers(1, 3), st.integers(1, 4)))
    squarings = data.draw(st.integers(0, 5))
    rows = st.lists(st.integers(0, len(values) - 1), min_size=terms * levels * count, max_size=terms * levels * count)
    index = np.array(data.draw(rows), np.int32).reshape(count, levels, terms)
    got = r.leave(r.products(table, index, squarings))
    for k in range(count):
        want = 1
        for level in index[k].tolist():
            want = want ** (1 << squarings) * prod(values[t] for t in level) % modulus
        assert got[k] == want


@given(values=st.lists(edges(PRIME).filter(bool), max_size=33))
@few
def test_inverses(variant, values):
    r = residues_modulo(PRIME)
    assert r.leave(r.inverses(r.enter(values))) == [pow(v, -1, PRIME) for v in values]


def test_no_inverse(variant):
    r = residues_modulo(3 * 5 * 7)
    with pytest.raises(ZeroDivisionError):
        r.inverses(r.enter([2, 5]))


@given(data=st.data())
@few
def test_powers(variant, data):
    r = residues_modulo(PRIME)
    values = data.draw(st.lists(edges(PRIME), min_size=1, max_size=12))
    bits = data.draw(st.sampled_from((1, 2, 16, 17, 64, 300)))
    exponents = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=len(values), max_size=len(values)))
    got = r.leave(power_each(r, r.enter(values), exponents, bits))
    assert got == [pow(v, e, PRIME) for v, e in zip(values, exponents, strict=True)]
    assert r.leave(power_all(r, r.enter(values), exponents[0] + 1)) == [pow(v, exponents[0] + 1, PRIME) for v in values]
    top = data.draw(st.integers(1, 9))
    want = [1, *(pow(v, d, PRIME) for v in values for d in range(1, top + 1))]
    assert r.leave(power_table(r, r.enter(values), top)) == want


@given(exponents=st.lists(st.binary(min_size=5, max_size=5) | st.sampled_from((b"\0" * 5, b"\xff" * 5)), min_size=1))
@few
def test_fixed_base(variant, exponents):
    r = residues_modulo(PRIME)
    got = r.leave(fixed_base(r, 3, 5).powers(b"".join(exponents)))
    assert got == [pow(3, int.from_bytes(e, "little"), PRIME) for e in exponents]


@given(data=st.data(), bits=st.sampled_from((1, 2, 8, 16, 17, 61, 64)), rows=st.sampled_from((1, 2, 9, 40)))
@few
def test_linear(variant, data, bits, rows):
    r = residues_modulo(PRIME)
    inner, columns = data.draw(st.tuples(st.integers(1, 20), st.integers(1, 3)))
    seed = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    bases = [int(v) for v in seed.integers(1, 1 << 62, inner * columns)]
    top = 1 << bits - 1
    wild = int(seed.integers(-top, top - 1, endpoint=True))
    weights = seed.choice(np.array([-top, top - 1, 0, -1, wild], np.int64), (rows, inner))
    made = linear(r, r.enter(bases).reshape(inner, columns, *r.cell), weights, top)
    got = r.leave(made.reshape(-1, *r.cell))
    for m in range(rows):
        for b in range(columns):
            terms = (pow(bases[k * columns + b], int(weights[m, k]), PRIME) for k in range(inner))
            assert got[m * columns + b] == prod(terms) % PRIME


def test_linear_in_several_parts(monkeypatch):
    monkeypatch.setattr("protocols.paillier.powers.TABLE_BYTES", 1)
    r = residues_modulo(PRIME)
    weights = np.array([[3, -4, 5], [0, 7, -8]])
    made = linear(r, r.enter([2, 3, 5, 7, 11, 13]).reshape(3, 2, *r.cell), weights, 8)
    want = [[pow(2, 3, PRIME) * pow(5, -4, PRIME) * 11**5, 3**3 * pow(7, -4, PRIME) * 13**5]]
    want += [[5**7 * pow(11, -8, PRIME), 7**7 * pow(13, -8, PRIME)]]
    assert r.leave(made.reshape(-1, *r.cell)) == [v % PRIME for row in want for v in row]


@pytest.mark.parametrize("table_bytes", (1, 1 << 12, 1 << 25))
def test_linear_with_places(variant, table_bytes, monkeypatch):
    monkeypatch.setattr("protocols.paillier.powers.TABLE_BYTES", table_bytes)
    r, seed = residues_modulo(PRIME), np.random.default_rng(1)
    values = [2, 3, 5, 7, 11, 13]
    places, weights = seed.integers(-1, 6, (5, 9)), seed.integers(-128, 128, (4, 5))
    made = linear(r, r.enter(values), weights, 128, places)
    want = [
        [
            prod(pow(values[p], int(w), PRIME) for p, w in zip(column, row, strict=True) if p >= 0) % PRIME
            for column in places.T
        ]
        for row in weights
    ]
    assert r.leave(made.reshape(-1, *r.cell)) == [v for row in want for v in row]


def test_linear_of_nothing():
    r = residues_modulo(PRIME)
    assert linear(r, r.ones(0).reshape(0, 2, *r.cell), np.zeros((3, 0), np.int64), 1).shape == (3, 2, *r.cell)


@given(
    data=st.data(),
    limit=st.integers(1, 1 << 63) | st.sampled_from([1 << b for b in range(64)]),
    uses=st.integers(1, 2000),
)
@few
def test_signed_digits_stay_in_their_tables(data, limit, uses):
    ends = [v for v in (-limit, limit, limit - 1, 0) if v < 1 << 63]
    numbers = st.integers(-limit, min(limit, (1 << 63) - 1)) | st.sampled_from(ends)
    weights, plan = data.draw(st.lists(numbers, min_size=1)), schedule(limit, uses)
    window = plan.window
    digits = signed_digits(np.array([weights]), plan.levels, window)[0]
    assert np.abs(digits).max() <= plan.top <= 1 << window - 1
    for column, weight in zip(digits.T.tolist(), weights, strict=True):
        assert sum(d << window * place for place, d in enumerate(reversed(column))) == weight


@pytest.mark.parametrize("build", [name for name in kernels.info()["available"] if name != "twins"])
def test_wrong_arguments(build):
    with kernels.use(build):
        for modulus, why in ((10, "odd"), (1, "odd"), ((1 << 60000) + 1, "60001 bits are too many")):
            with pytest.raises(ValueError, match=why):
                native.residue_modulus(modulus)
        r = residues_modulo(PRIME)
        table = r.enter([1, 2])
        for index in ([[[2]]], [[[-1]]], [[0]]):
            with pytest.raises(ValueError, match="must have 3 axes and stay below 2"):
                r.products(table, np.array(index, np.int32))
        with pytest.raises(ValueError, match="must be uint64"):
            r.products(table[:, :-1], np.zeros((1, 1, 1), np.int32))
