"""The table of protocols: where the parts of each are. They are imported when they are first used."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

from protocols.errors import explain
from securemodel.errors import InputError
from securemodel.invocation import current


@dataclass(frozen=True)
class Parts:
    """Names of the modules of a protocol.

    `compiling` has lower(captured, weights, owners, frac_bits, width) -> Lowered and
    assemble(header, lowered, model, examples, truncate_outputs, reveal, **options) -> Program; `local` has open_local and
    `remote` has open_connection, which take and return what `securemodel.local` and `securemodel.connect` do.
    `options` are the further arguments that `compile` takes for it.
    """

    compiling: str
    local: str
    remote: str
    options: tuple[str, ...] = ()


PROTOCOLS = {
    "masked": Parts("securemodel.compiler.masked", "securemodel.runtime.session", "securemodel.runtime.remote"),
    "crypten": Parts(
        "securemodel.backends.crypten.compiling",
        "securemodel.backends.crypten.session",
        "securemodel.backends.crypten.session",
    ),
    "paillier": Parts(
        "securemodel.backends.paillier.compiling",
        "securemodel.backends.paillier.session",
        "securemodel.backends.paillier.session",
        ("weight_limit", "input_limit", "key_bits", "insecure_key_bits"),
    ),
}


def default_protocol() -> str:
    """The protocol of programs whose `compile` names none: what `securemodel run --protocol` says, or "masked"."""
    return current().protocol or "masked"


def parts_of(protocol: str) -> Parts:
    """The entry of a protocol. Raises InputError for an unknown one."""
    if protocol not in PROTOCOLS:
        raise InputError(
            explain(f"no protocol is called {protocol!r}", fix=f"use one of {', '.join(map(repr, PROTOCOLS))}")
        )
    return PROTOCOLS[protocol]


def part_of(protocol: str, part: str) -> ModuleType:
    """One of the modules of a protocol. Raises InputError for an unknown protocol."""
    return import_module(getattr(parts_of(protocol), part))
