"""One party's walk through steps of a linear model's training: a coroutine that computes, and yields when it must talk.

Rows of the data are sent encrypted once, when a step first reads them; which row is which is public. A step has a round
each way for scores, for the polynomial and for gradients, in which both parties do the same at the same time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from protocols.channel import Label, Purpose
from protocols.errors import InputError, Mismatch, explain
from protocols.paillier import PrivateKey, PublicKey, fixed, wire
from protocols.paillier.share_gates import Integers, integers, rounded
from securemodel.engines.paillier.linear_step import (
    DIGEST_BYTES,
    GUARD_BYTES,
    INPUT_BITS,
    RATE_BITS,
    RESIDUAL_BITS,
    SCORE_BITS,
    WEIGHT_BITS,
    LinearStep,
)
from securemodel.engines.paillier.party import blaming
from securemodel.engines.walk import Steps, Talk

_LIMB_BITS = 62


class Trainer:
    """A party: its share of all weights, int[columns, outputs] with those of the first party in front, and its key.

    `step` is about numbers alone: X float[rows, columns] of this party, labels float[rows, outputs] or None.
    """

    def __init__(self, shape: LinearStep, me: str, peer: str, rank: int, key: PrivateKey, theirs: PublicKey) -> None:
        self.shape, self.me, self.peer, self.rank = shape, me, peer, rank
        self.key, self.theirs = key, theirs
        self.share: Integers = integers([[0] * shape.outputs] * sum(shape.columns))
        self._rows: dict[int, np.ndarray] = {}  # the other's, encrypted
        self._sent: set[int] = set()

    def __repr__(self) -> str:
        return f"Trainer({self.me!r}, {self.shape.kind}, {list(self.shape.columns)} columns, {self.key!r})"

    # ---- weights
    def begin(self, weights: np.ndarray) -> None:
        """Public starting weights, float[columns, outputs]."""
        start = np.rint(np.asarray(weights, dtype=np.float64) * 2.0**WEIGHT_BITS)
        scale = 0 if self.rank else 1
        self.share = integers([[int(v) * scale for v in row] for row in start.tolist()])

    @property
    def kept(self) -> dict[str, torch.Tensor]:
        """This party's share of the weights as int64[limbs, columns, outputs], lowest first: for checkpoints."""
        count = -(-(self.shape.weight_share_bits + 1) // _LIMB_BITS)
        low, rest, limbs = (1 << _LIMB_BITS) - 1, self.share, []
        for _ in range(count - 1):
            limbs.append(rest & low)
            rest = rest >> _LIMB_BITS
        return {"weights": torch.from_numpy(np.stack([*limbs, rest]).astype(np.int64))}

    @kept.setter
    def kept(self, given: dict[str, torch.Tensor]) -> None:
        self.share = from_limbs(given["weights"])

    def fresh(self, times: int) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps: every step gives both parties new shares, so nothing needs to be hidden again."""
        return self.kept

    # ---- a step
    def step(
        self, epoch: int, x: torch.Tensor, labels: torch.Tensor | None, rate: float, decay: float,
        rows: Sequence[int] | None, guard: bool,
    ) -> Steps[float | None]:  # fmt: skip
        """One step with this rate (of the sum of all gradients) and decay. `rows`: which these are, None for new ones.

        Returns the sum of t^2 where `guard` asks for it. Raises InputError, PeerError.
        """
        shape, mine = self.shape, self._inputs(x)
        y = None if labels is None else self._labels(labels)
        if any(abs(v) >> shape.weight_share_bits for v in self.share.reshape(-1)):
            raise InputError(explain("this training has gone on for too many steps", fix="export, and begin another"))
        digest = hashlib.sha256(repr((float(rate), float(decay), rows, guard)).encode()).digest()[:DIGEST_BYTES]
        scores = yield from self._scores(epoch, mine, digest, rows)
        t = rounded(scores, shape.score_shift)
        seen = (yield from self._guard(epoch, t)) if guard else None
        residuals = t if shape.kind == "linear" else (yield from self._sigmoid(epoch, t))
        if y is not None:
            residuals = residuals - y
        gradients = yield from self._gradients(epoch, mine, residuals)
        self._update(gradients, rate, decay)
        return seen

    def _inputs(self, x: torch.Tensor) -> Integers:
        return self._fixed(x, INPUT_BITS, self.shape.input_limit, "inputs", "input_limit")

    def _labels(self, y: torch.Tensor) -> Integers:
        limit = self.shape.score_limit if self.shape.kind == "linear" else 1
        return self._fixed(y, RESIDUAL_BITS, limit, "labels", "score_limit")

    def _fixed(self, x: torch.Tensor, bits: int, limit: float, what: str, option: str) -> Integers:
        try:
            made = fixed.integers(x.detach().double().numpy(), bits, limit, what)
        except InputError:
            fix = f"standardize the columns, or compile with a larger {option} at both parties"
            why = f"one is not finite or above {limit:g}"
            text = explain(f"party {self.me!r} has {what} that the step has no room for", why=why, fix=fix)
            raise InputError(text) from None
        return made.astype(object)

    def _columns(self, owner: int) -> slice:
        first, second = self.shape.columns
        return slice(0, first) if owner == 0 else slice(first, first + second)

    def _scores(self, epoch: int, x: Integers, digest: bytes, rows: Sequence[int] | None):
        """Shares of X w [rows, outputs], and the rows of the other party for the gradients."""
        other, shape = 1 - self.rank, self.shape
        mine, theirs = shape.scores(self.rank), shape.scores(other)
        new = [at for at in range(shape.rows) if rows is None or rows[at] not in self._sent]
        cells = [mine.seal(self.key, x), mine.seal_own(self.key, x, self.share[self._columns(self.rank)])]
        if new:
            cells.append(shape.gradients(self.rank).seal(self.key, x[new].T))
        groups = shape.gradients(other).column.cells
        count = theirs.inputs * theirs.column.cells + theirs.own_cells + len(new) * groups
        where = Label(epoch, 0, Purpose.START)
        got = yield from self._swap(where, self.key.public, cells, count, digest)
        first, second = theirs.inputs * theirs.column.cells, count - len(new) * groups
        cell = self.theirs.residues.cell
        arrived = got[second:].reshape(len(new), groups, *cell)
        held = dict(zip(new, arrived, strict=True))
        if rows is not None:
            self._rows.update((rows[at], part) for at, part in held.items())
            self._sent.update(rows)
            held = {at: self._rows[row] for at, row in enumerate(rows)}
        self._batch = np.stack([held[at] for at in range(shape.rows)])
        sealed = got[:first].reshape(theirs.inputs, theirs.column.cells, *cell)
        reply, kept = theirs.answer(self.theirs, sealed, got[first:second], self.share[self._columns(other)])
        back = yield from self._swap(Label(epoch, 1, Purpose.TRANSFER), self.theirs, [reply], mine.own_cells)
        return self._opened(epoch, mine, back) + kept

    def _sigmoid(self, epoch: int, t: Integers):
        """Shares of p(t) + 1/2."""
        shape, flat = self.shape, t.reshape(-1)
        if shape.degree == 1:
            made = flat * shape.coefficients[1]
        else:
            made = yield from self._polynomial(epoch, flat)
        made = rounded(made.reshape(t.shape), shape.polynomial_shift)
        return made + (1 << RESIDUAL_BITS - 1) if self.rank == 0 else made

    def _polynomial(self, epoch: int, t: Integers):
        shape, other = self.shape, 1 - self.rank
        mine, theirs = shape.polynomial(self.rank), shape.polynomial(other)
        sealed = [mine.seal(self.key, t[shape.part(self.rank)].tolist())] if mine else []
        count = theirs.sealed_cells if theirs else 0
        got = yield from self._swap(Label(epoch, 2, Purpose.TRANSFER), self.key.public, sealed, count)
        reply, kept = theirs.answer(self.theirs, got, t[shape.part(other)].tolist()) if theirs else (None, [])
        count = mine.reply.cells if mine else 0
        back = yield from self._swap(
            Label(epoch, 3, Purpose.TRANSFER), self.theirs, [] if reply is None else [reply], count
        )
        made = integers([0] * len(t))
        if mine:
            made[shape.part(self.rank)] = self._opened(epoch, mine, back)
        made[shape.part(other)] = kept
        return made

    def _gradients(self, epoch: int, x: Integers, residuals: Integers):
        """Shares of X^T r [columns, outputs] of both parties' columns."""
        other = 1 - self.rank
        mine, theirs = self.shape.gradients(self.rank), self.shape.gradients(other)
        own = [mine.seal_own(self.key, x.T, residuals)]
        got = yield from self._swap(Label(epoch, 4, Purpose.TRANSFER), self.key.public, own, theirs.own_cells)
        reply, kept = theirs.answer(self.theirs, self._batch, got, residuals)
        back = yield from self._swap(Label(epoch, 5, Purpose.TRANSFER), self.theirs, [reply], mine.own_cells)
        parts = [self._opened(epoch, mine, back), kept]
        return np.concatenate(parts if self.rank == 0 else parts[::-1])

    def _update(self, gradients: Integers, rate: float, decay: float) -> None:
        """w - rate (gradient + decay w), with one rounding."""
        shift = self.shape.update_shift
        step = round(rate * 2**RATE_BITS)
        shrink = round(decay * 2**shift)
        self.share = self.share - rounded(gradients * step + self.share * shrink, shift)

    def _guard(self, epoch: int, t: Integers):
        """The sum of t^2, which both parties learn: below 1, every score was in the interval."""
        gate, flat = self.shape.guard, t.reshape(-1)
        squares = sum(v * v for v in flat)
        if self.rank == 0:
            row = flat.reshape(1, -1)
            sealed = [gate.seal(self.key, row), gate.seal_own(self.key, row, flat.reshape(-1, 1))]
            yield from self._swap(Label(epoch, 6, Purpose.TRANSFER), self.key.public, sealed, 0)
            back = yield from self._swap(Label(epoch, 7, Purpose.TRANSFER), self.theirs, [], gate.own_cells)
            mine = int(self._opened(epoch, gate, back)[0, 0])
        else:
            count = gate.inputs * gate.column.cells
            got = yield from self._swap(Label(epoch, 6, Purpose.TRANSFER), self.key.public, [], count + gate.own_cells)
            theirs = got[:count].reshape(gate.inputs, gate.column.cells, *self.theirs.residues.cell)
            reply, kept = gate.answer(self.theirs, theirs, got[count:], 2 * flat.reshape(-1, 1))
            yield from self._swap(Label(epoch, 7, Purpose.TRANSFER), self.theirs, [reply], 0)
            mine = int(kept[0, 0]) + squares
        data = mine.to_bytes(GUARD_BYTES, "little", signed=True)
        got = yield Talk(Label(epoch, 8, Purpose.REVEAL), {self.peer: [data]}, {self.peer: GUARD_BYTES})
        whole = mine + int.from_bytes(got[self.peer].numpy().tobytes(), "little", signed=True)
        return whole / 4.0**SCORE_BITS

    # ---- messages
    def _swap(
        self, label: Label, key: PublicKey, cells: Sequence[np.ndarray], count: int, digest: bytes = b""
    ) -> Steps[np.ndarray]:
        """Sends ciphertexts of one key, and gets `count` of the other; `digest`: public numbers that both must have."""
        other = self.theirs if key == self.key.public else self.key.public
        data = [digest] + [wire.ciphertext_bytes(key, part) for part in cells]
        sends = {self.peer: data} if cells or digest else {}
        size = len(digest) + count * other.cipher_bytes
        got = yield Talk(label, sends, {self.peer: size} if size else {})
        if not size:
            return other.residues.ones(0)
        received = got[self.peer].numpy().tobytes()
        if received[: len(digest)] != digest:
            fix = "run the same script with the same schedule and data sizes at both"
            what = f"party {self.peer!r} makes this step with another rate, decay or order of rows"
            raise Mismatch(self.peer, explain(what, where="first message of a step", fix=fix))
        with blaming(self.peer, str(label)):
            return wire.read_ciphertexts(other, received[len(digest) :])

    def _opened(self, epoch: int, gate, cells: np.ndarray):
        with blaming(self.peer, f"a reply of step {epoch}"):
            return gate.opened(self.key, cells)


def from_limbs(limbs: torch.Tensor) -> Integers:
    """The integers in limbs as `Trainer.kept` has them."""
    return sum(limb << _LIMB_BITS * at for at, limb in enumerate(limbs.numpy().astype(object)))
