"""Pipelines: which steps each column goes through, and how they are fitted on the rows of a joint table.

Whoever has all rows of a column fits its steps in the clear and keeps the parameters; where several parties have rows, they
are fitted on totals that are added in secret (`securemodel.data.totals`). Nothing else is sent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, Protocol

import torch

from protocols.errors import InputError, explain
from securemodel.data.asks import Fit, run_fits, told
from securemodel.data.encoding import OneHotEncoder, OrdinalEncoder
from securemodel.data.fields import field_of
from securemodel.data.prepared import Fitted, Prepared, Ready
from securemodel.data.preprocess import Fields, Step
from securemodel.data.secret import fitted as secrets_of
from securemodel.data.secret import problem_of
from securemodel.data.targets import Labels, LabelStep
from securemodel.data.totals import Part, Rows, fit_together
from securemodel.training.datasets import Owned

Steps = Step | Sequence[Step] | Literal["passthrough", "drop"]


class Table(Protocol):
    """What a fit needs of a joint table."""

    schema: Any
    me: str | None

    @property
    def parties(self) -> tuple[str, ...]: ...

    @property
    def rows(self) -> int: ...

    def parts(self, name: str) -> tuple[Owned, ...]: ...

    def missing(self, name: str) -> tuple[Owned, ...] | None: ...

    def ask(self, query: Any) -> Any: ...


@dataclass(frozen=True)
class Chain:
    """The steps of a column, in their order. `beside`: it is no feature, but stands by itself, as labels do."""

    steps: tuple[Step, ...] = ()
    beside: bool = False
    dropped: bool = False


def Label(*steps: Step) -> Chain:
    """A column that is no feature: it stands by itself in the data set, [rows], after these steps, if any."""
    return Chain(tuple(steps), beside=True)


class Pipeline:
    """The steps of each column: `Pipeline(income=StandardScaler(), city=[SimpleImputer("most_frequent"), OneHotEncoder()])`.

    Columns whose names are no names of Python, and several columns with the same steps, go into a mapping:
    `Pipeline({("age", "shop.1"): StandardScaler()}, city=OneHotEncoder())`. "passthrough" takes a column as it is, "drop"
    leaves it out; `Label()` keeps it apart, as do columns of booleans in no step. Raises InputError.
    """

    def __init__(
        self, steps: Mapping[str | tuple[str, ...], Steps | Chain] | None = None, /, **named: Steps | Chain
    ) -> None:
        chains: dict[str, Chain] = {}
        twice = []
        for key, given in [*(steps or {}).items(), *named.items()]:
            for name in (key,) if isinstance(key, str) else key:
                twice += [name] if name in chains else []
                chains[name] = _chain(name, given)
        if twice:
            raise InputError(
                explain(f"two steps for {', '.join(map(repr, twice))}", where="Pipeline()",
                        fix="give the steps of a column as one list, in their order")
            )  # fmt: skip
        if not any(not chain.beside and not chain.dropped for chain in chains.values()):
            raise InputError(
                explain("a pipeline without features", where="Pipeline()", fix="name steps for some columns")
            )
        self.chains: Mapping[str, Chain] = chains

    def transform(self, joint: object) -> Any:
        """Refused: a pipeline has no parameters before `fit`."""
        raise InputError(explain("this pipeline is not fitted", where="transform()", fix="use what fit(train) returns"))

    __call__ = transform

    def then(self, model: object) -> Any:
        """Refused, as `transform`."""
        raise InputError(explain("this pipeline is not fitted", where="then()", fix="use what fit(train) returns"))

    def fit(self, joint: Table, *, reveal: str | None = None, force: bool = False) -> Prepared:
        """The pipeline with its parameters, fitted on the rows of a joint table: the training rows. Every party calls it.

        `reveal`: None, the owner of a column keeps its parameters, and all learn those of rows that several parties have;
        "all": all learn those of owners, too; "nobody": those of rows that several parties have stay secret, too, and programs
        make them of what each party keeps (`Prepared.head`). `force` allows rows that were split off for tests. Raises InputError with all
        that does not fit the schema, before any row is read.
        """
        if reveal not in (None, "all", "nobody"):
            fix = 'None (owners keep theirs), "all" or "nobody"'
            raise InputError(explain(f"reveal={reveal!r} of parameters", fix=fix))
        if getattr(joint, "held_out", False) and not force:
            raise InputError(
                explain("a pipeline is fitted on rows that were split off for tests", where="fit()",
                        why="a test on them would then say too much good of the model",
                        fix="fit on the training rows; fit(..., force=True) if you mean it")
            )  # fmt: skip
        chains = self._chains_for(joint, reveal == "nobody")
        fits = [_fit_column(joint, name, chain, reveal) for name, chain in chains.items()]
        found: list[Any] = run_fits(fits, joint.ask)
        order = {party: at for at, party in enumerate(joint.parties)}
        ready = sorted((one["ready"] for one in found), key=lambda one: order.get(one.owner, -1))
        return Prepared(joint.schema.digest, joint.schema.split, tuple(ready), joint)

    def _chains_for(self, joint: Table, hush: bool) -> dict[str, Chain]:
        """The chains of all columns that the data set has. Raises InputError with all problems."""
        columns, problems = joint.schema.columns, []
        chains = {name: chain for name, chain in self.chains.items() if name in columns}
        problems += [f"no column of the schema is called {name!r}" for name in self.chains if name not in columns]
        for name, column in columns.items():
            if name not in chains and column.kind == "boolean":
                chains[name] = Chain(beside=True)
            elif name not in chains:
                problems.append(f'{name!r} is in no step: give it one, "passthrough", "drop" or Label()')
        for name, chain in chains.items():
            if not chain.dropped:
                problems += _problems_of(name, chain, columns) or (_not_secret(name, chain, columns) if hush else [])
        if problems:
            raise InputError(
                explain(f"this pipeline does not fit the schema ({len(problems)})", where="fit()", why="\n".join(problems),
                        fix="name a step for each column, of the kind that it has in the schema")
            )  # fmt: skip
        return {name: chain for name, chain in chains.items() if not chain.dropped}


def _chain(name: str, given: Any) -> Chain:
    if isinstance(given, Chain):
        return given
    if given in ("passthrough", "drop"):
        return Chain(dropped=given == "drop")
    steps = (given,) if isinstance(given, Step) else tuple(given) if isinstance(given, (list, tuple)) else ()
    if not steps or not all(isinstance(step, Step) for step in steps):
        fix = 'give a step, as StandardScaler(), a list of steps, "passthrough" or "drop"'
        raise InputError(explain(f"{type(given).__name__} is no step", where=f"{name!r} in Pipeline()", fix=fix))
    return Chain(steps)


def _problems_of(name: str, chain: Chain, columns: Mapping[str, Any]) -> list[str]:
    fields: Fields = (field_of(name, columns[name]),)
    for step in chain.steps:
        if found := step.problems(fields):
            return found
        label = step.looks_at
        if label is not None and (label not in columns or label == name):
            return [f"{type(step).__name__} of {name!r} looks at {label!r}, which is no other column"]
        if (
            label is not None
            and isinstance(step, LabelStep)
            and (bad := step.problems_of_label(field_of(label, columns[label])))
        ):
            return bad
        fields = step.out(fields)
    gone = [f"{field.name!r} may be missing: put SimpleImputer into its steps" for field in fields if field.missing]
    odd = [
        f"{name!r} is a category: encode it, or keep it apart with Label()"
        for f in fields
        if not f.number and not chain.beside
    ]
    many = [f"{name!r} is {len(fields)} numbers a row, and a label is one"] if chain.beside and len(fields) > 1 else []
    return gone + odd + many


def _not_secret(name: str, chain: Chain, columns: Mapping[str, Any]) -> list[str]:
    """Why parameters of rows that several parties have cannot stay secret."""
    fields: Fields = (field_of(name, columns[name]),)
    fitting = (
        [at for at, step in enumerate(chain.steps) if _has_parameters(step)] if columns[name].owner is None else []
    )
    if not fitting:
        return []
    if chain.beside or fitting != [len(chain.steps) - 1]:
        return [f"{name!r} has parameters that cannot stay secret: only those of its last step can"]
    for step in chain.steps[:-1]:
        fields = step.out(fields)
    bad = problem_of(chain.steps[-1], fields[0])
    return [bad] if bad else []


def _has_parameters(step: Step) -> bool:
    return not isinstance(step, (OneHotEncoder, OrdinalEncoder)) and getattr(step, "strategy", "") != "constant"


# ---- one column
def rows_of(joint: Table, name: str) -> tuple[Part, ...]:
    """The rows of a column as float64[rows, 1] of each party that has some, NaN where missing."""
    parts, missing = joint.parts(name), joint.missing(name)
    return tuple(_part(part, missing[at] if missing else None) for at, part in enumerate(parts))


def _part(values: Owned, missing: Owned | None) -> Part:
    def x() -> torch.Tensor:
        made = values.tensor.double().reshape(-1, 1)
        return made if missing is None else made.masked_fill(missing.tensor.reshape(-1, 1) != 0, float("nan"))

    return Part(values, x)


def weights_of(joint: Table) -> tuple[Owned, ...]:
    """The 0/1 presences of hidden rows, whose product is a row's weight; () where all rows count."""
    return tuple((getattr(joint, "weights", None) or {}).values()) if getattr(joint, "hidden", False) else ()


