#!/usr/bin/env bash
# Flower's FedAdam turns a model of float32 into one of float64 in its first round: from then on every message to a client
# has twice the bytes, and clients that reply in the type they got send twice as much, too. Its step size is a number of
# NumPy's float64, which since NumPy 2 makes a product with float32 arrays float64. FedAvg, FedAvgM, FedYogi and FedAdagrad
# keep float32, so nobody looks for it.
#   seen with flwr 1.42.0, numpy 2.4.6, CPython 3.11; a model of 1,000 float32, after one round:
#     FedAvg, FedAvgM, FedYogi, FedAdagrad   float32, 4,128 bytes
#     FedAdam                                float64, 8,128 bytes
# `securemodel.federated.flower.SecureStrategy` gives every array back in the type that it had.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet flwr==1.42.0 numpy==2.4.6
cat > "$folder/show.py" <<'PYTHON'
from importlib.metadata import version

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedYogi
from flwr.supercore.task_identity import TaskIdentity

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1  # as Flower's simulation sets them


class Grid:
    """Two nodes."""

    def get_node_ids(self):
        return [1, 2]


def record(x):
    return ArrayRecord({"w": Array(x.astype(np.float32))})


def after_a_round(strategy):
    messages = strategy.configure_train(1, record(np.zeros(1000)), ConfigRecord(), Grid())
    content = lambda: RecordDict({"arrays": record(np.ones(1000)), "metrics": MetricRecord({"num-examples": 1})})
    arrays, _ = strategy.aggregate_train(1, [Message(content(), reply_to=message) for message in messages])
    return arrays["w"]


print("flwr", version("flwr"), "numpy", version("numpy"))
found = {}
for strategy in (FedAvg(), FedAvgM(server_momentum=0.9), FedYogi(), FedAdagrad(), FedAdam()):
    made = after_a_round(strategy)
    found[type(strategy).__name__] = made.dtype
    print(type(strategy).__name__, made.dtype, len(made.data), "bytes")
assert found.pop("FedAdam") == "float64", found
assert set(found.values()) == {"float32"}, found
PYTHON
"$folder/venv/bin/python" "$folder/show.py"
