"""From an nn.Module to a flat list of ATen operators, with torch.export."""

from __future__ import annotations

import copy
import logging
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from operator import getitem
from typing import Any, cast

import torch
from torch._C import DispatchKey
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.export import _trace, exported_program
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.nn.modules import transformer

from protocols.errors import explain
from securemodel.compiler.explaining import caught_by_the_model, file_name, not_captured
from securemodel.compiler.flat import flatten
from securemodel.compiler.known import KnownValues
from securemodel.compiler.lower import DECOMPOSITIONS, LOWERINGS
from securemodel.compiler.plain import WrittenPlainly
from securemodel.errors import CompileError

Examples = Sequence[torch.Tensor] | Mapping[str, torch.Tensor]
ONE_AT_A_TIME = threading.RLock()
"""Held while functions of torch or of a model stand for others: two threads would not put back what was there."""
aten = torch.ops.aten
_NESTS = (torch.Tensor, list, tuple, Mapping)


@dataclass(frozen=True, repr=False)
class Kept:
    """A value that one run hands to the next: the placeholder that reads it, its name, and the output that replaces it
    (None: nothing does).

    `start` is what the first run reads, known to all; None: the parameter or buffer that the placeholder stands for.
    `more_bits`: fractional bits beyond those of the program, for values that change in small steps. `large`: they may
    also be large, so products read them without these bits.
    """

    placeholder: str
    name: str
    output: int | None
    start: torch.Tensor | None = None
    more_bits: int = 0
    large: bool = False


@dataclass(frozen=True, repr=False)
class Captured:
    """A captured model: the ATen graph and what its placeholders stand for.

    `states` maps placeholder names to parameter or buffer names, `constants` to tensors written in the
    model's code, `inputs` lists the placeholders of the user's inputs in order, `kept` what stays
    between runs, `small` those of public numbers such as learning rates, whose products with secrets stay below 2^6.
    `writes`: the model writes into its parameters or buffers, in every run the same.
    """

    graph: torch.fx.Graph
    states: dict[str, str]
    constants: dict[str, torch.Tensor]
    inputs: list[str]
    outputs: list[Any]
    kept: tuple[Kept, ...] = ()
    small: frozenset[str] = frozenset()
    writes: bool = False


def operand(node: torch.fx.Node, at: int = 0) -> torch.fx.Node:
    """An operand of an operator that is a tensor of the graph."""
    return cast(torch.fx.Node, node.args[at])


def outputs_of(graph: torch.fx.Graph) -> list[Any]:
    """What a captured graph returns, in order."""
    return list(cast(Sequence[Any], graph.output_node().args[0]))


ModelState = torch.nn.Module | Mapping[str, torch.Tensor]
"""A model with its parameters and buffers, or the tensors alone, by name."""


def model_state(model: ModelState) -> dict[str, torch.Tensor]:
    """All parameters and buffers by name, also the non-persistent ones; or the tensors given by name."""
    if isinstance(model, Mapping):
        return {name: tensor.detach() for name, tensor in model.items()}
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {name: tensor.detach() for name, tensor in named}


def tensors_in(made: Any) -> list[torch.Tensor]:
    """The tensors of a model's result, in order: of lists and tuples, and of the fields of dicts and dataclasses.

    Nothing (None) is left out, and so are named fields without tensors, such as caches. Raises CompileError for
    other things.
    """
    if made is None or isinstance(made, torch.Tensor):
        return [] if made is None else [made]
    if isinstance(made, (list, tuple)):
        return [tensor for part in made for tensor in tensors_in(part)]
    if is_dataclass(made) and not isinstance(made, Mapping):
        made = {field.name: getattr(made, field.name) for field in fields(made)}
    if isinstance(made, Mapping):
        return [t for part in made.values() if isinstance(part, _NESTS) or is_dataclass(part) for t in tensors_in(part)]
    raise CompileError(f"the model returns a {type(made).__name__}: return tensors, or a nest of them")


def example_tensors(examples: Examples) -> tuple[torch.Tensor, ...]:
    """The tensors, in the order of the names where they have names."""
    return tuple(examples.values() if isinstance(examples, Mapping) else examples)


