"""`python -m benchmarks [CASE ...] [--peers] [--json FILE]`: measures and prints a table."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from benchmarks import cases
from benchmarks.measure import Row, as_json, measure, measure_local, plaintext_seconds
from benchmarks.table import markdown, show


@click.command()
@click.argument("names", nargs=-1, metavar="[CASE]...")
@click.option("--peers", is_flag=True, help="Also run SPU and CrypTen (see benchmarks/peers).")
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the rows here.")
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path), help="Save the table here."
)
@click.option("--repeat", default=5, show_default=True, help="Timed runs per case, after one warm-up.")
@click.option("--only-tls", is_flag=True, help="Leave out the runs without TLS and in one process.")
def main(
    names: tuple[str, ...], peers: bool, json_file: Path | None, markdown_file: Path | None, repeat: int, only_tls: bool
) -> None:
    """Times CASEs (all by default) as three processes over loopback TCP with TLS, the dealer included."""
    unknown = [name for name in names if name not in cases.BY_NAME]
    if unknown:
        raise click.UsageError(f"unknown case {', '.join(unknown)}; there are {', '.join(cases.BY_NAME)}")
    chosen = [cases.BY_NAME[name] for name in names] or list(cases.ALL)
    console, rows = Console(stderr=True), []
    for case in chosen:
        with console.status(f"{case.name} ..."):
            rows += _measured(case, repeat, only_tls)
    if peers:
        rows += _peers(list(dict.fromkeys(case.peer_name for case in chosen)), console)
    show(rows)
    if json_file:
        json_file.write_text(as_json(rows))
    if markdown_file:
        markdown_file.write_text(markdown(rows))


def _measured(case: cases.Case, repeat: int, only_tls: bool) -> list[Row]:
    plain = plaintext_seconds(case)
    rows = [measure(case, transport, repeat, plain) for transport in ("tls", "fast")]
    if not only_tls:
        rows += [measure(case, "plain", repeat, plain), measure_local(case, repeat, plain)]
    return rows


def _peers(names: list[str], console: Console) -> list[Row]:
    from benchmarks.peers import CASES, run_peers

    names = [name for name in names if name in CASES]
    with console.status("peers ..."):
        return [Row(**{k: v for k, v in row.items() if k in Row.__dataclass_fields__}) for row in run_peers(names)]


if __name__ == "__main__":
    main()
