"""What all commands share: exit codes, and errors that are told in words rather than by a traceback."""

from __future__ import annotations

import codecs
import io
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from protocols.errors import ConfigError, ProtocolError, SecureModelError, explain

OK, FAILED, USAGE, SESSION_FAILED, INTERRUPTED = 0, 1, 2, 3, 130
_TRACEBACK = "securemodel.traceback"
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


_PLAIN = {"→": "->", "✓": "ok", "✗": "failed", "…": "...", "·": "*", "−": "-", "≤": "<=", "λ": "lambda"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(character, "?") for character in error.object[error.start : error.end]), error.end


codecs.register_error("securemodel-plain", _plain)


def print_anywhere() -> None:
    """Lets streams that lack some characters, such as those of cp1252, get plain ones in their place."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="securemodel-plain")


def exit_code(error: SecureModelError) -> int:
    """3 when the parties could not go on together, 1 for every other error of this project."""
    return SESSION_FAILED if isinstance(error, ProtocolError) else FAILED


def wants_traceback() -> bool:
    """Whether the running command was given --traceback."""
    return bool(click.get_current_context().meta.get(_TRACEBACK))


def say_aside(text: str) -> None:
    """Writes a line about what goes on to the error output."""
    click.echo(text, err=True)


def print_error(error: BaseException | str) -> None:
    """Writes an error's own text to the error output."""
    first, *rest = str(error).splitlines() or [type(error).__name__]
    click.echo("\n".join([click.style("error: ", fg="red", bold=True) + first, *rest]), err=True)


@contextmanager
def service_packages() -> Iterator[None]:
    """Around imports of what a service needs. Raises ConfigError that says how to get it."""
    try:
        yield
    except ImportError as error:
        fix = 'pip install "securemodel[serve]"'
        raise ConfigError(explain(f"a service needs the package {error.name}", fix=fix)) from None


class Command(click.Command):
    """A command that takes --traceback; it prints errors of this project and ends with their exit code."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.params.append(
            click.Option(
                ["--traceback"],
                is_flag=True,
                expose_value=False,
                callback=_remember,
                help="Show where in the code an error arose.",
            )
        )

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SecureModelError as error:
            if ctx.meta.get(_TRACEBACK):
                traceback.print_exception(error)
            print_error(error)
            ctx.exit(exit_code(error))
        except OSError as error:
            if error.filename is None:  # not of a file; click has its own for a pipe that is closed
                raise
            if ctx.meta.get(_TRACEBACK):
                traceback.print_exception(error)
            why = error.strerror or type(error).__name__
            print_error(
                explain("a file cannot be used", where=str(error.filename), why=why, fix="correct that and start again")
            )
            ctx.exit(FAILED)
        except KeyboardInterrupt:
            click.echo("stopped", err=True)
            ctx.exit(INTERRUPTED)


def _remember(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[_TRACEBACK] = value
