"""Evaluations of models on joint tables: what scikit-learn finds, for whom it is, and what is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk
from torch import nn

import securemodel
from securemodel import data
from securemodel.data import metrics, query
from securemodel.data.evaluate import asked, evaluate
from securemodel.errors import InputError

SCHEMA = """
[table]
split = "columns"
minimum = 5
[columns.income]
owner = "bank"
kind = "number"
low = -8
high = 8
[columns.spent]
owner = "shop"
kind = "number"
low = -8
high = 8
missing = {missing}
[columns.city]
owner = "shop"
kind = "category"
values = ["Ghent", "Utrecht"]
[columns.weight]
owner = "shop"
kind = "number"
low = 0
high = 2
[columns.defaulted]
owner = "registry"
kind = "boolean"
missing = {gone}
[columns.grade]
owner = "registry"
kind = "category"
values = ["a", "b", "c"]
[columns.debt]
owner = "registry"
kind = "number"
low = -8000
high = 8000
"""


def _frames(n: int, seed: int = 0) -> dict[str, pd.DataFrame]:
    made = np.random.default_rng(seed)
    income, spent = (np.round(made.normal(size=n), 2) for _ in range(2))
    return {
        "bank": pd.DataFrame({"income": income}),
        "shop": pd.DataFrame({
            "spent": spent, "city": made.choice(["Ghent", "Utrecht"], n), "weight": np.round(made.random(n) * 2, 2),
        }),
        "registry": pd.DataFrame({
            "defaulted": (made.random(n) < 1 / (1 + np.exp(spent - income))).astype(int),
            "grade": made.choice(list("abc"), n), "debt": np.round(1000 * income - 500 * spent, 1),
        }),
    }  # fmt: skip


def _joint(frames: dict[str, pd.DataFrame], missing: str = "false", gone: str = "false") -> data.Joint:
    schema = data.Schema.parse(SCHEMA.format(missing=missing, gone=gone))
    return data.local(schema, [data.table(name, frame) for name, frame in frames.items()])


class Linear(nn.Module):
    """One score for each row, or several."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.linear = nn.Linear(2, outputs)

    def forward(self, bank: torch.Tensor, shop: torch.Tensor) -> torch.Tensor:
        return self.linear(torch.cat([bank, shop], 1))


COLUMNS = {"bank": ["income"], "shop": ["spent"]}


def _clear(model: nn.Module, frames: dict[str, pd.DataFrame]) -> np.ndarray:
    parts = [torch.tensor(frames[who][names].to_numpy()).float() for who, names in COLUMNS.items()]
    return model(*parts).detach().squeeze(1).numpy()


@pytest.mark.parametrize("weights", ["public", "bank"])
def test_a_model_on_columns_of_three_parties(weights: str) -> None:
    frames, model = _frames(80), Linear()
    score, label = _clear(model, frames), frames["registry"]["defaulted"]
    with _joint(frames) as joint:
        made = evaluate(model, joint, label="defaulted", metrics=["accuracy", "f1", "auc", "roc"], columns=COLUMNS,
                        weights=weights)  # fmt: skip
    assert made["accuracy"].value == pytest.approx(sk.accuracy_score(label, score >= 0))
    assert made["f1"].value == pytest.approx(sk.f1_score(label, score >= 0))
    assert abs(made["auc"].value - sk.roc_auc_score(label, score)) <= made["auc"].error + 1e-6
    assert made.facts["rows"] == 80 and made.facts["revealed"]["auc"] == "all"
    assert "auc" in str(made) and "±" in str(made) and "threshold 0" in str(made)


def test_sums_of_blocks_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_BLOCK_ELEMENTS", 1)
    frames, model = _frames(600), Linear()
    score, label = _clear(model, frames), frames["registry"]["defaulted"]
    with _joint(frames) as joint:
        wanted = asked(model, joint, label="defaulted", metrics=["confusion", "auc", "brier"], columns=COLUMNS)
        assert [piece.runs for piece in wanted.queries[0].pieces] == [2, 1, 1]
        made = wanted.run()
    assert made["confusion"].curve["matrix"] == sk.confusion_matrix(label, score >= 0).tolist()
    assert abs(made["auc"].value - sk.roc_auc_score(label, score)) <= made["auc"].error + 1e-6
    assert made["brier"].value == pytest.approx(sk.brier_score_loss(label, 1 / (1 + np.exp(-score))), abs=1e-4)


def test_a_prepared_model_takes_columns_with_missing_values() -> None:
    frames = _frames(60)
    frames["shop"].loc[::7, "spent"] = None
    with _joint(frames, missing="true") as joint:
        prepare = data.Pipeline(
            income=data.StandardScaler(), spent=data.SimpleImputer("mean"), city=data.OneHotEncoder(),
            **dict.fromkeys(("weight", "defaulted", "grade", "debt"), "drop"),
        ).fit(joint)  # fmt: skip
        torch.manual_seed(0)
        model = nn.Linear(len(prepare.feature_names_out), 1)
        made = evaluate(prepare.then(model), joint, label="defaulted", metrics="auc", exact=True)
        parts = [owner(prepare.raw(joint)[who][0].tensor) for who, owner in
                 zip(prepare.then(model).inputs, prepare.then(model).owners, strict=True)]  # fmt: skip
        with pytest.raises(InputError, match="'spent' may be missing"):
            asked(Linear(), joint, label="defaulted", columns=COLUMNS)
    score = model(torch.cat(parts, 1)).detach().squeeze(1)
    assert made["auc"].value == pytest.approx(sk.roc_auc_score(frames["registry"]["defaulted"], score), abs=1e-3)


