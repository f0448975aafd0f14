"""Inverses of secret matrices at the edge of what is stated, and what of linear algebra is refused."""

from __future__ import annotations

import pytest
import torch
from running import IDLE_THIRD, TWO, run, tensors
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
    "reflections of 17 columns": lambda x: torch.linalg.qr(x.repeat(3, 3)[:, :17])[1],
    "linalg_pinv": torch.linalg.pinv,
    "linalg_lu": lambda x: torch.linalg.lu(x)[2],
    f"{MOST_ROWS + 2} rows": lambda x: torch.linalg.inv(x.repeat(11, 11)),
    "determinant of a secret matrix of 18 rows": lambda x: torch.linalg.det(x.repeat(3, 3)),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_is_refused(reason):
    with pytest.raises(UnsupportedOperator) as caught:
        securemodel.compile(Veiled(REFUSED[reason]).eval(), torch.eye(6), **TWO)
    assert reason in str(caught.value) and "return self.function" in str(caught.value)


QR = {
    "reduced": torch.linalg.qr,
    "complete": lambda x: torch.linalg.qr(x[..., :3], mode="complete"),
    "tall": lambda x: torch.linalg.qr(x[..., :3]),
    "wide": lambda x: torch.linalg.qr(x[..., :3, :]),
    "r alone": lambda x: torch.linalg.qr(x, mode="r")[1],
}


@pytest.mark.parametrize("name", QR)
def test_orthogonal_factors_have_the_signs_of_lapack(name):
    x = conditioned(3, 5, 16.0)
    x[1] = x[1].triu()  # nothing to reflect: R keeps the signs of the diagonal
    for scale in (0.25, 64.0):
        model = Veiled(QR[name]).eval()
        with torch.no_grad():
            right = tensors(model(grid(x * scale).double()))
        made = run(securemodel.compile(model, grid(x * scale), **TWO), grid(x * scale))
        for m, r in zip(made, right, strict=True):
            assert m.shape == r.shape and (m - r).abs().max() <= 2.0**-9 * max(1.0, r.abs().max())


def test_determinants_of_larger_matrices():
    x = torch.cat([conditioned(3, 7, 8.0), conditioned(1, 7, 8.0).flip(1)])
    det, sign, logarithm = torch.linalg.det(x.double()), *torch.linalg.slogdet(x.double())
    made = run(securemodel.compile(Veiled(lambda x: (x.det(), *x.slogdet())).eval(), x, **TWO), x)
    assert (made[0] - det).abs().max() <= 2.0**-8 * det.abs().max()
    assert torch.equal(made[1].double(), sign) and (made[2] - logarithm).abs().max() <= 2.0**-7
