"""securemodel audit: who learns what of a program, and what was given to whom."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress, TextColumn

from protocols import identity
from securemodel.cli.base import FAILED, FILE, Command
from securemodel.cli.programs import load_target
from securemodel.inspect.answers import Summary, summed_up
from securemodel.inspect.attack import Attacked, attack
from securemodel.inspect.audit import Audit
from securemodel.inspect.audit import audit as audit_program
from securemodel.ledger import default_path, read_ledger
from securemodel.training.job import Job


@click.command(cls=Command, no_args_is_help=True)
@click.argument("program", metavar="[SCRIPT_OR_PROGRAM]", type=FILE, required=False)
@click.option("--config", type=FILE, help="A parties file: is the dealer one of the parties?")
@click.option("--attack", "attacking", is_flag=True, help="Also run the program many times, and attack it.")
@click.option("--sessions", default=24, show_default=True, help="With --attack: how many with each of two inputs.")
@click.option("--ledger", metavar="[FILE]", is_flag=False, flag_value="", help="Sum up a ledger: your own, or FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def audit(
    program: Path | None, config: Path | None, attacking: bool, sessions: int, ledger: str | None, as_json: bool
) -> None:
    """Say who learns what of a program, what each must be trusted with, and which choices are weak.

    SCRIPT_OR_PROGRAM is what `securemodel plan` takes: a text written by Program.save(), or a Python file that defines
    `program` or make_program(), or of a training `job` or make_job(), and is imported. With --attack, the program is
    also run in this process, with made-up inputs and weights: what each party receives is tested for being random, and
    messages are changed on their way. Ends with 1 if a test fails, or a changed message makes something hang or end in
    a foreign exception.

    Every run of a session between processes is written into a ledger before anything of it is sent. --ledger says how
    many answers were given to whom, and ends with 1 if the ledger's chain is broken: if a line was changed, removed or
    put in between.

    \b
    Examples:
      securemodel audit infer.py
      securemodel audit program.txt --config parties.toml --json
      securemodel audit infer.py --attack
      securemodel audit --ledger
      securemodel audit --ledger /var/lib/bank/ledger --json
    """
    if (program is None) == (ledger is None):
        raise click.UsageError("give a program, or --ledger.")
    if program is None and (attacking or config):
        raise click.UsageError("--attack and --config go with a program.")
    if program is None:
        made = summed_up(read_ledger(ledger or default_path()))
        _print(made, as_json)
        if made.breaks:
            click.get_current_context().exit(FAILED)
        return
    parties = identity.load_config(config) if config else None
    loaded = load_target(program)
    if isinstance(loaded, Job):
        if attacking:
            raise click.UsageError("--attack is for programs of inference: the same engine runs a training.")
        return _print_training(
            {name: audit_program(made, parties) for name, made in loaded.programs().items()}, as_json
        )
    found, attacked = audit_program(loaded, parties), None
    if attacking:
        with Progress(TextColumn("{task.description}"), console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("attack")
            attacked = attack(loaded, sessions, lambda said: progress.update(task, description=said))
    _print(found, as_json, attacked)
    if attacked and not attacked.passed:
        click.get_current_context().exit(FAILED)


def _print_training(found: Mapping[str, Audit], as_json: bool) -> None:
    """The audits of all programs that a training runs."""
    if as_json:
        click.echo(json.dumps({name: made.json() for name, made in found.items()}, indent=2))
        return
    click.echo("\n\n".join(f"{name}: {made}" for name, made in found.items()))
    click.echo("\nbesides: whoever export(to=...) names learns all weights; see docs/training.md")


def _print(made: Audit | Summary, as_json: bool, attacked: Attacked | None = None) -> None:
    if as_json:
        click.echo(json.dumps({**made.json(), **({"attack": attacked.json()} if attacked else {})}, indent=2))
        return
    click.echo("\n\n".join(map(str, filter(None, (made, attacked)))))
