"""Cells of too few rows are withheld, in the program: whoever may see the others does not learn of them.

What is left of a public total when all other cells are known tells a cell that is withheld alone. So where the withheld
cells together are fewer rows than the minimum, the smallest of the others goes with them. Cells without any rows are
withheld, too, but nothing goes with them: that nobody is there may be seen from the total.
"""

from __future__ import annotations

import torch

_MORE = 1 << 40  # than any count


def enough(counts: torch.Tensor, minimum: int) -> torch.Tensor:
    """Where counts are at least the minimum, each by itself; booleans."""
    return counts >= minimum


def enough_of_all(counts: torch.Tensor, minimum: int) -> torch.Tensor:
    """Where counts that together are all rows, along the last axis, may be seen; booleans."""
    few = counts < minimum
    hidden = torch.where(few, counts, 0).sum(-1, keepdim=True)
    tells = (hidden > 0) & (hidden < minimum)
    others = torch.where(few, _MORE, counts)
    smallest = others.amin(-1, keepdim=True)
    return ~(few | (tells & (others <= smallest)))


def kept(enough: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Values where there are enough rows, else 0."""
    return torch.where(enough, values, 0)
