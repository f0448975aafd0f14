"""One connection to one peer: frames in and out of a non-blocking socket, and the loop that drives several of them.

`Link` is usable alone, from one thread at a time, with blocking `send` and `receive`. A `TcpChannel` drives
all its links with one `Pump`, so that large messages in both directions never wait for each other.
"""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import cast

import torch

from protocols.channel import records
from protocols.channel.arriving import Arriving
from protocols.channel.buffers import Buffer, byte_view, coalesce, fresh, gather_first, writable
from protocols.channel.frame import (
    HEADER_BYTES,
    Expected,
    Header,
    Label,
    Purpose,
    check_expected,
    pack_header,
    parse_header,
)
from protocols.channel.records import RecordStream
from protocols.channel.stats import LinkCounter
from protocols.channel.stream import PlainStream
from protocols.errors import (
    BadFrame,
    InputError,
    PeerAborted,
    PeerDied,
    PeerStalled,
    ProtocolError,
    explain,
    public_reason,
)

MAX_REASON_BYTES = 1024
_TURN_BYTES = 1 << 20  # after moving this much, a link lets the others have a turn
_SLOWEST_BYTES_PER_S = 10_000
_SPIN_S = 30e-6  # how long to look for an event before sleeping until one comes
_yield = getattr(os, "sched_yield", lambda: time.sleep(0))
_UNCOUNTED = frozenset((Purpose.HELLO, Purpose.ALIVE, Purpose.ABORT, Purpose.BYE))
_ALIVE = Label(0, 0, Purpose.ALIVE)
_BEAT = Expected(_ALIVE, 0)
_MOST_BEATS = 1 << 16  # signs of life without a message between: a day of them, though nobody listened
_GOODBYE_S = 1.0  # longest time spent on telling peers that the session ends


