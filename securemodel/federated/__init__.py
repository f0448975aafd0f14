"""Federated learning: clients share their updates with aggregators, who learn the aggregate and nothing else.

Clients need `securemodel.edge.updates` alone. Modules, bottom to top:

spool         a folder of uploads, read in place
uploads       the parts that one aggregator got, and who is in
aggregations  what can be aggregated
task          what is aggregated, of whom, by whom, within which bounds
stages        an aggregator's walk through a closed round
local         all aggregators in one process
"""

from securemodel.federated.aggregations import Aggregation, mean, weighted_mean
from securemodel.federated.local import LocalFederation, open_local
from securemodel.federated.task import Outcome, Task

__all__ = ["Aggregation", "LocalFederation", "Outcome", "Task", "mean", "open_local", "weighted_mean"]
