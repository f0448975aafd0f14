"""Deep models: layers with the owner's weights by the Paillier gate, all else by the masked engine and its dealer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from securemodel.compiler.ir import DEEP_KIND
from securemodel.engines.paillier.owned_layers import owned_layers
from securemodel.program import Program


@dataclass(frozen=True, repr=False)
class DeepProgram(Program):
    """A program of the masked engine whose `owned_layer` nodes need no masked weights and no dealt products."""

    protocol: ClassVar[str] = "paillier"
    kind: ClassVar[str] = DEEP_KIND

    @property
    def server(self) -> str:
        """The party that owns the weights."""
        return self.header.weights

    @property
    def client(self) -> str:
        """The party that has the key."""
        return next(name for name in self.parties if name != self.server)

    @property
    def settings(self) -> Mapping[str, Any]:
        """key_bits, insecure, weight_limit."""
        return owned_layers(self.graph)[0].attrs
