"""The command line. Modules, bottom to top:

base       what all commands share: exit codes, and errors printed without a traceback
script     reads facts out of a user's Python files, and runs one of them as a party
processes  commands as processes of this machine
launch     all parties of a script as such processes
results    what `predict` keeps on disk
part       what one party brings to `predict`
commands   one file each, but for programs (plan, check, prepare) and serve (publish, drain, status, key)
app        the `securemodel` command itself; it imports a command when it is asked for
"""

from securemodel.cli.app import main

__all__ = ["main"]
