"""Which party has which columns, and what a module says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import nn

from protocols.errors import explain
from securemodel.errors import InputError


def groups_of(columns: Sequence[Sequence[int | str]] | None, width: int, names: Sequence[str] = ()) -> list[list[int]]:
    """The places of each party's columns. Raises InputError unless each of `width` columns is there once."""
    if columns is None:
        return [list(range(width))]
    place = {name: at for at, name in enumerate(names)}
    unknown = [c for group in columns for c in group if isinstance(c, str) and c not in place]
    if unknown:
        raise InputError(explain(f"no column is called {unknown[0]!r}", fix="use places, or the names of fitting"))
    groups = [[place[c] if isinstance(c, str) else int(c) for c in group] for group in columns]
    if sorted(c for group in groups for c in group) != list(range(width)):
        raise InputError(
            explain(f"columns= does not name each of {width} columns once", fix="one list of columns for each input")
        )
    return groups


@contextmanager
def reading(library: str) -> Iterator[None]:
    """Faults of a text that is no model, or one of an unknown version, as an InputError."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(
            explain(f"this is no model of {library} that can be read", why=f"{type(problem).__name__}: {problem}",
                    fix="save it again, or see which versions are read in docs/models-classical.md")
        ) from problem  # fmt: skip


def settled(module: nn.Module, classes: Any, names: Sequence[str]) -> nn.Module:
    """The module, ready to use: it says what its results and its columns are."""
    module.classes = None if classes is None else np.asarray(classes).tolist()  # type: ignore[assignment]
    module.names = [str(name) for name in names]  # type: ignore[assignment]
    return module.eval()
