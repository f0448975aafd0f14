"""Random projections of an update, and what they prove of it.

After all uploads are in, the aggregators toss a public matrix R with entries -1, 0 and 1 of probabilities 1/4, 1/2 and 1/4,
and compute y = R x of each update x on their shares. With B the bound of an honest update's norm, in units of the ring, a
small program checks |y_k| <= T for all K rows and, where norms matter, y_1^2 + … + y_K^2 <= limit. docs/federated-checks.md
has the proofs; these are the claims:

range     for every x with a coordinate beyond 2 T, as a signed ring element: it passes with probability at most 2^-K.
complete  an update of norm at most B is dropped with probability at most 2^-SAFETY: y_k is subgaussian with variance proxy
          B^2 / 2, so that |y_k| > T has probability at most 2 exp(-T^2 / B^2), and the sum of squares has the tails of
          B^2 / 2 times a chi-square variable [Laurent and Massart, 2000; Hsu, Kakade and Zhang, 2012].
sound     an update of norm beyond slack(K) B passes with probability at most 2^-SAFETY. By E exp(-t y^2) =
          E_g prod_j cos^2(sqrt(t/2) g x_j) and Hölder's inequality, it is at most the largest over p >= 1 of
          E_g |cos(a g / sqrt(p))|^2p with a^2 = t |x|^2 / 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from protocols import kernels
from securemodel.edge.sharing import expand
from securemodel.federated.blocks import groups
from securemodel.federated.uploads import Inbox

SAFETY = 40
"""Errors of both kinds have probability at most 2^-40 for one update."""
FACTOR_BITS = 16
"""The fractional bits of factors that updates are scaled by."""
PIECE, GROUP = 1 << 16, 32
"""Numbers of an update and how many updates are projected at a time."""


def reach(rows: int) -> float:
    """T / B: how far a projection of an honest update gets."""
    return math.sqrt((SAFETY + 2 + math.log2(rows)) * math.log(2))


def spread(rows: int) -> float:
    """How much larger the mean of squares of an honest update's projections gets than B^2 / 2."""
    wanted = 2 * (SAFETY + 1) * math.log(2) / rows
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if middle - math.log1p(middle) < wanted else (low, middle)
    return 1 + high


@cache
def slack(rows: int) -> float:
    """How many times B the norm of an update is at most that passes."""
    best = math.inf
    for a in np.geomspace(0.3, 12, 400):
        room = -SAFETY * math.log(2) / rows - math.log(_factor(a))
        if room > 0:
            best = min(best, math.sqrt(spread(rows) * a * a / room))
    return best


def _factor(a: float) -> float:
    """The largest over p >= 1 of E_g |cos(a g / sqrt(p))|^2p: it is that of p = 1 or of large p."""
    return max((1 + math.exp(-2 * a * a)) / 2, 1 / math.sqrt(1 + 2 * a * a))


@dataclass(frozen=True)
class Bounds:
    """What projections are compared with, for an update of weight 1, in units of the ring of uploads.

    reach: the largest magnitude; root: the largest root of the sum of squares. norm: the bound of an honest update's norm.
    Projections of `bits`, as ring elements of 64 bits and then reals of `frac_bits`, are multiplied by `unit` before they
    are squared, and so is the root, to which `rest` is added: room for rounding.
    """

    reach: int
    root: int
    norm: float
    bits: int
    unit: float
    rest: float
    frac_bits: int = 20

    def limits(self, weights: torch.Tensor) -> list[torch.Tensor]:
        """Shares of the reach and of the root, of those of weights."""
        return [weights * (limit << (64 - self.bits)) for limit in (self.reach, self.root)]

    def as_unit(self, frac_bits: int) -> tuple[float, float]:
        """(factor, square): squared norms, read with so many fractional bits, times a power of two; and the bound's own."""
        power = round(2 * math.log2(self.norm))
        return 2.0 ** (frac_bits - power), self.norm**2 / 2.0**power


def bounds(norm: float, numbers: int, rows: int, most: int, bits: int) -> Bounds:
    """For updates of so many numbers, of norm at most `norm` before they are rounded, of weights up to `most`."""
    honest = norm + 0.5 * math.sqrt(numbers)
    reach_of_one, root = math.ceil(honest * reach(rows)), math.ceil(honest * math.sqrt(rows / 2 * spread(rows)))
    power = math.ceil(math.log2(reach_of_one * most)) + 64 - bits
    rest = 2.0**-8 * root * most * 2.0 ** (64 - bits - power)
    return Bounds(reach_of_one, root, honest, bits, 2.0 ** (Bounds.frac_bits - power), rest)


def matrix(seed: bytes, rows: int, start: int, stop: int) -> np.ndarray:
    """Columns `start` (a multiple of PIECE) to `stop` of R, turned: int8 (stop - start, rows)."""
    words = -(-2 * rows * (stop - start) // 64)
    stream = expand(seed, start.to_bytes(16, "little"), 0, words)
    bits = np.unpackbits(stream.view(np.uint8))[: 2 * rows * (stop - start)].view(np.int8)
    first, second = bits.reshape(2, stop - start, rows)
    return first - second


def project(inbox: Inbox, clients: Sequence[str], seed: bytes, rows: int) -> torch.Tensor:
    """This aggregator's shares of the projections of all updates, int64 (clients, rows), modulo 2^bits."""
    card = inbox.card
    kind, held = (np.uint32, np.int32) if card.bits <= 32 else (np.uint64, np.int64)
    out = np.zeros((len(clients), rows), held)
    for start, stop in groups(card, PIECE):
        columns = torch.from_numpy(matrix(seed, rows, start, stop))
        for at in range(0, len(clients), GROUP):
            group = clients[at : at + GROUP]
            each = np.empty((len(group), stop - start), kind)
            for row, client in zip(each, group, strict=True):
                for place, share in inbox.part(client).pieces(card, start, stop):
                    row[place.start - start : place.stop - start] = share
            block = torch.from_numpy(each.view(held))
            if card.bits <= 32:
                out[at : at + len(group)] += kernels.sign_product(block, columns).numpy()
            else:
                out[at : at + len(group)] += kernels.matmul(block, columns.long()).numpy()
    return torch.from_numpy(out.astype(np.int64))
