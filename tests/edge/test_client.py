"""The client against parties that answer, refuse, break, lie and stay silent."""

from __future__ import annotations

import copy
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from protocols import identity
from securemodel.edge import Client, Disagreement, InputError, PartyDown, Refused, ServiceError, client, sharing, wire
from tests.edge.fake import CARD, FakeService, linear, moved, once, refuse, sleeping

ROWS = np.random.default_rng(1).uniform(-10, 10, (19, 3)).round(3)


@pytest.fixture
def service() -> Iterator[FakeService]:
    found = FakeService()
    yield found
    found.close()


def ask(service: FakeService, x: object = ROWS[:1], **options):
    with Client(service.document(), **options.pop("client", {})) as asking:
        return asking.infer("line", x, **options)


@pytest.mark.parametrize("names", [("bank", "hospital"), ("a", "b", "c", "d", "e")])
@pytest.mark.parametrize("seeds", [True, False])
def test_many_rows_go_in_several_requests(names, seeds, monkeypatch) -> None:
    monkeypatch.setattr(sharing.split, "__kwdefaults__", {**sharing.split.__kwdefaults__, "seeds": seeds})
    service, told = FakeService(names), []
    y = ask(service, ROWS, progress=lambda done, rows: told.append((done, rows)))
    np.testing.assert_allclose(y, linear(ROWS), atol=1e-3)
    assert told == [(8, 19), (16, 19), (19, 19)]
    for rank, party in enumerate(service.parties.values()):
        assert sorted(request.rows for request in party.seen) == [3, 8, 8]
        forms = {request.tensors[0].share.form for request in party.seen}
        assert forms == {"seed" if seeds and rank else "values"}
    ids = [{request.id for request in party.seen} for party in service.parties.values()]
    assert len(ids[0]) == 3 and all(found == ids[0] for found in ids)
    service.close()


def test_no_party_sees_the_input(service) -> None:
    """The same row twice gives every party other bytes, and no share is the row in fixed point."""
    with Client(service.document()) as asking:
        for _ in range(2):
            asking.infer("line", ROWS[:1])
    plain = sharing.encode(ROWS[:1] / 2, 16, 100.0)
    for party in service.parties.values():
        first, second = (request.shares()[0] for request in party.seen)
        assert not np.any(first == second) and not np.any(first == plain)
        assert np.abs(first.astype(float)).min() > 2.0**32  # 64 random bits; below: 1 in 10^9


def test_inputs_and_outputs_by_name_and_results_in_parts(service) -> None:
    with Client(service.document(), parallel=2) as asking:
        parts = list(asking.results("line", {"x": ROWS.tolist()}))
    assert [(part.first, part.rows, part.version) for part in parts] == [(0, 8, "3"), (8, 8, "3"), (16, 3, "3")]
    np.testing.assert_allclose(np.concatenate([part.outputs["y"] for part in parts]), linear(ROWS), atol=1e-3)
    assert "y" not in repr(parts[0]).replace("array", "")


