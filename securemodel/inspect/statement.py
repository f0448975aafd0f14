"""What an audit consists of: who sees what, and the choices that weaken it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WeakChoice:
    """A choice that gives away more than it must: a name for programs, what it gives to whom, and the remedy."""

    name: str
    what: str
    fix: str


@dataclass(frozen=True)
class Seen:
    """What one party receives of one kind in a phase ("load": once for a model, or "run"), and what hides it.

    `openings` are nodes of the program, `numbers` the elements in them, `bits` what is received in all.
    """

    what: str
    phase: str
    openings: int
    numbers: int
    bits: int
    hidden_by: str


@dataclass(frozen=True)
class Output:
    """A result: who learns it, and how exactly.

    `fractional_bits` of each number reach the receiver, however few the type `dtype` shows; `excess_bits` of them are
    beyond the program's own. None where the receiver computes it in float from what it decrypted.
    """

    name: str
    to: str
    shape: tuple[int, ...]
    dtype: str
    fractional_bits: int | None
    excess_bits: int
    rounding: str


@dataclass(frozen=True)
class Constant:
    """Numbers of the program's text, which everybody and the dealer know: how many, the first of them, and whose line."""

    source: str
    count: int
    first: tuple[float, ...]


@dataclass(frozen=True)
class Role:
    """One party, or the dealer: what it brings, sees, learns and computes in the clear, and what it is trusted with."""

    name: str
    brings: tuple[str, ...]
    sees: tuple[Seen, ...]
    learns: tuple[str, ...]
    in_the_clear: Mapping[str, int]
    trusted_with: tuple[str, ...]
