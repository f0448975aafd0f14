"""Queries: sums over rows at once and in blocks, revealed as said, in one process and between several."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.channel.testing import free_addresses, run_together
from protocols.identity import Timeouts, plain_config
from securemodel.data import query as module
from securemodel.data.place import Here, there
from securemodel.data.query import Query, compile_query
from securemodel.engines.masked.dealer import serve
from securemodel.errors import CompileError, InputError, RangeWarning
from securemodel.ledger import read_ledger
from securemodel.training.datasets import Way, owned, rows

PARTIES = ("bank", "shop")


def products(x, y):
    return {"sums": (x * y[:, None]).sum(0), "count": y.sum()}


def means(sums, count, shift):
    return {"mean": sums / count + shift, "count": count}


def query(count: int = 40, seed: int = 0, reveal="all", **changes) -> Query:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, generator=generator, dtype=torch.float64) * 100
    y = (torch.rand(count, generator=generator) < 0.4).long()
    y[0] = 1
    shift = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    given = {"rows": {"x": (owned("bank", x),), "y": (owned("shop", y),)}, "once": {"shift": owned("bank", shift)}}
    return Query("means", reveal=reveal, **{**given, "finish": means, "sums": products, **changes})


def clear(asked: Query) -> dict[str, torch.Tensor]:
    columns = {name: torch.cat([part.tensor for part in parts]) for name, parts in asked.rows.items()}
    return asked.finish(**asked.sums(**columns), **{name: part.tensor for name, part in asked.once.items()})


def near(found, right) -> bool:
    return found.keys() == right.keys() and all((found[name] - right[name]).abs().max() < 1e-2 for name in right)


@pytest.fixture
def blocks_of_16(monkeypatch):
    monkeypatch.setattr(module, "_MOST_ROWS", 16)


@pytest.mark.parametrize("parties", [PARTIES, ("bank", "shop", "registry")])
@pytest.mark.parametrize("count", [16, 17, 40])
def test_blocks_give_what_all_rows_give(parties, count, blocks_of_16):
    asked = query(count)
    compiled = compile_query(asked, parties)
    assert len(compiled.pieces) == {16: 1, 17: 3, 40: 3}[count]
    assert near(Here(parties).ask(compiled), clear(asked))


def test_an_exact_number_of_blocks(blocks_of_16):
    compiled = compile_query(query(48), PARTIES)
    assert [piece.runs for piece in compiled.pieces] == [3, 1]
    assert near(Here(PARTIES).ask(compiled), clear(query(48)))


@settings(max_examples=5, deadline=None)
@given(st.data())
def test_rows_of_several_parties(data):
    counts = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=3))
    parties = ("bank", "shop", "registry")[: len(counts)]
    parts = {name: torch.arange(float(count)).double() for name, count in zip(parties, counts, strict=True)}
    asked = Query("sum", lambda total: {"total": total + 0}, rows={"x": rows(**{n: owned(n, x) for n, x in parts.items()})},
                  sums=lambda x: {"total": x.sum()})  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_MOST_ROWS", 16)
        found = Here(parties).ask(compile_query(asked, parties))
    assert found["total"] == sum(x.sum() for x in parts.values())


def test_a_total_may_be_the_result(blocks_of_16):
    asked = query(40, finish=lambda sums, count, shift: {"sums": sums, "count": count})
    assert near(Here(PARTIES).ask(compile_query(asked, PARTIES)), clear(asked))


def test_totals_of_a_million_rows():
    """What does not fit 32 bits: counts and sums of squares that owners give."""
    big = torch.tensor([1e6, 9.9e8, 2.0**29])
    asked = Query("big", lambda a, b: {"sum": a + b}, once={"a": owned("bank", big), "b": owned("shop", big)})
    assert torch.equal(Here(PARTIES).ask(compile_query(asked, PARTIES))["sum"], 2 * big)


def test_whole_needs_one_program(blocks_of_16):
    asked = query(40, whole=True)
    compiled = compile_query(asked, PARTIES)
    assert len(compiled.pieces) == 1 and near(Here(PARTIES).ask(compiled), clear(asked))


def test_the_plan_counts_all_runs(blocks_of_16):
    compiled = compile_query(query(40), PARTIES)
    plan = compiled.plan("wan")
    assert plan.rounds == sum(
        p.runs * q.rounds + q.load.rounds for p, (q, _) in zip(compiled.pieces, plan.parts, strict=True)
    )
    assert (
        "mean, count to all" in str(plan) and plan.dealt_bytes > 0 and plan.sent_bytes["bank"] > 0 and plan.seconds > 0
    )


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("parties", [PARTIES, ("bank", "shop", "registry")])
def test_rows_in_an_order_that_one_party_knows(parties, missing):
    """The bank has five rows, the shop's rows are others', and the bank alone knows which belong together."""
    order = torch.tensor([6, 0, 3, -1, 5] if missing else [6, 0, 3, 2, 5])
    x, y = torch.randn(5, dtype=torch.float64), torch.randn(7, 2, dtype=torch.float64)
    z = torch.arange(7)
    way = Way(owned("bank", order), missing)
    theirs = owned("shop", y)
    rows = {"x": (owned("bank", x),), "y": (replace(theirs, way=way),), "z": (replace(owned("shop", z), way=way),)}
    rows["twice"] = (rows["y"][0].made(2 * y[:, 0], (), torch.float64),)
    asked = Query("sums", lambda total, one, z, k: {"total": total + k, "one": one, "z": z}, rows=rows,
                  sums=lambda x, y, z, twice: {"total": x @ y, "one": (x * twice).sum(), "z": z.sum()},
                  once={"k": owned("shop", torch.ones(2))})  # fmt: skip
    pick = lambda t: torch.cat([t, t.new_zeros(1, *t.shape[1:])])[order]
    right = {"total": x @ pick(y) + 1, "one": (x * 2 * pick(y)[:, 0]).sum(), "z": pick(z).sum()}
    assert near(Here(parties).ask(compile_query(asked, parties)), right)


def test_only_receivers_learn():
    compiled = compile_query(query(reveal={"mean": "bank", "count": "shop"}), PARTIES)
    assert compiled.reveals == {"mean": "bank", "count": "shop"}


@pytest.mark.parametrize("reveal, kind", [({"mean": "bank"}, CompileError), ("nobody", InputError)])
def test_receivers_that_are_none(reveal, kind):
    with pytest.raises(kind, match="mean"):
        compile_query(query(reveal=reveal), PARTIES)


def between(task, parties=PARTIES):
    """What each party's end of a connection returns, over sockets of this host."""
    dealer, *addresses = free_addresses(len(parties) + 1)
    times = Timeouts(connect_s=20.0, receive_s=20.0)
    config = plain_config(dict(zip(parties, addresses, strict=True)), dealer=dealer, timeouts=times)
    threading.Thread(target=serve, args=(config, None), kwargs={"insecure_plain": True}, daemon=True).start()

    def party(me):
        with there(parties, me, config, None, ledger=False) as place:
            return task(me, place)

    return run_together({me: lambda me=me: party(me) for me in parties}, 60.0)


