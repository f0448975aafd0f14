"""securemodel serve, publish, drain, status, key: a service that strangers ask, and those who look after it."""

from __future__ import annotations

import http.client
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from protocols.identity import DEALER
from securemodel.cli.base import FILE, Command, service_packages
from securemodel.cli.processes import end_processes, folder_with_heir, prefixed, read_output, start_process
from securemodel.cli.processes import terminated_like_interrupted as terminated

if TYPE_CHECKING:
    from securemodel.service.config import ServiceConfig
    from securemodel.service.keys import Key, KeyBook

_POLL_S, _PAUSE_S = 0.2, 1.0
service_argument = click.argument("service", metavar="SERVICE.toml", type=FILE)


@click.command(cls=Command, no_args_is_help=True)
@service_argument
@click.option("--me", metavar="NAME", help="Be this party of the service.")
@click.option("--local", is_flag=True, help="All parties and the dealer on this machine, for a look. Protects nothing.")
@click.option("--port", type=click.IntRange(0, 65000), default=8440, show_default=True,
              help="With --local: the leader's port; the others follow. 0 takes free ones.")  # fmt: skip
def serve(service: Path, me: str | None, local: bool, port: int) -> None:
    """Serve models as one party of SERVICE.toml, or as all of them.

    Clients split their inputs into shares, one for each party, and add up the shares of the results; no party sees
    either. On SIGTERM nothing new is taken, what waits is finished, and the rest is refused.

    \b
    Examples:
      securemodel serve SERVICE.toml --me bank
      securemodel serve examples/service/service.toml --local
    """
    if local:
        if me:
            raise click.UsageError("--local is for all parties: leave out --me.")
        _serve_all(service, port)
        return
    if not me:
        raise click.UsageError("give --local, or --me NAME.")
    config = _load(service)
    config.parties.entry(me)
    with service_packages():
        import uvloop

        from securemodel.service import serving
    uvloop.run(serving.serve(config, me, click.echo))


@click.command(cls=Command, no_args_is_help=True)
@service_argument
@click.argument("model")
@click.option("--weights", type=FILE, required=True, help="The file for the script's load_model().")
def publish(service: Path, model: str, weights: Path) -> None:
    """Make WEIGHTS the next version of a MODEL that is being served, at all parties. At the weights' owner.

    They are loaded beside the old ones and tried on an input that everybody knows. No request is dropped.

    \b
    Example:
      securemodel publish SERVICE.toml lenet5 --weights lenet5-new.safetensors
    """
    done = _ask(service, "publish", model=model, weights=str(weights.resolve()))
    click.echo(f"version {done['version']} of {done['model']} is current")


@click.command(cls=Command, no_args_is_help=True)
@service_argument
def drain(service: Path) -> None:
    """End this party's part of a service in good order: what waits is finished first.

    \b
    Example:
      securemodel drain SERVICE.toml
    """
    _ask(service, "drain")
    click.echo("drained")


@click.command(cls=Command, no_args_is_help=True)
@service_argument
def status(service: Path) -> None:
    """Show how this party's part of a service is: lanes, versions, links, what waits.

    \b
    Example:
      securemodel status SERVICE.toml
    """
    found = _ask(service, "status")
    console = Console(highlight=False)
    links = ", ".join(f"{name} {'up' if up else 'DOWN'}" for name, up in found["connected"].items())
    waiting = found["waiting"]
    console.print(f"{found['service']}: {found['party']}, leader {found['leader']}; links: {links}")
    console.print(f"waiting: {waiting['requests']} requests, {waiting['rows']} rows")
    table = Table("model", "version", "lane", "state", "weights from", "starts", "ms by size")
    for lane in found["lanes"]:
        version = f"{lane['version']}{' (current)' if found['current'].get(lane['model']) == lane['version'] else ''}"
        times = ", ".join(f"{size}: {took:g}" for size, took in lane["milliseconds"].items())
        table.add_row(
            lane["model"], version, str(lane["lane"]), lane["state"], lane["weights"], str(lane["starts"]), times
        )
    console.print(table)
    for lane in found["lanes"]:
        if lane["reason"]:
            click.echo(f"{lane['model']} {lane['version']}, lane {lane['lane']}: {lane['reason']}")


@click.group()
def key() -> None:
    """Make, add, list and revoke API keys of a service.

    A key is made at one party. The others add its SHA-256: each party checks keys and counts rows for itself.
    """


