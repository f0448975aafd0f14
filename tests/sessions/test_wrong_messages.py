"""Messages that are wrong in the middle of a run, and requests that a dealer must refuse."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from protocols.channel import Label, Link, Purpose, dial
from protocols.channel.testing import free_addresses
from protocols.errors import BadFrame, PeerAborted, PeerAbsent, PeerDied, PeerError
from protocols.identity import DEALER, Timeouts, plain_config
from protocols.prg import EPOCHS
from securemodel.engines.labels import PROGRAM, STREAM_KEY
from securemodel.engines.masked import dealer as dealer_module
from securemodel.engines.masked.dealer import serve
from securemodel.engines.masked.sources import DEAL_LOAD, END, REQUEST, DealerSource
from securemodel.inspect.tampering import FRAMES, attack_at
from securemodel.sessions.session import Session

pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.mark.parametrize("attack", FRAMES)
@pytest.mark.parametrize("attacker, victim", [("bank", "hospital"), ("hospital", "bank"), ("helper", "bank")])
def test_a_party_sends_a_wrong_frame(worlds, program3, tools, attacker: str, victim: str, attack: str) -> None:
    world, x = worlds(program3), tools.rows(2)
    some = tools.tasks(program3, x)[attacker]

    def attacking(session: Session) -> Any:
        attack_at(session.channel._links[victim], FRAMES[attack][0], (Purpose.OPEN,), 3)
        return some(session)

    results = world.run({**tools.tasks(program3, x), attacker: attacking})
    tools.check_texts(results)
    assert type(results[victim]) is BadFrame and results[victim].party == attacker
    assert FRAMES[attack][1] in str(results[victim])
    assert all(isinstance(e, (PeerAborted, PeerDied)) for name, e in results.items() if name != victim)
    world.wait_until_said("session failed")
    tools.works(world, x)


@pytest.mark.parametrize("rows", [(3, 0, 0), (1, 4, 0)], ids=str)
def test_a_party_announces_impossible_rows(worlds, program, tools, rows: tuple) -> None:
    world, x = worlds(program), tools.rows(2)

    def lie(session: Session) -> None:
        party = session.walk.party
        start = party._start
        made = SimpleNamespace(now=rows[0], left=rows[1])
        party._start = lambda mine: start(made if mine.now else mine)
        session.run(x)

    results = world.run({**tools.tasks(program, x), "hospital": lie})
    tools.check_texts(results)
    assert type(results["bank"]) is BadFrame and f"announced {rows[0]} rows" in str(results["bank"])


@pytest.mark.parametrize("attack", FRAMES)
@pytest.mark.parametrize("at", [1, 12])
def test_the_dealer_sends_a_wrong_frame(worlds, program, tools, monkeypatch, attack: str, at: int) -> None:
    world, x = worlds(program, dealer=False), tools.rows(2)
    deal_session = dealer_module.deal_session

    def deal(links: dict[str, Link], *rest: Any) -> None:
        attack_at(links["hospital"], FRAMES[attack][0], (Purpose.DEAL,), at)
        deal_session(links, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(dealer_module, "deal_session", deal)
        world.start_dealer()
        results = world.run(tools.tasks(program, x))
        tools.check_texts(results)
        assert type(results["hospital"]) is BadFrame and results["hospital"].party == DEALER
        assert FRAMES[attack][1] in str(results["hospital"])
        assert type(results["bank"]) is PeerAborted and "'dealer'" in str(results["bank"])


# What the dealer is asked.


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda epoch, phase: (epoch if phase == "load" else 1, phase), "epoch 1 again"),
        (lambda epoch, phase: (epoch, "run"), "run 0 without its weights"),
        (lambda epoch, phase: (epoch if phase == "load" else EPOCHS, phase), f"epoch {EPOCHS}"),
    ],
)
def test_a_party_asks_the_dealer_for_what_it_may_not_have(world, program, tools, monkeypatch, change, part) -> None:
    ask, x = DealerSource.ask, tools.rows(2)
    with monkeypatch.context() as patch:
        patch.setattr(DealerSource, "ask", lambda self, epoch, phase, _=0: ask(self, *change(epoch, phase)))
        results = world.run(tools.tasks(program, x))
    tools.check_texts(results)
    assert type(results["hospital"]) is PeerAborted and results["hospital"].party == DEALER
    assert part in str(results["hospital"])
    world.wait_until_said(part)
    tools.works(world, x)


HEADER = (
    'secure-program 2 {"frac_bits":16,"input_shapes":[[2,4]],"inputs":["hospital"],"outputs":["hospital"],'
    '"parties":["bank","hospital"],"weights":"bank","width":64}\n'
)
GARBAGE = {
    "empty": "",
    "not text": "\udcff",
    "not a program": "hello",
    "cut": HEADER[:60],
    "nested": "secure-program 2 " + "[" * 100_000,
    "other parties": HEADER.replace("bank", "bonk"),
    "parties twice": HEADER.replace('"parties":["bank","hospital"]', '"parties":["bank","hospital","bank"]'),
    "parties of another kind": HEADER.replace('"parties":["bank","hospital"]', '"parties":[["bank"],{"hospital":1}]'),
    "unknown operator": HEADER + "%0 = explode : masked f16 [2,4] load",
    "gate without operands": HEADER + "%0 = bilinear : additive f16 [2,4] load",
    "gate without attributes": HEADER + "%0 = mask : masked f16 [2,4] load\n%1 = truncate %0 : additive f16 [2,4] load",
    "owner nobody knows": HEADER + "%0 = input@mallory : masked f16 [2,4] load",
    "too large": HEADER + "%0 = mask : masked f16 [999999999,999999999,99] load",
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_the_dealer_survives_garbage(world, program, tools, garbage: str) -> None:
    text = GARBAGE[garbage].encode("utf-8", "surrogateescape")
    made: dict[str, Link] = {}

    def ask(me: str) -> None:
        link = made[me] = dial(me, DEALER, world.config, insecure_plain=True)
        link.send(PROGRAM, [text])
        link.receive(STREAM_KEY, 32)
        if me == "hospital":
            link.send(Label(0, 0, Purpose.REQUEST), [REQUEST.pack(0, 0, DEAL_LOAD)])
            link.send(Label(0, 0, Purpose.REQUEST), [REQUEST.pack(0, 0, END)])
        link.receive(PROGRAM, 1)

    threads = [threading.Thread(target=lambda me=me: pytest.raises(PeerError, ask, me)) for me in program.parties]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(tools.limit_s)
    for link in made.values():
        link.close()
    world.wait_until_said("session", 1)
    tools.works(world, tools.rows(2))


def test_the_dealer_survives_parties_that_say_nothing(worlds, program, tools) -> None:
    world = worlds(program, receive_s=4.0)
    links = {me: dial(me, DEALER, world.config, insecure_plain=True) for me in program.parties}
    world.wait_until_said("session failed")
    for link in links.values():
        link.close()
    tools.works(world, tools.rows(2))


def test_a_dealer_for_one_session_raises_what_ended_it() -> None:
    first, second, third = free_addresses(3)
    config = plain_config({"bank": first, "hospital": second}, dealer=third, timeouts=Timeouts(connect_s=0.5))
    with pytest.raises(PeerAbsent):
        serve(config, None, once=True, insecure_plain=True)
