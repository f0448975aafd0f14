"""Parameters that nobody learns, of rows that several parties have.

Each party keeps the totals of its own rows, like weights, and a program makes parameters of all of them, in secret, when it is
loaded; nothing is sent to fit. Owners give a value as v = 32 (x - low) / (high - low) - 16, within the public bounds.
StandardScaler: (v - M) / sqrt(V) with M = E[v], V = E[v^2] - M^2. SimpleImputer: v + [missing] E[v] / P, with E[v] over all
rows, missing ones as 0, and P the share of values that are there. Right to 2^-9 where the standard deviation is at least a
256th of the bounds' distance, and at least a 64th of the values is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from securemodel.data.fields import Field
from securemodel.data.imputing import SimpleImputer
from securemodel.data.preprocess import Fields, Step
from securemodel.data.scaling import StandardScaler

_WIDE = 32.0
_LEAST = 2.0**-8
"""Of a variance: below it a feature is a constant, which becomes 0 but for what rounding leaves."""


@dataclass(frozen=True, repr=False)
class Secret:
    """A step whose parameters nobody learns. `totals`: by party, float64[2], what its rows add to the means of all; zeros where
    they are not of this process."""

    step: Step
    field: Field
    totals: Mapping[str, torch.Tensor]

    @property
    def fields(self) -> Fields:
        """The features that the step makes."""
        return self.step.out((self.field,))

    @property
    def width(self) -> int:
        """How many numbers owners give for a row."""
        return 2 if isinstance(self.step, SimpleImputer) else 1

    def given(self, x: torch.Tensor) -> torch.Tensor:
        """[rows, width]: what an owner gives of [rows, 1] values."""
        units = _WIDE * (x - self.field.low) / _distance(self.field) - _WIDE / 2
        if not isinstance(self.step, SimpleImputer):
            return units
        gone = x.isnan()
        return torch.cat([torch.where(gone, 0.0, units), gone.to(x.dtype)], 1)

    def made(self, given: torch.Tensor, totals: torch.Tensor) -> torch.Tensor:
        """[rows, features] of what owners give and the totals of all, [2]; also of secrets."""
        if isinstance(self.step, SimpleImputer):
            value, gone = given[:, :1], given[:, 1:]
            filled = value + gone * (totals[0] / totals[1])
            real = filled * (_distance(self.field) / _WIDE) + (self.field.low + _distance(self.field) / 2)
            return torch.cat([real, gone], 1) if self.step.add_indicator and self.field.missing else real
        return (given - totals[0]) * torch.rsqrt((totals[1] - totals[0] * totals[0]).clamp(min=_LEAST))


def problem_of(step: Step, field: Field) -> str:
    """Why the parameters of a step cannot stay secret, or nothing."""
    if isinstance(step, StandardScaler) and step.with_mean and step.with_std and not field.missing and field.bounded:
        return ""
    if isinstance(step, SimpleImputer) and step.strategy == "mean" and field.number and field.bounded:
        return ""
    return (
        f"{type(step).__name__} of {field.name!r} cannot stay secret: StandardScaler() of values that are there and "
        "SimpleImputer('mean') can, as the last step"
    )


def totals_of(step: Step, field: Field, rows: int, x: torch.Tensor) -> torch.Tensor:
    """float64[2]: what these rows, [some, 1], add to the means of all `rows`."""
    given = Secret(step, field, {}).given(x)
    if isinstance(step, SimpleImputer):
        return torch.stack([given[:, 0].sum(), (1 - given[:, 1]).sum()]) / rows
    return torch.stack([given.sum(), (given * given).sum()]) / rows


def fitted(step: Step, field: Field, parts: Sequence[tuple[str, int, Callable[[], torch.Tensor] | None]]) -> Secret:
    """The step with the totals of parties: name, number of rows, and the rows where they are of this process."""
    rows = sum(count for _, count, _ in parts)
    zeros = torch.zeros(2, dtype=torch.float64)
    return Secret(step, field, {party: totals_of(step, field, rows, x()) if x else zeros for party, _, x in parts})


class _Totals(nn.Module):
    def __init__(self, totals: Sequence[torch.Tensor]) -> None:
        super().__init__()
        for at, values in enumerate(totals):
            self.register_buffer(f"column{at}", values.float())


class Head(nn.Module):
    """From what owners give, side by side, to features: within a program, as its parameters are secret.

    `widths` and `secrets`, of each column: how many numbers owners give, and the step that is still to come, if any.
    """

    def __init__(self, widths: Sequence[int], secrets: Sequence[Secret | None]) -> None:
        super().__init__()
        self.widths, self.secrets = tuple(widths), tuple(secrets)
        waiting = [secret for secret in secrets if secret]
        names = dict.fromkeys(party for secret in waiting for party in secret.totals)
        self.names = tuple(names)
        self.parties = nn.ModuleList(_Totals([secret.totals[party] for secret in waiting]) for party in names)

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        if not self.names:
            return given
        made, at, number = [], 0, 0
        for width, secret in zip(self.widths, self.secrets, strict=True):
            columns = given[:, at : at + width]
            if secret:
                totals = torch.stack([getattr(party, f"column{number}") for party in self.parties]).sum(0)
                columns, number = secret.made(columns, totals), number + 1
            made.append(columns)
            at += width
        return torch.cat(made, 1)

    def weights(self) -> dict[str, str]:
        """Whose the totals are, by prefix of their names."""
        return {f"parties.{at}": party for at, party in enumerate(self.names)}


def _distance(field: Field) -> float:
    return (field.high - field.low) or 1.0
