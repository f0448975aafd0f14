"""The credit model of a bank and a shop: what both train together is as good as what one could with both tables."""

from __future__ import annotations

import pytest
import torch


def test_the_model_is_as_good_as_in_the_clear(example):
    train = example("credit_training", "train")
    job = train.make_job(insecure_key_bits=512)
    with job.local() as run:
        for _ in run.epochs(1):
            run.train_epoch()
        whole, parts = run.export(to="bank"), run.export(to="each")
    bank, shop = train.read("bank"), train.read("shop")
    x, paid = torch.cat([bank[:, :4], shop], 1), bank[:, 4:]
    accuracy = (((x @ whole["weight"].T + whole["bias"]) > 0).float() == paid).float().mean()
    alone = (((bank[:, :4] @ whole["weight"][:, :4].T + whole["bias"]) > 0).float() == paid).float().mean()
    assert accuracy > 0.85 and accuracy > alone + 0.02, "the shop's columns help"
    assert torch.equal(torch.cat([parts["bank"]["weight"], parts["shop"]["weight"]], 1), whole["weight"])


@pytest.mark.slow
def test_both_parties_as_processes(example, run_example):
    train = example("credit_training", "train")
    said = run_example(train.HERE / "train.py", [], train.PARTIES)
    assert sum("weights of my columns" in line for line in said) == 2
