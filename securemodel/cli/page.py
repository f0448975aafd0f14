"""securemodel page: whether all parties serve the same web page, and the page as one file for a disk."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.table import Table

import securemodel.page as web
from protocols.errors import InputError, explain
from protocols.files import file_errors, write_atomically
from securemodel.cli.base import FAILED, Command
from securemodel.edge import EdgeError, service_file, wire
from securemodel.edge.lines import Line

_TIMEOUT_S = 20.0


@click.group()
def page() -> None:
    """Check the web page of a service, or keep it on a disk.

    Whoever serves a page could serve one that keeps the inputs. So all parties serve the same files, service.json lists
    their digests, and this command compares.
    """


certificate_option = click.option(
    "--certificate", metavar="HEX", help="SHA-256 of the certificate at URL, where no authority vouches for it."
)
plain_option = click.option("--insecure-plain", is_flag=True, help="Allow http to other machines, for tests.")


@page.command(cls=Command, no_args_is_help=True)
@click.argument("service", metavar="URL|SERVICE.JSON")
@certificate_option
@plain_option
def verify(service: str, certificate: str | None, insecure_plain: bool) -> None:
    """Compare all parties' copies of a service's web page.

    Fetches every file from every party, and compares it with service.json and with the page of this installation; also
    the policy that protects the page, and who takes part by each party's own service.json. Ends with 1 if anything
    differs or cannot be fetched.

    \b
    Examples:
      securemodel page verify https://bank.example:8443
      securemodel page verify service.json
    """
    with _explained(), ExitStack() as open_lines:
        found = _read(service, certificate, insecure_plain)
        lines = {
            party.name: open_lines.enter_context(closing(Line(party, insecure_plain=insecure_plain)))
            for party in service_file.read(found).parties
        }
        copies = web.verify(found, lambda party, path: _fetched(lines[party["name"]], path))
    table = Table("party", "what", "verdict")
    for party in found["parties"]:
        own = [copy for copy in copies if copy.party == party["name"]]
        wrong = [copy for copy in own if copy.verdict != "same"]
        for copy in wrong:
            table.add_row(copy.party, copy.what, copy.verdict)
        table.add_row(party["name"], f"{len(own) - len(wrong)} others" if wrong else f"all {len(own)}", "same")
    Console().print(table)
    if any(copy.verdict != "same" for copy in copies):
        click.get_current_context().exit(FAILED)


@page.command(cls=Command, no_args_is_help=True)
@click.option("--service", metavar="URL|SERVICE.JSON", help="The service to ask; without it the page asks which.")
@click.option("--out", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="The file to write.")
@certificate_option
@plain_option
def offline(service: str | None, out: Path, certificate: str | None, insecure_plain: bool) -> None:
    """Write the page of a service as one HTML file, to be opened from a disk.

    Its code is that of this installation, whatever the parties serve. It may ask the parties of its service.json alone.

    \b
    Example:
      securemodel page offline --service https://bank.example:8443 -o page.html
    """
    with _explained():
        found = None if service is None else _read(service, certificate, insecure_plain)
        made = web.offline_page(found)
    write_atomically(out, made)
    click.echo(f"{out}: {len(made)} bytes, {web.digest(made)}")


def _read(source: str, certificate: str | None, insecure_plain: bool) -> Mapping[str, Any]:
    """A service.json out of a file or from an address, checked. Raises EdgeError, FileError."""
    if source.startswith(("https://", "http://")):
        parts = urlsplit(source)
        address = f"{parts.scheme}://{parts.netloc}"
        with closing(Line(service_file.Party("the service", address, certificate, None, None),
                          insecure_plain=insecure_plain)) as line:  # fmt: skip
            content, _ = _asked(line, "service.json")
    else:
        with file_errors(Path(source)):
            content = Path(source).read_bytes()
    service_file.parse(content, source)
    return wire.load(content, limit=service_file.MAX_FILE_BYTES)


def _fetched(line: Line, path: str) -> tuple[bytes, str]:
    """The same, with an OSError where the party cannot be reached."""
    try:
        return _asked(line, path)
    except EdgeError as error:
        raise OSError(f"{error.what}: {error.why}") from error


def _asked(line: Line, path: str) -> tuple[bytes, str]:
    """A file of a party's page, and the policy that came with it. Raises EdgeError, OSError where it is not served."""
    status, headers, content = line.ask("GET", f"/{path}", b"", {}, time.monotonic() + _TIMEOUT_S)
    if status != 200:
        raise OSError(f"HTTP status {status}")
    return content, headers.get("content-security-policy", "none")


@contextmanager
def _explained() -> Iterator[None]:
    """What a client of a service says becomes an error of this project, and so does what is wrong with a service.json."""
    try:
        yield
    except EdgeError as error:
        raise InputError(explain(error.what, where=error.where, why=error.why, fix=error.fix)) from error
    except OSError as error:
        raise InputError(
            explain("service.json cannot be fetched", why=str(error), fix="is this its address?")
        ) from error
    except ValueError as error:
        raise InputError(explain("service.json cannot be used", why=str(error), fix="ask its operator")) from error
