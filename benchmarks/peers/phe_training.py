"""A step of logistic regression between two parties with python-paillier, one encryption for each number.

The protocol is that of `protocols.paillier.share_gates` without its packing, multi-exponentiation and powers: scores and
gradients as sums of products of ciphertexts, the polynomial as products of shared numbers (t^2, Horner's rule in t^2,
times t), and a mask for each result. Both parties compute in this process, one after the other.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from securemodel.engines.paillier.linear_step import sigmoid_coefficients

_F, _SIGMA = 20, 40


def step_seconds(job: Any, bits: int, rows: int = 0) -> tuple[float, float]:
    """Seconds, and those of the processor, of a first step for both parties together; RuntimeError for a wrong result. `rows`: only so many, scaled up."""
    from phe import paillier as phe

    keys = [phe.generate_paillier_keypair(n_length=bits) for _ in range(2)]
    batch = job.batches.inputs(0, lambda name: True)
    count = rows or len(batch[0])
    x = [_fixed(part[:count]) for part in batch[:2]]
    y = _fixed(batch[2][:count, 0])
    start, computed = time.perf_counter(), time.process_time()
    gradients = _step(keys, x, y)
    spent, busy = (now * len(batch[0]) / count for now in (time.perf_counter() - start, time.process_time() - computed))
    right = torch.cat([part[:count].double() for part in batch[:2]], 1).T @ (0.5 - batch[2][:count, 0].double())
    if np.abs(gradients / 2.0 ** (2 * _F) - right.numpy()).max() > 1e-3:
        raise RuntimeError("phe's result is wrong")
    return spent, busy


def _fixed(values: torch.Tensor) -> np.ndarray:
    return np.vectorize(int, otypes=[object])(np.rint(values.double().numpy() * 2**_F))


def _masked(keys: tuple, totals: Sequence[Any], bits: int) -> tuple[np.ndarray, np.ndarray]:
    """Shares of encrypted results: of the key's owner, and of the other."""
    masks = [secrets.randbits(bits + _SIGMA) for _ in totals]
    sent = [total + mask for total, mask in zip(totals, masks, strict=True)]
    for number in sent:
        number.obfuscate()
    return np.array([keys[1].decrypt(n) for n in sent], object), -np.array(masks, object)


def _matrix(keys: tuple, matrix: np.ndarray, mine: np.ndarray, theirs: np.ndarray, bits: int):
    """Shares (theirs, mine) of matrix (mine + theirs), whose encrypted part comes from the key's owner."""
    sealed = [keys[0].encrypt(int(v)) for v in theirs]
    totals = [
        sum((c * int(x) for c, x in zip(sealed[1:], row[1:], strict=True)), sealed[0] * int(row[0])) + int(own)
        for row, own in zip(matrix, matrix.dot(mine), strict=True)
    ]
    return _masked(keys, totals, bits)


def _products(keys: tuple, x: tuple, y: tuple, bits: int):
    """Shares of x y, one by one; the first of each pair is the key's owner's."""
    key = keys[0]
    sealed = [
        (key.encrypt(int(a)), key.encrypt(int(b)), key.encrypt(int(a * b))) for a, b in zip(x[0], y[0], strict=True)
    ]
    totals = [
        a * int(yb) + b * int(xb) + both + int(xb * yb) for (a, b, both), xb, yb in zip(sealed, x[1], y[1], strict=True)
    ]
    return _masked(keys, totals, bits)


def _shift(shares: Sequence[np.ndarray], by: int) -> tuple[np.ndarray, ...]:
    return tuple(share >> by for share in shares)


def _step(keys: list[tuple], x: list[np.ndarray], y: np.ndarray) -> np.ndarray:
    """The gradients of a step that begins with weights of zero, in shares that are random."""
    weights = []
    for part in x:
        mask = np.array([secrets.randbits(25 + _SIGMA) for _ in range(part.shape[1])], object)
        weights.append((mask, -mask))
    theirs, mine = _matrix(keys[1], x[0], weights[0][0], weights[0][1], 2 * _F + 8)
    theirs2, mine2 = _matrix(keys[0], x[1], weights[1][1], weights[1][0], 2 * _F + 8)
    t = _shift((mine + theirs2, theirs + mine2), _F + 4)
    square = _shift(_products(keys[0], t, t, 2 * _F + 12), _F)
    coefficients = [round(c * 2**_F) for c in sigmoid_coefficients(5, 16)]
    inner = tuple(coefficients[2] * share >> _F for share in square)
    inner = (inner[0] + coefficients[1], inner[1])
    inner = _shift(_products(keys[0], inner, square, 2 * _F + 12), _F)
    inner = (inner[0] + coefficients[0], inner[1])
    p = _shift(_products(keys[0], inner, t, 2 * _F + 12), _F)
    r = (p[0] + (1 << _F - 1), p[1] - y)
    theirs, mine = _matrix(keys[1], x[0].T, r[0], r[1], 2 * _F + 16)
    theirs2, mine2 = _matrix(keys[0], x[1].T, r[1], r[0], 2 * _F + 16)
    return np.concatenate([theirs + mine, theirs2 + mine2]).astype(float)
