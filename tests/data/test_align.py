"""Alignments of tables: a plain join gives what the protocol gives; the ledger, changed sets, minimum, files."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.channel import local_channels
from protocols.channel.testing import run_together
from protocols.errors import ConfigError, DecodeError, FileError, InputError, PeerAborted
from protocols.psi.terms import Terms
from securemodel.data.align import Aligned, ChangedSetWarning, TooFewRows, align, align_here, revealed
from securemodel.data.aligned_files import load, path_of, save
from securemodel.data.remembered import Book, alignments_of
from securemodel.errors import LedgerError
from securemodel.inspect.answers import summed_up
from securemodel.ledger import Ledger, read_ledger

Sets = Mapping[str, Sequence[bytes]]
PAIR = {"bank": [b"a", b"b", b"c", b"d"], "shop": [b"d", b"x", b"b"]}
THREE = {**PAIR, "registry": [b"q", b"d", b"a", b"b"]}
LEARNS = (Terms("all"), Terms("nobody"), Terms("count"), Terms("shop"), Terms("bank", unmatched="drop"))
each_terms = pytest.mark.parametrize("terms", LEARNS, ids=lambda terms: f"{terms.learns} {terms.unmatched}")


def aligned(sets: Sets, terms: Terms, books: Mapping[str, Book | None] = {}, **options: Any) -> dict[str, Any]:
    """The protocol, a thread for each party: what each got, or the error that ended it."""
    channels = local_channels(list(sets), 10.0)

    def task(me: str) -> Aligned:
        return align(sets[me], channels[me], terms, book=books.get(me), workers=0, **options)

    return run_together({name: lambda name=name: task(name) for name in sets})


def joint_ids(sets: Sets, found: Mapping[str, Aligned]) -> list[dict[str, bytes]]:
    """The joint rows: by party the id of its row, for all parties together; as only a test can see it."""
    rows: list[dict[str, bytes]] = [{} for _ in range(found["bank"].rows)]
    learner = next((each for each in found.values() if each.outcome.links), None)
    for name, each in found.items():
        if learner is not None and each is not learner:
            order, links = each.outcome.order, learner.outcome.links[name]
            positions = np.where(links >= 0, order[links], -1)
        else:
            positions = each.positions
        for row, position in zip(rows, positions, strict=True):
            if position >= 0:
                row[name] = sets[name][position]
    return rows


def check(sets: Sets, terms: Terms, found: Mapping[str, Aligned]) -> None:
    common = set.intersection(*map(set, sets.values()))
    if terms.learns == "count":
        assert all(each.rows == 0 and each.common == len(common) for each in found.values())
        return
    rows = joint_ids(sets, found)
    assert all(len(set(row.values())) == 1 for row in rows)
    ids = [next(iter(row.values())) for row in rows]
    complete = [len(row) == len(sets) for row in rows]
    assert len(set(ids)) == len(ids)
    weights = np.prod([each.presence for each in found.values() if each.presence is not None], axis=0)
    hidden = any(each.presence is not None for each in found.values())
    assert {each.hidden for each in found.values()} == {hidden}
    if hidden:
        assert weights.tolist() == [float(every) for every in complete]
    else:
        assert all(complete)
    assert {item for item, every in zip(ids, complete, strict=True) if every} == common
    if terms.learns == "nobody":
        assert set(ids) == set().union(*sets.values())


@each_terms
@pytest.mark.parametrize("sets", [PAIR, THREE], ids=["2", "3"])
def test_the_protocol_and_the_plain_join_give_the_same(sets: Sets, terms: Terms) -> None:
    real, plain = aligned(sets, terms), align_here(sets, terms)
    check(sets, terms, real)
    check(sets, terms, plain)
    for name in sets:
        assert (real[name].rows, real[name].common) == (plain[name].rows, plain[name].common)
        assert {peer: said.rows for peer, said in real[name].parties.items()} == {n: len(s) for n, s in sets.items()}
        for array in ("positions", "order", "places"):
            mine, theirs = getattr(real[name].outcome, array), getattr(plain[name].outcome, array)
            assert (mine is None) == (theirs is None)
            assert mine is None or (mine.shape == theirs.shape and mine.dtype == theirs.dtype == np.int64)
        assert set(real[name].outcome.links) == set(plain[name].outcome.links)


@each_terms
@pytest.mark.parametrize("count", [2, 3, 4])
def test_plain_joins_of_any_sets(terms: Terms, count: int) -> None:
    one = st.lists(st.integers(0, 12).map(lambda n: b"id%d" % n), min_size=1, max_size=9, unique=True).map(
        lambda ids: [b"everybody", *ids]
    )

    @settings(deadline=None, max_examples=30)
    @given(st.fixed_dictionaries(dict.fromkeys(("bank", "shop", "registry", "clinic")[:count], one)))
    def run(sets: dict[str, list[bytes]]) -> None:
        check(sets, terms, align_here(sets, terms))

    run()


def test_the_id_is_that_of_one_alignment() -> None:
    for made in (aligned, align_here):
        first, again = made(THREE, Terms("all")), made(THREE, Terms("all"))
        assert len({each.id for each in first.values()}) == 1
        assert first["bank"].id != again["bank"].id


def test_nothing_is_shown() -> None:
    found = align_here(PAIR, Terms("all"))["bank"]
    assert repr(found) == "Aligned('bank', learns='all', 2 joint rows of bank 4, shop 3)"


def test_the_dealer_is_told_how_many_bins() -> None:
    said = revealed(("bank", "shop"), Terms("bank", dealer=True))
    assert said["dealer"] == ["about how many rows the party has whose ids are put into bins"]
    assert "dealer" not in revealed(("bank", "shop"), Terms("bank"))


@pytest.mark.parametrize("sets, minimum", [({"bank": [b"a"], "shop": [b"b"]}, 0), (PAIR, 3)], ids=["none", "too few"])
def test_too_few_common_ids_are_an_error_at_all(sets: Sets, minimum: int) -> None:
    for terms in (Terms("all"), Terms("nobody")):
        for error in aligned(sets, terms, minimum=minimum).values():
            assert isinstance(error, TooFewRows) and "common ids" in str(error) and "normalize" in str(error)
        with pytest.raises(TooFewRows):
            align_here(sets, terms, minimum=minimum)


def test_who_does_not_learn_how_many_are_common_is_not_told_either() -> None:
    found = aligned(PAIR, Terms("bank"), minimum=3)
    assert isinstance(found["bank"], TooFewRows) and "2 common ids" in str(found["bank"])
    assert not isinstance(found["shop"], TooFewRows)  # it has its part already, or was told the kind
    assert not isinstance(found["shop"], PeerAborted) or "2" not in str(found["shop"].reason)
    assert aligned(PAIR, Terms("count"), minimum=3)["shop"].common == 2


def test_bad_ids_of_one_party_in_this_process() -> None:
    for ids in ([b"a", b"a"], [b"a", b""], []):
        with pytest.raises(InputError):
            align_here({"bank": ids, "shop": [b"a"]}, Terms("all"))
    with pytest.raises(InputError, match="learns"):
        align_here(PAIR, Terms("nobody else"))


@pytest.mark.parametrize("terms", LEARNS, ids=lambda terms: terms.learns)
def test_what_is_revealed_is_said(terms: Terms) -> None:
    two, three = revealed(("bank", "shop"), terms), revealed(("shop", "registry", "bank"), terms)
    expected = {
        "all": {"all": ["which of its ids all parties have"]},
        "count": {"all": ["how many ids all parties have"]},
        "nobody": {"all": ["how many different ids the parties have together, so how many are common"]},
        "shop": {"shop": ["which of its ids each other party has"]},
        "bank": {"bank": ["which of its ids each other party has"], "all": ["how many ids all parties have"]},
    }
    assert two == expected[terms.learns]
    more = {"bank": ["how many ids each set of parties has in common"]}
    if terms.learns in ("all", "count", "nobody"):
        assert {name: said for name, said in three.items() if name != "all"} == more
    else:
        assert three == two


# The ledger.


def books(folder: Path, names: Sequence[str]) -> dict[str, Book]:
    return {name: Book(Ledger(folder / name / "ledger")) for name in names}


def test_sizes_and_commitments_are_written_before_anything_is_sent(tmp_path: Path) -> None:
    kept = books(tmp_path, PAIR)
    found = aligned(PAIR, Terms("bank", rules="f" * 64), kept)
    sessions = set()
    for name, book in kept.items():
        (line,) = read_ledger(book.ledger.path).lines
        fields = line.fields
        sessions.add(fields["session"])
        assert fields["me"] == name and fields["protocol"] == "alignment" and fields["program"] == "f" * 64
        assert fields["rows"] == len(PAIR[name]) and fields["reveals"] == {
            "bank": ["which of its ids each other party has"]
        }
        assert {peer: said["rows"] for peer, said in fields["sets"].items()} == {"bank": 4, "shop": 3}
        assert {peer: said["commitment"] for peer, said in fields["sets"].items()} == {
            peer: said.commitment for peer, said in found[name].parties.items()
        }
        assert stat.S_IMODE(book.salt_path.stat().st_mode) == 0o600
        summary = summed_up(read_ledger(book.ledger.path))
        assert not summary.breaks and summary.answers[0].receiver == "bank"
    assert len(sessions) == 1


def warned(sets: Sets, kept: Mapping[str, Book]) -> set[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = aligned(sets, Terms("all"), kept)
    assert all(isinstance(each, Aligned) for each in found.values())
    texts = [str(each.message) for each in caught if isinstance(each.message, ChangedSetWarning)]
    assert all("which persons came or went" in text for text in texts)
    return {text.split("'")[1] for text in texts}


def test_a_changed_set_is_warned_of_and_the_same_one_is_not(tmp_path: Path) -> None:
    kept = books(tmp_path, THREE)
    assert warned(PAIR, kept) == set()
    assert warned({name: ids[::-1] for name, ids in PAIR.items()}, kept) == set()
    assert warned({**PAIR, "shop": [b"d", b"x"]}, kept) == {"shop"}
    assert warned({**PAIR, "shop": [b"d", b"y"]}, kept) == {"shop"}  # as many, but another
    assert warned(THREE, kept) == set()  # other parties
    assert warned(PAIR, kept) == {"shop"}  # ... which do not hide what was before
    (tmp_path / "bank" / "ledger.salt").unlink()
    assert warned({**PAIR, "shop": PAIR["shop"]}, kept) == {"bank"}


def test_a_salt_that_cannot_be_used_ends_it_before_anything_is_sent(tmp_path: Path) -> None:
    book = Book(Ledger(tmp_path / "ledger"))
    assert book.salt() == book.salt() and len(book.salt()) == 32
    book.salt_path.chmod(0o644)
    with pytest.raises(LedgerError, match="salt"):
        book.salt()
    book.salt_path.unlink()
    book.salt_path.write_bytes(b"x")
    book.salt_path.chmod(0o600)
    with pytest.raises(LedgerError, match="damaged"):
        book.salt()


def test_a_ledger_that_cannot_be_written_ends_an_alignment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = books(tmp_path, PAIR)

    def full(self: Ledger, fields: Any) -> None:
        raise LedgerError("the ledger cannot be written")

    monkeypatch.setattr(Ledger, "append", full)
    found = aligned(PAIR, Terms("all"), {"bank": kept["bank"]})
    assert isinstance(found["bank"], LedgerError)
    assert isinstance(found["shop"], PeerAborted) and found["shop"].party == "bank"


def test_which_ledger(tmp_path: Path) -> None:
    assert alignments_of(False) is None
    book = alignments_of(tmp_path / "mine")
    assert book is not None and book.salt_path == tmp_path / "mine.salt"


# Files.


def same(first: Aligned, second: Aligned) -> bool:
    mine, theirs = ((each.me, each.id, each.table, each.terms, dict(each.parties)) for each in (first, second))
    if mine != theirs:
        return False
    a, b = first.outcome, second.outcome
    arrays = [(getattr(a, name), getattr(b, name)) for name in ("positions", "order", "places")]
    arrays += [(a.links.get(name), b.links.get(name)) for name in {**a.links, **b.links}]
    equal = all((x is None) == (y is None) and (x is None or np.array_equal(x, y)) for x, y in arrays)
    return equal and (a.rows, a.common) == (b.rows, b.common)


@each_terms
@pytest.mark.parametrize("sets", [PAIR, THREE], ids=["2", "3"])
def test_files_say_the_same(sets: Sets, terms: Terms, tmp_path: Path) -> None:
    for name, each in align_here(sets, replace(terms, rules="r" * 64)).items():
        each = replace(each, table="t" * 64)
        path = save(each, tmp_path / "aligned")
        assert path == path_of(tmp_path / "aligned", name) and stat.S_IMODE(path.stat().st_mode) == 0o600
        assert same(load(tmp_path / "aligned", name, schema="r" * 64, table="t" * 64), each)
        for digests in ({"table": "u" * 64}, {"schema": "s" * 64}):
            with pytest.raises(InputError, match=f"not one of this {next(iter(digests))}"):
                load(tmp_path / "aligned", name, **digests)


def test_files_that_are_not_there_or_somebody_elses(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="securemodel align"):
        load(tmp_path, "bank")
    path = save(align_here(PAIR, Terms("all"))["bank"], tmp_path)
    os.link(path, tmp_path / "shop.aligned")
    with pytest.raises(InputError, match="that of 'bank', not of 'shop'"):
        load(tmp_path, "shop")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by other users"):
        load(tmp_path, "bank")


def rewritten(path: Path, change: Any) -> None:
    """The file with other contents and a digest of these."""
    rest = path.read_bytes()[32:]
    start = 4 + int.from_bytes(rest[:4], "little")
    about, found = json.loads(rest[4:start]), np.frombuffer(rest[start:], "<i8").copy()
    found = change(about, found)
    text = json.dumps(about).encode()
    rest = len(text).to_bytes(4, "little") + text + found.tobytes()
    path.write_bytes(hashlib.sha256(rest).digest() + rest)


def about(**fields: Any) -> Any:
    return lambda said, found: (said.update(fields), found)[1]


def rows(*values: int) -> Any:
    return lambda said, found: np.array(values, "<i8")


CHANGES: dict[str, Any] = {
    "other version": about(format="securemodel alignment 9"),
    "no terms": lambda said, found: (said.pop("terms"), found)[1],
    "terms that make no sense": about(terms={"learns": "x", "rules": "", "largest": 1, "unmatched": "keep"}),
    "a field more": about(more=1),
    "rows as text": about(rows="2"),
    "a row that is not there": rows(1, 4),
    "a negative row": rows(1, -1),
    "a row twice": rows(3, 3),
    "fewer rows": rows(3),
    "another array": about(arrays={"secret": 2}),
    "negative sizes": about(arrays={"positions": -2, "order": 4}),
    "sizes that are none": about(arrays={"positions": True}),
    "a link to nobody": about(arrays={"link nobody": 2}),
    "no party": about(me="clinic"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_damaged_files(name: str, tmp_path: Path) -> None:
    path = save(align_here(PAIR, Terms("all"))["bank"], tmp_path)
    rewritten(path, CHANGES[name])
    with pytest.raises((DecodeError, InputError)):
        load(tmp_path, "bank")


def test_files_that_are_cut_off_or_mutated(tmp_path: Path) -> None:
    good = align_here(PAIR, Terms("all"))["bank"]
    path = save(good, tmp_path)
    data = path.read_bytes()
    generator = np.random.default_rng(1)
    for number in range(150):
        damaged = bytearray(data)
        if number % 3 == 0:
            damaged = damaged[: generator.integers(len(data))]
        else:
            damaged[generator.integers(len(data))] ^= 1 << generator.integers(8)
        path.write_bytes(damaged)
        with pytest.raises(DecodeError, match="cut off or was changed"):
            load(tmp_path, "bank")
