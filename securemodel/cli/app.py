"""The `securemodel` command: its subcommands, and what it says about itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import TYPE_CHECKING

import click

from securemodel.cli.base import print_anywhere
from securemodel.version import __version__

if TYPE_CHECKING:
    from securemodel.cli import (  # noqa: F401
        align,
        auditing,
        compare,
        dealing,
        describe,
        doctor,
        edge,
        evaluate,
        federate,
        keys,
        page,
        predict,
        programs,
        run,
        serve,
        train,
        tuning,
    )

COMMANDS = {
    "align": ("align:align_command", "Find out which rows of several files belong together."),
    "audit": ("auditing:audit", "Say who learns what of a program, and sum up ledgers."),
    "check": ("programs:check", "Say which operators of a model have no secure version."),
    "compare": ("compare:compare", "Show layer by layer what fixed point does to a model."),
    "dealer": ("dealing:dealer", "Serve correlated randomness to the parties of a file."),
    "describe": ("describe:describe_command", "Count, mean, deviation and quantiles of a joint table."),
    "doctor": ("doctor:doctor", "Test that this installation works."),
    "drain": ("serve:drain", "End this party's part of a service in good order."),
    "edge": ("edge:edge", "Ask a service, as somebody who is no party of it."),
    "evaluate": ("evaluate:evaluate_command", "Evaluate a model on joint rows."),
    "federate": ("federate:federate", "Aggregate the updates of many sites, and learn nothing else of them."),
    "key": ("serve:key", "Make, add, list and revoke API keys of a service."),
    "keys": ("keys:keys", "Make and show the identity of a party."),
    "page": ("page:page", "Check the web page of a service, or keep it on a disk."),
    "plan": ("programs:plan", "Print what a run costs."),
    "predict": ("predict:predict", "Run the rows of a file through a secure program."),
    "prepare": ("programs:prepare", "Make correlated randomness beforehand."),
    "publish": ("serve:publish", "Make new weights current at a running service."),
    "run": ("run:run", "Run a script as one party, or as all of them."),
    "serve": ("serve:serve", "Serve models as one party of a service, or as all of them."),
    "share": ("train:share", "Share rows for a training script, and leave."),
    "status": ("serve:status", "Show how this party's part of a service is."),
    "train": ("train:train", "Run a training script as one party, or as all of them."),
    "tune": ("tuning:tune", "Spend no more bits on comparisons than an owner's data needs."),
}
"""Where each command is (module:name), and what it is for, in a line."""


class _Commands(Mapping[str, click.Command]):
    """The commands by name. Each is imported when it is asked for: most need torch, which takes seconds."""

    def __getitem__(self, name: str) -> click.Command:
        module, _, attribute = COMMANDS[name][0].partition(":")
        return getattr(import_module(f"{__package__}.{module}"), attribute)

    def __iter__(self) -> Iterator[str]:
        return iter(COMMANDS)

    def __len__(self) -> int:
        return len(COMMANDS)


class _Group(click.Group):
    """Lists the commands without importing them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, purpose) for name, (_, purpose) in COMMANDS.items()])


@click.group(
    cls=_Group,
    commands=_Commands(),
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="securemodel")
def main() -> None:
    """Run PyTorch models on data that none of the parties shows to another.

    \b
    Start here:
      securemodel doctor                      is this installation sound?
      securemodel check model.py              can this model be run securely?
      securemodel compare model.py            is it as precise as in float?
      securemodel plan infer.py               what will a run cost?
      securemodel tune infer.py --data x.npz --tolerance 1e-3   what does such data need?
      securemodel run infer.py --local        all parties on this machine
      securemodel run infer.py --me bank --config parties.toml
      securemodel train train.py --local      joint training, all parties on this machine
      securemodel share train.py --me NAME    share rows for a training, and leave
      securemodel federate rounds.py --local  federated learning, all sites on this machine
      securemodel align joint.toml --local    which rows of several files belong together
      securemodel describe joint.toml --local count, mean, deviation and quantiles of a joint table
      securemodel evaluate score.py --local   metrics of a model on joint rows, and a report
      securemodel serve service.toml --local  a service that strangers ask
      securemodel predict infer.py --local --input patients.csv --output risks.csv
      securemodel edge gateway service.json   ordinary clients ask a service of others
      securemodel page verify service.json    do all parties serve the same web page?
    """
    print_anywhere()
