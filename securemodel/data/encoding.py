"""Encoders of categories: OneHotEncoder and OrdinalEncoder. Their categories are the schema's, in its order: nothing is fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from securemodel.data.fields import MOST_CATEGORIES, Field
from securemodel.data.preprocess import REFUSED, Fields, Parameters, Step

MISSING = "nan"
"""What scikit-learn calls the category of missing values."""


def categories_of(field: Field) -> tuple[str, ...]:
    """The names of a feature's values in the order of their codes, missing values last, if there may be any."""
    known = ("0", "1") if field.categories is None else field.categories
    return (*known, *((MISSING,) if field.missing else ()))


def category_codes(x: torch.Tensor, field: Field) -> torch.Tensor:
    """One feature as codes 0, 1, ..., the nearest of other numbers; missing values have the last one."""
    x = x.round()
    return torch.where(x.isnan(), float(len(categories_of(field)) - 1), x) if field.missing else x


def one_hot(x: torch.Tensor, field: Field) -> torch.Tensor:
    """float64[rows, categories] of the codes [rows] of one feature."""
    places = torch.arange(len(categories_of(field)), dtype=x.dtype, device=x.device)
    return (category_codes(x, field).unsqueeze(1) == places).to(x.dtype)


def categories_only(step: Step, fields: Fields) -> list[str]:
    """The problem of encoders: numbers have no categories."""
    name, found = type(step).__name__, []
    for field in fields:
        if field.categories is None and not (field.whole and (field.low, field.high) == (0.0, 1.0)):
            found.append(f"{name}: {field.name!r} has no categories; KBinsDiscretizer makes bins of numbers")
        elif len(categories_of(field)) > MOST_CATEGORIES:
            found.append(
                f"{name}: {field.name!r} has more than {MOST_CATEGORIES} categories; merge rare ones in the schema"
            )
    return found


@dataclass(frozen=True)
class OneHotEncoder(Step):
    """A 0/1 feature for each category of the schema; one more for missing values where they are allowed.

    `drop="first"` leaves the first out, "if_binary" that of two. A value that is no category is refused, or with
    `handle_unknown="ignore"` is 0 everywhere.
    """

    drop: Literal["first", "if_binary"] | None = None
    handle_unknown: Literal["error", "ignore"] = "error"

    def problems(self, fields: Fields) -> list[str]:
        bad = [] if self.drop in (None, "first", "if_binary") else [f"OneHotEncoder: drop={self.drop!r}"]
        bad += (
            []
            if self.handle_unknown in ("error", "ignore")
            else [f"OneHotEncoder: handle_unknown={self.handle_unknown!r}"]
        )
        return categories_only(self, fields) + bad

    def kept(self, field: Field) -> tuple[str, ...]:
        """The categories that have a feature."""
        known = categories_of(field)
        return known[1:] if self.drop == "first" or (self.drop == "if_binary" and len(known) == 2) else known

    def out(self, fields: Fields) -> Fields:
        return tuple(field.flag(f"{field.name}_{name}") for field in fields for name in self.kept(field))

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        made = []
        for field, column in zip(fields, x.unbind(1), strict=True):
            hot = one_hot(column, field)
            if self.handle_unknown == "error":
                hot = torch.where(hot.sum(1, keepdim=True) == 0, REFUSED, hot)
            made.append(hot[:, hot.shape[1] - len(self.kept(field)) :])
        return torch.cat(made, 1)


@dataclass(frozen=True)
class OrdinalEncoder(Step):
    """The code of each category, 0, 1, ... in the schema's order.

    Missing values stay missing unless `encoded_missing_value` is given. A value that is no category is refused, or with
    `handle_unknown="use_encoded_value"` becomes `unknown_value`.
    """

    handle_unknown: Literal["error", "use_encoded_value"] = "error"
    unknown_value: float | None = None
    encoded_missing_value: float | None = None

    def problems(self, fields: Fields) -> list[str]:
        given = self.unknown_value is not None and bool(np.isfinite(self.unknown_value))
        bad = []
        if self.handle_unknown not in ("error", "use_encoded_value"):
            bad.append(f"OrdinalEncoder: handle_unknown={self.handle_unknown!r}")
        elif given != (self.handle_unknown == "use_encoded_value"):
            bad.append(
                "OrdinalEncoder: unknown_value is a number with handle_unknown='use_encoded_value', and None without"
            )
        return categories_only(self, fields) + bad

    def out(self, fields: Fields) -> Fields:
        made = []
        for field in fields:
            count = len(categories_of(field)) - field.missing
            ends = [0.0, count - 1.0, *(v for v in (self.unknown_value, self.encoded_missing_value) if v is not None)]
            missing = field.missing and self.encoded_missing_value is None
            made.append(replace(field, low=min(ends), high=max(ends), missing=missing, categories=None))
        return tuple(made)

    def apply(self, x: torch.Tensor, p: Parameters, fields: Fields) -> torch.Tensor:
        made = []
        for field, column in zip(fields, x.unbind(1), strict=True):
            unknown = REFUSED if self.unknown_value is None else float(self.unknown_value)
            strange = (one_hot(column, field).sum(1) == 0) & ~column.isnan()
            codes = torch.where(strange, unknown, column.round())
            if self.encoded_missing_value is not None:
                codes = torch.where(column.isnan(), float(self.encoded_missing_value), codes)
            made.append(codes)
        return torch.stack(made, 1)
