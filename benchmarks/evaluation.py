"""Metrics as cases: scores are the sum of two owners' numbers, labels the second's; scikit-learn is the plain time.

A tenth of the scores are the same as others. Counts and quotients are revealed as in an evaluation of a joint table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from securemodel.data.measured import Metric

Rows = tuple[Tensor, Tensor, Tensor]


class Measuring(nn.Module):
    """Some metrics of the sum of two parts of a score, as one vector of all that is revealed."""

    def __init__(self, asked: list[Metric]) -> None:
        super().__init__()
        self.asked = asked

    def forward(self, first: Tensor, second: Tensor, label: Tensor) -> Tensor:
        shown = [metric(label, first + second) for metric in self.asked]
        return torch.cat([x.double().reshape(-1) for each in shown for x in each.values()])


def _rows(count: int) -> Rows:
    torch.manual_seed(0)  # benchmark data, not protocol randomness
    first, second = (torch.round(torch.randn(count) * 2**12) / 2**12 for _ in range(2))
    first[: count // 10], second[: count // 10] = first[-count // 10 :], second[-count // 10 :]
    return first, second, (torch.rand(count) < torch.sigmoid(first + second - 1)).long()


def _f1(label: Tensor, score: Tensor) -> None:
    from sklearn.metrics import confusion_matrix, f1_score

    confusion_matrix(label, score >= 0)
    f1_score(label, score >= 0)


def _auc(label: Tensor, score: Tensor) -> None:
    from sklearn.metrics import roc_auc_score, roc_curve

    roc_auc_score(label, score)
    roc_curve(label, score)


def _losses(label: Tensor, score: Tensor) -> None:
    from sklearn.metrics import brier_score_loss, log_loss

    p = torch.sigmoid(score)
    log_loss(label, p)
    brier_score_loss(label, p)


def _case(names: list[str], count: int, exact: bool = False):
    def build() -> tuple[nn.Module, Rows]:
        from securemodel.data import metrics

        return Measuring(metrics.named(names, exact=exact)), _rows(count)

    return build


def _clear(function: Callable[[Tensor, Tensor], None], count: int) -> Callable[[], None]:
    first, second, label = _rows(count)
    return lambda: function(label, first + second)


ALL: dict[str, tuple[Callable[[], tuple[nn.Module, Rows]], Callable[[], Callable[[], None]]]] = {
    "f1_10k": (_case(["f1", "confusion"], 10_000), lambda: _clear(_f1, 10_000)),
    "losses_10k": (_case(["log_loss", "brier"], 10_000), lambda: _clear(_losses, 10_000)),
    "auc_bins_10k": (_case(["auc", "roc"], 10_000), lambda: _clear(_auc, 10_000)),
    "auc_exact_10k": (_case(["auc"], 10_000, exact=True), lambda: _clear(_auc, 10_000)),
}
"""By name: what makes the model and its inputs, and what makes the same in scikit-learn."""
