"""securemodel audit: who learns what of a program, and what was given to whom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from protocols import identity
from securemodel.cli.base import FAILED, Command
from securemodel.cli.programs import load_program
from securemodel.cli.run import FILE
from securemodel.inspect.answers import summed_up
from securemodel.inspect.audit import audit as audit_program
from securemodel.ledger import default_path, read_ledger


@click.command(cls=Command, no_args_is_help=True)
@click.argument("program", metavar="[SCRIPT_OR_PROGRAM]", type=FILE, required=False)
@click.option("--config", type=FILE, help="A parties file: is the dealer one of the parties?")
@click.option("--ledger", metavar="[FILE]", is_flag=False, flag_value="", help="Sum up a ledger: your own, or FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def audit(program: Path | None, config: Path | None, ledger: str | None, as_json: bool) -> None:
    """Say who learns what of a program, what each must be trusted with, and which choices are weak.

    SCRIPT_OR_PROGRAM is what `securemodel plan` takes: a text written by Program.save(), or a Python file that defines
    `program` or make_program() and is imported.

    Every run of a session between processes is written into a ledger before anything of it is sent. --ledger says how
    many answers were given to whom, and ends with 1 if the ledger's chain is broken: if a line was changed, removed or
    put in between.

    \b
    Examples:
      securemodel audit infer.py
      securemodel audit program.txt --config parties.toml --json
      securemodel audit --ledger
      securemodel audit --ledger /var/lib/bank/ledger --json
    """
    if (program is None) == (ledger is None):
        raise click.UsageError("give a program, or --ledger.")
    if program is None:
        made = summed_up(read_ledger(ledger or default_path()))
        _print(made, as_json)
        if made.breaks:
            click.get_current_context().exit(FAILED)
        return
    parties = identity.load_config(config) if config else None
    _print(audit_program(load_program(program), parties), as_json)


def _print(made: Any, as_json: bool) -> None:
    click.echo(json.dumps(made.json(), indent=2) if as_json else str(made))
