"""Two models that write six digits in reverse order, one digit after the other: an LSTM and a Transformer.

Each reads the digits, then writes in a fixed number of steps; the digit written at one step is what the next one
starts from (greedy decoding, as in Sutskever et al., "Sequence to sequence learning with neural networks", 2014, and
Vaswani et al., "Attention is all you need", 2017). Nothing in a model knows the task: it is in the weights.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

DIGITS, STEPS = 10, 6


class Writer(nn.Module):
    """What both have in common: a vector for each digit, one to start from, and scores of digits.

    `forward` takes whole numbers [N, 6] and gives whole numbers [N, 6].
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(DIGITS, width))
        self.start = nn.Parameter(torch.randn(width))
        self.scores = nn.Linear(hidden, DIGITS)

    def words(self, digits: torch.Tensor) -> torch.Tensor:
        """Vectors of digits, which may be secret: a row of the table is a product with zeros and a one."""
        return F.one_hot(digits, DIGITS).to(self.table.dtype) @ self.table

    def shifted(self, digits: torch.Tensor) -> torch.Tensor:
        """What the model has written before each of these digits, for training: the start, then all but the last."""
        start = self.start.expand(digits.shape[0], 1, -1)
        return torch.cat([start, self.words(digits[:, :-1])], 1)


class Lstm(Writer):
    """One LSTM reads; a second one starts from its last state and writes."""

    def __init__(self, width: int = 16, hidden: int = 64) -> None:
        super().__init__(width, hidden)
        self.reader = nn.LSTM(width, hidden, batch_first=True)
        self.writer = nn.LSTM(width, hidden, batch_first=True)

    def taught(self, digits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scores [N, 6, 10] of each next digit, given the right ones before it."""
        _, state = self.reader(self.words(digits))
        return self.scores(self.writer(self.shifted(target), state)[0])

    def forward(self, digits: torch.Tensor) -> torch.Tensor:
        _, state = self.reader(self.words(digits))
        word, chosen = self.start.expand(digits.shape[0], 1, -1), []
        for _ in range(STEPS):
            made, state = self.writer(word, state)
            chosen.append(self.scores(made).argmax(-1))
            word = self.words(chosen[-1])
        return torch.cat(chosen, 1)


class Transformer(Writer):
    """One layer of attention reads; another one writes, looking at what was read and at what it wrote."""

    def __init__(self, width: int = 32, heads: int = 2) -> None:
        super().__init__(width, width)
        options = {"dim_feedforward": 2 * width, "dropout": 0.0, "batch_first": True, "norm_first": True}
        self.places = nn.Parameter(torch.randn(STEPS, width))
        self.reader = nn.TransformerEncoderLayer(width, heads, **options)
        self.writer = nn.TransformerDecoderLayer(width, heads, **options)

    def write(self, written: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
        count = written.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(count)
        return self.writer(written + self.places[:count], read, tgt_mask=mask)

    def taught(self, digits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Scores [N, 6, 10] of each next digit, given the right ones before it."""
        return self.scores(self.write(self.shifted(target), self.reader(self.words(digits) + self.places)))

    def forward(self, digits: torch.Tensor) -> torch.Tensor:
        read = self.reader(self.words(digits) + self.places)
        written, chosen = self.start.expand(digits.shape[0], 1, -1), []
        for _ in range(STEPS):
            chosen.append(self.scores(self.write(written, read)[:, -1:]).argmax(-1))
            written = torch.cat([written, self.words(chosen[-1])], 1)
        return torch.cat(chosen, 1)


KINDS: dict[str, type[Writer]] = {"lstm": Lstm, "transformer": Transformer}


def load_trained(kind: str) -> Writer:
    """One of the two with its trained weights, ready for inference."""
    model = KINDS[kind]()
    model.load_state_dict(load_file(Path(__file__).with_name(f"{kind}.safetensors")))
    return model.eval()
