"""The server: an ordinary ServerApp. One line is ours: the strategy around FedAvg."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from digits import task
from securemodel.federated import weighted_mean
from securemodel.federated.flower import SecureStrategy, insecure_local

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    images, labels = task.load(str(context.run_config["data"]))
    held_out = images[: task.HELD_OUT], labels[: task.HELD_OUT]

    def evaluate(_: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": task.accuracy({name: x.numpy() for name, x in arrays.items()}, *held_out)})

    aggregators = insecure_local(weighted_mean(), slots=10, limit=4.0, max_weight=1000)
    strategy = SecureStrategy(FedAvg(), aggregators, metrics={"loss": 10.0})
    arrays, rounds = ArrayRecord({name: Array(x) for name, x in task.new_model().items()}), context.run_config["rounds"]
    result = strategy.start(grid, arrays, num_rounds=int(rounds), evaluate_fn=evaluate)
    print(f"accuracy of the last round: {result.evaluate_metrics_serverapp[int(rounds)]['accuracy']:.2f}")
