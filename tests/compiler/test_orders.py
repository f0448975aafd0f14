"""Rows of one party in an order that another one alone knows."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Fn, difference, run

import securemodel
from protocols.errors import BadFrame
from protocols.names import PUBLIC
from securemodel import permute
from securemodel.compiler.ops import ROWS, position_width
from securemodel.compiler.reading import parse_program
from securemodel.engines.masked import opening, party
from securemodel.errors import InputError, ProgramError, UnsupportedOperator
from securemodel.inspect.audit import audit
from securemodel.inspect.tampering import FOREIGN, HANG, tamper
from securemodel.inspect.uniform import ALARM, examine
from securemodel.inspect.views import views

ROWS_OF_X, TAKEN = 6, 4
X = torch.arange(ROWS_OF_X * 2.0).reshape(ROWS_OF_X, 2) / 4
AT = torch.tensor([5, 0, 3, 1])


def compiled(function, *examples, owners=("b", "a"), outputs="all", parties=None, **options):
    """A program on examples of these owners."""
    parties = parties or ("a", "b")
    return securemodel.compile(
        Fn(function), examples, weights="public", inputs=owners, outputs=outputs, parties=parties, **options
    )


@pytest.fixture(scope="module")
def programs() -> dict[tuple[int, bool], securemodel.Program]:
    made = {}
    for parties in (("a", "b"), ("a", "c", "b")):
        for missing in (False, True):
            function = lambda x, at, missing=missing: permute(x, at, missing=missing)
            made[len(parties), missing] = compiled(function, X, AT, parties=parties)
    return made


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from([2, 3]), st.permutations(range(ROWS_OF_X)), st.lists(st.booleans(), min_size=TAKEN, max_size=TAKEN),
    st.booleans(), st.integers(-(2**30), 2**30),
)  # fmt: skip
def test_it_is_an_index(programs, parties, order, there, missing, start):
    at = torch.tensor(order[:TAKEN])
    if missing:
        at = torch.where(torch.tensor(there), at, -1)
    x = start / 2**16 + X
    expected = torch.cat([x, torch.zeros(1, 2)])[at]
    assert torch.equal(permute(x, at, missing=missing), expected)
    (made,) = run(programs[parties, missing], x, at)
    assert torch.equal(made, expected)


@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("missing", [False, True])
def test_it_costs_no_round_and_what_is_said(programs, parties, missing):
    """The plan says 8 bytes sent and dealt for each element, and one for each position; a run counts the same."""
    program = programs[parties, missing]
    plan, peers = program.plan(), parties - 1
    assert plan.rounds == 2, "the inputs, with the positions, and the result"
    assert plan.preprocessing_bytes == 32 + 8 * 2 * (ROWS_OF_X + TAKEN * missing)
    assert position_width(ROWS_OF_X) == 8
    ops = [node.op for node in program.graph.nodes if node.form != "float" or ROWS[node.op].opens]
    assert ops.count("positions") == 1 and "mask" not in ops and "bilinear" not in ops
    headers = 32 + 32 + 32  # two messages, and the first one's beginning
    assert plan.sent_bytes["a"] == peers * (headers + 8 + 8 * 2 * TAKEN)  # its positions, a word; a share of the result
    assert plan.sent_bytes["b"] == peers * (headers + 8 * 2 * ROWS_OF_X + 8 * 2 * TAKEN)
    with securemodel.local(program) as session:
        session.run(X, AT)
        assert session.stats.rounds == plan.rounds and dict(session.stats.sent_bytes) == plan.sent_bytes
        assert session.stats.preprocessing_bytes == plan.preprocessing_bytes


def test_positions_of_many_rows_are_sent_in_few_bytes():
    assert [position_width(n) for n in (1, 2, 256, 257, 1 << 16, (1 << 16) + 1, 1_000_000)] == [8, 8, 8, 16, 16, 24, 24]


def test_several_columns_share_their_positions():
    function = lambda x, y, at: (permute(x, at), permute(y, at) * 2)
    program = compiled(function, X, torch.arange(ROWS_OF_X), AT, owners=("b", "b", "a"))
    ops = [node.op for node in program.graph.nodes]
    assert ops.count("positions") == 1 and ops.count("permute") == 2
    x, y = run(program, X, torch.arange(ROWS_OF_X), AT)
    assert torch.equal(x, X[AT]) and torch.equal(y, 2 * AT)


def test_a_shuffle_that_nobody_knows():
    """One party's order after the other's: one round more, in which the rows are masked anew."""
    rows, owners = torch.arange(8), ("b", "a", "b")
    program = compiled(lambda x, p, q: permute(permute(x + p.sum() * 0, p), q), rows, rows, rows.flip(0), owners=owners)
    p, q = torch.randperm(8), torch.randperm(8)
    (made,) = run(program, rows * 10, p, q)
    assert torch.equal(made, 10 * p[q])
    assert [node.op for node in program.graph.nodes].count("positions") == 2


@pytest.mark.parametrize(
    ("owners", "op"),
    [(("a", "a"), "float"), (("b", PUBLIC), "float"), ((PUBLIC, "a"), "float"), (("b", "a"), "permute")],
)
def test_whoever_has_both_computes_it(owners, op):
    program = compiled(permute, X, AT, owners=owners, outputs="all")
    assert op in {node.op for node in program.graph.nodes}
    assert (op == "permute") == any(node.op == "permute" for node in program.graph.nodes)
    (made,) = run(program, X, AT)
    assert torch.equal(made, X[AT])


def test_secret_rows_at_known_and_at_public_positions():
    known = compiled(lambda x, y: permute(x + y, AT), X, X)
    assert torch.equal(run(known, X, X)[0], 2 * X[AT])
    public = compiled(lambda x, y, at: permute(x + y, at, missing=True), X, X, AT, owners=("a", "b", PUBLIC))
    at = torch.tensor([2, -1, -1, 0])
    made = run(public, X, X, at)[0]
    assert difference(made, permute(2 * X, at, missing=True)) < 2**-12


def test_what_is_computed_afterwards():
    function = lambda x, at, y: ((permute(x, at, missing=True) * y).sum(0), permute(x, at, missing=True)[:, 0] > 0.6)
    y = torch.arange(8.0).reshape(4, 2)
    program = compiled(function, X, AT, y, owners=("b", "a", "a"))
    at = torch.tensor([4, -1, 2, 0])
    total, above = run(program, X, at, y)
    wanted = function(X, at, y)
    assert difference(total, wanted[0]) < 2**-10 and torch.equal(above, wanted[1])


def test_the_gradient_goes_back_to_its_row():
    x, at = X.double().requires_grad_(), torch.tensor([4, -1, 2, -1])
    assert torch.autograd.gradcheck(lambda x: permute(x, at, missing=True), (x,))
    permute(x, at, missing=True).sum().backward()
    assert torch.equal(x.grad[:, 0], torch.tensor([0.0, 0, 1, 0, 1, 0], dtype=torch.float64))


def test_a_training_goes_through_it():
    """A model of the shop's columns, labels in the bank's order: gradients go back to the shop's rows in secret."""
    torch.manual_seed(3)
    model = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def step(shop: torch.Tensor, at: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = ((permute(model(shop), at, missing=True) - label) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    shop, at, label = torch.randn(6, 3), torch.tensor([4, -1, 2, 0, 5, 1]), torch.randn(6, 1)
    own = securemodel.owned
    data = securemodel.dataset(shop=own("shop", shop), at=own("bank", at), label=own("bank", label))
    batches, parties = data.batches(6, shuffle=False), ["bank", "shop"]
    job = securemodel.compile_training(step, model, optimizer, batch=batches, parties=parties, reveal={"loss": "all"})
    assert [node.op for node in job.program.graph.nodes].count("permute") == 2
    with job.local() as run_:
        losses = [run_.train_epoch()[0]["loss"] for _ in range(2)]
        trained = run_.export(to="bank")
    expected = [step(shop, at, label)["loss"] for _ in range(2)]
    assert all(difference(made, wanted) < 2**-10 for made, wanted in zip(losses, expected, strict=True))
    assert difference(trained["weight"], model.weight) < 2**-10


def test_the_audit_names_what_hides_the_positions(programs):
    text = str(audit(programs[2, False]))
    assert "positions of a" in text and "an order that their owner and the dealer alone know" in text


BAD = {
    "the same row": (torch.tensor([0, 1, 2, 1]), False, "positions 1 and 3 name the same row"),
    "too large": (torch.tensor([0, 1, 6, 2]), False, "position 2 of 4"),
    "negative": (torch.tensor([0, -1, 3, 2]), False, "missing=True lets -1 stand"),
    "below -1": (torch.tensor([0, -2, 3, 2]), True, "position 1 of 4"),
    "the same row beside missing ones": (torch.tensor([-1, 2, -1, 2]), True, "positions 1 and 3 name the same row"),
}


@pytest.mark.parametrize("name", BAD)
def test_positions_that_cannot_be(programs, name):
    """Their owner is told before anything is sent, and in the clear it is the same error."""
    at, missing, says = BAD[name]
    with pytest.raises(InputError, match=says):
        permute(X, at, missing=missing)
    with securemodel.local(programs[2, missing]) as session, pytest.raises(InputError, match=says):
        session.run(X, at)


def test_floats_are_no_positions():
    with pytest.raises(InputError, match=r"give int64\[n\]"):
        permute(X, AT.float())


def test_positions_that_nobody_knows_are_refused():
    with pytest.raises(UnsupportedOperator, match="positions that nobody knows"):
        compiled(lambda x, y: permute(x, (x + y).argmax(1)[:3]), X, X)
    with pytest.raises(UnsupportedOperator, match="7 positions of 6 rows"):
        compiled(permute, X, torch.arange(7))


@pytest.mark.parametrize("change", [lambda sent: sent | 0xC0, lambda sent: sent * 0])
def test_a_peer_that_sends_other_positions_is_named(programs, change):
    """Positions outside of the rows, or twice the same, are refused before anything is read at them."""
    real = opening.outgoing
    wrong = lambda node, part: change(real(node, part)) if node.op == "positions" else real(node, part)
    with (
        patch.object(opening, "outgoing", wrong),
        securemodel.local(programs[2, False]) as session,
        pytest.raises(BadFrame, match=r"party 'a' sent positions outside of 6 rows"),
    ):
        session.run(X, AT)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"size":6', '"size":7', "the positions are not of the rows"),
        ('"size":6', '"size":3', "no different positions of 3 rows"),
        ('"width":8', '"width":16', "sent as 8 bits, not 16"),
        ("positions@a", "positions@b", "owner 'a', not 'b'"),
    ],
)
def test_a_text_that_states_something_else_is_refused(programs, old, new, says):
    text = programs[2, False].text()
    assert parse_program(text)
    with pytest.raises(ProgramError, match=says):
        parse_program(text.replace(old, new))


