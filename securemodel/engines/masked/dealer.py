"""The dealer process: it knows the program's text, makes correlations, and sees no data and no messages."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import torch

from protocols import kernels
from protocols.channel import Label, Link, Purpose, Reception
from protocols.channel.frame import Expected
from protocols.channel.link import Pump
from protocols.channel.notices import Say, silent
from protocols.channel.reception import Gathering
from protocols.devices import CPU, Device, chosen, to_host
from protocols.errors import BadFrame, Mismatch, PeerError, ProtocolError, explain, summary
from protocols.identity import DEALER, Identity, PartiesConfig
from protocols.prg import EPOCHS, KEY_BYTES, Stream, new_key
from protocols.psi.dealing import deal as deal_alignment
from protocols.psi.dealing import is_request
from securemodel.compiler.ir import Graph, Header, Phase
from securemodel.compiler.ops import MAX_PROGRAM_BYTES
from securemodel.compiler.reading import MAX_TEXT_BYTES, parse_programs
from securemodel.engines.labels import PROGRAM, STREAM_KEY, TABLE_KEY
from securemodel.engines.masked.dealing import Dealing, Dealt, FamilyDealing
from securemodel.engines.masked.masks import FIRST_PORTION_BYTES
from securemodel.engines.masked.pipeline import pipelined
from securemodel.engines.masked.sources import DEAL_LOAD, DEAL_RUN, END, MOST_ASKED, REQUEST
from securemodel.engines.masked.tables import keys_to_hand, table_streams
from securemodel.errors import ProgramError

_AHEAD_BYTES = 64 << 20  # made while earlier shares are being sent
_SEND_BYTES = 1 << 18  # messages smaller than this travel together, but for the first, which a run may wait for
_IDLE_S = 7 * 24 * 3600.0
_ENDING_S = 2.0  # for sessions to notice that this process ends
MOST_SESSIONS = 16


def serve(
    config: PartiesConfig,
    identity: Identity | None,
    *,
    once: bool = False,
    sessions: int = MOST_SESSIONS,
    insecure_plain: bool = False,
    max_bytes: int = MAX_PROGRAM_BYTES,
    device: Device = None,
    say: Say = silent,
) -> None:
    """Serves up to so many sessions at a time, each in a thread of its own, from when all of its parties are there.

    A session that fails, or is slow, whatever its parties sent, ends neither this process nor another session.

    `max_bytes` bounds the values of a program with what is dealt for them, in each session; a larger one is refused.
    `device`: what is computed on (`protocols.devices.chosen`); the parties see nothing of it.

    With `once`, serves the first session alone, and raises what ended it if that was an error. Raises ConfigError.
    """
    kernels.keep_freed_memory()
    here = _Here(max_bytes, chosen(device))
    reception = Reception(DEALER, list(config.parties), config, identity, most=sessions, insecure_plain=insecure_plain)
    with closing(reception):
        if once:
            gathering = reception.next(lambda gathering: "", config.timeouts.connect_s, say)
            reception.close()
            _serve_one(gathering, say, here)
            return
        serving = _Serving(sessions, reception.look_again)
        try:
            while True:
                try:
                    gathering = reception.next(serving.obstacle, say=say)
                except PeerError as error:
                    say(f"session failed: {summary(error)}")
                else:
                    serving.begin(gathering, say, here)
        finally:
            serving.end()


@dataclass(frozen=True)
class _Here:
    """What every session of this process has: the bound on a program, and what is computed on."""

    max_bytes: int
    device: torch.device


@dataclass
class _Serving:
    """The sessions that are being served, each by a thread; `ended` is called when there is one less."""

    most: int
    ended: Callable[[], None]
    _running: dict[tuple[int, bytes], tuple[threading.Thread, Gathering]] = field(default_factory=dict)

    def obstacle(self, gathering: Gathering) -> str:
        """Why this one cannot begin now; empty where it can."""
        if gathering.key in self._running:
            return f"the dealer still serves this session of lane {gathering.lane}"
        return (
            f"the dealer serves {self.most} sessions, and no more at a time" if len(self._running) >= self.most else ""
        )

    def begin(self, gathering: Gathering, say: Say, here: _Here) -> None:
        """Serves one more."""

        def serve_it() -> None:
            try:
                _serve_one(gathering, say, here)
            except Exception as error:
                _of_lane(gathering, say)(f"session failed: {summary(error)}")
            finally:
                del self._running[gathering.key]
                self.ended()

        thread = threading.Thread(target=serve_it, daemon=True, name=f"deal-{gathering.lane}")
        self._running[gathering.key] = thread, gathering
        thread.start()

    def end(self) -> None:
        """This process ends: so do the links, under the threads that use them."""
        running = list(self._running.values())
        for _, gathering in running:
            for link in gathering.links.values():
                link.interrupt()
        for thread, _gathering in running:
            thread.join(_ENDING_S)


def _of_lane(gathering: Gathering, say: Say) -> Say:
    return (lambda text: say(f"lane {gathering.lane}: {text}")) if gathering.lane else say


def _serve_one(gathering: Gathering, say: Say, here: _Here) -> None:
    """Serves one session to its end; tells its parties of an error, and raises it."""
    say = _of_lane(gathering, say)
    try:
        deal_session(gathering.links, say, here.max_bytes, here.device)
    except Exception as error:
        gathering.abort(error)
        raise
    say("session ended")


def deal_session(
    links: Mapping[str, Link], say: Say, max_bytes: int = MAX_PROGRAM_BYTES, device: torch.device = CPU
) -> None:
    """One session over open links: compares the programs, hands out keys, deals on request; or an alignment of ids."""
    texts = {n: link.receive(PROGRAM, max_bytes=MAX_TEXT_BYTES).numpy().tobytes() for n, link in links.items()}
    if any(map(is_request, texts.values())):
        asked = deal_alignment(links, texts)
        say(f"alignment of {asked.asker} and {asked.answerer}: {asked.bins} bins")
        _close(links)
        return
    programs = _agreed_programs(texts, max_bytes)
    header, graph = programs[0]
    keys = {name: new_key() for name in header.parties}
    for name, link in links.items():
        link.send(STREAM_KEY, [keys[name]])
    masks = {name: _table_keys(link, graph, header.parties) for name, link in links.items()}
    tables = table_streams(graph, header.parties, lambda name, owner: Stream(masks[name][owner], device))
    say(f"session of {', '.join(header.parties)}: {' and '.join(str(len(g.nodes)) for _, g in programs)} nodes")
    streams = {name: Stream(key, device) for name, key in keys.items()}
    dealing = FamilyDealing([Dealing(each, header.parties, streams, tables) for _, each in programs])
    pump = Pump(list(links.values()))
    try:
        _deal_on_request(dealing, links[header.parties[-1]], pump)
    finally:
        pump.close()
    _close(links)


def _close(links: Mapping[str, Link]) -> None:
    for link in links.values():
        link.close()


def _table_keys(link: Link, graph: Graph, parties: Sequence[str]) -> dict[str, bytes]:
    """The keys of a party's shares of the masks of rows that are shared once, by owner."""
    owners = keys_to_hand(graph, parties, link.peer)
    keys = link.receive(TABLE_KEY, KEY_BYTES * len(owners)).numpy().tobytes() if owners else b""
    return {owner: keys[at * KEY_BYTES : (at + 1) * KEY_BYTES] for at, owner in enumerate(owners)}