def call(model: Callable, examples: Examples, inputs: Sequence[torch.Tensor]) -> Any:
    """What a model returns for these inputs, by the names of `examples` where it has names."""
    return model(**dict(zip(examples, inputs, strict=True))) if isinstance(examples, Mapping) else model(*inputs)


def capture(model: torch.nn.Module, examples: Examples) -> Captured:
    """Runs torch.export on the model in evaluation mode; weights may be on the meta device.

    Raises CompileError with torch's reason when the model cannot be exported.
    """
    usable(model)
    _has_rows(examples)
    with suppress(NotImplementedError):  # modules of exported programs are what they are
        model = model.eval()
    if any(t.is_meta for t in model_state(model).values()):
        model = copy.deepcopy(model).to_empty(device="cpu")
    model = apart(model)
    try:
        with (
            ONE_AT_A_TIME, torch.no_grad(), silent(), masks_as_given(), _messages_of_checks() as messages,
            _plain_forward(model, examples), _asked_for_values() as asked,
        ):  # fmt: skip
            inputs = _distinct(example_tensors(examples))
            with KnownValues(), WrittenPlainly():
                exported = torch.export.export(model, inputs, strict=False)
            made = _assertions(exported.graph)
            _written_plainly(exported.graph)
            if not _is_lowered(exported.graph):
                exported = _decomposed(exported)
    except CompileError:
        raise
    except Exception as problem:
        raise not_captured(problem, type(model).__name__) from problem
    if lost := [error for error in asked if caught_by_the_model(error)]:  # what it did then is no choice by values
        raise not_captured(lost[0], type(model).__name__)
    _restore(exported.graph, made, messages)
    signature = exported.graph_signature
    states, constants, placeholders = {}, {}, []
    for spec in signature.input_specs:
        kind = spec.kind.name
        if kind in ("PARAMETER", "BUFFER"):
            states[spec.arg.name] = spec.target
        elif kind == "CONSTANT_TENSOR":
            constants[spec.arg.name] = exported.constants[spec.target]
        elif kind == "USER_INPUT":
            placeholders.append(spec.arg.name)
    made_of = list(zip(outputs_of(exported.graph), signature.output_specs, strict=True))
    written = {str(spec.target): made for made, spec in made_of if spec.kind.name not in _NO_STATE}
    changed = {name: made for name, made in written.items() if not _settles(made, name, states)}
    if changed:
        raise CompileError(_changes(type(model).__name__, changed))
    flatten(exported.graph_module, [made for made, spec in made_of if spec.kind.name == "USER_OUTPUT"])
    outputs = outputs_of(exported.graph)
    if not outputs:
        raise CompileError("the model returns no tensor: there is nothing to compute")
    return Captured(exported.graph, states, constants, placeholders, outputs, writes=bool(written))


def _has_rows(examples: Examples) -> None:
    """Raises CompileError for an input without rows, of which no run could be one."""
    names = list(examples) if isinstance(examples, Mapping) else range(len(examples))
    for name, tensor in zip(names, example_tensors(examples), strict=True):
        if tensor.ndim and not tensor.shape[0]:
            what = f"the example for input {name!r} has no rows: its shape is {list(tensor.shape)}"
            why = "a program is made for batches of as many rows as the examples have"
            raise CompileError(explain(what, why=why, fix="give an example with the rows of a batch, one or more"))


_NO_STATE = ("USER_OUTPUT", "USER_INPUT_MUTATION", "TOKEN")
"""Outputs of a captured graph that no later run reads; a model that changes its input works on a copy."""
_SAME_TWICE = {aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default, aten.relu.default, aten.abs.default}
"""What changes nothing when it is done again to its own result."""
_COPIES = {aten.alias.default, aten.clone.default, aten.detach.default}


def _settles(made: Any, name: str, states: Mapping[str, str]) -> bool:
    """Whether what a model writes into its state is the same in all runs, whether they start from it or from before."""
    written = _copied(made)
    if written.target not in _SAME_TWICE or len(written.all_input_nodes) > 1:
        return False
    return states.get(_copied(operand(written)).name) == name


