"""Tensors without elements, and without axes, inside of a model."""

import pytest
import torch
from running import IDLE_THIRD, TWO, check_agrees, run
from test_functions import Veiled
from torch import nn

import securemodel
from securemodel.errors import CompileError, UnsupportedOperator

SETTINGS = pytest.mark.parametrize("settings", [TWO, IDLE_THIRD], ids=["two", "three"])


@SETTINGS
def test_empty_parts_are_public(settings):
    def parts(x):
        none, nowhere = x[:, :0], x[:0]
        looked_up = none.sigmoid(), nowhere.softmax(1), none.relu(), *nowhere.sort(1)
        return *looked_up, nowhere > 0, torch.cat([none.exp(), x], 1), none.sum(1), none @ nowhere

    check_agrees(parts, [torch.randn(3, 5)], 2.0**-15, settings=settings)


@SETTINGS
def test_a_program_that_returns_only_an_empty_tensor_says_nothing(settings):
    x = torch.randn(3, 5)
    program = securemodel.compile(Veiled(lambda x: x[:, :0].relu()).eval(), x, **settings)
    assert run(program, x)[0].shape == (3, 0)


def test_divisions_by_zero_are_problems_of_the_model():
    with pytest.raises(UnsupportedOperator, match="a division by zero"):
        securemodel.compile(Veiled(lambda x: x / 0).eval(), torch.randn(3), **TWO)


def test_inputs_have_rows():
    for refuse in (
        lambda x: securemodel.compile(nn.Linear(5, 2), x, **TWO),
        lambda x: securemodel.check(nn.Linear(5, 2), x),
    ):
        with pytest.raises(CompileError, match=r"input 0 has no rows: its shape is \[0, 5\]"):
            refuse(torch.zeros(0, 5))
