"""The operators of encrypted graphs, as rows of the table that texts are checked against."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from securemodel.compiler.ir import Header
from securemodel.compiler.ops import (
    PRODUCTS,
    ROWS,
    Case,
    Made,
    Row,
    Wrong,
    flag,
    in_a_run,
    linear_shape,
    one_of,
    product_shape,
    whole,
)
from securemodel.compiler.owners import weight_owners

LARGEST_LIMIT = 2.0**30
MOST_ROWS = 1 << 31


def limit(value: Any) -> bool:
    """What a program may say of the largest of its numbers."""
    return type(value) is float and 0 < value <= LARGEST_LIMIT


def client_of(header: Header) -> str:
    """The one party besides the weights' owner. Raises Wrong where there is none."""
    owners = set(weight_owners(header.weights))
    others = [name for name in header.parties if name not in owners]
    if len(header.parties) != 2 or len(others) != 1 or not isinstance(header.weights, str):
        raise Wrong("such programs are for one owner of all weights and one other party")
    return others[0]


def _client(case: Case) -> str:
    return client_of(case.header)


def _placeholder(case: Case) -> Made:
    """An input in whole, or its first row."""
    whole_input = ROWS["placeholder"].rule(case).shape
    one = (1, *whole_input[1:])
    return Made(one if case.attrs["name"].startswith("input:") and case.node.shape == one else whole_input)


def _linear(case: Case) -> Made:
    return Made(linear_shape(case))


def _bilinear(case: Case) -> Made:
    x, y = (x.shape for x in case.xs)
    shape, beside = product_shape(case.attrs["kind"], case.attrs["attrs"], x, y)
    return Made(shape, None, beside)


def _same_shape(case: Case) -> Made:
    return Made(case.xs[0].shape)


def _encrypt(case: Case) -> Made:
    if case.xs[0].owner != client_of(case.header):
        raise Wrong("only the client's numbers are encrypted")
    return _same_shape(case)


_NESTED = {"attrs": lambda value: isinstance(value, dict)}
ENCRYPTED_ROWS: dict[str, Row] = {
    "placeholder": replace(ROWS["placeholder"], rule=_placeholder),
    "float": ROWS["float"],
    "encrypt": Row("float -> secret", _encrypt, owner=_client, phase=in_a_run),
    "linear": Row(
        "((secret|float) )*secret ((secret|float) )*-> secret", _linear, ROWS["linear"].attrs, phase=in_a_run
    ),
    "bilinear": Row(
        "(secret float|float secret) -> secret", _bilinear, {"kind": one_of(*PRODUCTS), **_NESTED}, phase=in_a_run
    ),
    "factor": Row(
        "secret -> secret", _same_shape, {"factor": lambda value: type(value) is float and math.isfinite(value)}, phase=in_a_run
    ),
    "ldexp": Row("secret -> secret", _same_shape, {"bits": whole(-128, 128)}, phase=in_a_run),
    "rescale": Row("secret -> secret", _same_shape, phase=in_a_run),
    "decrypt": Row("secret -> float", _same_shape, {}, {"integer": flag}, owner=_client, phase=in_a_run, may_be_empty=True),
    "reveal": Row(
        "float -> float", _same_shape, {**ROWS["reveal"].attrs, "to": lambda value: isinstance(value, str)},
        owner=_client, phase=in_a_run, may_be_empty=True,
    ),
    "settings": Row(
        "-> public", lambda case: Made(()),
        {
            "key_bits": whole(64, 8192), "insecure": flag, "rows": whole(1, MOST_ROWS),
            "weight_limit": limit, "input_limit": limit,
        },
        phase=in_a_run,
    ),
}  # fmt: skip
"""The operators of an encrypted graph: no value has fractional bits yet, and nothing is shared."""