def _copied(node: torch.fx.Node) -> torch.fx.Node:
    """What a copy is one of."""
    return _copied(operand(node)) if node.target in _COPIES else node


def _changes(model: str, changed: Mapping[str, torch.fx.Node]) -> str:
    """The error for a model that writes into parameters or buffers, by name."""
    names = ", ".join(list(changed)[:3]) + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")
    return explain(
        f"{model} changes its own state in forward, also in evaluation mode: {names}",
        where=source_line(next(iter(changed.values()))),
        why="each run starts from the same parameters and buffers, and would not know of what earlier ones wrote",
        fix="where only the first call does so, call the model once in evaluation mode before, at every party; what runs "
        "have to remember is a matter of inputs and outputs: compile(state=...)",
    )


def usable(model: Any) -> None:
    """Raises CompileError for what is no module with parameters and code of its own."""
    if isinstance(model, torch.export.ExportedProgram):
        what, fix = "is an exported program", "give its module: program.module()"
    elif not isinstance(model, torch.nn.Module):
        what, fix = "is no nn.Module", "give a model, an instance of a subclass of torch.nn.Module"
    elif any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()):
        what = "is a TorchScript module, or has one, whose Python code is gone"
        fix = "give the nn.Module that it was made from"
    elif any(torch.nn.parameter.is_lazy(t) for t in (*model.parameters(), *model.buffers())):
        what, fix = "has lazy parameters without a shape", "call it once on example inputs before, at every party"
    elif any(map(is_quantized, model.parameters())):
        what, fix = "has quantized parameters", "give securemodel.models.dequantized(model), the numbers they mean"
    else:
        return
    raise CompileError(explain(f"{type(model).__name__} {what}", fix=fix))


def is_quantized(x: torch.Tensor) -> bool:
    """Whether a tensor is one of torchao's, made of others."""
    return torch.utils._python_dispatch.is_traceable_wrapper_subclass(x) and hasattr(x, "qdata")


def apart(model: torch.nn.Module) -> torch.nn.Module:
    """A copy with the same tensors, as others are put in their place while torch looks at a model, and threads may use it.

    The model itself where it cannot be copied.
    """
    parts = [part for module in model.modules() for part in (*vars(module).values(), *module._parameters.values())]
    kept = {id(part): part for part in [*parts, *model.buffers()] if isinstance(part, torch.Tensor)}
    try:
        return copy.deepcopy(model, kept)
    except Exception:
        return model


@contextmanager
def _asked_for_values() -> Iterator[list[Exception]]:
    """Torch's errors where code asks for values, those that somebody catches included."""
    made: list[Exception] = []

    def noting(kind: type[Exception]) -> AbstractContextManager[None]:
        begin = kind.__init__

        def noted(self: Exception, *args: Any, **kwargs: Any) -> None:
            made.append(self)
            begin(self, *args, **kwargs)

        return _replaced(kind, "__init__", noted)

    with ExitStack() as stack:
        for kind in (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException):
            stack.enter_context(noting(kind))
        yield made


@contextmanager
def silent() -> Iterator[None]:
    """Torch warns, logs and prints graphs while it captures; what is of use is in our own errors."""
    loggers = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("torch")]
    with warnings.catch_warnings(), _replaced(_trace, "print", lambda *args, **kwargs: None):
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.addFilter(_drop)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False


@contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    """A name of a module stands for something else meanwhile."""
    had, before = name in vars(module), getattr(module, name, None)
    setattr(module, name, value)
    try:
        yield
    finally:
        if had:
            setattr(module, name, before)
        else:
            delattr(module, name)


NO_MESSAGE = "a check of the model failed"


@contextmanager
def _messages_of_checks() -> Iterator[dict[str, str]]:
    """torch._check and its kin leave no message in what is captured: gives that of each condition, in symbols."""
    check_with, messages = torch._check_with, {}

    def noted(error_type: type[Exception], condition: Any, message: Callable[[], str] | None = None) -> None:
        if isinstance(condition, torch.SymBool):  # before torch takes it for true
            messages[str(condition.node.expr)] = words = str(message()) if message else NO_MESSAGE
            torch.ops.aten._assert_scalar.default(condition, words)
        check_with(error_type, condition, message)  # type: ignore[arg-type]  # torch takes no message, too

    with _replaced(torch, "_check_with", noted):
        yield messages


