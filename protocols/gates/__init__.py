"""The correlated operations, by the name they have in a secure program."""

from __future__ import annotations

from protocols.gates.base import Dealt, Gate, Part, dealt_bytes, numel, ready_attrs
from protocols.gates.beyond import Beyond
from protocols.gates.bilinear import Bilinear, Square
from protocols.gates.conjunction import Conjunction
from protocols.gates.lookup import Lookup, LookupShared, Spline
from protocols.gates.multiply import MultiplyTruncated
from protocols.gates.permute import Permute
from protocols.gates.select import BitToRing, Select, SelectTruncated
from protocols.gates.shift import Shift
from protocols.gates.sign import Combine, Digits, TopBit
from protocols.gates.truncate import Truncate
from protocols.gates.unit import Unit

HALVED = {"bilinear": Bilinear()}
"""Gates of which a half can be done before the first operand is there, where the second one is."""
SIGNED = {"lookup": Lookup()}
"""Gates whose additive result has a sign that dealing makes and alone knows."""
REMASKED = {"shift": Shift()}
"""Gates whose result is masked: by what is dealt for them."""

GATES: dict[str, Gate] = {
    **HALVED,
    **SIGNED,
    **REMASKED,
    "square": Square(),
    "truncate": Truncate(),
    "multiply_truncated": MultiplyTruncated(),
    "digits": Digits(),
    "top_bit": TopBit(),
    "combine": Combine(),
    "conjunction": Conjunction(),
    "beyond": Beyond(),
    "select": Select(),
    "select_truncated": SelectTruncated(),
    "bit_to_ring": BitToRing(),
    "lookup_shared": LookupShared(),
    "spline": Spline(),
    "unit": Unit(),
    "permute": Permute(),
}

__all__ = ["GATES", "HALVED", "REMASKED", "SIGNED", "Dealt", "Gate", "Part", "dealt_bytes", "numel", "ready_attrs"]
