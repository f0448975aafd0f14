"""What a model makes of its weights for each row of a batch, all rows alike: made once, and expanded in a run.

Programs of several sizes share one load, which cannot depend on the number of rows. The model captured with another
number of rows tells what does: a shape or an argument that differs. Of such a value one row is made with the weights,
if an operator gives the same for one row as for many. Where it meets an input, that row is read by an operator that
broadcasts anyway, or else expanded in the ring.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch

from securemodel.compiler.builder import is_whole
from securemodel.compiler.capture import Captured

Fx = torch.fx.Node
aten = torch.ops.aten
IN_RUN = "in_run"
"""The name in `Node.meta` of captured operators that are computed in each run, as what they give has its rows."""
SHAPES_ALONE = frozenset(
    getattr(aten, name).default
    for name in ("new_zeros", "zeros_like", "new_ones", "ones_like", "new_full", "full_like", "empty_like", "new_empty")
)
"""What reads no values of its operand."""


class _NoRow(Exception):
    """One row of a value does not follow from one row of what it is made of."""


def expand_in_runs(captured: Captured, other: torch.fx.Graph) -> None:
    """Rewrites a captured graph so that what is made of weights does not have the rows of a run. `other` is the graph of
    the same model with another number of rows, two or more. Leaves alone what it cannot rewrite.
    """
    mine, theirs = (_operators(graph) for graph in (captured.graph, other))
    if [(node.op, node.target) for node in mine] != [(node.op, node.target) for node in theirs]:
        return
    _Rewriting(captured, dict(zip(mine, theirs, strict=True))).rewrite()


def _operators(graph: torch.fx.Graph) -> list[Fx]:
    """All nodes but torch's checks of shapes and types, which it made already."""
    return [node for node in graph.nodes if node.target is not aten._assert_tensor_metadata.default]


