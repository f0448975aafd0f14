"""Parties and dealers that differ, are absent, die or stall: an error at every party, in time.

Each error says what happened, where, why and what to do; the dealer goes on with the next session.
"""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import securemodel
from protocols.channel import Link
from protocols.channel.testing import free_addresses
from protocols.errors import ConfigError, Mismatch, PeerAborted, PeerAbsent, PeerDied, PeerError, PeerStalled
from protocols.gates import GATES
from protocols.identity import DEALER
from securemodel import version
from securemodel.engines.masked import dealer as dealer_module
from securemodel.engines.masked.dealing import Dealing
from securemodel.errors import OutOfRange
from securemodel.invocation import Invocation
from securemodel.sessions import agree as agree_module
from securemodel.sessions.session import Session

SHORT_S = 1.0
pytestmark = pytest.mark.usefixtures("no_threads_left")


# Parties that do not run the same.


def test_other_models_and_other_options(worlds, program, model, tools) -> None:
    others = (tools.make_program(tools.make_model(hidden=5)), tools.make_program(model, frac_bits=14))
    for other in others:
        results = worlds(program).run(tools.tasks(program, tools.rows(2)), program={"bank": program, "hospital": other})
        tools.check_texts(results)
        assert any(isinstance(e, Mismatch) and "different program" in str(e) for e in results.values())
        assert all("different program" in str(e) for e in results.values())


@pytest.fixture
def thread_name() -> threading.local:
    """A place where each party's thread says who it is."""
    return threading.local()


def named(run: dict[str, Callable], who: threading.local, world: Any) -> dict[str, Any]:
    """World.run, with each party's name in `who`."""
    connect = world.connect

    def connect_as(me: str, *rest: Any, **options: Any) -> Session:
        who.name = me
        return connect(me, *rest, **options)

    world.connect = connect_as
    return world.run(run)


def test_other_version(world, program, tools, thread_name, monkeypatch) -> None:
    monkeypatch.delattr(version, "__version__")

    def named_version(name: str) -> str:
        if name != "__version__":
            raise AttributeError(name)
        return "0.1.0" if thread_name.name == "bank" else "0.2.0"

    monkeypatch.setattr(version, "__getattr__", named_version, raising=False)
    results = named(tools.tasks(program, tools.rows(2)), thread_name, world)
    tools.check_texts(results)
    assert all("different version of securemodel" in str(e) for e in results.values())


def test_other_tunings(world, program, model, tools) -> None:
    example = (torch.zeros(2, 4),)
    tuned = {
        me: securemodel.tune(program, example[0] + width, tolerance=1e-2).program
        for me, width in (("bank", 1.0), ("hospital", 1e3))
    }
    results = world.run(tools.tasks(program, tools.rows(2)), program=tuned)
    tools.check_texts(results)
    assert all("different program and tuning" in str(e) for e in results.values())


def test_a_guard_is_heard_by_all_and_the_session_goes_on(world, program, model, tools) -> None:
    rows = torch.ones(2, 4)
    guarded = securemodel.tune(program, rows, tolerance=1e-2, guard=True).program

    def task(session: Session) -> list[Any]:
        mine = session.me == "hospital"
        with pytest.raises(OutOfRange):
            session.run(1e4 * rows if mine else None)
        return [session.run(rows if mine else None), session.stats.rounds]

    results = world.run({"bank": task, "hospital": task}, program=guarded)
    torch.testing.assert_close(results["hospital"][0], model(rows), rtol=0, atol=1e-3)
    assert results["bank"][0] is None and results["bank"][1] == guarded.plan().rounds


@pytest.mark.parametrize("what, says", [("script", "script"), ("protocol", "--protocol")])
def test_other_script_or_command_line(world, program, tools, thread_name, monkeypatch, what: str, says: str) -> None:
    monkeypatch.setattr(agree_module, "current", lambda: Invocation(**{what: thread_name.name}))
    results = named(tools.tasks(program, tools.rows(2)), thread_name, world)
    tools.check_texts(results)
    assert all(f"different {says}" in str(e) for e in results.values())


def test_a_statement_that_cannot_be_read(world, program, tools, thread_name, monkeypatch) -> None:
    for text in ("[" * 1000, "[]", "null", '{"next": "x"}'):
        dumps = lambda made, text=text: text if thread_name.name == "bank" else '{"next": 0}'
        json = SimpleNamespace(dumps=dumps, loads=agree_module.json.loads)
        with monkeypatch.context() as patch:
            patch.setattr(agree_module, "json", json)
            tools.check_texts(named(tools.tasks(program, tools.rows(2)), thread_name, world))


# Absent, dead, stalled.


