"""A party that has just started: clients reach it at once, and are told that it starts until it knows what its models take."""

from __future__ import annotations

from securemodel.service.desk import Refused
from tests.service.front import Desk, ask, messages

ASKED = ("/", "/service.json", "/v2/health/ready", "/v2/models/line", "/v2/models/line/ready", "/v2/models/none")
ANSWERED = ("/v2", "/v2/health/live", "/openapi.json", "/docs")


def test_who_asks_before_the_models_are_known_is_told_that_the_party_starts() -> None:
    def check_started() -> None:
        raise Refused("peer_down", "party 'bank' is starting", retry_after=1.0, parties=("bank",))

    paths = [("GET", path) for path in (*ASKED, *ANSWERED)]
    replies = dict(zip(paths, ask(Desk(), *paths, check_started=check_started), strict=True))
    for path in ASKED:
        reply = replies["GET", path]
        assert (reply.status, reply.code, reply.headers["retry-after"]) == (503, "peer_down", "1"), path
        assert reply.json["what"] == "party 'bank' is starting" and reply.json["parties"] == ["bank"]
    assert all(replies["GET", path].status == 200 for path in ANSWERED)
    (message,) = messages([[1, 2, 3, 4]])[:1]
    head = {"inference-header-content-length": str(len(message.header))}
    desk = Desk()
    (reply,) = ask(desk, ("POST", "/v2/models/line/infer", message.body, head), check_started=check_started)
    assert reply.code == "peer_down" and not desk.asked
