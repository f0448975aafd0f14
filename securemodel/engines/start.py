"""The first bytes of a phase: whether all parties run the same program on the same public values, and as many rows."""

from __future__ import annotations

from protocols.errors import BadFrame, explain
from securemodel.compiler.wire import START
from securemodel.engines.walk import Message, Rows
from securemodel.errors import InputError, Mismatch
from securemodel.program import Program


def start_bytes(digest: bytes, rows: Rows) -> bytes:
    """What a party says: the digest of the program and of its public values, and its rows."""
    return START.pack(digest, rows.now, rows.left, 0)


def agreed_rows(program: Program, me: str, digest: bytes, mine: Rows, received: Message, least: int = 0) -> Rows:
    """The rows that count, from the messages that begin with what each peer says. `least`: rows that each announces.

    Raises Mismatch for another digest, BadFrame for impossible numbers of rows, InputError for different ones.
    """
    given = {me: mine} if mine.now else {}
    size = program.header.rows
    for peer, payload in received.items():
        theirs, now, left, _ = START.unpack(payload[: START.size].numpy().tobytes())
        if theirs != digest:
            other = "other requests in this run" if program.header.serves else "other public weights or inputs"
            raise Mismatch(
                peer,
                explain(
                    f"party {peer!r} runs another program than {me!r}, or has {other}",
                    where="first message of a phase",
                    why="all parties must run the same program on the same public values",
                    fix="run the same script with the same versions and public values everywhere; "
                    "compare Program.digest",
                ),
            )
        if not least <= now <= size or (left and now < size):
            raise BadFrame(
                peer,
                explain(
                    f"party {peer!r} announced {now} rows, and {left} to follow",
                    where="first message of a phase",
                    why=f"the program takes {size} rows at a time",
                    fix="run the same version at every party",
                ),
            )
        if now:
            given[peer] = Rows(now, left)
    if len(set(given.values())) > 1:
        counts = ", ".join(f"{name} {rows.now + rows.left}" for name, rows in sorted(given.items()))
        raise InputError(
            explain(
                f"the parties gave different numbers of rows: {counts}",
                where="first message of a run",
                why="row by row, the inputs of all parties belong together",
                fix="give as many rows at each party",
            )
        )
    return next(iter(given.values()), Rows())
