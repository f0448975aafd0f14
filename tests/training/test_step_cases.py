"""The training steps of the benchmarks are what they say."""

from __future__ import annotations

import pytest

import securemodel
from benchmarks.cases import BY_NAME, PARTIES
from benchmarks.measure import evaluation_bytes, plaintext_seconds
from benchmarks.steps import StepCase, step_program
from protocols.names import PUBLIC

CASES = [name for name, case in BY_NAME.items() if isinstance(case, StepCase)]


def test_there_are_the_steps_that_are_compared():
    named = ["logreg_train_b128", "mlp_train_b128", "lenet5_train_b128", "lstm_train_b16", "encoder_train_b8"]
    assert [*named, "adam_mlp_train_b128"] == CASES


@pytest.mark.parametrize("name", ["logreg_train_b128", "mlp_train_b128"])
def test_all_bytes_of_a_step_are_counted(name):
    program, given = step_program(BY_NAME[name], PARTIES, "exact")
    assert program.header.inputs[:2] == PARTIES and set(program.header.inputs[2:]) <= {PUBLIC}
    assert program.header.outputs == (), "nothing is revealed"
    with securemodel.local(program) as session:
        session.run(*given)
        assert max(session.stats.sent_bytes.values()) == evaluation_bytes(program)
        assert session.stats.rounds == program.plan("lan").rounds


def test_the_clear_step_changes_weights():
    training = BY_NAME["logreg_train_b128"].build()
    before = training.model.weight.detach().clone()
    training.step(*training.batch)
    assert (training.model.weight - before).abs().max() > 0
    assert plaintext_seconds(BY_NAME["logreg_train_b128"], repeat=1) > 0
