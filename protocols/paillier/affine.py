"""One party's matrix on rows of another party's encrypted numbers: y = A x + b for every row x.

The client holds the key and the rows, the server A and b, and the client alone learns y:
  client  sends Enc(x), several rows to a ciphertext                                          `AffineClient.request`
  server  computes Enc(A x + b), several outputs to a ciphertext, re-randomized               `AffineServer.reply`
  client  decrypts                                                                            `AffineClient.finish`

Numbers are multiples of 2^-frac_bits, outputs of 2^-2frac_bits. Limits on inputs and entries of A are public, so nothing
but the shape can be seen from a message. With K inputs, |A x| <= K * input_limit * weight_limit; b may be as large as
that, so an output has at most twice this magnitude, and a slot (`packing`) holds it.

Rounding: every |x_k| and |A_k| is off by at most 2^-(frac_bits+1), so y is off by at most
2^-(frac_bits+1) * sum over k of (|x_k| + |A_k| + 2^-(frac_bits+1)), and b adds 2^-(2frac_bits+1).

The client learns y to its last bit, and nothing else of A and b: what it decrypts are the slots that hold y, and the
blinding of the ciphertexts is fresh. The server sees ciphertexts. Both hold for parties that follow the protocol.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from protocols.errors import InputError, ProtocolError, explain
from protocols.paillier import fixed, wire
from protocols.paillier.cipher import encrypt, trivial
from protocols.paillier.keys import PrivateKey, PublicKey
from protocols.paillier.packing import Slots, slots_for
from protocols.paillier.pool import BlindingPool
from protocols.paillier.powers import linear
from protocols.paillier.tensor import PaillierTensor


@dataclass(frozen=True)
class AffineShape:
    """What both parties agree on; the layout of messages follows from it.

    shared: one A and b for all rows, which allows several rows in a ciphertext; otherwise each row has its own.
    bits: size of the key. Raises InputError for a key too small for one output.
    """

    inputs: int
    outputs: int
    rows: int
    frac_bits: int
    input_limit: float
    weight_limit: float
    bits: int
    shared: bool = True

    def __post_init__(self) -> None:
        if min(self.inputs, self.outputs, self.rows) < 1:
            raise InputError(
                f"AffineShape: {self.inputs} inputs, {self.outputs} outputs and {self.rows} rows: none may be 0"
            )
        slots_for(self.bits, self.bound)

    @property
    def bias_limit(self) -> float:
        """The largest magnitude in b."""
        return self.inputs * self.input_limit * self.weight_limit

    @property
    def bound(self) -> int:
        """The largest magnitude of an output as an integer."""
        inputs, weights = (fixed.magnitude(limit, self.frac_bits) for limit in (self.input_limit, self.weight_limit))
        return self.inputs * inputs * weights + fixed.magnitude(self.bias_limit, 2 * self.frac_bits)

    @cached_property
    def slot_width(self) -> int:
        """Bits of a slot."""
        return slots_for(self.bits, self.bound).width

    @cached_property
    def groups(self) -> int:
        """Ciphertexts for one input of all rows."""
        return -(-self.rows // slots_for(self.bits, self.bound).count) if self.shared else self.rows

    @cached_property
    def lanes(self) -> int:
        """Rows in a ciphertext, as many in each as in another."""
        return -(-self.rows // self.groups)

    @cached_property
    def merged(self) -> int:
        """Outputs in a ciphertext of the answer, each of `lanes` rows."""
        return min(slots_for(self.bits, self.bound).count // self.lanes, self.outputs * self.groups)

    @property
    def request_shape(self) -> tuple[int, int]:
        """Ciphertexts of the request."""
        return (self.groups, self.inputs)

    @property
    def reply_cells(self) -> int:
        """Ciphertexts of the answer."""
        return -(-self.outputs * self.groups // self.merged)

    @property
    def request_slots(self) -> Slots:
        """How the request is packed."""
        return Slots(self.slot_width, self.lanes)

    @property
    def reply_slots(self) -> Slots:
        """How the answer is packed."""
        return Slots(self.slot_width, self.lanes * self.merged)

    @property
    def input_bound(self) -> int:
        """The largest magnitude of an input as an integer."""
        return fixed.magnitude(self.input_limit, self.frac_bits)

    @property
    def request_bytes(self) -> int:
        """Bytes of the request; exact."""
        return wire.message_bytes(self.bits, self.request_shape, self.input_bound)

    @property
    def reply_bytes(self) -> int:
        """Bytes of the answer; exact."""
        return wire.message_bytes(self.bits, (self.reply_cells,), self.bound)


@dataclass(frozen=True, repr=False, eq=False)
class AffineClient:
    """The side that has the rows and the key."""

    key: PrivateKey
    shape: AffineShape

    def request(self, x: np.ndarray, context: str = "", pool: BlindingPool | None = None) -> bytes:
        """The message to the server: float[rows, inputs], encrypted. InputError for a number above the limit."""
        shape = self.shape
        if x.shape != (shape.rows, shape.inputs):
            raise InputError(f"AffineClient: {x.shape} numbers, expected {(shape.rows, shape.inputs)}")
        values = fixed.integers(x, shape.frac_bits, shape.input_limit, "encrypting the inputs")
        full = np.zeros((shape.groups * shape.lanes, shape.inputs), np.int64)
        full[: shape.rows] = values
        slots = shape.request_slots
        columns = [slots.pack(column) for column in full.T.tolist()]
        plain = [plain for group in zip(*columns, strict=True) for plain in group]
        cells = encrypt(self.key, plain, pool.take(len(plain)) if pool is not None else None)
        public = self.key.public
        sent = PaillierTensor(
            public, cells.reshape(*shape.request_shape, *public.residues.cell), shape.frac_bits, shape.input_bound,
            slots, len(full), True,
        )  # fmt: skip
        return wire.write(sent, context + "/request")

    def finish(self, reply: bytes, context: str = "") -> np.ndarray:
        """float64[rows, outputs] from the server's message. Raises ProtocolError for another message."""
        shape = self.shape
        answer = wire.read(reply, self.key.public, context + "/reply")
        count = shape.outputs * shape.groups * shape.lanes
        if (answer.slots, answer.shape, answer.frac_bits) != (shape.reply_slots, (count,), 2 * shape.frac_bits):
            raise _misfit("answer", answer)
        try:
            values = answer.decrypt(self.key)
        except InputError as error:
            raise ProtocolError(str(error)) from None
        rows = values.reshape(shape.outputs, shape.groups * shape.lanes).T
        return np.ascontiguousarray(rows[: shape.rows])