@pytest.mark.parametrize("parties", [PARTIES, ("bank", "shop", "registry")])
def test_several_queries_over_one_connection(parties, blocks_of_16):
    first = compile_query(query(40, reveal={"mean": "bank", "count": "all"}), parties)
    second = compile_query(query(16, seed=1, reveal="shop"), parties)
    got = between(lambda me, place: [place.ask(first), place.ask(second)], parties)
    assert near(got["bank"][0], clear(query(40))) and got["shop"][0]["mean"] is None
    assert got["shop"][0]["count"] == got["bank"][0]["count"]
    assert near(got["shop"][1], clear(query(16, seed=1))) and set(got["bank"][1].values()) == {None}


def test_each_run_is_in_the_ledger(tmp_path, blocks_of_16):
    from securemodel.data.place import here

    here(PARTIES, tmp_path / "ledger").ask(compile_query(query(40, reveal={"mean": "bank", "count": "all"}), PARTIES))
    lines = [line.fields for line in read_ledger(tmp_path / "ledger").lines]
    assert [line["reveals"] for line in lines] == [{}, {}, {}, {"bank": ["mean"], "all": ["count"]}]


def bounded(low: float, high: float, count: int = 40) -> Query:
    """Sums of products of one party's numbers with the other's 0 and 1."""
    x = owned("bank", torch.full((count,), high, dtype=torch.float64))
    y = owned("shop", torch.ones(count, dtype=torch.int64))
    one = {"x": (replace(x, bounds=(low, high)),), "y": (replace(y, bounds=(0.0, 1.0)),)}
    return Query("sum", rows=one, sums=lambda x, y: {"s": (x * y).sum()}, finish=lambda s: {"mean": s / 40})


@pytest.mark.parametrize("count", [16, 40])
def test_sums_that_may_leave_the_ring_are_told(count, blocks_of_16):
    """With 16 fractional bits numbers are below 2^30, and a larger one would be another without a word."""
    with pytest.warns(RangeWarning, match=r"'sum' has values that are not shown to fit(.|\n)*test_query.py"):
        compile_query(bounded(-1e8, 1e8, count), PARTIES)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("asked", [bounded(0, 1e6), replace(bounded(-1e8, 1e8), frac_bits=8), query()])
def test_sums_that_fit_are_not(asked):
    compile_query(asked, PARTIES)


def test_what_is_made_of_a_column_has_bounds_of_its_own():
    (x, *_) = bounded(0, 5).rows["x"]
    assert x.bounds == (0, 5) and x.made(lambda: x.tensor / 10, (), torch.float64).bounds is None
    assert x.made(lambda: x.tensor / 10, (), torch.float64, bounds=(0, 0.5)).bounds == (0, 0.5)
