"""The dealer process: it knows the program's text, makes correlations, and sees no data and no messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from protocols import kernels
from protocols.channel import Label, Link, Purpose, listen_for
from protocols.channel.frame import Expected
from protocols.channel.link import Pump
from protocols.errors import BadFrame, ConfigError, Mismatch, ProtocolError, explain, public_reason, summary
from protocols.identity import DEALER, Identity, PartiesConfig
from protocols.prg import EPOCHS, KEY_BYTES, Stream, new_key
from protocols.psi.dealing import deal as deal_alignment
from protocols.psi.dealing import is_request
from securemodel.compiler.ir import Graph, Header
from securemodel.compiler.ops import MAX_PROGRAM_BYTES
from securemodel.compiler.reading import MAX_TEXT_BYTES, parse_program
from securemodel.engines.labels import PROGRAM, STREAM_KEY, TABLE_KEY
from securemodel.engines.masked.dealing import Dealing
from securemodel.engines.masked.pipeline import pipelined
from securemodel.engines.masked.sources import DEAL_LOAD, DEAL_RUN, END, REQUEST
from securemodel.engines.masked.tables import keys_to_hand, table_streams
from securemodel.errors import ProgramError

_AHEAD_BYTES = 64 << 20  # made while earlier shares are being sent
_SEND_BYTES = 1 << 18  # messages smaller than this travel together
_IDLE_S = 7 * 24 * 3600.0


def serve(
    config: PartiesConfig,
    identity: Identity | None,
    *,
    once: bool = False,
    insecure_plain: bool = False,
    max_bytes: int = MAX_PROGRAM_BYTES,
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Serves sessions one after the other: waits for all parties, deals until they end.

    A session that fails, whatever its parties sent, ends neither this process nor the next session.

    `max_bytes` bounds the values of a program with what is dealt for them; a larger one is refused.

    With `once`, returns after the first session, and raises what ended it if that was an error.
    """
    kernels.keep_freed_memory()
    while True:
        idle_s = 0.0 if once else _IDLE_S
        links: dict[str, Link] = {}
        try:
            links = listen_for(
                DEALER, list(config.parties), config, identity, idle_s=idle_s, insecure_plain=insecure_plain
            )
            deal_session(links, say, max_bytes)
            say("session ended")
        except Exception as error:
            for link in links.values():
                link.abort(public_reason(error))
            if once or isinstance(error, ConfigError):
                raise
            say(f"session failed: {summary(error)}")
        if once:
            return


def deal_session(links: dict[str, Link], say: Callable[[str], None], max_bytes: int = MAX_PROGRAM_BYTES) -> None:
    """One session over open links: compares the programs, hands out keys, deals on request; or an alignment of ids."""
    texts = {n: link.receive(PROGRAM, max_bytes=MAX_TEXT_BYTES).numpy().tobytes() for n, link in links.items()}
    if any(map(is_request, texts.values())):
        asked = deal_alignment(links, texts)
        say(f"alignment of {asked.asker} and {asked.answerer}: {asked.bins} bins")
        _close(links)
        return
    header, graph = _agreed_program(texts, max_bytes)
    keys = {name: new_key() for name in header.parties}
    for name, link in links.items():
        link.send(STREAM_KEY, [keys[name]])
    masks = {name: _table_keys(link, graph, header.parties) for name, link in links.items()}
    tables = table_streams(graph, header.parties, lambda name, owner: Stream(masks[name][owner]))
    say(f"session of {', '.join(header.parties)}: {len(graph.nodes)} nodes")
    dealing = Dealing(graph, header.parties, {name: Stream(key) for name, key in keys.items()}, tables)
    pump = Pump(list(links.values()))
    try:
        _deal_on_request(dealing, links[header.parties[-1]], pump)
    finally:
        pump.close()
    _close(links)


def _close(links: dict[str, Link]) -> None:
    for link in links.values():
        link.close()


def _table_keys(link: Link, graph: Graph, parties: Sequence[str]) -> dict[str, bytes]:
    """The keys of a party's shares of the masks of rows that are shared once, by owner."""
    owners = keys_to_hand(graph, parties, link.peer)
    keys = link.receive(TABLE_KEY, KEY_BYTES * len(owners)).numpy().tobytes() if owners else b""
    return {owner: keys[at * KEY_BYTES : (at + 1) * KEY_BYTES] for at, owner in enumerate(owners)}


def _deal_on_request(dealing: Dealing, asks: Link, pump: Pump) -> None:
    """Deals until the last party ends the session. Every wait also notices a party that fails, or that is gone.

    The parties may keep the dealer waiting between two runs for as long as all of them say that they are there.
    """
    last: int | None = None
    silence_s = asks.receive_s
    while True:
        asks.expect(Expected(None, REQUEST.size, False, (Purpose.REQUEST,)))
        pump.run(_IDLE_S, silence_s)
        label, payload = asks.take()
        epoch, first, what = _request(asks.peer, label, payload.numpy().tobytes())
        if what == END:
            return
        _check_epoch(asks.peer, epoch, what, last)
        last = epoch
        posted = 0
        for node, shares in pipelined(
            dealing.deal(epoch, "load" if what == DEAL_LOAD else "run", first), _share_bytes, _AHEAD_BYTES
        ):
            asks.post(Label(epoch, node, Purpose.DEAL), shares)
            posted += _share_bytes((node, shares))
            if posted < _SEND_BYTES:
                continue
            posted = 0
            pump.run(_IDLE_S, silence_s)
            asks.peek()
            if asks.arrived:  # the party ends the session, and needs no more of this
                break
        pump.run(_IDLE_S, silence_s)


def _share_bytes(dealt: tuple[int, list[torch.Tensor]]) -> int:
    return sum(share.numel() * share.element_size() for share in dealt[1])


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


def _request(peer: str, label: Label, payload: bytes) -> tuple[int, int, int]:
    if len(payload) == REQUEST.size:
        epoch, first, what = REQUEST.unpack(payload)
        if epoch == label.epoch and what in (DEAL_RUN, DEAL_LOAD, END):
            return epoch, first, what
    raise BadFrame(peer, explain(f"party {peer!r} sent a damaged request", fix="use the same version at all parties"))


def _agreed_program(texts: dict[str, bytes], max_bytes: int) -> tuple[Header, Graph]:
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
        header, graph = parse_program(texts[first].decode(), max_bytes=max_bytes)
    except UnicodeDecodeError:
        raise ProtocolError(explain("the parties' program cannot be read", why="it is no text")) from None
    except ProgramError as error:  # told whole to the parties: it quotes nothing but their own text
        told = "; ".join(line.strip() for line in str(error).splitlines())
        raise ProtocolError(f"the parties' program is refused: {told}") from None
    parties = [str(name) for name in header.parties]
    if sorted(parties) != sorted(texts):
        raise Mismatch(
            first,
            explain(
                f"the program's parties are {', '.join(parties)}, the dealer serves {', '.join(texts)}",
                fix="use the same names in the program and in the dealer's parties file",
            ),
        )
    return header, graph
