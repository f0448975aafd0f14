"""From ATen operators to secure ones: the owner computes first, the rest is lowered."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import torch

from protocols.names import PUBLIC
from securemodel.compiler.builder import (
    Builder,
    CannotLower,
    Complex,
    Value,
    common_owner,
    is_whole,
    mapped,
    values_in,
)
from securemodel.compiler.capture import Captured, of_torch, operand, outputs_of, source_line
from securemodel.compiler.expanded import IN_RUN, expand_in_runs
from securemodel.compiler.explaining import ALL_EXPERTS, ROUTING, chooses_experts
from securemodel.compiler.ir import CLIENT, Rounding, Stranger
from securemodel.compiler.lower import ACCURACY, LOWERINGS, RECOMPUTING, page
from securemodel.compiler.lower.complexes import Real, complex_version
from securemodel.compiler.lower.layers import shaped
from securemodel.compiler.owners import Weights, owner_of
from securemodel.compiler.report import Problem

aten = torch.ops.aten

Secure = Callable[[Builder, torch.fx.Node, list, dict[str, Any]], Any]
"""Makes the secure version of a captured operator from its arguments; raises CannotLower if there is none."""

MONOTONE = (aten.relu.default, aten.relu6.default, aten.hardtanh.default)
METADATA = aten._assert_tensor_metadata.default
"""Checks of shapes and types: torch.export made them already."""
CHECKS = (
    aten._assert_async.msg,
    aten._assert_async.default,
    aten._assert_scalar.default,
    aten._linalg_check_errors.default,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
)
"""Checks of values, by their owner; nobody can make those of secrets."""

FILLS = {
    aten.new_zeros.default: 0,
    aten.zeros_like.default: 0,
    aten.new_ones.default: 1,
    aten.ones_like.default: 1,
    aten.new_full.default: None,
    aten.full_like.default: None,
}
"""What looks at a tensor's shape only, and the number it fills the result with (None: its last argument)."""

UNSET = (
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_permuted.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
)
"""What leaves memory as it was: other numbers at every party. Here it is zero."""

DRAWS_NOTHING = {"training": False, "train": False, "dropout_p": 0, "dropout": 0}
"""Arguments with which an operator that could draw random numbers draws none."""


_OF_TORCH = ("aten", "prims", "prim", "higher_order", "quantized", "torch")
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_SIZE = "the size of this result depends on values"
_FIXED_SIZE = "use torch.where on tensors of a fixed size, or numbers and positions written in the model's code"


@dataclass(frozen=True)
class Lowered:
    """The graph before scales and masks, and the values the model returns.

    `unchecked`: where the model checks values that are secret, which is left out.
    """

    builder: Builder
    outputs: tuple[Value, ...]
    dtypes: tuple[str, ...]
    problems: tuple[Problem, ...]
    operators: tuple[str, ...]
    approximated: tuple[str, ...]
    unchecked: tuple[str, ...] = ()


def pool_before_activation(graph: torch.fx.Graph) -> None:
    """max_pool(relu(x)) becomes relu(max_pool(x)): the same value with fewer comparisons; so do their gradients."""
    for pool in list(graph.nodes):
        if pool.target is aten.max_pool2d_with_indices.default:
            _pool_with_gradient_first(graph, pool)
        if pool.op != "call_function" or pool.target is not aten.max_pool2d.default:
            continue
        act = pool.args[0]
        if act.op == "call_function" and act.target in MONOTONE and len(act.users) == 1:
            pool.replace_input_with(act, act.args[0])
            with graph.inserting_after(pool):
                after = graph.create_node("call_function", act.target, (pool, *act.args[1:]), act.kwargs)
            after.meta = {**act.meta, "val": pool.meta["val"]}
            pool.replace_all_uses_with(after, delete_user_cb=lambda user, after=after: user is not after)
            graph.erase_node(act)


