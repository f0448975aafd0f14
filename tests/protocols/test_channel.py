"""Channels do the same on every transport: what arrives, what is counted, what is refused."""

from __future__ import annotations

import multiprocessing
import os
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.channel import (
    HEADER_BYTES,
    Channel,
    Label,
    Link,
    Purpose,
    Reception,
    connect,
    dial,
    local_channels,
    local_links,
)
from protocols.channel.buffers import byte_view, coalesce, gather, gather_first
from protocols.channel.frame import Expected, check_expected, pack_header, parse_header
from protocols.channel.stream import PlainStream
from protocols.channel.testing import free_addresses, loopback_parties, run_together
from protocols.errors import (
    BadFrame,
    ConfigError,
    InputError,
    PeerAborted,
    PeerDied,
    PeerError,
    PeerStalled,
    ProtocolError,
)
from protocols.identity import Identity, PartiesConfig, Timeouts, plain_config

OPEN = Label(3, 7, Purpose.OPEN)
TIMEOUTS = Timeouts(connect_s=60, receive_s=10)
NAMES = ("a", "b", "c")


def make_channels(
    kind: str, names: tuple[str, ...], directory: Path, timeouts: Timeouts = TIMEOUTS
) -> dict[str, Channel]:
    if kind == "local":
        return dict(local_channels(names, timeouts.receive_s))
    if kind == "plain":
        config = plain_config(dict(zip(names, free_addresses(len(names)), strict=True)), timeouts=timeouts)
        tasks = {name: lambda name=name: connect(name, config, insecure_plain=True) for name in names}
    else:
        config, ids = loopback_parties(names, directory, timeouts=timeouts)
        tasks = {name: lambda name=name: connect(name, config, ids[name]) for name in names}
    channels = run_together(tasks)
    for channel in channels.values():
        if isinstance(channel, BaseException):
            raise channel
    return channels


@pytest.fixture(params=["local", "plain", "tls"])
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[2, 3])
def channels(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Channel]:
    made = make_channels(kind, NAMES[: request.param], tmp_path)
    yield made
    for channel in made.values():
        channel.close()


def everywhere(channels: dict[str, Channel], step: Callable[[Channel], object]) -> dict[str, object]:
    results = run_together({name: lambda channel=channel: step(channel) for name, channel in channels.items()})
    for result in results.values():
        if isinstance(result, BaseException):
            raise result
    return results