def test_weights_and_missing_labels() -> None:
    frames, model = _frames(60), Linear()
    frames["registry"]["defaulted"] = frames["registry"]["defaulted"].astype("Int64")
    frames["registry"].loc[::6, "defaulted"] = None
    there = frames["registry"]["defaulted"].notna()
    label, score = frames["registry"]["defaulted"][there].astype(int), _clear(model, frames)[there]
    with _joint(frames, gone="true") as joint:
        made = evaluate(model, joint, label="defaulted", metrics=["f1", "log_loss"], columns=COLUMNS, weight="weight")
        exact = evaluate(model, joint, label="defaulted", metrics="auc", columns=COLUMNS, exact=True)
        with pytest.raises(InputError, match="sorting does not take weights"):
            asked(model, joint, label="defaulted", metrics="auc", columns=COLUMNS, exact=True, weight="weight")
    weight = frames["shop"]["weight"][there]
    assert made["f1"].value == pytest.approx(sk.f1_score(label, score >= 0, sample_weight=weight), abs=1e-5)
    loss = sk.log_loss(label, 1 / (1 + np.exp(-score)), sample_weight=weight)
    assert made["log_loss"].value == pytest.approx(loss, abs=1e-4)
    assert exact["auc"].value == pytest.approx(sk.roc_auc_score(label, score), abs=1e-5)


def test_classes_and_numbers_as_labels() -> None:
    frames, model = _frames(70), Linear(3)
    parts = [torch.tensor(frames[who][names].to_numpy()).float() for who, names in COLUMNS.items()]
    score = model(*parts).detach()
    codes = frames["registry"]["grade"].map({"a": 0, "b": 1, "c": 2})
    with _joint(frames) as joint:
        made = evaluate(model, joint, label="grade", metrics=["accuracy", "f1"], columns=COLUMNS)
        debt = evaluate(lambda bank, shop: 900 * bank - 500 * shop, joint, label="debt", columns=COLUMNS)
    assert made["accuracy"].value == pytest.approx(sk.accuracy_score(codes, score.argmax(1)))
    assert made["f1"].value == pytest.approx(sk.f1_score(codes, score.argmax(1), average="macro"), abs=1e-5)
    target, guess = frames["registry"]["debt"], 900 * frames["bank"]["income"] - 500 * frames["shop"]["spent"]
    assert debt["r2"].value == pytest.approx(sk.r2_score(target, guess), abs=1e-3)
    assert debt["mae"].value == pytest.approx(sk.mean_absolute_error(target, guess), rel=2e-2)


def test_scores_that_are_the_label_are_suspicious() -> None:
    frames = _frames(40)
    frames["bank"]["income"] = frames["registry"]["defaulted"] - 0.5
    with _joint(frames) as joint:
        for score, alike in ((lambda bank, shop: bank.squeeze(1), True), (lambda bank, shop: shop.squeeze(1), False)):
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                evaluate(score, joint, label="defaulted", metrics="auc", columns=COLUMNS)
            assert [w.category for w in said if "auc is 1.0000" in str(w.message)] == [data.LeakWarning] * alike


def test_each_metric_is_revealed_to_whom_it_is_for() -> None:
    frames = _frames(40)
    with _joint(frames) as joint:
        wanted = asked(Linear(), joint, label="defaulted", metrics=["accuracy", "f1"], columns=COLUMNS,
                       reveal={"accuracy": "bank", "f1": "shop"})  # fmt: skip
        assert wanted.queries[0].reveals == {"accuracy num": "bank", "f1 num": "shop", "f1 den": "shop"}
        assert "accuracy num to bank; f1 num, f1 den to shop" in wanted.plan()
        with pytest.raises(InputError, match="read off the same numbers"):
            asked(Linear(), joint, label="defaulted", metrics=["roc", "pr"], columns=COLUMNS,
                  reveal={"roc": "bank", "pr": "shop"})  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"label": "age"}, "no column 'age'"),
        ({"label": "debt", "metrics": ["auc"]}, "the label is a number"),
        ({"metrics": ["auc", "gini"]}, "gini"),
        ({"metrics": ["f1", "f1"]}, "f1 is asked for twice"),
        ({"reveal": {"auc": "bank"}, "metrics": ["auc", "f1"]}, "name a receiver for each"),
        ({"reveal": "tax"}, "'tax' is to learn"),
        ({"columns": {"bank": ["spent", "income"]}}, "'income' is not 'shop'"),
        ({"weight": "income"}, "may be negative"),
        ({"label": "grade", "metrics": [metrics.auc()]}, "another number of classes"),
        ({"scores": "odds"}, "'odds'"),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(wrong: dict[str, Any], said: str) -> None:
    with _joint(_frames(20)) as joint, pytest.raises(InputError, match=said):
        asked(Linear(), joint, **{"label": "defaulted", "columns": COLUMNS, "metrics": "accuracy", **wrong})


