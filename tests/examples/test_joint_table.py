"""The example of a joint table, in small."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from securemodel import data
from securemodel.data.normalize import joined


@pytest.fixture
def people(example, tmp_path) -> pd.DataFrame:
    return example("joint_table", "make_files").make(tmp_path / "files", people=260, seed=3)


def test_the_files_say_what_is_known_of_everybody(example, people, tmp_path) -> None:
    tables = example("joint_table", "tables")
    read = {source.party: data.read(source, tables.SCHEMA) for source in tables.tables(tmp_path / "files")}
    ids = [joined([email, born.isoformat()]) for email, born in zip(people.index, people["born"], strict=True)]
    at = {party: {row: place for place, row in enumerate(table.ids)} for party, table in read.items()}
    common = set(at["bank"]) & set(at["shop"]) & set(at["registry"])
    assert common == set(ids) and len(ids) > 100
    for name, column in tables.SCHEMA.columns.items():
        table = read[column.owner]
        rows = [at[column.owner][row] for row in ids]
        values, theirs = table.columns[name][rows], people[name]
        absent = table.missing[name][rows] if column.missing else np.zeros(len(rows), bool)
        assert absent.tolist() == theirs.isna().tolist()
        if column.kind == "category":
            found = [column.labels[code] for code in values]
            wanted = [value if value in column.values else "other" for value in theirs]
            assert [f for f, a in zip(found, absent, strict=True) if not a] == [w for w, a in zip(wanted, absent, strict=True) if not a]  # fmt: skip
        elif column.kind == "date":
            assert [np.datetime64(int(value), "D").astype(object) for value in values] == theirs.tolist()
        else:
            wanted = np.clip(theirs.fillna(0).to_numpy(float), column.low, column.high)
            assert np.abs(values - wanted).max() < 1e-9


def test_each_kind_of_trouble_is_in_the_files(example, people, tmp_path) -> None:
    tables = example("joint_table", "tables")
    notes = {s.party: " ".join(data.read(s, tables.SCHEMA).notes) for s in tables.tables(tmp_path / "files")}
    assert "ids in several rows" in notes["bank"] and "ids in several rows" in notes["shop"]
    assert "in the class of others" in notes["shop"] and "without an id left out" in notes["registry"]
    strict = data.Schema.parse(
        (tables.HERE / "joint.toml").read_text().replace('missing = "drop"', 'missing = "error"')
    )
    with pytest.raises(data.TableErrors, match="rows without an id"):
        data.read(tables.tables(tmp_path / "files")[2], strict)


def test_from_files_to_an_evaluation(example, people, tmp_path) -> None:
    joint_table = example("joint_table", "joint")
    joint = data.local(joint_table.SCHEMA, joint_table.tables(tmp_path / "files")).align("all")
    assert joint.rows == len(people)
    train, test = joint.split(0.8, stratify="defaulted")
    prepare = joint_table.pipeline().fit(train)
    assert prepare.feature_names_out[-5:] == tuple(
        f"city_{name}" for name in ("Antwerp", "Ghent", "Utrecht", "other", "nan")
    )
    model = joint_table.make_model(len(prepare.feature_names_out))
    job, _ = joint_table.make_job(model, prepare, train)
    with job.local() as run:
        losses = [float(step["loss"]) for step in run.train_epoch()]
        model.load_state_dict(run.export(to="bank"))
    assert len(losses) == 2 and all(0.2 < loss < 1.5 for loss in losses)
    found = data.evaluate(prepare.then(model), test, label="defaulted", metrics="log_loss", weights="bank")
    features = torch.cat([prepare(test).columns[party][0].tensor for party in ("bank", "shop")], 1)
    labels = torch.from_numpy(test.mine("defaulted")).float()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(model(features).squeeze(1), labels)
    assert found["log_loss"].value == pytest.approx(wanted.item(), abs=1e-3)


@pytest.mark.slow
def test_three_parties_run_it(run_example, example, people, tmp_path) -> None:
    args = ["--files", str(tmp_path / "files"), "--out", str(tmp_path / "out"), "--epochs", "1"]
    script = example("joint_table", "tables").HERE / "joint.py"
    said = run_example(script, args, ("bank", "shop", "registry"))
    assert f"bank | {len(people)} people are known to all three" in said
    assert any("log_loss: 0." in line for line in said)
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in report and "<script" not in report
    kept = {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {
        "bank.aligned",
        "shop.aligned",
        "report.json",
        "model.safetensors",
        "pipeline.json",
        "shop.safetensors",
    } <= kept
