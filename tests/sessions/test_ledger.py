"""The ledger: a line for every run, before anything of it is sent; chained, its owner's alone, without a secret."""

from __future__ import annotations

import json
import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

import securemodel
from securemodel import ledger as ledger_module
from securemodel.errors import LedgerError
from securemodel.inspect.answers import summed_up
from securemodel.invocation import Invocation, invoked
from securemodel.ledger import Ledger, default_path, read_ledger
from securemodel.sessions import remote

SENTINEL = 731.40625


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [dict(line.fields) for line in read_ledger(path).lines]


def test_every_run_is_written_at_every_party(world, program, tools, tmp_path: Path) -> None:
    x = torch.full((5, 4), SENTINEL)

    def task(session: Any) -> None:
        session.run(x if session.me == "hospital" else None)  # in batches of 2, 2 and 1
        session.run(x[:2] if session.me == "hospital" else None)

    paths = {name: tmp_path / name / "ledger" for name in program.parties}
    assert world.run(dict.fromkeys(program.parties, task), ledger=paths) == {"bank": None, "hospital": None}
    found = {name: lines_of(path) for name, path in paths.items()}
    for me, lines in found.items():
        assert [line["rows"] for line in lines] == [2, 2, 1, 2]
        assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
        for line in lines:
            assert line["program"] == program.digest and line["me"] == me and line["protocol"] == "masked"
            assert line["reveals"] == {"hospital": ["output"]} and line["peers"] == [p for p in found if p != me]
    assert {line["session"] for lines in found.values() for line in lines} == {found["bank"][0]["session"]}
    for path in paths.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert "731.4" not in path.read_text()


def test_a_ledger_that_cannot_be_written_stops_a_party_before_it_connects(
    world, program, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(remote, "connect_channel", lambda *rest, **options: pytest.fail("connected"))
    (tmp_path / "link").symlink_to(tmp_path / "other")
    (tmp_path / "file").touch(0o644)
    (tmp_path / "file").chmod(0o644)
    for bad in ("link", "file", "file/ledger"):
        with pytest.raises(LedgerError, match="the ledger cannot be written"):
            world.connect("bank", ledger=tmp_path / bad)


@pytest.mark.parametrize("who", ["bank", "hospital"])
def test_a_run_that_cannot_be_written_is_not_run(world, program, tools, tmp_path, monkeypatch, who: str) -> None:
    """The owner of the inputs has sent nothing of the run then; the other one 32 public bytes."""
    append, sent = Ledger.append, {}

    def full(self: Ledger, fields: Any) -> None:
        if fields["me"] == who and fields["epoch"] == 2:
            raise LedgerError("the ledger cannot be written")
        append(self, fields)

    def task(session: Any) -> None:
        x = tools.rows(2) if session.me == "hospital" else None
        session.run(x)
        sent[session.me] = session.channel.stats.sent_bytes
        try:
            session.run(x)
        finally:
            sent[session.me] = session.channel.stats.sent_bytes - sent[session.me]

    monkeypatch.setattr(Ledger, "append", full)
    paths = {name: tmp_path / name for name in program.parties}
    results = world.run(dict.fromkeys(program.parties, task), ledger=paths)
    assert type(results[who]) is LedgerError
    other = next(name for name in program.parties if name != who)
    assert "stopped the session" in str(results[other]) and str(tmp_path) not in str(results[other])
    assert sent[who] == 0 if who == "hospital" else sent[who] < 100


def test_a_full_disk_is_a_named_error(tmp_path: Path, monkeypatch) -> None:
    book = Ledger(tmp_path / "ledger")
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(LedgerError, match="No space left"):
        book.append({"rows": 1})


def test_sessions_in_one_process_write_only_where_they_are_asked_to(program, tools, tmp_path: Path) -> None:
    with securemodel.local(program) as session:
        session.run(tools.rows(2))
    assert not default_path().exists() or "all" not in {line["me"] for line in lines_of(default_path())}
    with securemodel.local(program, ledger=tmp_path / "ledger") as session:
        session.run(tools.rows(3))
    assert [line["rows"] for line in lines_of(tmp_path / "ledger")] == [2, 1]


@pytest.mark.parametrize("protocol", ["paillier"])
def test_other_protocols_write_too(protocol: str, tools, tmp_path: Path) -> None:
    model = torch.nn.Linear(4, 2).eval()
    made = tools.make_program(model, protocol=protocol, insecure_key_bits=512)
    with securemodel.local(made, ledger=tmp_path / "ledger") as session:
        session.run(tools.rows(2))
    assert [(line["rows"], line["protocol"]) for line in lines_of(tmp_path / "ledger")] == [(2, protocol)]


@pytest.mark.parametrize("said, expected", [(None, "own"), (False, "none"), ("file", "file")])
def test_which_ledger_is_written(world, program, tools, tmp_path: Path, monkeypatch, said: Any, expected: str) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    paths = {"own": tmp_path / "state" / "securemodel" / "ledger", "file": tmp_path / "file"}
    with invoked(Invocation(ledger=paths["file"] if said == "file" else said)):
        world.run(tools.tasks(program, tools.rows(2), 1))
    for name, path in paths.items():
        assert path.exists() is (name == expected)
        assert name != expected or len(read_ledger(path).lines) == 2


# The chain.


def written(path: Path, count: int = 5) -> list[bytes]:
    book, common = (
        Ledger(path),
        {"session": "s", "program": "p" * 64, "protocol": "masked", "me": "bank", "peers": ["hospital"]},
    )
    for number in range(count):
        book.append({**common, "reveals": {"hospital": ["class"]}, "epoch": number, "rows": 10})
    return path.read_bytes().splitlines(keepends=True)


def test_a_whole_chain(tmp_path: Path) -> None:
    written(tmp_path / "ledger")
    contents = read_ledger(tmp_path / "ledger")
    assert len(contents.lines) == 5 and not contents.breaks


@pytest.mark.parametrize(
    "change, at",
    [
        (lambda lines: [*lines[:2], lines[2].replace(b'"rows":10', b'"rows":11'), *lines[3:]], 4),
        (lambda lines: [*lines[:2], *lines[3:]], 3),
        (lambda lines: lines[1:], 1),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:2], lines[2][:50] + b"\n", *lines[3:]], 3),
        (lambda lines: [*lines[:4], lines[4][:50]], 5),
    ],
    ids=["edited", "removed", "first removed", "repeated", "exchanged", "damaged", "cut off"],
)
def test_a_changed_ledger_is_noticed(tmp_path: Path, change: Any, at: int) -> None:
    path = tmp_path / "ledger"
    lines = written(path)
    path.write_bytes(b"".join(change(lines)))
    assert read_ledger(path).breaks[0].number == at
    assert f"BROKEN at line {at}" in str(summed_up(read_ledger(path)))