def test_a_peer_is_absent(worlds, program, tools) -> None:
    for me, other in (("bank", "hospital"), ("hospital", "bank")):
        world = worlds(program, dealer=False, connect_s=SHORT_S)
        results = world.run({me: lambda session: None})
        tools.check_texts(results)
        assert type(results[me]) is PeerAbsent and results[me].party == other


def test_one_of_three_is_absent(worlds, program3, tools) -> None:
    world = worlds(program3, dealer=False, connect_s=SHORT_S)
    results = world.run({"bank": lambda s: None, "hospital": lambda s: None})
    tools.check_texts(results)
    assert any(isinstance(e, PeerAbsent) and e.party == "helper" for e in results.values())


def test_the_dealer_is_absent(worlds, program, tools) -> None:
    results = worlds(program, dealer=False, connect_s=SHORT_S).run(tools.tasks(program, tools.rows(2)))
    tools.check_texts(results)
    assert any(isinstance(e, PeerAbsent) and e.party == DEALER for e in results.values())
    assert all("'dealer'" in str(e) for e in results.values())


def test_a_parties_file_without_a_dealer_does_not_tell_the_peers_where_it_is(worlds, program, tmp_path, tools) -> None:
    world = worlds(program, dealer=False)
    path = tmp_path / "private" / "parties.toml"
    world.config = dataclasses.replace(world.config, dealer=None, path=path)
    results = world.run({"bank": lambda s: None, "hospital": lambda s: None})
    own = [error for error in results.values() if isinstance(error, ConfigError)]
    assert own and all(str(path) in str(error) for error in own)
    for error in results.values():
        assert isinstance(error, ConfigError) or (type(error) is PeerAborted and "configuration" in error.reason)
        assert isinstance(error, ConfigError) or str(tmp_path) not in str(error)


def test_a_dealer_that_starts_late(worlds, program, tools) -> None:
    world = worlds(program, dealer=False)
    threading.Timer(1.0, world.start_dealer).start()
    tools.works(world, tools.rows(2))


@pytest.mark.parametrize("who", ["bank", "hospital"])
def test_a_party_stalls_between_runs(worlds, program, tools, who: str) -> None:
    world, x, said = worlds(program, receive_s=SHORT_S), tools.rows(2), []

    def slow(session: Session) -> None:
        session.run(x if who == "hospital" else None)
        time.sleep(3 * SHORT_S)
        said.extend(world.said)
        session.run(x if who == "hospital" else None)

    results = world.run({**tools.tasks(program, x), who: slow})
    tools.check_texts(results)
    other = "bank" if who == "hospital" else "hospital"
    assert type(results[other]) is PeerStalled and results[other].party == who
    assert type(results[who]) is PeerAborted and f"'{who}' made no progress" in str(results[who])
    assert "session failed" in "".join(said)  # the dealer waited for neither of them
    tools.works(world, x)


def test_idling_together_is_no_stall(worlds, program, model, tools) -> None:
    """Between runs nobody waits for anybody, the dealer included, for as long as the scripts like."""
    world, x = worlds(program, receive_s=SHORT_S), tools.rows(2)

    def idle(session: Session) -> Any:
        mine = x if session.me == "hospital" else None
        session.run(mine)
        time.sleep(2.5 * SHORT_S)
        return session.run(mine)

    results = world.run({"bank": idle, "hospital": idle})
    torch.testing.assert_close(results["hospital"], model(x), atol=2**-10, rtol=0)


def test_idling_with_much_prepared_is_no_stall(worlds, tools, monkeypatch) -> None:
    """The dealer is kept waiting in the middle of a run that is more than may wait at the last party."""
    monkeypatch.setattr("securemodel.engines.masked.walk._AHEAD_BYTES", 1 << 18)
    monkeypatch.setattr("securemodel.engines.masked.ahead._BATCH_BYTES", 1 << 17)
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Linear(64, 64)) for _ in range(4)))
    options = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}
    program = securemodel.compile(model.eval(), (torch.zeros(2048, 64),), **options)
    gates = sum(node.op in GATES for node in program.graph.nodes if node.phase == "run")
    dealt, gate = [], Dealing._gate
    monkeypatch.setattr(Dealing, "_gate", lambda self, node, *rest: (dealt.append(node), gate(self, node, *rest))[1])
    world, x = worlds(program, receive_s=2 * SHORT_S), torch.randn(2048, 64)

    def idle(session: Session) -> Any:
        mine = x if session.me == "hospital" else None
        session.run(mine)
        time.sleep(5 * SHORT_S)
        return session.run(mine)

    results = world.run({"bank": idle, "hospital": idle})
    torch.testing.assert_close(results["hospital"], model(x).detach(), atol=2**-9, rtol=0)
    world.wait_until_said("session ended")  # closed in good order, even if a third run was on its way, but no fourth
    assert 2 * gates <= sum(node.phase == "run" for node in dealt) <= 3 * gates