@contextmanager
def unchecked() -> Iterator[None]:
    """Leaves out what a model asserts of its data, for data that is made up."""
    nothing = lambda *args, **kwargs: None
    with _replaced(torch, "_check_with", nothing), _replaced(torch, "_assert_async", nothing):
        yield


def _restore(graph: torch.fx.Graph, made: Sequence[torch.fx.Node], messages: Mapping[str, str]) -> None:
    """Gives assertions the messages and places that they had before decompositions, which may number symbols anew."""
    known = {**messages, **{_condition(node): str(node.args[1]) for node in made if not of_torch(node)}}
    places = {_condition(node): node.meta.get("stack_trace") or "" for node in made}
    for table in (known, places):
        table.update({_SYMBOL.sub("u", condition): text for condition, text in table.items()})
    for node in _assertions(graph):
        condition = _condition(node)
        for name in (_SYMBOL.sub("u", condition), condition):  # the same symbols, if there are such, count
            if name in known:
                node.args = node.args[0], known[name]
            if name in places:
                node.meta["stack_trace"] = places[name]


_SYMBOL = re.compile(r"\bz?uf?\d+")


def of_torch(assertion: torch.fx.Node) -> bool:
    """Whether torch.export made a check of a number up, from what it knows to follow from the model's own checks."""
    return str(assertion.args[1]).startswith("Runtime assertion failed")


