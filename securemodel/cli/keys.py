"""securemodel keys: make a party's identity, and show what the others need to know of it; make a Paillier key."""

from __future__ import annotations

from pathlib import Path

import click

from protocols import identity
from protocols.errors import ConfigError, explain
from protocols.identity import DEALER, Identity
from securemodel.cli.base import Command


@click.group()
def keys() -> None:
    """Make and show the identity of a party.

    An identity is a private key and a certificate. Parties know each other by their certificates: each hands its own
    to the others, who write it into their parties files and compare its fingerprint, for example by telephone.
    """


@keys.command(cls=Command, no_args_is_help=True)
@click.argument("name")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the two files.  [default: keys/NAME]",
)
def new(name: str, out: Path | None) -> None:
    """Make an identity for the party NAME (or for the 'dealer').

    \b
    Examples:
      securemodel keys new bank
      securemodel keys new dealer --out /etc/securemodel/dealer
    """
    folder = out or Path("keys") / name
    _show(identity.create(name, folder), folder)


@keys.command(cls=Command, no_args_is_help=True)
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
def show(folder: Path) -> None:
    """Show the identity in DIR: its name, fingerprint, and what to put into parties files.

    \b
    Example:
      securemodel keys show keys/bank
    """
    _show(identity.load(folder), folder)


@keys.command(cls=Command, no_args_is_help=True)
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--bits", type=click.Choice(["2048", "3072"]), default="3072", show_default=True, help="Size of the key.")
def paillier(file: Path, bits: str) -> None:
    """Make a private Paillier key in FILE, for a client of encrypted graphs that keeps its key between sessions.

    \b
    Example:
      securemodel keys paillier client.key
    """
    from protocols.paillier import generate, save_private

    if file.exists():
        raise ConfigError(explain(f"{file} exists", why="a key is never overwritten", fix="choose another name"))
    key = generate(int(bits))
    save_private(key, file)
    click.echo(
        f"private key of {bits} bits in {file} (never leaves this machine), fingerprint {key.public.fingerprint}"
    )


def _show(own: Identity, folder: Path) -> None:
    section = DEALER if own.name == DEALER else f"parties.{own.name}"
    click.echo(f"name         {own.name}")
    click.echo(f"fingerprint  {own.fingerprint}")
    click.echo(f"certificate  {own.certificate_path}   (hand this file to the other parties)")
    click.echo(f"private key  {own.key_path}   (never leaves this machine)")
    click.echo("\nIn the parties file of every party and of the dealer, with the certificate beside it:\n")
    click.echo(f"[{section}]")
    click.echo('address = "HOST:PORT"')
    click.echo(f'certificate = "{own.name}.crt"   # a copy of {own.certificate_path.name}')
    click.echo(f'fingerprint = "{own.fingerprint}"')
    click.echo("\nOnly in the parties file of this machine:\n")
    click.echo("[me]")
    click.echo(f'identity = "{folder}"   # relative to the parties file')
