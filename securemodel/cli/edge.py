"""securemodel edge: for those who ask a service, and are no party of it."""

from __future__ import annotations

import socket
from pathlib import Path

import click

from protocols.errors import ConfigError, SecureModelError, explain
from securemodel.cli.base import Command
from securemodel.edge import Client, EdgeError


@click.group()
def edge() -> None:
    """Ask a service, as somebody who is no party of it.

    From Python, securemodel.edge.Client does that without this command.
    """


@edge.command(cls=Command, no_args_is_help=True)
@click.argument("service", metavar="SERVICE.JSON")
@click.option("--listen", default="127.0.0.1:9000", show_default=True, metavar="HOST:PORT", help="Where to listen.")
@click.option(
    "--key-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File with the API key, where the service asks for one.",
)
@click.option("--expose", is_flag=True, help="Allow to listen where other machines reach the gateway.")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, 60, min_open=True),
    default=10.0,
    show_default=True,
    help="Seconds for each request, where the client gives none.",
)
def gateway(service: str, listen: str, key_file: Path | None, expose: bool, timeout_s: float) -> None:
    """Let ordinary clients of the Open Inference Protocol v2 ask a service, unchanged.

    The gateway takes plain tensors, splits them into shares, and asks the parties of SERVICE.JSON (a file, or the https
    address of one). Whoever reaches it uses its key, and inputs are in the clear on the way to it: so it listens on this
    machine alone, unless --expose says otherwise.

    \b
    Examples:
      securemodel edge gateway service.json
      securemodel edge gateway service.json --listen 127.0.0.1:9100 --key-file key.txt
    """
    try:
        import uvicorn

        from securemodel.service import gateway as made
    except ImportError as error:
        fix = 'pip install "securemodel[serve]"'
        raise ConfigError(
            explain("the gateway needs packages that are not installed", why=str(error), fix=fix)
        ) from error
    host, port = _address(listen)
    loopback = made.is_loopback(host)
    if not loopback and not expose:
        raise click.UsageError(f"other machines reach {host}: say --expose if they may ask in the clear, with this key")
    try:
        client = Client(service, key=_key(key_file))
    except EdgeError as error:
        raise _told(error) from error
    hosts = frozenset({host, "127.0.0.1", "::1", "localhost"}) if loopback else None
    with client, _listening(host, port) as listener:
        shown = f"[{host}]" if ":" in host else host
        click.echo(
            f"http://{shown}:{listener.getsockname()[1]} asks {client.service.name} ({', '.join(_names(client))})"
        )
        app = made.app(client, timeout_s=timeout_s, hosts=hosts)
        uvicorn.Server(uvicorn.Config(app, log_level="warning", server_header=False)).run([listener])


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise click.UsageError(f"--listen takes HOST:PORT, such as 127.0.0.1:9000, not {text!r}")
    return host.strip("[]"), int(port)


def _key(path: Path | None) -> str:
    if path is None:
        return ""
    lines = path.read_text().split()
    if len(lines) != 1:
        what = "the file holds no key, or more than one"
        raise ConfigError(explain(what, where=str(path), fix="put the key alone into it"))
    return lines[0]


def _told(error: EdgeError) -> SecureModelError:
    return ConfigError(explain(error.what, where=error.where, why=error.why, fix=error.fix))


def _names(client: Client) -> list[str]:
    return [party.name for party in client.service.parties]


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        what = "the gateway cannot listen"
        raise ConfigError(
            explain(what, where=f"{host}:{port}", why=error.strerror or str(error), fix="choose another port")
        ) from error
