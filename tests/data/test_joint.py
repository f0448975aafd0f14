"""Joint tables: rows of several parties as one, in one process and between several."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from protocols.channel import Channel, Purpose
from protocols.channel.buffers import byte_view
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import BadFrame, Mismatch, PeerAborted
from protocols.identity import Timeouts, plain_config
from protocols.psi.terms import Terms
from securemodel import data
from securemodel.data import connecting
from securemodel.data.align import TooFewRows
from securemodel.data.aligned_files import save
from securemodel.engines.labels import QUERY
from securemodel.engines.masked.dealer import serve
from securemodel.errors import ConfigError, InputError
from securemodel.invocation import Invocation, invoked
from securemodel.ledger import read_ledger
from securemodel.training.datasets import Owned

COLUMNS = """
[table]
split = "columns"
minimum = 2
[columns.income]
owner = "bank"
kind = "number"
low = 0
high = 500000
missing = true
[columns.city]
owner = "shop"
kind = "category"
values = ["Ghent", "Utrecht"]
[columns.defaulted]
owner = "registry"
kind = "boolean"
"""
INCOME, CITY, DEFAULTED = [1000.5, None, 333333.25, 0.0], ["Utrecht", "Ghent", "Ghent", "Utrecht"], [1, 0, 1, 1]


def three(text: str = COLUMNS, **ids) -> tuple[data.Schema, list[data.Source]]:
    frames = {"bank": {"income": INCOME}, "shop": {"city": CITY}, "registry": {"defaulted": DEFAULTED}}
    made = [data.table(name, pd.DataFrame({**columns, **ids.get(name, {})})) for name, columns in frames.items()]
    return data.Schema.parse(text), made


def ask(joint: data.Joint, reveal: str = "all") -> dict:
    """How many of Utrecht have defaulted, their incomes, and how many are missing."""
    columns = {name: joint.parts(name) for name in ("income", "city", "defaulted")}
    columns["gone"] = joint.missing("income")

    def sums(income, city, defaulted, gone, **weights):
        w = city * defaulted
        for weight in weights.values():
            w = w * weight
        return {"n": w.sum(), "income": (w * income).sum(), "gone": (w * gone).sum()}

    rows = {**columns, **{f"weight of {party}": (w,) for party, w in joint.weights.items()}}
    return joint.ask(data.Query("defaults", lambda **totals: totals, reveal, rows, sums=sums))


RIGHT = {"n": 2.0, "income": 1000.5, "gone": 0.0}


def read_off(found) -> dict:
    return {name: value if value is None else round(float(value), 3) for name, value in found.items()}


def test_rows_that_belong_together_by_their_place():
    with data.local(*three()) as joint:
        assert joint.rows == 4 and joint.me is None and not joint.by_rows and not joint.hidden
        assert joint.owner("city") == "shop" and joint.parts("income")[0].dtype == torch.float64
        assert joint.mine("city").tolist() == [1, 0, 0, 1] and joint.mine_missing("income").tolist() == [
            False,
            True,
            False,
            False,
        ]
        assert read_off(ask(joint)) == RIGHT
        some = joint.at([np.array([0, 2])])
        assert some.rows == 2 and read_off(ask(some)) == {**RIGHT, "n": 1.0} and some.digest != joint.digest
        assert some.at([np.array([1])]).mine("income").tolist() == [333333.25]


def test_rows_of_several_parties():
    text = COLUMNS.replace('split = "columns"', 'split = "rows"')
    for owner in ("bank", "shop", "registry"):
        text = text.replace(f'owner = "{owner}"\n', "")
    whole = pd.DataFrame({"income": INCOME, "city": CITY, "defaulted": DEFAULTED})
    tables = [data.table("north", whole[:2]), data.table("south", whole[2:])]
    with data.local(data.Schema.parse(text), tables) as joint:
        assert joint.by_rows and joint.parties == ("north", "south") and joint.owner("city") is None and joint.rows == 4
        assert [part.shape for part in joint.parts("city")] == [(2,), (2,)]
        assert read_off(ask(joint)) == RIGHT
        some = joint.at([np.array([], np.int64), np.array([0, 1])])
        assert some.rows == 2 and some.mine("defaulted").tolist() == [1, 1]
        assert read_off(ask(some)) == {"n": 1.0, "income": 0.0, "gone": 0.0}, "a party without rows takes part"
        with pytest.raises(TooFewRows, match="a question about 1 rows of a party"):
            ask(joint.at([np.array([0, 1]), np.array([1])]))


def test_a_question_about_too_few_rows_is_not_answered():
    with data.local(*three()) as joint:
        for places in ([0], []):
            with pytest.raises(TooFewRows, match=f"a question about {len(places)} rows is not answered"):
                ask(joint.at([np.array(places)]))
        assert ask(joint.at([np.array([0, 3])])), "the schema's minimum"


@pytest.mark.parametrize("places", [[4], [-1], [0.0], [0, 0], [[0]], [True]])
def test_places_that_are_none(places):
    """A row that stands there several times would weigh as much, and pass for several."""
    with data.local(*three()) as joint, pytest.raises(InputError, match="different whole numbers from 0 to 3"):
        joint.at([np.array(places)])


def test_places_of_each_part():
    with data.local(*three()) as joint:
        with pytest.raises(InputError, match="places are given for 2 parts"):
            joint.at(np.array([0, 1]))
        assert joint.at([np.array([True, False, False, True])]).mine("city").tolist() == [1, 1]


@pytest.mark.parametrize("wrong, says", [
    (lambda s, t: (s, t[:2]), "no table of registry"),
    (lambda s, t: (s, [*t, t[0]]), "two tables"),
    (lambda s, t: (s, [*t, data.table("stranger", "x.csv")]), "'stranger' has a table and owns no column"),
    (lambda s, t: (s, [*t[:2], data.table("registry", pd.DataFrame({"defaulted": [1, 0]}))]), "different numbers of rows"),
])  # fmt: skip
def test_tables_that_do_not_fit(wrong, says):
    with pytest.raises((InputError, ConfigError), match=says):
        data.local(*wrong(*three()))


def test_a_column_that_is_not_there():
    joint = data.local(*three())
    with pytest.raises(InputError, match="no column 'age'"):
        joint.parts("age")


def test_a_process_of_one_party_never_opens_the_files_of_all():
    with invoked(Invocation(me="bank")), pytest.raises(ConfigError, match="it would read the files of all"):
        data.local(*three())


def between(task, schemas=None, parties=("bank", "shop", "registry"), tables=None, aligned=lambda me: None):
    """What each party returns, over sockets of this host; each has its own table alone."""
    dealer, *addresses = free_addresses(len(parties) + 1)
    times = Timeouts(connect_s=60.0, receive_s=60.0)
    config = plain_config(dict(zip(parties, addresses, strict=True)), dealer=dealer, timeouts=times)
    threading.Thread(target=serve, args=(config, None), kwargs={"insecure_plain": True}, daemon=True).start()
    schema, made = three() if tables is None else tables

    def party(me):
        mine = [source if source.party == me else data.table(source.party, Path("of-others.csv")) for source in made]
        own = (schemas or {}).get(me, schema)
        with data.connect(own, mine, me, config, aligned=aligned(me), ledger=False, insecure_plain=True) as joint:
            return task(me, joint)

    return run_together({me: lambda me=me: party(me) for me in parties}, 60.0)


def test_between_processes():
    def task(me, joint):
        assert joint.me == me
        with pytest.raises(InputError, match="'s"):
            joint.mine("city" if me != "shop" else "income")
        first = ask(joint, "bank")
        return [read_off(first), read_off(ask(joint.at([np.array([0, 2])])))]

    got = between(task)
    assert got["bank"][0] == RIGHT and set(got["shop"][0].values()) == {None}
    assert {name: found[1]["n"] for name, found in got.items()} == dict.fromkeys(got, 1.0)


def said_by(got, words: str) -> bool:
    """Whoever saw it first says what it saw; the others may hear of it from them."""
    first = [error for error in got.values() if isinstance(error, Mismatch)]
    others = [error for error in got.values() if isinstance(error, PeerAborted)]
    return bool(first) and len(first) + len(others) == len(got) and all(words in str(error) for error in got.values())


def test_another_schema_is_named_by_its_first_difference():
    other = data.Schema.parse(COLUMNS.replace("500000", "400000"))
    got = between(lambda me, joint: ask(joint), {"shop": other})
    assert said_by(got, "has another schema")
    assert any("column 'income': high is 500000.0 here and 400000.0 there" in str(error) for error in got.values())


def test_an_error_in_a_question_ends_the_connection():
    """Who goes on after an error of its own does not make others look wrong, nor hang."""
    seen = {}

    def task(me, joint):
        def wrong() -> torch.Tensor:
            raise ZeroDivisionError("a secret")

        (part,) = joint.parts("income")
        query = data.Query("mean", lambda s: {"s": s}, rows={"x": (part.made(wrong, (), torch.float64),)},
                           sums=lambda x: {"s": x.sum()})  # fmt: skip
        try:
            joint.ask(query)
        except Exception as error:
            seen[me] = error
        ask(joint)

    got = between(task)
    assert all("the connection has ended" in str(error) for error in got.values())
    assert isinstance(seen["bank"], ZeroDivisionError)
    for me in ("shop", "registry"):
        assert isinstance(seen[me], PeerAborted) and "'bank'" in str(seen[me]) and "a secret" not in str(seen[me])


@pytest.mark.parametrize("rows", [0, 2**40])
def test_a_party_that_claims_to_have_impossible_numbers_of_rows(monkeypatch, rows):
    told = connecting._compare
    lies = lambda schema, parties, place, counts, found: told(schema, parties, place, {n: rows if n == "shop" else count for n, count in counts.items()}, found)  # fmt: skip
    monkeypatch.setattr(connecting, "_compare", lies)
    got = between(lambda me, joint: joint.rows)
    assert isinstance(got["bank"], (BadFrame, PeerAborted)) and "'shop'" in str(got["bank"])


def test_other_rows_are_noticed():
    got = between(lambda me, joint: ask(joint.at([np.array([0, 1 if me == "bank" else 2])])))
    assert said_by(got, "or about other rows")


def test_a_file_that_cannot_be_used_is_said_before_anybody_is_reached(tmp_path):
    """Nobody listens, and the error comes at once."""
    (tmp_path / "bank.csv").write_text("income\n12\nmuch\n")
    schema, made = three()
    config = plain_config(dict(zip(("bank", "shop", "registry"), free_addresses(3), strict=True)))
    with pytest.raises(InputError, match="line 3"):
        data.connect(
            schema, [data.table("bank", tmp_path / "bank.csv"), *made[1:]], "bank", config, insecure_plain=True
        )


# ---- alignment
WITH_IDS = COLUMNS.replace("[table]", '[table]\nkeys = ["who"]')
IDS = {"bank": {"who": ["ann", "bob", "eve", "joe"]}, "shop": {"who": ["Eve ", "tim", "ANN", "bob"]},
       "registry": {"who": ["bob", "eve", "ann", "sue"]}}  # fmt: skip
# common: ann (1000.5, Ghent, 1), bob (missing, Utrecht, 1), eve (333333.25, Utrecht, 0)
COMMON = {"n": 1.0, "income": 0.0, "gone": 1.0}


@pytest.mark.parametrize("learns, unmatched, rows", [
    ("all", "keep", 3), ("nobody", "keep", 6), ("bank", "keep", 4), ("bank", "drop", 3), ("registry", "keep", 4),
])  # fmt: skip
def test_questions_to_aligned_rows(learns, unmatched, rows):
    with data.local(*three(WITH_IDS.replace("minimum = 2", "minimum = 1"), **IDS)) as joint:
        aligned = joint.align(learns, unmatched=unmatched)
        assert aligned.rows == rows and aligned.hidden == (learns not in ("all",) and unmatched == "keep")
        assert read_off(ask(aligned)) == COMMON
        some = [aligned.at([np.arange(start, rows, 2)]) for start in (0, 1)]
        halves = [read_off(ask(each)) for each in some]
        assert {name: sum(half[name] for half in halves) for name in COMMON} == COMMON


def test_alignment_between_processes():
    def task(me, joint):
        counted, made = joint.count_common(), joint.align("nobody")
        return counted, read_off(ask(made)), read_off(ask(joint.align("shop", unmatched="drop"))), made.digest

    got = between(task, tables=three(WITH_IDS, **IDS))
    assert {found[:3] for found in [(c, tuple(a.values()), tuple(b.values())) for c, a, b, _ in got.values()]} == {
        (3, tuple(COMMON.values()), tuple(COMMON.values()))
    }
    assert len({found[3] for found in got.values()}) == 1


def two() -> tuple[data.Schema, list[data.Source]]:
    """The same persons, where the shop has the labels too."""
    shop = {"city": CITY, "defaulted": [1, 0, 1, 1], **IDS["shop"]}  # eve, tim, ann, bob
    made = [data.table("bank", pd.DataFrame({"income": INCOME, **IDS["bank"]})), data.table("shop", pd.DataFrame(shop))]
    return data.Schema.parse(WITH_IDS.replace('"registry"', '"shop"')), made


def test_alignment_with_a_dealer_between_processes():
    """The dealer of the programs helps; programs run over the same connection before and after."""

    def task(me, joint):
        all_learn, one_learns = joint.align("all", dealer=True), joint.align("shop", dealer=True)
        return all_learn.rows, one_learns.rows, read_off(ask(all_learn)), read_off(ask(one_learns)), all_learn.digest

    got = between(task, parties=("bank", "shop"), tables=two())
    plain = [read_off(ask(data.local(*two()).align(learns))) for learns in ("all", "shop")]
    assert got["bank"] == got["shop"] == (3, 4, plain[0], plain[1], got["bank"][-1])
    assert plain[0] == plain[1] == {"n": 2.0, "income": 333333.25, "gone": 1.0}


def test_a_dealer_helps_two_of_whom_one_learns():
    with pytest.raises(InputError, match=r"between two parties.*learns='nobody' says that none does"):
        data.local(*three(WITH_IDS, **IDS)).align("nobody", dealer=True)
    got = between(lambda me, joint: joint.align("all", dealer=True), tables=three(WITH_IDS, **IDS))
    assert any("cannot be made with a dealer" in str(error) for error in got.values())
    assert all(isinstance(error, (InputError, PeerAborted)) for error in got.values())


def test_nothing_can_be_asked_before_an_alignment():
    joint = data.local(*three(WITH_IDS, **IDS))
    with pytest.raises(InputError, match="not aligned yet"):
        ask(joint)


def test_without_keys_there_is_nothing_to_align():
    with pytest.raises(InputError, match="names no keys"):
        data.local(*three()).align("all")


def test_what_is_no_alignment():
    with data.local(*three(WITH_IDS, **IDS)) as joint, pytest.raises(InputError, match="count_common"):
        joint.align("count")
    text = WITH_IDS.replace('split = "columns"', 'split = "rows"')
    for owner in ("bank", "shop", "registry"):
        text = text.replace(f'owner = "{owner}"\n', "")
    whole = pd.DataFrame({"who": IDS["bank"]["who"], "income": INCOME, "city": CITY, "defaulted": DEFAULTED})
    with data.local(data.Schema.parse(text), [data.table("north", whole), data.table("south", whole[1:])]) as joint:
        assert joint.count_common() == 3
        with pytest.raises(InputError, match="there is nothing to align"):
            joint.align("all")
    with (
        data.local(*three(WITH_IDS, **IDS)) as joint,
        pytest.raises(InputError, match="largest='9' is not a whole number"),
    ):
        joint.align("all", largest="9")


def test_an_alignment_of_earlier(tmp_path):
    schema, made = three(WITH_IDS, **IDS)
    with data.local(schema, made) as joint:
        for aligned in joint.place.aligned({n: t.ids for n, t in joint.tables.items()}, Terms("all", schema.digest), 2,
                                           {n: t.digest for n, t in joint.tables.items()}).values():  # fmt: skip
            save(aligned, tmp_path)
    with data.local(schema, made, aligned=tmp_path) as joint:
        assert joint.rows == 3 and read_off(ask(joint)) == COMMON
    changed = [made[0], data.table("shop", pd.DataFrame({"city": ["Ghent"] * 4, **IDS["shop"]})), made[2]]
    with pytest.raises(InputError, match="the table is another one"):
        data.local(schema, changed, aligned=tmp_path)


def test_alignments_of_different_times_do_not_go_together(tmp_path):
    schema, made = three(WITH_IDS, **IDS)
    for name in ("first", "second"):
        joint = data.local(schema, made)
        for aligned in joint.place.aligned({n: t.ids for n, t in joint.tables.items()}, Terms("all", schema.digest), 2,
                                           {n: t.digest for n, t in joint.tables.items()}).values():  # fmt: skip
            save(aligned, tmp_path / name)
    got = between(lambda me, joint: joint.rows, tables=(schema, made), aligned=lambda me: tmp_path / ("first" if me == "bank" else "second"))  # fmt: skip
    assert said_by(got, "has another alignment")


@pytest.mark.filterwarnings("error::securemodel.errors.RangeWarning")
@pytest.mark.parametrize("learns", ["all", "bank", "nobody"])
def test_columns_that_fit_give_no_warning(learns):
    with data.local(*three(WITH_IDS, **IDS)) as joint:
        ask(joint.align(learns))


def test_nothing_that_hides_is_used_twice(monkeypatch):
    """The same question and the same alignment twice in one session: no message of them is sent again."""
    sent: dict[tuple[str, str, str], list[bytes]] = {}
    begin = Channel.begin

    def noted(self, label, sends, receives):
        for peer, buffers in sends.items():
            message = b"".join(bytes(byte_view(buffer)) for buffer in buffers)
            if len(message) >= 32 and label != QUERY and label.purpose != Purpose.START:
                sent.setdefault((self.me, peer, str(label)), []).append(message)
        return begin(self, label, sends, receives)

    def task(me, joint):
        aligned = [joint.align("all") for _ in range(2)]
        return [read_off(ask(aligned[0])), read_off(ask(aligned[0]))], aligned[0].digest != aligned[1].digest

    monkeypatch.setattr(Channel, "begin", noted)
    got = between(task, tables=three(WITH_IDS, **IDS))
    assert all(found == ([COMMON, COMMON], True) for found in got.values()), got
    twice = {where: messages for where, messages in sent.items() if len(messages) > 1}
    assert len(twice) > 6 and {me for me, _, _ in twice} == {"bank", "shop", "registry"}
    for where, messages in twice.items():
        assert len(set(messages)) == len(messages), where
        halves = [message[at : at + 16] for message in messages for at in range(0, min(len(message), 4096) - 15, 16)]
        assert "CONTROL" in where[2] or len(set(halves)) == len(halves), where


def test_the_ledger_has_what_was_asked_of_which_rows(tmp_path):
    schema, made = three()
    with data.local(schema, made, ledger=tmp_path / "ledger") as joint:
        some = joint.at([np.array([0, 3])])
        ask(joint)
        ask(some)
        (part,) = joint.parts("income")
        total = part.made(lambda: part.tensor.sum()[None], (), torch.float64)
        once = {"total": Owned(total.party, total.source, (1,), torch.float64)}
        some.ask(data.Query("total", lambda total: {"total": total}, "bank", once=once))
    lines = [line.fields for line in read_ledger(tmp_path / "ledger").lines]
    assert [(line["rows"], line["question"]["name"], line["question"]["rows"]) for line in lines] == [
        (4, "defaults", joint.digest), (2, "defaults", some.digest), (2, "total", some.digest),
    ]  # fmt: skip
