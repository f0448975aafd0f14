"""What comes back of a query, at a party that learns it and at one that does not; warnings of what looks like the label."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch

from protocols.errors import InputError, explain
from securemodel.data.query import Query
from securemodel.data.sides import Rows


class LeakWarning(UserWarning):
    """A column tells so much of the label that it may have been made from it."""


def answered(joint: Rows, query: Query) -> Mapping[str, torch.Tensor] | None:
    """What this party learns of a query; None where it is not told."""
    answers = joint.ask(query)
    told = {name: answer for name, answer in answers.items() if answer is not None}
    return told if len(told) == len(answers) else None


def numeric(joint: Rows) -> list[str]:
    """The columns that have numbers."""
    return [name for name, column in joint.schema.columns.items() if column.kind != "category"]


def asked_columns(joint: Rows, columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """The columns that are asked for, each once: one name is a list of one, and None are all that have numbers."""
    if columns is None:
        return tuple(numeric(joint))
    return (columns,) if isinstance(columns, str) else tuple(dict.fromkeys(columns))


def check_rows(joint: Rows) -> None:
    """Raises InputError where all rows together are too few for anything to be told, or not aligned yet."""
    for name in list(joint.schema.columns)[:1]:
        joint.parts(name)
    if joint.rows < joint.schema.minimum:
        what = f"the table has {joint.rows} rows, and nothing is told of fewer than {joint.schema.minimum}"
        raise InputError(explain(what, fix="ask of a larger table, or agree on another minimum in the schema"))


def warn_of_leak(column: str, label: str, why: str) -> None:
    """Says that a column may have been made from the label."""
    fix = "look where the column comes from, and leave it out if it is known only after the label"
    warnings.warn(explain(f"the column {column!r} nearly tells {label!r}", why=why, fix=fix), LeakWarning, stacklevel=3)


def warn_of_scores(metric: str, value: float) -> None:
    """Says that scores may have been made from the label."""
    why = f"{metric} is {value:.4f}: a column that the model takes may be the label, or may have been made from it"
    fix = "look where the model's columns come from, and leave out what is known only after the label"
    warnings.warn(explain("the scores nearly tell the label", why=why, fix=fix), LeakWarning, stacklevel=4)
