"""Fitted pipelines on disk: what is public as JSON, and what each party has of the parameters in a file of its own.

    folder/pipeline.json            the schema's digest, the steps of each column: the same at all parties
    folder/public.safetensors       parameters that all know
    folder/NAME.safetensors         those of one party, which nobody else can read

A folder may come from anywhere: it is read strictly, by names, shapes and types that follow from the schema and the steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields as fields_of
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from protocols.errors import InputError, explain
from protocols.files import file_errors, write_atomically, write_secret
from protocols.names import is_name
from securemodel.data.discretizing import Clip, KBinsDiscretizer
from securemodel.data.encoders import TargetEncoder, WoEEncoder
from securemodel.data.encoding import OneHotEncoder, OrdinalEncoder
from securemodel.data.fields import field_of
from securemodel.data.imputing import SimpleImputer
from securemodel.data.power import PowerTransformer
from securemodel.data.preprocess import Fields, Step
from securemodel.data.scaling import MinMaxScaler, RobustScaler, StandardScaler
from securemodel.data.secret import problem_of

STEPS: Mapping[str, type[Step]] = {
    step.__name__: step
    for step in (
        StandardScaler, MinMaxScaler, RobustScaler, SimpleImputer, OneHotEncoder, OrdinalEncoder, KBinsDiscretizer, Clip,
        WoEEncoder, TargetEncoder, PowerTransformer,
    )
}  # fmt: skip
FORMAT = "securemodel pipeline 1"
PUBLIC_FILE, MOST_BYTES = "public", 1 << 24
_FIX = "save the pipeline again with this version, and copy the whole folder"
Tensors = Mapping[str, torch.Tensor]


def step_text(step: Step) -> dict[str, Any]:
    """A step as JSON: its name and its settings."""
    return {"step": type(step).__name__, **{f.name: getattr(step, f.name) for f in fields_of(step)}}


def step_of(given: Any) -> Step:
    """The step of such an object. Raises InputError; what settings mean is checked by the step's own `problems`."""
    if not isinstance(given, dict) or not isinstance(given.get("step"), str) or given["step"] not in STEPS:
        raise strange("a step that is none")
    kind = STEPS[given["step"]]
    settings = {
        name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if name != "step"
    }
    if set(settings) != {f.name for f in fields_of(kind)}:
        raise strange(f"other settings of {kind.__name__} than it has")
    for f in fields_of(kind):
        value = settings[f.name]
        parts = value if isinstance(value, tuple) else (value,)
        plain = all(isinstance(part, (str, bool, int, float, type(None))) for part in parts)
        if not plain or (isinstance(f.default, bool) and not isinstance(value, bool)):
            raise strange(f"another {f.name} of {kind.__name__} than it may be")
    return kind(**settings)


# ---- columns
SecretStep = tuple[Step, tuple[str, ...]]
"""A step whose parameters nobody knows, and the parties that have totals of it."""
Described = tuple[str, bool, list[tuple[Step, bool]], SecretStep | None]
"""Of a column its name, whether it stands beside the features, its steps and whether all know the parameters of each."""
_KEYS = {"name", "beside", "steps", "secret"}


def totals_name(column: str) -> str:
    """What a party's totals of a column are called in its file."""
    return f"{column}.secret.totals"


def checked(found: Mapping[str, Any], schema: Any, path: Path) -> list[Described]:
    """The columns of a saved pipeline, each with its steps. Raises InputError."""
    columns = found.get("columns")
    if set(found) != {"schema", "columns"} or not isinstance(columns, list) or not columns:
        raise strange("no columns", path)
    made = [_checked_column(one, schema, path) for one in columns]
    if len({name for name, *_ in made}) < len(made):
        raise strange("a column twice", path)
    return made


