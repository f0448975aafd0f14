"""What stands between a user's step and torch while the step is traced."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._dynamo import config as dynamo
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
)
from torch.fx import traceback
from torch.nn.modules import module as hooks
from torch.optim import lr_scheduler
from torch.overrides import TorchFunctionMode
from torch.utils import checkpoint
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from protocols.errors import explain
from securemodel.errors import CompileError
from securemodel.training import randoms
from securemodel.training.noise import Noise
from securemodel.training.notes import KEY, Note, user_line

aten = torch.ops.aten

_LIBRARY = torch.library.Library("securemodel_training", "FRAGMENT")
_LIBRARY.define("given(Tensor like, str name) -> Tensor")
_LIBRARY.impl("given", lambda like, name: torch.empty_like(like), "CompositeExplicitAutograd")
GIVEN = torch.ops.securemodel_training.given.default
"""A tensor that will be an input of the step: in the first trace an operator, later a placeholder."""


def given(like: torch.Tensor, name: str) -> torch.Tensor:
    """An input of the step with the shape and type of another tensor."""
    return GIVEN(like, name)


def number(name: str) -> torch.Tensor:
    """A public number of the step."""
    return given(torch.empty((), dtype=torch.float64), name)


class Calls(TorchFunctionMode):
    """Sees every call of torch: puts the traced tensor in the place of a parameter or buffer, and notes the line.

    Wherever the user has kept a parameter (an optimizer, a list, a closure), the traced one is used. The note goes
    into the autograd nodes that a call makes, where backward finds it.
    """

    def __init__(self, traced: Mapping[int, torch.Tensor]) -> None:
        super().__init__()
        self.traced, self.note, self.modules = traced, Note(), [Note()]

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        args, kwargs = tree_map(self._in_place_of, (args, kwargs or {}))
        before, self.note = self.note, user_line(self.modules[-1])
        try:
            out = _data(func, args) if getattr(func, "__self__", None) is torch.Tensor.data else func(*args, **kwargs)
            for made in tree_leaves(out):
                if isinstance(made, torch.Tensor) and made.grad_fn is not None:
                    _mark(made.grad_fn, self.note)
            return out
        finally:
            self.note = before

    def _in_place_of(self, thing: Any) -> Any:
        return self.traced.get(id(thing), thing) if isinstance(thing, torch.Tensor) else thing


def _data(func: Callable, args: tuple) -> Any:
    """`tensor.data`, which a trace would lose: the same values without history, or these written."""
    with torch.no_grad():
        if func.__name__ == "__get__":
            return args[0].detach()
        args[0].copy_(args[1])
        return None


def _mark(function: Any, note: Note) -> None:
    """Writes a note into an autograd node and those before it that have none."""
    todo = [function]
    while todo:
        node = todo.pop()
        if node is not None and KEY not in node.metadata:
            node.metadata[KEY] = note
            todo += [before for before, _ in node.next_functions]


class Operators(TorchDispatchMode):
    """Sees every ATen operator: notes its line, makes random numbers inputs, refuses what needs values."""

    def __init__(self, calls: Calls, hiding: Sequence[str] = ()) -> None:
        """hiding: the parties that make bits (of dropout) together so that nobody knows them; none: they are public."""
        super().__init__()
        self.calls, self.hiding = calls, hiding
        self.random: list[randoms.Random] = []
        self.noise: list[Noise] = []
        self.asked: list[Exception] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        made_by: Any = torch._C._current_autograd_node()  # torch types its metadata as a method
        note = made_by.metadata.get(KEY, self.calls.note).reversed() if made_by is not None else self.calls.note
        if func is aten.index.Tensor:
            args = (args[0], [place for i in args[1] for place in _places(i)])
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        if any(t.requires_grad and not isinstance(t, FakeTensor) for t in tensors):
            raise _of_no_model(note)
        if error := _needs_values(func, args, tensors):
            self.asked.append(error)
            raise error
        with traceback.annotate({KEY: note}):
            return (
                self._draw(func, args, kwargs, note) if randoms.is_random(func, args, kwargs) else func(*args, **kwargs)
            )

    def _draw(self, func: Any, args: tuple, kwargs: dict[str, Any], note: Note) -> torch.Tensor:
        kind, parameters = randoms.drawn(func, args, kwargs, note.place())
        like = randoms.place_for(func, args, kwargs)
        if kind == "bernoulli" and self.hiding:
            made = randoms.hidden_bits(parameters[0], like, [self._part(party, like.numel()) for party in self.hiding])
        else:
            name = f"random:{len(self.random)}"
            self.random.append(randoms.Random(name, kind, parameters, tuple(like.shape), like.dtype, note.place()))
            made = given(like, name)
        return args[0].copy_(made) if randoms.in_place(func) else made

    def _part(self, party: str, count: int) -> torch.Tensor:
        made = Noise(f"bits:{len(self.noise)}", party, count, uniform=True)
        self.noise.append(made)
        return given(torch.empty(count, dtype=torch.float64), made.name)


def _of_no_model(note: Note) -> CompileError:
    what = "the step uses parameters that belong to none of its models"
    return CompileError(
        explain(what, where=note.place(), fix="give all models whose parameters the step reads or trains")
    )


def _needs_values(func: Any, args: tuple, tensors: Sequence[torch.Tensor]) -> Exception | None:
    """Torch's error for an operator whose result, or its size, is known with the values only."""
    unknown = any(isinstance(t, FakeTensor) and t.constant is None for t in tensors)
    if not unknown:
        return None
    if func in (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default):
        return DataDependentOutputException(func)
    if func is aten.index.Tensor:  # only a mask picks as many as its values say
        unsized = any(map(_is_mask, args[1]))
    else:
        unsized = torch.Tag.dynamic_output_shape in func.tags
    return DynamicOutputShapeException(func) if unsized else None