@key.command(cls=Command, no_args_is_help=True)
@service_argument
@click.argument("name")
@click.option("--model", "models", multiple=True, help="Only for this model; may be given again.  [default: all]")
@click.option("--rows-per-day", type=click.IntRange(min=1), help="Instead of the model's own limit.")
def new(service: Path, name: str, models: tuple[str, ...], rows_per_day: int | None) -> None:
    """Make a key for the client NAME, and use it here from now on. It is shown once and kept nowhere.

    \b
    Example:
      securemodel key new SERVICE.toml tablet-7 --model lenet5
    """
    from securemodel.service.keys import digest_of, new_key

    made = new_key()
    added = _add(service, digest_of(made), name, models, rows_per_day)
    options = "".join(
        [*(f" --model {model}" for model in models), f" --rows-per-day {rows_per_day}" if rows_per_day else ""]
    )
    click.echo(f"id      {added.id}")
    click.echo(f"key     {made}   (for the client alone; it is not shown again)")
    click.echo(f"sha256  {added.sha256}")
    click.echo("\nAt every other party:\n")
    click.echo(f"securemodel key add SERVICE.toml {added.sha256} {name}{options}")


@key.command(cls=Command, no_args_is_help=True)
@service_argument
@click.argument("sha256")
@click.argument("name")
@click.option("--model", "models", multiple=True, help="Only for this model; may be given again.  [default: all]")
@click.option("--rows-per-day", type=click.IntRange(min=1), help="Instead of the model's own limit.")
def add(service: Path, sha256: str, name: str, models: tuple[str, ...], rows_per_day: int | None) -> None:
    """Use the key of the client NAME that another party made.

    \b
    Example:
      securemodel key add SERVICE.toml 9f86d081884c7d65...b0f00a08 tablet-7
    """
    click.echo(f"added {_add(service, sha256, name, models, rows_per_day).id}")


@key.command("list", cls=Command, no_args_is_help=True)
@service_argument
def list_keys(service: Path) -> None:
    """List the keys that this party knows: ids, names, limits.

    \b
    Example:
      securemodel key list SERVICE.toml
    """
    table = Table("id", "name", "models", "rows a day", "made", "")
    for known in _book(_load(service)).keys:
        made = time.strftime("%Y-%m-%d", time.gmtime(known.created))
        limit = str(known.rows_per_day or "as the model")
        table.add_row(known.id, known.name, ", ".join(known.models) or "all", limit, made, "revoked" * known.revoked)
    Console(highlight=False).print(table)


@key.command(cls=Command, no_args_is_help=True)
@service_argument
@click.argument("id")
def revoke(service: Path, id: str) -> None:
    """Refuse a key from now on. One party that does it is enough to stop a client.

    \b
    Example:
      securemodel key revoke SERVICE.toml 9f86d081884c7d65
    """
    revoked = _book(_load(service)).revoke(id)
    click.echo(f"revoked {revoked.id} ({revoked.name})")


def _add(service: Path, sha256: str, name: str, models: tuple[str, ...], rows_per_day: int | None) -> Key:
    config = _load(service)
    for model in models:
        config.model(model)
    return _book(config).add(sha256, name, models, rows_per_day)


def _book(config: ServiceConfig) -> KeyBook:
    from securemodel.service.keys import KeyBook

    return KeyBook(config.data / "keys.json")


def _load(service: Path) -> ServiceConfig:
    """The service file. Raises ConfigError."""
    with service_packages():
        from securemodel.service import config
    return config.load(service)


def _ask(service: Path, do: str, **arguments: object) -> dict[str, Any]:
    """What the running front says at the end; on the way, it is printed."""
    config = _load(service)
    from securemodel.service import admin

    done: dict[str, Any] = {}
    for line in admin.ask(config.data, do, **arguments):
        if "say" in line:
            click.echo(line["say"])
        done = line.get("done", {})
    return done


# ---- all roles on one machine
def _serve_all(service: Path, port: int) -> None:
    """Starts the dealer and all parties, and starts what ends again, until SIGINT or SIGTERM."""
    with service_packages():
        from securemodel.service import local
    with terminated(), folder_with_heir() as (folder, heir):
        roles = local.write_roles(service, folder, port)
        say = prefixed(tuple(roles.services))
        words = {DEALER: ["dealer", "--config", str(roles.dealer)]}
        words |= {name: ["serve", str(path), "--me", name] for name, path in roles.services.items()}
        running: dict[str, subprocess.Popen[bytes]] = {}

        def start(name: str) -> None:
            running[name] = start_process(words[name], len(words))
            heir.write(b"%d\n" % running[name].pid)
            read_output(name, running[name], say)

        click.echo("All roles run on this machine: this shows how it works and protects nothing.")
        try:
            for name in words:
                start(name)
            page, told = next(iter(roles.urls.values())), False
            while True:
                time.sleep(_POLL_S)
                if not told and (told := _is_ready(page)):
                    click.echo(f"The page: {page}/   (Ctrl-C ends everything)")
                for name, process in running.items():
                    if process.poll() is not None:
                        say(name, f"ended with exit code {process.returncode}; it is started again", True)
                        time.sleep(_PAUSE_S)
                        start(name)
        except KeyboardInterrupt:
            click.echo("stopping")
        finally:
            end_processes(running.values())


def _is_ready(url: str) -> bool:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=5)
    try:
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