def mine(joint: Table, party: str) -> bool:
    """Whether this process has the rows of a party."""
    return joint.me is None or joint.me == party


def _fit_column(joint: Table, name: str, chain: Chain, reveal: str | None) -> Fit:
    column = joint.schema.columns[name]
    parts, weights = rows_of(joint, name), weights_of(joint)
    raw = field_of(name, column)
    fields: Fields = (raw,)
    fitted: list[Fitted] = []
    for step in chain.steps:
        if reveal == "nobody" and column.owner is None and not weights and _has_parameters(step):
            given = [(part.party, part.count, part.x if mine(joint, part.party) else None) for part in parts]
            secret = secrets_of(step, fields[0], given)
            return {"ready": Ready(name, None, chain.beside, raw, tuple(fitted), secret.fields, secret)}  # type: ignore[dict-item]
        if isinstance(step, LabelStep):
            of = joint.schema.columns[step.label]
            labels = Labels(rows_of(joint, step.label), field_of(step.label, of))
            here = lambda party: mine(joint, party)
            p = yield from step.fit_to(Rows(parts, weights), fields, labels, joint.schema.minimum, here)
            known = column.owner is None
        elif column.owner is not None and not Rows(parts, weights).hidden:
            p, known = _own(step, fields, parts[0], mine(joint, column.owner)), False
        else:
            p, known = (yield from fit_together(step, fields, Rows(parts, weights), name)), True
        if reveal == "all" and not known and p:
            p = yield from told(f"parameters of {name}", str(column.owner), step.shapes(fields), lambda p=p: p)  # type: ignore[misc]
            known = True
        one = Fitted(step, fields, p, known or not p)
        parts = tuple(
            replace(part, x=_after(part.x, one, place, sum(p.count for p in parts))) for part, place in _placed(parts)
        )
        fields = step.known(fields, p) if one.known else step.out(fields)
        fitted.append(one)
    return {"ready": Ready(name, column.owner, chain.beside, raw, tuple(fitted), fields)}  # type: ignore[dict-item]


def _own(step: Step, fields: Fields, part: Part, here: bool) -> dict[str, torch.Tensor]:
    """The parameters that an owner fits in the clear; zeros for the others."""
    if here:
        return {name: torch.from_numpy(values) for name, values in step.fit(part.x().numpy(), fields).items()}
    return {name: torch.zeros(shape, dtype=torch.float64) for name, shape in step.shapes(fields).items()}


def _placed(parts: Sequence[Part]) -> Iterator[tuple[Part, int]]:
    """Each part, with the place of its first row in the whole table."""
    place = 0
    for part in parts:
        yield part, place
        place += part.count


def _after(x: Callable[[], torch.Tensor], fitted: Fitted, place: int, of: int) -> Callable[[], torch.Tensor]:
    return lru_cache(1)(lambda: fitted.training(x(), place, of))
