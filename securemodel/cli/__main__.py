"""`python -m securemodel.cli` is the `securemodel` command."""

from securemodel.cli.app import main

main(prog_name="securemodel")
