"""Federated learning: clients share their updates with aggregators, who learn the aggregate and nothing else.

Clients need `securemodel.edge.updates` alone. Modules, bottom to top:

noise         what every aggregator adds to an aggregate
budgets       how often a client may take part
spool         a folder of uploads, read in place
uploads       the parts that one aggregator got, and who is in
aggregations  what can be aggregated
blocks        updates piece by piece
projections   random projections of updates, and what they prove of them
programs      the small models that a task compiles
task          what is aggregated, of whom, by whom, within which bounds
stages        an aggregator's walk through a closed round
local         all aggregators in one process
scripts       a user's script of a federation, and all its rounds in one process
journal       what an aggregator must know after a restart
agreement     who is in, and when a result may be seen: the same at all aggregators
aggregator    one aggregator: parts of uploads, and meetings with the others
front         the same over HTTP, for clients
rounds        an aggregator as a process
"""

from securemodel.federated.aggregations import (
    Aggregation,
    custom,
    krum,
    mean,
    median,
    norm_bounded_mean,
    norm_histogram,
    trimmed_mean,
    weighted_mean,
)
from securemodel.federated.budgets import Budget
from securemodel.federated.local import LocalFederation, open_local
from securemodel.federated.noise import Protection
from securemodel.federated.task import Outcome, Task

__all__ = [
    "Aggregation", "Budget", "LocalFederation", "Outcome", "Protection", "Task", "custom", "krum", "mean", "median",
    "norm_bounded_mean", "norm_histogram", "open_local", "trimmed_mean", "weighted_mean",
]  # fmt: skip