class _Rewriting:
    """`like`: for each node, that of the other graph. `given`: what no input is in, with whether weights are. `rows`: those
    of these that depend on the number of rows. `one`: for such a value, the node of one row of it."""

    def __init__(self, captured: Captured, like: dict[Fx, Fx]) -> None:
        self.graph, self.like, self._mine = captured.graph, like, {there: node for node, there in like.items()}
        self.given: dict[Fx, bool] = {}
        self.rows: dict[Fx, None] = {}
        self.one: dict[Fx, Fx] = {}
        for node in like:
            if node.op == "placeholder" and node.name not in captured.inputs:
                self.given[node] = node.name in captured.states
            elif node.op == "call_function" and self._is_given(node):
                self.given[node] = any(self.given.get(n, False) for n in node.all_input_nodes)
                if self._has_rows(node):
                    self.rows[node] = None

    def rewrite(self) -> None:
        """Nothing, where a value of weights has the rows of a run in another way."""
        for node in self.rows:
            try:
                self.one[node] = self._one_row(node)
            except _NoRow:
                if self.given[node]:
                    for made in reversed(list(self.one.values())):
                        self.graph.erase_node(made)
                    return
        for node in [node for node in self.graph.nodes if node not in self.like and not node.users]:
            if node.target is aten._assert_tensor_metadata.default:
                self.graph.erase_node(node)
        for node in self.rows:
            self._meet(node)
        for node in reversed([*self.rows, *self.one.values()]):
            if not node.users:
                self.graph.erase_node(node)

    def _is_given(self, node: Fx) -> bool:
        return node.target in SHAPES_ALONE or all(n in self.given for n in node.all_input_nodes)

    def _has_rows(self, node: Fx) -> bool:
        same = _shapes(node.meta.get("val")) == _shapes(self.like[node].meta.get("val"))
        return not same or any(n in self.rows for n in node.all_input_nodes)

    # ---- one row
    def _one_row(self, node: Fx) -> Fx:
        """Adds the operator for one row. Raises _NoRow."""
        there = self.like[node]
        if not all(isinstance(n.meta.get("val"), torch.Tensor) for n in (node, *node.all_input_nodes)):
            raise _NoRow
        if any(n not in self.given or (n in self.rows and n not in self.one) for n in node.all_input_nodes):
            raise _NoRow
        args, kwargs = self._arguments((node.args, node.kwargs), (there.args, there.kwargs))
        example = self._tried(node, args, kwargs)
        with self.graph.inserting_before(node):
            made = self.graph.call_function(cast(Callable, node.target), args, kwargs)
        made.meta = {**node.meta, "val": node.meta["val"].new_empty(example.shape)}
        self.given[made] = self.given[node]
        return made

    def _arguments(self, mine: Any, theirs: Any) -> Any:
        """Arguments for one row: 1 for numbers that differ, which are the numbers of rows."""
        if isinstance(mine, Fx):
            if self.like[mine] is not theirs:
                raise _NoRow
            return self.one.get(mine, mine)
        if isinstance(mine, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(mine) == len(theirs):
            return type(mine)(self._arguments(a, b) for a, b in zip(mine, theirs, strict=True))
        if isinstance(mine, dict) and isinstance(theirs, dict) and mine.keys() == theirs.keys():
            return {name: self._arguments(value, theirs[name]) for name, value in mine.items()}
        if type(mine) is type(theirs) is int and mine != theirs:
            return 1
        if type(mine) is not type(theirs) or mine != theirs:
            raise _NoRow
        return mine

    def _tried(self, node: Fx, args: Any, kwargs: Any) -> torch.Tensor:
        """What the operator gives for one row of made-up numbers. Raises _NoRow where many rows are no copies of it."""
        for most in (2, 1):  # whole numbers may be positions on an axis of size one
            try:
                return self._tried_on(node, args, kwargs, most)
            except (RuntimeError, IndexError, TypeError, ValueError):
                continue
        raise _NoRow

    def _tried_on(self, node: Fx, args: Any, kwargs: Any, most: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)  # made-up numbers: nothing here hides anything
        target, there = cast(Callable, node.target), self.like[node]
        made = {n: _made_up(self._of_one(n), generator, most) for n in node.all_input_nodes}
        many = {self.like[n]: x.expand(_shape(self.like[n])) if n in self.one else x for n, x in made.items()}
        of_one = {self.one.get(n, n): x for n, x in made.items()}
        one = target(*_filled(args, of_one), **_filled(kwargs, of_one))
        all_rows = target(*_filled(there.args, many), **_filled(there.kwargs, many))
        if not torch.allclose(one.expand(all_rows.shape), all_rows, rtol=1e-5, atol=1e-6, equal_nan=True):
            raise _NoRow
        return one

    def _of_one(self, node: Fx) -> torch.Tensor:
        return cast(torch.Tensor, self.one.get(node, node).meta["val"])

    # ---- where inputs meet it
    def _meet(self, node: Fx) -> None:
        """Lets what has inputs read one row of a value, or its rows as made in the run."""
        one, expanded = self.one.get(node), None
        for user in [user for user in node.users if user not in self.given]:
            if one is not None and self._broadcasts(user):
                user.replace_input_with(node, one)
            elif one is not None and self.given[node]:
                expanded = expanded or self._expanded(node, one)
                user.replace_input_with(node, expanded)
        if not self.given[node]:
            node.meta[IN_RUN] = True

    def _broadcasts(self, user: Fx) -> bool:
        """Whether an operator gives the same of one row of each value that has one, as its other operands have all rows."""
        if user.op != "call_function" or torch.Tag.pointwise not in getattr(user.target, "tags", ()):
            return False
        there = self.like[user]
        operands = [self.one.get(self._mine[n], n) for n in there.all_input_nodes]
        if not all(isinstance(n.meta.get("val"), torch.Tensor) for n in operands):
            return False
        return torch.broadcast_shapes(*map(_shape, operands)) == _shape(there)

    def _expanded(self, node: Fx, one: Fx) -> Fx:
        with self.graph.inserting_after(node):
            made = self.graph.call_function(aten.expand.default, (one, list(_shape(node))))
        made.meta = {**node.meta, IN_RUN: True}
        return made


def _shape(node: Fx) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _shapes(made: Any) -> Any:
    """The shapes of what an operator makes; None for what is no tensor."""
    if isinstance(made, (list, tuple)):
        return [_shapes(part) for part in made]
    return tuple(made.shape) if isinstance(made, torch.Tensor) else None


def _made_up(like: torch.Tensor, generator: torch.Generator, most: int) -> torch.Tensor:
    if is_whole(like.dtype):
        return torch.randint(0, most, like.shape, generator=generator).to(like.dtype)
    return torch.rand(like.shape, generator=generator, dtype=like.dtype)


def _filled(arg: Any, values: dict[Fx, torch.Tensor]) -> Any:
    return torch.fx.node.map_arg(arg, values.__getitem__)
