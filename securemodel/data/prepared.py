"""Fitted pipelines: rows of a joint table as features, and models that take rows as their owners have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from protocols.errors import InputError, explain
from protocols.names import PUBLIC
from securemodel.data import storing
from securemodel.data.fields import Field, field_of
from securemodel.data.preprocess import Fields, Step
from securemodel.data.secret import Head, Secret
from securemodel.training.datasets import Dataset, Owned

ROWS = "features"
"""The name of the features in a data set whose rows are split among parties."""


@dataclass(frozen=True, repr=False)
class Fitted:
    """A step with its parameters for these features. `known`: all parties have them; else their owner, and the others zeros."""

    step: Step
    fields: Fields
    parameters: Mapping[str, torch.Tensor]
    known: bool

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """float64[rows, features] after the step."""
        return self.step.apply(x, self.parameters, self.fields)

    def training(self, x: torch.Tensor, first: int, of: int) -> torch.Tensor:
        """The same of rows that it was fitted on, from the row `first` of `of` on: encoders that look at labels have folds."""
        return self.step.apply_training(x, self.parameters, self.fields, first, of)


@dataclass(frozen=True, repr=False)
class Ready:
    """A column with its fitted steps. `owner` is None where its rows are split; `fields`: what they make of it."""

    name: str
    owner: str | None
    beside: bool
    raw: Field
    fitted: tuple[Fitted, ...]
    fields: Fields
    secret: Secret | None = None
    """The last step, where nobody is to learn its parameters: programs take it, and owners give what it takes."""

    @property
    def width(self) -> int:
        """How many numbers its owners give for a row."""
        return self.secret.width if self.secret else len(self.fields)


class Columns(nn.Module):
    """The columns of one owner, float64[rows, columns], NaN where missing, as features float32[rows, features].

    Parameters are buffers; a program computes all of it at the owner, in float.
    """

    def __init__(self, columns: Sequence[Ready]) -> None:
        super().__init__()
        self.columns = list(columns)
        for at, column in enumerate(columns):
            for number, fitted in enumerate(column.fitted):
                for name, values in fitted.parameters.items():
                    self.register_buffer(_buffer(at, number, name), values.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._made(x, lambda fitted, y, p: fitted.step.apply(y, p, fitted.fields))

    def of_fit(self, x: torch.Tensor, first: int, of: int) -> torch.Tensor:
        """The same of rows of the fit, from the row `first` of `of` on."""
        return self._made(x, lambda fitted, y, p: fitted.step.apply_training(y, p, fitted.fields, first, of))

    def _made(self, x: torch.Tensor, step: Callable[..., torch.Tensor]) -> torch.Tensor:
        made = []
        for at, column in enumerate(self.columns):
            y = x[:, at : at + 1].double()
            for number, fitted in enumerate(column.fitted):
                p = {name: getattr(self, _buffer(at, number, name)) for name in fitted.parameters}
                y = step(fitted, y, p)
            made.append(column.secret.given(y) if column.secret else y)
        joined = torch.cat(made, 1) if len(made) > 1 else made[0]
        return (joined + 0 * joined).float()  # what is refused is no number then


def _buffer(column: int, step: int, name: str) -> str:
    return f"column{column}_step{step}_{name}"


class Whole(nn.Module):
    """A model after its preparation: a module of rows as their owners have them, one tensor for each of `inputs`.

    Each is float64[rows, columns of that owner], the columns of `columns`, NaN where missing, categories as their codes.
    `model` gets the features side by side, float32[rows, features], in the order of `feature_names_out`.
    """

    def __init__(self, prepared: Prepared, model: nn.Module) -> None:
        super().__init__()
        self.owners = nn.ModuleList(Columns(columns) for columns in prepared.packed.values())
        self.head = prepared.head
        self.model = model
        self.inputs = tuple(prepared.packed)
        self.columns = {owner: tuple(c.name for c in columns) for owner, columns in prepared.packed.items()}
        self.feature_names_out = prepared.feature_names_out

    def forward(self, *rows: torch.Tensor) -> torch.Tensor:
        made = [owner(x) for owner, x in zip(self.owners, rows, strict=True)]
        return self.model(self.head(torch.cat(made, 1) if len(made) > 1 else made[0]))

    def examples(self, rows: int) -> tuple[torch.Tensor, ...]:
        """Inputs of the right shapes, with no data in them."""
        return tuple(torch.zeros(rows, len(names), dtype=torch.float64) for names in self.columns.values())

    def weights(self, model: str | Mapping[str, str]) -> dict[str, str]:
        """For `securemodel.compile`: whose the parameters are; those of the model are `model`'s, a party or a mapping."""
        own = {"": model} if isinstance(model, str) else model
        fitted = [at for at, owner in enumerate(self.owners) if list(owner.buffers())]
        owners = {f"owners.{at}": PUBLIC if self.inputs[at] == ROWS else self.inputs[at] for at in fitted}
        head = {f"head.{prefix}": owner for prefix, owner in self.head.weights().items()}
        return {**{f"model.{prefix}".rstrip("."): owner for prefix, owner in own.items()}, **owners, **head}


