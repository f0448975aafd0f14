"""Tries loaded weights before anybody may ask: the parties run an input that everybody knows, and the weights' owner,
who alone gets the result, compares it with plain torch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from protocols.errors import ConfigError, explain
from securemodel.compiler.capture import tensors_in
from securemodel.compiler.owners import weight_owners
from securemodel.compiler.postprocess import revealing
from securemodel.engines.labels import TRIED
from securemodel.family import Family
from securemodel.sessions.serving import ServingSession

_ROWS = 8
_TOLERANCE = 0.01
_PRIME = 97


def owners(family: Family) -> tuple[str, ...]:
    """The parties that own weights."""
    return weight_owners(next(iter(family.programs.values())).header.weights)


def run_on_zeros(family: Family, session: ServingSession, size: int) -> None:
    """A run of zeros that nobody looks at, to see how long it takes."""
    zeros = [torch.zeros(size, *port.shape, dtype=torch.int64) for port in family.inputs]
    session.run_shares(size, zeros, size, hashlib.sha256(b"securemodel zeros %d" % size).digest())


def check(family: Family, session: ServingSession, model: nn.Module | None) -> None:
    """Raises ConfigError at every party where the result is not that of `model`, which its only owner gives, or None.

    Where several parties own weights, or the owner has no file of them any more, nobody could compare.
    """
    rows = max([size for size in family.sizes if size <= _ROWS], default=family.sizes[0])
    inputs = known_inputs(family, rows)
    rank = family.parties.index(session.me)
    shares = [encoded if rank == 0 else torch.zeros_like(encoded) for encoded in inputs]
    result = session.run_shares(rows, shares, rows, hashlib.sha256(b"securemodel trial 1").digest())
    mine = torch.cat([share.flatten() for share in result.shares])
    found = owners(family)
    if len(found) != 1:
        return
    channel, owner = session.channel, found[0]
    if session.me != owner:
        channel.exchange(TRIED, {owner: [mine]}, {})
        passed = channel.receive(owner, TRIED, 1)[0].item() == 1
    else:
        received = channel.exchange(TRIED, {}, dict.fromkeys(channel.peers, 8 * mine.numel()))
        total = sum((part.view(torch.int64) for part in received.values()), mine)
        passed = model is None or _agrees(family, model, inputs, total, rows)
        channel.exchange(TRIED, {peer: [bytes([passed])] for peer in channel.peers}, {})
    if not passed:
        raise ConfigError(
            explain(
                "the loaded weights do not give what the model gives",
                why=f"on an input that everybody knows, the result is off by more than {_TOLERANCE}",
                fix="see whether load_model() of the script returns the model that make_family() compiles",
            )
        )


def known_inputs(family: Family, rows: int) -> list[torch.Tensor]:
    """Inputs that all parties know, as ring elements: spread over where the model's inputs lie."""
    low, high = family.card()["clamp"] or (0.0, 1.0)
    made = []
    for port in family.inputs:
        spread = torch.arange(rows * max(1, _count(port.shape))).reshape(rows, *port.shape) * 37 % _PRIME
        if port.kind == "index":
            made.append(spread % max(1, int(port.limit)))
        else:
            made.append((low + (high - low) * spread.double() / _PRIME).mul(2**port.frac_bits).round().long())
    return made


def _count(shape: Sequence[int]) -> int:
    return int(torch.Size(shape).numel())


def _agrees(family: Family, model: nn.Module, inputs: list[torch.Tensor], total: torch.Tensor, rows: int) -> bool:
    """Whether the sum of all shares is what plain torch says; of classes, most rows must be: ties are broken by chance."""
    program = next(iter(family.programs.values()))
    given = [
        encoded if port.kind == "index" else encoded.double().div(2**port.frac_bits).float()
        for encoded, port in zip(inputs, family.inputs, strict=True)
    ]
    with torch.no_grad():
        expected = tensors_in(revealing(model, program.reveal)(*given))
    at = 0
    for port, plain in zip(family.outputs, expected, strict=True):
        count = rows * _count(port.shape)
        secure = total[at : at + count].double().div(2**port.frac_bits).reshape(plain.shape)
        at += count
        if port.kind == "class":
            passed = bool((secure == plain).double().mean() >= 0.5)
        else:
            passed = bool(((secure - plain).abs() <= _TOLERANCE * (1 + plain.abs())).all())
        if not passed:
            return False
    return True
