"""A small sequence-to-sequence model with attention: it reads a date as an office writes it, and writes year, month, day.

A GRU reads and a second one writes; before each digit it looks back at what was read (Luong et al., "Effective approaches to
attention-based neural machine translation", 2015). Nothing in the model knows the task: it is in the weights.
"""

from __future__ import annotations

import torch
from torch import nn

SYMBOLS = "0123456789./"
READ, WRITTEN = len("31.12.26"), len("261231")


class Dates(nn.Module):
    """Symbols of a date, int64 [rows, 8] -> digits of year, month and day, int64 [rows, 6]."""

    def __init__(self, width: int = 16, hidden: int = 24) -> None:
        super().__init__()
        self.symbols = nn.Embedding(len(SYMBOLS), width)
        self.start = nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(0.3 * torch.randn(READ, hidden))
        self.reader = nn.GRU(width, hidden, batch_first=True)
        self.writer = nn.GRU(width, hidden, batch_first=True)
        self.scores = nn.Linear(2 * hidden, 10)

    def write(self, before: torch.Tensor, read: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of the digits that follow those `before`, which are vectors, and the writer's state after them."""
        made, state = self.writer(before, state)
        looked_at = (made @ (read + self.places).transpose(1, 2)).softmax(-1) @ read
        return self.scores(torch.cat([made, looked_at], -1)), state

    def taught(self, date: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
        """Scores [rows, 6, 10] of each digit, given the right ones before it (teacher forcing)."""
        read, state = self.reader(self.symbols(date))
        start = self.start.expand(len(date), 1, -1)
        return self.write(torch.cat([start, self.symbols(digits[:, :-1])], 1), read, state)[0]

    def forward(self, date: torch.Tensor) -> torch.Tensor:
        read, state = self.reader(self.symbols(date))
        before, chosen = self.start.expand(len(date), 1, -1), []
        for _ in range(WRITTEN):
            scores, state = self.write(before, read, state)
            chosen.append(scores.argmax(-1))
            before = self.symbols(chosen[-1])
        return torch.cat(chosen, 1)
