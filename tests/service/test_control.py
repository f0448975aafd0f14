"""Links between fronts over TLS: in order and without loss when connections break, and closed to others."""

import asyncio
import logging
import ssl
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols import identity
from protocols.channel import tls
from protocols.channel.testing import free_addresses
from protocols.errors import BadFrame
from securemodel.service import control
from securemodel.service.control import ControlLinks
from securemodel.service.messages import Drain, Release, pack, unpack
from tests.service.parties import WEIGHT, Parties, codes, new_id

X = np.array([[1, -1, 2**62]], dtype=np.int64)


class OverTLS(Parties):
    """Desks whose links are real ones on this host."""

    def __init__(self, count, folder, **options) -> None:
        super().__init__(count, folder, **options)
        self.own = {name: identity.create(name, folder / name) for name in (*self.names, "stranger")}
        (self.address,) = free_addresses(1)
        text = "".join(f'[parties.{n}]\naddress = "127.0.0.1:{i}"\ncertificate = "{n}/identity.crt"\n'
                       for i, n in enumerate(self.names, 1))  # fmt: skip
        (folder / "parties.toml").write_text(text)
        self.roster = identity.load_config(folder / "parties.toml")
        self.digests = dict.fromkeys(self.names, b"\7" * 32)
        self.ends: dict[str, ControlLinks] = {}

    def links(self, name):
        fronts = {other: SimpleNamespace(control=self.address) for other in self.names}
        config = SimpleNamespace(
            ranks=self.names, fronts=fronts, parties=self.roster, own=SimpleNamespace(control_listen=None),
            digest=lambda: self.digests[name],
        )  # fmt: skip
        self.ends[name] = ControlLinks(name, config, self.own[name])
        return self.ends[name]

    async def ready(self) -> None:
        while not all(all(desk.connected.values()) for desk in self.desks.values()):
            await asyncio.sleep(0.01)

    async def as_party(self, name):
        context = tls.client_context(self.own[name], self.roster.entry("bank"))
        return await asyncio.open_connection(*self.address.split(":"), ssl=context, server_hostname="")


@pytest.mark.parametrize("count", [2, 3])
def test_desks_agree_over_tls(tmp_path, count) -> None:
    async def test(service: OverTLS) -> None:
        await service.ready()
        results = await asyncio.gather(*(service.ask(X) for _ in range(30)))
        assert all((result == X @ WEIGHT).all() for result in results)

    OverTLS(count, tmp_path).run(test)


def test_links_end_though_a_cancellation_is_lost(tmp_path, monkeypatch) -> None:
    """As in asyncio.wait_for before Python 3.12, where what it awaits is done just then."""
    real, lost = asyncio.wait_for, []

    async def wait_for(awaited, timeout):
        try:
            return await real(awaited, timeout)
        except asyncio.CancelledError:
            if asyncio.current_task() in lost:
                raise
            lost.append(asyncio.current_task())
            raise asyncio.TimeoutError from None

    async def test(service: OverTLS) -> None:
        await service.ready()
        await asyncio.gather(*(real(end.close(), 60) for end in service.ends.values()))

    monkeypatch.setattr(asyncio, "wait_for", wait_for)
    OverTLS(3, tmp_path).run(test)
    assert lost


def test_nothing_is_lost_when_connections_break(tmp_path) -> None:
    async def test(service: OverTLS) -> None:
        await service.ready()
        for round in range(6):
            asking = [asyncio.create_task(service.ask(X)) for _ in range(10)]
            await asyncio.sleep(0.003 * round)
            end = service.ends["hospital" if round % 2 else "bank"]
            for peer in end._peers.values():
                peer.writer.transport.abort()
            assert all((result == X @ WEIGHT).all() for result in await asyncio.gather(*asking))
            await service.ready()

    OverTLS(2, tmp_path).run(test)


