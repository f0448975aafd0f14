"""The table of protocols: where the parts of each are. They are imported when they are first used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from protocols.errors import explain
from securemodel.errors import InputError


@dataclass(frozen=True)
class Parts:
    """Names of the modules of a protocol.

    `compiling` has lower(captured, weights, owners, frac_bits, width) -> Lowered and
    assemble(header, lowered, model, examples, truncate_outputs) -> Program; `local` has open_local and `remote` has
    open_connection, which take and return what `securemodel.local` and `securemodel.connect` do.
    """

    compiling: str
    local: str
    remote: str


PROTOCOLS = {
    "masked": Parts("securemodel.compiler.masked", "securemodel.runtime.session", "securemodel.runtime.remote"),
    "crypten": Parts(
        "securemodel.backends.crypten.compiling",
        "securemodel.backends.crypten.session",
        "securemodel.backends.crypten.session",
    ),
}


def part_of(protocol: str, part: str) -> ModuleType:
    """One of the modules of a protocol. Raises InputError for an unknown protocol."""
    if protocol not in PROTOCOLS:
        raise InputError(
            explain(f"no protocol is called {protocol!r}", fix=f"use one of {', '.join(map(repr, PROTOCOLS))}")
        )
    return import_module(getattr(PROTOCOLS[protocol], part))
