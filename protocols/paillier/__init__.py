"""Computing on numbers encrypted under one party's Paillier key. Needs `gmpy2`.

What it protects and what it costs: docs/paillier.md. Modules, bottom to top:
  residues     products modulo one large number, many at a time
  powers       powers of a fixed base, of many bases, and products of powers
  keys         key pairs and their checks
  keyfile      keys as text
  cipher       encryption and decryption of integers
  pool         blinding factors made ahead of time
  packing      several integers in one plaintext
  fixed        real numbers as integers with a bound
  patches      linear layers as matrix products of places in their input
  tensor       arrays of encrypted numbers
  wire         encrypted arrays as bytes
  affine       one party's matrix on packed rows of the other's encrypted numbers
  linear_gate  a party's linear layer on the other party's share
  long_powers  products of powers with long exponents, several in one plaintext
  share_gates  products and polynomials of integers in shares of two parties
  phe_interop  python-paillier's keys and numbers (optional, GPLv3)
"""

from protocols.errors import ConfigError, explain

try:
    import gmpy2  # noqa: F401
except ImportError as error:
    raise ConfigError(explain("the Paillier engine needs gmpy2", fix="pip install gmpy2")) from error

from protocols.paillier.keyfile import dump_private, dump_public, load_private, load_public, save_private
from protocols.paillier.keys import PrivateKey, PublicKey, generate
from protocols.paillier.pool import BlindingPool
from protocols.paillier.tensor import PaillierTensor, encrypt_array, slot_bits_for
from protocols.paillier.wire import read, write

__all__ = [
    "BlindingPool", "PaillierTensor", "PrivateKey", "PublicKey", "dump_private", "dump_public", "encrypt_array",
    "generate", "load_private", "load_public", "read", "save_private", "slot_bits_for", "write",
]  # fmt: skip