@pytest.mark.parametrize(
    ("x", "where"),
    [
        (np.array([[1, 2, np.nan]]), r"x\[0, 2\].*\n.*not a number"),
        (np.array([[1, 2, 3], [1, -np.inf, 3]]), r"x\[1, 1\].*\n.*infinite"),
        (np.array([[1, 2, 200.5]]), r"x\[0, 2\].*\n.*±100"),
        (np.zeros((2, 4)), "rows of"),
        (np.zeros((0, 3)), "rows of"),
        (np.zeros(3), "rows of"),
        (np.float64(3), "rows"),
        ([[1, 2, 3], [4, 5]], "no array"),
        (np.array([["1", "2", "3"]]), "no numbers"),
        ({"z": np.zeros((1, 3))}, r"takes the inputs \['x'\]"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_shared_are_named_before_anything_is_sent(service, x, where) -> None:
    with pytest.raises(InputError, match=where):
        ask(service, x)
    assert not any(party.seen for party in service.parties.values())


def test_a_class_has_a_label(service) -> None:
    card = copy.deepcopy(CARD)
    card["outputs"][0] |= {"kind": "class", "shape": [-1, 2]}
    card["labels"] = ["zero", "one", "two", "three"]
    service.card = card
    x = 2 * np.array([[1, 1, 1.0]])  # 1 - 2 + 3 + 1 = 3 and 5 - 1 - 3 = 1
    y = ask(service, x)
    assert y.dtype == np.int64 and y.tolist() == [[3, 1]]
    assert ask(service, x, labels=True).tolist() == [["three", "one"]]
    card["labels"] = ["zero"]
    with pytest.raises(client.EdgeError, match="no label"):
        ask(service, x, labels=True)


# ---- a key, a version, a clock
def test_the_key_goes_to_every_party_and_a_version_into_the_path(service) -> None:
    service.keys = True
    with pytest.raises(ServiceError, match="asks for a key"):
        ask(service)
    ask(service, client={"key": "secret-key"}, version=3)
    for party in service.parties.values():
        assert party.heads[0]["authorization"] == "Bearer secret-key"
        assert party.heads[0]["path"] == "/v2/models/line/versions/3/infer"
    with pytest.raises(ServiceError) as caught:
        ask(service, client={"key": "two\r\nlines"})
    assert "two" not in str(caught.value)


def test_a_clock_that_is_off_is_set_by_the_server(service) -> None:
    off = 3_600_000

    def skewed(request, answer):
        now = time.time_ns() // 1_000_000 + off
        return answer if abs(request.time - now) < 120_000 else refuse("clock_skew", 400, server_time=now)

    for party in service.parties.values():
        party.behave = skewed
    np.testing.assert_allclose(ask(service), linear(ROWS[:1]), atol=1e-3)
    assert len(service.parties["bank"].seen) == 2
    service.parties["bank"].behave = lambda *_: refuse("clock_skew", 400, server_time=5)
    with pytest.raises(Refused, match="clock_skew"):
        ask(service)


# ---- another program
def another_program(service) -> None:
    """All parties serve another one from now on, which takes other numbers."""
    service.card = {**service.card, "digest": "cd" * 32, "recipe": {"x": [["divide", 4.0]]}}
    for party in service.parties.values():
        party.behave = lambda request, answer: answer if request.program == "cd" * 32 else refuse("wrong_program", 409)


@pytest.mark.parametrize("rows", [1, len(ROWS)])
def test_another_program_is_asked_for_when_all_parties_say_so(service, rows: int) -> None:
    with Client(service.document()) as asking:
        np.testing.assert_allclose(asking.infer("line", ROWS[:rows]), linear(ROWS[:rows]), atol=1e-3)
        another_program(service)
        np.testing.assert_allclose(asking.infer("line", ROWS[:rows]), linear(ROWS[:rows] / 2), atol=1e-3)
        sent = len(service.parties["bank"].seen)
        [result] = asking.results("line", ROWS[:1])
        assert len(service.parties["bank"].seen) == sent + 1, "it is known from now on"
        np.testing.assert_allclose(result.outputs["y"], linear(ROWS[:1] / 2), atol=1e-3)


def test_another_program_that_one_party_alone_tells_of_is_not_asked_for(service) -> None:
    with Client(service.document()) as asking:
        old = wire.dump(service.document())
        another_program(service)
        service.parties["hospital"].server.RequestHandlerClass.document = staticmethod(lambda: old)
        with pytest.raises(Refused, match="wrong_program"):
            asking.infer("line", ROWS)
        assert asking.service.model("line").digest == "ab" * 32
        assert {request.program for request in service.parties["bank"].seen} == {"ab" * 32}


# ---- refusals
def test_what_is_refused_for_a_moment_is_asked_again_with_fresh_shares(service) -> None:
    service.parties["hospital"].behave = once(refuse("result_lost", 410))
    service.parties["bank"].behave = once(refuse("queue_full", 503, retry_after=0.2))
    np.testing.assert_allclose(ask(service), linear(ROWS[:1]), atol=1e-3)
    first, second = service.parties["bank"].seen
    assert first.id != second.id
    assert first.tensors[0].share.data != second.tensors[0].share.data
    seeds = {request.tensors[0].share.data for request in service.parties["hospital"].seen}
    assert len(seeds) == 2


def test_a_refusal_says_who_and_what_to_do(service) -> None:
    bad = refuse("budget", 429, "the rows of today are used up", fix="ask tomorrow", retry_after=3600)
    service.parties["hospital"].behave = lambda *_: bad
    service.parties["bank"].behave = lambda *_: refuse("share_missing", 504, "hospital has no share")
    with pytest.raises(
        Refused, match=r"hospital refuses: the rows of today are used up \(budget\)\n.*ask tomorrow"
    ) as caught:
        ask(service)
    assert (caught.value.party, caught.value.code, caught.value.status) == ("hospital", "budget", 429)
    assert caught.value.retry_after == 3600 and len(service.parties["hospital"].seen) == 1


def test_waiting_longer_than_the_time_limit_is_not_begun(service) -> None:
    service.parties["bank"].behave = lambda *_: refuse("rate", 429, retry_after=50)
    with pytest.raises(Refused, match="rate"):
        ask(service, timeout=20)
    assert len(service.parties["bank"].seen) == 1


@pytest.mark.parametrize("body", [b"<html>gateway</html>", b"[]", b"", b"\xff", b"{" * 5000, b'{"code":3,"what":[]}'])
def test_answers_of_something_else_are_refusals_with_a_status(body) -> None:
    found = wire.read_problem("bank", 502, body)
    assert (found.code, found.what) == ("unknown", "bank refuses: HTTP status 502 (unknown)")


def test_a_partys_text_cannot_write_to_a_terminal() -> None:
    found = wire.read_problem("bank", 503, wire.dump({"code": "rate\x1b[2J", "what": "a\nb\x07" + "x" * 9999}))
    assert str(found).isprintable() and len(str(found)) < 600


# ---- connections
def test_a_broken_connection_is_tried_again_with_the_same_bytes(service) -> None:
    service.parties["hospital"].behave = once("close")
    np.testing.assert_allclose(ask(service), linear(ROWS[:1]), atol=1e-3)
    first, second = service.parties["hospital"].bodies
    assert first == second and len(service.parties["bank"].seen) == 1


def test_connections_are_kept_and_a_restarted_party_is_found_again(service) -> None:
    with Client(service.document()) as asking:
        for _ in range(3):
            asking.infer("line", ROWS[:1])
        assert [len(line._all) for line in asking._lines] == [1, 1]
        port = service.stop("hospital")
        service.start("hospital", port)
        np.testing.assert_allclose(asking.infer("line", ROWS[:1]), linear(ROWS[:1]), atol=1e-3)


def test_a_dead_party_is_named(service) -> None:
    document = service.document()
    service.stop("hospital")
    service.parties["bank"].behave = lambda *_: refuse("share_missing", 504, parties=["hospital"])
    with Client(document) as asking, pytest.raises(PartyDown, match="hospital cannot be reached") as caught:
        asking.infer("line", ROWS[:1])
    assert caught.value.party == "hospital"
    service.start("hospital")


@pytest.mark.parametrize("dribble", [b"", b"HTTP/1.1 200 OK\r\nX: "])
def test_a_silent_party_is_named_in_time(service, dribble, monkeypatch) -> None:
    """Also one that sends a byte now and then, which no time limit of a socket notices."""
    monkeypatch.setattr(client, "_GRACE_S", 0.2)
    stop, listener = threading.Event(), socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        kept, _ = listener.accept()
        with kept:
            kept.sendall(dribble)
            while not stop.wait(0.05):
                try:
                    kept.sendall(b"x" if dribble else b"")
                except OSError:
                    return

    threading.Thread(target=serve, daemon=True).start()
    document = service.document()
    document["parties"][1]["url"] = f"http://127.0.0.1:{listener.getsockname()[1]}"
    start = time.monotonic()
    with Client(document) as asking, pytest.raises(PartyDown, match="hospital did not answer in time"):
        asking.infer("line", ROWS[:1], timeout=0.5)
    assert time.monotonic() - start < 60
    stop.set()
    listener.close()


def test_a_deadline_is_told_and_kept(service, monkeypatch) -> None:
    monkeypatch.setattr(client, "_GRACE_S", 0.1)
    service.parties["bank"].behave = sleeping(3)
    with pytest.raises(PartyDown, match="bank did not answer in time"):
        ask(service, timeout=0.4)
    assert 1 <= service.parties["hospital"].seen[0].deadline_ms <= 400
    ask(service, timeout=500)
    assert service.parties["hospital"].seen[1].deadline_ms == wire.MAX_DEADLINE_MS


# ---- answers that do not belong together
@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"run": "0123456789abcdef:7"}, "bank and hospital do not belong together"),
        ({"row": 1}, "another row"),
        ({"version": "4"}, "another version"),
        ({"id": "0" * 32}, "hospital is not one to this request"),
        ({"model": "other"}, "hospital is not one to this request"),
        ({"frac_bits": {"y": 15}}, "hospital is not one to this request"),
        ({"shares": {"y": np.zeros((1, 3), np.int64)}}, "hospital is not one to this request"),
        ({"shares": {"z": np.zeros((1, 2), np.int64)}, "frac_bits": {"z": 16}}, "hospital is not one to this request"),
    ],
)
def test_answers_that_do_not_belong_together_are_not_added(service, change, says) -> None:
    service.parties["hospital"].behave = moved(**change)
    with pytest.raises(Disagreement, match=says):
        ask(service)


