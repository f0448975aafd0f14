"""Deep models: layers with the owner's weights by the Paillier gate, all else by the masked engine and its dealer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from securemodel.compiler.ir import DEEP_KIND
from securemodel.engines.paillier.owned_layers import owned_layers
from securemodel.engines.paillier.program import EncryptedProgram


@dataclass(frozen=True, repr=False)
class DeepProgram(EncryptedProgram):
    """A program of the masked engine whose `owned_layer` nodes need no masked weights and no dealt products."""

    kind: ClassVar[str] = DEEP_KIND

    @property
    def settings(self) -> Mapping[str, Any]:
        """key_bits, insecure, weight_limit."""
        return owned_layers(self.graph)[0].attrs
