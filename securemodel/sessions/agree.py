"""What parties compare before anything secret is sent, and the keys that each two of them share."""

from __future__ import annotations

import hashlib
import json

from protocols.channel import Channel
from protocols.errors import DecodeError, explain
from protocols.prg import KEY_BYTES, Stream, new_key
from protocols.strict import strict_fields
from securemodel import version
from securemodel.engines.labels import AGREE
from securemodel.engines.masked.store import Store
from securemodel.errors import Mismatch
from securemodel.invocation import current

_TEXT_BYTES = 1024


def agree(
    digest: str,
    me: str,
    channel: Channel,
    store: Store | None,
    skipped_runs: int = 0,
    ahead: str = "",
    tuning: str = "",
) -> dict[str, Stream]:
    """Compares the program's digest, versions, script and store with all peers; returns the stream shared with each peer.

    Parties that used up different numbers of a store's runs go on after the largest, unless one would have to give up
    more than `skipped_runs` for it. `ahead`: what is prepared before it is asked for, where that must be the same. `tuning`:
    a digest of the measured ranges in the program, so that who compiled with others is told. Raises Mismatch.
    """
    mine = {
        "program": digest,
        "tuning": tuning,
        "version of securemodel": version.__version__,
        "script": current().script,
        "--protocol": current().protocol or "",
        "--lanes": str(current().lanes),
        "store": store.id if store else "",
        "runs prepared ahead": ahead,
    }
    text = json.dumps({**mine, "next": store.next_run if store else 0}).encode().ljust(_TEXT_BYTES)
    halves = {peer: new_key() for peer in channel.peers}
    sizes = dict.fromkeys(channel.peers, _TEXT_BYTES + KEY_BYTES)
    received = channel.exchange(AGREE, {peer: [text, halves[peer]] for peer in channel.peers}, sizes)
    streams, nexts = {}, {}
    for peer, payload in received.items():
        data = payload.numpy().tobytes()
        nexts[peer] = _check(mine, data[:_TEXT_BYTES], peer, me, store)
        theirs = data[_TEXT_BYTES:]
        both = halves[peer] + theirs if me < peer else theirs + halves[peer]
        streams[peer] = Stream(hashlib.sha256(b"zero shares" + channel.session + both).digest())
    if store:
        _go_on_together(store, nexts, skipped_runs)
    return streams


def _go_on_together(store: Store, nexts: dict[str, int], skipped_runs: int) -> None:
    peer = max(nexts, key=nexts.__getitem__)
    skipped = nexts[peer] - store.next_run
    if skipped > skipped_runs:
        raise Mismatch(
            peer,
            explain(
                f"party {peer!r} says that run {nexts[peer]} of the store is the next, and here it is run {store.next_run}",
                where="agreement before the first message",
                why=f"going on together would give up {skipped} unused runs, and at most {skipped_runs} may be",
                fix=f"if that party did use them, set skipped_runs = {skipped} under [me] in the parties file",
            ),
        )
    store.start_at(nexts[peer])


def _check(mine: dict[str, str], text: bytes, peer: str, me: str, store: Store | None) -> int:
    """The next unused run of a peer whose statement is ours. Raises Mismatch."""
    try:
        theirs = strict_fields(text, "a statement", {**dict.fromkeys(mine, str), "next": int}, _TEXT_BYTES)
        differ, after = [name for name, value in mine.items() if theirs[name] != value], theirs["next"]
    except DecodeError:
        differ, after = ["version of securemodel"], 0
    if not differ and store and not 1 <= after <= store.runs + 1:
        differ = ["store"]
    if differ:
        raise Mismatch(
            peer,
            explain(
                f"party {peer!r} does not run what {me!r} runs: different {' and '.join(differ)}",
                where="agreement before the first message",
                why="all parties must run the same program, made by the same script and the same versions",
                fix="compare the scripts, `pip list`, Program.digest and the stores of both parties",
            ),
        )
    return after