def text(me: str, peer: str, size: int) -> bytes:
    return (f"{me}>{peer}.".encode() * (size // 4 + 1))[:size]


def test_header_is_what_its_documentation_says() -> None:
    data = pack_header(0x0102030405060708, Label(0x0A0B0C0D, 0x11121314, Purpose.DEAL), 0x2122232425262728)
    assert data.hex() == "534d463108070605040302010d0c0b0a14131211070000002827262524232221"
    assert len(data) == HEADER_BYTES == 32


@given(
    sequence=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**32 - 1),
    node=st.integers(0, 2**32 - 1),
    purpose=st.sampled_from(list(Purpose)),
    nbytes=st.integers(0, 2**64 - 1),
)
def test_headers_come_back(sequence: int, epoch: int, node: int, purpose: Purpose, nbytes: int) -> None:
    label = Label(epoch, node, purpose)
    header = parse_header(pack_header(sequence, label, nbytes), sequence, "a")
    assert (header.sequence, header.label, header.nbytes) == (sequence, label, nbytes)
    check_expected(header, Expected(label, nbytes), "a")
    with pytest.raises(BadFrame, match="expected number"):
        parse_header(pack_header(sequence, label, nbytes), sequence ^ 1, "a")


@given(position=st.integers(0, HEADER_BYTES - 1), change=st.integers(1, 255))
def test_every_changed_header_byte_is_noticed(position: int, change: int) -> None:
    data = bytearray(pack_header(5, OPEN, 100))
    data[position] ^= change
    with pytest.raises(BadFrame) as caught:
        check_expected(parse_header(data, 5, "bank"), Expected(OPEN, 100), "bank")
    assert caught.value.party == "bank"


@given(expected=st.integers(0, 2**40), got=st.integers(0, 2**64 - 1), exact=st.booleans())
def test_sizes_are_never_trusted(expected: int, got: int, exact: bool) -> None:
    header = parse_header(pack_header(0, OPEN, got), 0, "a")
    if got == expected or (not exact and got < expected):
        check_expected(header, Expected(OPEN, expected, exact), "a")
    else:
        with pytest.raises(BadFrame, match="too large" if got > expected else "too small"):
            check_expected(header, Expected(OPEN, expected, exact), "a")


@pytest.mark.parametrize("label", [Label(-1, 0, Purpose.OPEN), Label(0, 2**32, Purpose.OPEN), Label(0, 0, 256)])
def test_labels_that_do_not_fit(label: Label) -> None:
    with pytest.raises(InputError, match="does not fit"):
        pack_header(0, label, 0)


@given(sizes=st.lists(st.sampled_from([0, 1, 31, 4096, 4097, 16352, 16384, 50000]), max_size=8))
def test_coalescing_keeps_every_byte_in_order(sizes: list[int]) -> None:
    payloads = [os.urandom(size) for size in sizes]
    pieces = coalesce(b"header", [memoryview(payload) for payload in payloads])
    assert b"".join(pieces) == b"header" + b"".join(payloads)
    assert all(len(piece) for piece in pieces)
    whole = gather([memoryview(payload) for payload in payloads], sum(sizes))
    assert whole.numpy().tobytes() == b"".join(payloads)


@given(sizes=st.lists(st.sampled_from([1, 31, 4096, 4097, 50000]), min_size=2, max_size=40))
def test_small_pieces_are_sent_together_in_their_order(sizes: list[int]) -> None:
    pieces = deque(memoryview(os.urandom(size)) for size in sizes)
    whole, left = b"".join(pieces), list(pieces)
    gather_first(pieces)
    assert b"".join(pieces) == whole
    if sum(sizes[:2]) > 1 << 16:
        assert list(pieces) == left
    else:
        assert sizes[0] < len(pieces[0]) <= 1 << 16 and len(pieces) < len(left)


def raw_link() -> tuple[Link, socket.socket]:
    """A link in the clear, and the peer's end of its connection."""
    ours, theirs = socket.socketpair()
    return Link("a", "b", PlainStream(ours), 5.0), theirs


WANTED = [Expected(Label(3, node, Purpose.DEAL), size) for node, size in enumerate((8, 0, 70_000, 31))]


def frames(beats: Sequence[int] = ()) -> bytes:
    """The wanted messages, in front of some of them a sign of life."""
    out, number = b"", 0
    for node, wanted in enumerate(WANTED):
        if node in beats:
            out += pack_header(number, Label(0, 0, Purpose.ALIVE), 0)
            number += 1
        out += pack_header(number, wanted.label, wanted.nbytes) + text("b", str(node), wanted.nbytes)
        number += 1
    return out


@pytest.mark.parametrize("beats", [(), (0, 1, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("step", [1 << 20, 999, 33])
def test_messages_that_are_read_together_are_those_read_one_by_one(beats, step) -> None:
    sent = frames(beats)
    got = []
    for together in (True, False):
        link, peer = raw_link()

        def feed(peer=peer) -> None:
            for at in range(0, len(sent), step):
                peer.sendall(sent[at : at + step])

        feeder = threading.Thread(target=feed)
        feeder.start()
        if together:
            got.append(link.receive_all(WANTED))
        else:
            got.append([link.receive(wanted.label, wanted.nbytes) for wanted in WANTED])
        feeder.join()
        assert (link.beat_at > 0) == bool(beats)
        assert link.counter.received_messages == len(WANTED)
        assert link.counter.received_bytes == sum(HEADER_BYTES + wanted.nbytes for wanted in WANTED)
        peer.close()
        link.close()
    first, second = got
    assert [tensor.numel() for tensor in first] == [8, 0, 70_000, 31]
    assert all(map(torch.equal, first, second)) and first[2].numpy().tobytes() in sent


def test_what_was_peeked_at_belongs_to_the_first_of_several_messages() -> None:
    link, peer = raw_link()
    peer.sendall(frames()[:40])
    link.peek()
    assert link.arrived
    feeder = threading.Thread(target=lambda: peer.sendall(frames()[40:]))
    feeder.start()
    assert [tensor.numel() for tensor in link.receive_all(WANTED)] == [8, 0, 70_000, 31]
    feeder.join()
    peer.close()
    link.close()


@pytest.mark.parametrize(
    "purpose, kind, said", [(Purpose.ABORT, PeerAborted, "no disk"), (Purpose.BYE, PeerDied, "ended")]
)
def test_an_end_among_messages_that_are_read_together(purpose, kind, said) -> None:
    link, peer = raw_link()
    end = pack_header(1, Label(0, 0, purpose), 7 if purpose == Purpose.ABORT else 0)
    peer.sendall(frames()[:40] + end + (b"no disk" if purpose == Purpose.ABORT else b""))
    with pytest.raises(kind, match=said):
        link.receive_all(WANTED)
    peer.close()


def test_large_buffers_are_not_copied() -> None:
    tensor = torch.zeros(100_000, dtype=torch.int64)
    pieces = coalesce(b"header", [byte_view(tensor)])
    tensor.fill_(-1)
    assert bytes(pieces[-1][-8:]) == b"\xff" * 8


def test_unusable_buffers() -> None:
    with pytest.raises(InputError, match="contiguous"):
        byte_view(torch.zeros(4, 4).t())
    with pytest.raises(InputError, match="contiguous"):
        byte_view(memoryview(bytes(10))[::2])
    assert len(byte_view(torch.zeros(0, 3))) == 0
    assert bytes(byte_view(torch.tensor([[1, 2]], dtype=torch.int16))) == b"\1\0\2\0"


def test_exchange_delivers_and_counts(channels: dict[str, Channel]) -> None:
    sizes = {"a": 5, "b": 0, "c": 70_000}

    def step(channel: Channel) -> None:
        before = channel.stats
        for node in range(3):
            label = Label(1, node, Purpose.OPEN)
            sends = {peer: [text(channel.me, peer, sizes[channel.me] - 2), torch.zeros(2, dtype=torch.uint8)]
                     if sizes[channel.me] else [] for peer in channel.peers}  # fmt: skip
            got = channel.exchange(label, sends, {peer: sizes[peer] for peer in channel.peers})
            for peer, tensor in got.items():
                expected = text(peer, channel.me, sizes[peer] - 2) + b"\0\0" if sizes[peer] else b""
                assert tensor.dtype == torch.uint8 and tensor.numpy().tobytes() == expected
        used = channel.stats - before
        assert used.rounds == 3
        for peer, link in used.links.items():
            assert link.sent_bytes == 3 * (HEADER_BYTES + sizes[channel.me])
            assert link.received_bytes == 3 * (HEADER_BYTES + sizes[peer])
            assert link.sent_messages == link.received_messages == 3
        assert used.sent_bytes == 3 * len(channel.peers) * (HEADER_BYTES + sizes[channel.me])

    everywhere(channels, step)


def test_one_way_rounds_and_single_messages(channels: dict[str, Channel]) -> None:
    others = [name for name in channels if name != "a"]

    def step(channel: Channel) -> None:
        if channel.me == "a":
            assert channel.exchange(OPEN, {peer: [b"to all"] for peer in others}, {}) == {}
            assert channel.receive("b", OPEN, max_bytes=100).numpy().tobytes() == b"at most"
            assert channel.receive("b", OPEN, 5).numpy().tobytes() == b"exact"
        else:
            assert channel.exchange(OPEN, {}, {"a": 6})["a"].numpy().tobytes() == b"to all"
            if channel.me == "b":
                channel.send("a", OPEN, [b"at ", b"most"])
                channel.send("a", OPEN, [bytearray(b"exact")])
        assert channel.exchange(OPEN, {}, {}) == {}
        assert channel.stats.rounds == 1

    everywhere(channels, step)


def test_all_parties_know_the_same_session(channels: dict[str, Channel]) -> None:
    sessions = {channel.session for channel in channels.values()}
    assert len(sessions) == 1 and len(sessions.pop()) == 32


@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_any_traffic_on_one_local_thread(data: st.DataObject) -> None:
    made = local_channels(NAMES)
    for node in range(data.draw(st.integers(1, 4))):
        label = Label(0, node, data.draw(st.sampled_from([Purpose.OPEN, Purpose.REVEAL])))
        pairs = {
            (me, peer): data.draw(st.none() | st.binary(max_size=100)) for me in NAMES for peer in NAMES if me != peer
        }
        for me, channel in made.items():
            sends = {peer: [pairs[me, peer]] for peer in channel.peers if pairs[me, peer] is not None}
            receives = {peer: len(pairs[peer, me]) for peer in channel.peers if pairs[peer, me] is not None}
            channel.begin(label, sends, receives)
        for me, channel in made.items():
            got = {peer: tensor.numpy().tobytes() for peer, tensor in channel.finish().items()}
            assert got == {peer: pairs[peer, me] for peer in channel.peers if pairs[peer, me] is not None}


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_sockets_can_be_stepped_in_one_thread_too(kind: str, tmp_path: Path) -> None:
    made = make_channels(kind, NAMES, tmp_path)
    for node in range(3):
        label = Label(0, node, Purpose.OPEN)
        for me, channel in made.items():
            channel.begin(
                label, {peer: [text(me, peer, 500)] for peer in channel.peers}, dict.fromkeys(channel.peers, 500)
            )
        for me, channel in made.items():
            for peer, tensor in channel.finish().items():
                assert tensor.numpy().tobytes() == text(peer, me, 500)
    for channel in made.values():
        channel.close()


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_own_work_between_begin_and_finish_is_not_the_peers_silence(kind: str, tmp_path: Path) -> None:
    made = make_channels(kind, ("a", "b"), tmp_path, Timeouts(10, 0.4))

    def step(channel: Channel) -> None:
        if channel.me == "a":
            channel.begin(OPEN, {}, {"b": 4})
            time.sleep(0.6)
            assert channel.finish()["b"].numpy().tobytes() == b"late"
        else:
            time.sleep(0.8)
            channel.send("a", OPEN, [b"late"])

    everywhere(made, step)
    for channel in made.values():
        channel.close()


def test_sender_may_reuse_its_buffer_after_the_round(channels: dict[str, Channel]) -> None:
    size = 300_000

    def step(channel: Channel) -> None:
        buffer = torch.empty(size, dtype=torch.uint8)
        for value in range(5):
            buffer.fill_(value)
            got = channel.exchange(OPEN, {peer: [buffer] for peer in channel.peers}, dict.fromkeys(channel.peers, size))
            assert all(bool((tensor == value).all()) for tensor in got.values())

    everywhere(channels, step)


@pytest.mark.parametrize("kind", ["local", "plain", "tls"])
@pytest.mark.parametrize("count", [2, 3])
def test_large_messages_both_ways_at_once(kind: str, count: int, tmp_path: Path) -> None:
    size = 64 << 20 if count == 2 else 20 << 20
    made = make_channels(kind, NAMES[:count], tmp_path)
    rows = {name: torch.arange(size // 8) * (number + 3) for number, name in enumerate(made)}

    def step(channel: Channel) -> None:
        sends = {peer: [rows[channel.me]] for peer in channel.peers}
        for peer, tensor in channel.exchange(OPEN, sends, dict.fromkeys(channel.peers, size)).items():
            assert torch.equal(tensor.view(torch.int64), rows[peer])

    everywhere(made, step)
    for channel in made.values():
        channel.close()


def test_wrong_label_names_both_sides(channels: dict[str, Channel]) -> None:
    def step(channel: Channel) -> None:
        node = 8 if channel.me == "a" else 7
        label = Label(0, node, Purpose.OPEN)
        channel.exchange(label, {peer: [b"x"] for peer in channel.peers}, dict.fromkeys(channel.peers, 1))

    results = run_together({name: lambda channel=channel: step(channel) for name, channel in channels.items()})
    wrong = [error for error in results.values() if isinstance(error, BadFrame)]
    assert wrong and all("node 8" in str(error) and "node 7" in str(error) for error in wrong)
    assert all(isinstance(error, (BadFrame, PeerAborted, PeerDied)) for error in results.values())


def test_wrong_size_is_refused(channels: dict[str, Channel]) -> None:
    def step(channel: Channel) -> None:
        if channel.me == "a":
            channel.exchange(OPEN, {"b": [b"12345678"]}, {})
            channel.exchange(OPEN, {}, {"b": 1})
        elif channel.me == "b":
            channel.exchange(OPEN, {}, {"a": 7})

    results = run_together({name: lambda channel=channel: step(channel) for name, channel in channels.items()})
    assert isinstance(results["b"], BadFrame) and "7 bytes" in str(results["b"]) and "8" in str(results["b"])
    assert isinstance(results["a"], PeerAborted) and "too large" in results["a"].reason


def test_abort_reaches_everyone_and_says_why(channels: dict[str, Channel]) -> None:
    def step(channel: Channel) -> None:
        if channel.me == "a":
            time.sleep(0.2)
            channel.abort("disk full\x1b[31m")
            with pytest.raises(ProtocolError, match="closed"):
                channel.exchange(OPEN, {}, {})
        else:
            others = [peer for peer in channel.peers if peer != "a"]
            # With three parties they wait for each other, not for the one that aborts.
            channel.receive((others or ["a"])[0], OPEN, 10)

    start = time.monotonic()
    results = run_together({name: lambda channel=channel: step(channel) for name, channel in channels.items()})
    assert time.monotonic() - start < 5
    assert results.pop("a") is None
    for error in results.values():
        assert isinstance(error, PeerAborted), error
        assert "disk full" in error.reason and "disk full" in str(error)


def test_a_closed_channel_says_so(channels: dict[str, Channel]) -> None:
    for channel in channels.values():
        channel.close()
        channel.close()
        with pytest.raises(ProtocolError, match="closed"):
            channel.exchange(OPEN, {}, {})


def test_a_peer_that_closes_early_is_named(channels: dict[str, Channel]) -> None:
    channels["a"].close()
    with pytest.raises(PeerDied, match="'a'") as caught:
        channels["b"].receive("a", OPEN, 10)
    assert caught.value.party == "a"


@pytest.mark.parametrize("end", ["close", "abort"])
def test_an_idle_party_sees_that_a_peer_has_gone(channels: dict[str, Channel], end: str) -> None:
    channels["b"].look()
    channels["a"].close() if end == "close" else channels["a"].abort("disk full")
    deadline = time.monotonic() + 60
    with pytest.raises(PeerError, match="'a'"):
        while time.monotonic() < deadline:
            channels["b"].look()
    assert channels["b"].closed


def test_a_message_that_is_early_is_no_end(channels: dict[str, Channel]) -> None:
    channels["a"].send("b", OPEN, [b"not read yet"])
    channels["b"].look()
    assert channels["b"].receive("a", OPEN, 12).numpy().tobytes() == b"not read yet"
    channels["b"].look()


def test_messages_sent_before_closing_still_arrive(channels: dict[str, Channel]) -> None:
    channels["a"].send("b", OPEN, [b"last words"])
    channels["a"].close()
    assert channels["b"].receive("a", OPEN, 10).numpy().tobytes() == b"last words"


def test_unknown_peers_and_double_begin(channels: dict[str, Channel]) -> None:
    channel = channels["a"]
    with pytest.raises(InputError, match="no peer 'z'"):
        channel.exchange(OPEN, {"z": [b""]}, {})
    with pytest.raises(InputError, match="no peer 'a'"):
        channel.receive("a", OPEN, 1)
    channel.begin(OPEN, {}, {})
    with pytest.raises(ProtocolError, match="before it finished"):
        channel.begin(OPEN, {}, {})
    channel.finish()


def test_leaving_a_with_block_by_an_error_tells_the_others(kind: str, tmp_path: Path) -> None:
    made = make_channels(kind, ("a", "b"), tmp_path)
    with pytest.raises(ZeroDivisionError), made["a"]:
        raise ZeroDivisionError("secret 42")
    with pytest.raises(PeerAborted, match="ZeroDivisionError") as caught:
        made["b"].receive("a", OPEN, 1)
    assert "42" not in str(caught.value)


def test_stepped_local_parties_do_not_wait() -> None:
    made = local_channels(("a", "b"))
    start = time.monotonic()
    with pytest.raises(PeerStalled, match="OPEN of node 7, epoch 3"):
        made["a"].receive("b", OPEN, 1)
    assert time.monotonic() - start < 1
    with pytest.raises(PeerAborted, match="sent nothing"):
        made["b"].receive("a", OPEN, 1)


def served_by(me: str, config: PartiesConfig, identity: Identity | None, plain: bool) -> Mapping[str, Link]:
    with closing(Reception(me, ("a", "b"), config, identity, most=1, insecure_plain=plain)) as reception:
        return reception.next(lambda gathering: "").links


@pytest.mark.parametrize("kind", ["local", "plain", "tls"])
def test_links_between_dealer_and_parties(kind: str, tmp_path: Path) -> None:
    if kind == "local":
        pairs = {name: local_links("dealer", name, 10) for name in ("a", "b")}
        served, dialed = {n: pair[0] for n, pair in pairs.items()}, {n: pair[1] for n, pair in pairs.items()}
    else:
        if kind == "plain":
            first, second, third = free_addresses(3)
            config, ids = plain_config({"a": first, "b": second}, dealer=third, timeouts=TIMEOUTS), {}
        else:
            config, ids = loopback_parties(("a", "b"), tmp_path, dealer=True, timeouts=TIMEOUTS)
        plain = kind == "plain"
        made = run_together(
            {
                "dealer": lambda: served_by("dealer", config, ids.get("dealer"), plain),
                "a": lambda: dial("a", "dealer", config, ids.get("a"), insecure_plain=plain),
                "b": lambda: dial("b", "dealer", config, ids.get("b"), insecure_plain=plain),
            }
        )
        served, dialed = made["dealer"], made
    bulk = torch.arange(1 << 18)

    def serve(name: str) -> None:
        label, wanted = served[name].receive_next((Purpose.REQUEST,), 64)
        assert (label, wanted.numpy().tobytes()) == (Label(1, 2, Purpose.REQUEST), name.encode())
        for node in range(4):
            served[name].send(Label(1, node, Purpose.DEAL), [bulk])
        served[name].close()

    def use(name: str) -> None:
        dialed[name].send(Label(1, 2, Purpose.REQUEST), [name.encode()])
        for node in range(4):
            got = dialed[name].receive(Label(1, node, Purpose.DEAL), 8 * bulk.numel())
            assert torch.equal(got.view(torch.int64), bulk)
        assert dialed[name].counter.received_bytes == 4 * (HEADER_BYTES + 8 * bulk.numel())
        with pytest.raises(PeerDied, match="'dealer'"):
            dialed[name].receive(Label(1, 4, Purpose.DEAL), 1)

    tasks = {
        f"{role.__name__} {name}": lambda role=role, name=name: role(name) for role in (serve, use) for name in "ab"
    }
    assert set(run_together(tasks).values()) == {None}


def test_plain_links_stay_on_this_host() -> None:
    config = plain_config({"a": "127.0.0.1:1", "b": "192.0.2.1:2"}, timeouts=Timeouts(1, 1))
    for name in ("a", "b"):
        with pytest.raises(ConfigError, match="refused"):
            connect(name, config, insecure_plain=True)


def test_connecting_without_or_with_the_wrong_identity(tmp_path: Path) -> None:
    config, ids = loopback_parties(("a", "b"), tmp_path, timeouts=Timeouts(1, 1))
    with pytest.raises(ConfigError, match="no identity"):
        connect("a", config)
    with pytest.raises(ConfigError, match="not the one the party file pins"):
        connect("a", config, ids["b"])


def _kill_self_mid_round(directory: str) -> None:
    from protocols.identity import load, load_config

    channel = connect("b", load_config(Path(directory) / "parties.toml"), load(Path(directory) / "b"))
    channel.begin(OPEN, {"a": [bytes(64 << 20)]}, {})
    os._exit(1)


def test_a_killed_process_is_named(tmp_path: Path) -> None:
    config, ids = loopback_parties(("a", "b"), tmp_path, timeouts=TIMEOUTS)
    process = multiprocessing.get_context("spawn").Process(target=_kill_self_mid_round, args=(str(tmp_path),))
    process.start()
    channel = connect("a", config, ids["a"])
    with pytest.raises(PeerDied, match="'b'") as caught:
        channel.receive("b", OPEN, 64 << 20)
    assert "67108864 bytes" in str(caught.value)
    process.join(10)
