"""What one party computes in the clear: functions of its own values and public ones, in float."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from protocols.errors import explain
from protocols.fixedpoint import decode, encode
from protocols.names import PUBLIC
from protocols.shares import RING_BITS
from securemodel.compiler.builder import Value, mapped
from securemodel.compiler.capture import NO_MESSAGE, ModelState, model_state
from securemodel.compiler.ir import Node, Phase, is_check
from securemodel.compiler.lower.choosing import one_hot_of
from securemodel.compiler.lower.positions import from_the_front, within
from securemodel.compiler.ops import encoding_limit
from securemodel.compiler.owners import owner_of
from securemodel.compiler.positions import is_table
from securemodel.errors import InputError, SmallWeightsWarning
from securemodel.program import Program

_FEW_UNITS = 8
_GIVEN = ("own", "input", "positions")
"""Operators by which what a party has becomes elements of the ring; what is public does by `encode`."""
_LEFT_OUT = -100  # of labels: what losses of torch ignore by default
_TORCHS_WORDS = ("Runtime assertion failed", "Invalid value range", "Assertion is failed")


_Read = tuple[torch.Tensor, int, int]
"""Positions, the least that they may be, and how many there are."""


def _along(x: torch.Tensor, dim: int, index: torch.Tensor, *rest: Any) -> list[_Read]:
    return [(index, 0, x.shape[dim])]


def _at(x: torch.Tensor, indices: Sequence[torch.Tensor | None], *rest: Any) -> list[_Read]:
    if any(index is not None and index.dtype == torch.bool for index in indices):
        return []
    return [(index, -size, size) for index, size in zip(indices, x.shape, strict=False) if index is not None]


aten = torch.ops.aten
_READS: dict[Any, Callable[..., list[_Read]]] = {
    within: lambda index, count, low=0: [(index, low, count)],
    from_the_front: lambda index, count: [(index, -count, count)],
    one_hot_of: lambda index, count: [(index, 0, count)],
    aten.one_hot.default: lambda index, count: [(index, 0, count)],
    aten.embedding.default: lambda table, index, *rest: [(index, 0, table.shape[0])],
    aten.index.Tensor: _at,
    aten.index_put.default: _at,
    aten.take.default: lambda x, index: [(index, -x.numel(), x.numel())],
    **dict.fromkeys(
        (
            aten.index_select.default,
            aten.gather.default,
            aten.scatter.src,
            aten.scatter.value,
            aten.scatter_add.default,
            aten.scatter_reduce.two,
        ),
        _along,
    ),
}
"""What reads or writes at positions, with these, of its arguments."""


def revealed(node: Node, ring: torch.Tensor) -> torch.Tensor:
    """A revealed value as its receiver decodes it: its low bits, the highest of which says whether it is below zero."""
    dtype, more = node.attrs["dtype"], RING_BITS - node.attrs.get("width", RING_BITS)
    ring = (ring << more) >> more if more else ring
    return typed(decode(ring, node.frac, getattr(torch, dtype)) if node.frac else ring, dtype)


def typed(x: torch.Tensor, name: str) -> torch.Tensor:
    """Numbers as the model returns them, of the type of this name: complex ones from their parts on the last axis."""
    dtype = getattr(torch, name)
    return torch.view_as_complex(x.double().contiguous()).to(dtype) if dtype.is_complex else x.to(dtype)


class ClearSide:
    """Evaluates float nodes on demand; weights once per loaded model, inputs once per run."""

    def __init__(self, program: Program, me: str) -> None:
        self._program, self._me = program, me
        self._state: dict[str, torch.Tensor] = {}
        self._inputs: Sequence[torch.Tensor | None] = ()
        self._values: dict[int, Any] = {}
        self._tables: Mapping[str, torch.Tensor] = {}
        self._checks = [n for n in program.graph.nodes if is_check(n) and n.owner in (me, PUBLIC)]

    def set_model(self, model: ModelState | None) -> None:
        """The model whose parameters and buffers this party gives, where it owns them."""
        given = model_state(model) if model is not None else {}
        state = {name: tensor for name, tensor in given.items() if self._gives(name)}
        self._check_state(state)
        self._state, self._values = state, {}
        self._make_checks("load")

    def _gives(self, name: str) -> bool:
        return owner_of(self._program.header.weights, name) in (self._me, PUBLIC)

    def _public(self) -> dict[str, torch.Tensor]:
        weights = self._program.header.weights
        return {name: tensor for name, tensor in self._state.items() if owner_of(weights, name) == PUBLIC}

    def _check_state(self, state: dict[str, torch.Tensor]) -> None:
        for node in self._program.graph.nodes:
            if node.op != "placeholder" or not node.attrs["name"].startswith("state:"):
                continue
            name = node.attrs["name"][len("state:") :]
            if not self._gives(name):
                continue
            tensor = state.get(name)
            if tensor is None or tensor.is_meta:
                how = "is not in the model given" if tensor is None else "is on the meta device and has no values"
                raise InputError(
                    f"party {self._me!r} owns the weight {name!r}, but it {how}. "
                    "Give the real model to compile() or session.load()."
                )
            if tuple(tensor.shape) != node.shape:
                raise InputError(
                    f"the weight {name!r} has shape {list(tensor.shape)}, the program was compiled for "
                    f"{list(node.shape)}. Load a model of the same architecture."
                )

    def set_inputs(self, inputs: Sequence[torch.Tensor | None]) -> None:
        """The inputs of the next run; None for what others own."""
        self._inputs, self._tables = inputs, {}
        self._values = {i: v for i, v in self._values.items() if self._program.graph[i].phase == "load"}
        self._make_checks("run")

    def _make_checks(self, phase: Phase) -> None:
        """The model's assertions of this party's values and of public ones. Raises InputError with their message."""
        for node in self._checks:
            if node.phase != phase:
                continue
            try:
                self.value(node.id)
            except (RuntimeError, IndexError) as problem:
                words = str(problem).splitlines()[0]
                what = NO_MESSAGE if words.startswith(_TORCHS_WORDS) else words
                fix = "give values that the model takes"
                raise InputError(explain(f"{self.describe(node.id)}: {what}", where=node.source, fix=fix)) from problem

    def give(self, node_id: int, value: torch.Tensor) -> None:
        """A value that this party got in the run, for what it computes from it."""
        self._values[node_id] = value

    def value(self, node_id: int) -> torch.Tensor:
        """The value of a float node that this party may compute."""
        if node_id in self._values:
            return self._values[node_id]
        node = self._program.graph[node_id]
        if node.op == "placeholder":
            kind, name = node.attrs["name"].split(":", 1)
            made = self._state[name] if kind == "state" else cast(torch.Tensor, self._inputs[int(name)])
        else:
            call = self._program.calls[node_id]
            with torch.no_grad():
                args, kwargs = mapped((call.args, call.kwargs), Value, lambda v: self.value(v.id))
                made = call.target(*args, **kwargs)
        self._values[node_id] = made
        return made

    def encoded(self, node: Node) -> torch.Tensor:
        """A float of this party (or public) as ring elements of the node's shape and scale. Raises InputError."""
        ring = self._ring(node)
        if node.phase == "load" and node.owner == self._me and not is_table(self._program.graph, node):
            value = torch.as_tensor(self.value(node.args[0]))
            if value.is_floating_point():
                self._warn_of_small(value, node)
        return ring

    def _ring(self, node: Node) -> torch.Tensor:
        """`encoded` without a warning."""
        if is_table(self._program.graph, node):
            return self._table(node)
        limit, source = encoding_limit(self._program.header, node.frac or 0), node.args[0]
        try:
            value = torch.as_tensor(self.value(source))
        except (RuntimeError, IndexError) as problem:
            what, fix = f"the model cannot use it: {type(problem).__name__}", "give values that the model takes"
            if found := self._outside(source):
                place, least, size, number = found
                what = f"the id or position at {place} is outside of its table"
                fix = f"give whole numbers from {least} to {size - 1}"
                if number == _LEFT_OUT:
                    fix += f"; if losses are to leave rows out, mark them otherwise and say so: ignore_index={size}"
            elif isinstance(problem, IndexError) or str(problem).startswith("Class values must"):
                what = "an id or a position is outside of its table"
            where = self._program.graph[source].source
            raise InputError(explain(f"{self.describe(source)}: {what}", where=where, fix=fix)) from problem
        what = self.describe(source)
        if value.is_floating_point() and not value.isfinite().all():
            what = self._of_finite(source, what)
        return encode(value, node.frac or 0, limit, what).reshape(node.shape).contiguous()

    def _of_finite(self, node_id: int, what: str) -> str:
        """What has NaN or infinite values: the model's own, or what it makes of other ones."""
        graph = self._program.graph
        at, nan = graph[node_id], bool(torch.as_tensor(self.value(node_id)).isnan().any())
        while at.op == "float":
            values = {a: torch.as_tensor(self.value(a)) for a in at.args}
            bad = [a for a, v in values.items() if v.isnan().any() or (not nan and not v.isfinite().all())]
            if not bad:
                where = f", at {at.source}" if at.source else ""
                return f"{what}: what {at.attrs['target']} makes of it{where}"
            at = graph[bad[0]]
        return what

    def encoded_input(self, node: Node) -> torch.Tensor:
        """An input of a client as ring elements, for those who have it in the clear. Raises InputError."""
        index = int(node.attrs["name"].removeprefix("input:"))
        limit = encoding_limit(self._program.header, node.frac or 0)
        return encode(cast(torch.Tensor, self._inputs[index]), node.frac or 0, limit, f"input {index}")

    def _outside(self, node_id: int) -> tuple[list[int], int, int, int] | None:
        """(where the first position stands that is outside of its table, the least that it may be, the table's size, it)."""
        seen, queue = set(), [node_id]
        while queue:
            at = queue.pop()
            if at in seen:
                continue
            seen.add(at)
            queue += self._program.graph[at].args
            call = self._program.calls.get(at)
            if call and call.target in _READS and len(call.args) > 1:
                try:
                    args = mapped(call.args, Value, lambda v: self.value(v.id))
                    reads = _READS[call.target](*args)
                except (RuntimeError, IndexError):  # not this one: what it reads could not be computed
                    continue
                for index, low, size in reads:
                    outside = ((index < low) | (index >= size)).nonzero()
                    if len(outside):
                        place = outside[0].tolist()
                        return place, low, size, int(index[tuple(place)])
        return None

    def _warn_of_small(self, value: torch.Tensor, node: Node) -> None:
        """Weights of a few units in the last place have few digits: their owner is told, who alone can know."""
        size = value.detach().double().square().mean().sqrt().item() * 2.0 ** (node.frac or 0)
        if 0 < size < _FEW_UNITS:
            what = f"{self.describe(node.args[0])}: most values are below {_FEW_UNITS} units of 2^-{node.frac}"
            why, fix = (
                "fixed point keeps few of their digits, or none",
                "scale them by a power of two in the model's code",
            )
            warnings.warn(explain(what, where=node.source, why=why, fix=fix), SmallWeightsWarning, stacklevel=2)

    def _table(self, node: Node) -> torch.Tensor:
        """Rows that this party shares once, encoded."""
        if not self._tables:
            self._tables = self._program.tables_of(self._me)
        return self._tables[self._program.graph[node.args[0]].attrs["name"]]

    def loaded_digest(self) -> str | None:
        """SHA-256 of all that follows under the masks of a load, as far as this party has it: the elements of the ring that
        it gives, and public ones. None where it has none, or nobody gives a secret in a load.
        """
        loaded = [node for node in self._program.graph.nodes if node.phase == "load"]
        given = [node for node in loaded if node.op in _GIVEN]
        known = [node for node in given if node.owner == self._me] + [node for node in loaded if node.op == "encode"]
        if not (given and known):
            return None
        digest = hashlib.sha256()
        for node in known:
            digest.update(_digest({f"{node.id}": self._ring(node)}).digest())
        return digest.hexdigest()

    def agreed_digest(self, phase: Phase, more: Mapping[str, torch.Tensor] | None = None) -> bytes:
        """16 bytes that all parties must have in common in a phase: of the program, its public values and these."""
        header = self._program.header
        if phase == "load":
            public = self._public()
        else:
            owned = zip(header.inputs, self._inputs, strict=True)
            public = {f"input {i}": cast(torch.Tensor, x) for i, (owner, x) in enumerate(owned) if owner == PUBLIC}
        digest = _digest({**public, **(more or {})})
        digest.update(bytes.fromhex(self._program.digest))
        return digest.digest()[:16]

    def describe(self, node_id: int) -> str:
        """A name for errors: which weight or input a float comes from."""
        seen, queue, names = set(), [node_id], []
        while queue:
            node = self._program.graph[queue.pop()]
            if node.id in seen:
                continue
            seen.add(node.id)
            if node.op == "placeholder":
                kind, name = node.attrs["name"].split(":", 1)
                names.append(f"weight {name!r}" if kind == "state" else f"input {name}")
            queue.extend(node.args)
        return f"party {self._me!r}: {' and '.join(sorted(names)) or 'a constant'}"


def _digest(tensors: Mapping[str, torch.Tensor]):
    """SHA-256 over names, types, shapes and contents."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest
