"""Value counts, histograms and groups against pandas; what is withheld, and what could follow from the rest."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from securemodel.data.binning import Grid, intervals
from securemodel.data.counting import group_by, histogram, value_counts
from securemodel.data.withholding import enough_of_all
from securemodel.errors import InputError
from tests.data.stand_in import WAYS, boolean, category, integer, number, table

CITIES = ["Ghent", "Utrecht", "Delft", "Bruges"]
COLUMNS = [
    category("city", CITIES, missing=True),
    number("buys", "shop"),
    integer("age", "shop", missing=True),
    boolean("late"),
]


def frame(seed: int, rows: int = 80) -> pd.DataFrame:
    random = np.random.default_rng(seed)
    made = {
        "city": random.choice(4, rows, p=[0.5, 0.3, 0.15, 0.05]).astype(float),
        "buys": random.normal(0, 3, rows).clip(-10, 10).round(1),
        "age": random.integers(0, 101, rows).astype(float),
        "late": random.integers(0, 2, rows).astype(float),
    }
    for name in ("city", "age"):
        made[name][random.random(rows) < 0.2] = np.nan
    return pd.DataFrame(made)


def withheld(counts: list[int], minimum: int) -> set[int]:
    """The rule of `enough_of_all`, in other words."""
    few = {at for at, count in enumerate(counts) if count < minimum}
    together = sum(counts[at] for at in few)
    if 0 < together < minimum and len(few) < len(counts):
        least = min(counts[at] for at in range(len(counts)) if at not in few)
        few |= {at for at, count in enumerate(counts) if count == least}
    return few


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=8), st.integers(0, 25))
def test_what_is_withheld_does_not_follow_from_the_rest(counts, minimum):
    seen = enough_of_all(torch.tensor(counts), minimum).tolist()
    assert {at for at, told in enumerate(seen) if not told} == withheld(counts, minimum)
    left = sum(count for count, told in zip(counts, seen, strict=True) if not told)
    assert left == 0 or left >= minimum or not any(seen)  # what the total minus the rest tells


def same(found, wanted: list[int], minimum: int) -> bool:
    few = withheld(wanted, minimum)
    return all(math.isnan(x) if at in few else x == wanted[at] for at, x in enumerate(found.numbers))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(WAYS), st.integers(1, 12))
def test_counts_are_pandas(seed, way, minimum):
    joint, right = table(COLUMNS, frame(seed), way, seed, minimum)
    wanted = right.city.value_counts().reindex(range(4), fill_value=0).tolist()
    found = value_counts(joint, "city")
    assert same(found, wanted, minimum) and found.names == tuple(CITIES)
    assert [found[name] for name in found.names if name not in found.withheld] == [
        x for at, x in enumerate(wanted) if at not in withheld(wanted, minimum)
    ]
    edges = [-10, -2.5, 0.0, 3.0, 10]
    wanted = pd.cut(right.buys, edges, include_lowest=True).value_counts(sort=False).tolist()
    assert same(histogram(joint, "buys", edges), wanted, minimum)
    ages = pd.cut(right.age, np.linspace(0, 100, 6), include_lowest=True).value_counts(sort=False).tolist()
    assert same(histogram(joint, "age", 5), ages, minimum)


@pytest.mark.parametrize(
    ("way", "parties"), [*((way, ("bank", "shop")) for way in WAYS), ("hidden", ("bank", "shop", "registry"))]
)
def test_secret_counts_and_groups(way, parties):
    joint, right = table(COLUMNS, frame(4), way, 4, 9, clear=False, parties=parties)
    wanted = right.city.value_counts().reindex(range(4), fill_value=0).tolist()
    assert same(value_counts(joint, "city"), wanted, 9) and withheld(wanted, 9)
    groups(joint, right, 9)


def groups(joint, right: pd.DataFrame, minimum: int) -> None:
    found = group_by(joint, "city", ["buys", "age"])
    wanted = right.groupby("city")[["buys", "age"]].agg(["count", "mean", "std"]).reindex(range(4))
    for name in ("buys", "age"):
        counts = wanted[name]["count"].fillna(0).astype(int).tolist()
        few = withheld(counts, minimum)
        for at, city in enumerate(CITIES):
            mine = found.frame.loc[city, name]
            if at in few:
                assert mine.isna().all()
            else:
                assert mine.to_numpy() == pytest.approx(
                    wanted[name].loc[at].to_numpy(), rel=1e-5, abs=1e-5, nan_ok=True
                )
        assert set(found.withheld.get(name, ())) == {CITIES[at] for at in few}


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(WAYS), st.integers(1, 12))
def test_groups_are_pandas(seed, way, minimum):
    joint, right = table(COLUMNS, frame(seed), way, seed, minimum)
    groups(joint, right, minimum)


def test_groups_by_a_boolean_and_by_whole_numbers():
    joint, right = table(COLUMNS, frame(1))
    found = group_by(joint, "late", "buys").frame["buys"]
    assert found["mean"].tolist() == pytest.approx(right.groupby("late").buys.mean().tolist(), abs=1e-6)
    ages = group_by(joint, "age", "late").frame["late"]
    wanted = right.groupby("age").late.sum()
    assert {int(at): row["mean"] * row["count"] for at, row in ages.iterrows() if row["count"] > 0} == pytest.approx(
        {int(at): x for at, x in wanted.items()}
    )


def test_large_whole_numbers_have_names_of_their_own():
    """As accounts and months have; a name that two values share would be asked for one and answered for the other."""
    columns = [integer("account", low=1234567, high=1234569), number("buys")]
    rows = pd.DataFrame({"account": [1234567.0] * 3 + [1234569.0] * 2, "buys": [1.0, 2, 3, 4, 6]})
    joint, _ = table(columns, rows)
    found = value_counts(joint, "account")
    assert (found["1234567"], found["1234569"], found.withheld) == (3, 2, ("1234568",))
    assert group_by(joint, "account", "buys").frame["buys"]["mean"]["1234569"] == pytest.approx(5, abs=1e-5)
    assert Grid(integer("id", low=2**53 + 1, high=2**53 + 2), 4).names == (str(2**53 + 1), str(2**53 + 2))


def test_bins_have_as_many_digits_as_they_differ_in():
    assert intervals([0, 2.5, 10]) == ("[0, 2.5]", "(2.5, 10]")
    assert intervals([1e6 + 1, 1e6 + 2, 1e6 + 3]) == ("[1000001, 1000002]", "(1000002, 1000003]")
    assert intervals([0.1, np.nextafter(0.1, 1)]) == ("[0.10000000000000001, 0.10000000000000002]",)
    assert intervals([5.0, 5.0]) == ("[5, 5]",)


def test_many_bins_of_hidden_rows_are_two_digits():
    """256 bins take 16 + 16 numbers of a row, and 16 once more with the other's presence."""
    data = frame(3)
    joint, right = table(
        [integer("age", "shop", 0, 255), number("buys")], data.fillna(3).assign(buys=0.0), "hidden", 3, 0, clear=False
    )
    found = value_counts(joint, "age")
    assert [int(x) for x in found.numbers] == right.age.value_counts().reindex(range(256), fill_value=0).tolist()
    assert joint.plans[0].sent_bytes["shop"] < 8 * 64 * len(data) + 40_000


