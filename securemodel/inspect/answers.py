"""How many answers were given to whom, out of a ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from securemodel.inspect.tables import table_text
from securemodel.ledger import Break, Contents, Line
from securemodel.shown import Shown


@dataclass(frozen=True)
class Answers:
    """What one receiver learned of one program: rows in runs of sessions, between two times.

    `me` is the party that wrote this down; `receiver` may be "all". Runs that failed after they began are counted.
    """

    receiver: str
    program: str
    protocol: str
    reveals: tuple[str, ...]
    me: str
    peers: tuple[str, ...]
    rows: int
    runs: int
    sessions: int
    first: str
    last: str


@dataclass(frozen=True, repr=False)
class Summary(Shown):
    """A ledger summed up; print it for a table."""

    path: str
    lines: int
    answers: tuple[Answers, ...]
    breaks: tuple[Break, ...]
    last_line: str

    def json(self) -> dict[str, Any]:
        """Plain values, as docs/audit.md describes them."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"ledger {self.path}: {self.lines} runs"]
        if self.answers:
            lines += ["", table_text(_HEADINGS, map(_cells, self.answers), ("rows", "runs", "sessions")), ""]
        lines += [f"total of {name}: {rows} rows, by {me}" for (name, me), rows in self._totals()]
        lines += [f"BROKEN at line {found.number}: it {found.how}" for found in self.breaks]
        if not self.breaks:
            lines.append("the chain is whole: no line was changed, removed or put in between")
        lines.append(f"last line sha256 {self.last_line}")
        lines.append("note it elsewhere: only so can it be seen later that nothing was cut off at the end")
        return "\n".join(lines)

    def _totals(self) -> list[tuple[tuple[str, str], int]]:
        """Rows by receiver and by who wrote them down: parties of one machine may share a ledger."""
        totals: dict[tuple[str, str], int] = {}
        for found in self.answers:
            totals[found.receiver, found.me] = totals.get((found.receiver, found.me), 0) + found.rows
        return sorted(totals.items(), key=lambda pair: -pair[1])


def summed_up(contents: Contents) -> Summary:
    """For each receiver and program, what was given; the receiver of most rows first."""
    groups: dict[tuple, list[Line]] = {}
    for line in contents.lines:
        for receiver, names in line.fields["reveals"].items():
            key = (receiver, line.fields["program"], line.fields["me"], tuple(map(str, names)))
            groups.setdefault(key, []).append(line)
    answers = [_answers(key, lines) for key, lines in groups.items()]
    answers.sort(key=lambda found: (-found.rows, found.receiver, found.program))
    return Summary(str(contents.path), len(contents.lines), tuple(answers), contents.breaks, contents.last)


def _answers(key: tuple, lines: Sequence[Line]) -> Answers:
    (receiver, program, me, names), fields = key, [line.fields for line in lines]
    times = sorted(part["time"] for part in fields)
    peers = dict.fromkeys(str(peer) for part in fields for peer in part["peers"])
    sessions = len({part["session"] for part in fields})
    rows = sum(part["rows"] for part in fields)
    return Answers(
        receiver,
        program,
        fields[0]["protocol"],
        names,
        me,
        tuple(peers),
        rows,
        len(lines),
        sessions,
        times[0],
        times[-1],
    )


_HEADINGS = ("to", "program", "reveals", "rows", "runs", "sessions", "first", "last", "written by")


def _cells(found: Answers) -> tuple[str, ...]:
    times = (time[:16].replace("T", " ") for time in (found.first, found.last))
    counts = map(str, (found.rows, found.runs, found.sessions))
    return (found.receiver, found.program[:12], ", ".join(found.reveals), *counts, *times, found.me)
