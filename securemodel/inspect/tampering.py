"""Messages that are wrong in the middle of a run: what a party or the dealer sends instead of the right one.

They go over real links of this host, between the parties' own threads, so that waits and time limits are real.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

from protocols.channel import HEADER_BYTES, Label, Link, Purpose
from protocols.channel.buffers import byte_view
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import SecureModelError
from protocols.identity import Timeouts, plain_config
from protocols.names import PUBLIC
from securemodel.engines.masked.dealer import serve
from securemodel.inspect.views import made_up
from securemodel.program import Program
from securemodel.sessions.masked import open_connection
from securemodel.sessions.session import Session

Attack = Callable[[Link, Label, Any, Callable], None]
"""Takes a link, the label and buffers of a message, and how the link posts it; posts something else."""


def send_garbage(link: Link, label: Label, buffers: Any, post: Callable) -> None:
    """Bytes of another protocol."""
    link._outbox.append(memoryview(b"GET / HTTP/1.1\r\nHost: peer.example\r\n\r\n"))


def resequence(by: int) -> Attack:
    """A message with another number in the sequence."""

    def attack(link: Link, label: Label, buffers: Any, post: Callable) -> None:
        link._sent += by
        post(label, buffers)

    return attack


def relabel(epoch: int = 0, node: int = 0, purpose: Any = None) -> Attack:
    """A message with another label."""

    def attack(link: Link, label: Label, buffers: Any, post: Callable) -> None:
        post(Label(label.epoch + epoch, label.node + node, purpose or label.purpose), buffers)

    return attack


def flip_bit(link: Link, label: Label, buffers: Any, post: Callable) -> None:
    """One bit of the contents, anywhere."""
    whole = bytearray(b"".join(bytes(byte_view(buffer)) for buffer in buffers))
    whole[secrets.randbelow(len(whole))] ^= 1 << secrets.randbelow(8)
    post(label, [whole])


def flip_header_bit(link: Link, label: Label, buffers: Any, post: Callable) -> None:
    """One bit of what stands before the contents."""
    queued = len(link._outbox)
    post(label, buffers)
    first = bytearray(link._outbox[queued])
    first[secrets.randbelow(min(len(first), HEADER_BYTES))] ^= 1 << secrets.randbelow(8)
    link._outbox[queued] = memoryview(first)


def send_twice(link: Link, label: Label, buffers: Any, post: Callable) -> None:
    """The same message again."""
    post(label, buffers)
    post(label, buffers)


FRAMES: dict[str, tuple[Attack, str]] = {
    "truncated": (lambda link, label, buffers, post: post(label, [bytes(4)]), "too small"),
    "oversized": (lambda link, label, buffers, post: post(label, [*buffers, bytes(8)]), "too large"),
    "empty": (lambda link, label, buffers, post: post(label, []), "too small"),
    "reordered": (resequence(1), "reordered"),
    "replayed": (resequence(-1), "replayed"),
    "other node": (relabel(node=1), "wrong message"),
    "other epoch": (relabel(epoch=1), "wrong message"),
    "other purpose": (relabel(purpose=Purpose.REVEAL), "wrong message"),
    "garbage": (send_garbage, "not a message of this protocol"),
}
"""Messages that whoever receives them refuses, and what it says."""

ATTACKS: dict[str, Attack] = {
    "bit flipped": flip_bit,
    "bit of the header flipped": flip_header_bit,
    "repeated": send_twice,
    **{name: attack for name, (attack, _) in FRAMES.items()},
}


def attack_at(link: Link, attack: Attack, purposes: tuple[Purpose, ...], at: int) -> None:
    """Replaces the `at`-th message of some purposes that a link sends, counted from 1."""
    post, count = link.post, []

    def attacking(label: Label, buffers: Any) -> None:
        if label.purpose in purposes:
            count.append(1)
            if len(count) == at:
                return attack(link, label, buffers, post)
        return post(label, buffers)

    link.post = attacking  # type: ignore[method-assign]  # the attack is what it is for


# ---- sessions
NAMED, WRONG, UNCHANGED, HANG, FOREIGN = "named errors", "wrong results", "right results", "hangs", "foreign exceptions"
OUTCOMES = (NAMED, WRONG, UNCHANGED, HANG, FOREIGN)


@dataclass(frozen=True)
class Tampered:
    """What became of sessions in which one message was changed in the same way."""

    attack: str
    sessions: int
    outcomes: Mapping[str, int]


def tamper(
    program: Program,
    sessions: int,
    done: Callable[[int], None] = lambda count: None,
    attacks: Mapping[str, Attack] = ATTACKS,
) -> list[Tampered]:
    """Sessions in which a message of a party, chosen at random, is changed in each of the ways that `attacks` names."""
    scene, number, out = _Scene(program), 0, []
    for name, attack in attacks.items():
        outcomes: Counter[str] = Counter()
        for _ in range(sessions):
            outcomes[scene.attacked(attack)] += 1
            number += 1
            done(number)
        out.append(Tampered(name, sessions, {outcome: outcomes[outcome] for outcome in OUTCOMES}))
    return out


class _Scene:
    """A program with made-up weights and inputs, and what an honest session gives and how long it takes."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.model, self.inputs = made_up(program, 1)
        self.receive_s, self.limit_s = 20.0, 300.0
        self.messages: Counter[tuple[str, str]] = Counter()
        start = time.monotonic()
        self.expected = self._run(self._count)
        for error in self.expected.values():
            if isinstance(error, BaseException):
                raise error
        took = time.monotonic() - start
        self.receive_s, self.limit_s = 3 + 4 * took, 30 + 10 * took

    def attacked(self, attack: Attack) -> str:
        """The worst outcome of one session, of all parties."""
        (who, peer), most = secrets.choice(list(self.messages.items()))
        at = 1 + secrets.randbelow(most)

        def prepare(session: Session) -> None:
            if session.me == who:
                attack_at(cast(Any, session.channel)._links[peer], attack, (Purpose.START, Purpose.OPEN), at)

        try:
            results = self._run(prepare)
        except TimeoutError:
            return HANG
        return max((self._outcome(name, made) for name, made in results.items()), key=_SEVERITY.index)

    def _outcome(self, name: str, made: Any) -> str:
        if isinstance(made, BaseException):
            return NAMED if isinstance(made, SecureModelError) else FOREIGN
        close = 2.0 ** -(self.program.header.frac_bits // 2)
        pairs = zip(made, self.expected[name], strict=True)
        same = all(x is None or torch.allclose(x.double(), y.double(), rtol=0, atol=close) for x, y in pairs)
        return UNCHANGED if same else WRONG

    def _count(self, session: Session) -> None:
        for peer, link in cast(Any, session.channel)._links.items():
            post, key = link.post, (session.me, peer)

            def counting(label: Label, buffers: Any, post: Callable = post, key: tuple[str, str] = key) -> None:
                self.messages[key] += label.purpose in (Purpose.START, Purpose.OPEN)
                post(label, buffers)

            link.post = counting

    def _run(self, prepare: Callable[[Session], None]) -> dict[str, Any]:
        """One session in threads; what each party returned, or the error that ended it. Raises TimeoutError."""
        program = self.program
        first, *addresses = free_addresses(len(program.parties) + 1)
        times = Timeouts(connect_s=self.limit_s / 2, receive_s=self.receive_s)
        config = plain_config(dict(zip(program.parties, addresses, strict=True)), dealer=first, timeouts=times)
        options = {"once": True, "insecure_plain": True}
        dealer = threading.Thread(target=_quietly, args=(serve, config, None), kwargs=options, daemon=True)
        dealer.start()

        def party(me: str) -> Sequence[torch.Tensor | None]:
            with open_connection(program, me, config, insecure_plain=True) as session:
                prepare(session)
                session.load(program, self.model)
                owned = zip(self.inputs, program.header.inputs, strict=True)
                made = session.run(*(x if owner in (me, PUBLIC) else None for x, owner in owned))
                return made if isinstance(made, tuple) else (made,)

        results = run_together({me: partial(party, me) for me in program.parties}, self.limit_s)
        dealer.join(self.limit_s)
        return results


_SEVERITY = (UNCHANGED, NAMED, WRONG, FOREIGN, HANG)


def _quietly(serving: Callable, *args: Any, **options: Any) -> None:
    """The dealer of a session that is to fail: its own error is not what is asked."""
    try:
        serving(*args, **options)
    except SecureModelError:
        pass