def test_a_party_that_sends_garbage_is_named_and_may_begin_anew(tmp_path, caplog) -> None:
    async def test(service: OverTLS) -> None:
        await service.ready()
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\1\xc1", b"\0\0\0\2\x91\x07", b"\xff" * 8):
            reader, writer = await service.as_party("hospital")
            writer.write(garbage)
            assert len(await asyncio.wait_for(reader.read(), 60)) > 4  # our hello, and the end
            writer.close()
        assert caplog.text.count("'hospital' broke the agreement") == 4
        await service.ready()
        assert (await service.ask(X) == X @ WEIGHT).all()

    OverTLS(2, tmp_path).run(test)


def test_what_a_party_may_not_say_ends_its_link_by_name(tmp_path, caplog) -> None:
    async def test(service: OverTLS) -> None:
        await service.ready()
        service.ends["hospital"].send("bank", Release(1))
        service.ends["bank"].send("hospital", Release(1))
        while not ("'hospital' broke" in caplog.text and "'bank' broke" in caplog.text):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        await service.ready()
        assert (await service.ask(X) == X @ WEIGHT).all()

    OverTLS(2, tmp_path).run(test)


def test_strangers_and_silent_connections_do_not_keep_a_party_out(tmp_path) -> None:
    async def test(service: OverTLS) -> None:
        await service.desks.pop("hospital").close()
        silent = [await asyncio.open_connection(*service.address.split(":")) for _ in range(2 * control._GUESTS)]
        with suppress(ssl.SSLError, ConnectionError):
            reader, _ = await service.as_party("stranger")
            assert await reader.read(1) == b""
        await service.start("hospital")
        await service.ready()
        assert (await service.ask(X) == X @ WEIGHT).all()
        for _, writer in silent:
            writer.close()

    OverTLS(2, tmp_path).run(test)


def test_another_service_file_is_refused_by_name(tmp_path, caplog) -> None:
    caplog.set_level(logging.ERROR)

    async def test(service: OverTLS) -> None:
        while "'hospital' has another SERVICE.toml" not in caplog.text:
            await asyncio.sleep(0.01)
        assert codes(await service.send(service.bodies(X, new_id()))) == {"peer_down"}
        await asyncio.sleep(0.5)  # hospital dials again meanwhile
        assert caplog.text.count("'hospital' has another SERVICE.toml") == 1, "once is enough"

    service = OverTLS(2, tmp_path)
    service.digests["hospital"] = b"\0" * 32
    service.run(test)


def test_a_party_that_falls_silent_is_noticed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(control, "SILENCE_S", 0.5)
    monkeypatch.setattr(control, "BEAT_S", 0.1)

    async def test(service: OverTLS) -> None:
        await service.ready()
        monkeypatch.setattr(service.ends["hospital"], "_flush", lambda peer, life=False: None)
        while all(service.desks["bank"].connected.values()):
            await asyncio.sleep(0.01)
        assert codes(await service.send({"bank": service.bodies(X, new_id())["bank"]})) == {"peer_down"}

    OverTLS(2, tmp_path).run(test)


@given(st.one_of(st.binary(max_size=200), st.builds(lambda raw, at, value: raw[:at] + bytes([value]) + raw[at + 1 :],
       st.just(pack(Drain("draining"))), st.integers(0, 15), st.integers(0, 255))))  # fmt: skip
def test_bytes_are_a_message_or_refused_by_name(raw) -> None:
    try:
        message = unpack(raw, "hospital")
    except BadFrame as error:
        assert error.party == "hospital"
    else:
        assert unpack(pack(message), "hospital") == message


def test_why_there_is_no_link_with_the_leader_is_told_once(tmp_path, caplog) -> None:
    async def test(service: OverTLS) -> None:
        await service.ready()
        await service.desks.pop("bank").close()
        while "no link with the front of 'bank'" not in caplog.text:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        assert caplog.text.count("no link with the front of 'bank'") == 1 and service.address in caplog.text

    OverTLS(2, tmp_path).run(test)


def test_whom_the_leader_does_not_know_is_told_so(tmp_path, caplog) -> None:
    async def test(service: OverTLS) -> None:
        while "no link with the front of 'bank'" not in caplog.text:
            await asyncio.sleep(0.01)
        assert "certificates are those of both parties' files" in caplog.text

    service = OverTLS(2, tmp_path)
    service.own["hospital"] = service.own["stranger"]
    service.run(test)
