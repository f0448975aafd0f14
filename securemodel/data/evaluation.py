"""An evaluation that a script describes and the command line runs: tables, model, label, and which rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from securemodel.data.evaluate import Asked, Model, asked
from securemodel.data.joint import Joint
from securemodel.data.schema import Schema
from securemodel.data.table import Source


@dataclass(frozen=True, repr=False)
class EvaluationSetup:
    """What `securemodel evaluate` finds in a script as `evaluation`; made by `evaluation(...)`."""

    schema: Schema
    tables: tuple[Source, ...]
    model: Model
    label: str
    rows: Callable[[Joint], Joint] | None = None
    aligned: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def asked(self, joint: Joint, **more: Any) -> Asked:
        """The evaluation of the rows that the script chooses. Raises as `evaluate` does, and as the script's own calls."""
        chosen = self.rows(joint) if self.rows else joint
        return asked(self.model, chosen, label=self.label, **{**self.settings, **more})

    def preview(self, joint: Joint, **more: Any) -> Asked:
        """The same before anybody is reached: as if all rows that this party has were joint ones. It cannot run."""
        if joint.waiting:
            own = max((table.rows for table in joint.tables.values()), default=0)
            joint = replace(joint, waiting=False, positions=(np.arange(own),), _made={})
        return asked(self.model, joint, label=self.label, **{**self.settings, **more})


def evaluation(
    schema: Schema,
    tables: Sequence[Source],
    model: Model,
    label: str,
    *,
    rows: Callable[[Joint], Joint] | None = None,
    aligned: str | Path | None = None,
    **settings: Any,
) -> EvaluationSetup:
    """Describes an evaluation for `securemodel evaluate`: `evaluation = data.evaluation(...)` at a script's top level.

    `rows` takes the joint table and gives what is evaluated, such as `lambda joint: joint.align("all").split(0.8, 1)[1]`.
    `aligned`: the folder that `securemodel align` wrote. `settings` are those of `data.evaluate`, for instance metrics.
    """
    return EvaluationSetup(
        schema, tuple(tables), model, label, rows, None if aligned is None else Path(aligned), settings
    )