@dataclass(frozen=True, repr=False)
class Prepared:
    """A fitted pipeline; made by `Pipeline.fit` or `Prepared.load`. It is called with a joint table, or a part of one."""

    schema_digest: str
    split: str
    columns: tuple[Ready, ...]
    fitted_on: object = field(default=None, compare=False)

    @property
    def packed(self) -> dict[str, tuple[Ready, ...]]:
        """The columns of features by their owner; under "features" where rows are split."""
        owners = dict.fromkeys(column.owner or ROWS for column in self.columns if not column.beside)
        return {o: tuple(c for c in self.columns if not c.beside and (c.owner or ROWS) == o) for o in owners}

    @property
    def feature_names_out(self) -> tuple[str, ...]:
        """The names of all features in their order: by owner, then by column. They are public, as is their number."""
        return tuple(name for names in self.features.values() for name in names)

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        """The names of the features of each owner, in their order."""
        return {
            owner: tuple(f.name for column in columns for f in column.fields) for owner, columns in self.packed.items()
        }

    @property
    def head(self) -> Head:
        """What a training step calls with the features, side by side, before its model: steps whose parameters nobody learns.

        Where there are none it gives what it takes. It is one of the models of `compile_training`, and `head.weights()` says
        whose its parameters are.
        """
        columns = [column for owner in self.packed.values() for column in owner]
        return Head([column.width for column in columns], [column.secret for column in columns])

    def __getitem__(self, name: str) -> tuple[Fitted, ...]:
        """The fitted steps of a column. Raises InputError."""
        for column in self.columns:
            if column.name == name:
                return column.fitted
        raise InputError(explain(f"this pipeline has no column {name!r}", fix=f"it has {', '.join(self._names)}"))

    @property
    def _names(self) -> list[str]:
        return [column.name for column in self.columns]

    def __call__(self, joint: Any) -> Dataset:
        """The data set that `compile_training` reads: `fit_transform` of the rows of the fit, `transform` of all others."""
        return self.fit_transform(joint) if joint is self.fitted_on else self.transform(joint)

    def transform(self, joint: Any) -> Dataset:
        """Columns by owner, float32[rows, features] ("features" where rows are split), and labels by their names, [rows].

        Owners compute them when they are read. Labels are float32, categories their codes in int64. Raises InputError.
        """
        return self._dataset(joint, False)

    def fit_transform(self, joint: Any) -> Dataset:
        """The same of the rows of the fit: encoders that look at labels encode each row without its own label."""
        if self.fitted_on is not None and joint is not self.fitted_on:
            raise InputError(
                explain("these are not the rows of the fit", where="fit_transform()", fix="use transform()")
            )
        return self._dataset(joint, True)

    def then(self, model: nn.Module) -> Whole:
        """One module of rows as their owners have them, for `securemodel.compile`: owners prepare theirs in float first."""
        return Whole(self, model)

    def raw(self, joint: Any) -> dict[str, tuple[Owned, ...]]:
        """What `then(model)` takes, by owner: float64[rows, columns], NaN where missing, in parts of the same party."""
        self._check(joint)
        return {owner: self._raw(joint, owner, columns) for owner, columns in self.packed.items()}

    def parts(self, joint: Any, training: bool = False) -> dict[str, tuple[Owned, ...]]:
        """The columns of `transform` (of `fit_transform` where `training`) in parts of the same party, for queries."""
        self._check(joint)
        columns = {o: self._made(self._raw(joint, o, ready), ready, training) for o, ready in self.packed.items()}
        for column in self.columns:
            if column.beside:
                made = self._made(self._raw(joint, column.owner, (column,)), (column,), training)
                columns[column.name] = tuple(_label(part, column) for part in made)
        if getattr(joint, "hidden", False):
            columns.update({f"weight_{party}": (owned,) for party, owned in joint.weights.items()})
        return columns

    # ---- on disk
    def save(self, folder: str | Path, me: str | None = None) -> None:
        """Writes what is public, and the parameters of each party of this process into a file of its own. Raises FileError.

        `me` is the party of this process, None for all; by default that of the table of the fit.
        """
        me = me if me is not None else getattr(self.fitted_on, "me", None)
        owning = {c.owner for c in self.columns if c.owner is not None}
        owning |= {party for c in self.columns if c.secret for party in c.secret.totals}
        owners = sorted(party for party in owning if me in (None, party))
        public = {"schema": self.schema_digest, "columns": [_described(column) for column in self.columns]}
        owned = {owner: self._tensors(owner) for owner in owners}
        storing.write(
            Path(folder), public, self._tensors(None), {o: tensors for o, tensors in owned.items() if tensors}
        )

    def _tensors(self, owner: str | None) -> dict[str, torch.Tensor]:
        """The parameters that an owner keeps, by "column.step.name"; those that all know where it is None."""
        made = {}
        for column in self.columns:
            for number, fitted in enumerate(column.fitted):
                if fitted.known == (owner is None) and (owner is None or column.owner == owner):
                    made.update({f"{column.name}.{number}.{name}": t for name, t in fitted.parameters.items()})
            if column.secret and owner is not None and owner in column.secret.totals:
                made[storing.totals_name(column.name)] = column.secret.totals[owner]
        return made

    @staticmethod
    def load(folder: str | Path, schema: Any, me: str | None = None) -> Prepared:
        """A pipeline that was saved, at the party `me`; None: at all of them. Raises InputError, FileError.

        The parameters of other parties are zeros here, as they are after `fit`.
        """
        path = Path(folder)
        found = storing.read(path)
        if found.get("schema") != schema.digest:
            raise InputError(
                explain("this pipeline was fitted to another schema", where=str(path), fix="use that schema")
            )
        described = storing.checked(found, schema, path)
        shapes: dict[str, dict[str, tuple[int, ...]]] = {storing.PUBLIC_FILE: {}}
        for name, _, steps, secret in described:
            shapes_of_secret = {storing.totals_name(name): (2,)}
            for party in secret[1] if secret else ():
                shapes.setdefault(party, {}).update(shapes_of_secret)
            fields: Fields = (field_of(name, schema.columns[name]),)
            for number, (step, known) in enumerate(steps):
                whose = storing.PUBLIC_FILE if known else str(schema.columns[name].owner)
                wanted = {f"{name}.{number}.{key}": shape for key, shape in step.shapes(fields).items()}
                shapes.setdefault(whose, {}).update(wanted)
                fields = step.out(fields)
        tensors: dict[str, dict[str, torch.Tensor]] = {}
        for whose, wanted in shapes.items():
            here = whose == storing.PUBLIC_FILE or me in (None, whose)
            if here and (wanted or whose == storing.PUBLIC_FILE):
                tensors[whose] = storing.read_tensors(path, whose, wanted)
            else:
                tensors[whose] = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in wanted.items()}
        columns = tuple(_ready(one, schema.columns[one[0]], tensors) for one in described)
        return Prepared(schema.digest, schema.split, columns)

    # ---- data sets
    def _dataset(self, joint: Any, training: bool) -> Dataset:
        columns = self.parts(joint, training)
        if any(part.way for parts in columns.values() for part in parts):
            raise InputError(
                explain("a training reads rows that lie in one order at all parties", where="transform()",
                        why="here one party alone knows which rows belong together",
                        fix='align with learns="all" or learns="nobody"')
            )  # fmt: skip
        counts = [part.shape[0] for part in next(iter(columns.values()))]
        return Dataset(columns, tuple(np.arange(count) for count in counts))

    def _check(self, joint: Any) -> None:
        if joint.schema.digest != self.schema_digest:
            raise InputError(explain("this pipeline was fitted to another schema", where="transform()",
                                     fix="fit it again, or use the table of that schema"))  # fmt: skip

    @staticmethod
    def _raw(joint: Any, owner: str | None, columns: Sequence[Ready]) -> tuple[Owned, ...]:
        """The columns side by side, in parts of the same party."""
        of = [(joint.parts(column.name), joint.missing(column.name)) for column in columns]
        made = []
        for part in range(len(of[0][0])):
            given = [(values[part], None if gone is None else gone[part]) for values, gone in of]
            made.append(given[0][0].made(_side_by_side(given), (len(columns),), torch.float64))
        return tuple(made)

    @staticmethod
    def _made(raw: Sequence[Owned], columns: Sequence[Ready], training: bool) -> tuple[Owned, ...]:
        module, width, first, made = Columns(columns), sum(c.width for c in columns), 0, []
        of = sum(part.shape[0] for part in raw)
        for part in raw:
            rows = (first, of) if training else None
            made.append(part.made(_features(module, part, rows), (width,), torch.float32))
            first += part.shape[0]
        return tuple(made)