def _assertions(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    """The checks of numbers that are not known."""
    return [n for n in graph.nodes if n.target is torch.ops.aten._assert_scalar.default and _condition(n)]


def _condition(assertion: torch.fx.Node) -> str:
    """What is checked, in symbols."""
    value = getattr(assertion.args[0], "meta", {}).get("val")
    return str(value.node.expr) if isinstance(value, torch.SymBool) else ""


@contextmanager
def masks_as_given() -> Iterator[None]:
    """Transformers of torch compare a mask with the causal one, to find a faster kernel; export cannot follow that."""
    with _replaced(transformer, "_detect_is_causal_mask", lambda mask, is_causal=None, size=None: is_causal is True):
        yield


@contextmanager
def _plain_forward(model: torch.nn.Module, examples: Examples) -> Iterator[None]:
    """Lets `model.forward` take its inputs by position and return a tuple of tensors, as torch.export wants it."""
    before, own = model.forward, "forward" in model.__dict__
    model.forward = lambda *inputs: tuple(tensors_in(call(before, examples, inputs)))
    try:
        yield
    finally:
        del model.forward
        if own:
            model.forward = before


def decompositions() -> dict[Any, Callable]:
    """How torch writes operators with simpler ones, for those that have no secure version of their own."""
    known, _ = _known_to_torch(len(torch._C._dispatch_get_all_op_names()))
    return {op: steps for op, steps in known.items() if op not in LOWERINGS} | DECOMPOSITIONS


@lru_cache(maxsize=1)
def _known_to_torch(operators: int) -> tuple[dict[Any, Callable], frozenset[Any]]:
    """Torch's table, and its composite operators, while it has this many: libraries may bring more. To make them takes
    longer than a trace."""
    known = torch.export.default_decompositions().materialize()
    return known, frozenset(exported_program._collect_all_valid_cia_ops())


def _written_plainly(graph: torch.fx.Graph) -> None:
    """The commonest operators that decompositions would write with one other each."""
    for node in graph.nodes:
        if node.target in (aten.flatten.using_ints, aten.unflatten.int):
            sizes = list(node.meta["val"].shape)
            if all(type(size) is int for size in sizes):
                node.target, node.args = aten.view.default, (operand(node), sizes)
        elif node.target is aten.dropout.default and node.args[1] == 0:
            node.args = (operand(node), 0.0, False)
        elif node.target is aten.batch_norm.default and not node.args[5]:
            with graph.inserting_before(node):
                op = aten._native_batch_norm_legit_no_training.default
                made = graph.call_function(op, (*node.args[:5], *node.args[6:8]))
            nothing = node.meta["val"].new_empty(0)
            made.meta = node.meta | {"val": (node.meta["val"], nothing, nothing)}
            node.target, node.args = getitem, (made, 0)


def _is_lowered(graph: torch.fx.Graph) -> bool:
    """Whether decompositions would change nothing: tracing again takes as long as the first time."""
    made = [node.target for node in graph.nodes if node.op == "call_function"]
    kept = (op in LOWERINGS and op not in DECOMPOSITIONS for op in made)
    return all(kept) and not any(op._schema.is_mutable for op in made if isinstance(op, torch._ops.OpOverload))


def _decomposed(exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program with `decompositions()`.

    Torch is told of the composite operators that are kept or written in our way alone. The others its dispatcher takes
    apart whether they are named or not, but for each that is named it makes and removes rules, which takes longer than
    all else: there are hundreds.
    """
    steps = decompositions()
    _, composite = _known_to_torch(len(torch._C._dispatch_get_all_op_names()))
    own = {op for op in composite if op in DECOMPOSITIONS or op not in steps}
    steps = {op: written for op, written in steps.items() if op in own or op not in composite}
    with _replaced(exported_program, "_collect_all_valid_cia_ops", lambda: own), _torchs_own_steps_hidden():
        return exported.run_decompositions(steps)


@contextmanager
def _torchs_own_steps_hidden() -> Iterator[None]:
    """Operators that we take apart or keep reach us even from within others: for some, torch's Python would come first."""
    hidden: dict[Any, Callable] = {}
    ops: Iterable[Any] = (*DECOMPOSITIONS, *LOWERINGS)
    for op in ops:
        kernels = getattr(op, "py_kernels", {})
        if DispatchKey.Autograd in kernels and DispatchKey.CompositeImplicitAutograd not in kernels:
            hidden[op] = kernels.pop(DispatchKey.Autograd)
            op._dispatch_cache.clear()
    try:
        yield
    finally:
        for op, steps in hidden.items():
            op.py_kernels[DispatchKey.Autograd] = steps
            op._dispatch_cache.clear()


def _distinct(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """The same values, where no two are the same object: torch.export would take these for one input."""
    out: list[torch.Tensor] = []
    for tensor in tensors:
        out.append(tensor.clone() if any(tensor is other for other in out) else tensor)
    return tuple(out)


def source_line(node: torch.fx.Node) -> str:
    """`module Class  file.py:12  code`: the module that made this operator, and the user's line.

    As far as torch recorded them; operators of the model's own `forward` have no module part.
    """
    return "  ".join(part for part in (_module(node), *_line(node)) if part)


def layer_of(source: str) -> str:
    """The layer a source belongs to: its module, or the whole line where the model's own `forward` made it."""
    first = source.split("  ", 1)[0]
    return source if _IS_LINE.fullmatch(first) else first


_IS_LINE = re.compile(r"\S+:\d+")


def _module(node: torch.fx.Node) -> str:
    """`features.0 Conv2d`; `act@1 ReLU` where a module is called for the second time."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    key, (path, kind) = list(stack.items())[-1]
    call = f"@{key.rpartition('@')[2]}" if "@" in key else ""
    kind = kind if isinstance(kind, str) else kind.__name__
    return f"{path}{call} {kind.rpartition('.')[2]}" if path else ""


def _line(node: torch.fx.Node) -> tuple[str, str]:
    """(file.py:12, code)."""
    frames = [f for f in node.meta.get("stack_trace", "").split('File "')[1:]]
    own = [f for f in frames if "/torch/" not in f.split('"')[0] and not f.startswith("<eval_with_key>")] or frames
    if not own:
        return "", ""
    path, rest = own[-1].split('"', 1)
    line = rest.split("line ")[1].split(",")[0]
    code = rest.split("\n")[1].strip() if "\n" in rest else ""
    return f"{file_name(path)}:{line}", code
