"""One POST to the leader: real fronts whose desks compute a linear function, the relay between them, and the client."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import uvicorn
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from securemodel.edge import Client, Disagreement, PartyDown, Refused, ServiceError, WireError, sealing, wire
from securemodel.edge.lines import Line
from securemodel.edge.sealing import RELAY_PATH, Envelope
from securemodel.edge.service_file import Party
from securemodel.service import desk as desks
from securemodel.service.app import make_app
from securemodel.service.logs import Log
from securemodel.service.relay import Relay
from tests.service.front import CARD, WEIGHTS, Desk, Keys, settings

X = np.random.default_rng(3).uniform(-1, 1, (11, 4))
Y = X @ WEIGHTS


@dataclass
class Running:
    """A party: its desk, its front behind the relay, and what came in."""

    rank: int
    followers: dict[int, Line] = field(default_factory=dict)
    keys: Keys | None = None
    desk: Desk = field(default_factory=Desk)
    private: X25519PrivateKey = field(default_factory=X25519PrivateKey.generate)
    paths: list[str] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    told: io.BytesIO = field(default_factory=io.BytesIO)

    def __post_init__(self) -> None:
        now_ms, log = lambda: time.time_ns() // 10**6, Log(self.told)
        self.settings = settings(rank=self.rank, keys=self.keys, now_ms=now_ms, log=log)
        self.relay = Relay(make_app(self.desk, self.settings), self.settings, self.private, self.followers)
        self.server = uvicorn.Server(
            uvicorn.Config(self.heard, port=0, interface="asgi3", log_level="error", lifespan="off")
        )
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        self.url = f"http://127.0.0.1:{self.server.servers[0].sockets[0].getsockname()[1]}"

    async def heard(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])

        async def heard() -> Any:
            message = await receive()
            self.bodies.append(message.get("body", b""))
            return message

        await self.relay(scope, heard, send)

    def codes(self) -> list[str]:
        """How requests ended, by its log; its counts say the same."""
        codes = [line["code"] for line in map(json.loads, self.told.getvalue().splitlines())]
        counted = self.settings.metrics.registry.get_sample_value
        for code in set(codes):
            models = [counted("requests_total", {"model": model, "code": code}) for model in ("", "line")]
            assert sum(model or 0 for model in models) == codes.count(code)
        return codes

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)


@dataclass
class Place:
    bank: Running
    hospital: Running

    def document(self) -> dict[str, Any]:
        parties = [
            {"name": name, "url": url, "certificate": None, "ca": None, "hpke": sealing.public_of(party.private)}
            for name, party, url in (
                ("bank", self.bank, self.bank.url),
                ("hospital", self.hospital, "https://nowhere.example"),
            )
        ]
        model = {"name": "line", "version": 2, "versions": [1, 2], "rows": 8, "card": CARD}
        return {"securemodel_service": 1, "name": "lines", "parties": parties, "leader": "bank", "keys": True,
                "models": [model], "trust": []}  # fmt: skip

    def client(self, key: str = Keys.lines) -> Client:
        return Client(self.document(), key=key, transport="relay")

    def post(self, message: wire.Message, to: Running | None = None) -> tuple[int, bytes]:
        party = Party("one", (to or self.bank).url, None, None, None)
        more = {wire.LENGTH_HEADER: str(len(message.header))}
        line = Line(party)
        status, _, body = line.ask("POST", RELAY_PATH, message.body, more, time.monotonic() + 60)
        line.close()
        return status, body


@pytest.fixture
def place() -> Iterator[Place]:
    hospital = Running(1, keys=Keys())
    to = Line(Party("hospital", hospital.url, None, None, None))
    found = Place(Running(0, {1: to}, Keys()), hospital)
    yield found
    found.bank.stop()
    to.close()
    hospital.stop()


def test_one_post_to_the_leader_is_enough(place: Place) -> None:
    with place.client() as client:
        y = client.infer("line", X)
        np.testing.assert_allclose(y, Y, atol=1e-3)
        np.testing.assert_allclose(client.infer("line", X[:1], version=2), Y[:1], atol=1e-3)
    assert set(place.bank.paths) == {RELAY_PATH} and len(place.bank.paths) == 3  # 8 and 3 rows, then 1
    assert set(place.hospital.paths) == {RELAY_PATH} and len(place.hospital.paths) == 3
    assert all(
        request.key_id == "lines" for party in (place.bank, place.hospital) for request in party.desk.asked.values()
    )


def test_the_leader_passes_on_what_it_cannot_read(place: Place) -> None:
    with place.client() as client:
        client.infer("line", X[:1])
    body = b"".join(place.bank.bodies)
    envelope, sizes = sealing.read_envelope(body[: body.index(b"]}") + 2])
    parts = body[len(body) - sum(sizes.values()) :]
    theirs = parts[sizes[0] :]
    assert len(theirs) == sizes[1] and theirs in b"".join(place.hospital.bodies)
    with pytest.raises(WireError, match="cannot be opened"):
        sealing.unseal(place.bank.private, envelope.info("request", 1), theirs)
    key, header, data = sealing.read_request_part(
        sealing.unseal(place.hospital.private, envelope.info("request", 1), theirs)
    )
    share = wire.read_request(header, data, 1).shares()[0]
    np.testing.assert_array_equal(share, next(iter(place.hospital.desk.asked.values())).shares[0])
    assert key == Keys.lines and Keys.lines.encode() not in body and data not in body


def test_refusals_of_every_party_come_back(place: Place) -> None:
    with place.client(Keys.others) as client, pytest.raises(Refused, match="bank refuses.*model_not_allowed"):
        client.infer("line", X[:1])
    place.hospital.desk.refuse = desks.Refused("budget", "the rows of today are used up", retry_after=3600)
    with place.client() as client, pytest.raises(Refused, match="hospital refuses: the rows of today") as caught:
        client.infer("line", X[:1])
    assert (caught.value.code, caught.value.status, caught.value.retry_after) == ("budget", 429, 3600)


def test_a_dead_follower_is_named_and_so_is_a_dead_leader(place: Place) -> None:
    place.hospital.stop()
    with place.client() as client, pytest.raises(Refused, match="hospital cannot be reached"):
        client.infer("line", X[:1], timeout=3)
    assert set(place.bank.codes()) == {"ok", "peer_down"}
    place.bank.stop()
    with place.client() as client, pytest.raises(PartyDown, match="bank cannot be reached"):
        client.infer("line", X[:1], timeout=3)


def envelope_for(place: Place, **changes: Any) -> Envelope:
    """Parts that both parties can open, if nothing is changed."""
    header = wire.Message(b"{}", b"")
    empty = Envelope("0" * 32, "line", "", sealing.public_of(sealing.one_time_key()), {})
    parts = {
        rank: sealing.seal(
            sealing.public_of(party.private), empty.info("request", rank), sealing.request_part("", header)
        )
        for rank, party in enumerate((place.bank, place.hospital))
    }
    return replace(empty, parts=parts, **changes)


@pytest.mark.parametrize(
    "changes", [{"model": "other"}, {"id": "1" * 32}, {"key_id": "0" * 16}, {"response_key": "A" * 43}], ids=str
)
def test_a_stolen_part_opens_nowhere_else(place: Place, changes: dict[str, Any]) -> None:
    status, body = place.post(envelope_for(place, **changes).message())
    assert status == 400 and wire.read_problem("bank", status, body).what.count("cannot be opened")
    assert place.bank.codes() == ["bad_header"]
    assert len(place.hospital.paths) == 0, "nothing is passed on before the leader could open its own part"


def test_a_part_that_was_changed_is_refused_by_its_party(place: Place) -> None:
    envelope = envelope_for(place)
    parts = {0: envelope.parts[0], 1: envelope.parts[1][:-1] + bytes([envelope.parts[1][-1] ^ 1])}
    status, body = place.post(replace(envelope, parts=parts).message())
    assert status == 200 and b"cannot be opened" in body
    assert place.hospital.codes() == ["bad_header"]


def test_parts_for_others_are_not_passed_on(place: Place) -> None:
    envelope = envelope_for(place)
    assert place.post(envelope.message(), place.hospital)[0] == 400
    for parts in ({1: envelope.parts[1]}, {**envelope.parts, 2: b"x"}, {}):
        assert place.post(replace(envelope, parts=parts).message())[0] == 400
    assert place.hospital.paths == [RELAY_PATH]


@pytest.mark.parametrize(
    ("header", "data"),
    [(b"{}", b""), (b"[]", b""), (b"{", b""), (b"\xff", b""), (b'{"securemodel_relay":1,"parts":[]}', b"")],
)
def test_odd_envelopes_are_refused(place: Place, header: bytes, data: bytes) -> None:
    assert place.post(wire.Message(header, data))[0] == 400
    assert place.bank.codes() == ["bad_header"]


def test_sizes_that_lie(place: Place) -> None:
    message = envelope_for(place).message()
    assert place.post(wire.Message(message.header, message.data[:-1]))[0] == 400
    assert place.post(wire.Message(message.header, message.data + b"0"))[0] == 400
    for size in ("-1", "1.5", "true", "1e3", str(2**40)):
        odd = message.header.replace(b'"size":', f'"size":{size},"was":'.encode(), 1)
        assert place.post(wire.Message(odd, message.data))[0] == 400


def test_answers_of_a_leader_that_lies_are_named(place: Place, monkeypatch) -> None:
    with place.client() as client:
        for found, says in (({"parts": []}, "bank"), ({"parts": [{"rank": 0, "size": 9}]}, "cut short"), ({}, "bank")):
            header = wire.dump(found)
            answer = 200, {wire.LENGTH_HEADER.lower(): str(len(header))}, header
            monkeypatch.setattr(client._lines[0], "ask", lambda *_, answer=answer: answer)
            with pytest.raises(Disagreement, match=says):
                client.infer("line", X[:1])


def test_services_without_keys_for_sealing_are_asked_directly(place: Place) -> None:
    document = place.document()
    document["parties"][1]["hpke"] = None
    with pytest.raises(ServiceError, match="hospital"):
        Client(document, key="k", transport="relay")
    document["parties"][1]["hpke"] = "short"
    with pytest.raises(ServiceError, match="hpke"):
        Client(document, key="k")
