"""What each party of a session in this process receives, word by word, over sessions with fresh keys.

A view is what a corrupted party could study: the parts of every opening and every dealt share it receives, what they
add up to with its own part (OPENED), and its own stream (OWN).
Shares of results are part of it with three parties or more; with two they follow from the result and the receiver's
own share, so they tell nothing new and need not look random.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from protocols.correlations import bit_mask_share, mask_share
from protocols.gates import Dealt
from protocols.prg import Stream, new_key
from securemodel.compiler.capture import model_state
from securemodel.compiler.ir import Node
from securemodel.compiler.rows import made_up_inputs, made_up_state
from securemodel.compiler.wire import sent_bits
from securemodel.engines.clear import ClearSide
from securemodel.engines.masked.party import OnlineParty
from securemodel.engines.masked.rounds import Round
from securemodel.engines.masked.serving import local_serving_walks
from securemodel.engines.masked.sources import Wanted
from securemodel.engines.masked.walk import local_walks
from securemodel.program import Program
from securemodel.sessions.serving import ServingSession
from securemodel.sessions.session import Session

FIRST, SPREAD = 1024, 256
"""Words of an opening that are looked at: the first ones, where a repeated mask repeats, and some from all the rest."""

OWN = "own stream"
OPENED = "opened"
RUNS = 2  # of each session, so that a mask that is used again in the next run is seen


@dataclass(frozen=True, order=True)
class Place:
    """Where a word comes from: its kind, epoch (0: the load), node and sender, and how many bits it has."""

    kind: str
    run: int
    node: int
    sender: str
    bits: int


@dataclass(frozen=True, repr=False)
class View:
    """What one party received in all sessions: for each place, uint64 [sessions, words].

    `scenario` [sessions] says which of the two sets of inputs and weights a session had. `all_words` counts what was
    received in one session, `words` what of it was kept.
    """

    party: str
    places: dict[Place, np.ndarray]
    scenario: np.ndarray
    words: int
    all_words: int


class _Watched(OnlineParty):
    """A party that keeps what it receives."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.seen: dict[Place, np.ndarray] = {}
        self.received = 0

    def keep(self, kind: str, epoch: int, node: int, sender: str, words: np.ndarray, bits: int) -> None:
        self.received += words.size * (kind not in (OWN, OPENED))
        self.seen[Place(kind, epoch, node, sender, bits)] = _sample(words)

    def _opened(self, node: Node, kept: Any, parts: dict[str, torch.Tensor], outputs: Any) -> Any:
        self._keep_parts(node, parts)
        value = super()._opened(node, kept, parts, outputs)
        self._keep_opened(node, value)
        return value

    def _open(
        self, made: Round, step: Any, env: dict, values: Any, lams: Any, received: dict[str, torch.Tensor]
    ) -> None:
        for (node, _), cuts in zip(step.talk, made.cuts, strict=True):
            self._keep_parts(node, {peer: received[peer][start:end] for peer, start, end in cuts})
        super()._open(made, step, env, values, lams, received)
        for node, _ in step.talk:
            self._keep_opened(node, env[node.id])

    def _keep_parts(self, node: Node, parts: dict[str, torch.Tensor]) -> None:
        if node.op == "reveal" and len(self.peers) == 1:
            return
        for sender, part in parts.items():
            bits = sent_bits(node)
            words = _words(part, bits, int(np.prod(node.shape)))
            if node.op == "positions":
                words, bits = _which_is_first(words), 8
            self.keep(node.op, self._epoch, node.id, sender, words, bits)
        if parts and node.op not in ("reveal", "positions"):
            share = bit_mask_share if node.op == "mask_bits" else mask_share
            own = share(self._stream, self._epoch, node.id, node.shape)
            self.keep(OWN, self._epoch, node.id, self.me, _words(own, 64, own.numel()), 64)

    def _keep_opened(self, node: Node, value: Any) -> None:
        if node.op in ("mask", "mask_bits"):
            whole, bits = value.m if node.op == "mask" else value.hat, sent_bits(node)
            self.keep(OPENED, self._epoch, node.id, node.op, _low(whole, bits), bits)


