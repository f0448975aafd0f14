"""A family: one model compiled for several numbers of rows, which parties run for clients that are none of them."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from typing import Any, Literal, cast

import torch

from protocols.errors import explain
from protocols.names import PUBLIC
from securemodel.compiler.capture import Captured, Examples, example_tensors
from securemodel.compiler.ir import CLIENT, Node, Stranger
from securemodel.compiler.ops import OUTPUTS, encoding_limit
from securemodel.compiler.owners import given_weights, weight_owners
from securemodel.compiler.postprocess import Reveal, capture_revealing
from securemodel.compiler.reading import MAX_FAMILY, load_of
from securemodel.engines.compiling import compile_for
from securemodel.engines.masked import compiling as masked_compiling
from securemodel.errors import CompileError
from securemodel.program import Program

SIZES = (1, 8, 32, 128)
Clamp = tuple[float, float] | None
Recipe = Mapping[str, Sequence[Sequence[Any]]]
_MOST_INDEX = 2.0**31 - 1


@dataclass(frozen=True)
class Port:
    """An input or an output as a client has it. `shape` is that of one row.

    A client sends round(x 2^frac_bits) of an input "real", of magnitudes up to `limit`, and whole numbers from 0 to `limit`
    of an "index". Outputs are "scores", "probabilities" or a "class"; their value is the ring element / 2^frac_bits.
    """

    name: str
    shape: tuple[int, ...]
    frac_bits: int
    kind: Literal["real", "index", "scores", "probabilities", "class"]
    limit: float = 0.0


@dataclass(frozen=True, repr=False)
class Family:
    """Programs of one model by their numbers of rows, with one load: weights are shared once for all of them."""

    programs: Mapping[int, Program]
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    clamp: Clamp = None
    recipe: Recipe = field(default_factory=dict)
    labels: tuple[str, ...] | None = None

    def __repr__(self) -> str:
        return f"Family(sizes={list(self.sizes)}, parties={list(self.parties)}, digest={self.digest[:12]})"

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of rows, from the smallest."""
        return tuple(self.programs)

    @property
    def parties(self) -> tuple[str, ...]:
        """The parties in rank order."""
        return self._first.parties

    @property
    def _first(self) -> Program:
        return self.programs[self.sizes[0]]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the digests of all sizes, in order."""
        return hashlib.sha256("".join(program.digest for program in self.programs.values()).encode()).hexdigest()

    @cached_property
    def row_independent(self) -> bool:
        """Whether rows of several requests may share a run; else each run answers one request, of exactly its size."""
        return all(program.row_independent for program in self.programs.values())

    def card(self) -> dict[str, Any]:
        """What a client must know, as JSON: ports, recipe, and what a run costs. It holds no secret."""
        plans = {size: program.plan() for size, program in self.programs.items()}
        return {
            "digest": self.digest,
            "sizes": list(self.sizes),
            "inputs": [_described(port) for port in self.inputs],
            "outputs": [_described(port) for port in self.outputs],
            "recipe": {name: [list(step) for step in steps] for name, steps in self.recipe.items()},
            "labels": None if self.labels is None else list(self.labels),
            "clamp": None if self.clamp is None else list(self.clamp),
            "reveal": _plain(self._first.reveal),
            "row_independent": self.row_independent,
            "plan": {
                "rounds": max(plan.rounds for plan in plans.values()),
                "bytes_by_size": {str(size): sum(plan.sent_bytes.values()) for size, plan in plans.items()},
                "preprocessing_by_size": {str(size): plan.preprocessing_bytes for size, plan in plans.items()},
            },
        }


def _described(port: Port) -> dict[str, Any]:
    return {
        "name": port.name,
        "shape": [-1, *port.shape],
        "frac_bits": port.frac_bits,
        "kind": port.kind,
        "limit": port.limit,
    }


def _plain(reveal: Reveal) -> Any:
    return reveal if isinstance(reveal, str) else list(reveal)


def compile_service(
    model: torch.nn.Module,
    example_inputs: torch.Tensor | Examples,
    *,
    weights: str | Mapping[str, str],
    parties: Sequence[str],
    sizes: Sequence[int] = SIZES,
    clamp: Clamp,
    recipe: Recipe | Sequence[Any] = (),
    reveal: Reveal = "all",
    frac_bits: int = 16,
    truncate_outputs: bool = True,
    labels: Sequence[str] | None = None,
) -> Family:
    """Compiles a model for clients who are no parties: they give inputs in shares, and alone get the results.

    `example_inputs`: one row or more of each input, batch axis first. `sizes`: the numbers of rows that are run at once.
    `clamp`: the bounds that real inputs are forced within, as whoever asks may send anything; None leaves them as they come.
    `recipe`: by input, what a client does with its data before it shares them, a list of steps of STEPS: for the card alone.
    `labels`: names of the classes, for the card. The rest as for `compile`.

    Raises UnsupportedOperator, CompileError.
    """
    examples = _examples(example_inputs)
    if PUBLIC in weight_owners(given_weights(weights)):
        raise CompileError(
            "the weights of a service belong to parties: a model that everybody knows can be run by its clients"
        )
    names = _input_names(model, examples)
    steps = _checked_recipe(recipe, names)
    bounds = _checked_clamp(clamp, frac_bits)
    make = lambda size, stranger: compile_for(
        masked_compiling, model, _of_size(examples, size), weights=weights, inputs=CLIENT, outputs=CLIENT,
        parties=parties, reveal=reveal, frac_bits=frac_bits, width=64, rounding="exact",
        truncate_outputs=truncate_outputs, stranger=stranger,
    )  # fmt: skip
    sizes = _checked_sizes(sizes)
    try:
        programs = _of_one_load(sizes, lambda size: make(size, Stranger(bounds)))
    except _OtherLoad:
        other = next(size for size in count(2) if size not in sizes)
        graph = capture_revealing(model, _of_size(examples, other), reveal).graph
        programs = _of_one_load(sizes, lambda size: make(size, Stranger(bounds, graph)))
    first = next(iter(programs.values()))
    return Family(
        programs, _inputs(first, names), _outputs(programs), bounds, steps, None if labels is None else tuple(labels)
    )


# ---- arguments
def _examples(given: torch.Tensor | Examples) -> Examples:
    if isinstance(given, Mapping):
        return dict(given)
    return (given,) if isinstance(given, torch.Tensor) else tuple(given)


def _of_size(examples: Examples, size: int) -> Examples:
    """Examples of so many rows, the first ones again and again."""
    if isinstance(examples, Mapping):
        return {name: _rows(x, size) for name, x in examples.items()}
    return tuple(_rows(x, size) for x in examples)


def _rows(x: torch.Tensor, size: int) -> torch.Tensor:
    if not isinstance(x, torch.Tensor) or x.ndim < 1 or not x.shape[0]:
        raise CompileError("example_inputs are tensors of one row or more: the first axis counts rows")
    if x.is_complex():
        raise CompileError("a client sends no complex numbers: give their parts, as torch.view_as_real has them")
    return x[torch.arange(size) % x.shape[0]]


def _input_names(model: torch.nn.Module, examples: Examples) -> tuple[str, ...]:
    """The names of the inputs: those given, or those that `forward` has for them."""
    if isinstance(examples, Mapping):
        return tuple(examples)
    own = [p.name for p in inspect.signature(model.forward).parameters.values() if p.kind not in _MANY]
    count = len(examples)
    return tuple(own[:count]) if len(own) >= count else tuple(f"input{at}" for at in range(count))


_MANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _checked_sizes(sizes: Sequence[int]) -> list[int]:
    made = sorted(set(sizes))
    if not made or len(made) > MAX_FAMILY or any(type(size) is not int or size < 1 for size in made):
        raise CompileError(f"sizes = {sizes!r:.100} are not 1 to {MAX_FAMILY} numbers of rows, each at least 1")
    return made


def _checked_clamp(clamp: Clamp, frac_bits: int) -> Clamp:
    if clamp is None:
        return None
    low, high = (round(float(bound) * 2.0**frac_bits) / 2.0**frac_bits for bound in clamp)
    if not -(2.0**20) <= low < high <= 2.0**20:
        raise CompileError(
            explain(
                f"clamp = {clamp!r:.100} are no bounds of inputs",
                why="the lower one is below the upper one by a unit of fixed point or more, and both are within 2^20",
                fix="give the range of your data; clamp=None takes inputs as they come, however large",
            )
        )
    return low, high


Check = Callable[[Any], bool]
_number: Check = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)
_whole: Check = lambda x: type(x) is int and x >= 1
_numbers: Check = lambda x: _number(x) or (isinstance(x, (list, tuple)) and len(x) > 0 and all(map(_number, x)))
STEPS: Mapping[str, tuple[Check, ...]] = {
    "divide": (lambda x: _numbers(x) and 0 not in (x if isinstance(x, (list, tuple)) else [x]),),
    "subtract": (_numbers,),
    "clamp": (_number, _number),
    "resize": (_whole, _whole),
    "grayscale": (),
    "one_hot": (_whole,),
    "pad_ids": (_whole, lambda x: type(x) is int and x >= 0),
}
"""What a client may be asked to do with its data, and the arguments: numbers (or one for each channel) to divide by and to
subtract, bounds, height and width, nothing, how many classes, a length and the id that fills it up."""


def _checked_recipe(recipe: Recipe | Sequence[Any], names: Sequence[str]) -> Recipe:
    """Steps by input. Raises CompileError for inputs and steps that there are not."""
    if not recipe:
        return {}
    if not isinstance(recipe, Mapping) or (unknown := [name for name in recipe if name not in names]):
        given = unknown if isinstance(recipe, Mapping) else recipe
        raise CompileError(f"recipe has lists of steps by input, of {', '.join(names)}, not {given!r:.100}")
    for name, steps in recipe.items():
        for step in steps:
            _check_step(name, step)
    return {name: tuple(map(tuple, steps)) for name, steps in recipe.items()}


def _check_step(name: str, step: Any) -> None:
    given: list[Any] = list(step) if isinstance(step, (list, tuple)) and step else [None]
    kind, *arguments = given
    checks = STEPS.get(kind) if isinstance(kind, str) else None
    if checks is None or len(checks) != len(arguments) or not all(c(x) for c, x in zip(checks, arguments, strict=True)):
        raise CompileError(
            explain(
                f"{step!r:.100} is no step of a client's recipe",
                where=f"recipe of {name!r}",
                fix=f"steps are {', '.join(STEPS)}, each with its arguments: ('divide', 255.0)",
            )
        )
    if kind == "clamp" and not arguments[0] < arguments[1]:
        raise CompileError(f"a client cannot clamp {name!r} between {arguments[0]} and {arguments[1]}")


class _OtherLoad(CompileError):
    """Something else is loaded for another size."""


def _of_one_load(sizes: Sequence[int], make: Callable[[int], Program]) -> dict[int, Program]:
    """The programs of all sizes, which load the same, so that weights are shared once. Raises _OtherLoad."""
    programs: dict[int, Program] = {}
    for size in sizes:
        programs[size] = make(size)
        first, one = next(iter(programs.items()))
        mine, theirs = load_of(one.graph), load_of(programs[size].graph)
        if mine != theirs:
            line = next((b for a, b in zip(mine, theirs, strict=False) if a != b), "there are more of them")
            raise _OtherLoad(
                explain(
                    f"with {size} rows, other values are made of the weights than with {first}: {line[:200]}",
                    why="the sizes of a service share the weights once, so that what is made of them cannot have rows",
                    fix=f"compile one size, sizes=({size},), or let the model expand weights where they meet the inputs",
                )
            )
    return programs


# ---- ports
def _inputs(program: Program, names: Sequence[str]) -> tuple[Port, ...]:
    header, ports = program.header, []
    captured = cast(Captured, program.captured)
    for name, x, shape, placeholder in zip(
        names, example_tensors(program.examples), header.input_shapes, captured.inputs, strict=True
    ):
        real = x.is_floating_point()
        bits = header.frac_bits if real else 0
        limit = encoding_limit(header, bits) if real else _largest_index(captured, placeholder)
        ports.append(Port(name, shape[1:], bits, "real" if real else "index", limit))
    return tuple(ports)


def _largest_index(captured: Captured, placeholder: str) -> float:
    """The largest id of the tables that an input is looked up in."""
    node = next(n for n in captured.graph.nodes if n.name == placeholder)
    tables = [user.args[0] for user in node.users if user.target is torch.ops.aten.embedding.default]
    return min((float(table.meta["val"].shape[0] - 1) for table in tables), default=_MOST_INDEX)


def _outputs(programs: Mapping[int, Program]) -> tuple[Port, ...]:
    """What a client gets. Raises CompileError for an output without an axis of rows."""
    for size, program in programs.items():
        for index, node in _outputs_of(program).items():
            if not node.shape or node.shape[0] != size:
                what = f"output {index} has the shape {list(node.shape)} with {size} rows"
                raise CompileError(explain(what, fix="let the model return a row for each row of its inputs"))
    program = next(iter(programs.values()))
    found = _outputs_of(program)
    return tuple(
        Port(name, found[index].shape[1:], cast(int, found[index].frac), _kind(program, found[index]))
        for index, name in enumerate(program.result_names)
    )


def _outputs_of(program: Program) -> dict[int, Node]:
    return {node.attrs["index"]: node for node in program.graph.nodes if node.op in OUTPUTS}


def _kind(program: Program, node: Node) -> Literal["scores", "probabilities", "class"]:
    if program.reveal != "all" and not getattr(torch, node.attrs["dtype"]).is_floating_point:
        return "class"
    shows_scores = program.reveal == "all" or program.reveal[-1] == "scores"
    return "scores" if shows_scores else "probabilities"