def test_fewer_rows_than_the_minimum_are_refused() -> None:
    with _joint(_frames(4)) as joint, pytest.raises(InputError, match="fewer than the schema's minimum of 5"):
        asked(Linear(), joint, label="defaulted", columns=COLUMNS)


def test_metrics_as_evaluations_of_a_training() -> None:
    made = torch.Generator().manual_seed(0)
    bank, shop = torch.randn(300, 2, generator=made), torch.randn(300, 1, generator=made)
    label = (torch.rand(300, generator=made) < torch.sigmoid(bank[:, 0] - shop[:, 0])).float()
    rows = securemodel.dataset(bank=securemodel.owned("bank", bank), shop=securemodel.owned("shop", shop),
                               label=securemodel.owned("registry", label))  # fmt: skip
    train, test = rows.split(0.1, seed=1)
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    f1, auc = metrics.f1(0.0), metrics.auc()

    def scores(bank: torch.Tensor, shop: torch.Tensor) -> torch.Tensor:
        return model(torch.cat([bank, shop], 1)).squeeze(1)

    def step(bank: torch.Tensor, shop: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = nn.functional.binary_cross_entropy_with_logits(scores(bank, shop), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss}

    def measured(bank: torch.Tensor, shop: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        score = scores(bank, shop)
        return {**f1.part.sums(label.long(), score, None), **auc.part.sums(label.long(), score, None)}

    job = securemodel.compile_training(
        step, model, optimizer, batch=train.batches(30), parties=["bank", "shop", "registry"],
        evaluate={"test": (measured, test, "bank")},
    )  # fmt: skip
    with job.local() as run:
        run.train_epoch()
        totals = run.evaluate()["test"]
        weights = run.export(to="bank")
    model.load_state_dict({name.removeprefix("model."): x for name, x in weights.items()})
    score = scores(bank, shop).detach()[test.positions[0]]
    truth = label[test.positions[0]]
    assert len(truth) == 270  # more than one batch
    assert f1.of_batches(totals, 270).value == pytest.approx(sk.f1_score(truth, score >= 0), abs=1e-6)
    found = auc.of_batches(totals, 270)
    assert abs(found.value - sk.roc_auc_score(truth, score)) <= found.error + 1e-5
    with pytest.raises(InputError, match="all rows at once"):
        metrics.auc(exact=True).of_batches(totals, 270)


def test_rows_that_only_some_parties_have() -> None:
    """Of one party's order, which the others do not know, and of all ids, of which nobody knows which are common."""
    frames, model = _frames(40), Linear()
    score, label = _clear(model, frames), frames["registry"]["defaulted"]
    ids = [f"person {at}" for at in range(40)]
    for name, frame in frames.items():
        frame["email"] = ids
        frames[name] = frame.iloc[5:] if name == "shop" else frame.sample(frac=1, random_state=1)
    schema = data.Schema.parse(
        SCHEMA.format(missing="false", gone="false").replace("minimum = 5", 'minimum = 5\nkeys = ["email"]')
    )
    common = slice(5, None)
    with data.local(schema, [data.table(name, frame) for name, frame in frames.items()]) as joint:
        with pytest.raises(InputError, match="not aligned"):
            asked(model, joint, label="defaulted", columns=COLUMNS)
        for learns in ("bank", "nobody"):
            rows = joint.align(learns=learns)
            found = evaluate(
                model, rows, label="defaulted", metrics=["f1", "confusion"], columns=COLUMNS, reveal="shop"
            )
            exact = evaluate(model, rows, label="defaulted", metrics="auc", columns=COLUMNS, exact=True, reveal="shop")
            assert found["f1"].value == pytest.approx(sk.f1_score(label[common], score[common] >= 0), abs=1e-5)
            matrix = sk.confusion_matrix(label[common], score[common] >= 0)
            assert [sum(row) for row in found["confusion"].curve["matrix"] if None not in row] == [
                int(sum(row))
                for row, shown in zip(matrix, found["confusion"].curve["matrix"], strict=True)
                if None not in shown
            ]
            assert exact["auc"].value == pytest.approx(sk.roc_auc_score(label[common], score[common]), abs=1e-5)


def test_other_parties_have_the_model_on_the_meta_device() -> None:
    with _joint(_frames(20)) as joint:
        whole = asked(Linear(), joint, label="defaulted", columns=COLUMNS, metrics="f1", weights="bank")
        empty = asked(Linear().to("meta"), joint, label="defaulted", columns=COLUMNS, metrics="f1", weights="bank")
    digests = [[piece.program.digest for piece in made.queries[0].pieces] for made in (whole, empty)]
    assert digests[0] == digests[1]
