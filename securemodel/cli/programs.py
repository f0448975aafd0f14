"""securemodel plan, check and prepare: what can be done with a program or a model before anything runs."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import click
import torch
from rich.progress import Progress

from protocols.errors import InputError, explain
from protocols.names import PUBLIC
from securemodel.api import ENGINES, compile_again
from securemodel.api import check as check_model
from securemodel.cli.base import FAILED, Command
from securemodel.cli.dealing import max_gib_option
from securemodel.compiler.capture import Examples
from securemodel.compiler.ops import MAX_PROGRAM_BYTES
from securemodel.compiler.owners import weight_owners
from securemodel.engines.masked.store import prepare as prepare_stores
from securemodel.program import Program
from securemodel.scripts import explained, load_file
from securemodel.training.job import Job
from securemodel.training.paillier import LinearTraining
from securemodel.training.stores import prepare_training
from securemodel.training.training import Training

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def load_program(path: Path, max_bytes: int = MAX_PROGRAM_BYTES) -> Program:
    """A program from the text `Program.save` wrote, or from a Python file's `program` or `make_program()`.

    Raises ProgramError, InputError, ScriptFailed.
    """
    made = load_target(path, max_bytes)
    return made.program if isinstance(made, Job) else made


def load_target(path: Path, max_bytes: int = MAX_PROGRAM_BYTES) -> Program | Training | LinearTraining:
    """A program as load_program() finds it, or else the training of a Python file's `job` or `make_job()`.

    Raises ProgramError, InputError, ScriptFailed.
    """
    if path.suffix != ".py":
        return Program.load(path, max_bytes)
    module = load_file(path)
    return job_of(module, path) or program_of(module, path)


def program_of(module: ModuleType, path: Path) -> Program:
    """The `program` of a file, or what its make_program() returns. Raises InputError, ScriptFailed."""
    found = _defined(module, path, "program")
    if not isinstance(found, Program):
        raise InputError(
            explain(
                "this file defines no program",
                where=str(path),
                why="it has neither `program = securemodel.compile(...)` nor a make_program() that returns one, "
                "and no job or make_job() of a training",
                fix="add one of them, or give a file written by Program.save()",
            )
        )
    return found


def weights_of(module: object, script: Path, program: Program, me: str) -> torch.nn.Module | None:
    """The model with the weights of this party, if it owns any. Raises InputError, ScriptFailed."""
    if not {me, PUBLIC} & set(weight_owners(program.header.weights)):
        return None
    load = getattr(module, "load_model", None)
    if not callable(load):
        return program.model
    with explained(script):
        model = load(me)
    if not isinstance(model, torch.nn.Module):
        raise InputError(explain("load_model() returns no model", where=str(script), fix="return an nn.Module"))
    return model


def job_of(module: ModuleType, path: Path) -> Training | LinearTraining | None:
    """The `job` of a training script, or what its make_job() returns; None where it has neither. Raises ScriptFailed."""
    found = None if hasattr(module, "program") else _defined(module, path, "job")
    return found if isinstance(found, Training | LinearTraining) else None


def _defined(module: ModuleType, path: Path, name: str) -> Any:
    """What a file calls `name`, or what its function make_`name` returns."""
    found, make = getattr(module, name, None), getattr(module, f"make_{name}", None)
    if found is None and callable(make):
        with explained(path):
            found = make()
    return found


@click.command(cls=Command, no_args_is_help=True)
@click.argument("program", metavar="SCRIPT_OR_PROGRAM", type=_FILE)
@click.option("--network", default="lan", show_default=True, help="lan or wan: what the time is predicted for.")
@click.option(
    "--protocol",
    type=click.Choice(list(ENGINES)),
    help="Plan the same model for this protocol; by default that of the program.",
)
def plan(program: Path, network: str, protocol: str | None) -> None:
    """Print what a run costs: rounds, bytes, preprocessing, memory and predicted time.

    SCRIPT_OR_PROGRAM is a text written by Program.save(), or a Python file that defines `program` or a function
    make_program(), or of a training `job` or make_job(). A Python file is imported, which runs what is outside
    `if __name__ == "__main__"`.

    \b
    Examples:
      securemodel plan program.txt
      securemodel plan infer.py --network wan
      securemodel plan infer.py --protocol paillier
    """
    made = load_target(program)
    if isinstance(made, Job):
        if protocol:
            raise click.UsageError("the protocol of a training is an argument of its compile_training().")
    elif protocol and protocol != made.protocol:
        made = compile_again(made, protocol)
    click.echo(str(made.plan(network)))


@click.command(cls=Command, no_args_is_help=True)
@click.argument("targets", metavar="FILE.py[:NAME]...", nargs=-1, required=True)
@click.option(
    "--shape",
    "shapes",
    multiple=True,
    metavar="N,N,...",
    help="Shape of an input if the file has no example; repeatable.",
)
@click.option(
    "--protocol",
    type=click.Choice(list(ENGINES)),
    default="masked",
    show_default=True,
    help="What is to run the model.",
)
@click.option(
    "--range",
    "ranges",
    type=(float, float),
    default=None,
    metavar="LEAST LARGEST",
    help="What all inputs lie in, for the layers whose values may leave the ring.",
)
def check(targets: tuple[str, ...], shapes: tuple[str, ...], protocol: str, ranges: tuple[float, float] | None) -> None:
    """Say which operators of a model have no secure version, where they are and what to do.

    Also lists the first layers whose values are not shown to fit the ring. NAME is a model or a class of models in the file, with `example_inputs` beside it or --shape; or a function that
    returns a model and its example inputs. Without NAME, `model` is taken, or else make_model(), or the step of a
    training's `job` or make_job(). The file is imported, which runs what is outside `if __name__ == "__main__"`. Ends
    with 1 if something is not supported.

    \b
    Examples:
      securemodel check my_model.py
      securemodel check model.py:LeNet5 --shape 1,1,28,28
      securemodel check my_model.py --protocol crypten
      securemodel check my_model.py --range -3 3
    """
    given = tuple(torch.zeros(sizes(shape)) for shape in shapes)
    reports = []
    for target in targets:
        path, name = path_and_name(target)
        module = load_file(path)
        if not name and (job := job_of(module, path)):
            reports.append(job.check())
        else:
            reports.append(check_model(*model_of(module, name, path, given), protocol=protocol, ranges=ranges))
    for report in reports:
        click.echo(str(report))
    if not all(reports):
        click.get_current_context().exit(FAILED)


def sizes(shape: str) -> list[int]:
    """The numbers of a shape as it is written on the command line."""
    try:
        return list(torch.empty([int(size) for size in shape.split(",")], device="meta").shape)
    except (ValueError, RuntimeError):
        raise click.BadParameter(f"{shape!r} is not a shape; write 1,3,224,224", param_hint="--shape") from None


def path_and_name(target: str) -> tuple[Path, str]:
    """The file of a target FILE.py[:NAME], and the name or nothing."""
    file, name = target.rpartition(":")[::2] if ".py:" in target else (target, "")
    path = Path(file)
    if not path.is_file():
        raise click.BadParameter(f"there is no file {file!r}", param_hint="FILE.py[:NAME]")
    return path, name


def model_of(
    module: ModuleType, name: str, path: Path, given: tuple[torch.Tensor, ...]
) -> tuple[torch.nn.Module, Examples]:
    """A model of a file, and example inputs. Raises InputError, ScriptFailed."""
    if not name:
        name = "model" if hasattr(module, "model") else "make_model"
    found, examples = getattr(module, name, None), given or getattr(module, "example_inputs", None)
    with explained(path):
        if isinstance(found, type) and issubclass(found, torch.nn.Module):
            found = found().eval()
        elif callable(found) and not isinstance(found, torch.nn.Module):
            found, made = _pair(found(), name, path)
            examples = given or made
    if not isinstance(found, torch.nn.Module):
        fix = "name a model, a class of models, or a function that returns (model, example_inputs)"
        raise InputError(explain(f"{name!r} is not a model", where=str(path), fix=fix))
    if examples is None:
        fix = "define example_inputs in the file, or give --shape"
        raise InputError(explain(f"no example inputs for {name!r}", where=str(path), fix=fix))
    return found, examples


def _pair(made: Any, name: str, path: Path) -> tuple[Any, Any]:
    if isinstance(made, tuple) and len(made) == 2:
        return made
    if isinstance(made, torch.nn.Module):
        return made, None
    fix = "return (model, example_inputs)"
    raise InputError(explain(f"{name}() does not return a model and its example inputs", where=str(path), fix=fix))


@click.command(cls=Command, no_args_is_help=True)
@click.argument("program", metavar="PROGRAM", type=_FILE)
@click.option(
    "--count", required=True, type=click.IntRange(min=1), help="How many runs to prepare for; of a training, steps."
)
@click.option("--out", required=True, type=click.Path(file_okay=False, path_type=Path), help="A new folder.")
@max_gib_option
def prepare(program: Path, count: int, out: Path, max_gib: float) -> None:
    """Make correlated randomness beforehand, so that no dealer is needed during a session.

    PROGRAM is what `securemodel plan` takes too: a text written by Program.save(), or a Python file. Whoever runs
    this command is the dealer: give each party its own folder over a safe way, and delete the rest. Every
    prepared run is used once. For the script of a training, there is preprocessing for the steps, for the guards among
    them, and for an evaluation after each epoch.

    \b
    Example:
      securemodel prepare program.txt --count 100 --out prepared
      securemodel run infer.py --me bank --config parties.toml --store prepared/bank
      securemodel prepare train.py --count 1000 --out prepared
      securemodel train train.py --me bank --config parties.toml --store prepared/bank
    """
    made = load_target(program, int(max_gib * 2**30))
    with Progress(transient=True) as progress:
        task = progress.add_task("preparing", total=count)
        done = lambda count: progress.update(task, completed=count)
        if isinstance(made, Job):
            folders, what = prepare_training(made, count, out, done), "steps"
        else:
            folders, what = prepare_stores(made, count, out, done), "runs"
    for name, folder in folders.items():
        size = sum(file.stat().st_size for file in folder.rglob("*"))
        click.echo(f"{name}: {folder} ({count} {what}, {size / 1e6:.1f} MB)")
    click.echo("Each folder is secret: bring it to its own party only, and delete it here.")
