#!/usr/bin/env bash
# Flower's differential privacy does not clip parameters without axes (a temperature, a learned scale): the update of such
# a parameter leaves the client at any size, whatever `clipping_norm` is. The difference of two arrays without axes is a
# number of NumPy, and `array *= factor` then makes a new number instead of changing the list's. The noise is that of the
# clipping norm, so privacy is lost without a word, for all three: fixedclipping_mod, adaptiveclipping_mod, LocalDpMod.
# And a client whose update is zero (nothing to learn, a frozen model) ends in a ZeroDivisionError, as its norm is.
#   seen with flwr 1.42.0, numpy 2.4.6, CPython 3.11; all parameters are 0 before and 100 after, clipping_norm=1:
#     w (4 numbers)   0.4472 each
#     scale           100.0
#     w unchanged     ZeroDivisionError: float division by zero
# `securemodel.federated` encodes every number of an update, with axes or without, and its norm is over all of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet flwr==1.42.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
from importlib.metadata import version

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict, UserConfig
from flwr.clientapp.mod import fixedclipping_mod
from flwr.supercore.differential_privacy import KEY_CLIPPING_NORM
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as Flower's simulation sets them


def clipped(model, moved_by):
    """What leaves a client that changes every parameter by the same number."""

    def train(message, _):
        arrays = {name: Array(np.asarray(x.numpy() + moved_by, np.float32)) for name, x in message.content["arrays"].items()}
        return Message(RecordDict({"arrays": ArrayRecord(arrays)}), reply_to=message)

    arrays = ArrayRecord({name: Array(np.asarray(x, np.float32)) for name, x in model.items()})
    content = RecordDict({"arrays": arrays, "config": ConfigRecord({KEY_CLIPPING_NORM: 1.0})})
    context = Context(1, 2, UserConfig(), RecordDict(), UserConfig())
    reply = fixedclipping_mod(Message(content, 2, "train"), context, train)
    return {name: x.numpy() for name, x in reply.content["arrays"].items()}


print("flwr", version("flwr"), "numpy", version("numpy"))
found = clipped({"w": np.zeros(4), "scale": 0.0}, 100.0)
print({name: x.tolist() for name, x in found.items()})
assert np.abs(found["w"]).max() < 0.5
assert found["scale"] == 100.0, found
try:
    clipped({"w": np.zeros(4)}, 0.0)
except ZeroDivisionError as error:
    print("no change:", type(error).__name__, error)
else:
    raise AssertionError("an update of zero is clipped now")
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