def _side_by_side(given: Sequence[tuple[Owned, Owned | None]]) -> Callable[[], torch.Tensor]:
    def source() -> torch.Tensor:
        made = []
        for values, gone in given:
            x = values.tensor.double().reshape(-1, 1)
            made.append(x if gone is None else x.masked_fill(gone.tensor.reshape(-1, 1) != 0, float("nan")))
        return torch.cat(made, 1)

    return source


def _features(module: Columns, raw: Owned, rows: tuple[int, int] | None) -> Callable[[], torch.Tensor]:
    def source() -> torch.Tensor:
        x = raw.tensor
        made = module(x) if rows is None else module.of_fit(x, *rows)
        bad = ~made.isfinite()
        if bad.any():
            row = int(bad.any(1).nonzero()[0])
            names = sorted(set(_columns_of(module.columns, bad[row])))
            what = f"a value of {', '.join(map(repr, names))} that its steps refuse"
            raise InputError(explain(what, where=f"row {row} of {raw.party!r}",
                                     why="a category that the schema does not have, or a value that is missing",
                                     fix="correct it, or choose handle_unknown= of the encoder"))  # fmt: skip
        return made

    return source


def _columns_of(columns: Sequence[Ready], bad: torch.Tensor) -> Iterator[str]:
    at = 0
    for column in columns:
        if bad[at : at + column.width].any():
            yield column.name
        at += column.width


