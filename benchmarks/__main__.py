"""`python -m benchmarks [CASE ...] [--peers] [--json FILE] [--against COMMIT]`: measures and prints a table."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
from rich.console import Console

from benchmarks import builds, cases
from benchmarks.builds import Build, short
from benchmarks.measure import failed_row, machine, measure, plaintext_seconds
from benchmarks.rows import SYSTEM, Row, Rows, continued, row_of
from benchmarks.table import line, markdown, show, variant
from protocols import kernels
from protocols.errors import ConfigError, SecureModelError, explain
from securemodel.cli.base import FAILED, Command, print_error

_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[CASE]...")
@click.option("--peers", is_flag=True, help="Also run SPU and CrypTen (see benchmarks/peers).")
@click.option("--json", "json_file", type=_FILE, help="Save each row here when it is measured; goes on with a file.")
@click.option("--markdown", "markdown_file", type=_FILE, help="Save the table here.")
@click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Timed runs, after one warm-up.")
@click.option("--only-tls", is_flag=True, help="Leave out the runs without TLS and in one process.")
@click.option("--against", metavar="COMMIT", help="Build this commit, too, and measure both in turns.")
@click.option(
    "--turns", type=click.IntRange(1), default=3, show_default=True, help="With --against: turns of each build."
)
def main(
    names: tuple[str, ...],
    peers: bool,
    json_file: Path | None,
    markdown_file: Path | None,
    repeat: int,
    only_tls: bool,
    against: str | None,
    turns: int,
) -> None:
    """Times CASEs (all by default) as three processes over loopback TCP with TLS, the dealer included.

    Ends with 1 if a case could not be measured, which is a row that says why.
    """
    unknown = [name for name in names if name not in cases.BY_NAME]
    if unknown:
        raise click.UsageError(f"unknown case {', '.join(unknown)}; there are {', '.join(cases.BY_NAME)}")
    chosen = [cases.BY_NAME[name] for name in names] or list(cases.ALL)
    if peers:
        _check_peers()
    console, ours = Console(stderr=True), builds.here()
    same = {"machine": machine(), "kernels": kernels.info()["variant"], "commit": ours.commit, "repeat": repeat}
    rows = continued(json_file, same)
    console.print(
        f"kernels {variant(same['kernels'])} on {same['machine']}, commit {short(ours.commit)}", highlight=False
    )
    measured = [ours]
    if against:
        with console.status(f"building {against} ..."):
            measured.append(builds.other(against))
    for case in chosen:
        for row in _missing(case, rows, repeat, only_tls, measured, turns if against else 1, console):
            rows.add(row)
            console.print(line(row), highlight=False, markup=False, soft_wrap=True)
    ended_well = not peers or _peers(list(dict.fromkeys(case.peer_name for case in chosen)), rows, console)
    show(rows.rows)
    if markdown_file:
        markdown_file.write_text(markdown(rows.rows))
    failed = [f"{row.case} ({row.system}): {row.problem}" for row in rows.rows if row.failed]
    if failed:
        print_error("\n".join([f"{len(failed)} of {len(rows.rows)} rows could not be measured", *failed]))
    if failed or not ended_well:
        click.get_current_context().exit(FAILED)


def _missing(
    case: cases.Case, rows: Rows, repeat: int, only_tls: bool, measured: Sequence[Build], turns: int, console: Console
) -> Iterator[Row]:
    """Measures what the rows do not have of a case yet."""
    plain = functools.cache(lambda: plaintext_seconds(case))
    for transport in ("tls", "fast") if only_tls else ("tls", "fast", "plain", "local"):
        if all(rows.has(case.name, build.system(SYSTEM[transport])) for build in measured):
            continue
        try:
            with console.status(f"{case.name}, {SYSTEM[transport]} ..."):
                made = measure(case, transport, repeat, plain(), measured, turns)
        except Exception as error:  # of the case in the clear: it costs this case alone
            problem = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
            made = [failed_row(case, transport, repeat, measured[0], problem)]
        yield from made


def _check_peers() -> None:
    """Raises ConfigError where a peer is not there, before anything is measured."""
    from benchmarks.peers import missing_peers

    if missing := missing_peers():
        what, fix = f"the environments of these peers are not built: {', '.join(missing)}", "make bench-peers"
        raise ConfigError(explain(what, fix=fix))


def _peers(names: list[str], rows: Rows, console: Console) -> bool:
    """Measures the peers, case by case. Whether their environments work."""
    from benchmarks.peers import CASES, PEERS, run_peers

    for name in (name for name in names if name in CASES):
        for peer in PEERS:
            if any(row.case == name and row.system.lower().startswith(peer) and not row.problem for row in rows.rows):
                continue
            try:
                with console.status(f"{name}, {peer} ..."):
                    made = run_peers([name], peers=[peer])
            except SecureModelError as error:
                print_error(error)
                return False
            for row in map(row_of, made):
                rows.add(row)
                console.print(line(row), highlight=False, markup=False, soft_wrap=True)
    return True


if __name__ == "__main__":
    main()
