"""A report of an evaluation: one HTML page with pictures inside and nothing to load, and the same numbers as JSON.

The page has no script and no link, and says so to the browser. What is withheld or undefined is named where its number
would be.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from protocols.errors import InputError, explain
from protocols.files import file_errors, write_atomically
from securemodel.data.measured import Measured
from securemodel.data.pictures import picture, title
from securemodel.ledger import read_ledger
from securemodel.planning.units import bytes_text
from securemodel.version import __version__

Entries = Sequence[Mapping[str, Any]]
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
table { border-collapse: collapse; margin: 1rem 0; } caption { text-align: left; font-weight: 600; padding: .3rem 0; }
th, td { border: 1px solid #bbb; padding: .25rem .6rem; text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; } th { background: #f2f2f2; }
code { overflow-wrap: anywhere; } figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
"""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


# ---- as JSON
def _plain(x: Any) -> Any:
    """What JSON has: infinite thresholds are null."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, Mapping):
        return {str(name): _plain(value) for name, value in x.items()}
    return [_plain(value) for value in x] if isinstance(x, (list, tuple)) else x


def as_json(metrics: Mapping[str, Measured], facts: Mapping[str, Any], ledger: Entries = ()) -> dict[str, Any]:
    """All of a report as plain values; numbers in full, None where one is withheld, undefined or infinite."""
    found = {
        name: {"value": m.value, "error": m.error, "threshold": m.threshold, "method": m.method, "why": m.why,
               "notes": list(m.notes), "curve": dict(m.curve)}
        for name, m in metrics.items()
    }  # fmt: skip
    made = {"version": __version__, "facts": dict(facts), "metrics": found, "ledger": list(ledger)}
    return _plain(made)


# ---- as a page
def number_text(x: Any) -> str:
    """A number as the page shows it."""
    if x is None:
        return "withheld"
    if isinstance(x, float) and not math.isfinite(x):
        return "above all" if x > 0 else "below all"
    return f"{x:,}" if isinstance(x, int) else f"{x:.6g}"


def _cell(x: Any, code: bool = False) -> str:
    if isinstance(x, (int, float)) and not isinstance(x, bool):
        return f'<td class="number">{number_text(x)}</td>'
    text = html.escape(str(x))
    return f"<td>{f'<code>{text}</code>' if code and text else text}</td>"


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[Any]], code: Sequence[int] = ()) -> str:
    """A table with a caption and headings of columns; the first cell of a row is its heading."""
    top = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in head)
    body = "\n".join(
        f'<tr><th scope="row">{html.escape(str(row[0]))}</th>'
        + "".join(_cell(x, at in code) for at, x in enumerate(row[1:], 1))
        + "</tr>"
        for row in rows
    )
    return f"<table><caption>{html.escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _facts(facts: Mapping[str, Any]) -> str:
    rows = [("rows", facts["rows"]), ("parties", ", ".join(facts["parties"]))] if "rows" in facts else []
    rows += [("rows have secret weights", "yes" if facts["weighted"] else "no")] if "weighted" in facts else []
    rows += [("nothing is said of fewer rows than", facts["minimum"])] if "minimum" in facts else []
    rows += [
        (f"digest of the {name}", facts[key]) for name, key in (("schema", "schema"), ("rows", "data")) if key in facts
    ]
    rows += [(f"digest of program {at}", digest) for at, digest in enumerate(facts.get("programs", ()), 1)]
    return table("Data and programs", ("what", "value"), rows, code=(1,))


def _metrics(metrics: Mapping[str, Measured], facts: Mapping[str, Any]) -> str:
    rows = []
    for name, made in metrics.items():
        if made.value is None and made.curve:
            continue
        value = made.why if made.value is None else number_text(made.value)
        value += f" ± {made.error:.2g}" if made.value is not None and made.error is not None else ""
        cut = "" if made.threshold is None else number_text(made.threshold)
        to = facts.get("revealed", {}).get(name, "")
        rows.append((name, value, cut, made.method, "; ".join(made.notes), to))
    return table("Metrics", ("metric", "value", "threshold", "how", "notes", "revealed to"), rows)


def _matrix(made: Measured) -> str:
    cells = made.curve["matrix"]
    rows = [(f"class {at}", *("withheld" if x is None else x for x in row)) for at, row in enumerate(cells)]
    cut = f", at threshold {made.threshold:g}" if made.threshold is not None else ""
    counts = table(f"Rows by class (down) and by what they are called (across){cut}",
                   ("", *(f"called {at}" for at in range(len(cells)))), rows)  # fmt: skip
    return f"<h2>Confusion matrix</h2>{_notes(made)}{counts}"


def _notes(made: Measured) -> str:
    return "".join(f"<p>{html.escape(note)}</p>" for note in made.notes)


def _curve(made: Measured) -> str:
    """A picture, and its numbers as a table."""
    heading = html.escape(title(made.name))
    if not made.curve:
        return f"<h2>{heading}</h2><p>{html.escape(made.why)}</p>"
    columns = list(made.curve)
    rows = list(zip(*made.curve.values(), strict=True))
    shown = [tuple(number_text(x) for x in row[:1]) + row[1:] for row in rows]
    numbers = table(f"{title(made.name)}, {made.method}", [name.replace("_", " ") for name in columns], shown)
    details = f"<details><summary>The numbers</summary>{numbers}</details>"
    return f"<h2>{heading}</h2>{_notes(made)}<figure>{picture(made)}</figure>{details}"


def _costs(facts: Mapping[str, Any]) -> str:
    rows = [
        (cost["query"], cost["rounds"], ", ".join(f"{who} {bytes_text(n)}" for who, n in cost["sent_bytes"].items()),
         bytes_text(cost["dealt_bytes"]))
        for cost in facts.get("costs", ())
    ]  # fmt: skip
    return table("What it cost", ("query", "rounds", "sent", "dealt"), rows) if rows else ""


def _ledger(entries: Entries) -> str:
    if not entries:
        return ""
    head = ["time", *[name for name in ("me", "peers", "program", "reveals", "rows") if name in entries[0]]]
    rows = [[_said(entry.get(name, "")) for name in head] for entry in entries]
    return "<h2>Ledger</h2>" + table("What this party helped to answer", head, rows, code=[head.index("program")])


def _said(x: Any) -> Any:
    if isinstance(x, Mapping):
        return "; ".join(f"{name}: {_said(value)}" for name, value in x.items())
    return ", ".join(map(str, x)) if isinstance(x, (list, tuple)) else x


def as_html(metrics: Mapping[str, Measured], facts: Mapping[str, Any], ledger: Entries = ()) -> str:
    """The page. Raises ConfigError where there are curves and matplotlib is not installed."""
    parts = [_facts(facts), _metrics(metrics, facts)]
    for made in metrics.values():
        if "matrix" in made.curve:
            parts.append(_matrix(made))
        elif made.curve:
            parts.append(_curve(made))
    parts += [_costs(facts), _ledger(ledger)]
    told = "Computed on rows that no party showed to another. Only the numbers below were revealed"
    return page("Evaluation", told, parts)


def page(heading: str, told: str, parts: Sequence[str]) -> str:
    """A whole page of these parts, in HTML, that loads nothing and runs nothing. `told` stands above them."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{html.escape(_POLICY)}">'
        f'<meta name="viewport" content="width=device-width"><title>{html.escape(heading)}</title>'
        f"<style>{_STYLE}</style></head><body><main><h1>{html.escape(heading)}</h1>\n"
        f"<p>{html.escape(told)}, by securemodel {html.escape(__version__)}.</p>\n{body}\n</main></body></html>\n"
    )


def write(
    metrics: Mapping[str, Measured], facts: Mapping[str, Any], path: Path, ledger: str | Path | Entries = ()
) -> Path:
    """Writes the page, and the JSON beside it: report.html and report.json; the page's path.

    `ledger`: lines to list, or a ledger's file. Raises FileError, LedgerError, ConfigError (matplotlib).
    """
    if path.suffix != ".html":
        raise InputError(explain(f"the report {path} has another name than one of a page", fix="call it report.html"))
    entries = [line.fields for line in read_ledger(Path(ledger)).lines] if isinstance(ledger, (str, Path)) else ledger
    page, numbers = (
        as_html(metrics, facts, entries),
        json.dumps(as_json(metrics, facts, entries), indent=1, allow_nan=False),
    )
    with file_errors(path):
        write_atomically(path.with_suffix(".json"), numbers.encode())
        write_atomically(path, page.encode())
    return path
