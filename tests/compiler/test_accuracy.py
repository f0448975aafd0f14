"""What approximations promise is kept on their whole domain; docs/operators.md prints these promises."""

from __future__ import annotations

import math
import operator
import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from running import IDLE_THIRD, TWO, run
from torch import nn

import securemodel
from securemodel.compiler.lower import ACCURACY, LOWERINGS, page, registry
from securemodel.compiler.lower.registry import Accuracy, anchor, lowers, promises

DOCS = Path(__file__).resolve().parents[2] / "docs"
UNIT = 2.0**-16
aten = torch.ops.aten


def grid(x: torch.Tensor) -> torch.Tensor:
    return ((x.double() / UNIT).round() * UNIT).float()


LINE = grid(torch.linspace(-40, 40, 4097))
TO_20 = grid(torch.linspace(-30, 20.79, 4097))
POSITIVE = grid(torch.exp2(torch.linspace(-16, 29.999, 4097).double()))
BOTH_SIGNS = torch.cat([POSITIVE, -POSITIVE])
NEAR_ONE = 1 - grid(torch.exp2(torch.linspace(-16, -1, 257).double()))
UNIT_INTERVAL = torch.cat([grid(torch.linspace(-1, 1, 1025)), NEAR_ONE, -NEAR_ONE])
TURNS = torch.cat([grid(torch.linspace(-30, 30, 2049)), grid(torch.linspace(-(2.0**14), 2.0**14, 2049))])
GAMMA = grid(torch.linspace(0.01, 40, 2049))


def conditioned(batch: int, rows: int, condition: float, symmetric: bool = False) -> torch.Tensor:
    """Matrices of norm 4 whose singular values fall evenly, in octaves, down to 1 / condition of the largest."""
    generator = torch.Generator().manual_seed(rows)
    left, right = torch.linalg.qr(torch.randn(2, batch, rows, rows, dtype=torch.float64, generator=generator))[0]
    values = torch.logspace(0, -math.log10(condition), rows, dtype=torch.float64)
    made = left @ torch.diag(values) @ (left if symmetric else right).mT
    return grid(4 * made / made.norm(dim=(1, 2), keepdim=True))


GENERAL = torch.cat([conditioned(7, 6, 2.0**8), torch.eye(6).flip(0)[None]])  # of the last one, the first pivot is 0
DEFINITE = conditioned(8, 6, 2.0**6, symmetric=True)
TRIANGLES = conditioned(8, 6, 16).tril() + 2 * torch.eye(6)
ROWS = grid(torch.randn(16, 64, generator=torch.Generator().manual_seed(7)) * 3)

CASES = {
    aten.sigmoid.default: (torch.sigmoid, LINE),
    aten.tanh.default: (torch.tanh, LINE),
    aten.erf.default: (torch.erf, LINE),
    aten.gelu.default: (F.gelu, LINE),
    aten.silu.default: (F.silu, LINE),
    aten.mish.default: (F.mish, LINE),
    aten.softplus.default: (F.softplus, LINE),
    aten.elu.default: (F.elu, LINE),
    aten.celu.default: (F.celu, LINE),
    aten.selu.default: (F.selu, LINE),
    aten.hardsigmoid.default: (F.hardsigmoid, LINE),
    aten.hardswish.default: (F.hardswish, LINE),
    aten.exp.default: (torch.exp, TO_20),
    aten.expm1.default: (torch.expm1, TO_20),
    aten.reciprocal.default: (torch.reciprocal, torch.cat([POSITIVE, -POSITIVE])),
    aten.rsqrt.default: (torch.rsqrt, POSITIVE),
    aten.sqrt.default: (torch.sqrt, torch.cat([POSITIVE, torch.zeros(1)])),
    aten.log.default: (torch.log, POSITIVE),
    aten.log1p.default: (torch.log1p, POSITIVE[POSITIVE < 2.0**30 - 1]),
    aten.log2.default: (torch.log2, POSITIVE),
    aten.asin.default: (torch.asin, UNIT_INTERVAL),
    aten.acos.default: (torch.acos, UNIT_INTERVAL),
    aten.atan2.default: (lambda x: torch.atan2(x, x.roll(5)), torch.cat([BOTH_SIGNS, torch.zeros(7)])),
    aten.tan.default: (torch.tan, TURNS[torch.tan(TURNS.double()).abs() <= 32]),
    aten.asinh.default: (torch.asinh, BOTH_SIGNS[BOTH_SIGNS.abs() < 2.0**29]),
    aten.acosh.default: (torch.acosh, grid(1 + POSITIVE[POSITIVE < 2.0**29 - 1])),
    aten.atanh.default: (torch.atanh, UNIT_INTERVAL[UNIT_INTERVAL.abs() < 1]),
    aten.erfinv.default: (torch.erfinv, UNIT_INTERVAL[UNIT_INTERVAL.abs() < 1]),
    aten.lgamma.default: (torch.lgamma, torch.cat([POSITIVE[POSITIVE < 2.0**24], GAMMA])),
    aten.digamma.default: (torch.digamma, torch.cat([POSITIVE, GAMMA])),
    aten.linalg_inv_ex.default: (torch.linalg.inv, GENERAL),
    aten._linalg_solve_ex.default: (lambda x: torch.linalg.solve(x, x.flip(0)[..., :2]), GENERAL),
    aten.linalg_solve_triangular.default: (
        lambda x: torch.linalg.solve_triangular(x, x.flip(0), upper=False),
        TRIANGLES,
    ),
    aten.cholesky_solve.default: (lambda x: torch.cholesky_solve(x.flip(0)[..., :2], x), TRIANGLES),
    aten.cholesky_inverse.default: (torch.cholesky_inverse, TRIANGLES),
    aten.cholesky.default: (torch.cholesky, DEFINITE),
    aten.linalg_cholesky_ex.default: (torch.linalg.cholesky, DEFINITE),
    aten.linalg_matrix_exp.default: (torch.matrix_exp, conditioned(8, 6, 16.0) * 2),
    aten.linalg_qr.default: (lambda x: torch.cat(torch.linalg.qr(x)), conditioned(8, 6, 2.0**5) * 4),
    aten.softmax.int: (lambda x: torch.softmax(x, -1), ROWS),
    aten.log_softmax.int: (lambda x: torch.log_softmax(x, -1), ROWS / 2),
    aten.logsumexp.default: (lambda x: torch.logsumexp(x, -1), ROWS),
    aten.layer_norm.default: (lambda x: F.layer_norm(x, x.shape[1:]), ROWS),
    aten.var.correction: (lambda x: x.var(1), F.pad(ROWS, (0, 1))),  # the divisor is 64
}
SAME_FUNCTION = {aten._softmax.default, aten._log_softmax.default, aten.native_layer_norm.default, aten.var.dim}
"""Operators that torch.export does not write; see tests/compiler/table.py."""


