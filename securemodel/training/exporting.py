"""What a training ends with: whole state_dicts of its models, at the one party that they are for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from protocols.errors import InputError, explain
from protocols.fixedpoint import decode
from securemodel.compiler.ir import Node
from securemodel.compiler.owners import owner_of
from securemodel.training.job import Job
from securemodel.training.naming import tensors


class Exported:
    """The parameters and buffers of a job's models, or of the one called `only`: who has what of them, and how it is sent.

    Of what steps change every party sends its share. What no step changes its owner sends as it is, and nobody where it
    is public. Raises InputError for the name of no model.
    """

    def __init__(self, job: Job, only: str | None) -> None:
        self._job = job
        nodes = job.program.graph.keeps()
        self._keys = _keys(job, only)
        self._changed: dict[str, Node] = {name: nodes[name] for name in sorted(self._keys) if name in nodes}
        self._frozen = {name: _owner(job, name) for name in sorted(self._keys) if name not in nodes}

    @property
    def sizes(self) -> dict[str, int]:
        """How many bytes each party sends."""
        shares = 8 * sum(_count(node.shape) for node in self._changed.values())
        return {
            party: shares + sum(tensor.nbytes for tensor in self._owned(party)) for party in self._job.program.parties
        }

    def sent(self, party: str, shares: Mapping[str, torch.Tensor]) -> bytes:
        """What a party sends: its shares, and what it owns of what no step changes."""
        return b"".join(map(_bytes, [*(shares[name] for name in self._changed), *self._owned(party)]))

    def state(self, sent: Mapping[str, bytes]) -> dict[str, torch.Tensor]:
        """The state_dicts, from what all parties sent, and from what is public."""
        found, at = {}, 0
        for name, node in self._changed.items():
            end = at + 8 * _count(node.shape)
            parts = [_tensor(data[at:end], torch.int64) for data in sent.values()]
            total = torch.stack(parts).sum(0).reshape(node.shape)
            dtype = self._start(name).dtype
            found[name] = (decode(total, node.frac, dtype) if node.frac else total).to(dtype)
            at = end
        places = dict.fromkeys(sent, at)
        for name, owner in self._frozen.items():
            start = self._start(name)
            if owner is None or owner not in sent:
                found[name] = start
                continue
            first = places[owner]
            places[owner] = first + start.nbytes
            found[name] = _tensor(sent[owner][first : places[owner]], start.dtype).reshape(start.shape)
        return {key: found[name].clone() for name, keys in self._keys.items() for key in keys}

    def _owned(self, party: str) -> list[torch.Tensor]:
        return [self._start(name) for name, owner in self._frozen.items() if owner == party]

    def _start(self, name: str) -> torch.Tensor:
        return self._job.captured.states[name].start


def _keys(job: Job, only: str | None) -> dict[str, list[str]]:
    """Each state of these models, with the keys that it has in state_dicts: more than one where it is tied."""
    if only is not None and only not in job.models:
        raise InputError(explain(f"there is no model {only!r}", fix=f"name one of {', '.join(job.models)}"))
    shown = {only: job.models[only]} if only is not None else job.models
    names = {id(tensor): name for name, tensor in tensors(job.models)}
    keys: dict[str, list[str]] = {}
    for model, module in shown.items():
        for key, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) in names:
                keys.setdefault(names[id(tensor)], []).append(key if len(shown) == 1 else f"{model}.{key}")
    return keys


def _owner(job: Job, name: str) -> str | None:
    return owner_of(job.program.header.weights, name)


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _tensor(data: bytes, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
