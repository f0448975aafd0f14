"""What the approximations promise: domains and largest errors, held by tests and printed into docs/operators.md."""

from __future__ import annotations

from dataclasses import replace

import torch

from securemodel.compiler.approximations import SMOOTH
from securemodel.compiler.lower.registry import Accuracy, promises

aten = torch.ops.aten

_SPLINES = {
    "sigmoid": (aten.sigmoid.default,),
    "tanh": (aten.tanh.default,),
    "erf": (aten.erf.default,),
    "gelu": (aten.gelu.default,),
    "silu": (aten.silu.default,),
    "mish": (aten.mish.default,),
    "softplus": (aten.softplus.default,),
}
for _name, _targets in _SPLINES.items():
    promises(Accuracy(SMOOTH[_name].max_error, units=2), *_targets)

promises(
    Accuracy(SMOOTH["expm1_below_zero"].max_error, units=2, domain="alpha ≤ 1"), aten.elu.default, aten.celu.default
)
promises(Accuracy(units=24, domain="x ≤ 40"), aten.selu.default)
promises(Accuracy(units=5), aten.hardsigmoid.default)
promises(Accuracy(2.0**-12, domain="abs(x) ≤ 40"), aten.hardswish.default)

_FINE = Accuracy(absolute=2.0**-15, relative=2.0**-10)
promises(replace(_FINE, domain="x < 20.79"), aten.exp.default)
promises(replace(_FINE, domain="x < 20.79; errors as for exp(x)"), aten.expm1.default)
promises(replace(_FINE, domain="2^-16 ≤ abs(x) < 2^30"), aten.reciprocal.default)
promises(replace(_FINE, domain="2^-16 ≤ x < 2^30"), aten.rsqrt.default)
promises(replace(_FINE, domain="2^-16 ≤ x < 2^30, and 0"), aten.sqrt.default)
promises(Accuracy(2.0**-11, domain="2^-16 ≤ x < 2^30"), aten.log.default)
promises(Accuracy(2.0**-11, domain="2^-16 ≤ 1 + x < 2^30"), aten.log1p.default)
promises(Accuracy(2.0**-10, domain="2^-16 ≤ x < 2^30"), aten.log2.default)

_ROWS = "fewer than 2^14 classes"
promises(Accuracy(2.0**-9, domain=_ROWS), aten.softmax.int, aten._softmax.default)
_NO_TINY = f"{_ROWS}; no score 15 below the largest"
promises(Accuracy(2.0**-10, domain=_NO_TINY), aten.log_softmax.int, aten._log_softmax.default, aten.logsumexp.default)
_NORMAL = "2^-10 ≤ variance + eps < 2^8; normalized values up to 4, before weights; see functions.md for others"
promises(Accuracy(2.0**-10, domain=_NORMAL), aten.layer_norm.default, aten.native_layer_norm.default)
_VARIANCE = "variances of about 10; for a divisor n that is no power of two, u n / 2 of the result more"
promises(Accuracy(2.0**-9, domain=_VARIANCE), aten.var.correction, aten.var.dim)
