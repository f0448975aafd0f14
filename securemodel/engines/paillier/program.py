"""An encrypted graph: what the client encrypts, what the server computes on it, and what the client decrypts."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from protocols.paillier.affine import AffineShape
from securemodel.compiler.ir import Node
from securemodel.compiler.owners import weight_owners
from securemodel.program import Program

KIND = "paillier-program"


@dataclass(frozen=True, repr=False)
class EncryptedProgram(Program):
    """A program of which one party owns the weights and the other has the key."""

    protocol: ClassVar[str] = "paillier"

    @property
    def server(self) -> str:
        """The party that owns the weights."""
        (owner,) = weight_owners(self.header.weights)
        return owner

    @property
    def client(self) -> str:
        """The party that has the key; of an encrypted graph, it learns the outputs."""
        return next(name for name in self.parties if name != self.server)

    @property
    def settings(self) -> Mapping[str, Any]:
        """key_bits, insecure, weight_limit, and what else the kind has."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class PaillierProgram(EncryptedProgram):
    """A program of which one party, the server, computes the linear part on the other's encrypted numbers.

    The graph is that of one row where the rows of the model are independent, and of the whole input otherwise.
    Operators besides `placeholder`, `float` and those of linear maps (securemodel.compiler.ir)
      encrypt   numbers of the client, hidden from the server
      decrypt   a linear function of them, which the client learns
      reveal    an output of the model, computed by the client from what it learned
      settings  the limits of the numbers, the size of the key, and the rows of a run
    """

    kind: ClassVar[str] = KIND

    @property
    def settings(self) -> Mapping[str, Any]:
        """key_bits, insecure, weight_limit, input_limit, rows."""
        return next(node.attrs for node in self.graph.nodes if node.op == "settings")

    @cached_property
    def live(self) -> frozenset[int]:
        """Nodes that an output is computed from."""
        live = {node.id for node in self.graph.nodes if node.op == "reveal"}
        for node in reversed(self.graph.nodes):
            if node.id in live:
                live.update(node.args)
        return frozenset(live)

    def nodes(self, op: str) -> list[Node]:
        """The nodes of one operator that an output is computed from."""
        return [node for node in self.graph.nodes if node.op == op and node.id in self.live]

    @cached_property
    def shared(self) -> bool:
        """Whether what the server computes is the same for all rows: it has no inputs of its own."""
        hidden = [node for node in self.graph.nodes if node.form != "float" and node.op != "encrypt"]
        return all(self.graph[a].phase == "load" for node in hidden for a in node.args if self.graph[a].form == "float")

    @cached_property
    def shape(self) -> AffineShape:
        """Numbers of the client and of the answer in a row, rows, limits: all that messages depend on."""
        inputs, outputs = (sum(math.prod(n.shape) for n in self.nodes(op)) for op in ("encrypt", "decrypt"))
        given = self.settings
        return AffineShape(
            inputs, outputs, given["rows"], self.header.frac_bits, given["input_limit"], given["weight_limit"],
            given["key_bits"], self.shared,
        )  # fmt: skip
