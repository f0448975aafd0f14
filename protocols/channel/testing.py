"""Parties on one host with throw-away identities, for tests, demonstrations and benchmarks."""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, TypeVar

from protocols.identity import DEALER, Identity, PartiesConfig, Timeouts, create, load_config

Result = TypeVar("Result")
_HOST = "127.0.0.1"
_FIRST, _LAST, _BLOCK = 10_000, 32_000, 500  # below the ports that systems give to those who connect


class _Block(NamedTuple):
    """Ports that no other process takes from here, as long as `held` is bound to the one before them."""

    held: socket.socket
    ports: Iterator[int]


_blocks: dict[int, list[_Block]] = {}  # by the number of the process: a child starts with none
_taking = threading.Lock()


def free_addresses(count: int, lanes: int = 1) -> list[str]:
    """Addresses on 127.0.0.1 that nobody listens on, nor on the ports after each for so many lanes. They come in turn,
    out of blocks of ports of this process, so that what was given and is not listened on yet is given to nobody else.
    """
    with _taking:
        return [f"{_HOST}:{_free_ports(lanes)}" for _ in range(count)]


def _free_ports(lanes: int) -> int:
    """The first of so many ports in a row that nobody listens on."""
    if lanes >= _BLOCK:
        raise ValueError(f"{lanes} ports in a row are more than the {_BLOCK - 1} of a block")
    blocks = _blocks.setdefault(os.getpid(), [])
    for block in itertools.chain(blocks, _new_blocks(blocks)):
        found: list[int] = []
        for port in itertools.islice(block.ports, _BLOCK - 1):
            following = found if found[-1:] == [port - 1] else []
            found = [*following, port] if _is_free(port) else []
            if len(found) == lanes:
                return found[0]
    raise OSError(errno.EADDRINUSE, f"{_HOST} has no {lanes} free ports in a row from {_FIRST} to {_LAST}")


def _new_blocks(blocks: list[_Block]) -> Iterator[_Block]:
    """Blocks that no process has, as far as they are asked for."""
    for first in secrets.SystemRandom().sample(range(_FIRST, _LAST, _BLOCK), (_LAST - _FIRST) // _BLOCK):
        held = socket.socket()
        try:
            held.bind((_HOST, first))
        except OSError:
            held.close()
            continue
        blocks.append(_Block(held, itertools.cycle(range(first + 1, first + _BLOCK))))
        yield blocks[-1]


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
        raise TimeoutError(f"still running after {timeout_s:g} s: {', '.join(map(str, missing))}")
    return {name: future.exception() or future.result() for name, future in futures.items()}
