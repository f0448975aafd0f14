"""Openings put together what all parties sent, for each operator that talks, whatever the width."""

import pytest
import torch

from protocols.shares import Masked, MaskedBits
from securemodel.compiler.ir import Graph
from securemodel.compiler.wire import item_bytes
from securemodel.engines.masked import opening

CPU = torch.device("cpu")
EDGES = torch.tensor([0, 1, -1, 1 << 16, -(1 << 31), (1 << 63) - 1, -(1 << 63)])


def shares(value: torch.Tensor, parties: int, xor: bool = False) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(parties)
    drawn = [torch.randint(-(1 << 62), 1 << 62, value.shape, generator=generator) for _ in range(parties - 1)]
    last = value.clone()
    for part in drawn:
        last = last ^ part if xor else last - part
    return [*drawn, last]


def node(op: str, form: str, **attrs):
    return Graph().add(op, [], tuple(EDGES.shape), form, attrs=attrs, owner="all")


def opened_at_all(made, values, lams) -> list:
    """What each party has after the opening."""
    parts = [opening.part_of(made, value, lam) for value, lam in zip(values, lams, strict=True)]
    wires = [opening.outgoing(made, part).reshape(-1).view(torch.uint8).clone() for part in parts]
    assert {wire.numel() for wire in wires} == {item_bytes(made)}
    others = [[wire for j, wire in enumerate(wires) if j != i] for i in range(len(parts))]
    return [opening.opened(made, part, received, CPU) for part, received in zip(parts, others, strict=True)]


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("width", [8, 24, 40, 64])
def test_a_masked_opening_is_the_sum_in_the_low_bits(parties, width):
    lams = shares(EDGES * 3 + 7, parties)
    made = opened_at_all(node("mask", "masked", width=width), shares(EDGES, parties), lams)
    for form, lam in zip(made, lams, strict=True):
        assert isinstance(form, Masked) and form.lam is lam
        assert not ((form.m - (EDGES * 4 + 7)) << (64 - width)).any()


def test_a_party_whose_share_is_zero_sends_its_mask():
    lams = shares(EDGES + 5, 2)
    made = opened_at_all(node("mask", "masked", width=64), [None, EDGES], lams)
    assert all(torch.equal(form.m, EDGES * 2 + 5) for form in made)
    assert torch.equal(lams[0] + lams[1], EDGES + 5), "shares of a mask stay what they are"


@pytest.mark.parametrize("parties", [2, 3])
def test_bits_are_opened_by_exclusive_or(parties):
    planes = EDGES.view(1, -1)
    made = opened_at_all(
        node("mask_bits", "masked_bits"), shares(planes, parties, True), shares(planes ^ 9, parties, True)
    )
    assert all(
        isinstance(form, MaskedBits) and torch.equal(form.hat.view(-1), torch.full_like(EDGES, 9)) for form in made
    )


@pytest.mark.parametrize("parties", [2, 3])
def test_a_reveal_is_the_sum_and_leaves_the_shares_alone(parties):
    given = shares(EDGES, parties)
    before = [share.clone() for share in given]
    made = opened_at_all(node("reveal", "float"), given, [None] * parties)
    assert all(torch.equal(value, EDGES) for value in made)
    assert all(map(torch.equal, given, before))


def test_an_input_is_masked_by_its_owner_alone():
    made, lam = node("input", "masked"), EDGES * 5
    mine = opening.part_of(made, EDGES, lam)
    wire = opening.outgoing(made, mine).reshape(-1).view(torch.uint8)
    owner, other = opening.opened(made, mine, [], CPU), opening.opened(made, None, [wire], CPU)
    assert torch.equal(owner.m, EDGES * 6) and owner.lam is lam
    assert torch.equal(other.m, EDGES * 6) and other.lam is None


def test_rows_that_fill_up_are_zero_in_a_copy():
    share = torch.ones(3, 2, dtype=torch.int64)
    assert opening.without_filling(share, 2).tolist() == [[1, 1], [1, 1], [0, 0]]
    assert share.all()