def _pool_with_gradient_first(graph: torch.fx.Graph, pool: torch.fx.Node) -> None:
    """The same where gradients go back through both.

    Where no value of a window is above zero, its gradient is zero whichever of them gets it; else the largest of the
    window is where it was.
    """
    relu, values = operand(pool), [user for user in pool.users if user.args[1] == 0]
    if relu.target is not aten.relu.default or len(values) != 1:
        return
    poolings = [user for user in relu.users if user.target is aten.max_pool2d_with_indices_backward.default]
    signs = [user for back in poolings for user in back.users]
    alone = all(len(back.users) == 1 and relu not in back.all_input_nodes[:1] for back in poolings)
    if not alone or set(relu.users) != {pool, *poolings, *signs} or not all(map(_is_gradient_of_relu, signs)):
        return
    x, value = operand(relu), values[0]
    pool.replace_input_with(relu, x)
    with graph.inserting_after(value):
        after = graph.create_node("call_function", relu.target, (value,))
    after.meta = {**relu.meta, "val": value.meta["val"]}
    value.replace_all_uses_with(after, delete_user_cb=lambda user: user is not after)
    for back, sign in zip(poolings, signs, strict=True):
        dy = operand(back)
        with graph.inserting_before(back):
            first = graph.create_node("call_function", sign.target, (dy, after, 0))
        first.meta = {**sign.meta, "val": dy.meta["val"]}
        back.args = (first, x, *back.args[2:])
        sign.replace_all_uses_with(back)
        graph.erase_node(sign)
    graph.erase_node(relu)


def _is_gradient_of_relu(node: torch.fx.Node) -> bool:
    return node.target is aten.threshold_backward.default and bool(node.args[2] == 0)


def lower_model(
    captured: Captured,
    weights: Weights,
    owners: Sequence[str],
    frac_bits: int = 16,
    secure: Secure | None = None,
    width: int = 64,
    rounding: Rounding = "exact",
    stranger: Stranger | None = None,
    whole_rows: bool = False,
    halved: Mapping[int, int] = MappingProxyType({}),
) -> Lowered:
    """Lowers every operator; collects what has no secure version instead of stopping at the first.

    `secure` makes the secure version of an operator with a secret operand; by default that of the masked engine.
    With `stranger`, the owner "client" is no party, and what it gives enters as shares. `whole_rows` and
    `halved`: see Builder.
    """
    g = Builder(frac_bits=frac_bits, width=width, exact=rounding == "exact", whole_rows=whole_rows, halved=halved)
    env: dict[torch.fx.Node, Any] = {}
    problems: list[Problem] = []
    operators: dict[str, None] = {}
    approximated: dict[str, None] = {}
    unchecked: dict[str, None] = {}
    if stranger and stranger.other:
        expand_in_runs(captured, stranger.other)
    pool_before_activation(captured.graph)
    kept = {part.placeholder: part for part in captured.kept}
    for_checks = _only_for_checks(captured.graph)
    for_softmax, in_run = _for_softmax(captured.graph), stranger is not None and stranger.all_in_run
    for node in captured.graph.nodes:
        if node.op == "placeholder":
            if isinstance(node.meta.get("val"), torch.Tensor) or node.name in captured.constants:
                value = _placeholder(g, captured, node, weights, owners, stranger)
                part = kept.get(node.name)
                if part and _is_complex(node):
                    reason, remedy = "a complex number that is kept between runs", "keep torch.view_as_real of it"
                    problems.append(Problem("state", part.name, reason, remedy))
                    part = None
                value = g.state(part.name, value, frac_bits + part.more_bits, part.large) if part else value
                env[node] = _marked(value, node.meta.get("val"))
            else:
                reason, remedy = "an object that is no tensor", "give the model tensors only"
                problems.append(Problem(str(node.target), source_line(node), reason, remedy))
                env[node] = None
        elif node.op == "get_attr":
            env[node] = None
        elif node.op == "call_function" and node in for_checks and not _is_clear(node, env):
            env[node] = None
            if node.target in CHECKS and not _is_torchs_own(node):
                unchecked[source_line(node)] = None
        elif node.op == "call_function" and not _is_torchs_own(node):
            if node not in for_checks:
                operators[str(node.target)] = None
            g.source, g.scores, g.in_run = source_line(node), node in for_softmax, in_run or IN_RUN in node.meta
            try:
                env[node] = _marked(_lower_node(g, node, env, secure or secure_version), node.meta.get("val"))
            except CannotLower as problem:
                name, supported = str(node.target), page(node.target) if secure is None else ""
                reason, remedy = problem.reason, problem.remedy
                if chooses_experts(g.source) and any(
                    word in reason for word in ("size", "positions", "number of Python", "library")
                ):
                    reason, remedy = f"{ROUTING}: {reason}", ALL_EXPERTS
                problems.append(Problem(name, g.source, reason, remedy, supported))
                env[node] = _stand_in(g, node.meta.get("val"))
            if isinstance(env[node], Value) and env[node].secret:
                g.computes(env[node], node.name)
            if secure is None and node.target in ACCURACY and any(value.secret for value in values_in(env[node])):
                approximated[page(node.target)] = None
    g.in_run = False
    returned = outputs_of(captured.graph)
    outputs = tuple(_returned(g, n, env, secure or secure_version) for n in returned)
    problems += _keep(g, captured, env, outputs)
    shown = [at for at in range(len(outputs)) if at not in {part.output for part in captured.kept}]
    returned, outputs = [returned[at] for at in shown], tuple(outputs[at] for at in shown)
    for node, value in zip(returned, outputs, strict=True):
        if isinstance(value, Value) and not value.sized:
            problems.append(Problem(str(node.target), source_line(node), _SIZE, _FIXED_SIZE))
    g.returned = frozenset(v.id for v in outputs if isinstance(v, Value))
    dtypes = tuple(str(n.meta["val"].dtype).removeprefix("torch.") for n in returned)
    return Lowered(g, outputs, dtypes, tuple(problems), tuple(operators), tuple(approximated), tuple(unchecked))


