"""securemodel federate: rounds of federated learning, as one aggregator, or with everybody on this machine."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from protocols.errors import ConfigError, explain
from protocols.files import write_atomically
from securemodel.cli.base import FILE, Command, service_packages
from securemodel.cli.processes import terminated_like_interrupted
from securemodel.data.pictures import drawn
from securemodel.federated.scripts import Models, Script, play, read
from securemodel.federated.task import Outcome
from securemodel.ledger import book_of
from securemodel.sessions.remote import place

if TYPE_CHECKING:
    from securemodel.service.keys import KeyBook


@click.command(cls=Command, no_args_is_help=True)
@click.argument("script", type=FILE)
@click.option(
    "--local", is_flag=True, help="Aggregators and sites on this machine, for a first look. Protects nothing."
)
@click.option("--me", metavar="NAME", help="Be this aggregator of the task.")
@click.option("--config", type=FILE, help="With --me: the parties file, whose parties are the aggregators.")
@click.option("--data", type=click.Path(file_okay=False, path_type=Path), help="With --me: its journal and uploads.")
@click.option("--listen", default="0.0.0.0:8450", show_default=True, help="With --me: where sites reach it.")
@click.option("--url", help="With --me: the address that sites use.  [default: https:// and --listen]")
@click.option("--certificate", type=FILE, help="With --me: its chain of certificates for sites, in PEM.")
@click.option("--key", type=FILE, help="With --me: the private key of --certificate.")
@click.option("--new-key", metavar="SITE", help="With --data: make an API key for a site, and end.")
@click.option(
    "--add-key", metavar="SITE=SHA256", help="With --data: take a site's key that was made elsewhere, and end."
)
@click.option(
    "--all-sites", is_flag=True, help="With --new-key and --add-key: for all sites, as a relay needs it; SITE names it."
)
@click.option("--patience", type=click.FloatRange(min=0), default=600.0, show_default=True,
              help="With --me: seconds to wait for an aggregator that is gone.")  # fmt: skip
@click.option("--linger", type=click.FloatRange(min=0), default=600.0, show_default=True,
              help="With --me: seconds to hand out the last result.")  # fmt: skip
@click.option("--ledger", metavar="FILE|none", help="Where rounds are written down, instead of the user's own ledger.")
@click.option("--picture", type=click.Path(dir_okay=False, path_type=Path), help="Draw accuracy by round (SVG).")
def federate(
    script: Path,
    local: bool,
    me: str | None,
    config: Path | None,
    data: Path | None,
    listen: str,
    url: str | None,
    certificate: Path | None,
    key: Path | None,
    new_key: str | None,
    add_key: str | None,
    all_sites: bool,
    patience: float,
    linger: float,
    ledger: str | None,
    picture: Path | None,
) -> None:
    """Aggregate the updates of many sites, of which the aggregators learn the aggregate alone.

    The SCRIPT has a task, ROUNDS, and functions start() and, with --local, SITES and train(); see docs/api.md. With
    --me this process takes uploads of sites until each round's deadline, and then meets the other aggregators. It goes on
    where it was when it is started again with the same --data.

    \b
    Examples:
      securemodel federate rounds.py --local --picture accuracy.svg
      securemodel federate rounds.py --data north --new-key hospital
      securemodel federate rounds.py --me north --config parties.toml --data north --listen 0.0.0.0:8450
    """
    if new_key or add_key or all_sites:
        return _keys(data, new_key, add_key, all_sites)
    if local:
        if any((me, config, data, certificate, key)):
            raise click.UsageError("--local is for everybody: leave out options that go with --me.")
        told = read(script)
        _check_picture(picture, told, told.has_evaluate)
        _promise(told)
        with terminated_like_interrupted(), _shown(told) as shown:
            play(told, shown)
        return _draw(picture, shown.accuracies)
    if not (me and config and data):
        raise click.UsageError("give --local, or --me NAME, --config FILE and --data DIR.")
    if bool(certificate) != bool(key):
        raise click.UsageError("--certificate and --key go together.")
    tls = (certificate, key) if certificate and key else None
    _aggregate(read(script), me, config, data, listen, url, tls, patience, linger, ledger, picture)


def _aggregate(
    script: Script,
    me: str,
    config: Path,
    data: Path,
    listen: str,
    url: str | None,
    tls: tuple[Path, Path] | None,
    patience: float,
    linger: float,
    ledger: str | None,
    picture: Path | None,
) -> None:
    """All rounds as one aggregator."""
    with service_packages():
        from securemodel.federated import rounds
        from securemodel.federated.aggregator import Aggregator
        from securemodel.service.logs import Log

    me, parties, own = place(script.task.aggregators, me, config, False, "federate")
    if own is None:
        raise ConfigError(explain("this aggregator has no identity", fix="name it in the parties file: [me] identity"))
    host, _, port = listen.rpartition(":")
    if not port.isdigit():
        raise click.UsageError("--listen is HOST:PORT.")
    book = book_of(True if ledger is None else ledger != "none" and Path(ledger))
    models = Models(script)
    _check_picture(picture, script, models.known and script.has_evaluate)
    aggregator = Aggregator(
        script.task,
        rounds.place_of(script.task, me, parties, own, data),
        rounds=script.rounds,
        model=models.digest,
        sessions=rounds.sessions(script.task, me, parties),
        ledger=book,
    )
    keys = _book(data)
    if not keys.keys:
        click.echo("No site has a key (--new-key): whoever reaches this address may take part.", err=True)
    _promise(script)
    shown = _Lines(script)
    at = rounds.Listening(host.strip("[]"), int(port), tls, keys if keys.keys else None)
    with rounds.front(aggregator, at, Log(sys.stderr.buffer)) as bound:
        entry = rounds.entry(me, parties, url or f"{'https' if tls else 'http'}://{host}:{bound}", tls)
        write_atomically(data / "aggregator.json", json.dumps(entry, indent=2).encode())
        click.echo(f"{me} listens at {entry['url']}; its entry for federation.json: {data / 'aggregator.json'}")

        def ended(number: int, outcome: Outcome) -> None:
            shown.ended(number, outcome, models.accuracy(number, aggregator.outcome))

        meet = rounds.meetings(me, parties, own)
        rounds.run(aggregator, meet, ended=ended, patience_s=patience)
        click.echo(f"All rounds are over. Sites can ask for the last result for {linger:g} s.")
        _draw(picture, shown.accuracies)
        time.sleep(linger)


def _promise(script: Script) -> None:
    """Says what the noise and the budget of a task promise, or that there is no noise."""
    task, rounds = script.task, script.rounds
    if task.protection is not None:
        click.echo(f"Privacy of a site after {rounds} rounds: {task.protection.told(task.protection.epsilon(rounds))}.")
        click.echo("No amplification is claimed: who takes part in a round is public.")
    limits = [("rounds", task.budget.rounds), ("epsilon", task.budget.epsilon)]
    if given := [f"{name} {limit:g}" for name, limit in limits if limit is not None]:
        click.echo(f"Budget of a site: at most {', '.join(given)}.")


def _book(data: Path) -> KeyBook:
    with service_packages():
        from securemodel.service.keys import KeyBook

    return KeyBook(data / "keys.json")


def _keys(data: Path | None, new: str | None, add: str | None, all_sites: bool) -> None:
    """Makes or takes the key of a site, or of a relay for all of them."""
    if data is None or not (new or add):
        raise click.UsageError("keys are kept in --data DIR; give one with --new-key or --add-key.")
    with service_packages():
        from securemodel.service.keys import digest_of, new_key
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    if new:
        made = new_key()
        _book(data).add(digest_of(made), new, [] if all_sites else [new])
        click.echo(f"key of {new}: {made}\nIt is kept nowhere: give it to the site. At the other aggregators:")
        click.echo(f"  --add-key {new}={digest_of(made)}{' --all-sites' if all_sites else ''}")
    if add:
        site, _, sha256 = add.rpartition("=")
        if not site:
            raise click.UsageError("--add-key is SITE=SHA256.")
        _book(data).add(sha256, site, [] if all_sites else [site])
        click.echo(f"the key of {site} is taken")


class _Lines:
    """Says a line for each round, and keeps accuracies."""

    def __init__(
        self,
        script: Script,
        say: Callable[[str], None] = click.echo,
        advance: Callable[[int], None] = lambda number: None,
    ) -> None:
        self._rounds, self._say, self._advance = script.rounds, say, advance
        self.accuracies: dict[int, float] = {}

    def __call__(self, number: int, site: str, accuracy: float | None) -> None:
        """A site has shared its update, or, with no site, a round has ended."""
        if site:
            return self._advance(number)
        self._note(number, accuracy)
        self._say(f"round {number} of {self._rounds}{_accuracy(accuracy)}")

    def ended(self, number: int, outcome: Outcome, accuracy: float | None) -> None:
        """The line of an aggregator."""
        self._note(number, accuracy)
        parts = [f"round {number} of {self._rounds}: {len(outcome.present)} in, {len(outcome.absent)} absent"]
        parts += [f"{outcome.revealed}{_accuracy(accuracy)}"]
        if outcome.epsilon is not None:
            parts.append(f"epsilon {outcome.epsilon:.4g} for who was in most rounds")
        parts += [f"refused {client}: {why}" for client, why in outcome.refused.items()]
        self._say("; ".join(parts))

    def _note(self, number: int, accuracy: float | None) -> None:
        if accuracy is not None:
            self.accuracies[number] = accuracy


def _accuracy(accuracy: float | None) -> str:
    return "" if accuracy is None else f", accuracy {accuracy:.4f}"


@contextmanager
def _shown(script: Script) -> Iterator[_Lines]:
    """A bar of all sites' uploads on a terminal, and a line for each round."""
    if not sys.stdout.isatty():
        yield _Lines(script)
        return
    columns = (TextColumn("round {task.fields[round]}"), BarColumn(), MofNCompleteColumn(), TextColumn("updates"),
               TimeRemainingColumn())  # fmt: skip
    with Bar(*columns) as bar:
        task = bar.add_task("federate", total=script.rounds * len(script.sites), round=1)
        yield _Lines(script, bar.console.print, lambda number: bar.update(task, advance=1, round=number))


def _check_picture(path: Path | None, script: Script, known: bool) -> None:
    """Raises ConfigError before the first round where there will be nothing to draw."""
    if path is not None and not known:
        fix = "give the script an evaluate(model), of models that are revealed here; or leave out --picture"
        raise ConfigError(explain("there is no accuracy to draw", where=str(script.path), fix=fix))


def _draw(path: Path | None, accuracies: dict[int, float]) -> None:
    """The picture of accuracy by round."""
    if path is None or not accuracies:
        return

    def draw(axes) -> str:
        axes.plot(list(accuracies), list(accuracies.values()), marker="o", color="#1f5fa8")
        axes.set(xlabel="round", ylabel="accuracy", ylim=(0, 1.01))
        return "; ".join(f"{value:.3f} in round {number}" for number, value in accuracies.items())

    svg = drawn("rounds", "Accuracy by round", draw)
    write_atomically(path, svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1).encode())
    click.echo(f"Picture: {path}")
