"""Inverses of secret matrices at the edge of what is stated, and what of linear algebra is refused."""

from __future__ import annotations

import pytest
import torch
from running import IDLE_THIRD, TWO, run
from test_accuracy import Veiled, conditioned, grid

import securemodel
from securemodel.compiler.lower.matrices import MOST_ROWS
from securemodel.errors import UnsupportedOperator

FAST = {**TWO, "rounding": "fast"}


def off(function, x: torch.Tensor, settings) -> float:
    made = run(securemodel.compile(Veiled(function).eval(), x, **settings), x)[0].double()
    return float((made - function(x.double())).abs().max())


@pytest.mark.parametrize("settings", [TWO, IDLE_THIRD, FAST], ids=["two", "three", "fast rounding"])
@pytest.mark.parametrize("rows", [2, 8, 32])
def test_the_condition_may_be_as_stated(rows, settings):
    x = conditioned(2, rows, 300.0)
    inverse = torch.linalg.inv(x.double())
    assert 2.0**8 < (x.norm(dim=(1, 2)) * inverse.norm(dim=(1, 2))).max() < 2.0**10
    assert off(torch.linalg.inv, x, settings) <= 2.0**-14
    assert off(lambda x: torch.linalg.solve(x, x.flip(0)[:, 0]), x, settings) <= 2.0**-14


@pytest.mark.parametrize("scale", [2.0**-5, 2.0**10])
def test_matrices_may_be_small_and_large(scale):
    x = torch.cat(
        [conditioned(3, 4, 16.0), torch.tensor([[0.0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 2], [0, 0, 1, 0]])[None]]
    )
    assert off(torch.linalg.inv, grid(x * scale), TWO) <= 2.0**-14
    assert (
        off(lambda x: torch.linalg.solve(x, scale * torch.ones(4, 1, dtype=x.dtype)), grid(x * scale), TWO) <= 2.0**-14
    )


REFUSED = {
    "linalg_svd": lambda x: torch.linalg.svdvals(x),
    "linalg_eigh": lambda x: torch.linalg.eigvalsh(x),
    "linalg_eig": lambda x: torch.linalg.eigvals(x).real,
    "linalg_qr": lambda x: torch.linalg.qr(x)[1],
    "linalg_pinv": torch.linalg.pinv,
    "linalg_lu": lambda x: torch.linalg.lu(x)[2],
    f"{MOST_ROWS + 2} rows": lambda x: torch.linalg.inv(x.repeat(11, 11)),
    "determinant of a secret matrix of 6 rows": torch.linalg.det,
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_is_refused(reason):
    with pytest.raises(UnsupportedOperator) as caught:
        securemodel.compile(Veiled(REFUSED[reason]).eval(), torch.eye(6), **TWO)
    assert reason in str(caught.value) and "return self.function" in str(caught.value)
