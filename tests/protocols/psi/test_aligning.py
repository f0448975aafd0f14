"""Alignments equal plain joins, for two, three and four parties, whoever learns; and their costs are as declared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocols import kernels
from protocols.errors import InputError, Mismatch
from protocols.psi.costs import cost
from protocols.psi.outcome import Outcome
from protocols.psi.sets import own_set
from protocols.psi.terms import Terms

Sets = Mapping[str, Sequence[bytes]]
NAMES = ("bank", "shop", "registry", "clinic")
few = settings(
    deadline=None, max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def several(count: int) -> st.SearchStrategy[dict[str, list[bytes]]]:
    """Sets of few different ids, so that many are common."""
    one = st.lists(st.integers(0, 14).map(lambda n: b"id%d" % n), min_size=1, max_size=9, unique=True)
    return st.fixed_dictionaries({name: one for name in NAMES[:count]})


CASES: dict[str, dict[str, list[bytes]]] = {
    "nothing in common": {"bank": [b"a", b"b"], "shop": [b"c"], "registry": [b"d", b"e", b"f"]},
    "everything": {"bank": [b"a", b"b", b"c"], "shop": [b"c", b"a", b"b"], "registry": [b"b", b"c", b"a"]},
    "pairs only": {"bank": [b"a", b"b"], "shop": [b"b", b"c"], "registry": [b"c", b"a"]},
    "one row": {"bank": [b"a"], "shop": [b"a"], "registry": [b"a"]},
    "one among many": {"bank": [b"x7"], "shop": [b"x%d" % n for n in range(20)], "registry": [b"x7", b"x8"]},
    "zeros at the end": {"bank": [b"a", b"a\0", b"\0"], "shop": [b"a\0", b"\0\0", b"\0"], "registry": [b"\0", b"a\0"]},
}


def common(sets: Sets) -> set[bytes]:
    return set.intersection(*map(set, sets.values()))


def check_all(sets: Sets, found: Mapping[str, Outcome]) -> None:
    """All parties have the same ids in the same order, and just the common ones."""
    orders = [[sets[name][row] for row in found[name].positions] for name in sets]
    assert all(order == orders[0] for order in orders)
    assert len(orders[0]) == len(set(orders[0])) and set(orders[0]) == common(sets)
    assert {(outcome.rows, outcome.common) for outcome in found.values()} == {(len(orders[0]), len(orders[0]))}
    assert all(outcome.places is None and not outcome.links for outcome in found.values())


def check_one(sets: Sets, found: Mapping[str, Outcome], learner: str, drop: bool) -> None:
    """The learner's joint rows are its own; places in others' lists are rows with its ids; the others know sizes."""
    mine = found[learner]
    rows = [sets[learner][row] for row in mine.positions]
    assert rows == [item for item in sets[learner] if not drop or item in common(sets)]
    assert mine.common == len(common(sets)) and mine.rows == len(rows)
    for peer in set(sets) - {learner}:
        theirs = found[peer]
        assert sorted(theirs.order) == list(range(len(sets[peer])))
        assert theirs.rows == len(rows) and theirs.common == (len(rows) if drop else None)
        assert theirs.positions is theirs.places is None and not theirs.links
        for item, place in zip(rows, mine.links[peer], strict=True):
            assert sets[peer][theirs.order[place]] == item if place >= 0 else item not in sets[peer]


def check_nobody(sets: Sets, found: Mapping[str, Outcome]) -> None:
    """Equal ids have equal places, different ids different ones, and there are as many as ids."""
    every = set().union(*sets.values())
    named: dict[int, bytes] = {}
    for name, outcome in found.items():
        assert outcome.rows == len(every) and outcome.positions is None and not outcome.links
        for item, place in zip(sets[name], outcome.places, strict=True):
            assert named.setdefault(int(place), item) == item
    assert set(named.values()) == every and set(named) == set(range(len(every)))


def check(sets: Sets, terms: Terms, found: Mapping[str, Any]) -> None:
    if terms.learns == "all":
        check_all(sets, found)
    elif terms.learns == "nobody":
        check_nobody(sets, found)
    elif terms.learns == "count":
        assert all(outcome == Outcome(0, len(common(sets))) for outcome in found.values())
    else:
        check_one(sets, found, terms.learns, terms.unmatched == "drop")


LEARNS = (Terms("all"), Terms("nobody"), Terms("count"), Terms("shop"), Terms("bank", unmatched="drop"))


@pytest.mark.parametrize("terms", LEARNS, ids=lambda terms: terms.learns)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("count", [2, 3])
def test_cases(parties, small_pieces: int, terms: Terms, case: str, count: int) -> None:
    sets = {name: CASES[case][name] for name in NAMES[:count]}
    check(sets, terms, parties(sets, terms))


@pytest.mark.parametrize("terms", LEARNS, ids=lambda terms: terms.learns)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_any_sets(parties, small_pieces: int, terms: Terms, count: int) -> None:
    @few
    @given(several(count))
    def run(sets: dict[str, list[bytes]]) -> None:
        found = parties(sets, terms)
        check(sets, terms, found)
        rows = {name: len(ids) for name, ids in sets.items()}
        joint = found["bank"].common if terms.learns == "count" else found["bank"].rows
        for name, stats in parties.stats.items():
            declared = cost(rows, terms, name, joint)
            assert (stats.rounds, stats.sent_bytes) == (declared.rounds, declared.sent_bytes)

    run()


@pytest.mark.parametrize("variant", ["twins", kernels.info()["variant"]])
@pytest.mark.parametrize("terms", [Terms("all"), Terms("nobody")], ids=lambda terms: terms.learns)
def test_several_messages_and_workers(parties, monkeypatch: pytest.MonkeyPatch, terms: Terms, variant: str) -> None:
    monkeypatch.setattr("protocols.psi.workers._FEW", 100)
    monkeypatch.setattr("protocols.psi.flows.PIECE", 128)
    sets = {"bank": [b"%d" % n for n in range(500)], "shop": [b"%d" % n for n in range(1200, 300, -1)]}
    with kernels.use(variant):
        found = parties(sets, terms, workers=1)
    check(sets, terms, found)
    rows = {name: len(ids) for name, ids in sets.items()}
    for name, stats in parties.stats.items():
        declared = cost(rows, terms, name, found[name].rows)
        assert (stats.rounds, stats.sent_bytes) == (declared.rounds, declared.sent_bytes)


@pytest.mark.parametrize("terms", LEARNS, ids=lambda terms: terms.learns)
@pytest.mark.parametrize("count", [2, 3])
def test_as_many_points_are_multiplied_as_declared(parties, monkeypatch, terms: Terms, count: int) -> None:
    from protocols.psi import aligning

    made: dict[int, list[int]] = {}
    real = aligning.Workers.for_work.__func__

    def counting(cls: Any, work: int, most: Any = None) -> Any:
        workers = real(cls, work, most)
        done: list[int] = []
        multiply, blind = workers.multiply, workers.blind
        workers.multiply = lambda points, *rest: (done.append(len(points) // 32), multiply(points, *rest))[1]
        workers.blind = lambda items, *rest: (done.append(len(items)), blind(items, *rest))[1]
        made[id(workers)] = done
        return workers

    monkeypatch.setattr(aligning.Workers, "for_work", classmethod(counting))
    sets = {name: [b"%d" % n for n in range(size)] for name, size in zip(NAMES[:count], (5, 9, 7), strict=False)}
    found = parties(sets, terms)
    rows = {name: len(ids) for name, ids in sets.items()}
    declared = sorted(cost(rows, terms, name, found[name].rows).multiplications for name in sets)
    assert sorted(map(sum, made.values())) == declared


def test_orders_are_fresh(parties) -> None:
    sets = {"bank": [b"%d" % n for n in range(40)], "shop": [b"%d" % n for n in range(40)]}
    orders = {tuple(parties(sets, Terms("all"))["bank"].positions) for _ in range(3)}
    places = {tuple(parties(sets, Terms("nobody"))["bank"].places) for _ in range(3)}
    lists = {tuple(parties(sets, Terms("bank"))["shop"].order) for _ in range(3)}
    assert len(orders) == len(places) == len(lists) == 3
    assert tuple(range(40)) not in orders | places | lists


def test_ids_in_arrays(parties) -> None:
    sets = {"bank": np.array([b"a", b"bb", b"c"], object), "shop": np.array([b"bb", b"c"], object)}
    check(sets, Terms("all"), parties(sets, Terms("all")))
    with pytest.raises(InputError, match="drop zeros"):
        own_set(np.array([b"a", b"a\0"]))


def test_bad_ids_are_refused_all_at_once_and_none_is_shown() -> None:
    ids = [b"secret-a", b"", b"secret-b", b"secret-a", None, b"secret-a", b"secret-b", b"secret-a"]
    with pytest.raises(InputError) as caught:
        own_set(ids)
    text = str(caught.value)
    assert "2 of 8 rows have no id: rows 1, 4" in text
    assert "4 of 8 rows have the id of an earlier row: rows 3, 5, 6 and 1 more" in text
    assert "secret" not in text


@pytest.mark.parametrize(
    "terms, words",
    [
        (Terms(""), "learns=''"),
        (Terms("Bank"), "learns='Bank'"),
        (Terms("all", unmatched="x"), "unmatched='x'"),
        (Terms("all", largest=0), "largest=0"),
        (Terms("all", largest=2**40), "largest="),
    ],
)
def test_terms_that_make_no_sense(terms: Terms, words: str) -> None:
    with pytest.raises(InputError, match="this alignment cannot be made") as caught:
        terms.check(("bank", "shop"))
    assert words in str(caught.value)


@pytest.mark.parametrize("names", [("bank",), ("bank", "nobody"), ("count", "shop"), ("bank", "bank"), ("bank", "all")])
def test_names_that_mean_something_else(names: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="this alignment cannot be made"):
        Terms("all").check(names)


@pytest.mark.parametrize(
    "theirs, words",
    [
        (Terms("shop", rules="r"), "different learns"),
        (Terms("all", rules="other"), "different rules for ids"),
        (Terms("all", rules="r", largest=50), "different largest"),
        (Terms("nobody", rules="other"), "different learns and rules for ids"),
    ],
)
def test_other_terms_are_named_at_both(parties, theirs: Terms, words: str) -> None:
    sets = {"bank": [b"a"], "shop": [b"a"]}
    found = parties.results(sets, {"bank": Terms("all", rules="r"), "shop": theirs})
    for name, peer in (("bank", "shop"), ("shop", "bank")):
        assert isinstance(found[name], Mismatch) and found[name].party == peer
        assert words in str(found[name])
    assert {stats.sent_messages for stats in parties.stats.values()} == {1}


def test_a_set_that_is_too_large_is_refused_before_anything_of_it_is_sent(parties) -> None:
    sets = {"bank": [b"%d" % n for n in range(11)], "shop": [b"a"]}
    found = parties.results(sets, Terms("all", largest=10))
    assert isinstance(found["bank"], InputError) and "largest=10" in str(found["bank"])
    assert not isinstance(found["shop"], InputError) and isinstance(found["shop"], Exception)
    assert parties.stats["bank"].sent_messages == 0


def test_commitments_tell_whether_a_set_is_the_same() -> None:
    salt = b"s" * 32
    first = own_set([b"a", b"b"]).commitment("bank", salt)
    assert first == own_set([b"b", b"a"]).commitment("bank", salt)
    others = [own_set([b"a"]), own_set([b"ab"]), own_set([b"a", b"b", b"c"]), own_set([b"a", b"c"])]
    made = {first, own_set([b"a", b"b"]).commitment("shop", salt), own_set([b"a", b"b"]).commitment("bank", b"t" * 32)}
    made |= {each.commitment("bank", salt) for each in others}
    assert len(made) == 7 and all(len(each) == 64 for each in made)
