"""Splits and folds of joint tables, also between processes, where the owner of a column says which rows are where."""

import numpy as np
import pandas as pd
import pytest

from protocols.errors import PeerAborted, PeerDied
from securemodel import data
from securemodel.errors import InputError
from tests.data.test_joint import between

ROWS = 60
SCHEMA = """
[table]
split = "columns"
minimum = 5
[columns.income]
owner = "bank"
kind = "number"
low = 0
high = 100
[columns.month]
owner = "bank"
kind = "integer"
low = 1
high = 12
[columns.note]
owner = "shop"
kind = "integer"
low = 0
high = 9
missing = true
[columns.defaulted]
owner = "registry"
kind = "boolean"
"""
MONTHS, LABELS = np.arange(ROWS) % 12 + 1, (np.arange(ROWS) % 3 == 0).astype(int)


def tables() -> tuple[data.Schema, list[data.Source]]:
    frames = {
        "bank": pd.DataFrame({"income": np.arange(ROWS) * 1.0, "month": MONTHS}),
        "shop": pd.DataFrame({"note": [None, *[1] * (ROWS - 1)]}),
        "registry": pd.DataFrame({"defaulted": LABELS}),
    }
    return data.Schema.parse(SCHEMA), [data.table(name, frame) for name, frame in frames.items()]


def by_rows() -> data.Joint:
    text = "\n".join(
        line for line in SCHEMA.replace('split = "columns"', 'split = "rows"').splitlines() if "owner" not in line
    )
    whole = pd.DataFrame({"income": np.arange(ROWS) * 1.0, "month": MONTHS, "note": [1] * ROWS, "defaulted": LABELS})
    return data.local(data.Schema.parse(text), [data.table("east", whole[:36]), data.table("west", whole[36:])])


def places(joint: data.Joint) -> list[float]:
    return np.concatenate([part.tensor.numpy() for part in joint.parts("income")]).tolist()


def test_by_a_seed():
    joint = data.local(*tables())
    train, test = joint.split(0.8, 7)
    assert (train.rows, test.rows) == (48, 12) and test.held_out and not train.held_out
    assert sorted(places(train) + places(test)) == list(range(ROWS))
    assert places(joint.split(0.8, 7)[0]) == places(train) != places(joint.split(0.8, 8)[0])
    inner, _ = train.split(0.5)
    assert set(places(inner)) < set(places(train))
    assert [test.rows for _, test in joint.folds(7)] == [9, 9, 9, 9, 8, 8, 8]
    assert sorted(place for _, test in joint.folds(7, 1) for place in places(test)) == list(range(ROWS))


def test_by_a_column():
    joint = data.local(*tables())
    train, test = joint.split(0.75, stratify="defaulted")
    assert (train.mine("defaulted").sum(), test.mine("defaulted").sum()) == (15, 5)
    train, test = joint.split(0.75, by="month")
    assert set(train.mine("month")) == set(range(1, 10)) and set(test.mine("month")) == {10, 11, 12}
    train, test = joint.split(0.75, groups="month")
    assert len(set(train.mine("month"))) == 9 and not set(train.mine("month")) & set(test.mine("month"))
    assert [fold.mine("defaulted").sum() for _, fold in joint.folds(4, stratify="defaulted")] == [5] * 4
    for train, test in joint.folds(3, groups="month"):
        assert not set(train.mine("month")) & set(test.mine("month")) and test.rows == 20


def test_rows_of_parties_are_split_alike():
    joint = by_rows()
    train, _ = joint.split(0.75, stratify="defaulted")
    assert [part.shape[0] for part in train.parts("month")] == [27, 18]
    assert train.mine("defaulted").sum() == 9 + 6
    assert [part.shape[0] for part in joint.split(0.5)[0].parts("month")] == [18, 12]
    assert [[part.shape[0] for part in test.parts("month")] for _, test in joint.folds(2, groups="month")] == [
        [18, 12]
    ] * 2


def test_all_parties_find_the_same_rows():
    def task(me, joint):
        some = [joint.split(0.75, 3)[0], *joint.split(0.75, stratify="defaulted"), joint.folds(3, groups="month")[1][1]]
        return [view.digest for view in some]

    got = between(task, tables=tables())
    assert got["bank"] == got["shop"] == got["registry"] and len(set(got["bank"])) == 4


def test_the_owner_says_that_it_cannot():
    got = between(lambda me, joint: joint.split(0.9, stratify="defaulted"), tables=few())
    assert "too few rows of a class" in str(got["registry"])
    assert isinstance(got["bank"], (PeerAborted, PeerDied)) and "has 4" not in str(got["bank"])


def few():
    schema, (bank, shop, _) = tables()
    return schema, [bank, shop, data.table("registry", pd.DataFrame({"defaulted": [1] * 4 + [0] * (ROWS - 4)}))]


@pytest.mark.parametrize(
    ("split", "says"),
    [
        (lambda j: j.split(0.8, stratify="note"), "may be missing"),
        (lambda j: j.split(0.8, stratify="income"), "not classes"),
        (lambda j: j.split(0.8, stratify="age"), "no column 'age'"),
        (lambda j: j.split(0.8, by="month", groups="month"), "by and groups at once"),
        (lambda j: j.split(1.5, by="month"), "fraction in between"),
        (lambda j: j.split(0.001), "no rows on one side"),
        (lambda j: j.split(0.8, seed="7"), "seed '7' is no whole"),
        (lambda j: j.folds(3, seed=0.5), "seed 0.5 is no whole"),
        (lambda j: j.folds(1), "folds of 60"),
        (lambda j: j.folds(61), "folds of 60"),
        (lambda j: j.folds(20, stratify="defaulted", groups="month"), "at once"),
        (lambda j: j.folds(13, groups="month"), "12 groups"),
    ],
)
def test_what_cannot_be_split(split, says):
    with pytest.raises(InputError, match=says):
        split(data.local(*tables()))


def test_rows_that_nobody_knows():
    text = SCHEMA.replace("[table]", '[table]\nkeys = ["who"]')
    _, sources = tables()
    frames = [
        pd.DataFrame({**source.source, "who": [f"p{n + shift}" for n in range(ROWS)]})
        for shift, source in enumerate(sources)
    ]
    named = [data.table(source.party, frame) for source, frame in zip(sources, frames, strict=True)]
    joint = data.local(data.Schema.parse(text), named)
    with pytest.raises(InputError, match="not aligned yet"):
        joint.split(0.8)
    for learns in ("nobody", "bank"):
        aligned = joint.align(learns)
        with pytest.raises(InputError, match="does not know which of its rows are joint"):
            aligned.split(0.8, stratify="defaulted")
        assert aligned.split(0.5)[0].rows > 20
