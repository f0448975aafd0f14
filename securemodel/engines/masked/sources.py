"""Where the last party's shares of dealt values come from: the dealer's link, or a store made beforehand."""

from __future__ import annotations

import struct
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from protocols.channel import Label, Link, Purpose
from protocols.channel.frame import Expected
from protocols.correlations import unpacked
from protocols.devices import CPU, to_device_together, to_host
from protocols.errors import PeerError, ProtocolError
from protocols.gates import GATES, Dealt, Part, dealt_bytes
from securemodel.compiler.ir import Graph, Phase
from securemodel.engines.labels import END_OF_SESSION
from securemodel.engines.masked.dealing import Dealing, FamilyDealing
from securemodel.errors import SecureModelError

REQUEST = struct.Struct("<QIB3x")
"""A request to the dealer: epoch; of a load the step of the run after it, of a run which of the session's programs it is
of; and what to do (one of the numbers below)."""
DEAL_RUN, DEAL_LOAD, END = 0, 1, 2
MOST_ASKED = 4
"""Requests that the dealer holds while it deals for an earlier one."""
_PATIENCE = 0.75  # of the peers' patience, so that a silent dealer is named before a peer gives up on this party
_GOODBYE_S = 5.0
_BEAT_S = 5.0  # longest pause between two signs of life


Wanted = Sequence[tuple[int, Sequence[Part]]]
"""Gates, one after the other, and what is dealt for each."""


def split_shares(
    payloads: Sequence[torch.Tensor], parts: Iterable[Sequence[Part]], device: torch.device = CPU
) -> list[Dealt]:
    """Cuts messages into the shares they carry, on a device: they cross as they were sent, and are widened there.

    In main memory shares are views of the messages, but for low bytes and words that begin at an odd place. Elsewhere each
    has memory of its own, as kernels read it 16 bytes at a time.
    """
    there = to_device_together(payloads, device)
    return unpacked([_cut(payload, of_gate) for payload, of_gate in zip(there, parts, strict=True)])


def _cut(payload: torch.Tensor, parts: Sequence[Part]) -> list[tuple[Part, torch.Tensor]]:
    cuts, at, elsewhere = [], 0, payload.device != CPU
    for part in parts:
        cut = payload if len(parts) == 1 else payload[at : at + part.nbytes]
        odd = part.low is None and (elsewhere or cut.storage_offset() % part.dtype.itemsize)
        cuts.append((part, cut.clone() if odd else cut))
        at += part.nbytes
    return cuts


def _handed_over(shares: Sequence[torch.Tensor], device: torch.device) -> list[torch.Tensor]:
    """What a dealer of this process made, as one over a link would: by main memory, to where it is read."""
    sent = to_host(shares)
    if device == CPU:
        return sent
    there = to_device_together([share.view(-1).view(torch.uint8) for share in sent], device)
    return [raw.clone().view(share.dtype).view(share.shape) for raw, share in zip(there, sent, strict=True)]


def largest_message(*graphs: Graph) -> int:
    """Payload bytes of the largest message that the dealer sends for these programs."""
    gates = ((graph, node) for graph in graphs for node in graph.nodes if node.op in GATES)
    sizes = (dealt_bytes(GATES[n.op], n.attrs, [graph[a].shape for a in n.args], n.shape) for graph, n in gates)
    return max(sizes, default=0)


class NoSource:
    """All ranks but the last: nothing to ask for. `link` carried the key; it ends with the session.

    While the link is not in use, a thread tells the dealer that this party is there: it may idle, but not be gone.
    """

    def __init__(self, link: Link | None = None) -> None:
        self._link = link
        self._use = threading.Lock()  # of the link
        self._ended = threading.Event()
        self._failed: PeerError | None = None
        if link:
            threading.Thread(target=self._beat, args=(link,), daemon=True, name=f"beat-{link.me}").start()

    def _beat(self, link: Link) -> None:
        while not self._ended.wait(min(_BEAT_S, link.receive_s / 4)):
            if self._use.acquire(blocking=False):
                try:
                    if not self._ended.is_set():
                        link.beat()
                except PeerError as error:  # said by whoever uses the link next
                    self._failed = error
                    return
                except ProtocolError:  # an error of whoever used it has closed it
                    return
                finally:
                    self._use.release()

    def look(self) -> None:
        """Raises PeerError if the dealer was gone when it was last told that this party is there."""
        if self._failed:
            raise self._failed

    def _stop_beating(self) -> None:
        self._ended.set()
        if self._use.acquire(timeout=_GOODBYE_S):  # waits for a beat that is on its way
            self._use.release()

    def ask(self, epoch: int, phase: Phase, first: int = 0) -> None:
        """Says that this is what `begin` comes to, after all that was asked for before; from any thread."""

    def begin(self, epoch: int, phase: Phase, first: int = 0) -> None:
        """Begins what was asked for first of all that was not begun."""

    def finish(self) -> None:
        """Ends an epoch of which everything was taken."""
        return

    def interrupt(self) -> None:
        """Ends a wait of another thread."""
        if self._link:
            self._link.interrupt()

    def abort(self, reason: str) -> None:
        """Tells the dealer, with a public reason, that the session failed."""
        if self._link:
            self._stop_beating()
            self._link.abort(reason)

    def close(self) -> None:
        """Ends the session with the dealer in good order."""
        if self._link:
            self._stop_beating()
            self._link.close()