def _keep(g: Builder, captured: Captured, env: dict, outputs: Sequence[Any]) -> list[Problem]:
    """Ends a run with what the next one reads; what cannot be kept."""
    problems, nodes = [], {node.name: node for node in captured.graph.nodes}
    for part in captured.kept:
        old = env[nodes[part.placeholder]]
        new = None if part.output is None else outputs[part.output]
        if not old.secret:  # refused before
            continue
        try:
            if isinstance(new, Value):
                g.keep(part.name, old, new)
            elif part.output is not None:
                raise CannotLower("the new value of what is kept is not computed", "write it with operators on tensors")
        except CannotLower as problem:
            problems.append(Problem("state", source_line(nodes[part.placeholder]), problem.reason, problem.remedy))
    return problems


def _only_for_checks(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The checks of values, and the operators that only they read."""
    found: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.target in CHECKS or (node.op == "call_function" and node.users and found.issuperset(node.users)):
            found.add(node)
    return found


_SOFTMAX = (
    aten.softmax.int,
    aten._softmax.default,
    aten._safe_softmax.default,
    aten.log_softmax.int,
    aten._log_softmax.default,
    aten.logsumexp.default,
)
_LIKE_SCORES = (
    aten.add.Tensor,
    aten.sub.Tensor,
    aten.view.default,
    aten.reshape.default,
    aten.expand.default,
    aten.clone.default,
    aten.dropout.default,
    aten._to_copy.default,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.permute.default,
    aten.transpose.int,
    aten.slice.Tensor,
)


def _for_softmax(graph: torch.fx.Graph) -> set[torch.fx.Node]:
    """The sums that go to a softmax and nowhere else, in which minus infinity forbids."""
    found: set[torch.fx.Node] = set()
    for node in reversed(graph.nodes):
        users = node.users if node.target in _LIKE_SCORES else ()
        if users and all(user.target in _SOFTMAX or user in found for user in users):
            found.add(node)
    return found


def _is_torchs_own(node: torch.fx.Node) -> bool:
    """Whether torch.export made a check up, unless it stands for a range that the model asks for (_constrain_as_size)."""
    if node.target is not aten._assert_scalar.default:
        return node.target is METADATA
    return of_torch(node) and "constrain" not in source_line(node)


def _is_clear(node: torch.fx.Node, env: dict) -> bool:
    """Whether one party can compute an operator alone."""
    operands = [env[n] for n in node.all_input_nodes]
    return None not in operands and common_owner(values_in(operands)) is not None


def _placeholder(
    g: Builder, captured: Captured, node, weights: Weights, owners: Sequence[str], stranger: Stranger | None
) -> Any:
    start = next((part.start for part in captured.kept if part.placeholder == node.name), None)
    if node.name in captured.constants or start is not None:
        return g.constant(captured.constants[node.name] if start is None else start)
    value = node.meta["val"]
    integer = is_whole(value.dtype)
    if node.name in captured.states:
        name = captured.states[node.name]
        return g.placeholder(f"state:{name}", value.shape, cast(str, owner_of(weights, name)), integer)
    kept = {part.placeholder for part in captured.kept}
    index = [name for name in captured.inputs if name not in kept].index(node.name)
    if stranger and owners[index] == CLIENT:
        return _of_client(g, f"input:{index}", value, stranger)
    return g.placeholder(f"input:{index}", value.shape, owners[index], integer, small=node.name in captured.small)


def _of_client(g: Builder, name: str, value: torch.Tensor, stranger: Stranger) -> Value:
    """An input of a client who may lie: every 64-bit number is a share of something, and the model is for small ones."""
    given = g.client_input(name, value.shape, is_whole(value.dtype))
    return g.clamped(given, *stranger.clamp) if stranger.clamp and not given.integer else given


def _returned(g: Builder, node: Any, env: dict, secure: Secure) -> Any:
    """What the model returns of an operator; complex numbers with their parts on a new last axis."""
    value = _lookup(node, env)
    if value is None or not _is_complex(node):
        return value
    if isinstance(value, Complex):
        return _on_parts(g, secure, aten.stack.default, ([value.re, value.im], -1), {})
    return g.float(_pairs, value, shape=(*value.shape, 2))


def _pairs(x: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(x.to(torch.promote_types(x.dtype, torch.complex64)).resolve_conj())


def _part(x: torch.Tensor, at: int) -> torch.Tensor:
    return _pairs(x)[..., at]


def _is_complex(node: torch.fx.Node) -> bool:
    """Whether an operator makes complex numbers."""
    made = node.meta.get("val")
    return any(
        isinstance(t, torch.Tensor) and t.is_complex() for t in (made if isinstance(made, tuple | list) else [made])
    )


def _lookup(arg: Any, env: dict) -> Any:
    if isinstance(arg, torch.fx.Node):
        return env[arg]
    if isinstance(arg, (list, tuple)):
        return [_lookup(a, env) for a in arg]
    return arg


def _contains_none(arg: Any, fx_arg: Any) -> bool:
    if isinstance(fx_arg, torch.fx.Node):
        return arg is None
    if isinstance(fx_arg, (list, tuple)):
        return any(_contains_none(a, f) for a, f in zip(arg, fx_arg, strict=True))
    return False


def _lower_node(g: Builder, node: torch.fx.Node, env: dict, secure: Secure) -> Any:
    _check_fixed(node)
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        reason = "a loop of torch, or another operator that gets functions"
        raise CannotLower(reason, "write the steps as a loop of Python with a fixed number of them")
    args = [_lookup(a, env) for a in node.args]
    kwargs = {k: _lookup(v, env) for k, v in node.kwargs.items()}
    if any(_contains_none(a, f) for a, f in zip([*args, *kwargs.values()], [*node.args, *node.kwargs.values()])):
        return None
    operands, example = values_in([args, kwargs]), node.meta.get("val")
    if node.target in UNSET:
        return _filled(g, node, 0)
    if node.target in FILLS and len(node.all_input_nodes) == 1 and not _sizes_depend_on_values(example):
        number = FILLS[node.target]
        return _filled(g, node, args[-1] if number is None else number)
    if node.target is aten.sym_size.int and args[0].sized:
        return args[0].shape[args[1]]
    if not operands and (isinstance(example, _SYMBOLS) or node.target in CHECKS):
        return cast(Callable, node.target)(*args, **kwargs)
    if isinstance(example, _SYMBOLS) and all(g.public(v) is not None for v in operands):
        return cast(Callable, node.target)(*g.known(args), **g.known(kwargs))
    if node.target is operator.getitem and isinstance(args[0], tuple):
        return args[0][args[1]] if args[1] < len(args[0]) else _no_result(node)
    if all(not v.secret for v in operands) and (owner := common_owner(operands)):
        if owner != PUBLIC and IN_RUN in node.meta and isinstance(example, torch.Tensor):
            return g.expanded(args[0], example.shape)
        return in_the_clear(g, node, args, kwargs)
    return _empty(g, example) or _secure(g, node, args, kwargs, secure, env)


def _number(x: float | bool) -> torch.Tensor:
    return torch.tensor(x, dtype=torch.float64 if isinstance(x, float) else None)


def _as_tensor(g: Builder, number: Value) -> Value:
    """A number of Python that its owner has, as what secrets are computed with."""
    return g.float(_number, number, shape=(), integer=number.integer)


def _secure(g: Builder, node: torch.fx.Node, args: list, kwargs: dict[str, Any], secure: Secure, env: dict) -> Any:
    """The secure version of an operator, which wants sizes and numbers that are known. Raises CannotLower."""
    example, operands = node.meta.get("val"), values_in([args, kwargs])
    if _is_position(node):
        return args[0]
    if isinstance(example, _SYMBOLS):
        remedy = "keep it a tensor, without item(), int(), float() or bool(); torch.where and torch.gather take tensors"
        raise CannotLower("a number of Python, made of secret values", remedy)
    if any(not v.sized for v in operands):
        raise CannotLower(_SIZE, _FIXED_SIZE)
    if any(map(_is_complex, (node, *node.all_input_nodes))):
        return _of_complex(g, node, secure, env)
    if not _sizes_depend_on_values(example) and not any(
        isinstance(n.meta.get("val"), _SYMBOLS) for n in node.all_input_nodes
    ):
        return secure(g, node, args, kwargs)
    numbers = {env[n].id for n in node.all_input_nodes
               if isinstance(n.meta.get("val"), _SYMBOLS) and isinstance(env[n], Value)}  # fmt: skip
    args, kwargs = mapped((args, kwargs), Value, lambda v: _as_tensor(g, v) if v.id in numbers and not v.secret else v)
    try:
        return secure(g, node, args, kwargs)
    except (TypeError, ValueError, AttributeError, RuntimeError) as problem:
        raise CannotLower("a size or a number that depends on values", _FIXED_SIZE) from problem


def _is_position(node: torch.fx.Node) -> bool:
    """Whether a number is made of a tensor to read at that position, as x[:, x.argmax()] does, or to be checked."""
    reads = lambda user: user.target is aten.select.int or user.target in CHECKS or user.meta.get("val") is None
    symbols = lambda user: isinstance(user.meta.get("val"), _SYMBOLS)
    return node.target is aten._local_scalar_dense.default and all(reads(user) or symbols(user) for user in node.users)


def _of_complex(g: Builder, node: torch.fx.Node, secure: Secure, env: dict) -> Any:
    """The secure version of an operator on complex numbers, made of those on their parts."""

    def in_parts(operand: torch.fx.Node) -> Any:
        value = env[operand]
        if not _is_complex(operand) or not isinstance(value, Value):
            return value
        return Complex(*(g.float(_part, value, at, shape=value.shape) for at in (0, 1)))

    known = {operand: in_parts(operand) for operand in node.all_input_nodes}
    args, kwargs = [_lookup(a, known) for a in node.args], {k: _lookup(v, known) for k, v in node.kwargs.items()}
    example = node.meta["val"]
    shape = tuple(example.shape) if isinstance(example, torch.Tensor) else ()
    return complex_version(Real(g, shape, partial(_on_parts, g, secure)), node.target, args, kwargs)


def _on_parts(g: Builder, secure: Secure, target: Any, args: Any, kwargs: Any) -> Any:
    """An operator on parts of complex numbers, by their owner where one has all of them."""
    part, operands = torch.fx.Graph().call_function(target), values_in([args, kwargs])
    part.meta = {"val": _example(target, args, kwargs)}
    if all(not v.secret for v in operands) and common_owner(operands):
        return in_the_clear(g, part, args, kwargs)
    return secure(g, part, args, kwargs)


def _example(target: Any, args: Any, kwargs: Any) -> Any:
    """What an operator makes of tensors without values."""
    like = lambda v: torch.empty(v.shape, dtype=torch.int64 if v.integer else torch.float32, device="meta")
    args, kwargs = mapped((args, kwargs), Value, lambda v: like(v).bool() if v.boolean else like(v))
    return target(*args, **kwargs)


def secure_version(g: Builder, node: torch.fx.Node, args: list, kwargs: dict[str, Any]) -> Any:
    """The secure version of an operator in the table of the masked engine."""
    lowering = LOWERINGS.get(node.target)
    if lowering is None:
        example = node.meta.get("val")
        if any(map(_sizes_depend_on_values, example if isinstance(example, (list, tuple)) else [example])):
            raise CannotLower("the size of this result depends on secret values", _FIXED_SIZE)
        library = str(node.target).split(".")[0]
        if isinstance(node.target, torch._ops.OpOverload) and library not in _OF_TORCH:
            raise CannotLower(
                f"no secure version exists; the operator is defined by the library {library!r}",
                f"give it one with @securemodel.lowers(torch.ops.{node.target}), or write it with PyTorch's operators: "
                f"@securemodel.decomposes(torch.ops.{node.target}) (docs/adding-an-operator.md)",
            )
        raise CannotLower("no secure version exists", "replace it, or move it to where one party owns its inputs")
    check_arguments(lowering, g, *args, **kwargs)
    try:
        return lowering(g, *args, **kwargs)
    except CannotLower:
        raise
    except (ZeroDivisionError, IndexError) as problem:
        if any(v.secret and not v.shape for v in values_in([args, kwargs])):
            return _along_no_axis(g, node, lowering, args, kwargs)
        if isinstance(problem, IndexError):
            raise
        raise CannotLower("a division by zero", "divide by another number") from problem


def _along_no_axis(g: Builder, node: torch.fx.Node, lowering: Callable, args: list, kwargs: dict[str, Any]) -> Any:
    """An operator along an axis of a number that has none: as if it had one of size one."""
    args, kwargs = mapped((args, kwargs), Value, lambda v: v if v.shape else shaped(g, v, (1,)))
    try:
        made = lowering(g, *args, **kwargs)
    except (ZeroDivisionError, IndexError) as problem:
        raise CannotLower("a division by zero, or a number without axes", "divide by another number") from problem
    example = node.meta["val"]
    if not isinstance(made, tuple):
        return shaped(g, made, tuple(example.shape))
    return tuple(shaped(g, v, tuple(e.shape)) for v, e in zip(made, example, strict=False))


def check_arguments(function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Raises CannotLower if a function does not take these arguments."""
    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as problem:
        raise CannotLower(f"these arguments are not supported: {problem}") from problem


def draws_numbers(target: Any, args: Sequence, kwargs: dict[str, Any]) -> bool:
    """Whether an operator draws random numbers with these arguments."""
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    names = [argument.name for argument in target._schema.arguments]
    defaults = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    given = {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
    return not any(given.get(name, quiet + 1) == quiet for name, quiet in DRAWS_NOTHING.items())


def _check_fixed(node: torch.fx.Node) -> None:
    """Raises CannotLower for an operator that draws random numbers: each party would draw its own, unnoticed."""
    if draws_numbers(node.target, node.args, node.kwargs):
        raise CannotLower(
            "random numbers: every party would draw its own, and the results would be meaningless",
            "call model.eval(), leave training=True out of functions, or draw them before and make them an input",
        )


def _filled(g: Builder, node: torch.fx.Node, number: float) -> Value:
    """A public tensor of one number: of a secret, only the public shape is read."""
    example = node.meta["val"]
    if _sizes_depend_on_values(example):
        raise CannotLower(_SIZE, _FIXED_SIZE)
    integer = is_whole(example.dtype)
    return g.float(torch.full, list(example.shape), number, dtype=example.dtype, shape=example.shape, integer=integer)


def _empty(g: Builder, example: Any) -> Any:
    """What an operator makes, if it has no elements: there is nothing to hide. None for everything else."""
    if isinstance(example, (list, tuple)):
        parts = tuple(_empty(g, part) for part in example)
        return parts if parts and all(part is not None for part in parts) else None
    if not isinstance(example, torch.Tensor) or _sizes_depend_on_values(example) or example.numel():
        return None
    return g.float(torch.zeros, list(example.shape), shape=example.shape, integer=is_whole(example.dtype))


def _marked(value: Any, example: Any) -> Any:
    """Values of the type bool are marked as such, and no others: the numbers of a mask are positions."""
    if not isinstance(value, Value) or not isinstance(example, torch.Tensor):
        return value
    is_bool = example.dtype == torch.bool
    return value if value.boolean == is_bool else replace(value, boolean=is_bool)


def _stand_in(g: Builder, example: Any) -> Any:
    """Secrets of the shapes an operator would have made: what comes after it is checked too. Such a graph never runs.

    What has no known shape is left out, and so is what comes after it.
    """
    if isinstance(example, (list, tuple)):
        return tuple(_stand_in(g, part) for part in example)
    if not isinstance(example, torch.Tensor) or _sizes_depend_on_values(example):
        return None
    if example.is_complex():
        return Complex(g.unknown(example.shape), g.unknown(example.shape))
    return g.unknown(example.shape, is_whole(example.dtype))


def _no_result(node: torch.fx.Node) -> str:
    """What stands for a further result without a secure version, where nobody reads it."""
    if all(user.target in RECOMPUTING for user in node.users):
        return "not computed"
    raise CannotLower("this further result of the operator has no secure version", "use only its first result")


def _sizes_depend_on_values(example: Any) -> bool:
    return isinstance(example, torch.Tensor) and not all(isinstance(size, int) for size in example.shape)


def in_the_clear(g: Builder, node: torch.fx.Node, args: list, kwargs: dict) -> Any:
    """The operator itself, run by the one party that owns its operands."""
    example, target = node.meta.get("val"), cast(Callable, node.target)
    if _sizes_depend_on_values(example):
        try:
            return g.constant(target(*g.known(args), **g.known(kwargs)))
        except CannotLower:  # only its owner will know the size
            pass
    if isinstance(example, (list, tuple)):
        whole = _owned(g, target, args, kwargs, None)
        tensors = [(i, t) for i, t in enumerate(example) if isinstance(t, torch.Tensor)]
        return tuple(_owned(g, operator.getitem, [whole, i], {}, t) for i, t in tensors)
    return _owned(g, target, args, kwargs, example)


def _owned(g: Builder, target: Callable, args: Sequence, kwargs: dict, example: Any) -> Value:
    """A call by the owner of all operands. `example` stands for its result: a tensor, a number, or neither."""
    if not isinstance(example, torch.Tensor):
        return g.float(target, *args, shape=(), integer=isinstance(example, (torch.SymInt, torch.SymBool)), **kwargs)
    known, integer = not _sizes_depend_on_values(example), is_whole(example.dtype)
    value = g.float(target, *args, shape=example.shape if known else (), integer=integer, **kwargs)
    return value if known else replace(value, sized=False)