def _is_mask(index: torch.Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)


def _places(index: torch.Tensor | None) -> Sequence[torch.Tensor | None]:
    """An index; in place of a mask from outside of the step the positions that it names, one tensor an axis."""
    if index is None or isinstance(index, FakeTensor) or not _is_mask(index):
        return [index]
    with _disable_current_modes():
        return index.nonzero(as_tuple=True)


@contextlib.contextmanager
def module_notes(models: Mapping[str, nn.Module], calls: Calls) -> Iterator[None]:
    """Keeps the note of the innermost module that is running; a module that is called again gets a count."""
    paths = {id(part): (name, path) for name, model in models.items() for path, part in model.named_modules()}
    counts: dict[str, int] = {}

    def enter(module: nn.Module, inputs: Any) -> None:
        name, path = paths.get(id(module), ("", ""))
        note = calls.modules[-1]
        if path:
            whole = f"{name}.{path}"
            counts[whole] = counts.get(whole, -1) + 1
            note = Note(whole, counts[whole], type(module).__name__)
        calls.modules.append(note)

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        calls.modules.pop()

    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def restored(models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[None]:
    """Whatever a step does with models and optimizers, afterwards they are as before; so is torch's random state."""
    modules = dict.fromkeys(part for model in models for part in model.modules())
    kept = [(vars(thing), _copy(vars(thing))) for thing in (*modules, *optimizers)]
    inner = [(group, _copy(group)) for optimizer in optimizers for group in optimizer.param_groups]
    generator = torch.get_rng_state()
    try:
        yield
    finally:
        for now, before in (*kept, *inner):
            _put_back(now, before)
        torch.set_rng_state(generator)


def _copy(thing: Any) -> Any:
    """A dict with its containers beside copies of their contents."""
    return {
        key: (value, type(value)(value) if type(value) in (dict, list, set) else None) for key, value in thing.items()
    }


def _put_back(now: dict, before: dict) -> None:
    now.clear()
    for key, (value, content) in before.items():
        if content is not None:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        now[key] = value


@contextlib.contextmanager
def outside_refused() -> Iterator[None]:
    """Refuses what a step must not do because it is not part of the program: schedulers, numbers of other generators."""
    generators = {name: sys.modules[name] for name in ("random", "numpy") if name in sys.modules}
    states = {name: _state_of(name, module) for name, module in generators.items()}
    kinds: list[Any] = []
    todo: list[Any] = [lr_scheduler.LRScheduler]
    while todo:
        kinds.append(todo.pop())
        todo += kinds[-1].__subclasses__()
    steps = [(kind, vars(kind)["step"]) for kind in kinds if "step" in vars(kind)]

    def step(scheduler: Any, *args: Any, **kwargs: Any) -> None:
        what = f"the step calls {type(scheduler).__name__}.step(), but the learning rate is an input of the program"
        fix = "call it outside of the step, after each step or epoch"
        raise CompileError(explain(what, where=user_line(Note()).place(), fix=fix))

    for kind, _ in steps:
        kind.step = step
    try:
        yield
        drawn = [name for name, module in generators.items() if repr(_state_of(name, module)) != repr(states[name])]
        if drawn:
            what = f"the step draws random numbers from {' and '.join(drawn)}, which would be the same in every step"
            raise CompileError(
                explain(what, fix="draw with torch.rand and choose with torch.where, or make it an input")
            )
    finally:
        for kind, before in steps:
            kind.step = before
        for name, module in generators.items():
            (module.setstate if name == "random" else module.random.set_state)(states[name])


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Modules that are compiled or checkpointed run as their code says: a trace does neither."""
    before = {
        name: getattr(checkpoint, name) for name in ("CheckpointFunction", "_checkpoint_without_reentrant_generator")
    }
    stands_in = {
        "CheckpointFunction": _NotKept,
        "_checkpoint_without_reentrant_generator": lambda *given, **named: iter((0,)),
    }
    for name, stand_in in stands_in.items():
        setattr(checkpoint, name, stand_in)
    try:
        with dynamo.patch(error_on_nested_fx_trace=False):
            yield
    finally:
        for name, function in before.items():
            setattr(checkpoint, name, function)


class _NotKept:
    """In place of the autograd function of reentrant checkpoints."""

    @staticmethod
    def apply(function: Callable, preserve: bool, *args: Any) -> Any:
        return function(*args)


def _state_of(name: str, module: Any) -> Any:
    return module.getstate() if name == "random" else module.random.get_state()
