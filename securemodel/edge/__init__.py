"""A small client of an inference service: it splits inputs into shares, asks every party, and adds the answers' shares.

Needs numpy and the standard library; `cryptography`, where it is there, makes uploads smaller. Modules, bottom to top:

errors        what can go wrong, in one tree
sharing       numbers into shares and back
wire          what client and parties send each other
sealing       shares sealed to each party, where one passes on those of the others
recipe        what a client does to its input before it is shared
service_file  service.json: parties, models, what to trust
lines         connections to one party: TLS, fingerprints, time limits
client        asks a service
rounds        what a model update is made of, and the card of a round of federated learning
updates       a client's model update in shares
federation    the aggregators of a federation: card, upload, result
"""

from securemodel.edge.client import Client, Result
from securemodel.edge.errors import Disagreement, EdgeError, InputError, PartyDown, Refused, ServiceError, WireError

__all__ = [
    "Client", "Disagreement", "EdgeError", "InputError", "PartyDown", "Refused", "Result", "ServiceError", "WireError",
]  # fmt: skip
