"""Prints measurements side by side."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from benchmarks.cases import BY_NAME
from benchmarks.measure import SYSTEM, Row

COLUMNS = (
    "case", "system", "seconds", "plain ms", "× plain", "time / ours", "rounds", "sent MB/party", "preproc. MB", "error",
)  # fmt: skip


def show(rows: list[Row]) -> None:
    """One line per case and system; ratios against plaintext torch and against securemodel with TLS."""
    table = Table(title="seconds from inputs shared to result shared, or from step to step; dealer included (medians)")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("case", "system") else "right")
    ours = {row.case: row for row in rows if row.system == SYSTEM["tls"]}
    lines = list(_grouped(rows, ours))
    for (case, row), following in zip(lines, [*lines[1:], None], strict=True):
        table.add_row(*_cells(case, row, ours[case]), end_section=following is None or following[0] != case)
    Console(width=140).print(table)


def _grouped(rows: list[Row], ours: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """Each case with its rows and the peers' rows of the same work."""
    for case in ours:
        peer = BY_NAME[case].peer_name
        for row in rows:
            if row.case == case or (row.case == peer and row.system not in SYSTEM.values()):
                yield case, row


def _cells(case: str, row: Row, ours: Row) -> list[str]:
    plain = ours.plaintext_seconds
    return [
        case,
        row.system,
        f"{row.seconds:.3f}" if row.seconds is not None else "–",
        f"{plain * 1e3:.2f}" if plain else "–",
        f"{row.seconds / plain:.0f}" if plain and row.seconds else "–",
        f"{row.seconds / ours.seconds:.2f}" if row.seconds else "–",
        "–" if row.rounds is None else str(row.rounds),
        _megabytes(row.sent_bytes_per_party),
        _megabytes(row.preprocessing_bytes),
        "–" if row.error is None else f"{row.error:.1e}",
    ]


def _megabytes(count: int | None) -> str:
    return "–" if count is None else f"{count / 1e6:.2f}"


def markdown(rows: list[Row]) -> str:
    """The same table as Markdown."""
    ours = {row.case: row for row in rows if row.system == SYSTEM["tls"]}
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * 2 + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(_cells(case, row, ours[case])) + " |" for case, row in _grouped(rows, ours)]
    return "\n".join(lines) + "\n"
