"""securemodel dealer: the helper process that deals correlated randomness."""

from __future__ import annotations

from pathlib import Path

import click

from protocols import identity
from protocols.errors import ConfigError, explain
from protocols.identity import DEALER, Identity, PartiesConfig
from securemodel.cli.base import FILE, Command
from securemodel.compiler.ops import MAX_PROGRAM_BYTES
from securemodel.engines.masked.dealer import MOST_SESSIONS, serve

max_gib_option = click.option(
    "--max-gib",
    type=click.FloatRange(min=0, min_open=True, max=2.0**30),
    default=MAX_PROGRAM_BYTES / 2**30,
    show_default=True,
    help="Refuse a program whose values, with what is dealt for them, take more GiB than this.",
)
device_option = click.option(
    "--device",
    metavar="NAME",
    help="What computes here: cpu (the default), cuda, or cuda:1. Results are the same bits, and the others see nothing of it.",
)


@click.command(cls=Command)
@click.option("--config", required=True, type=FILE, help="A parties file with [dealer], and [me] of the dealer.")
@click.option("--once", is_flag=True, help="End after the first session, with an error if it failed.")
@click.option(
    "--sessions",
    type=click.IntRange(1, 1024),
    default=MOST_SESSIONS,
    show_default=True,
    help="Serve at most so many sessions at a time, each of up to --max-gib.",
)
@max_gib_option
@device_option
def dealer(config: Path, once: bool, sessions: int, max_gib: float, device: str | None) -> None:
    """Serve correlated randomness to the parties of a file.

    The dealer learns which program the parties run, and sees neither their data nor their messages. It must not
    work together with any of them. It serves sessions, several at a time, until it is stopped.

    \b
    Example:
      securemodel dealer --config parties.toml
    """
    parties = identity.load_config(config)
    entry = parties.entry(DEALER)
    own = own_identity(parties, DEALER)
    click.echo(f"dealer for {', '.join(parties.parties)} on {entry.address}")
    if not once:
        click.echo(
            f"at most {sessions} sessions at a time, of up to {max_gib:g} GiB: {sessions * max_gib:g} GiB in all"
        )
    limit = int(max_gib * 2**30)
    serve(parties, own, once=once, sessions=sessions, max_bytes=limit, device=device, say=click.echo)


def own_identity(parties: PartiesConfig, me: str) -> Identity:
    """The identity the parties file names for this process; checked before the script starts. Raises ConfigError."""
    if parties.identity is None:
        raise ConfigError(
            explain(
                f"the parties file does not say where the identity of {me!r} is",
                where=str(parties.path),
                fix=f'make one with `securemodel keys new {me}`, and name its folder: [me] identity = "keys/{me}"',
            )
        )
    own = identity.load(parties.identity)
    if own.name != me:
        fix = "use this party's own parties file and identity"
        raise ConfigError(explain(f"the identity is of {own.name!r}, not {me!r}", where=str(parties.identity), fix=fix))
    return own
