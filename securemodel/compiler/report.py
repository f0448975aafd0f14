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


@dataclass(frozen=True)
class Suspect:
    """A value of a model that may exceed `limit`, or of which nothing does; all its elements lie in [low, high]."""

    operator: str
    source: str
    low: float
    high: float
    limit: float

    @property
    def too_large(self) -> bool:
        return max(-self.low, self.high) > self.limit

    def __str__(self) -> str:
        largest = max(-self.low, self.high)
        if not self.too_large:
            return f"at most {largest:.2g}, which keeps less than half of the digits"
        return f"up to {largest:.2g}, above {self.limit:.2g}" if largest < _ANY else "of any size: a divisor may be 0"


@dataclass(frozen=True, repr=False)
class Magnitudes(Shown):
    """Where a model's values first leave what is shown to be right, by layer, in order. False where all is shown to fit.

    `without`: operators whose results nothing is known of. `assumed`: how far inputs were taken to go, None where their
    ranges were given.
    """

    suspects: tuple[Suspect, ...]
    without: tuple[str, ...] = ()
    assumed: float | None = None

    def __bool__(self) -> bool:
        return bool(self.suspects or self.without)

    def __str__(self) -> str:
        if not self:
            return ""
        inputs = "" if self.assumed is None else f" (for inputs within ±{self.assumed:.3g}; give others as ranges=)"
        shown = [f"\n    {s.source or s.operator}: {s}" for s in self.suspects[:_SHOWN]]
        more = len(self.suspects) - _SHOWN
        lines = "".join(shown) + (f"\n    and {more} more" if more > 0 else "")
        unknown = f"\n    nothing is known of what {', '.join(self.without)} gives" if self.without else ""
        return f"not shown to fit{inputs}:{lines}{unknown}\n    → measure it on data: securemodel.compare"


_SHOWN, _ANY = 5, 2.0**200


@dataclass(frozen=True, repr=False)
class Report(Shown):
    """The result of `check`: empty when the model compiles. True when there is no problem.

    `approximated`: where the errors of the operators are described that have some. `unchecked`: checks of the model that
    are left out, as their values are secret. `magnitudes`: values that are not shown to fit; None where weights have no
    values, where something has no secure version, and for other engines than the masked one.
    """

    model: str
    problems: tuple[Problem, ...]
    operators: tuple[str, ...]
    approximated: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    magnitudes: Magnitudes | None = None

    def __bool__(self) -> bool:
        return not self.problems

    def __str__(self) -> str:
        left_out = "".join(f"\n  left out, as it checks secret values: {source}" for source in self.unchecked)
        if not self.problems:
            errors = "".join(f"\n  approximated, with a bound: {page}" for page in self.approximated)
            doubts = f"\n  {self.magnitudes}" if self.magnitudes else ""
            return f"{self.model}: all {len(self.operators)} operators have a secure version{errors}{left_out}{doubts}"
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