def test_an_answer_of_another_version_than_asked_is_refused(service) -> None:
    with pytest.raises(Disagreement, match="version"):
        ask(service, version=2)


# ---- who is there
@pytest.fixture
def secure(tmp_path: Path) -> Iterator[FakeService]:
    for name in ("bank", "hospital"):
        identity.create(name, tmp_path / name)
    found = FakeService(tls=tmp_path)
    for name, party in found.parties.items():
        party.certificate = identity.load(tmp_path / name).fingerprint.replace(":", "").lower().removeprefix("sha256")
    yield found
    found.close()


def test_parties_are_recognized_by_their_fingerprints(secure) -> None:
    np.testing.assert_allclose(ask(secure), linear(ROWS[:1]), atol=1e-3)
    hospital = secure.parties["hospital"]
    hospital.certificate = secure.parties["bank"].certificate
    hospital.seen.clear()
    with pytest.raises(ServiceError, match=r"not hospital\n(.*\n)*.*fingerprint"):
        ask(secure)
    assert not hospital.seen
    hospital.certificate = None
    with pytest.raises(ServiceError, match="is not hospital"):
        ask(secure)
    assert not hospital.seen


def test_without_tls_only_on_this_machine(service) -> None:
    document = service.document()
    document["parties"][1]["url"] = "http://bank.example:80"
    with pytest.raises(ServiceError, match="without TLS"):
        Client(document)
    Client(document, insecure_plain=True).close()


def test_the_file_can_be_a_path_or_an_address(service, tmp_path: Path) -> None:
    path = tmp_path / "service.json"
    path.write_text(json.dumps(service.document()))
    for where in (path, str(path), service.parties["bank"].url, service.parties["bank"].url + "/service.json"):
        with Client(where) as asking:
            np.testing.assert_allclose(asking.infer("line", ROWS[:1]), linear(ROWS[:1]), atol=1e-3)


def test_many_threads_share_one_client(service) -> None:
    with Client(service.document()) as asking:
        found: dict[int, np.ndarray] = {}
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: asking.infer("line", ROWS[n : n + 1])}))
            for n in range(19)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    np.testing.assert_allclose(np.concatenate([found[n] for n in range(19)]), linear(ROWS), atol=1e-3)
