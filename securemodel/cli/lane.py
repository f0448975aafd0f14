"""One lane of `securemodel predict --lanes`: a session of its own, which runs the chunks that it is given."""

from __future__ import annotations

import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from protocols.errors import SecureModelError, summary
from securemodel.api import connect
from securemodel.cli import script as scripts
from securemodel.cli.programs import program_of, weights_of
from securemodel.engines.packing import pack, unpack
from securemodel.scripts import load_file
from securemodel.sessions.session import Session

Receive = Callable[[], "bytes | None"]
Reply = Callable[[bytes], None]


def run_lane(job: Mapping[str, Any], receive: Receive, reply: Reply) -> None:
    """Connects lane `job["lane"]` and runs what `receive` gives, until it gives nothing more.

    Replies "ready", for each batch what this party learns of it, "done" after each chunk, or an "error", which is the
    last reply.
    """
    try:
        _run(job, receive, reply)
    except Exception as error:
        reply(pack({"error": str(error) if isinstance(error, SecureModelError) else summary(error)}, {}))


def _run(job: Mapping[str, Any], receive: Receive, reply: Reply) -> None:
    script, me = Path(job["script"]), job["me"]
    place: dict[str, Any] = {name: job.get(name) for name in ("lane", "lanes", "ledger", "device")}
    with scripts.as_party(script, (), me, Path(job["config"]), None, **place):
        module = load_file(script)
        program = program_of(module, script)
        with connect(program) as session:
            session.load(program, weights_of(module, script, program, me))
            serve_chunks(session, job["results"], receive, reply)


def serve_chunks(session: Session, results: Sequence[int], receive: Receive, reply: Reply) -> None:
    """Runs chunks on a session that has its weights. `results`: the outputs that this party learns."""
    reply(pack({"ready": True}, {}))
    while message := receive():
        chunk, tensors = unpack(message)
        _run_chunk(session, chunk["batches"], chunk["rows"], tensors, results, reply)
        reply(pack({"done": chunk["chunk"]}, {}))


def _run_chunk(
    session: Session,
    batches: Sequence[int],
    rows: int,
    tensors: Mapping[str, torch.Tensor],
    results: Sequence[int],
    reply: Reply,
) -> None:
    inputs = len(session.program.header.inputs)
    mine = [[tensors.get(f"{batch}.{index}") for index in range(inputs)] for batch in batches]
    with closing(session.run_batches(iter(mine) if tensors else None, rows if tensors else 0)) as finished:
        for batch, made in zip(batches, finished, strict=True):
            learned = {str(index): made.outputs[index].detach().contiguous() for index in results}  # type: ignore[union-attr]
            reply(pack({"batch": batch, "rows": made.rows}, learned))


def _messages(connection: Connection) -> Iterator[bytes]:
    while True:
        try:
            yield connection.recv_bytes()
        except (EOFError, OSError):  # the party's own process has ended, or wants nothing more
            return


def main(descriptor: int) -> None:
    """The process of a lane: talks over an inherited socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of Ctrl-C this party's own process hears, and ends its lanes
    connection = Connection(descriptor)
    messages: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
    job, _ = unpack(connection.recv_bytes())

    def read() -> None:
        for message in _messages(connection):
            messages.put(message)
        messages.put(None)

    threading.Thread(target=read, daemon=True, name="read-chunks").start()
    try:
        run_lane(job, messages.get, connection.send_bytes)
    except OSError:
        pass  # nobody is left who would want to know


if __name__ == "__main__":
    main(int(sys.argv[1]))