def test_the_end_cut_off_shows_in_the_digest_of_the_last_line(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    lines, before = written(path), read_ledger(path).last
    path.write_bytes(b"".join(lines[:-1]))
    after = read_ledger(path)
    assert not after.breaks and after.last != before


def test_a_line_that_a_crash_cut_off_is_kept_and_seen(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    lines = written(path)
    path.write_bytes(b"".join(lines)[:-20])
    written(path, 2)
    contents = read_ledger(path)
    assert [found.number for found in contents.breaks] == [5] and len(contents.lines) == 6


def test_many_writers_at_once(tmp_path: Path) -> None:
    threads = [threading.Thread(target=written, args=(tmp_path / "ledger", 20)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    contents = read_ledger(tmp_path / "ledger")
    assert len(contents.lines) == 100 and not contents.breaks


def test_a_line_is_strict_json(tmp_path: Path) -> None:
    (line, *_) = written(tmp_path / "ledger", 1)
    assert set(json.loads(line)) == set(ledger_module.FIELDS)


def test_what_was_given_to_whom(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    written(path, 3)
    common = {"session": "t", "program": "q" * 64, "protocol": "masked", "me": "bank", "peers": ["clinic"]}
    Ledger(path).append({**common, "reveals": {"clinic": ["class", "score"], "all": ["sum"]}, "epoch": 1, "rows": 99})
    made = summed_up(read_ledger(path))
    assert [(a.receiver, a.rows, a.runs) for a in made.answers] == [
        ("all", 99, 1),
        ("clinic", 99, 1),
        ("hospital", 30, 3),
    ]
    text = str(made)
    assert "total of clinic: 99 rows" in text and "class, score" in text and "the chain is whole" in text
    assert json.loads(json.dumps(made.json()))["answers"][2]["rows"] == 30