def alarms(program: securemodel.Program, parties: tuple[str, ...]) -> str:
    """What is found in the views of all parties of sessions with two different orders."""
    seen = views(program, 12)
    assert {view.party for view in seen} == set(parties)
    tests = [test for view in seen for test in examine(view)]
    assert any("positions" in test.about for test in tests)
    return ", ".join(test.about for test in tests if test.chance * len(tests) < ALARM)


@pytest.mark.parametrize("parties", [("a", "b"), ("a", "c", "b")])
def test_what_the_others_see_does_not_depend_on_the_positions(parties):
    """Two orders, fresh keys in each session: what is received looks random, and the same for both."""
    x, at = torch.arange(128.0).reshape(64, 2), torch.arange(64)
    assert not alarms(compiled(permute, x, at, parties=parties), parties)


def test_an_order_that_hides_nothing_is_found():
    x, at = torch.arange(128.0).reshape(64, 2), torch.arange(64)
    program = compiled(permute, x, at)
    identity = lambda stream, epoch, node, size: torch.arange(size)
    with (
        patch("securemodel.engines.masked.dealing.hidden_order", identity),
        patch.object(party, "hidden_order", identity),
    ):
        assert "positions" in alarms(program, ("a", "b"))


def test_wrong_messages_are_named_errors_or_wrong_results(programs):
    """None hangs, and none leaves a foreign exception, as an index out of its range would be."""
    for made in tamper(programs[2, False], 4):
        assert not made.outcomes[HANG] and not made.outcomes[FOREIGN], made.attack
