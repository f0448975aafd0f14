"""Settings other than the default: each function works within its errors, or is refused when it is compiled."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from running import TWO, Several, check_agrees, run, tensors, veils

import securemodel
from securemodel.errors import UnsupportedOperator

NUMBERS = torch.linspace(-40, 40, 321)
POSITIVE = torch.exp2(torch.linspace(-3, 5, 257))
ROWS = 2 * torch.randn(12, 33, generator=torch.Generator().manual_seed(4))

BY_SPLINES = {
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "erf": torch.erf,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "mish": F.mish,
    "softplus": F.softplus,
    "elu": F.elu,
    "exp": lambda x: torch.exp(x / 8),
    "sin": torch.sin,
    "cos": torch.cos,
}
OF_ROWS = {
    "softmax": lambda x: x.softmax(1),
    "log_softmax": lambda x: x.log_softmax(1),
    "logsumexp": lambda x: x.logsumexp(1),
    "layer_norm": lambda x: F.layer_norm(x, (33,)),
    "rms_norm": lambda x: F.rms_norm(x, (33,)),
}
OF_POSITIVE = {
    "reciprocal": torch.reciprocal,
    "rsqrt": torch.rsqrt,
    "sqrt": torch.sqrt,
    "log": torch.log,
    "pow": lambda x: (x / 4) ** 1.7,
    "root": lambda x: x**0.3,
    "atan": torch.atan,
    "atan2": lambda x: torch.atan2(x, 4 - x.flip(0)),
    "asin": lambda x: torch.asin(x / 32),
    "asinh": torch.asinh,
    "acosh": lambda x: torch.acosh(x + 1),
    "atanh": lambda x: torch.atanh(x / 64),
    "erfinv": lambda x: torch.erfinv(x / 64),
    "lgamma": torch.lgamma,
    "digamma": torch.digamma,
}
EXACT = {
    "floor": torch.floor,
    "round": torch.round,
    "remainder": lambda x: x % 3,
    "abs": torch.abs,
    "relu6": F.relu6,
    "amax": lambda x: x.amax(1),
    "argmax": lambda x: x.argmax(1),
    "sort": lambda x: x.sort(1)[0],
    "topk": lambda x: x.topk(5, 1)[0],
    "equal": lambda x: x == x.flip(0),
}


def compiled(functions, x: torch.Tensor, frac_bits: int, width: int):
    """(the program of several functions of a secret, them in the clear, what both take)."""
    whole, given = Several(functions).eval(), (x, *veils([x], "add"))
    settings = {**TWO, "inputs": ("b", "a"), "frac_bits": frac_bits, "width": width}
    return securemodel.compile(whole, given, **settings), whole, given


def units(functions: dict, x: torch.Tensor, frac_bits: int, width: int) -> dict[str, float]:
    """The largest error of each function in units of 2^-frac_bits, relative to results above 1."""
    x = ((x.double() * 2.0**frac_bits).round() * 2.0**-frac_bits).float()
    program, whole, given = compiled(functions.values(), x, frac_bits, width)
    errors = {}
    for name, made, right in zip(
        functions, run(program, *given), tensors(whole(*[v.double() for v in given])), strict=True
    ):
        off = (made.double() - right.double()).abs() / right.double().abs().clamp(min=1)
        errors[name] = float(off.max()) * 2.0**frac_bits
    return errors


@pytest.mark.parametrize("frac_bits, width", [(8, 16), (8, 64), (12, 20), (12, 32), (16, 24), (16, 32)])
def test_splines_at_other_precisions(frac_bits, width):
    for functions, x in ((BY_SPLINES, NUMBERS), (OF_ROWS, ROWS)):
        errors = units(functions, x, frac_bits, width)
        assert max(errors.values()) <= 8, errors


@pytest.mark.parametrize("frac_bits, width", [(8, 20), (12, 24), (16, 28), (16, 32)])
def test_functions_of_positive_numbers_at_other_precisions(frac_bits, width):
    for name, function in OF_POSITIVE.items():
        x = NUMBERS if name == "atan" else POSITIVE
        errors = units({name: function}, x, frac_bits, width)
        assert max(errors.values()) <= 24, errors


@pytest.mark.parametrize("frac_bits, width", [(4, 12), (8, 16), (16, 24), (20, 28), (24, 32), (24, 64)])
def test_comparisons_are_exact_at_all_precisions(frac_bits, width):
    x = ROWS.reshape(-1)[:384].reshape(12, 32)
    x[:, 3] = x[:, 4]
    errors = units(EXACT, x, frac_bits, width)
    assert max(errors.values()) <= 2.0 ** (frac_bits - 23), errors  # results are float32


REFUSED = [*BY_SPLINES.values(), *OF_ROWS.values(), *OF_POSITIVE.values()]


@pytest.mark.parametrize("frac_bits", [4, 7, 17, 24])
def test_splines_refuse_precisions_they_have_no_room_for(frac_bits):
    for function in REFUSED:
        with pytest.raises(UnsupportedOperator, match=f"(?s)frac_bits = {frac_bits}.*frac_bits from 8 to 16"):
            compiled([function], ROWS, frac_bits, 64)


def test_functions_of_positive_numbers_refuse_widths_below_their_scales():
    for function in OF_POSITIVE.values():
        with pytest.raises(UnsupportedOperator, match="(?s)width = 27.*a width of at least 28"):
            compiled([function], ROWS, 16, 27)


@pytest.mark.parametrize("width", [24, 32, 64])
@pytest.mark.parametrize("number", [-1e4, -1e9, float("-inf"), torch.finfo(torch.float32).min])
def test_masks_forbid_at_any_width(width, number):
    forbidden = torch.arange(30).reshape(5, 6) % 4 == 1
    added = torch.where(forbidden, number, 0.0)

    def attention(q, k):
        scores = q @ k.T / math.sqrt(8)
        secret = (q.sum(1, keepdim=True) > 0) & forbidden
        masked = scores.masked_fill(forbidden, number), scores + added, scores.masked_fill(secret, number)
        return tuple(m.softmax(1) for m in masked)

    torch.manual_seed(5)
    check_agrees(attention, [torch.randn(5, 8), torch.randn(6, 8)], 2.0**-12, width=width)


def test_public_numbers_keep_all_their_digits():
    """Rounding compares with 1 + 2^-24, which float32 lacks."""
    check_agrees(torch.round, [torch.arange(-9, 10) / 2], 0.0, frac_bits=24)
