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
        yield _Lines()
        return
    columns = (
        TextColumn("epoch {task.fields[epoch]}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[values]}"),
        TimeRemainingColumn(),
    )  # fmt: skip
    with Bar(*columns) as bar:
        task = bar.add_task("train", total=None, epoch=1, values="")
        yield lambda now: bar.update(task, completed=now.step, total=now.steps, epoch=now.epoch, values=_values(now))


class _Lines:
    """Says a line where enough time has passed. What is left follows from the steps after the first that it is told of:
    before it a program was compiled, or a training resumed."""

    def __init__(self) -> None:
        self._said_at = float("-inf")
        self._first: tuple[int, float] | None = None

    def __call__(self, now: Progress) -> None:
        at = time.monotonic()
        self._first = self._first or (now.step, at)
        if at - self._said_at >= _EVERY_S or now.step == now.steps:
            self._said_at = at
            click.echo(_said(now, now.step - self._first[0], at - self._first[1]))


def _said(now: Progress, made: int, seconds: float) -> str:
    """The line, where so many steps took so many seconds."""
    of = f" of {now.steps}" if now.steps else ""
    left = f", {seconds / made * (now.steps - now.step):.0f} s left" if now.steps and made else ""
    values = f": {_values(now)}" if now.returned else ""
    return f"epoch {now.epoch}, step {now.step}{of}{values}{left}"


def _values(now: Progress) -> str:
    return ", ".join(f"{name} {value:.5g}" for name, value in now.returned.items())
