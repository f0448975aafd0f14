"""Times OpenMined's PSI (openmined.psi 2.0.6: Diffie-Hellman on P-256, in C++) as two processes joined by a pipe.

Runs in .venv-psi:  .venv-psi/bin/python benchmarks/peers/psi_runner.py --rows 100000

The ids are those of `benchmarks.alignment`. The client learns the intersection; all ids travel whole (RAW), so there
are no false positives. Server and client make their first messages at the same time, then each waits for the other.
Prints an object: seconds of the clock, of the processors, the size of the intersection, bytes of the larger sender,
and the most memory that one process has.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from typing import Any

import private_set_intersection.python as psi

VERSION = "2.0.6"


def ids_of(party: int, rows: int) -> list[str]:
    start = party * rows // 2
    return [f"person {number} of the town" for number in range(start, start + rows)]


def used() -> dict[str, float]:
    """What this process took."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return {"processor_seconds": found.ru_utime + found.ru_stime, "memory": found.ru_maxrss * 1024}


def serve(link: Any, rows: int) -> None:
    server, ids = psi.server.CreateWithNewKey(True), ids_of(1, rows)
    link.send("ready")
    link.recv()
    setup = server.CreateSetupMessage(0.0, rows, ids, psi.DataStructure.RAW).SerializeToString()
    request = psi.Request()
    request.ParseFromString(link.recv_bytes())
    response = server.ProcessRequest(request).SerializeToString()
    link.send_bytes(setup)
    link.send_bytes(response)
    link.send({**used(), "sent": len(setup) + len(response)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    rows = parser.parse_args().rows
    near, far = multiprocessing.Pipe()
    other = multiprocessing.Process(target=serve, args=(far, rows))
    other.start()
    client, ids = psi.client.CreateWithNewKey(True), ids_of(0, rows)
    near.recv()
    start = time.perf_counter()
    near.send("go")
    request = client.CreateRequest(ids).SerializeToString()
    near.send_bytes(request)
    setup, response = psi.ServerSetup(), psi.Response()
    setup.ParseFromString(near.recv_bytes())
    response.ParseFromString(near.recv_bytes())
    found = client.GetIntersection(setup, response)
    seconds = time.perf_counter() - start
    mine, theirs = used(), near.recv()
    other.join()
    print(
        json.dumps(
            {
                "system": f"OpenMined PSI {VERSION}",
                "seconds": seconds,
                "processor_seconds": mine["processor_seconds"] + theirs["processor_seconds"],
                "joint": len(found),
                "sent_bytes": max(len(request), theirs["sent"]),
                "peak_memory_bytes": int(max(mine["memory"], theirs["memory"])),
            }
        )
    )


if __name__ == "__main__":
    main()
