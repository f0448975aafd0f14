"""Flower apps whose server learns the aggregate and no update: two lines in an existing app.

The client's line is in `securemodel.edge.flower`. Modules, bottom to top:

records   PyTorch's state dicts as Flower's records
results   what clients are told of rounds whose aggregates they alone get
strategy  the server's side of a round
config    who the aggregators are
"""

from securemodel.federated.flower.config import insecure_local, relay
from securemodel.federated.flower.records import record_to_state, state_to_record
from securemodel.federated.flower.strategy import SecureStrategy

__all__ = ["SecureStrategy", "insecure_local", "record_to_state", "relay", "state_to_record"]