def _words(part: torch.Tensor, bits: int, count: int) -> np.ndarray:
    """The elements of what was received, as uint64; padding is left out."""
    raw = part.contiguous().reshape(-1).view(torch.uint8).numpy()[: count * bits // 8].reshape(count, bits // 8)
    out = np.zeros((count, 8), np.uint8)
    out[:, : bits // 8] = raw
    return out.reshape(-1).view(np.uint64)


def _low(whole: torch.Tensor, bits: int) -> np.ndarray:
    """The low bits of each element, which are all that is sent of it."""
    low = whole.contiguous().reshape(-1, 1).view(torch.uint8)[:, : bits // 8]
    return _words(low, bits, whole.numel())


def _which_is_first(positions: np.ndarray) -> np.ndarray:
    """Of pairs of positions side by side, which one is the larger, as words of 8 bits.

    These bits are coins where the positions are different and drawn at random, as single bits of positions are not.
    """
    pairs = positions[: len(positions) // 16 * 16].reshape(-1, 2)
    return np.packbits(pairs[:, 0] > pairs[:, 1]).astype(np.uint64)


def _sample(words: np.ndarray) -> np.ndarray:
    rest = words[FIRST:]
    return np.concatenate([words[:FIRST], rest[:: max(1, len(rest) // SPREAD)][:SPREAD]]).copy()


def views(program: Program, sessions: int, done: Callable[[int], None] = lambda count: None) -> list[View]:
    """The view of each party in so many sessions with each of two made-up sets of inputs and weights."""
    kept: dict[str, list[dict[Place, np.ndarray]]] = {name: [] for name in program.parties}
    totals: dict[str, int] = {}
    scenarios = [made_up(program, seed) for seed in (1, 2)]
    order = [index % 2 for index in range(2 * sessions)]
    for number, index in enumerate(order, 1):
        for name, party in _watched_session(program, *scenarios[index]).items():
            kept[name].append(party.seen)
            totals[name] = party.received
        done(number)
    out = []
    for name, seen in kept.items():
        places = {place: np.stack([trial[place] for trial in seen]) for place in sorted(seen[0])}
        words = sum(made.shape[1] for place, made in places.items() if place.kind not in (OWN, OPENED))
        out.append(View(name, places, np.array(order), words, totals[name]))
    return out


def made_up(program: Program, seed: int) -> tuple[torch.nn.Module, Sequence[torch.Tensor]]:
    """A model of the program's shape and inputs for it. The generator is seeded because nothing here is a secret."""
    generator = torch.Generator().manual_seed(seed)
    shapes = cast(torch.nn.Module, program.model)
    model = copy.deepcopy(shapes).to_empty(device="cpu")
    with torch.no_grad():
        made = made_up_state(shapes, generator)
        for name, tensor in model_state(model).items():
            tensor.copy_(made[name])
    return model.eval(), made_up_inputs(program.examples, generator)


def _watched_session(program: Program, model: torch.nn.Module, inputs: Sequence[torch.Tensor]) -> dict[str, _Watched]:
    """Loads and runs once, with keys of its own. Returns the parties, with what they kept."""
    parties: dict[str, _Watched] = {}

    def make(program: Program, me: str, *rest: Any) -> _Watched:
        parties[me] = _Watched(program, me, *rest)
        return parties[me]

    with _session(program, make) as session:
        walks = session.walks
        last, source = parties[program.parties[-1]], cast(Any, walks[program.parties[-1]].source)
        deal = source.dealt

        def dealt(epoch: int, wanted: Wanted, device: torch.device) -> list[Dealt]:
            made = deal(epoch, wanted, device)
            for (node, given), shares in zip(wanted, made, strict=True):
                for index, part in enumerate(given):
                    share = shares[part.name]
                    bits = 8 * (part.low or share.element_size())
                    last.keep("dealt", epoch, node, f"dealer {index} {part.name}", _low(share, bits), bits)
            return made

        source.dealt = dealt
        session.load(program, model)
        for run in range(1, RUNS + 1):
            if isinstance(session, ServingSession):
                _run_shares(session, run, parties, client_shares(program, inputs))
            else:
                session.run(*inputs)
    return parties


def _run_shares(
    session: ServingSession, run: int, parties: Mapping[str, _Watched], given: Mapping[str, list[torch.Tensor]]
) -> None:
    """A run on a client's shares, which are what each party sees first."""
    for name, shares in given.items():
        for index, share in enumerate(shares):
            parties[name].keep("share", run, index, "client", _words(share, 64, share.numel()), 64)
    rows = session.program.header.rows
    session.run_shares(rows, given, rows, bytes(32))


def _session(program: Program, make: Callable[..., _Watched]) -> Session:
    """A session of parties that are watched; of a program for clients, one that takes shares."""
    if not program.header.serves:
        return Session(program, local_walks(program, make_party=make))
    programs = {program.header.rows: program}
    return ServingSession(programs, program.digest, local_serving_walks(programs, make))


def client_shares(program: Program, inputs: Sequence[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    """What a client who has these inputs hands each party, with fresh random numbers."""
    stream, side, names = Stream(new_key()), ClearSide(program, program.parties[0]), program.parties
    side.set_inputs(inputs)
    given: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for node in (node for node in program.graph.nodes if node.op == "client_input"):
        shares = [mask_share(stream, at, node.id, node.shape) for at in range(1, len(names))]
        whole = side.encoded_input(node)
        for name, share in zip(names, [whole - sum(shares, torch.zeros_like(whole)), *shares], strict=True):
            given[name].append(share)
    return given
