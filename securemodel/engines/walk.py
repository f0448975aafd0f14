"""What a session steps: one party's loads and runs, as coroutines that yield when the party must talk."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch

from protocols.channel import Label
from protocols.channel.buffers import Buffer
from securemodel.compiler.capture import ModelState

T = TypeVar("T")
Message = dict[str, torch.Tensor]
Inputs = Sequence[torch.Tensor | None]


@dataclass(frozen=True)
class Talk:
    """One round as a party asks for it: what to send to whom, and how much to expect from whom."""

    label: Label
    sends: dict[str, list[Buffer]] = field(repr=False)  # masked values and shares
    receives: dict[str, int]


Steps = Generator[Talk, Message, T]
"""Yields a round, is sent what was received in it, and returns a T."""


@dataclass(frozen=True)
class Rows:
    """How many rows of a run are real (0: not my inputs) and how many are still to come after it."""

    now: int = 0
    left: int = 0


class Walk(ABC):
    """One party's way through the loads and runs of a program, which an engine offers and a session steps.

    A session gives each load and each run an epoch, later than all before. A coroutine that raised is not stepped again;
    the session may go on with the next epoch.
    """

    agreed: Callable[[Rows], None] = staticmethod(lambda rows: None)
    """Told the rows of a run once the parties agree on them, before anything is sent that depends on a secret
    of a party without inputs."""

    @property
    def dealt_bytes(self) -> int:
        """What a dealer has sent to this party up to now, in epochs that are over."""
        return 0

    @property
    def shared_times(self) -> tuple[float, float]:
        """When, on the host's monotonic clock, the last run's inputs and its result were shared, where the engine tells."""
        return 0.0, 0.0

    def check_prepared(self) -> None:
        """Raises PreprocessingUsedUp where no run is left of what was prepared, before the peers are told anything."""

    def first_of(self, steps: int) -> int:
        """The step that the next run can make, of those whose rows come again after so many: the runs of a store have
        an order."""
        return 0

    @abstractmethod
    def load(self, epoch: int, model: ModelState | None) -> Steps[None]:
        """Takes the weights of `model` that are this party's, for all later runs. Raises InputError."""

    @abstractmethod
    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list[torch.Tensor | None], Rows]]:
        """One run of the compiled number of rows; returns (the outputs, None where this party may not learn;
        the rows that the parties agree on)."""

    def prepare(self, epoch: int) -> Steps[None]:
        """What the parties can exchange for a run before its inputs are known; `run` does it where this was not called."""
        yield from ()

    def abort(self, reason: str) -> None:
        """Lets go of whatever this party holds besides its channel, and says to others there, publicly, why it failed."""
        self.close()

    def close(self) -> None:
        """Lets go of whatever this party holds besides its channel."""
