"""What can be aggregated: each is a description, of which a task makes its programs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Aggregation:
    """`name` and its options say what is computed. `weighted`: by the clients' secret weights."""

    name: str
    weighted: bool = False

    def text(self) -> str:
        """What is computed, in words that its digest is made of."""
        return f"{self.name} weighted={self.weighted}"


def mean() -> Aggregation:
    """The mean of all updates: sums of shares, without any talk."""
    return Aggregation("mean")


def weighted_mean() -> Aggregation:
    """The mean of all updates, each as often as its client's secret weight says; the sum of weights is revealed, too."""
    return Aggregation("weighted_mean", weighted=True)
