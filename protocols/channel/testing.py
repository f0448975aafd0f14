"""Parties on one host with throw-away identities, for tests, demonstrations and benchmarks."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from protocols.identity import DEALER, Identity, PartiesConfig, Timeouts, create, load_config

Result = TypeVar("Result")


def free_addresses(count: int, lanes: int = 1) -> list[str]:
    """Addresses on 127.0.0.1 that nobody listened on a moment ago, nor on the ports after each for so many lanes."""
    addresses: list[str] = []
    with ExitStack() as held:
        while len(addresses) < count:
            port = held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1]
            try:
                for lane in range(1, lanes):
                    held.enter_context(socket.create_server(("127.0.0.1", port + lane)))
            except (OSError, OverflowError):
                continue
            addresses.append(f"127.0.0.1:{port}")
    return addresses


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
