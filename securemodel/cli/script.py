"""A user's Python files: which parties a script names, running it as one of them, what a file defines."""

from __future__ import annotations

import ast
import hashlib
import runpy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from protocols import identity
from protocols.errors import ConfigError, explain
from protocols.identity import DEALER
from protocols.names import is_name
from securemodel.cli.base import say_aside
from securemodel.invocation import Invocation, Progress, invoked
from securemodel.scripts import as_main, explained
from securemodel.sessions.remote import arrivals


def declared_parties(script: Path) -> tuple[str, ...]:
    """The names in the script's top-level `PARTIES = ("a", "b")`, without running it. Raises ConfigError."""
    found = _declared(script, "PARTIES")
    if found is None:
        raise ConfigError(
            explain(
                "the script does not say who takes part",
                where=str(script),
                why="it has no top-level PARTIES",
                fix='add PARTIES = ("bank", "hospital") to it, or start it with --parties bank,hospital',
            )
        )
    names, line = found
    if isinstance(names, (tuple, list)) and all(isinstance(name, str) for name in names):
        return checked_parties(names)
    where, fix = f"{script}, line {line}", 'write it out: PARTIES = ("bank", "hospital")'
    raise ConfigError(explain("PARTIES is not a plain list of names", where=where, fix=fix))


def declared_contributors(script: Path) -> tuple[str, ...]:
    """The names in the script's top-level `CONTRIBUTORS`, or nobody. Raises ConfigError."""
    names, line = _declared(script, "CONTRIBUTORS") or ((), 0)
    if isinstance(names, (tuple, list)) and all(is_name(name) for name in names):
        return tuple(names)
    where, fix = f"{script}, line {line}", 'write it out: CONTRIBUTORS = ("hospital",)'
    raise ConfigError(explain("CONTRIBUTORS is not a plain list of names", where=where, fix=fix))


def declares_dealer(script: Path) -> bool:
    """Whether the script's sessions need a dealer: not where it has a top-level `DEALER = False`. Raises ConfigError."""
    wanted, line = _declared(script, "DEALER") or (True, 0)
    if isinstance(wanted, bool):
        return wanted
    where, fix = f"{script}, line {line}", "write DEALER = False, or leave it out"
    raise ConfigError(explain("DEALER is neither True nor False", where=where, fix=fix))


def _may_want_dealer(script: Path) -> bool:
    """The same, but False for a file that is no script: who reads it says what is wrong with it."""
    try:
        return declares_dealer(script)
    except ConfigError:
        return False


def _declared(script: Path, name: str) -> tuple[Any, int] | None:
    """The literal that a script gives a top-level name (None where it is no literal), and the line."""
    try:
        body = ast.parse(script.read_bytes(), filename=str(script)).body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(explain("the script is not valid Python", where=str(script), why=str(error))) from None
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            try:
                return ast.literal_eval(cast(Any, statement).value), statement.lineno
            except (ValueError, TypeError):
                return None, statement.lineno
    return None


def checked_parties(names: Sequence[str]) -> tuple[str, ...]:
    """The names if they can be those of a session's parties. Raises ConfigError."""
    if len(names) < 2 or len(set(names)) != len(names) or DEALER in names:
        raise ConfigError(
            explain(
                f"these cannot be the parties: {', '.join(names) or 'nobody'}",
                why=f"a session has at least two parties, all with different names, none called {DEALER!r}",
                fix="correct PARTIES in the script, or --parties",
            )
        )
    return tuple(names)


def split_names(names: str) -> list[str]:
    """The parts of "a, b"."""
    return [name.strip() for name in names.split(",") if name.strip()]


def digest(script: Path) -> str:
    """SHA-256 of the file, in hexadecimal; the parties compare it before they exchange anything."""
    return hashlib.sha256(script.read_bytes()).hexdigest()


def run_main(script: Path) -> None:
    """Runs the script as `python SCRIPT` would.

    Raises ScriptFailed for errors that are not this project's; SystemExit passes through.
    """
    with explained(script):
        runpy.run_path(str(script), run_name="__main__")


@contextmanager
def as_party(
    script: Path,
    args: Sequence[str],
    me: str,
    config: Path,
    store: Path | None,
    *,
    paillier_key: Path | None = None,
    protocol: str | None = None,
    ledger: str | None = None,
    progress: Callable[[Progress], None] | None = None,
    rows: Path | None = None,
    lane: int = 0,
    lanes: int = 1,
    device: str | None = None,
) -> Iterator[None]:
    """In this process, connect() knows who this is, and files beside the script can be imported.

    `protocol` is for programs whose compile() names none; `ledger` is a file, or "none"; `device` what sessions compute
    on that name none. From here on the others are
    told that this party is there, and so is the dealer: they wait while the script compiles its program.
    """
    config, store, paillier_key = config.resolve(), store and store.resolve(), paillier_key and paillier_key.resolve()
    rows = rows and rows.resolve()
    book = None if ledger is None else ledger != "none" and Path(ledger).resolve()
    parties = identity.load_config(config).at_lane(lane)
    own = identity.load(parties.identity) if parties.identity else None
    dealt = store is None and protocol != "paillier" and _may_want_dealer(script)
    made = arrivals(me, parties, own, dealer=dealt)
    try:
        with (
            invoked(
                Invocation(
                    me,
                    config,
                    store,
                    paillier_key,
                    protocol,
                    digest(script),
                    book,
                    made,
                    progress,
                    rows,
                    lane,
                    lanes,
                    say_aside,
                    device,
                )
            ),
            as_main(script, args),
        ):
            yield
    finally:
        for arrival in made:
            arrival.close()
