"""Reads the programs of this protocol: encrypted graphs, and deep models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from protocols.errors import explain
from securemodel.compiler.ir import DEEP_KIND, Header
from securemodel.compiler.ops import Wrong
from securemodel.compiler.reading import parse_program
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.operators import ENCRYPTED_ROWS, client_of
from securemodel.engines.paillier.owned_layers import owned_layers
from securemodel.engines.paillier.program import KIND, PaillierProgram
from securemodel.errors import ProgramError

_KEY = ("key_bits", "insecure", "weight_limit")


def read_encrypted(text: str, max_bytes: int) -> PaillierProgram:
    """The encrypted graph in a text that `save` wrote. Raises ProgramError."""
    header, graph = parse_program(text, (KIND,), ENCRYPTED_ROWS, max_bytes)
    _check(header, [node.attrs for node in graph.nodes if node.op == "settings"], 1)
    return PaillierProgram(header, graph)


def read_deep(text: str, max_bytes: int) -> DeepProgram:
    """The deep program in a text that `save` wrote. Raises ProgramError."""
    header, graph = parse_program(text, (DEEP_KIND,), max_bytes=max_bytes)
    settings = [{name: node.attrs[name] for name in _KEY} for node in owned_layers(graph)]
    _check(header, settings, len(settings))
    return DeepProgram(header, graph)


def _check(header: Header, settings: Sequence[Mapping[str, Any]], most: int) -> None:
    """Who has which part, and the key. Raises ProgramError."""
    try:
        client_of(header)
        if not settings or len(settings) > most or any(other != settings[0] for other in settings):
            raise Wrong("a program states the key and its limits once, or the same with each layer")
    except Wrong as wrong:
        raise ProgramError(
            explain("this is no secure program", why=str(wrong), fix="write it with Program.save()")
        ) from None
