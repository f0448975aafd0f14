"""securemodel evaluate: metrics of a model on a joint table, their plan first; a report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click

from protocols.errors import InputError, explain
from securemodel.cli import script as scripts
from securemodel.cli.base import FILE, Command
from securemodel.cli.processes import prefixed
from securemodel.cli.run import Here, end_as, party_options, run_all
from securemodel.data.connecting import connect
from securemodel.data.evaluate import Evaluation
from securemodel.data.evaluation import EvaluationSetup
from securemodel.data.joint import Joint
from securemodel.ledger import default_path, read_ledger
from securemodel.planning.costs import NETWORKS
from securemodel.planning.units import seconds_text
from securemodel.scripts import explained, load_file

_ME = "{me}"


@click.command("evaluate", cls=Command, no_args_is_help=True)
@click.argument("script", type=FILE)
@party_options
@click.option("--metrics", metavar="A,B", help="These metrics, instead of those that the script names.")
@click.option("--reveal", metavar="NAME|all", help="Who learns them, instead of whom the script names.")
@click.option("--exact", is_flag=True, help="AUC, KS and average precision by sorting, ties included, not from bins.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help=f"A report of what this party learns: report.html, and report.json beside it. {_ME} stands for the party's name.",
)
@click.option("--network", type=click.Choice(sorted(NETWORKS)), default="lan", show_default=True, help="Of the plan.")
def evaluate_command(
    script: Path,
    here: Here,
    metrics: str | None,
    reveal: str | None,
    exact: bool,
    out: Path | None,
    network: str,
) -> None:
    """Evaluate a model on rows that the parties do not show to one another, and write a report.

    SCRIPT says at its top level what is evaluated: evaluation = data.evaluation(schema, tables, model, label), or a function
    make_evaluation() that returns it; for --local also PARTIES. Before anybody connects, this says what is revealed to
    whom, and rounds, bytes and seconds, as if all rows of this party were evaluated; afterwards what it found.

    \b
    Examples:
      securemodel evaluate score.py --local --metrics auc,ks --out report.html
      securemodel evaluate score.py --me bank --config parties.toml --metrics auc,roc --out report.html
    """
    if here.store:
        raise click.UsageError("--store is not for evaluations, whose programs depend on how many rows there are.")
    more = _settings(metrics, reveal, exact)
    if names := here.everybody(script):
        words = ["evaluate", "--ledger", here.ledger or "none", "--network", network, *(["--exact"] if exact else [])]
        words += ["--metrics", metrics] if metrics else []
        words += ["--reveal", reveal] if reveal else []
        words += ["--out", str(_of_each(out))] if out else []
        return end_as(run_all(script, (), names, prefixed(names), words, device=here.device))
    me, config, _ = here.party
    with scripts.as_party(script, (), me, config, None, ledger=here.ledger, device=here.device):
        _evaluate(script, me, more, here.ledger, out and Path(str(out).replace(_ME, me)), network)


def _evaluate(
    script: Path, me: str, more: Mapping[str, Any], ledger: str | None, out: Path | None, network: str
) -> None:
    """This party's part, from the plan to the report."""
    setup, begun = _setup(script), datetime.now(timezone.utc).isoformat(timespec="seconds")

    def say_plan(joint: Joint) -> None:
        click.echo(f"{joint.rows or 'its'} rows of {me}; if as many are evaluated:")
        click.echo(setup.preview(joint, **more).plan(network))

    with connect(setup.schema, setup.tables, aligned=setup.aligned, before=say_plan) as joint:
        wanted = setup.asked(joint, **more)
        click.echo(f"{wanted.joint.rows} rows are evaluated")
        start = time.perf_counter()
        found = wanted.run()
        took = time.perf_counter() - start
    click.echo(str(found))
    click.echo(f"took {seconds_text(took)}")
    if out:
        path = None if ledger == "none" else Path(ledger) if ledger else default_path()
        click.echo(f"report: {found.save(out, ledger=_lines(path, found, begun))}")


def _settings(metrics: str | None, reveal: str | None, exact: bool) -> dict[str, Any]:
    """What the command line says in place of the script."""
    more: dict[str, Any] = {"metrics": scripts.split_names(metrics)} if metrics else {}
    return more | ({"reveal": reveal} if reveal else {}) | ({"exact": True} if exact else {})


def _of_each(out: Path) -> Path:
    """A name for each party's report, where all are on this machine."""
    return out if _ME in str(out) else out.with_name(f"{out.stem}-{_ME}{out.suffix}")


def _setup(script: Path) -> EvaluationSetup:
    """The script's `evaluation`, or what its make_evaluation() returns. Raises InputError, ScriptFailed."""
    module = load_file(script)
    found, make = getattr(module, "evaluation", None), getattr(module, "make_evaluation", None)
    if found is None and callable(make):
        with explained(script):
            found = make()
    if not isinstance(found, EvaluationSetup):
        why = "it has neither `evaluation = data.evaluation(...)` nor a make_evaluation() that returns one"
        what = "this script does not say what is evaluated"
        raise InputError(explain(what, where=str(script), why=why, fix="add one of them"))
    aligned = setup_folder(script, found.aligned)
    return replace(found, aligned=aligned)


def setup_folder(script: Path, folder: Path | None) -> Path | None:
    """A folder that a script names, seen from where the script is."""
    return folder if folder is None or folder.is_absolute() else script.resolve().parent / folder


def _lines(path: Path | None, found: Evaluation, begun: str) -> list[Mapping[str, Any]]:
    """The ledger's lines of this evaluation."""
    if path is None or not path.exists():
        return []
    programs = set(found.facts.get("programs", ()))
    lines = [line.fields for line in read_ledger(path).lines]
    return [line for line in lines if line["program"] in programs and line["time"] >= begun[:19]]
