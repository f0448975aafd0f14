"""Commands that take a program, on the script of a training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

SCRIPT = """
import torch
import torch.nn.functional as F
from torch import nn

import securemodel

torch.manual_seed(0)
model = nn.Linear(5, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)


def step(bank, shop):
    loss = F.mse_loss(model(bank).squeeze(1), shop)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return {"loss": loss}


def error(bank, shop):
    return (model(bank).squeeze(1) - shop).sum()


def make_job():
    own = securemodel.owned
    data = securemodel.dataset(bank=own("bank", shape=(300, 5)), shop=own("shop", shape=(300,)))
    return securemodel.compile_training(
        step, model, optimizer, batch=data.batches(16), parties=["bank", "shop"], OPTIONS
    )
"""
WITH_ALL = 'reveal={"loss": "shop"}, evaluate={"error": (error, data, "bank")}, guard_every=5'


@pytest.fixture
def script(write) -> Path:
    return write("train.py", SCRIPT.replace("OPTIONS", WITH_ALL))


def test_plan_says_what_an_epoch_costs(call, script):
    made = call("plan", script)
    assert made.exit_code == 0 and "an epoch: 18 steps" in made.output, made.output
    refused = call("plan", script, "--protocol", "paillier")
    assert refused.exit_code == 2 and "compile_training()" in refused.output


def test_a_party_does_not_train_alone(call, write):
    main = "\n\nif __name__ == '__main__':\n    make_job().local()\n"
    script = write("alone.py", "PARTIES = ('bank', 'shop')\n" + SCRIPT.replace("OPTIONS", WITH_ALL) + main)
    result = call("train", str(script), "--local", "--ledger", "none")
    assert result.exit_code == 1 and "call job.connect()" in result.output


def test_check_is_about_the_step(call, script):
    made = call("check", script)
    assert made.exit_code == 0 and made.output.startswith("step: all "), made.output


def test_an_audit_has_all_programs_of_a_training(call, script):
    made = call("audit", script, "--json")
    found = json.loads(made.output)
    assert list(found) == ["step", "evaluation error", "evaluation error, rows left over", "guard"]
    outputs = {name: {(out["name"], out["to"]) for out in audit["outputs"]} for name, audit in found.items()}
    assert outputs["step"] == {("loss", "shop")} and outputs["evaluation error"] == {("result", "bank")}
    assert {to for _, to in outputs["guard"]} == {"all"}
    warnings = {warning["name"] for audit in found.values() for warning in audit["warnings"]}
    assert "public weights" not in warnings, "they are so at the start alone"
    text = call("audit", script).output
    assert "results: loss to shop" in text and "weights that the training starts with" in text
    assert "export" in text and " compile(" not in text, "advice is about compile_training"


def test_what_a_training_is_not_for_says_what_is(call, script):
    compared = call("compare", script)
    assert compared.exit_code == 1 and "job.simulate(steps)" in compared.output
    attacked = call("audit", script, "--attack")
    assert attacked.exit_code == 2 and "--attack is for programs of inference" in attacked.output


def test_training_with_paillier_has_a_plan_and_no_audit(call, write):
    script = write("train.py", PAILLIER)
    made = call("plan", script)
    assert made.exit_code == 0 and "epoch" in made.output, made.output
    audited = call("audit", script)
    assert audited.exit_code == 1 and "docs/training.md" in audited.output


PAILLIER = """
import torch
import torch.nn.functional as F
from torch import nn

import securemodel

model = nn.Linear(5, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)


def step(bank, shop, label):
    loss = F.mse_loss(model(torch.cat([bank, shop], 1)), label)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


own = securemodel.owned
data = securemodel.dataset(
    bank=own("bank", shape=(32, 3)), shop=own("shop", shape=(32, 2)), label=own("bank", shape=(32, 1))
)
job = securemodel.compile_training(
    step, model, optimizer, batch=data.batches(16), parties=["bank", "shop"], protocol="paillier", insecure_key_bits=512
)
"""