@pytest.mark.parametrize("who", ["bank", "hospital", "helper"])
def test_a_party_dies(worlds, program3, tools, who: str) -> None:
    """The operating system closes its connections, without a goodbye."""
    world, x = worlds(program3), tools.rows(2)

    def die(session: Session) -> None:
        session.run(x if who == "hospital" else None)
        for link in [*session.channel._links.values(), session.walk.source._link]:
            link.interrupt()
        session.run(x if who == "hospital" else None)

    results = world.run({**tools.tasks(program3, x), who: die})
    tools.check_texts({name: error for name, error in results.items() if name != who})
    others = [error for name, error in results.items() if name != who]
    assert all(isinstance(error, (PeerDied, PeerAborted)) and f"'{who}'" in str(error) for error in others)
    world.wait_until_said("session failed")
    tools.works(world, x)


@pytest.mark.parametrize("how, when", [("raises", 1), ("raises", 30), ("stalls", 2), ("dies", 1), ("dies", 30)])
def test_the_dealer_fails(worlds, program, tools, monkeypatch, how: str, when: int) -> None:
    world, x, calls = worlds(program, dealer=False, receive_s=2 * SHORT_S), tools.rows(2), []
    gate = Dealing._gate
    links: dict[str, Link] = {}
    deal_session = dealer_module.deal_session

    def deal(found: dict[str, Link], *rest: Any) -> None:
        links.update(found)
        deal_session(found, *rest)

    def failing(self, *rest: Any):
        calls.append(1)
        if len(calls) == when and how == "raises":
            raise RuntimeError("secret detail")
        if len(calls) == when and how == "stalls":
            time.sleep(3 * SHORT_S)
        if len(calls) == when and how == "dies":
            for link in links.values():
                link.interrupt()
        return gate(self, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Dealing, "_gate", failing)
        patch.setattr(dealer_module, "deal_session", deal)
        world.start_dealer()
        results = world.run(tools.tasks(program, x, 8))
        tools.check_texts(results)
        assert isinstance(results["hospital"], PeerError) and results["hospital"].party == DEALER
        kind = {"raises": PeerAborted, "stalls": PeerStalled, "dies": PeerDied}[how]
        assert type(results["hospital"]) is kind
        assert "'dealer'" in str(results["bank"])
        world.wait_until_said("session failed")
    assert "secret detail" not in "".join(map(str, [*results.values(), *world.said]))
    tools.works(world, x)


# A network that vanishes: nothing comes any more, and no connection ends.


class Forwarder:
    """Passes bytes on, both ways, until it stops; then it keeps the connections and passes nothing on."""

    def __init__(self, target: str) -> None:
        (self.address,) = free_addresses(1)
        self.stopped = threading.Event()
        self._target = target.rsplit(":", 1)
        host, port = self.address.rsplit(":", 1)
        self._listener = socket.create_server((host, int(port)))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while not self.stopped.is_set():
            near, _ = self._listener.accept()
            try:
                far = socket.create_connection((self._target[0], int(self._target[1])), timeout=5)
            except OSError:
                near.close()
                continue
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        source.settimeout(None)
        try:
            while data := source.recv(1 << 16):
                if self.stopped.is_set():
                    return
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass


@pytest.mark.parametrize("gone", [("bank",), ("hospital",), ("bank", "hospital")], ids="+".join)
@pytest.mark.parametrize("when", ["between runs", "in the middle of them"])
def test_a_network_that_vanishes_frees_the_dealer(worlds, program, tools, gone, when: str) -> None:
    """No end of a connection tells it: the parties idle, or wait, for as long as they like; the dealer does not."""
    world, x, ended = worlds(program, receive_s=2 * SHORT_S), tools.rows(2), threading.Event()
    forwarder = Forwarder(world.config.dealer.address)
    host, port = forwarder.address.rsplit(":", 1)
    detour = dataclasses.replace(
        world.config, dealer=dataclasses.replace(world.config.dealer, host=host, port=int(port))
    )

    def party(me: str) -> None:
        config, mine = detour if me in gone else world.config, x if me == "hospital" else None
        with securemodel.connect(program, me, config, insecure_plain=True, ahead=False) as session:
            session.run(mine)
            forwarder.stopped.set()
            if when == "between runs":
                ended.wait(tools.limit_s)
            while not ended.is_set():
                session.run(mine)

    def ends(me: str) -> None:
        with contextlib.suppress(PeerError):
            party(me)

    threads = [threading.Thread(target=ends, args=(me,), daemon=True) for me in program.parties]
    for thread in threads:
        thread.start()
    world.wait_until_said("session failed")
    assert when != "between runs" or "gave no sign of life" in world.said[-1]
    tools.works(world, x)
    ended.set()
    for thread in threads:
        thread.join(tools.limit_s)
