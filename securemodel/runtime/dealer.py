"""The dealer process: it knows the program's text, makes correlations, and sees no data and no messages."""

from __future__ import annotations

from typing import Callable, Optional

from protocols.channel import Label, Link, Purpose, listen_for
from protocols.errors import BadFrame, Mismatch, PeerAbsent, ProtocolError, explain, summary
from protocols.identity import DEALER, Identity, PartiesConfig
from protocols.prg import Stream, new_key
from securemodel.compiler.ir import Graph, Header, parse_program
from securemodel.errors import ProgramError, SecureModelError
from securemodel.runtime.dealing import Dealing
from securemodel.runtime.sources import DEAL_LOAD, DEAL_RUN, END, REQUEST

MAX_PROGRAM_BYTES = 64 << 20
_IDLE_S = 7 * 24 * 3600.0


def serve(
    config: PartiesConfig,
    identity: Optional[Identity],
    *,
    once: bool = False,
    insecure_plain: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serves sessions one after the other: waits for all parties, deals until they end.

    With `once`, returns after the first session, and raises what ended it if that was an error.
    """
    while True:
        try:
            links = listen_for(DEALER, list(config.parties), config, identity, insecure_plain=insecure_plain)
        except PeerAbsent as error:
            if once:
                raise
            if "nobody came" not in str(error):
                say(summary(error))
            continue
        try:
            deal_session(links, say)
            say("session ended")
        except SecureModelError as error:
            for link in links.values():
                link.abort(summary(error))
            if once:
                raise
            say(f"session failed: {summary(error)}")
        if once:
            return


def deal_session(links: dict[str, Link], say: Callable[[str], None]) -> None:
    """One session over open links: compares the programs, hands out keys, deals on request."""
    header, graph = _agreed_program(links)
    keys = {name: new_key() for name in header.parties}
    for name, link in links.items():
        link.send(Label(0, 0, Purpose.SEED), [keys[name]])
    say(f"session of {', '.join(header.parties)}: {len(graph.nodes)} nodes")
    dealing = Dealing(graph, header.parties, {name: Stream(key) for name, key in keys.items()})
    asks, last = links[header.parties[-1]], -1
    while True:
        label, payload = asks.receive_next((Purpose.REQUEST,), REQUEST.size, timeout_s=_IDLE_S)
        epoch, what = _request(asks.peer, label, payload.numpy().tobytes())
        if what == END:
            break
        if epoch <= last:
            raise BadFrame(
                asks.peer,
                explain(
                    f"party {asks.peer!r} asked for epoch {epoch} again",
                    why="correlated randomness is dealt once",
                    fix="start a new session",
                ),
            )
        last = epoch
        for node, shares in dealing.deal(epoch, what == DEAL_LOAD):
            asks.send(Label(epoch, node, Purpose.DEAL), shares)
    for link in links.values():
        link.close()


def _request(peer: str, label: Label, payload: bytes) -> tuple[int, int]:
    if len(payload) == REQUEST.size:
        epoch, what = REQUEST.unpack(payload)
        if epoch == label.epoch and what in (DEAL_RUN, DEAL_LOAD, END):
            return epoch, what
    raise BadFrame(peer, explain(f"party {peer!r} sent a damaged request", fix="use the same version at all parties"))


def _agreed_program(links: dict[str, Link]) -> tuple[Header, Graph]:
    texts = {}
    for name, link in links.items():
        received = link.receive(Label(0, 0, Purpose.CONTROL), max_bytes=MAX_PROGRAM_BYTES)
        texts[name] = received.numpy().tobytes()
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
        header, graph = parse_program(texts[first].decode())
    except (ProgramError, UnicodeDecodeError) as error:
        raise ProtocolError(explain("the parties' program cannot be read", why=str(error))) from error
    if set(header.parties) != set(links):
        raise Mismatch(
            first,
            explain(
                f"the program's parties are {', '.join(header.parties)}, the dealer serves {', '.join(links)}",
                fix="use the same names in the program and in the dealer's parties file",
            ),
        )
    return header, graph