class DealtHere(NoSource):
    """Shares that a dealer of this process makes when they are asked for."""

    def __init__(self, dealing: Dealing | FamilyDealing) -> None:
        super().__init__()
        self._dealing = dealing
        self._pending: Iterator[tuple[int, list[torch.Tensor]]] = iter(())

    def begin(self, epoch: int, phase: Phase, first: int = 0) -> None:
        """Lets the dealer begin a phase."""
        self._pending = self._dealing.deal(epoch, phase, first)

    def dealt(self, epoch: int, wanted: Wanted, device: torch.device) -> list[Dealt]:
        made = [shares for _, (_, shares) in zip(wanted, self._pending, strict=False)]
        sent = iter(_handed_over([share for shares in made for share in shares], device))
        return unpacked([[(part, next(sent)) for part in parts] for (_, parts), _ in zip(wanted, made, strict=True)])

    def finish(self) -> None:
        """Lets the dealer walk to the end of the phase."""
        for node, _ in self._pending:
            raise SecureModelError(f"node {node} was dealt for but not run: the program is out of order")


class DealerSource(NoSource):
    """Shares streamed by the dealer process, asked for epoch by epoch. `largest` bounds a message, in bytes."""

    def __init__(self, link: Link, largest: int) -> None:
        super().__init__(link)
        self._link: Link = link
        self._largest = largest
        self._to_ask: deque[tuple[int, bytes]] = deque()
        self._to_come = 0  # epochs that the dealer was asked for, and that were not begun

    def ask(self, epoch: int, phase: Phase, first: int = 0) -> None:
        """Has the dealer asked for an epoch while an earlier one still comes: a way there and back is not waited for."""
        self._to_ask.append((epoch, REQUEST.pack(epoch, first, DEAL_LOAD if phase == "load" else DEAL_RUN)))

    def begin(self, epoch: int, phase: Phase, first: int = 0) -> None:
        self._to_come -= 1
        with self._used():
            self._post_requests()
            self._link.flush()

    def _post_requests(self) -> None:
        while self._to_ask and self._to_come < MOST_ASKED:
            epoch, asked = self._to_ask.popleft()
            self._link.post(Label(epoch, 0, Purpose.REQUEST), [asked])
            self._to_come += 1

    def dealt(self, epoch: int, wanted: Wanted, device: torch.device) -> list[Dealt]:
        expected = [
            Expected(Label(epoch, node, Purpose.DEAL), sum(part.nbytes for part in parts)) for node, parts in wanted
        ]
        patience_s = _PATIENCE * self._link.receive_s
        with self._used():
            if self._to_ask:
                self._post_requests()
            payloads = self._link.receive_all(expected, timeout_s=patience_s)
        return split_shares(payloads, [parts for _, parts in wanted], device)

    @contextmanager
    def _used(self) -> Iterator[None]:
        with self._use:
            self.look()
            yield

    def close(self) -> None:
        """Ends the session with the dealer, dropping what it still sends; used when no other thread waits any more."""
        self._stop_beating()
        deadline = time.monotonic() + _GOODBYE_S
        try:
            self._link.send(END_OF_SESSION, [REQUEST.pack(0, 0, END)], timeout_s=_GOODBYE_S)
            while (left := deadline - time.monotonic()) > 0:
                self._link.receive_next((Purpose.DEAL,), self._largest, timeout_s=left)
        except ProtocolError:
            pass  # the dealer's goodbye or its end, or an error that closed the link before
        self._link.close()