def test_cells_beyond_the_edges_are_nobodys():
    joint, right = table(COLUMNS, frame(3))
    assert sum(histogram(joint, "buys", [0.0, 1.0, 2.0]).numbers) == ((right.buys >= 0) & (right.buys <= 2)).sum()


def test_what_cannot_be_counted_is_an_error():
    joint, _ = table([*COLUMNS, integer("id", low=0, high=10**6)], frame(3).assign(id=1.0))
    for ask, why in (
        (lambda: value_counts(joint, "buys"), "real numbers"),
        (lambda: value_counts(joint, "id"), "1000001 values"),
        (lambda: histogram(joint, "city"), "no order"),
        (lambda: histogram(joint, "buys", 0), "0 bins"),
        (lambda: histogram(joint, "buys", [1.0, 1.0]), "that grow"),
        (lambda: histogram(joint, "buys", 2.5), "that grow"),
        (lambda: histogram(joint, "buys", "auto"), "that grow"),
        (lambda: group_by(joint, "buys", "age"), "too many values"),
        (lambda: group_by(joint, "late", ["city"]), "no mean"),
        (lambda: group_by(joint, "late", ["late"]), "other columns than their key"),
    ):
        with pytest.raises(InputError, match=why):
            ask()


def test_every_split_of_few_counts():
    """By hand: none, one and two cells below the minimum, at the edges of the rule."""
    for counts in itertools.product([0, 1, 4, 5, 6], repeat=3):
        seen = enough_of_all(torch.tensor(counts), 5).tolist()
        assert [at for at in range(3) if not seen[at]] == sorted(withheld(list(counts), 5)), counts
