"""An aggregator's journal: what was written is there after a crash, and who is in is written once."""

import sqlite3

import pytest

from protocols.errors import FileError
from securemodel.federated.journal import AGREED, COMPUTED, OPEN, REFUSED, RELEASED, Journal


@pytest.fixture
def journal(tmp_path):
    with_it = Journal(tmp_path / "journal.db")
    yield with_it
    with_it.close()


def again(journal):
    """What another process finds after this one is gone."""
    journal.close()
    journal.__init__(journal.path)
    return journal


def test_a_round_from_its_beginning_to_its_end(journal):
    assert journal.last() is None and journal.round(1) is None
    journal.open(1, 12.5)
    assert (again(journal).last().state, journal.last().deadline) == (OPEN, 12.5)
    journal.agree(1, ["a"], {"b": "late"})
    found = again(journal).last()
    assert (found.state, found.members, found.refused) == (AGREED, ("a",), {"b": "late"})
    journal.attempt(1, 3)
    journal.computed(1, b"result")
    assert (journal.last().state, journal.last().epoch, journal.result(1)) == (COMPUTED, 3, None)
    journal.release(1)
    assert (again(journal).last().state, journal.result(1)) == (RELEASED, b"result")
    journal.open(2, 13.0)
    journal.refuse(2, "too few", {"a": "late"})
    assert (journal.last().state, journal.last().reason, journal.result(2)) == (REFUSED, "too few", None)
    assert again(journal).last().refused == {"a": "late"}


def test_results_are_for_its_user_alone(journal):
    """With what other aggregators have, shares of a result say what it is."""
    journal.open(1, 0.0)
    assert {path.stat().st_mode & 0o777 for path in journal.path.parent.iterdir()} == {0o600}


def test_who_is_in_is_written_once_and_charged_once(journal):
    journal.open(1, 0.0)
    journal.agree(1, ["a", "b"], {})
    journal.agree(1, ["a"], {})
    assert journal.last().members == ("a", "b")
    assert [journal.spent(client) for client in "abc"] == [1, 1, 0]
    journal.open(2, 0.0)
    journal.agree(2, ["a"], {})
    assert again(journal).spent("a") == 2


def test_a_new_epoch_forgets_the_old_result(journal):
    journal.open(1, 0.0)
    journal.agree(1, ["a"], {})
    journal.attempt(1, 1)
    journal.computed(1, b"old")
    journal.attempt(1, 2)
    assert journal.last().state == AGREED
    journal.release(1)
    assert journal.result(1) is None


def test_a_damaged_or_foreign_file_is_named(tmp_path):
    path = tmp_path / "journal.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(FileError, match=r"journal\.db"):
        Journal(path)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("PRAGMA user_version = 7")
    with pytest.raises(FileError, match="version 7"):
        Journal(tmp_path / "other.db")
