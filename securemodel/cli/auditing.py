"""securemodel audit: who learns what, and what was given to whom."""

from __future__ import annotations

import json

import click

from securemodel.cli.base import FAILED, Command
from securemodel.inspect.answers import summed_up
from securemodel.ledger import default_path, read_ledger


@click.command(cls=Command, no_args_is_help=True)
@click.option("--ledger", metavar="[FILE]", is_flag=False, flag_value="", help="Sum up a ledger: your own, or FILE.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")
def audit(ledger: str | None, as_json: bool) -> None:
    """Say how many answers were given to whom.

    Every run of a session between processes is written into a ledger before anything of it is sent. --ledger sums it
    up, and ends with 1 if its chain is broken: if a line was changed, removed or put in between.

    \b
    Examples:
      securemodel audit --ledger
      securemodel audit --ledger /var/lib/bank/ledger --json
    """
    made = summed_up(read_ledger(ledger or default_path()))
    click.echo(json.dumps(made.json(), indent=2) if as_json else str(made))
    if made.breaks:
        click.get_current_context().exit(FAILED)
