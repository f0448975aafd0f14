"""The command line. Modules, bottom to top:

base       what all commands share: exit codes, and errors printed without a traceback
script     reads facts out of a user's Python files, and runs one of them as a party
launch     all parties of a script as processes of this machine
tables     rows of inputs out of files
results    what `predict` keeps on disk
part       what one party brings to `predict`
commands   one file each: run, dealer, predict, keys, programs (plan, check, prepare), doctor
app        the `securemodel` command itself
"""

from securemodel.cli.app import main

__all__ = ["main"]
