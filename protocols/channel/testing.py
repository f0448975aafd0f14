"""Parties on one host with throw-away identities, for tests, demonstrations and benchmarks."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import cycle, islice
from pathlib import Path
from typing import TypeVar

from protocols.identity import DEALER, Identity, PartiesConfig, Timeouts, create, load_config

Result = TypeVar("Result")
_HOST = "127.0.0.1"
_FIRST, _LAST, _BLOCK = 10_000, 32_000, 200  # below the ports that systems give to those who connect


_taking = threading.Lock()


def free_addresses(count: int, lanes: int = 1) -> list[str]:
    """Addresses on 127.0.0.1 that nobody listens on, nor on the ports after each for so many lanes. They are out of a
    block of ports of this process and come in turn, so that what was given and is not listened on yet is given to
    nobody else.
    """
    with _taking:
        return [f"{_HOST}:{_free_ports(lanes)}" for _ in range(count)]


def _free_ports(lanes: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    _, ports = _block(os.getpid())
    found: list[int] = []
    for port in islice(ports, 2 * _BLOCK):
        following = found if found[-1:] == [port - 1] else []
        found = [*following, port] if _is_free(port) else []
        if len(found) == lanes:
            return found[0]
    raise OSError(errno.EADDRINUSE, f"no {lanes} free ports in a row among {_BLOCK} of {_HOST}")


@cache
def _block(process: int) -> tuple[socket.socket, Iterator[int]]:
    """Ports that no other process takes from here as long as the socket is bound to the one before them."""
    for first in secrets.SystemRandom().sample(range(_FIRST, _LAST, _BLOCK), (_LAST - _FIRST) // _BLOCK):
        held = socket.socket()
        try:
            held.bind((_HOST, first))
        except OSError:
            held.close()
            continue
        return held, cycle(range(first + 1, first + _BLOCK))
    raise OSError(errno.EADDRINUSE, f"every block of ports from {_FIRST} to {_LAST} of {_HOST} is taken")


def _is_free(port: int) -> bool:
    try:
        socket.create_server((_HOST, port)).close()
    except OSError:
        return False
    return True


def loopback_parties(
    names: Sequence[str],
    directory: Path,
    *,
    dealer: bool = False,
    timeouts: Timeouts | None = None,
    contributors: Sequence[str] = (),
    lanes: int = 1,
) -> tuple[PartiesConfig, dict[str, Identity]]:
    """New identities for the named parties (and a dealer, and contributors) in a folder, and the party file that lists
    them there, with room for so many lanes.
    """
    everyone = [*names, *([DEALER] if dealer else [])]
    identities = {name: create(name, directory / name) for name in (*everyone, *contributors)}
    timeouts = timeouts or Timeouts()
    lines = []
    for name, address in zip(everyone, free_addresses(len(everyone), lanes), strict=True):
        lines.append(f"[{DEALER if name == DEALER else 'parties.' + name}]")
        lines += [f'address = "{address}"', f'certificate = "{name}/{identities[name].certificate_path.name}"', ""]
    for name in contributors:
        certificate = f'certificate = "{name}/{identities[name].certificate_path.name}"'
        lines += [f"[contributors.{name}]", certificate, ""]
    lines += ["[timeouts]", f"connect_s = {timeouts.connect_s}", f"receive_s = {timeouts.receive_s}", ""]
    path = directory / "parties.toml"
    path.write_text("\n".join(lines))
    return load_config(path), identities


def run_together(
    tasks: Mapping[str, Callable[[], Result]], timeout_s: float = 60.0
) -> dict[str, Result | BaseException]:
    """Run each task in a thread of its own; what it returned, or the exception that ended it, by name."""
    pool = ThreadPoolExecutor(len(tasks))
    futures = {name: pool.submit(task) for name, task in tasks.items()}
    wait(futures.values(), timeout_s)
    pool.shutdown(wait=False, cancel_futures=True)
    missing = [name for name, future in futures.items() if not future.done()]
    if missing:
        raise TimeoutError(f"still running after {timeout_s:g} s: {', '.join(missing)}")
    return {name: future.exception() or future.result() for name, future in futures.items()}
