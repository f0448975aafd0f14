"""Who a Flower app's aggregators are."""

from __future__ import annotations

from typing import Any

from securemodel.edge.rounds import Layout
from securemodel.federated.aggregations import Aggregation
from securemodel.federated.flower.strategy import Aggregators, Opens
from securemodel.federated.local import open_local
from securemodel.federated.task import Task


def insecure_local(aggregation: Aggregation, *, slots: int, name: str = "flower", **options: Any) -> Opens:
    """All aggregators of a task in the server's own process, which so can put the shares together: for simulations.

    `slots`: how many clients a round has at most; `options` are those of `Task`, such as `limit` and `max_weight`.
    """

    def opens(layout: Layout) -> Aggregators:
        return open_local(Task(name, aggregation, layout, slots=slots, **options))

    return opens
