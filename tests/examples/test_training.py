"""The training examples, in small, with all parties as processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch

EXAMPLES = Path(__file__).parents[2] / "examples"
ACCURACY = re.compile(r"(\w+) \| epoch (\d+): loss ([\d.]+), ([\d.]+)% of the test set right")


@pytest.mark.parametrize(
    ("name", "parties", "args"),
    [
        ("train_bank_shop", ("bank", "shop", "registry"), ["--people", "500"]),
        ("train_hospitals", ("north", "south"), ["--scale", "0.25"]),
    ],
)
def test_all_parties_see_the_same_and_learn(run_example, tmp_path, name, parties, args):
    out = ["--out", str(tmp_path / "model.safetensors")] if name == "train_bank_shop" else []
    said = run_example(EXAMPLES / name / "train.py", [*args, "--epochs", "2", *out], parties)
    found = [match.groups() for line in said if (match := ACCURACY.search(line))]
    assert {who for who, *_ in found} == set(parties)
    rows = {tuple(rest) for _, *rest in found}
    assert len(rows) == 2, "every party says the same"
    last = max(rows)
    assert float(last[2]) > 55.0, "better than the largest class, or a coin"
    if out:
        assert safetensors.torch.load_file(out[1]).keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_adapters_of_a_public_encoder(run_example, tmp_path):
    out = tmp_path / "adapters.safetensors"
    script = EXAMPLES / "finetune_lora" / "train.py"
    said = run_example(script, ["--rows", "96", "--epochs", "1", "--out", str(out)], ("clinic", "laboratory"))
    assert sum("epoch 1: mean loss 0." in line for line in said) == 2
    weights = safetensors.torch.load_file(out)
    assert {"query.up", "query.down", "query.base.weight", "head.bias"} <= weights.keys(), "torch loads it whole"
    assert weights["query.up"].abs().max() > 0, "it starts as zeros"
