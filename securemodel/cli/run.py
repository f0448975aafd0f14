"""securemodel run: a script as one party of a session, or as all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

import click

from protocols import identity
from protocols.errors import ConfigError, explain
from protocols.identity import DEALER
from securemodel.cli import script as scripts
from securemodel.cli.base import FILE, Command, print_error, wants_traceback
from securemodel.cli.dealing import device_option, own_identity
from securemodel.cli.launch import Outcome, run_local
from securemodel.cli.processes import Say, prefixed

PROTOCOLS = ("masked", "paillier")
"""Those that a script can be run with. Who starts the others needs none of the engines, which take seconds to import."""

_PARTY_OPTIONS = (
    click.option(
        "--local", is_flag=True, help="All parties and the dealer on this machine, with identities of their own."
    ),
    click.option(
        "--parties", metavar="A,B", help="With --local: the parties' names, instead of PARTIES in the script."
    ),
    click.option("--me", metavar="NAME", help="Be this party of a parties file."),
    click.option("--config", type=FILE, help="With --me: the parties file (see `securemodel keys`)."),
    click.option(
        "--store",
        type=click.Path(exists=True, file_okay=False, path_type=Path),
        help="With --me: use what `securemodel prepare` made for this party, and no dealer.",
    ),
    click.option(
        "--ledger",
        metavar="FILE|none",
        help="Where runs are written down (see `securemodel audit`), instead of the user's own ledger; with --local, none.",
    ),
    device_option,
)


@dataclass(frozen=True)
class Here:
    """What these options say: which parties run here."""

    local: bool
    parties: str | None
    me: str | None
    config: Path | None
    store: Path | None
    ledger: str | None
    device: str | None

    def everybody(self, script: Path, *of_one: object) -> tuple[str, ...]:
        """The parties, where all of them run here, else nothing: then this party's identity is there.

        `of_one` are other options that go with --me. Raises UsageError, ConfigError.
        """
        if self.local:
            if any((self.me, self.config, self.store, *of_one)):
                raise click.UsageError("--local is for all parties of a session: leave out options that go with --me.")
            names = scripts.split_names(self.parties) if self.parties else ()
            return scripts.checked_parties(names) if names else scripts.declared_parties(script)
        if self.parties:
            raise click.UsageError("--parties goes with --local; with --me the parties file names them.")
        if not self.me or not self.config:
            raise click.UsageError("give --local, or both --me NAME and --config FILE.")
        check_identity(self.me, self.config)
        return ()

    @property
    def party(self) -> tuple[str, Path, Path | None]:
        """Name, parties file and store of this party, where it is one."""
        return cast(str, self.me), cast(Path, self.config), self.store


def party_options(command: Callable) -> Callable:
    """The options that say which parties run here, as the argument `here`."""

    @functools.wraps(command)
    def called(*args: Any, **options: Any) -> Any:
        here = Here(**{field.name: options.pop(field.name) for field in fields(Here)})
        return command(*args, here=here, **options)

    for option in reversed(_PARTY_OPTIONS):
        called = option(called)
    return called


@click.command(cls=Command, no_args_is_help=True)
@click.argument("script", type=FILE)
@click.argument("args", nargs=-1)
@party_options
@click.option(
    "--protocol",
    type=click.Choice(PROTOCOLS),
    help="What runs programs whose compile() names no protocol; the same at every party.",
)
@click.option(
    "--paillier-key",
    type=FILE,
    help="With --me: the client's private key for a program of the protocol paillier, instead of a new one.",
)
def run(
    script: Path,
    args: tuple[str, ...],
    here: Here,
    protocol: str | None,
    paillier_key: Path | None,
) -> None:
    """Run a Python SCRIPT as one party of a session, or as all of them.

    The same script runs at every party; securemodel.connect() in it knows who it is. With --local a script needs
    PARTIES = ("bank", "hospital") at its top level; where it also has DEALER = False, none is started. Put -- before
    ARGS that begin with a dash.

    \b
    Examples:
      securemodel run infer.py --local
      securemodel run infer.py --local -- --images 100
      securemodel run infer.py --local --protocol paillier
      securemodel run infer.py --me bank --config parties.toml
      securemodel run infer.py --me bank --config parties.toml --store prepared/bank

    \b
    Ends with 0 if all went well, 2 if called wrongly, 3 if the parties could not go on together, 130 if interrupted,
    1 for other errors, and with the script's own code where it calls sys.exit. With --local it is the exit code of
    the party that failed first; the others are stopped.
    """
    if names := here.everybody(script, paillier_key):
        words = ["run", "--ledger", here.ledger or "none", *(["--protocol", protocol] if protocol else [])]
        return end_as(run_all(script, args, names, prefixed(names), words, device=here.device))
    known = scripts.as_party(
        script, args, *here.party, paillier_key=paillier_key, protocol=protocol, ledger=here.ledger, device=here.device
    )
    with known:
        scripts.run_main(script)


def run_all(
    script: Path,
    args: tuple[str, ...],
    names: tuple[str, ...],
    say: Say,
    command: Sequence[str],
    contributors: Sequence[str] = (),
    lanes: int = 1,
    device: str | None = None,
) -> Outcome:
    """Runs a script with all its parties as processes of this machine."""
    dealer, shown = scripts.declares_dealer(script), wants_traceback()
    return run_local(
        script,
        args,
        names,
        say,
        traceback=shown,
        command=command,
        dealer=dealer,
        contributors=contributors,
        lanes=lanes,
        device=device,
    )


def end_as(outcome: Outcome) -> None:
    """Ends with the exit code of the party that failed, if one did."""
    if outcome.code:
        stopped = f"; stopped {', '.join(outcome.stopped)}" if outcome.stopped else ""
        print_error(f"{outcome.cause} ended with exit code {outcome.code}{stopped}")
        click.get_current_context().exit(outcome.code)


def check_identity(me: str, config: Path) -> None:
    """Raises ConfigError unless the parties file lists this party and names its identity."""
    if me == DEALER:
        raise ConfigError(explain("the dealer runs no script", fix=f"securemodel dealer --config {config}"))
    parties = identity.load_config(config)
    parties.entry(me)
    own_identity(parties, me)
