"""Prints measurements side by side."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from benchmarks.cases import BY_NAME
from benchmarks.rows import SYSTEM, Row

_INSTRUCTIONS = {"v4": "AVX-512", "v3": "AVX2", "baseline": "neither AVX-512 nor AVX2", "twins": "plain torch"}
COLUMNS = (
    "case", "system", "seconds", "plain ms", "× plain", "time / ours", "rounds", "sent MB/party", "preproc. MB", "error",
)  # fmt: skip


def show(rows: list[Row]) -> None:
    """One line per case and system; ratios against plaintext torch and against securemodel with TLS."""
    table = Table(title="seconds from inputs shared to result shared, or from step to step; dealer included (medians)")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name in ("case", "system") else "right")
    ours = _ours(rows)
    lines = list(_grouped(rows, ours))
    for (case, row), following in zip(lines, [*lines[1:], None], strict=True):
        table.add_row(*_cells(case, row, ours[case]), end_section=following is None or following[0] != case)
    console = Console(width=140)
    console.print(table)
    for text in notes(rows):
        console.print(text, highlight=False, markup=False, soft_wrap=True)


def variant(name: object) -> str:
    """A variant of the kernels and the instructions that it needs."""
    return f"{name} ({_INSTRUCTIONS.get(str(name), 'of an unknown kind')})"


def line(row: Row) -> str:
    """A row as one line of text."""
    if row.problem:
        return f"{row.case}, {row.system}: {row.problem}"
    if row.seconds is None:
        return f"{row.case}, {row.system}: not measured"
    sent, dealt = _megabytes(row.sent_bytes_per_party), _megabytes(row.preprocessing_bytes)
    told = f"{row.case}, {row.system}: {row.seconds:.3f} s, {row.rounds or '–'} rounds, {sent} MB a party, {dealt} MB dealt"
    return told + (f"; {_ratio(row)}" if row.ratio else "")


def notes(rows: list[Row]) -> list[str]:
    """What the columns have no place for: kernels, an image or sequence of a batch, ratios to another commit, problems."""
    used = sorted({variant(row.kernels) for row in rows if row.kernels})
    told = [f"kernels: {', '.join(used)}"] if used else []
    for row in rows:
        if row.items > 1 and row.seconds:
            sizes = (row.sent_bytes_per_party, row.preprocessing_bytes)
            sent, dealt = (_megabytes(None if size is None else size / row.items) for size in sizes)
            one = f"{row.seconds / row.items:.4f} s, {sent} MB a party, {dealt} MB dealt"
            told.append(f"{row.case}, {row.system}, one of {row.items}: {one}")
    told += [f"{row.case}, {row.system}: {_ratio(row)}" for row in rows if row.ratio]
    return told + [line(row) for row in rows if row.problem]


def _ratio(row: Row) -> str:
    return f"{row.ratio:.2f} of the other commit's time ({row.lowest_ratio:.2f} to {row.highest_ratio:.2f} by turns)"


def _ours(rows: list[Row]) -> dict[str, Row]:
    """What the rows of each case are divided by: the first of ours."""
    found: dict[str, Row] = {}
    for row in rows:
        if row.case in BY_NAME and (row.case not in found or row.system == SYSTEM["tls"]):
            found[row.case] = row
    return {case: row for case, row in found.items() if row.system.startswith(SYSTEM["tls"])}


def _grouped(rows: list[Row], ours: dict[str, Row]) -> Iterator[tuple[str, Row]]:
    """Each case with its rows and the peers' rows of the same work."""
    for case in ours:
        peer = BY_NAME[case].peer_name
        for row in rows:
            if row.case == case or (row.case == peer and not row.system.startswith(SYSTEM["tls"])):
                yield case, row


def _cells(case: str, row: Row, ours: Row) -> list[str]:
    plain = ours.plaintext_seconds
    return [
        case,
        row.system,
        f"{row.seconds:.3f}" if row.seconds is not None else "–",
        f"{plain * 1e3:.2f}" if plain else "–",
        f"{row.seconds / plain:.0f}" if plain and row.seconds else "–",
        f"{row.seconds / ours.seconds:.2f}" if row.seconds and ours.seconds else "–",
        "–" if row.rounds is None else str(row.rounds),
        _megabytes(row.sent_bytes_per_party),
        _megabytes(row.preprocessing_bytes),
        "–" if row.error is None else f"{row.error:.1e}",
    ]


def _megabytes(count: float | None) -> str:
    return "–" if count is None else f"{count / 1e6:.2f}"


def markdown(rows: list[Row]) -> str:
    """The same table as Markdown."""
    ours = _ours(rows)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * 2 + "---:|" * (len(COLUMNS) - 2)]
    lines += ["| " + " | ".join(_cells(case, row, ours[case])) + " |" for case, row in _grouped(rows, ours)]
    return "\n".join([*lines, "", *(f"- {text}" for text in notes(rows))]) + "\n"
