"""What in a model has no secure version, all of it at once."""

from __future__ import annotations

from dataclasses import dataclass

from securemodel.shown import Shown


@dataclass(frozen=True)
class Problem:
    """One operator without a secure version, or used as it has none; `page` says what it has."""

    operator: str
    source: str
    reason: str
    remedy: str
    page: str = ""


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """The result of `check`: empty when the model compiles. True when there is no problem.

    `approximated`: where the errors of the operators are described that have some. `unchecked`: checks of the model that
    are left out, as their values are secret.
    """

    model: str
    problems: tuple[Problem, ...]
    operators: tuple[str, ...]
    approximated: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        left_out = "".join(f"\n  left out, as it checks secret values: {source}" for source in self.unchecked)
        if not self.problems:
            errors = "".join(f"\n  approximated, with a bound: {page}" for page in self.approximated)
            return f"{self.model}: all {len(self.operators)} operators have a secure version{errors}{left_out}"
        count = len(self.problems)
        verb = "operator of this model has" if count == 1 else "operators of this model have"
        lines = [f"{count} {verb} no secure version ({self.model})"]
        width = max(len(p.operator) for p in self.problems)
        for p in self.problems:
            lines.append(f"  {p.operator:<{width}}  {p.source}")
            lines.append(f"  {'':<{width}}  {p.reason}")
            if p.remedy:
                lines.append(f"  {'':<{width}}  → {p.remedy}")
            if p.page:
                lines.append(f"  {'':<{width}}  what it supports: {p.page}")
        return "\n".join(lines) + left_out