def _label(made: Owned, column: Ready) -> Owned:
    codes = column.fields[0].categories is not None
    kind = torch.int64 if codes else torch.float32
    return made.made(lambda: made.tensor[:, 0].to(kind), (), kind)


# ---- what is public, as JSON
def _described(column: Ready) -> dict[str, Any]:
    steps = [{**storing.step_text(fitted.step), "known": fitted.known} for fitted in column.fitted]
    secret = column.secret and {"step": storing.step_text(column.secret.step), "parties": list(column.secret.totals)}
    return {"name": column.name, "beside": column.beside, "steps": steps, "secret": secret}


def _ready(described: storing.Described, column: Any, tensors: Mapping[str, Mapping[str, torch.Tensor]]) -> Ready:
    name, beside, steps, secret_step = described
    raw = field_of(name, column)
    fields: Fields = (raw,)
    fitted: list[Fitted] = []
    for number, (step, known) in enumerate(steps):
        own = tensors[storing.PUBLIC_FILE if known else str(column.owner)]
        p = {key: own[f"{name}.{number}.{key}"] for key in step.shapes(fields)}
        fitted.append(Fitted(step, fields, p, known))
        fields = step.known(fields, p) if known else step.out(fields)
    if secret_step is None:
        return Ready(name, column.owner, beside, raw, tuple(fitted), fields)
    step, parties = secret_step
    secret = Secret(step, fields[0], {party: tensors[party][storing.totals_name(name)] for party in parties})
    return Ready(name, column.owner, beside, raw, tuple(fitted), secret.fields, secret)
