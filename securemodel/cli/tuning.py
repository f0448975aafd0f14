"""securemodel tune: no more bits than an owner's data needs, as a file that all parties compile with."""

from __future__ import annotations

from pathlib import Path

import click

from securemodel.cli.base import Command
from securemodel.cli.compare import program_and_inputs, read_inputs, warn_of
from securemodel.inspect.tuning import MARGIN
from securemodel.inspect.tuning import tune as tune_program
from securemodel.scripts import explained


@click.command(cls=Command, no_args_is_help=True)
@click.argument("target", metavar="FILE.py[:NAME]")
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Typical inputs: an .npy file, or an .npz file with one array for each input.",
)
@click.option("--tolerance", type=float, required=True, help="The largest error that a result may have on this data.")
@click.option(
    "--margin", default=MARGIN, show_default=True, help="By which factor later values may be larger than on this data."
)
@click.option("--guard", is_flag=True, help="Runs in which a value leaves its range end with an error at all parties.")
@click.option("--keep-tables", is_flag=True, help="Leave tables of smooth functions as they are.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the tuning here.")
@click.option("--program", type=click.Path(dir_okay=False, path_type=Path), help="Write the tuned program's text here.")
@click.option("--width", default=64, show_default=True, help="As for compile(), where the file has a model only.")
@click.option("--frac-bits", default=16, show_default=True, help="As for compile(), where the file has a model only.")
def tune(
    target: str,
    data: Path | None,
    tolerance: float,
    margin: float,
    guard: bool,
    keep_tables: bool,
    out: Path | None,
    program: Path | None,
    width: int,
    frac_bits: int,
) -> None:
    """Measure how large a model's values get on an owner's data, and spend no more bits than that.

    For data and weights that one owner has: everything is in the clear in this process, and nothing leaves it but the
    ranges, which all parties see. FILE.py defines `program`, make_program(), or what `securemodel check` takes. Inputs
    are those of --data, or `test_inputs` of the file, or else its example inputs. The script of all parties then says
    compile(..., tuned="FILE"). A value that leaves its range in a later run makes a wrong result, and nothing says so but
    a guard.

    \b
    Examples:
      securemodel tune infer.py --data typical.npz --tolerance 1e-3 --out infer.tuning
      securemodel tune infer.py --data typical.npz --tolerance 1e-3 --margin 8 --program program.txt
    """
    made, inputs, path = program_and_inputs(target, read_inputs(data) if data else (), width, frac_bits, "tuned")
    warn_of(inputs)
    with explained(path):
        found = tune_program(
            made, *inputs, tolerance=tolerance, margin=margin, guard=guard, tables=not keep_tables,
            progress=lambda line: click.echo(line, err=True),
        )  # fmt: skip
    click.echo(str(found))
    if out:
        found.save(out)
        click.echo(f"{out}: compile(..., tuned={str(out)!r}) at every party")
    if program:
        found.program.save(program)
        click.echo(f"{program}: the tuned program, {found.program.digest[:12]}")
