"""Why a model could not be captured: its own line, and what to write instead."""

from __future__ import annotations

import ast
import linecache
import re
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

from protocols.errors import explain
from securemodel.compiler.report import Problem
from securemodel.errors import CompileError

_ROOT = Path(__file__).parents[1]
NOT_THE_USERS = (f"{Path(torch.__file__).parent}/", f"{_ROOT / 'compiler'}/", f"{_ROOT / 'training'}/")
"""Where code lies that no user wrote."""
_OF_VALUES = {"GuardOnDataDependentSymNode", "DataDependentOutputException", "DynamicOutputShapeException"}
"""Torch's errors where Python code asks for values, by name: they have moved between versions."""

_WHERE = "compute both ways and choose: torch.where(condition, this, that)"
_TENSOR = (
    "keep it a tensor: torch.where(condition, this, that) chooses, torch.gather reads at a position; a size must be a "
    "fixed number"
)
_PLACE = "stack the choices into one tensor and read it with torch.index_select, or choose with torch.where"
_WHOLE = "write it with operators on whole tensors, such as torch.where"
_CHECK = (
    "check the data before the model, or write torch._assert_async(condition, message): it is checked by the owner of the "
    "data, and left out where the data is secret"
)
_EXPERTS = re.compile("expert|moe", re.IGNORECASE)
ROUTING = "which experts compute a token depends on values"
ALL_EXPERTS = (
    "compute every expert and add up with secret weights: securemodel.models.dense_moe(model) makes this of models of "
    "transformers"
)

_NUMBERS = ("item", "tolist", "int", "float", "bool", "complex", "range", "numpy")


class NeedsValues(CompileError):
    """A model's Python code asks for values; `.problem` is its line in a report."""

    def __init__(self, message: str, problem: Problem) -> None:
        super().__init__(message)
        self.problem = problem


_EXPORTABLE = (
    "make the model run on its example inputs, and exportable (see torch.export's documentation); for packed "
    "sequences use securemodel.sequences.recurrent"
)


def not_captured(
    problem: Exception, model: str, tool: str = "torch.export", runs: str = _EXPORTABLE, moved: str = ""
) -> CompileError:
    """The error for a model on which `tool` failed: `runs` says what to try, `moved` what else helps against values."""
    where, statements = _line_of_model(problem)
    if any(type(error).__name__ in _OF_VALUES or _reads_values(error) for error in _chain(problem)):
        what, fix = (ROUTING, ALL_EXPERTS) if chooses_experts(where) else _needs_values(statements)
        why = "the program is made before there are values, and must be the same for all of them"
        message = explain(f"{model} cannot be compiled: {what}", where=where, why=why, fix=fix + moved)
        return NeedsValues(message, Problem("Python", where, what, fix + moved))
    first = (str(problem).strip().splitlines() or [""])[0]
    what = f"{tool} could not capture {model}: {type(problem).__name__}: {first}"
    return CompileError(explain(what, where=where, fix=runs))


def chooses_experts(source: str) -> bool:
    """Whether a line that needs values is one of a mixture of experts."""
    return _EXPERTS.search(source) is not None


def file_name(path: str) -> str:
    """A file of the user's, in short. Cells of a notebook are files too, with numbers for names."""
    file = Path(path)
    return "cell" if file.parent.name.startswith("ipykernel_") else file.name


def caught_by_the_model(problem: BaseException) -> bool:
    """Whether it is neither torch nor this project that caught an error: the model's code then went on without it."""
    caught = problem.__traceback__
    return caught is not None and not caught.tb_frame.f_code.co_filename.startswith(NOT_THE_USERS)


def _chain(problem: BaseException) -> Iterator[BaseException]:
    """An error and those it came from."""
    seen: set[int] = set()
    error: BaseException | None = problem
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _reads_values(error: BaseException) -> bool:
    """Errors of other types for what only a tensor with values can give: its array, its text."""
    text = str(error)
    return ".numpy() is not supported" in text or "FakeTensor.__format__" in text


def _line_of_model(problem: Exception) -> tuple[str, list[ast.stmt]]:
    """`net.py:12, in forward: code` of the innermost line that is not torch's, and the statements of that line."""
    for error in _chain(problem):
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(NOT_THE_USERS)]
        if frames and (line := frames[-1].lineno):
            last = frames[-1]
            code = f": {last.line}" if last.line else ""
            return f"{file_name(last.filename)}:{line}, in {last.name}{code}", _statements(last.filename, line)
    return "", []


def _statements(filename: str, line: int) -> list[ast.stmt]:
    """The statements of a file that have a line, of those with a body only their heads; none if it cannot be read."""
    try:
        tree = ast.parse("".join(linecache.getlines(filename)))
    except (SyntaxError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            if node.lineno <= line <= last:
                found.append(node)
    return found


def _needs_values(statements: list[ast.stmt]) -> tuple[str, str]:
    """(what a line does with values, what to write instead)."""
    kinds = {type(statement) for statement in statements}
    if any(isinstance(s, ast.If) and isinstance(s.body[0], ast.Raise) and not s.orelse for s in statements):
        return "its check of values needs them", _CHECK
    if ast.If in kinds:
        return "which way its `if` goes depends on values", _WHERE
    if kinds & {ast.While, ast.For}:
        fix = "run a fixed number of steps, and choose with torch.where(condition, new, old) what is kept"
        return "how often its loop runs depends on values", fix
    if ast.Assert in kinds:
        return "its `assert` needs values", _CHECK
    parts = [part for statement in statements for part in ast.walk(statement)]
    called = {getattr(p.func, "attr", getattr(p.func, "id", "")) for p in parts if isinstance(p, ast.Call)}
    if number := next((name for name in _NUMBERS if name in called), ""):
        return f"`{number}` takes values out of a tensor", _TENSOR
    if any(isinstance(p, (ast.In, ast.NotIn)) for p in parts):
        return "`in` looks at values", "write (x == value).any(), and choose with torch.where"
    if any(isinstance(p, (ast.IfExp, ast.BoolOp, ast.Not, ast.comprehension)) for p in parts):
        return "a choice in its code depends on values", _WHERE
    if called & {"print", "format", "str"} or any(isinstance(p, ast.JoinedStr) for p in parts):
        return "a text needs values", "leave tensors out of texts and prints in forward"
    if any(isinstance(p, ast.Subscript) for p in parts):
        return "a position depends on values", _PLACE
    return "its code needs the values of a tensor", _WHOLE