def _deal_on_request(dealing: FamilyDealing, asks: Link, pump: Pump) -> None:
    """Deals until the last party ends the session. Every wait also notices a party that fails, or that is gone.

    The parties may keep the dealer waiting between two runs for as long as all of them say that they are there.
    """
    last: int | None = None
    asked: deque[tuple[int, int, int]] = deque()
    while True:
        if not asked:
            _hear(asks, pump, asked)
        epoch, first, what = asked.popleft()
        if what == END:
            return
        _check_epoch(asks.peer, epoch, what, last)
        _check_program(asks.peer, first, what, len(dealing))
        last = epoch
        posted, least = 0, min(FIRST_PORTION_BYTES, _SEND_BYTES)
        phase: Phase = "load" if what == DEAL_LOAD else "run"
        made = map(_in_main_memory, dealing.by_portion(epoch, phase, first))
        for dealt in pipelined(made, _dealt_bytes, _AHEAD_BYTES):
            for node, shares in dealt:
                asks.post(Label(epoch, node, Purpose.DEAL), shares)
            posted += _dealt_bytes(dealt)
            if posted < least:
                continue
            posted, least = 0, min(2 * least, _SEND_BYTES)
            pump.run(_IDLE_S, asks.receive_s)
            asks.peek()
            if asks.arrived:
                _hear(asks, pump, asked)
                if asked[-1][2] == END:  # it needs no more of this
                    return
        pump.run(_IDLE_S, asks.receive_s)


