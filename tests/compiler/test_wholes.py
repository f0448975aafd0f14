"""Small whole numbers: what makes them is opened in few bytes, and they are right to the last one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import securemodel
from securemodel.compiler.lower.wholes import small_whole
from securemodel.errors import ProgramError, UnsupportedOperator
from securemodel.program import read_masked


class Counts(nn.Module):
    """x^T y, of which every number is known to be small."""

    def __init__(self, bits: int | None = 14, square: bool = False) -> None:
        super().__init__()
        self.bits, self.square = bits, square

    def forward(self, x, y):
        total = (x + 0).T @ y
        total = total * total if self.square else total
        return total if self.bits is None else small_whole(total, self.bits)


def compiled(model: nn.Module, x: torch.Tensor, y: torch.Tensor, parties=("a", "b"), **options) -> securemodel.Program:
    return securemodel.compile(
        model, (x, y), weights="public", inputs=("a", "b"), outputs="all", parties=parties, **options
    )


def widths(program: securemodel.Program, op: str) -> list[int]:
    return [node.attrs.get("width", 64) for node in program.graph.nodes if node.op == op]


def drawn(rows: int, seed: int = 0, most: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    make = lambda columns: torch.randint(-most, most + 1, (rows, columns), generator=generator)
    return make(3), make(2)


@pytest.mark.parametrize("rounding", ["exact", "fast"])
@pytest.mark.parametrize("parties", [("a", "b"), ("a", "c", "b")])
@pytest.mark.parametrize("frac_bits", [4, 16])
def test_products_of_few_bytes_are_right(parties, frac_bits, rounding):
    x, y = drawn(500)
    program = compiled(Counts(), x, y, parties, frac_bits=frac_bits, rounding=rounding)
    assert widths(program, "input") == [16, 16]
    assert compiled(Counts(None), x, y).graph.text().count("width") == 0
    with securemodel.local(program) as session:
        for seed in range(3):
            assert torch.equal(session.run(*drawn(500, seed)), Counts()(*drawn(500, seed)))
        sent = session.stats.sent_bytes["a"]
    plan = program.plan()
    assert sent < 8 * x.numel() * (len(parties) - 1)
    assert plan.sent_bytes["a"] * 3 == pytest.approx(sent, rel=2)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(
        st.integers(-(2**13), 2**13 - 1) | st.sampled_from([0, 1, -1, 2**13 - 1, -(2**13)]), min_size=4, max_size=4
    )
)
def test_the_whole_range_is_right(numbers):
    x, y = torch.tensor(numbers).reshape(1, 4), torch.ones(1, 1, dtype=torch.int64)
    with securemodel.local(RANGE) as session:
        assert session.run(x, y).flatten().tolist() == numbers


RANGE = compiled(Counts(14), torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 1, dtype=torch.int64))


@pytest.mark.parametrize(("bits", "opened"), [(6, 8), (14, 16), (15, 24), (22, 24), (23, 32), (40, 48), (44, 48)])
def test_as_many_bytes_as_the_promise_takes(bits, opened):
    """Two bits more than the numbers have: a sign, and room for the carry that is looked for."""
    assert widths(compiled(Counts(bits), *drawn(8)), "input") == [opened] * 2


def test_a_product_of_products_opens_few_bytes_throughout():
    x, y = drawn(40)
    program = compiled(Counts(14, square=True), x, y)
    assert widths(program, "input") == [16, 16]
    assert sorted(widths(program, "mask")) == [16, 16]  # the sum, and its square, which is a whole number
    with securemodel.local(program) as session:
        assert torch.equal(session.run(x, y), Counts(14, square=True)(x, y))


def test_what_is_read_elsewhere_is_opened_whole():
    class Both(Counts):
        def forward(self, x, y):
            return super().forward(x, y), (x + 0).T @ y

    assert widths(compiled(Both(), *drawn(8)), "input") == [64, 64]


def test_inputs_of_comparisons_open_what_they_need():
    class Less(nn.Module):
        def forward(self, x, y):
            return x * y < 0.5

    x, y = torch.randn(4, 6), torch.randn(4, 6)
    program = compiled(Less(), x, y, width=24)
    assert widths(program, "input") == [40, 40]
    with securemodel.local(program) as session:
        assert torch.equal(session.run(x, y), Less()(x, y))


def test_compare_and_a_text_from_outside():
    x, y = drawn(40)
    program = compiled(Counts(), x, y)
    assert str(securemodel.compare(program, x, y))
    text = program.text()
    assert read_masked(text, 1 << 30).digest == program.digest
    for wrong in ('"width":24', '"width":8'):
        with pytest.raises(ProgramError, match="16 bits of it are read"):
            read_masked(text.replace('"width":16', wrong), 1 << 30)


def test_what_is_no_small_whole_number():
    class Real(nn.Module):
        def forward(self, x, y):
            return small_whole(x * y, 8)

    with pytest.raises(UnsupportedOperator, match="not whole"):
        compiled(Real(), torch.randn(3), torch.randn(3))
    with pytest.raises(UnsupportedOperator, match="give 1 to 44"):
        compiled(Counts(45), *drawn(3))
