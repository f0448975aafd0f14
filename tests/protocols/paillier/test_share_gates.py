"""Products and polynomials of integers in shares, beside Python's own arithmetic."""

import secrets

import numpy as np
import pytest

from protocols.errors import InputError, ProtocolError
from protocols.paillier.cipher import decrypt, encrypt
from protocols.paillier.keys import insecure_generate
from protocols.paillier.long_powers import digits_of, matrix_powers, packed_powers
from protocols.paillier.share_gates import MatrixGate, PolynomialGate, Reply, integers, rounded


@pytest.fixture(scope="module")
def key():
    return insecure_generate(512)


def drawn(bits, *shape):
    """Integers of either sign, with the largest among them."""
    flat = [secrets.randbelow((1 << bits + 1) - 1) - (1 << bits) + 1 for _ in range(int(np.prod(shape)))]
    flat[:2] = [(1 << bits) - 1, 1 - (1 << bits)][: len(flat)]
    return integers(flat).reshape(shape)


class TestPowers:
    def test_matrix(self, key):
        bases, exponents = [[3, 5], [7, 2], [4, 4]], integers([[0, 1 << 70], [(1 << 71) - 1, 5], [17, 0]])
        residues, n2 = key.public.residues, key.public.square
        cells = residues.enter([b for row in bases for b in row]).reshape(3, 2, *residues.cell)
        made = matrix_powers(residues, cells, exponents, 71)
        for v in range(2):
            for g in range(2):
                right = 1
                for k in range(3):
                    right = right * pow(bases[k][g], int(exponents[k, v]), int(n2)) % n2
                assert residues.leave(made[v, g : g + 1]) == [right]

    @pytest.mark.parametrize("rows", [1, 3, 4, 7])
    def test_packed(self, key, rows):
        residues, width, count, bits = key.public.residues, 32, 3, (100, 33, 8)
        values = [[secrets.randbelow(100) for _ in bits] for _ in range(rows)]
        exponents = [[(1 << b) - 1 if r == 1 else secrets.randbits(b) for b in bits] for r in range(rows)]
        cells = encrypt(key, [v for row in values for v in row]).reshape(rows, 3, *residues.cell)
        made = decrypt(key, packed_powers(residues, cells, exponents, bits, width, count))
        each = [sum(v * e for v, e in zip(*pair, strict=True)) for pair in zip(values, exponents, strict=True)]
        assert made == [
            sum(x << width * s for s, x in enumerate(each[at : at + count])) for at in range(0, rows, count)
        ]

    def test_what_does_not_fit_is_refused(self):
        for wrong in (16, -1):
            with pytest.raises(ValueError, match="4 bits"):
                digits_of([wrong], 4)


class TestMatrixGate:
    @pytest.mark.parametrize("shape", [(1, 1, 1), (7, 3, 1), (2, 9, 3)])
    def test_shares_add_up_to_the_product(self, key, shape):
        outputs, inputs, vectors = shape
        gate = MatrixGate(*shape, value_bits=30, share_bits=60, key_bits=512)
        matrix, v = drawn(12, outputs, inputs), drawn(12, inputs, vectors)
        theirs = drawn(60, inputs, vectors)
        mine = v - theirs
        sealed, own = gate.seal(key, matrix), gate.seal_own(key, matrix, mine)
        assert len(own) == gate.own_cells and sealed.shape[:2] == (inputs, gate.column.cells)
        reply, kept = gate.answer(key.public, sealed, own, theirs)
        got = gate.opened(key, reply)
        assert (got + kept == matrix.dot(v)).all()
        assert max(abs(x) for x in kept.reshape(-1)) >= 1 << 60, "a mask of 30 + 40 bits"

    def test_at_the_edge_of_its_range_nothing_wraps_and_beyond_it_is_noticed(self, key):
        gate = MatrixGate(5, 1, 1, value_bits=30, share_bits=80, key_bits=512)
        edge = (1 << 69) - 1
        for value in (edge, -edge):
            matrix = integers([[value]] * 5)
            sealed, own = gate.seal(key, matrix), gate.seal_own(key, matrix, integers([[1]]))
            reply, kept = gate.answer(key.public, sealed, own, integers([[0]]))
            assert (gate.opened(key, reply) + kept == value).all()
        matrix = integers([[1 << 430]] * 5)
        with pytest.raises(ProtocolError, match="does not divide"):
            sealed, own = gate.seal(key, matrix), gate.seal_own(key, matrix, integers([[1]]))
            gate.opened(key, gate.answer(key.public, sealed, own, integers([[0]]))[0])

    def test_a_key_that_is_too_small(self):
        with pytest.raises(InputError, match="do not fit"):
            Reply(1, 100, 128)


class TestPolynomialGate:
    @pytest.mark.parametrize("coefficients", [(3, -5, 7), (0, 9, 0, -4, 0, 2), (0, 9, 0, -4, 0, 2, 0, 0, 0, 1)])
    def test_shares_add_up_to_the_polynomial(self, key, coefficients):
        gate = PolynomialGate(6, coefficients, value_bits=100, share_bits=50, key_bits=512)
        x, theirs = drawn(10, 6), drawn(49, 6)
        sealed = gate.seal(key, (x - theirs).tolist())
        assert len(sealed) == gate.sealed_cells
        reply, kept = gate.answer(key.public, sealed, theirs.tolist())
        right = [sum(c * v**k for k, c in enumerate(coefficients)) for v in x]
        assert [a + b for a, b in zip(gate.opened(key, reply), kept, strict=True)] == right

    def test_masks_are_fresh(self, key):
        gate = PolynomialGate(2, (0, 0, 1), value_bits=20, share_bits=50, key_bits=512)
        sealed = gate.seal(key, [5, 5])
        made = [gate.answer(key.public, sealed, [1, 1]) for _ in range(2)]
        seen = {x for reply, _ in made for x in gate.opened(key, reply)}
        assert len(seen) == 4 and len({int(c) for r, _ in made for c in key.public.residues.leave(r)}) == 2


def test_rounding_in_shares_is_off_by_less_than_one_and_by_none_on_average():
    values = drawn(40, 2000)
    masks = drawn(80, 2000)
    made = rounded(values + masks, 20) + rounded(-masks, 20)
    off = np.array([float(m) - float(v) / 2**20 for m, v in zip(made, values, strict=True)])
    assert np.abs(off).max() < 1 and abs(off.mean()) < 0.06
