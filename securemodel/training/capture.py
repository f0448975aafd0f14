"""From a training step in ordinary PyTorch to one functional ATen graph.

`make_fx` traces the user's step with its backward and updates; `functionalize` takes the changes in place out of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import traceback
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from protocols.errors import explain
from securemodel.compiler.capture import ONE_AT_A_TIME, Captured, masks_as_given, outputs_of, silent
from securemodel.compiler.explaining import caught_by_the_model, not_captured
from securemodel.errors import CompileError
from securemodel.training import graphs, naming, signature
from securemodel.training.noise import Noise
from securemodel.training.optimizers import Roots
from securemodel.training.privacy import DP
from securemodel.training.steps import TENSOR, CapturedStep, Kind, Returned, State
from securemodel.training.tracing import Calls, Operators, as_written, module_notes, outside_refused, restored
from securemodel.training.updating import Updates

Step = Callable[..., Any]
_RUNS = "make the step run on its examples in ordinary PyTorch first"
_MOVED = "; or return the tensor, and move what needs its value out of the step"


def capture_step(
    step: Step,
    models: Any,
    optimizers: Any,
    examples: Sequence[Any] | Mapping[str, Any],
    scale: float | None = None,
    floor: float = 2.0**-12,
    dp: DP | None = None,
    parties: Sequence[str] = (),
    secret_dropout: bool = False,
) -> CapturedStep:
    """Traces `step(*examples)`; nothing is computed, and models, optimizers and random state stay as they are.

    `models` and `optimizers` are one, a sequence or a mapping by name; their names begin the names of all states:
    `model.fc1.weight`, `optimizer.model.fc1.weight.exp_avg`, and with several `model0`, `optimizer1` or the
    mapping's. A function that only evaluates the models has None for optimizers. Second moments of Adam and its
    like are of gradients times `scale` (by default the rows of the first example, so of the sum of a mean) and have the
    least value `floor` under a root: see `optimizers.Roots`. With `dp` each of `parties` adds noise to what optimizers
    get, and `scale` is no larger than that allows. With `secret_dropout` they make bits of dropout together.

    Raises CompileError with the user's line for what cannot be one program for all data.
    """
    models = naming.named(models, "model")
    evaluates = optimizers is None
    optimizers = {} if evaluates else naming.named(optimizers, "optimizer")
    naming.check(models, optimizers, evaluates)
    leaves, nest = tree_flatten(dict(examples) if isinstance(examples, Mapping) else tuple(examples))
    scale = _rows(leaves) if scale is None else float(scale)
    roots = Roots(min(scale, dp.most_scale(len(parties))) if dp else scale, floor)
    with ONE_AT_A_TIME, silent(), masks_as_given(), as_written(), restored([*models.values()], [*optimizers.values()]):
        for group in (group for optimizer in optimizers.values() for group in optimizer.param_groups):
            group.update({key: value.item() for key, value in group.items() if isinstance(value, torch.Tensor)})
        trace = _Trace(step, models, optimizers, leaves, nest, roots, dp, parties, secret_dropout)
        kept = {name for name, tensor in trace.tensors.items() if tensor.requires_grad}
        graph = trace.run(kept)
        if cleared := {name for name in trace.gradients_read(graph) if name not in trace.left}:
            graph = trace.run(kept - cleared)  # each step ends without these gradients, so each begins without them
        return trace.captured(graph)


def _rows(examples: Sequence[Any]) -> float:
    shapes = [example.shape for example in examples if isinstance(example, torch.Tensor) and example.ndim]
    return float(shapes[0][0]) if shapes else 1.0


class _Trace:
    """One step under trace: the order of its arguments and outputs, and what the last trace found."""

    def __init__(
        self, step: Step, models: dict, optimizers: dict, leaves: list, nest: TreeSpec, roots: Roots, dp: DP | None,
        parties: Sequence[str], secret_dropout: bool,
    ) -> None:  # fmt: skip
        self.step, self.models, self.leaves, self.nest, self.roots = step, models, leaves, nest, roots
        self.tensors = dict(naming.tensors(models))
        self.names = {id(tensor): name for name, tensor in self.tensors.items()}
        self.updates, self.dp = Updates(optimizers, self.names, roots, dp, parties), dp
        self.groups = [group for optimizer in optimizers.values() for group in optimizer.param_groups]
        self.hiding = parties if secret_dropout else ()
        self.operators = Operators(Calls({}))  # of the last trace

    def run(self, gradients: set[str]) -> torch.fx.Graph:
        """Traces the step when these parameters begin with a gradient of an earlier step. Raises CompileError."""
        self.gradients = [name for name in self.tensors if name in gradients]
        starts = [*self.tensors.values(), *self.updates.starts.values()]
        starts += [_gradient_of(self.tensors[name]) for name in self.gradients]
        batch = [leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor)]
        values = [_with_storage(start.detach()) for start in (*starts, *batch)]
        called = getattr(self.step, "__name__", type(self.step).__name__)
        try:
            with (
                traceback.preserve_node_meta(), torch.enable_grad(), torch.backends.mkldnn.flags(enabled=False),
                sdpa_kernel(SDPBackend.MATH),
            ):  # fmt: skip
                traced = make_fx(self._traced, tracing_mode="fake", _allow_non_fake_inputs=True)(*values)
                if lost := [error for error in self.operators.asked if caught_by_the_model(error)]:
                    raise lost[0]
                self.found = graphs.prepare(traced)
                values += [self._value_of(name, tensor) for name, tensor in self.found.items()]
                return graphs.functional(traced, values).graph
        except CompileError:
            raise
        except Exception as problem:
            raise not_captured(problem, called, "a trace", _RUNS, _MOVED) from problem

    def _value_of(self, name: str, constant: torch.Tensor | None) -> torch.Tensor:
        if constant is not None:
            return constant
        random = {random.name: random for random in self.operators.random}.get(name)
        if random:
            return torch.empty(random.shape, dtype=random.dtype)
        sizes = {noise.name: (noise.count,) for noise in self._noise()}
        return torch.empty(sizes.get(name, ()), dtype=torch.float64)

    def _noise(self) -> list[Noise]:
        return [*self.updates.noise, *self.operators.noise]

    def _traced(self, *values: torch.Tensor) -> list[torch.Tensor]:
        """The step as a function of tensors: all states after it, then what it returns."""
        left = iter(values)
        take = lambda: next(left).clone().detach()
        traced = {name: take().requires_grad_(tensor.requires_grad) for name, tensor in self.tensors.items()}
        self.updates.begin({name: take() for name in self.updates.starts})
        for name in self.gradients:
            traced[name].grad = take()
        batch = [take() if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        given = tree_unflatten(batch, self.nest)
        calls = Calls({id(self.tensors[name]): tensor for name, tensor in traced.items()})
        self.operators = Operators(calls, self.hiding)
        self.updates.stand_in(calls)
        before = [_scalars(group) for group in self.groups]
        with outside_refused(), module_notes(self.models, calls), calls, self.operators:
            result = self.step(**given) if isinstance(given, dict) else self.step(*given)
        _refuse_changes_of_groups(before, [_scalars(group) for group in self.groups])
        return self._outputs(traced, result)

    def _outputs(self, traced: dict[str, torch.Tensor], result: Any) -> list[torch.Tensor]:
        ends = dict(traced)
        for name, holder, key in naming.places(self.models):
            if holder[key] is not None and name in ends and holder[key] is not self.tensors[name]:
                ends[name] = holder[key]  # the step put another tensor there
                if ends[name].shape != traced[name].shape or ends[name].dtype != traced[name].dtype:
                    what = f"the step changes the shape or the type of {name}"
                    raise CompileError(explain(what, fix="give it the shape and type of later steps from the start"))
        ends.update(self.updates.slots)
        grads = {name: grad for name in self.gradients if (grad := traced[name].grad) is not None}
        self.left = set(grads)
        ends.update({f"{name}.grad": grad for name, grad in grads.items()})
        self.ends = list(ends)
        leaves, self.result_nest = tree_flatten(result)
        self.result_leaves = [TENSOR if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        inside = {id(self.tensors[name]): tensor for name, tensor in traced.items()}  # a state may be returned as it is
        returned = [inside.get(id(leaf), leaf) for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return [tensor.detach() for tensor in (*ends.values(), *returned)]

    def _placeholders(self, graph: torch.fx.Graph) -> dict[str, torch.fx.Node]:
        """All placeholders by the names of what they stand for."""
        names = [*self.tensors, *self.updates.starts, *(f"{name}.grad" for name in self.gradients)]
        names += [f"batch:{i}" for i, leaf in enumerate(self.leaves) if isinstance(leaf, torch.Tensor)]
        nodes = [node for node in graph.nodes if node.op == "placeholder"]
        return dict(zip([*names, *self.found], nodes, strict=True))

    def gradients_read(self, graph: torch.fx.Graph) -> list[str]:
        """The parameters whose gradients of earlier steps have an effect."""
        nodes, (ends, _) = self._placeholders(graph), self._ends(graph)
        out = []
        for name in self.gradients:
            node = nodes[f"{name}.grad"]
            if [user for user in node.users if user.op != "output"] or node in [
                e for n, e in ends.items() if n != f"{name}.grad"
            ]:
                out.append(name)
        return out

    def _ends(self, graph: torch.fx.Graph) -> tuple[dict[str, torch.fx.Node], list[torch.fx.Node]]:
        outputs = outputs_of(graph)
        return dict(zip(self.ends, outputs, strict=False)), outputs[len(self.ends) :]

    def captured(self, graph: torch.fx.Graph) -> CapturedStep:
        nodes, (ends, returned) = self._placeholders(graph), self._ends(graph)
        read = {f"{name}.grad" for name in self.gradients_read(graph)}
        forgotten = {f"{name}.grad" for name in self.gradients} - read
        changed = [name for name, node in ends.items() if node is not nodes.get(name) and name not in forgotten]
        graph.output_node().args = ([*(ends[name] for name in changed), *returned],)
        graph.eliminate_dead_code()
        for name in (*forgotten, *self.updates.starts):
            if name in nodes and not nodes[name].users:
                graph.erase_node(nodes.pop(name))
        counts = signature.counts(nodes, {name: ends[name] for name in changed}, set(self.tensors))
        starts = {**self.tensors, **self.updates.starts}
        starts.update({f"{name}.grad": _gradient_of(self.tensors[name]) for name in self.gradients})
        states = {
            name: State(name, self._kind(name), start.detach().clone(), _place(changed, name), name in counts)
            for name, start in starts.items()
            if name in nodes
        }
        random = tuple(random for random in self.operators.random if random.name in nodes)
        noise = tuple(noise for noise in self._noise() if noise.name in nodes)
        drawn = [*(number.name for number in random), *(part.name for part in noise)]
        numbers = [name for name, tensor in self.found.items() if tensor is None and name not in drawn]
        batch = [name for name in nodes if name.startswith("batch:")]
        inputs = [nodes[name] for name in (*batch, *numbers, *drawn)]
        graph.lint()
        return CapturedStep(
            captured=Captured(
                graph,
                states={nodes[name].name: name for name in states},
                constants={nodes[name].name: tensor for name, tensor in self.found.items() if tensor is not None},
                inputs=[node.name for node in inputs],
                outputs=outputs_of(graph),
            ),
            states=states,
            batch=signature.batch(self.step, self.leaves, self.nest),
            numbers=tuple(numbers),
            random=random,
            noise=noise,
            returned=Returned(
                signature.names(self.step, self.result_leaves, self.result_nest),
                tuple(range(len(changed), len(changed) + len(returned))),
                tuple(self.result_leaves),
                self.result_nest,
            ),
            updates=tuple(self.updates.made),
            memory={update.name: self.updates.memory[update.name] for update in self.updates.made},
            roots=self.roots,
            constants={name: self.dp.noise for name in numbers if self.dp and name.endswith(".noise")},
        )

    def _kind(self, name: str) -> Kind:
        if name in self.tensors:
            return "parameter" if isinstance(self.tensors[name], nn.Parameter) else "buffer"
        return "optimizer" if name in self.updates.starts else "gradient"


def _place(names: Sequence[str], name: str) -> int | None:
    return names.index(name) if name in names else None


def _gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(parameter, requires_grad=False) if parameter.grad is None else parameter.grad


def _with_storage(tensor: torch.Tensor) -> torch.Tensor:
    """Numbers for those of a model on the meta device, which a trace does not read."""
    return torch.empty_like(tensor, device="cpu") if tensor.is_meta else tensor


def _scalars(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}


def _refuse_changes_of_groups(before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
    changed = sorted({key for was, now in zip(before, after, strict=True) for key in now if was.get(key) != now[key]})
    if changed:
        what = f"the step changes {', '.join(changed)} of an optimizer, which are inputs or constants of the program"
        raise CompileError(explain(what, fix="change them outside of the step, between steps"))
