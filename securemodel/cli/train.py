"""securemodel train: a training script as one party, or as all of them, with a progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from securemodel.cli import script as scripts
from securemodel.cli.base import Command
from securemodel.cli.run import FILE, Here, end_as, party_options, prefixed, run_all
from securemodel.invocation import Progress

_EVERY_S = 2.0  # between lines where no terminal shows a bar


@click.command(cls=Command, no_args_is_help=True)
@click.argument("script", type=FILE)
@click.argument("args", nargs=-1)
@party_options
def train(
    script: Path,
    args: tuple[str, ...],
    here: Here,
) -> None:
    """Run a training SCRIPT as one party, or as all of them, and show how far it is.

    The same script runs at every party: it makes a job with securemodel.compile_training() and calls connect() of it.
    It is run as `securemodel run` does, with epoch, step, what the step reveals to this party, and the time left.
    With --local it needs PARTIES at its top level.

    \b
    Examples:
      securemodel train train.py --local
      securemodel train train.py --me bank --config parties.toml
    """
    if names := here.everybody(script):
        words = ["train", "--ledger", here.ledger or "none"]
        return end_as(run_all(script, args, names, prefixed(names), words))
    with _shown() as progress, scripts.as_party(script, args, *here.party, ledger=here.ledger, progress=progress):
        scripts.run_main(script)


@contextmanager
def _shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal, elsewhere a line every few seconds and for the last step."""
    if not sys.stdout.isatty():
        began = time.monotonic()
        last = [0.0]

        def line(now: Progress) -> None:
            if time.monotonic() - last[0] >= _EVERY_S or now.step == now.steps:
                last[0] = time.monotonic()
                click.echo(_said(now, last[0] - began))

        yield line
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns) as bar:
        task = bar.add_task("train", total=None, epoch=1, values="")
        yield lambda now: bar.update(task, completed=now.step, total=now.steps, epoch=now.epoch, values=_values(now))


def _said(now: Progress, seconds: float) -> str:
    of = f" of {now.steps}" if now.steps else ""
    left = f", {seconds / now.step * (now.steps - now.step):.0f} s left" if now.steps and now.step else ""
    values = f": {_values(now)}" if now.returned else ""
    return f"epoch {now.epoch}, step {now.step}{of}{values}{left}"


def _values(now: Progress) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in now.returned.items())