def _checked_column(one: Any, schema: Any, path: Path) -> Described:
    if not isinstance(one, dict) or set(one) != _KEYS or not isinstance(one["steps"], list):
        raise strange("a column that is none", path)
    name = one["name"]
    if not isinstance(name, str) or name not in schema.columns or not isinstance(one["beside"], bool):
        raise strange("a column that the schema does not have", path)
    fields: Fields = (field_of(name, schema.columns[name]),)
    steps: list[tuple[Step, bool]] = []
    for given in one["steps"]:
        known = given.pop("known", None) if isinstance(given, dict) else None
        step = step_of(given)
        if not isinstance(known, bool) or (not known and schema.columns[name].owner is None):
            raise strange("a step of which nobody has the parameters", path)
        _check_fits(step, fields, path)
        steps.append((step, known))
        fields = step.out(fields)
    return name, one["beside"], steps, _checked_secret(one["secret"], fields, path)


def _checked_secret(given: Any, fields: Fields, path: Path) -> SecretStep | None:
    if given is None:
        return None
    if not isinstance(given, dict) or set(given) != {"step", "parties"} or not isinstance(given["parties"], list):
        raise strange("a secret step that is none", path)
    names = given["parties"]
    if not names or not all(isinstance(name, str) and is_name(name) for name in names) or len(set(names)) < len(names):
        raise strange("a secret step of parties that are none", path)
    step = step_of(given["step"])
    _check_fits(step, fields, path)
    if len(fields) != 1 or problem_of(step, fields[0]):
        raise strange("a step that cannot stay secret", path)
    return step, tuple(names)


def _check_fits(step: Step, fields: Fields, path: Path) -> None:
    try:
        problems = step.problems(fields)
    except (TypeError, ValueError):
        problems = ["settings of other types"]
    if problems:
        raise strange(f"a step that does not fit its column: {problems[0]}", path)


# ---- files
def write(folder: Path, public: Mapping[str, Any], known: Tensors, owned: Mapping[str, Tensors]) -> None:
    """Writes a pipeline: `owned` has the parameters of the parties of this process. Raises FileError."""
    with file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"format": FORMAT, **public}, indent=1, sort_keys=True, allow_nan=False)
        write_atomically(folder / "pipeline.json", text.encode())
        write_atomically(_path(folder, PUBLIC_FILE), _bytes(known))
    for party, tensors in owned.items():
        write_secret(_path(folder, party), _bytes(tensors), f"parameters of {party!r}")


def read(folder: Path) -> dict[str, Any]:
    """What is public. Raises InputError for what is no pipeline, FileError."""
    path = folder / "pipeline.json"
    with file_errors(path, "give the folder that save() wrote"):
        if path.stat().st_size > MOST_BYTES:
            raise strange(f"more than {MOST_BYTES} bytes", path)
        data = path.read_bytes()
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise strange("no JSON", path) from error
    if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
        raise strange(f"another format than {FORMAT!r}", path)
    return found


def read_tensors(folder: Path, whose: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """float64 tensors of these names and shapes, and no others; "public" or a party's. Raises InputError, FileError."""
    path = _path(folder, whose)
    with file_errors(path, f"{whose!r} has this file, and nobody else" if whose != PUBLIC_FILE else _FIX):
        if path.stat().st_size > MOST_BYTES + 8 * sum(torch.Size(shape).numel() for shape in shapes.values()):
            raise strange("more than these parameters take", path)
        data = path.read_bytes()
    try:
        found = safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise strange("no safetensors", path) from error
    seen = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in found.items()}
    wanted = {name: (torch.float64, tuple(shape)) for name, shape in shapes.items()}
    if seen != wanted:
        odd = sorted(name for name in seen.keys() | wanted.keys() if seen.get(name) != wanted.get(name))
        raise strange(f"other parameters than the steps have: {', '.join(odd[:5])}", path)
    return found


def _path(folder: Path, whose: str) -> Path:
    return folder / f"{whose}.safetensors"


def _bytes(tensors: Tensors) -> bytes:
    return safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _no_constant(text: str) -> None:
    raise ValueError(f"{text} is no number")


def strange(why: str, path: Path | None = None) -> InputError:
    """The error of a folder that is no saved pipeline."""
    return InputError(
        explain("this is no saved pipeline", where=str(path or "pipeline.json"), why=f"it has {why}", fix=_FIX)
    )
