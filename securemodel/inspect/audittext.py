"""An audit as text, at most 110 columns wide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from textwrap import wrap
from typing import Any

from protocols.errors import printable
from securemodel.inspect.statement import Constant, Output, Role, WeakChoice
from securemodel.inspect.tables import COLUMNS, table_text
from securemodel.planning.units import count_text
from securemodel.shown import Shown

_MOST_LINES = 6


@dataclass(frozen=True, repr=False)
class Audit(Shown):
    """What a program tells whom; print it. `by_design` is what everybody who takes part knows."""

    program: str
    protocol: str
    rounding: str
    roles: tuple[Role, ...]
    outputs: tuple[Output, ...]
    by_design: tuple[str, ...]
    masks: Mapping[str, str]
    constants: tuple[Constant, ...]
    warnings: tuple[WeakChoice, ...]

    def json(self) -> dict[str, Any]:
        """Plain values, as docs/audit.md describes them."""
        return asdict(self)

    def __str__(self) -> str:
        return audit_text(self)


def audit_text(found: Audit) -> str:
    """What `print(audit)` shows."""
    lines = [f"program {found.program[:12]}, protocol {found.protocol}, rounding {found.rounding}"]
    for role in found.roles:
        lines += ["", *_role(role)]
    lines += ["", "results", *_indented(table_text(_OUTPUT, map(_output, found.outputs)))]
    if found.masks:
        lines += ["", "masks live", *(line for item in found.masks.items() for line in _item(": ".join(item)))]
    lines += ["", "known to all parties by design", *(line for what in found.by_design for line in _item(what))]
    if found.constants:
        lines += ["", "numbers in the program's text", *_constants(found)]
    return printable("\n".join([*lines, "", *_warnings(found)]))  # a text from outside names what is computed


def _role(role: Role) -> Iterator[str]:
    yield f"{role.name}  brings {', '.join(role.brings) or 'nothing'}"
    if role.sees:
        rows = [
            (s.what, s.phase, str(s.openings), count_text(s.numbers), count_text(s.bits), s.hidden_by)
            for s in role.sees
        ]
        yield from _indented(table_text(_SEEN, rows, _SEEN[2:5]))
    for what in role.learns or ["nothing"]:
        yield from _item(f"learns {what}")
    for what, count in _some(list(role.in_the_clear.items())):
        yield from _item(f"computes in the clear {what}{f' ({count} times)' if count > 1 else ''}")
    for what in role.trusted_with:
        yield from _item(f"trusted with: {what}" if not what.startswith("to ") else f"trusted {what}")


_SEEN = ("sees", "phase", "openings", "numbers", "bits", "hidden by")
_OUTPUT = ("result", "to", "shape", "type", "fractional bits", "rounding")


def _output(out: Output) -> tuple[str, ...]:
    bits = "float" if out.fractional_bits is None else str(out.fractional_bits)
    more = f" ({out.excess_bits} more than the program's)" if out.excess_bits else ""
    return out.name, out.to, str(list(out.shape)), out.dtype, bits + more, out.rounding


def _constants(found: Audit) -> Iterator[str]:
    for constant in _some(found.constants):
        if isinstance(constant, tuple):
            yield f"  {constant[0]}"
            continue
        more = ", ..." if constant.count > len(constant.first) else ""
        numbers = ", ".join(f"{number:.6g}" for number in constant.first)
        yield from _item(f"{constant.source}: {constant.count} ({numbers}{more})")


def _some(items: Sequence) -> Iterator:
    """The first few, and how many more there are."""
    yield from items[:_MOST_LINES]
    if len(items) > _MOST_LINES:
        yield (f"and {len(items) - _MOST_LINES} more: see --json", 0)


def _warnings(found: Audit) -> Iterator[str]:
    count = len(found.warnings)
    yield "no weak choices found" if not count else f"{count} weak choice{'s' if count > 1 else ''}"
    for warning in found.warnings:
        yield from _item(f"{warning.name}: {warning.what}", "! ")
        yield from _item(f"→ {warning.fix}", "    ")


def _item(text: str, mark: str = "- ") -> list[str]:
    return wrap(text, COLUMNS, initial_indent=f"  {mark}", subsequent_indent="  " + " " * len(mark))


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]
