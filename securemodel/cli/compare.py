"""securemodel compare: float, fixed point and secure side by side on the owner's test data."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click
import torch

from protocols.errors import InputError, explain
from securemodel.api import compile as compile_model
from securemodel.cli.base import FAILED, Command
from securemodel.cli.programs import job_of, model_of, path_and_name, program_of, sizes
from securemodel.compiler.capture import Examples, example_tensors
from securemodel.files.arrays import load_numbers
from securemodel.inspect.compare import compare as compare_program
from securemodel.program import Program
from securemodel.scripts import explained, load_file

Tensors = tuple[torch.Tensor, ...]


@click.command(cls=Command, no_args_is_help=True)
@click.argument("target", metavar="FILE.py[:NAME]")
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Test inputs: an .npy file, or an .npz file with one array for each input.",
)
@click.option("--shape", "shapes", multiple=True, metavar="N,N,...", help="Make up an input of this shape; repeatable.")
@click.option("--width", default=64, show_default=True, help="As for compile(), where the file has a model only.")
@click.option("--frac-bits", default=16, show_default=True, help="As for compile(), where the file has a model only.")
def compare(target: str, data: Path | None, shapes: tuple[str, ...], width: int, frac_bits: int) -> None:
    """Show layer by layer what fixed point does to a model: drift, and values that leave their range.

    For test data of one owner: everything is in the clear in this process. FILE.py defines `program`, make_program(),
    or what `securemodel check` takes. Inputs are those of --data, or `test_inputs` of the file, or else its example
    inputs. The file is imported, which runs what is outside `if __name__ == "__main__"`. Ends with 1 if a value
    leaves its range.

    \b
    Examples:
      securemodel compare infer.py --data patients.npz
      securemodel compare model.py:LeNet5 --shape 4,1,28,28 --width 32
    """
    given = read_inputs(data) if data else tuple(_made_up(sizes(shape)) for shape in shapes)
    program, inputs, path = program_and_inputs(target, given, width, frac_bits, "compared layer by layer")
    warn_of(inputs)
    with explained(path):
        found = compare_program(program, *inputs)
    click.echo(str(found))
    if found.first_out_of_range:
        click.get_current_context().exit(FAILED)


def warn_of(inputs: Tensors) -> None:
    """Says that nothing here is secret, and of inputs that tell little, that they do."""
    click.secho("TEST DATA ONLY: inputs, weights and all values are in the clear in this process", bold=True, err=True)
    if all(bool((x == 0).all()) for x in inputs):
        click.echo("the inputs are all zero, which tells little: give --data, or test_inputs in the file", err=True)


def program_and_inputs(
    target: str, given: Tensors, width: int, frac_bits: int, done: str
) -> tuple[Program, Tensors, Path]:
    """The program that a target means or makes, its test inputs, and the file; `done` is what is not done with trainings.

    Raises InputError, ScriptFailed.
    """
    path, name = path_and_name(target)
    module = load_file(path)
    if not name and job_of(module, path):
        fix = "job.simulate(steps) shows fixed point beside float, for data or made-up data"
        raise InputError(explain(f"a training is not {done}", where=str(path), fix=fix))
    return *_program(module, name, path, given, width, frac_bits), path


def _program(
    module: ModuleType, name: str, path: Path, given: Tensors, width: int, frac_bits: int
) -> tuple[Program, Tensors]:
    own = _as_tuple(getattr(module, "test_inputs", None))
    if not name and any(hasattr(module, defined) for defined in ("program", "make_program")):
        program = program_of(module, path)
        return program, given or own or example_tensors(program.examples)
    model, examples = model_of(module, name, path, given or own)
    program = compile_model(
        model,
        examples,
        weights="model-owner",
        inputs="data-owner",
        outputs="data-owner",
        width=width,
        frac_bits=frac_bits,
    )
    return program, _as_tuple(examples)


def _as_tuple(inputs: torch.Tensor | Examples | None) -> Tensors:
    return () if inputs is None else (inputs,) if isinstance(inputs, torch.Tensor) else example_tensors(inputs)


def _made_up(shape: list[int]) -> torch.Tensor:
    """Numbers of a normal distribution, the same in every call; nothing here hides anything."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def read_inputs(path: Path) -> Tensors:
    """The arrays of a file, reals as float32. Raises InputError, FileError."""
    tensors = [torch.from_numpy(array) for array in load_numbers(path)]
    return tuple(x.float() if x.is_floating_point() else x for x in tensors)
