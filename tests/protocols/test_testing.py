"""Addresses for parties of one host: given once, to one process, and on ports that nobody who connects gets."""

from __future__ import annotations

import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from protocols.channel.testing import free_addresses

_GIVE = "from protocols.channel.testing import free_addresses\nprint(*free_addresses(150))\ninput()"


def _ports(addresses: list[str]) -> set[int]:
    return {int(address.rpartition(":")[2]) for address in addresses}


def test_what_was_given_and_is_not_listened_on_yet_is_given_to_nobody_else() -> None:
    given = [_ports(free_addresses(60)) for _ in range(3)]
    other = subprocess.Popen([sys.executable, "-c", _GIVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    given.append(_ports(other.stdout.readline().split()))
    other.communicate("\n")
    assert len(set().union(*given)) == 3 * 60 + 150


@pytest.mark.parametrize("lanes", [1, 4])
def test_ports_that_somebody_listens_on_are_left_out(lanes: int) -> None:
    (address,) = free_addresses(1)
    port = int(address.rpartition(":")[2]) + 2
    with socket.create_server(("127.0.0.1", port)):
        given = _ports(free_addresses(180 // lanes, lanes))
    assert port not in {first + lane for first in given for lane in range(lanes)}
    assert len(given) == 180 // lanes


def test_a_process_takes_another_block_when_one_is_full() -> None:
    (address,) = free_addresses(1)
    port = int(address.rpartition(":")[2])
    with ExitStack() as listening:
        for _ in range(600):
            listening.enter_context(socket.create_server(("127.0.0.1", _ports(free_addresses(1)).pop())))
        assert any(abs(each - port) >= 500 for each in _ports(free_addresses(5, 3)))


def test_more_ports_in_a_row_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match="1000 ports in a row are more than the 499 of a block"):
        free_addresses(1, 1000)