class Veiled(nn.Module):
    """A function of an input plus a zero of the other party."""

    def __init__(self, function) -> None:
        super().__init__()
        self.zero, self.function = nn.Parameter(torch.zeros(())), function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x + self.zero)


@pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])
@pytest.mark.parametrize("target", CASES, ids=anchor)
def test_the_promised_error_holds(target, settings):
    function, x = CASES[target]
    x = x if settings is TWO else x[::7]
    (made,) = run(securemodel.compile(Veiled(function).eval(), x, **settings), x)
    right = function(x.double())
    reference = right + 1 if target is aten.expm1.default else right  # stated for exp(x)
    bounds = torch.tensor([ACCURACY[target].bound(r) for r in reference.reshape(-1).tolist()])
    errors = (made.double() - right).abs().reshape(-1)
    rounding = right.abs().reshape(-1) * 2.0**-24  # results are float32
    assert (errors <= bounds + rounding).all(), f"{(errors - bounds).max():.2e} too large"


def test_variances_with_other_divisors_are_off_by_what_is_stated():
    promise = ACCURACY[aten.var.correction]
    (made,) = run(securemodel.compile(Veiled(lambda x: x.var(1)).eval(), ROWS, **TWO), ROWS)
    right, divisor = ROWS.double().var(1), ROWS.shape[1] - 1
    assert "u n / 2 of the result more" in promise.domain
    assert ((made.double() - right).abs() <= promise.bound() + right * UNIT * divisor / 2).all()


def test_every_promise_is_tested():
    assert set(ACCURACY) <= set(CASES) | SAME_FUNCTION, "add a case for its domain"
    assert set(ACCURACY) <= set(LOWERINGS)


def test_promises_can_be_read():
    assert str(Accuracy(2.0**-11, units=2)) == "2^-11 + 2u" and str(Accuracy(units=5)) == "5u"
    assert str(Accuracy(2.0**-15, relative=2.0**-10)) == "2^-10 of the result, or 2^-15 where that is larger"
    assert Accuracy(2.0**-15, relative=2.0**-10).bound(-4.0) == 2.0**-8
    assert Accuracy(2.0**-15, relative=2.0**-10).bound(0.0) == 2.0**-15
    assert Accuracy(units=2).bound(9.0) == 2 * UNIT


def test_a_lowering_can_state_its_accuracy(monkeypatch):
    for name, table in (("LOWERINGS", LOWERINGS), ("ACCURACY", ACCURACY)):
        monkeypatch.setattr(registry, name, dict(table))
    stated = Accuracy(2.0**-9)
    lowers(aten.i0.default, accuracy=stated)(lambda g, x: x)
    assert registry.ACCURACY[aten.i0.default] is stated
    with pytest.raises(ValueError, match="already states"):
        promises(stated, aten.i0.default)


# ---- docs/operators.md and links into it
def places() -> list[str]:
    return re.findall(r'<a id="([^"]+)"></a>', (DOCS / "operators.md").read_text())


def test_the_page_has_one_place_for_every_operator():
    made = places()
    assert len(made) == len(set(made))
    missing = {anchor(target) for target in LOWERINGS} - {""} - set(made)
    assert not missing, "run `python docs/make_operators.py > docs/operators.md`"


def test_reports_lead_to_the_page():
    class Model(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.gelu(super().forward(x)).softmax(-1)

    class Wrong(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.i0(super().forward(x)) ** -77.5

    report = securemodel.check(Model(3, 3), torch.zeros(3, 3))
    assert report.approximated == ("docs/operators.md#aten-gelu", "docs/operators.md#aten-softmax")
    assert all(link in str(report) for link in report.approximated)
    assert not securemodel.check(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.zeros(1, 3)).approximated
    unknown, misused = securemodel.check(Wrong(3, 3), torch.zeros(3, 3)).problems
    assert unknown.page == "" and misused.page == "docs/operators.md#aten-pow"
    assert "what it supports: docs/operators.md#aten-pow" in str(securemodel.check(Wrong(3, 3), torch.zeros(3, 3)))
    for link in (*report.approximated, misused.page):
        path, _, place = link.partition("#")
        assert (DOCS.parent / path).is_file() and place in places()


def test_operators_that_are_not_described_have_no_page():
    assert page(operator.getitem) == "" and page(aten.igamma.default) == ""


@pytest.mark.slow
def test_the_page_is_what_the_code_and_the_tests_say():
    printed = runpy.run_path(str(DOCS / "make_operators.py"))["document"]()
    same = printed == (DOCS / "operators.md").read_text()
    assert same, "operators have changed: run `python docs/make_operators.py > docs/operators.md`"
