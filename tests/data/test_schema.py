"""Schemas: what they say, that they are compared whole, and that everything wrong is found at once with its line."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from datetime import date

import pytest

from securemodel.data.column import MOST_VALUES, Column, day, days
from securemodel.data.schema import Schema
from securemodel.errors import ConfigError, FileError

TEXT = """
[table]
keys = ["email", "born"]
split = "columns"
minimum = 30
missing = "drop"
duplicates = "first"

[keys.born]
normalize = "date"

[columns.income]
owner = "bank"
kind = "number"
low = 0.0
high = 500000
outside = "clip"
missing = true
duplicates = "sum"

[columns.visits]
owner = "shop"
kind = "integer"
low = -5
high = 9223372036854775807

[columns.city]
owner = "shop"
kind = "category"
values = ["Ghent", "Utrecht"]
other = true

[columns.member]
owner = "shop"
kind = "boolean"
values = ["no", "yes"]

[columns.since]
owner = "bank"
kind = "date"
low = 1970-01-02
high = "2030-12-31"

[columns."shop.1"]
owner = "registry"
kind = "boolean"
"""
SCHEMA = Schema.parse(TEXT)


def faults(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        Schema.parse(text)
    said = str(caught.value)
    assert said.startswith("the schema has ") and "→" in said
    return [line.removeprefix("  why:").strip() for line in said.splitlines()[2:-1]]


def columns(*lines: str) -> str:
    return "\n".join(("[columns.a]", *lines))


def test_what_a_schema_says() -> None:
    assert SCHEMA.keys == ("email", "born") and dict(SCHEMA.normalize) == {"email": "text", "born": "date"}
    assert (SCHEMA.split, SCHEMA.minimum, SCHEMA.missing, SCHEMA.duplicates) == ("columns", 30, "drop", "first")
    assert SCHEMA.parties == ("bank", "shop", "registry")
    assert [column.name for column in SCHEMA.of("bank")] == ["income", "since"]
    assert SCHEMA.columns["income"] == Column("income", "bank", "number", 0.0, 500000.0, "clip", True, duplicates="sum")
    assert SCHEMA.columns["visits"].high == 2**63 - 1 and SCHEMA.columns["visits"].duplicates == "first"
    city, member, since = (SCHEMA.columns[name] for name in ("city", "member", "since"))
    assert city.labels == ("Ghent", "Utrecht", "other") and (city.low, city.high) == (0, 2)
    assert member.labels == ("no", "yes") and (member.low, member.high) == (0, 1)
    assert (since.low, since.high) == (1, 22279) and since.labels == ()
    assert SCHEMA.columns["shop.1"].labels == ("0", "1")


def test_what_is_not_said() -> None:
    plain = Schema.parse(columns('owner = "x"', 'kind = "boolean"'))
    assert (plain.keys, plain.split, plain.minimum, plain.missing, plain.duplicates) == ((), "columns", 20, "error", "error")  # fmt: skip
    rows = Schema.parse('[table]\nsplit = "rows"\n' + columns('kind = "boolean"'))
    assert rows.parties == () and rows.of("anybody") == tuple(rows.columns.values())


def test_days() -> None:
    assert days(date(1970, 1, 1)) == 0 and days(date(1969, 12, 31)) == -1 and day(19723) == date(2024, 1, 1)


def test_schemas_are_data() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SCHEMA.minimum = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        SCHEMA.columns["x"] = SCHEMA.columns["income"]  # type: ignore[index]
    for again in (pickle.loads(pickle.dumps(SCHEMA)), copy.deepcopy(SCHEMA)):
        assert again == SCHEMA and again.digest == SCHEMA.digest
        with pytest.raises(TypeError):
            again.columns["x"] = SCHEMA.columns["income"]
    assert hash(SCHEMA.columns["city"]) == hash(dataclasses.replace(SCHEMA.columns["city"]))


# ---- comparison
def test_the_digest_is_of_what_is_said_not_of_how() -> None:
    spelled = TEXT.replace("high = 500000", "high  =  500_000.0  # euros").replace('owner = "bank"', "owner = 'bank'")
    assert Schema.parse(spelled).digest == SCHEMA.digest and len(SCHEMA.digest) == 64
    assert SCHEMA.first_difference(Schema.parse(spelled)) is None and SCHEMA.first_difference(SCHEMA.text) is None


CHANGES = {
    "a bound": ("high = 500000", "high = 400000", "column 'income': high is 500000.0 here and 400000.0 there"),
    "a word": ('"Utrecht"', '"Bruges"', "column 'city': values is [\"Ghent\", \"Utrecht\"] here and"),
    "a kind": ('values = ["no", "yes"]', "", "column 'member': values is [\"no\", \"yes\"] here and [] there"),
    "an owner": ('owner = "registry"', 'owner = "bank"', "column 'shop.1': owner is \"registry\" here and"),
    "a true": ("missing = true", "missing = false", "column 'income': missing is true here and false there"),
    "the minimum": ("minimum = 30", "minimum = 31", "[table]: minimum is 30 here and 31 there"),
    "a rule": ('normalize = "date"', 'normalize = "digits"', "key 'born': normalize is \"date\" here and \"digits\" there"),
    "the keys": ('["email", "born"]', '["born", "email"]', '[table]: keys is ["email", "born"] here and'),
    "a name": ("[columns.city]", "[columns.town]", "column 'city' is here alone"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_difference_is_named(change: str) -> None:
    old, new, said = CHANGES[change]
    other = Schema.parse(TEXT.replace(old, new))
    assert other.digest != SCHEMA.digest
    assert SCHEMA.first_difference(other).startswith(said)  # type: ignore[union-attr]
    assert SCHEMA.first_difference(other.text) == SCHEMA.first_difference(other)


def test_more_columns_and_another_order_differ() -> None:
    more = Schema.parse(TEXT + '[columns.extra]\nowner = "bank"\nkind = "boolean"\n')
    assert SCHEMA.first_difference(more) == "column 'extra' is there alone"
    last = TEXT.index('[columns."shop.1"]')
    first = TEXT.index("[columns.income]")
    moved = Schema.parse(TEXT[:first] + TEXT[last:] + TEXT[first:last])
    assert moved.digest != SCHEMA.digest and SCHEMA.first_difference(moved) == "the columns are in another order"


@pytest.mark.parametrize("text", ["", "[]", "null\n", "[1, 2, 3]", '["column", "x"]', "[" * 5000, '["a","b",NaN', "x" * (1 << 25)])  # fmt: skip
def test_what_a_peer_sends_is_read_with_care(text: str) -> None:
    assert SCHEMA.first_difference(text) == "what the other party has is no schema of this version"


def test_another_version_differs() -> None:
    said = SCHEMA.first_difference(SCHEMA.text.replace('"rules": "1"', '"rules": "2"'))
    assert said == 'key \'email\': rules is "1" here and "2" there'
    assert SCHEMA.first_difference(SCHEMA.text.replace("schema 1", "schema 9")).startswith("the format of schemas")  # type: ignore[union-attr]
    assert SCHEMA.first_difference(SCHEMA.text.replace('"missing": true', '"missing": 1')).endswith(
        "true here and 1 there"
    )  # type: ignore[union-attr]
    assert SCHEMA.first_difference(SCHEMA.text.replace("500000.0", "true")).endswith("500000.0 here and true there")  # type: ignore[union-attr]


# ---- what is wrong with it
WRONG = {
    "an unknown table": ("[tabel]\n", "line 1: the schema has 'tabel', which is unknown; did you mean 'table'?"),
    "an unknown setting": ("[table]\nminimun = 3\n", "line 2: [table] has 'minimun', which is unknown; did you mean 'minimum'?"),
    "no table": ("table = 3\n", "line 1: table is a table: [table]"),
    "no minimum": ("[table]\nminimum = 0\n", "line 2: minimum is 0: at least 1 row must be in an aggregate"),
    "a minimum in words": ('[table]\nminimum = "ten"\n', "line 2: table.minimum is 'ten'; it is a whole number of rows"),
    "a split": ('[table]\nsplit = "column"\n', "line 2: table.split is 'column'; it is \"columns\" or \"rows\"; did you mean 'columns'?"),
    "keys": ('[table]\nkeys = "id"\n', "line 2: keys are a list of names"),
    "a key twice": ('[table]\nkeys = ["id", "id"]\n', "line 2: key 'id' is named twice"),
    "a key that is none": ('[table]\nkeys = ["email"]\n[keys.emial]\n', "line 3: [keys.emial] is no column of keys; did you mean 'email'?"),
    "a rule": ('[table]\nkeys = ["id"]\n[keys.id]\nnormalize = "upper"\n', "line 4: keys.id.normalize is 'upper'; it is"),
    "duplicates": ('[table]\nduplicates = "last"\n', "line 2: table.duplicates is 'last'; it is \"error\", \"first\", \"sum\" or \"mean\""),
}  # fmt: skip


@pytest.mark.parametrize("fault", WRONG)
def test_tables_that_are_wrong(fault: str) -> None:
    text, said = WRONG[fault]
    assert any(line.startswith(said) for line in faults(text + columns('owner = "x"', 'kind = "boolean"'))), faults(
        text
    )


COLUMNS = {
    "no owner": (('kind = "boolean"',), "line 1: column 'a' has no owner"),
    "no party": (('owner = "all"', 'kind = "boolean"'), "line 2: column 'a': 'all' cannot be a party"),
    "no kind": (('owner = "x"',), "line 1: column 'a' has no kind"),
    "a kind": (('owner = "x"', 'kind = "nummer"'), "line 3: columns.a.kind is 'nummer'; it is \"number\""),
    "no low": (('owner = "x"', 'kind = "number"', "high = 1"), "line 1: column 'a' has no low"),
    "low above high": (('owner = "x"', 'kind = "number"', "high = 1", "low = 2"), "line 5: column 'a': low is 2 and high 1; low must be below high"),
    "low is high": (('owner = "x"', 'kind = "date"', "low = 2001-01-01", "high = 2001-01-01"), "line 4: column 'a': low is 2001-01-01"),
    "an infinite bound": (('owner = "x"', 'kind = "number"', "low = 0", "high = inf"), "line 5: column 'a': high is inf; it is a finite number"),
    "a bound that is true": (('owner = "x"', 'kind = "number"', "low = 0", "high = true"), "line 5: column 'a': high is True"),
    "a whole number that is true": (('owner = "x"', 'kind = "integer"', "low = 0", "high = true"), "line 5: column 'a': high is True; it is a whole number"),
    "a fraction": (('owner = "x"', 'kind = "integer"', "low = 0", "high = 1.5"), "line 5: column 'a': high is 1.5; it is a whole number"),
    "a time": (('owner = "x"', 'kind = "date"', "low = 2001-01-01", "high = 2001-02-03T04:05:06"), "line 5: column 'a': high is datetime"),
    "bounds of a boolean": (('owner = "x"', 'kind = "boolean"', "low = 0"), "line 4: column 'a': a boolean has no bounds"),
    "a boolean outside": (('owner = "x"', 'kind = "boolean"', 'outside = "clip"'), "line 4: column 'a': a boolean has no bounds"),
    "a sum of booleans": (('owner = "x"', 'kind = "boolean"', 'duplicates = "sum"'), "line 4: column 'a': rows of one id cannot be merged by 'sum'"),
    "a mean of whole numbers": (('owner = "x"', 'kind = "integer"', "low = 0", "high = 5", 'duplicates = "mean"'), "line 6: column 'a': rows of one id"),
    "missing in words": (('owner = "x"', 'kind = "boolean"', 'missing = "yes"'), "line 4: columns.a.missing is 'yes'; it is true or false"),
    "no values": (('owner = "x"', 'kind = "category"'), "line 1: column 'a' has no values"),
    "empty values": (('owner = "x"', 'kind = "category"', "values = []"), "line 4: column 'a': values are empty"),
    "values of a number": (('owner = "x"', 'kind = "number"', "low = 0", "high = 1", 'values = ["a"]'), "line 6: column 'a': values are for"),
    "numbers as values": (('owner = "x"', 'kind = "category"', "values = [1, 2]"), "line 4: column 'a': values are a list of texts"),
    "a value twice": (('owner = "x"', 'kind = "category"', 'values = ["b", "b"]'), "line 4: column 'a': value 'b' is named twice"),
    "blanks around a value": (('owner = "x"', 'kind = "category"', 'values = [" b"]'), "line 4: column 'a': ' b' cannot be a value"),
    "a value called other": (('owner = "x"', 'kind = "category"', 'values = ["other"]', "other = true"), "line 4: column 'a': with other = true"),
    "three values of a boolean": (('owner = "x"', 'kind = "boolean"', 'values = ["a", "b", "c"]'), "line 4: column 'a': a boolean has two values"),
    "other of a date": (('owner = "x"', 'kind = "date"', "other = true", "low = 2001-01-01", "high = 2002-01-01"), "line 4: column 'a': other is for categories"),
    "a setting": (('owner = "x"', 'kind = "boolean"', "scale = 3"), "line 4: [columns.a] has 'scale', which is unknown"),
}  # fmt: skip


@pytest.mark.parametrize("fault", COLUMNS)
def test_columns_that_are_wrong(fault: str) -> None:
    lines, said = COLUMNS[fault]
    (only,) = faults(columns(*lines))
    assert only.startswith(said)


def test_too_many_categories_are_refused_with_advice() -> None:
    def text(count: int) -> str:
        return columns(
            'owner = "x"', 'kind = "category"', f"values = {[f'c{i}' for i in range(count)]}".replace("'", '"')
        )

    assert len(Schema.parse(text(MOST_VALUES)).columns["a"].values) == 4096
    (only,) = faults(text(MOST_VALUES + 1))
    assert "line 4: column 'a' has 4,097 categories" in only and "other = true" in only


def test_all_problems_come_at_once_in_the_order_of_lines() -> None:
    text = TEXT.replace("minimum = 30", "minimum = -1").replace("high = 500000", 'high = "x"').replace('"no", "yes"', '"no"')  # fmt: skip
    said = faults(text)
    assert [line.split(":")[0] for line in said] == ["line 5", "line 16", "line 36"]
    many = "\n".join(f"[columns.c{i}]\nkind = 3\nowner = 5" for i in range(40))
    said = faults(many)
    assert len(said) == 31 and said[-1] == "and 50 more"


def test_an_owner_where_rows_are_split() -> None:
    (only,) = faults('[table]\nsplit = "rows"\n' + columns('owner = "x"', 'kind = "boolean"'))
    assert only.startswith("line 4: column 'a' has an owner")


def test_no_columns() -> None:
    assert faults('[table]\nkeys = ["a"]\n') == ["there is no column: describe each as [columns.NAME]"]


def test_names_of_columns() -> None:
    (only,) = faults('[columns." a"]\nowner = "x"\nkind = "boolean"\n')
    assert only.startswith("line 1: ' a' cannot be the name of a column")
    (only,) = faults("[columns]\na = 3\n")
    assert only.startswith("line 2: columns.a is a table")


def test_text_that_is_no_toml_and_files(tmp_path) -> None:
    with pytest.raises(ConfigError, match="not valid TOML") as caught:
        Schema.parse("[columns.a\nkind = 3")
    assert "line 1" in str(caught.value)
    path = tmp_path / "joint.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.encode())
    assert Schema.load(path).digest == SCHEMA.digest, "with the mark that some editors write"
    path.write_text(TEXT.replace("minimum = 30", "minimum = 0"))
    with pytest.raises(ConfigError, match="joint.toml") as caught:
        Schema.load(str(path))
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        Schema.load(path)
    with pytest.raises(FileError):
        Schema.load(tmp_path / "absent.toml")