def _hear(asks: Link, pump: Pump, asked: deque[tuple[int, int, int]]) -> None:
    """The next request, behind those that wait. Raises BadFrame where too many do."""
    asks.expect(Expected(None, REQUEST.size, False, (Purpose.REQUEST,)))
    pump.run(_IDLE_S, asks.receive_s)
    label, payload = asks.take()
    asked.append(_request(asks.peer, label, payload.numpy().tobytes()))
    if len(asked) > MOST_ASKED + 1:
        what, why = f"party {asks.peer!r} asked for more than may wait", f"at most {MOST_ASKED} requests do"
        raise BadFrame(asks.peer, explain(what, why=why, fix="use the same version at all parties"))


def _in_main_memory(dealt: Dealt) -> Dealt:
    sent = iter(to_host([share for _, shares in dealt for share in shares]))
    return [(node, [next(sent) for _ in shares]) for node, shares in dealt]


def _dealt_bytes(dealt: Dealt) -> int:
    return sum(share.numel() * share.element_size() for _, shares in dealt for share in shares)


def _check_epoch(peer: str, epoch: int, what: int, last: int | None) -> None:
    """Weights first, then runs on these weights; nothing twice. Raises BadFrame."""
    if last is not None and epoch <= last:
        problem, why = f"epoch {epoch} again, after epoch {last}", "correlated randomness is dealt once"
    elif epoch >= EPOCHS:
        problem, why = f"epoch {epoch}", "no key has so many"
    elif what == DEAL_RUN and last is None:
        problem, why = f"run {epoch} without its weights", "the masks of the weights are made first"
    else:
        return
    raise BadFrame(peer, explain(f"party {peer!r} asked for {problem}", why=why, fix="start a new session"))


def _check_program(peer: str, which: int, what: int, programs: int) -> None:
    """Raises BadFrame for a run of a program that the session does not have."""
    if what == DEAL_RUN and which >= programs:
        problem, why = f"a run of program {which}", f"the session has {programs}, counted from 0"
        raise BadFrame(peer, explain(f"party {peer!r} asked for {problem}", why=why, fix="start a new session"))


def _request(peer: str, label: Label, payload: bytes) -> tuple[int, int, int]:
    if len(payload) == REQUEST.size:
        epoch, first, what = REQUEST.unpack(payload)
        if epoch == label.epoch and what in (DEAL_RUN, DEAL_LOAD, END):
            return epoch, first, what
    raise BadFrame(peer, explain(f"party {peer!r} sent a damaged request", fix="use the same version at all parties"))


def _agreed_programs(texts: dict[str, bytes], max_bytes: int) -> list[tuple[Header, Graph]]:
    """What all parties run: one program, or several with the same load."""
    first = next(iter(texts))
    for name, text in texts.items():
        if text != texts[first]:
            raise Mismatch(
                name,
                explain(
                    f"parties {first!r} and {name!r} run different programs",
                    where="dealer, before dealing",
                    fix="run the same script with the same versions at all parties",
                ),
            )
    try:
        programs = parse_programs(texts[first].decode(), max_bytes=max_bytes)
    except UnicodeDecodeError:
        raise ProtocolError(explain("the parties' program cannot be read", why="it is no text")) from None
    except ProgramError as error:  # told whole to the parties: it quotes nothing but their own text
        told = "; ".join(line.strip() for line in str(error).splitlines())
        raise ProtocolError(f"the parties' program is refused: {told}") from None
    parties = [str(name) for name in programs[0][0].parties]
    if sorted(parties) != sorted(texts):
        raise Mismatch(
            first,
            explain(
                f"the program's parties are {', '.join(parties)}, the dealer serves {', '.join(texts)}",
                fix="use the same names in the program and in the dealer's parties file",
            ),
        )
    return programs