class Link:
    """Frames to and from one peer over a plain or encrypted stream. Use it from one thread at a time."""

    def __init__(self, me: str, peer: str, stream: PlainStream | RecordStream, receive_s: float) -> None:
        self.me, self.peer, self.receive_s = me, peer, receive_s
        self.counter = LinkCounter()
        self._stream = stream
        self._closed = False
        self._process = records.process
        self._outbox: deque[memoryview] = deque()
        self._sent = self._received = 0  # sequence numbers of the next frames
        self._write_error: Exception | None = None
        self._header = bytearray(HEADER_BYTES)
        self._header_view = memoryview(self._header)
        self._header_filled = 0
        self._held: Header | None = None  # a header that was read before its message was expected
        self._expected: Expected | None = None
        self._room: memoryview | None = None  # what is left of the payload to fill
        self._message: tuple[Label, torch.Tensor] | None = None
        self._coming: Arriving | None = None  # messages whose sizes are known, while they are expected
        self._begun_at = self._moved_at = 0.0
        self.beat_at = 0.0  # when the peer last said that it is there, on the monotonic clock
        self._volume = 0  # bytes to send and receive before it is idle again
        self._pump: Pump | None = None

    # Blocking use, by a thread of its own.

    def send(self, label: Label, buffers: Sequence[Buffer], *, timeout_s: float | None = None) -> None:
        """Send one message; the buffers may be reused when it returns. Raises PeerError."""
        self.post(label, buffers)
        self._run(timeout_s)

    def receive(
        self,
        label: Label,
        nbytes: int | None = None,
        *,
        max_bytes: int = 0,
        timeout_s: float | None = None,
        silence_s: float | None = None,
    ) -> torch.Tensor:
        """Receive one message of exactly `nbytes`, or of at most `max_bytes`, as a new uint8 tensor. Raises PeerError.

        `silence_s`: see `Pump.run`.
        """
        self.expect(Expected(label, max_bytes if nbytes is None else nbytes, nbytes is not None))
        self._run(timeout_s, silence_s)
        return self.take()[1]

    def receive_all(self, expected: Sequence[Expected], *, timeout_s: float | None = None) -> list[torch.Tensor]:
        """Receive these messages, whose sizes are exact, one after the other. Raises PeerError."""
        self.expect_all(expected)
        self._run(timeout_s)
        return self._take_all()

    def receive_next(
        self, purposes: Sequence[Purpose], max_bytes: int, *, timeout_s: float | None = None
    ) -> tuple[Label, torch.Tensor]:
        """Receive the next message, whatever its epoch and node, if it has one of these purposes. Raises PeerError."""
        self.expect(Expected(None, max_bytes, False, tuple(purposes)))
        self._run(timeout_s)
        return self.take()

    def beat(self) -> None:
        """Tell the peer that this party is there, without waiting. Raises PeerError if the peer is gone."""
        if not self.sending:
            self.post(_ALIVE, [])
            self.flush()
        self.peek()
        if self.arrived and self._stream.ended():
            raise self._died("its connection ended without a goodbye", self._write_error)

    def abort(self, reason: str) -> None:
        """Tell the peer to stop, with a public reason, then close. Never raises."""
        say_goodbye([self], Purpose.ABORT, reason)

    def close(self) -> None:
        """End the link in good order. Closing twice does nothing."""
        say_goodbye([self], Purpose.BYE, "")

    def interrupt(self) -> None:
        """End the connection under another thread that waits on this link: its wait ends in PeerDied."""
        try:
            self._stream.socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def _run(self, timeout_s: float | None, silence_s: float | None = None) -> None:
        self._pump = self._pump or Pump([self])
        try:
            self.start_clock()
            self.step()  # what is due may be here already
            if self.busy:
                self._pump.run(timeout_s, silence_s)
        except BaseException as error:  # also an interrupt: the peer must not be left waiting
            self.abort(public_reason(error))
            raise

    # Non-blocking use, by a Pump.

    def post(self, label: Label, buffers: Sequence[Buffer]) -> None:
        """Queue one message; `step` sends it."""
        if self._closed or records.process is not self._process:
            raise self._unusable(label)
        views = [byte_view(buffer) for buffer in buffers]
        nbytes = sum(map(len, views))
        self._plan(nbytes)
        self._outbox.extend(coalesce(pack_header(self._sent, label, nbytes), views))
        self._sent += 1
        if label.purpose not in _UNCOUNTED:
            self.counter.sent(HEADER_BYTES + nbytes)

    def expect(self, expected: Expected) -> None:
        """Say what comes next; `step` receives it and `take` returns it."""
        self._check_free(expected)
        self._plan(expected.nbytes)
        self._expected = expected
        if expected.exact and expected.label:
            self._coming = Arriving((expected,), self._begun())

    def expect_all(self, expected: Sequence[Expected]) -> None:
        """Say which messages come next, one after the other, each with a label and an exact size."""
        for message in expected:
            self._check_free(message)
        if expected:
            self._coming = Arriving(expected, self._begun())
            self._plan(self._coming.size)
            self._expected = expected[0]

    def _check_free(self, expected: Expected) -> None:
        taken = self._expected or self._message or self._coming
        if self._closed or taken or records.process is not self._process:
            raise self._unusable(expected)
        if expected.nbytes < 0:
            raise InputError(explain(f"cannot expect {expected.nbytes} bytes", where=str(expected)))

    def _begun(self) -> memoryview:
        """What was read of the next message before it was expected; from here on nobody else has it."""
        begun, self._held, self._header_filled = self._header_view[: self._header_filled], None, 0
        return begun

    def _take_all(self) -> list[torch.Tensor]:
        coming, self._coming = self._coming, None
        return coming.payloads() if coming else []

    def _unusable(self, what: Label | Expected) -> ProtocolError:
        """The error for who asks for this now."""
        if records.process is not self._process:
            text = f"the link to {self.peer!r} was used in a fork of the process that made it"
            why, fix = "both would encrypt different messages alike, and take each other's", "open a session in it"
            return ProtocolError(explain(text, where=str(what), why=why, fix=fix))
        state = "closed" if self._closed else "still receiving an earlier message"
        return ProtocolError(
            explain(f"the link to {self.peer!r} is {state}", where=str(what), fix="start a new session")
        )

    def take(self) -> tuple[Label, torch.Tensor]:
        """The message that was expected, once `busy` is false."""
        if self._coming and self._expected is None:
            (expected,) = self._coming.expected
            return cast(Label, expected.label), self._take_all()[0]
        message, self._message = self._message, None
        if message is None:
            raise ProtocolError(explain(f"no message of {self.peer!r} was received", fix="expect one and run the pump"))
        return message

    @property
    def sending(self) -> bool:
        """Whether something is still to be sent."""
        return self._write_error is None and (bool(self._outbox) or self._stream.unsent > 0)

    @property
    def expecting(self) -> bool:
        """Whether a message is still to be received."""
        return self._expected is not None

    @property
    def busy(self) -> bool:
        """Whether something is still to be sent or received."""
        waits = self._expected is not None or self._outbox or self._write_error is not None
        return bool(waits) or self._stream.unsent > 0

    def flush(self) -> None:
        """Send what can be sent now, without waiting and without receiving."""
        if self.sending:
            self._push()

    def step(self) -> bool:
        """Send and receive what is possible now; true if it stopped only to let other links have a turn."""
        again = self.sending and self._push()
        if self._expected is not None:
            return self._pull() or again
        if self._write_error is not None:
            self.peek()
        return again

    def peek(self) -> None:
        """Read a header of a link from which nothing is expected: it may be the peer's ABORT, or its end."""
        if self._held is None and self._expected is None:
            self._read_header()
        if self._write_error is not None and self._held is not None:
            raise self._died("while sending to it", self._write_error)

    def look(self) -> None:
        """Find out whether the peer has ended the session, without waiting. Raises PeerError if it has."""
        self.peek()
        if self._held is not None and self._held.label.purpose == Purpose.BYE:
            raise self._died("it ended the session", None)

    @property
    def arrived(self) -> bool:
        """Whether a message came that nobody expected yet; found by `peek` or while waiting for something else."""
        return self._held is not None

    def pending(self) -> bool:
        """Whether decrypted bytes wait that the operating system does not know of."""
        return self._stream.pending

    def interest(self) -> int:
        """What to wait for, as selectors' event mask; 0 for nothing."""
        reading = selectors.EVENT_READ if self._held is None or self._expected is not None else 0
        return reading | (selectors.EVENT_WRITE if self.sending else 0)

    def fileno(self) -> int:
        return self._stream.socket.fileno()

    def start_clock(self) -> None:
        """Waiting begins now."""
        self._begun_at = self._moved_at = time.monotonic()

    def stalled_at(self, timeout_s: float | None) -> float:
        """When, on the monotonic clock, the peer's silence, or a hopelessly slow trickle, becomes an error."""
        patience_s = self.receive_s if timeout_s is None else timeout_s
        return patience_s + min(self._moved_at, self._begun_at + self._volume / _SLOWEST_BYTES_PER_S)

    def silent_at(self, since: float, silence_s: float) -> float:
        """When, on the monotonic clock, a peer that shows no sign of life has been silent for too long."""
        return max(since, self._moved_at, self.beat_at) + silence_s

    def silent(self, silence_s: float) -> PeerStalled:
        """The error for a peer that showed no sign of life for too long."""
        return PeerStalled(
            self.peer,
            explain(
                f"party {self.peer!r} gave no sign of life for {silence_s:g} s",
                where=self._where(),
                why="the network between us fails, or it was stopped or suspended",
                fix="look at that party and the network, then start all parties again",
            ),
        )

    def stalled(self, timeout_s: float | None) -> PeerStalled:
        """The error for a peer that was silent for too long."""
        waited_s = self.receive_s if timeout_s is None else timeout_s
        return PeerStalled(
            self.peer,
            explain(
                f"party {self.peer!r} made no progress for {waited_s:g} s",
                where=f"{self._where()}, begun {time.monotonic() - self._begun_at:.1f} s ago",
                why="it is connected, but stuck, overloaded, or itself waiting for another party",
                fix="look at that party's output; if it is only slow, raise receive_s under [timeouts]",
            ),
        )

    def _plan(self, nbytes: int) -> None:
        self._volume = self._volume + nbytes if self.busy else nbytes

    def _push(self) -> bool:
        outbox, budget, unsent = self._outbox, _TURN_BYTES, self._stream.unsent
        try:
            self._stream.flush()
            while outbox:
                if len(outbox) > 1:
                    gather_first(outbox)
                view = outbox[0]
                sent = self._stream.send(view)
                if sent == len(view):
                    outbox.popleft()
                else:
                    outbox[0] = view[sent:]
                budget -= sent
                if budget <= 0:
                    break
        except BlockingIOError:
            pass
        except OSError as error:
            # The peer is gone for writing, but may have said why before: whoever reads next finds out.
            self._write_error = error
            return False
        if budget != _TURN_BYTES or self._stream.unsent != unsent:
            self._moved_at = time.monotonic()
        return budget <= 0

    def _pull(self) -> bool:
        if self._coming is not None:
            return self._pull_whole(self._coming)
        if self._held is None and not self._read_header():
            return False
        if self._room is None:
            self._open_message()
        budget = _TURN_BYTES
        room = self._room
        while room:
            got = self._read_into(room)
            if not got:
                break
            room = room[got:]
            budget -= got
            if budget <= 0:
                break
        self._room = room
        if budget != _TURN_BYTES:
            self._moved_at = time.monotonic()
        if not room:
            self._finish_message()
            return False
        return budget <= 0

    def _pull_whole(self, coming: Arriving) -> bool:
        """Reads messages with their headers, which are compared as they come."""
        budget, before = _TURN_BYTES, coming.filled
        if before:
            self._compare(coming)
        while coming.filled < coming.size and budget > 0:
            got = self._read_into(coming.room)
            if not got:
                coming.beats = 0
                break
            coming.filled += got
            budget -= got
            self._compare(coming)
        if coming.filled != before:
            self._moved_at = time.monotonic()
        if coming.filled < coming.size:
            return budget <= 0
        for message in coming.expected:
            if cast(Label, message.label).purpose not in _UNCOUNTED:
                self.counter.received(HEADER_BYTES + message.nbytes)
        self._expected = None
        return False

    def _compare(self, coming: Arriving) -> None:
        """Looks at the headers that are there. Raises PeerError where one is not that of the message which is due."""
        while (data := coming.header) is not None:
            due = coming.expected[coming.seen]
            if data != pack_header(self._received, cast(Label, due.label), due.nbytes):
                header = parse_header(data, self._received, self.peer)
                if header.label.purpose == Purpose.ABORT:
                    raise PeerAborted(self.peer, self._read_reason(header.nbytes, coming.behind))
                if header.label.purpose == Purpose.BYE:
                    raise self._died("it ended the session although this message was due", None)
                if header.label.purpose == Purpose.ALIVE:
                    check_expected(header, _BEAT, self.peer)
                    self.beat_at = time.monotonic()
                    coming.drop()
                    if coming.beats >= _MOST_BEATS:
                        raise self._only_beats()
                    self._received += 1
                    continue
                check_expected(header, due, self.peer)
            coming.accept()
            self._received += 1

    def _read_header(self) -> bool:
        for _ in range(_MOST_BEATS):
            while self._header_filled < HEADER_BYTES:
                got = self._read_into(self._header_view[self._header_filled :])
                if not got:
                    return False
                self._header_filled += got
            header = parse_header(self._header, self._received, self.peer)
            if header.label.purpose != Purpose.ALIVE:
                break
            check_expected(header, _BEAT, self.peer)
            self.beat_at = time.monotonic()
            self._received += 1
            self._header_filled = 0
        else:
            raise self._only_beats()
        self._moved_at = time.monotonic()
        if header.label.purpose == Purpose.ABORT:
            raise PeerAborted(self.peer, self._read_reason(header.nbytes))
        self._held = header
        return True

    def _only_beats(self) -> BadFrame:
        what = f"party {self.peer!r} sends signs of life alone, without a pause"
        why, fix = "reading them would go on past every limit of time", "do not trust that party"
        return BadFrame(self.peer, explain(what, where=self._where(), why=why, fix=fix))

    def _read_reason(self, nbytes: int, begun: bytes | memoryview = b"") -> str:
        """The text of an ABORT frame, of which some was read; what does not arrive at once is left out."""
        text = bytearray(min(nbytes, MAX_REASON_BYTES))
        filled, deadline = min(len(begun), len(text)), time.monotonic() + 0.2
        text[:filled] = begun[:filled]
        try:
            while filled < len(text) and time.monotonic() < deadline:
                got = self._read_into(memoryview(text)[filled:])
                filled += got
                if not got:
                    time.sleep(0.001)
        except PeerDied:
            pass
        return text[:filled].decode("utf-8", errors="replace")

    def _open_message(self) -> None:
        header, expected = self._held, self._expected
        if header is None or expected is None:
            raise ProtocolError(explain("a link was pumped without a message to receive", where=self._where()))
        if header.label.purpose == Purpose.BYE:
            raise self._died("it ended the session although this message was due", None)
        check_expected(header, expected, self.peer)
        payload = fresh(header.nbytes)
        self._message = (header.label, payload)
        self._room = writable(payload)

    def _finish_message(self) -> None:
        header = self._held
        if header is not None and header.label.purpose not in _UNCOUNTED:
            self.counter.received(HEADER_BYTES + header.nbytes)
        self._received += 1
        self._held = self._expected = self._room = None
        self._header_filled = 0

    def _read_into(self, view: memoryview) -> int:
        """Bytes read, 0 if none can be read now. Raises PeerDied at the end of the connection."""
        try:
            got = self._stream.recv_into(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise self._died("its connection broke", error) from error
        if not got:
            raise self._died("its connection ended without a goodbye", self._write_error)
        return got

    def _died(self, how: str, error: Exception | None) -> PeerDied:
        detail = f": {getattr(error, 'strerror', None) or type(error).__name__}" if error else ""
        return PeerDied(
            self.peer,
            explain(
                f"party {self.peer!r} is gone",
                where=self._where(),
                why=how + detail,
                fix="look at that party's output for the cause, then start all parties again",
            ),
        )

    def _where(self) -> str:
        if self._coming is not None and self._expected is not None:
            due, got = self._coming.waits_for
            return f"receiving [{due}] from it, {got} payload bytes arrived"
        if self._expected is not None:
            total = self._message[1].numel() if self._message else 0
            got = total - len(self._room or b"")
            return f"receiving [{self._expected}] from it, {got} payload bytes arrived"
        if self.sending:
            return f"sending message {self._sent - 1} to it, {sum(map(len, self._outbox))} bytes left"
        return "between two messages"


class Pump:
    """Drives a fixed set of links until nothing is left to send or receive."""

    def __init__(self, links: Sequence[Link]) -> None:
        self._links = list(links)
        self._selector = selectors.DefaultSelector()
        self._masks: dict[Link, int] = {link: 0 for link in links}
        self._made_at = time.monotonic()

    def run(self, timeout_s: float | None = None, silence_s: float | None = None) -> None:
        """Until every queued message is sent and every expected one received. Raises PeerError.

        `timeout_s` replaces the links' own limit on a peer's silence. With `silence_s` all peers, also those from
        which nothing is due, have to show a sign of life in that time (see `Link.beat`), so that the limit can be long.
        """
        ready = [link for link in self._links if link.busy]
        for link in ready:
            link.start_clock()
        while ready:
            again = False
            for link in ready:
                again |= link.step()
            busy = [link for link in self._links if link.busy]
            ready = busy if again or not busy else self._wait(busy, timeout_s, silence_s)

    def _wait(self, busy: list[Link], timeout_s: float | None, silence_s: float | None) -> list[Link]:
        """The busy links that can go on. Links from which nothing is due are watched too: they may bring an ABORT."""
        for link, mask in self._masks.items():
            if not link.expecting and link.pending():
                link.peek()
            wanted = link.interest()
            if wanted != mask:
                self._change(link, mask, wanted)
        while True:
            now = time.monotonic()
            first = min(busy, key=lambda link: link.stalled_at(timeout_s))
            left = first.stalled_at(timeout_s) - now
            if left <= 0:
                raise first.stalled(timeout_s)
            if silence_s is not None:
                left = min(left, self._check_alive(silence_s))
            events = [(key.data, mask) for key, mask in self._spin() or self._selector.select(left)]
            for link, mask in events:
                if mask & selectors.EVENT_READ and not link.expecting:
                    link.peek()
                    if link.interest() != self._masks[link]:
                        self._change(link, self._masks[link], link.interest())
            ready = [link for link, _ in events if link.busy]
            if ready:
                return ready

    def _check_alive(self, silence_s: float) -> float:
        """Seconds until the first peer will have been silent for too long. Raises PeerStalled if one has been.

        A peer whose next message is here already, such as a goodbye, is not listened to any more.
        """
        left = silence_s
        for link in self._links:
            if link.silent_at(self._made_at, silence_s) <= time.monotonic() and not link.expecting:
                link.peek()  # nobody may have looked for a while
            if not link.arrived:
                left = min(left, link.silent_at(self._made_at, silence_s) - time.monotonic())
                if left <= 0:
                    raise link.silent(silence_s)
        return left

    def _spin(self) -> list[tuple[selectors.SelectorKey, int]]:
        """Look for events for a moment, letting other processes run, before paying for sleep and wake-up."""
        end = time.perf_counter() + _SPIN_S
        while time.perf_counter() < end:
            events = self._selector.select(0)
            if events:
                return events
            _yield()
        return []

    def _change(self, link: Link, mask: int, wanted: int) -> None:
        if not mask:
            self._selector.register(link, wanted, link)
        elif not wanted:
            self._selector.unregister(link)
        else:
            self._selector.modify(link, wanted, link)
        self._masks[link] = wanted

    def close(self) -> None:
        """Give the operating system's handle back."""
        self._selector.close()


def say_goodbye(links: Sequence[Link], purpose: Purpose, reason: str) -> None:
    """Send a last frame (BYE or ABORT) on every link that still can, then close them all. Bounded in time, never
    raises. A fork of the process that made a link says nothing over it and ends nothing.
    """
    open_links = [link for link in links if not link._closed and records.process is link._process]
    deadline = time.monotonic() + _GOODBYE_S
    payload = reason.encode("utf-8", errors="replace")[:MAX_REASON_BYTES]
    for link in open_links:
        if link._write_error is None:
            link.post(Label(0, 0, purpose), [payload])
        link._closed = True
    if not open_links:
        return
    unsent = [link for link in open_links if link._write_error is None]
    while unsent and time.monotonic() < deadline:
        for link in unsent:
            link._push()
        unsent = [link for link in unsent if link.sending and link._write_error is None]
        if unsent:
            time.sleep(0.001)
    for link in open_links:
        _shut(link._stream.socket, deadline if purpose == Purpose.ABORT else time.monotonic() + 0.05)
        if link._pump:
            link._pump.close()


def _shut(sock: socket.socket, deadline: float) -> None:
    """Close a socket such that what was sent last can still be read by the peer.

    Closing with unread data makes the operating system reset the connection, and a reset may overtake the last frame.
    """
    scratch = bytearray(1 << 16)
    try:
        sock.shutdown(socket.SHUT_WR)
        while time.monotonic() < deadline:  # what still comes is skipped undecrypted
            sock.settimeout(max(deadline - time.monotonic(), 0.001))
            if not sock.recv_into(scratch):
                break
    except (OSError, ValueError):
        pass
    finally:
        sock.close()
