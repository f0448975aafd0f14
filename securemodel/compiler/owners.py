"""Who owns which weight: one party all of them, or several parties parts of the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from securemodel.errors import CompileError

Weights = str | tuple[tuple[str, str], ...]
"""The owner of all parameters and buffers, or (prefix, owner) pairs in the order they were given."""


def given_weights(weights: str | Mapping[str, str]) -> Weights:
    """What a user gave as `weights`, as a program keeps it. Raises CompileError."""
    if isinstance(weights, str):
        return weights
    if not isinstance(weights, Mapping) or not all(isinstance(part, str) for pair in weights.items() for part in pair):
        raise CompileError(
            "weights is neither the name of a party nor a mapping from prefixes of parameter names to parties: "
            'write weights="bank", or weights={"encoder": "lab", "head": "bank"}'
        )
    return tuple(weights.items())


def weight_owners(weights: Weights) -> tuple[str, ...]:
    """Everybody who owns a part, each once, in the order given."""
    return (weights,) if isinstance(weights, str) else tuple(dict.fromkeys(owner for _, owner in weights))


def owner_of(weights: Weights, name: str) -> str | None:
    """The owner of a parameter or buffer: of the longest prefix that covers its name; None if there is none."""
    if isinstance(weights, str):
        return weights
    covering = [pair for pair in weights if _covers(pair[0], name)]
    return max(covering, key=lambda pair: len(pair[0]))[1] if covering else None


def _covers(prefix: str, name: str) -> bool:
    """A prefix ends where a part of the name ends: "head" covers head.bias, not header.bias; "" covers all."""
    return not prefix or name == prefix or name.startswith(prefix + ".")


def check_owners(weights: Weights, parts: Sequence[tuple[str, torch.Tensor]]) -> None:
    """Raises CompileError unless the prefixes give every parameter and buffer, ties included, one owner."""
    if isinstance(weights, str):
        return
    names = [name for name, _ in parts]
    without = [name for name in names if owner_of(weights, name) is None]
    if without:
        raise CompileError(
            f"weights names no owner of {_some(without)}: add the prefix of their names, "
            'or "" for everything that no other prefix covers'
        )
    idle = [prefix for prefix, _ in weights if prefix and not any(_covers(prefix, name) for name in names)]
    if idle:
        tops = dict.fromkeys(name.split(".")[0] for name in names)
        raise CompileError(
            f"weights has the prefix {_some(idle)}, but no parameter or buffer has such a name: "
            f"their names begin with {_some(list(tops))}"
        )
    first: dict[int, str] = {}
    for name, tensor in parts:
        other = first.setdefault(id(tensor), name)
        if owner_of(weights, other) != owner_of(weights, name):
            raise CompileError(
                f"{other!r} and {name!r} are one tensor, but weights gives them to {owner_of(weights, other)} and "
                f"{owner_of(weights, name)}: give them one owner, or untie them"
            )


def _some(names: list[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
