"""The `securemodel` command: its subcommands, and what it says about itself."""

from __future__ import annotations

import click

import securemodel
from securemodel.cli import (
    align,
    auditing,
    compare,
    describe,
    doctor,
    edge,
    evaluate,
    keys,
    page,
    predict,
    programs,
    run,
    serve,
    train,
)
from securemodel.cli.base import print_anywhere


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(securemodel.__version__, prog_name="securemodel")
def main() -> None:
    """Run PyTorch models on data that none of the parties shows to another.

    \b
    Start here:
      securemodel doctor                      is this installation sound?
      securemodel check model.py              can this model be run securely?
      securemodel compare model.py            is it as precise as in float?
      securemodel plan infer.py               what will a run cost?
      securemodel run infer.py --local        all parties on this machine
      securemodel run infer.py --me bank --config parties.toml
      securemodel train train.py --local      joint training, all parties on this machine
      securemodel share train.py --me NAME    share rows for a training, and leave
      securemodel align joint.toml --local    which rows of several files belong together
      securemodel describe joint.toml --local count, mean, deviation and quantiles of a joint table
      securemodel evaluate score.py --local   metrics of a model on joint rows, and a report
      securemodel serve service.toml --local  a service that strangers ask
      securemodel predict infer.py --local --input patients.csv --output risks.csv
      securemodel edge gateway service.json   ordinary clients ask a service of others
      securemodel page verify service.json    do all parties serve the same web page?
    """
    print_anywhere()


for command in (
    run.run,
    train.train,
    train.share,
    align.align_command,
    describe.describe_command,
    evaluate.evaluate_command,
    predict.predict,
    run.dealer,
    keys.keys,
    programs.prepare,
    programs.plan,
    programs.check,
    compare.compare,
    auditing.audit,
    edge.edge,
    page.page,
    serve.serve,
    serve.publish,
    serve.drain,
    serve.status,
    serve.key,
    doctor.doctor,
):
    main.add_command(command)
