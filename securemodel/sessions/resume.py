"""Whether the rows of all parties belong together, and where they go on with a long job after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np

from protocols.channel import Channel, Label
from protocols.equality import POINT_BYTES, Equality
from protocols.errors import BadFrame, DecodeError, ProtocolError, explain
from protocols.strict import strict_json, typed
from securemodel.engines.labels import ANSWERS, BATCHES, BEGUN, GO_ON, POINTS
from securemodel.errors import Mismatch

_TEXT_BYTES = 256
_KINDS = {"job": str, "done": int, "rows": int, "results": bool, "ids": bool}
_MOST_ROWS = 1 << 40


@dataclass(frozen=True)
class Kept:
    """What one party has of a job: its identifier (empty: none yet), rows finished, rows of its input (0: it has none).

    `results` is false for a party that only gives inputs: it knows the job, and has nothing to lose. `ids` says
    whether it compares the ids of its rows.
    """

    job: str = ""
    done: int = 0
    rows: int = 0
    results: bool = True
    ids: bool = False


@dataclass(frozen=True)
class Batches:
    """By batch: whose results a party lacks, and which of its inputs are others than when the job was last run."""

    missing: np.ndarray
    changed: np.ndarray


@dataclass(frozen=True)
class Start:
    """What all parties agreed on: the job, rows in all, batches to run, and which of them have other inputs now."""

    job: str
    rows: int
    todo: np.ndarray = field(repr=False)
    changed: np.ndarray = field(repr=False)


def agree_on_start(
    channel: Channel,
    mine: Kept | None,
    size: int,
    batches: Callable[[int], Batches] | None = None,
    ids: bytes = b"",
) -> Start:
    """The job all parties go on with: the batches of `size` rows that somebody still needs.

    `mine` is None for a party that gives and keeps nothing; `batches` says what it has of a job of so many batches.
    Where nobody has results, a new job begins. All parties learn the numbers of rows and which batches are run, and
    of ids only whether they are the same in the same order. Raises Mismatch when rows do not belong together.
    """
    keeping = _keeping(channel, mine)
    rows = {name: kept.rows for name, kept in keeping.items() if kept.rows}
    if len(set(rows.values())) > 1:
        said = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        fix = "give the files that belong together"
        raise _mismatch(channel, keeping, f"the parties count different numbers of rows: {said}", fix)
    _compare_ids(channel, keeping, rows, ids)
    total = max(rows.values(), default=0)
    count = -(-total // size)
    holding = [kept for kept in keeping.values() if kept.results]
    if not any(kept.done for kept in holding):
        job = hashlib.sha256(b"job" + channel.session).hexdigest()[:16]
        return Start(job, total, np.ones(count, bool), np.zeros(count, bool))
    if len({kept.job for kept in keeping.values()}) > 1:
        said = ", ".join(f"{name!r} {kept.done} rows of {kept.job or 'a new job'}" for name, kept in keeping.items())
        fix = "give every party its output of the same job, or a new output at every party to begin again"
        raise _mismatch(channel, keeping, f"the parties have results of different jobs: {said}", fix)
    own = batches(count) if batches else Batches(np.zeros(count, bool), np.zeros(count, bool))
    lacking = np.packbits(np.concatenate([own.missing, own.changed])).tobytes()
    missing, changed = own.missing.copy(), own.changed.copy()
    for data in _exchanged(channel, BATCHES, lacking, len(lacking)).values():
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=2 * count).astype(bool)
        missing |= bits[:count]
        changed |= bits[count:]
    return Start(holding[0].job, total, missing | changed, changed)


def all_begun(channel: Channel) -> None:
    """Waits until all parties have noted what `agree_on_start` said: from here on a batch may be run."""
    _exchanged(channel, BEGUN, b"\1", 1)


def _keeping(channel: Channel, mine: Kept | None) -> dict[str, Kept]:
    """What the parties keep, by name, where they keep anything."""
    text = json.dumps(asdict(mine) if mine else None).encode().ljust(_TEXT_BYTES)
    counts = {peer: _read(peer, data) for peer, data in _exchanged(channel, GO_ON, text, _TEXT_BYTES).items()}
    counts[channel.me] = mine
    return {name: kept for name, kept in sorted(counts.items()) if kept}


def _compare_ids(channel: Channel, keeping: dict[str, Kept], rows: dict[str, int], ids: bytes) -> None:
    """Raises Mismatch unless all parties that have rows, and compare ids, have the same ids in the same order."""
    asking = [name for name in rows if keeping[name].ids]
    silent = [name for name in rows if not keeping[name].ids]
    if not asking or len(rows) == 1:
        return
    if silent:
        what = f"{_said(asking)} would compare the ids of the rows, {_said(silent)} would not"
        raise _mismatch(channel, keeping, what, "give --id at every party that has rows, or at none")
    others = [name for name in asking if name != channel.me] if channel.me in asking else []
    sides = {peer: Equality(ids, channel.session, channel.me, peer) for peer in others}
    points = _sent(channel, POINTS, {peer: side.first for peer, side in sides.items()})
    answers = _sent(channel, ANSWERS, {peer: _answer(peer, sides[peer], point) for peer, point in points.items()})
    differ = [peer for peer, side in sides.items() if not side.is_equal(answers[peer])]
    if differ:
        what = f"the ids of {channel.me!r} and {_said(differ)} are not the same in the same order"
        raise _mismatch(
            channel, keeping, what, "bring the rows of all files into one order, and leave out what others lack"
        )


def _answer(peer: str, side: Equality, point: bytes) -> bytes:
    try:
        return side.second(point)
    except ProtocolError as error:
        raise BadFrame(peer, str(error)) from None


def _said(names: list[str]) -> str:
    return " and ".join(map(repr, names))


def _exchanged(channel: Channel, label: Label, data: bytes, size: int) -> dict[str, bytes]:
    """The same to everybody, and as much from everybody."""
    received = channel.exchange(label, {peer: [data] for peer in channel.peers}, dict.fromkeys(channel.peers, size))
    return {peer: payload.numpy().tobytes() for peer, payload in received.items()}


def _sent(channel: Channel, label: Label, points: dict[str, bytes]) -> dict[str, bytes]:
    sends = {peer: [point] for peer, point in points.items()}
    received = channel.exchange(label, sends, dict.fromkeys(points, POINT_BYTES))
    return {peer: payload.numpy().tobytes() for peer, payload in received.items()}


def _read(peer: str, text: bytes) -> Kept | None:
    what = f"what party {peer!r} says of its rows"
    try:
        value = strict_json(text, what)
        kept = None if value is None else Kept(**typed(value, what, _KINDS))
    except DecodeError:
        kept = Kept(done=-1)
    if kept and not (0 <= kept.done <= _MOST_ROWS and 0 <= kept.rows <= _MOST_ROWS and len(kept.job) <= 64):
        what, fix = f"party {peer!r} sent no count of its rows", "run the same version and command at every party"
        raise Mismatch(peer, explain(what, where="before the first batch", fix=fix))
    return kept


def _mismatch(channel: Channel, keeping: dict[str, Kept], what: str, fix: str) -> Mismatch:
    peer = next(name for name in keeping if name != channel.me)
    return Mismatch(
        peer,
        explain(
            what, where="before the first batch", why="row by row, the files of all parties are about the same", fix=fix
        ),
    )
