"""Where parties go on with a long job after an interruption: who keeps results counts them, and the smallest rules."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from protocols.channel import Channel
from protocols.errors import explain
from securemodel.errors import Mismatch
from securemodel.runtime.labels import GO_ON

_TEXT_BYTES = 256


@dataclass(frozen=True)
class Kept:
    """What one party has of a job: its identifier (empty: none yet), rows finished, rows in all (0: not known here).

    `results` is false for a party that only gives inputs: it knows the job, and has nothing to lose.
    """

    job: str = ""
    done: int = 0
    rows: int = 0
    results: bool = True


def agree_on_start(channel: Channel, mine: Kept | None) -> Kept:
    """The job all parties go on with, from its first row that somebody still needs, and its rows in all.

    `mine` is None for a party that gives and keeps nothing. Where nobody has results, a new job begins. All
    parties learn these numbers, and nothing about the rows. Raises Mismatch when they belong to different jobs.
    """
    text = json.dumps(asdict(mine) if mine else None).encode().ljust(_TEXT_BYTES)
    received = channel.exchange(
        GO_ON, {peer: [text] for peer in channel.peers}, dict.fromkeys(channel.peers, _TEXT_BYTES)
    )
    counts = {peer: _read(peer, payload.numpy().tobytes()) for peer, payload in received.items()}
    counts[channel.me] = mine
    keeping = {name: kept for name, kept in sorted(counts.items()) if kept}
    rows = {name: kept.rows for name, kept in keeping.items() if kept.rows}
    if len(set(rows.values())) > 1:
        said = ", ".join(f"{name!r} {count}" for name, count in rows.items())
        fix = "give the files that belong together; for new ones, name another output"
        raise _mismatch(channel, keeping, f"the parties count different numbers of rows: {said}", fix)
    total = max(rows.values(), default=0)
    holding = [kept for kept in keeping.values() if kept.results]
    if not any(kept.done for kept in holding):
        return Kept(hashlib.sha256(b"job" + channel.session).hexdigest()[:16], 0, total)
    if len({kept.job for kept in keeping.values()}) > 1:
        said = ", ".join(f"{name!r} {kept.done} rows of {kept.job or 'a new job'}" for name, kept in keeping.items())
        fix = "give every party its output of the same job, or a new output at every party to begin again"
        raise _mismatch(channel, keeping, f"the parties have results of different jobs: {said}", fix)
    return Kept(holding[0].job, min(kept.done for kept in holding), total)


def _read(peer: str, text: bytes) -> Kept | None:
    try:
        fields = json.loads(text)
        if fields is None:
            return None
        kept = Kept(str(fields["job"]), int(fields["done"]), int(fields["rows"]), bool(fields["results"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        kept = Kept(done=-1)
    if not 0 <= kept.done <= kept.rows or len(kept.job) > 64:
        what, fix = f"party {peer!r} sent no count of its rows", "run the same version and command at every party"
        raise Mismatch(peer, explain(what, where="before the first batch", fix=fix))
    return kept


def _mismatch(channel: Channel, keeping: dict[str, Kept], what: str, fix: str) -> Mismatch:
    peer = next(name for name in keeping if name != channel.me)
    return Mismatch(peer, explain(what, where="before the first batch", why="rows belong to one job", fix=fix))
