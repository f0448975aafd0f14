"""From scores to what a library's predict and predict_proba give."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

Output = Literal["probabilities", "scores", "class", "value"]
"""What a classifier's module gives: predict_proba, decision_function, or the index of the class in `classes`; "value" is
that of a regressor."""
Link = Literal["none", "sigmoid", "softmax", "each", "exp", "counts"]
"""From scores to probabilities: "sigmoid" of several scores is divided by their sum, "each" is not; "counts" are votes
over their (public) sum."""


class Head(nn.Module):
    """What `output` names, of the scores float[rows, 1 or classes] of `body`.

    One score of two classes is that of the second; of "counts", how many of `total` votes are for it. Probabilities of two
    classes have two columns, scores of two classes one axis less, as scikit-learn has it.
    """

    def __init__(self, body: nn.Module, output: Output, link: Link = "none", total: float = 1.0) -> None:
        super().__init__()
        self.body, self.output, self.link, self.total = body, output, link, total

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        scores = self.body(*columns)
        if self.output == "class":
            if scores.shape[1] > 1:
                return scores.argmax(1)
            return (scores.squeeze(1) > (self.total / 2 if self.link == "counts" else 0)).long()
        if self.link == "counts":
            both = torch.cat([self.total - scores, scores], 1) if scores.shape[1] == 1 else scores
            return both * (1 / self.total)
        if self.output == "scores":
            return scores.squeeze(1) if scores.shape[1] == 1 else scores
        if self.output == "value":
            links = {"exp": torch.exp, "sigmoid": torch.sigmoid}
            return links.get(self.link, torch.clone)(scores).squeeze(1)
        if self.link == "softmax":
            return scores.softmax(1)
        chance = scores.sigmoid()
        if self.link == "each":
            return chance
        return torch.cat([1 - chance, chance], 1) if scores.shape[1] == 1 else chance / chance.sum(1, keepdim=True)


class Times(nn.Module):
    """Scores times a public number."""

    def __init__(self, body: nn.Module, factor: float) -> None:
        super().__init__()
        self.body, self.factor = body, factor

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.body(*columns) * self.factor


class Best(nn.Module):
    """The index of the largest."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.body(*columns).argmax(1)