@dataclass(eq=False, repr=False)
class AffineServer:
    """The side that knows the matrix.

    matrix: float[outputs, inputs], bias: float[outputs]; with an axis of rows in front where they are not shared.
    Raises InputError for a number above its limit.
    """

    shape: AffineShape
    matrix: np.ndarray
    bias: np.ndarray
    _weights: np.ndarray = field(init=False)
    _added: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        shape, rows = self.shape, () if self.shape.shared else (self.shape.rows,)
        expected = ((*rows, shape.outputs, shape.inputs), (*rows, shape.outputs))
        if (self.matrix.shape, self.bias.shape) != expected:
            raise InputError(f"AffineServer: shapes {self.matrix.shape} and {self.bias.shape}, expected {expected}")
        what = "weights, with all linear layers multiplied out into one matrix"
        self._weights = fixed.integers(self.matrix, shape.frac_bits, shape.weight_limit, what)
        self._added = fixed.integers(self.bias, 2 * shape.frac_bits, shape.bias_limit, "sum of all biases")

    def reply(self, key: PublicKey, request: bytes, context: str = "", pool: BlindingPool | None = None) -> bytes:
        """The message to the client. Raises ProtocolError for another message than the client's."""
        shape, residues = self.shape, key.residues
        asked = wire.read(request, key, context + "/request")
        if (asked.slots, asked.cell_shape, asked.frac_bits, asked.bound) != (
            shape.request_slots, shape.request_shape, shape.frac_bits, shape.input_bound,
        ):  # fmt: skip
            raise _misfit("request", asked)
        bases = np.moveaxis(asked.cells, 1, 0)
        limit = fixed.magnitude(shape.weight_limit, shape.frac_bits)
        if shape.shared:
            made = linear(residues, bases, self._weights, limit)
        else:
            rows = enumerate(self._weights)
            made = np.concatenate([linear(residues, bases[:, r : r + 1], w, limit) for r, w in rows], axis=1)
        merged = self._merge(key, made.reshape(-1, *residues.cell))
        cells = residues.multiply(merged, trivial(key, shape.reply_slots.pack(self._biases())))
        count = shape.outputs * shape.groups * shape.lanes
        answer = PaillierTensor(key, cells, 2 * shape.frac_bits, shape.bound, shape.reply_slots, count)
        return wire.write(answer, context + "/reply", pool)

    def _merge(self, key: PublicKey, flat: np.ndarray) -> np.ndarray:
        """[outputs * groups, *cell] as [reply_cells, *cell]: later ones shifted up and multiplied in (Horner)."""
        shape, residues = self.shape, key.residues
        if shape.merged == 1:
            return flat
        index = np.zeros(shape.reply_cells * shape.merged, np.int32)
        index[: len(flat)] = np.arange(1, len(flat) + 1)
        index = np.ascontiguousarray(index.reshape(shape.reply_cells, shape.merged, 1)[:, ::-1])
        table = np.concatenate([residues.ones(1), flat])
        return residues.products(table, index, shape.slot_width * shape.lanes)

    def _biases(self) -> list[int]:
        """What is added to each slot of the answer, in order."""
        shape = self.shape
        by_row = self._added.T if not shape.shared else self._added[:, None].repeat(shape.groups, 1)
        return by_row[..., None].repeat(shape.lanes, 2).reshape(-1).tolist()


def _misfit(what: str, tensor: PaillierTensor) -> ProtocolError:
    fix = "compile the same program at both parties"
    return ProtocolError(explain(f"the {what} does not fit the program", why=f"it is {tensor!r}", fix=fix))
