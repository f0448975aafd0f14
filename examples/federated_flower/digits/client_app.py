"""A site: an ordinary ClientApp. One line is ours: the mod."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from digits import task
from securemodel.edge.flower import SecureMod

app = ClientApp(mods=[SecureMod(insecure_trust_server=True)])  # a simulation; elsewhere the aggregators' own keys


@app.train()
def train(message: Message, context: Context) -> Message:
    model = {name: array.numpy().copy() for name, array in message.content["arrays"].items()}
    site, sites = int(context.node_config["partition-id"]), int(context.node_config["num-partitions"])
    images, labels = task.of_site(str(context.run_config["data"]), site, sites)
    loss = task.train(model, images, labels)
    arrays = ArrayRecord({name: Array(x) for name, x in model.items()})
    metrics = MetricRecord({"num-examples": len(labels), "loss": loss})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)
