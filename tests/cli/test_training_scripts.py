"""Commands that take a program, on the script of a training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from protocols.channel.testing import loopback_parties
from protocols.errors import ConfigError

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


STAY = """PARTIES = ("bank", "notary")
CONTRIBUTORS = ("shop",)
"""
OF_SHOP = STAY + SCRIPT.replace('["bank", "shop"], OPTIONS', 'PARTIES, contributors=CONTRIBUTORS, reveal="all"')
DATA = {"shape=(300, 5)": "torch.ones(300, 5)", "shape=(300,)": "read_shop, shape=(300,)"}
READ = """

def read_shop():
    print("the shop's rows are read")
    return torch.ones(300)
"""
MAIN = """

if __name__ == "__main__":
    with make_job().connect() as run:
        print("trained", [round(returned["loss"].item(), 3) for returned in run.steps(2)])
"""


def of_shop(write) -> Path:
    text = OF_SHOP + READ + MAIN
    for said, given in DATA.items():
        text = text.replace(said, given)
    return write("leaves.py", text)


def test_a_contributor_shares_its_rows_and_is_gone(write):
    command = [sys.executable, "-m", "securemodel.cli", "train", str(of_shop(write)), "--local", "--ledger", "none"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    lines = [line.partition("|")[::2] for line in done.stdout.splitlines()]
    said = [(name.strip(), text.strip()) for name, text in lines]
    gone = said.index(("shop", "Give each party its file. This party is not needed for the training."))
    assert {name for name, _ in said[: gone + 1]} == {"shop"} and "shop" not in {name for name, _ in said[gone + 1 :]}
    trained = {name: text for name, text in said if text.startswith("trained")}
    assert set(trained) == {"bank", "notary"} and len(set(trained.values())) == 1
    assert [name for name, text in said if text == "the shop's rows are read"] == ["shop"]


def test_share_wants_a_contributor_of_a_training(call, write, network, tmp_path):
    config, _ = loopback_parties(["bank", "notary"], tmp_path, contributors=["shop"])
    mine = write("mine.toml", config.path.read_text() + '[me]\nidentity = "shop"\n')
    words = ["--me", "shop", "--config", mine, "--to", tmp_path / "rows", "--ledger", "none"]
    made = call("share", of_shop(write), *words)
    assert made.exit_code == 0 and "for bank: " in made.output and "for notary: " in made.output, made.output
    assert sorted(path.name for path in (tmp_path / "rows").iterdir()) == ["shop-for-bank.rows", "shop-for-notary.rows"]
    refused = call("share", of_shop(write), "--me", "bank", *words[2:])
    assert refused.exit_code == 1 and "no contributor 'bank'" in refused.output
    assert "'bank' is a party" in refused.output and "add [contributors.bank]" not in refused.output
    with pytest.raises(ConfigError, match=r"(?s)no party 'shop'.*'shop' is a contributor"):
        config.entry("shop")
    refused = call("share", write("network.py", network), *words)
    assert refused.exit_code == 1 and "program" in refused.output
    both = call("train", of_shop(write), "--local", "--rows", tmp_path / "rows")
    assert both.exit_code == 2 and "leave out options that go with --me" in both.output


def test_contributors_of_a_script_are_a_plain_list(call, write):
    script = write("odd.py", "PARTIES = ('a', 'b')\nCONTRIBUTORS = (1,)\n")
    made = call("train", script, "--local", "--ledger", "none")
    assert made.exit_code == 1 and "CONTRIBUTORS is not a plain list of names" in made.output
