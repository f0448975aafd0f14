"""A folder of a saved pipeline may come from anywhere: it is read strictly, and what is odd is an error of ours."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import FileError, InputError
from securemodel.data.discretizing import KBinsDiscretizer
from securemodel.data.encoding import OneHotEncoder
from securemodel.data.pipeline import Pipeline
from securemodel.data.prepared import Prepared
from securemodel.data.scaling import StandardScaler
from securemodel.data.schema import Schema
from tests.data.joint_stand_in import StandIn

SCHEMA = Schema.parse("""
[table]
split = "columns"
[columns.age]
owner = "bank"
kind = "integer"
low = 0
high = 99
[columns.city]
owner = "shop"
kind = "category"
values = ["Ghent", "Oslo"]
""")
JOINT = StandIn(SCHEMA, {"bank": {"age": np.arange(40.0)}, "shop": {"city": np.arange(40.0) % 2}})
PIPELINE = Pipeline(age=[StandardScaler(), KBinsDiscretizer(3, "ordinal")], city=OneHotEncoder("first"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    PIPELINE.fit(JOINT).save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def change(folder, how) -> None:
    path = folder / "pipeline.json"
    found = json.loads(path.read_text())
    how(found)
    path.write_text(json.dumps(found))


def test_what_was_saved_is_read(folder):
    made = Prepared.load(folder, SCHEMA)
    assert made.feature_names_out == ("age", "city_Oslo")
    assert made["age"][0].step == StandardScaler() and not made["age"][0].known and made["city"][0].known


CHANGES = {
    "format": lambda f: f.update(format="securemodel pipeline 2"),
    "schema": lambda f: f.update(schema="0" * 64),
    "no schema": lambda f: f.pop("schema"),
    "more": lambda f: f.update(more=1),
    "no columns": lambda f: f.update(columns=[]),
    "columns are text": lambda f: f.update(columns="age"),
    "a column twice": lambda f: f["columns"].append(f["columns"][0]),
    "a column is a number": lambda f: f["columns"].append(3),
    "an unknown column": lambda f: f["columns"][0].update(name="salary"),
    "a name is a list": lambda f: f["columns"][0].update(name=["age"]),
    "beside is text": lambda f: f["columns"][0].update(beside="no"),
    "steps are a number": lambda f: f["columns"][0].update(steps=3),
    "a step is text": lambda f: f["columns"][0].update(steps=["StandardScaler"]),
    "an unknown step": lambda f: f["columns"][0]["steps"][0].update(step="Popen"),
    "a step is a list": lambda f: f["columns"][0]["steps"][0].update(step=["StandardScaler"]),
    "an unknown setting": lambda f: f["columns"][0]["steps"][0].update(copy=True),
    "a setting is missing": lambda f: f["columns"][0]["steps"][0].pop("with_mean"),
    "a setting is an object": lambda f: f["columns"][0]["steps"][0].update(with_mean={}),
    "a setting is a list of lists": lambda f: f["columns"][0]["steps"][0].update(with_mean=[[1]]),
    "a setting is wrong": lambda f: f["columns"][0]["steps"][1].update(n_bins=0),
    "a setting is text": lambda f: f["columns"][0]["steps"][1].update(n_bins="3"),
    "many bins": lambda f: f["columns"][0]["steps"][1].update(n_bins=10**9),
    "other shapes": lambda f: f["columns"][0]["steps"][1].update(n_bins=4),
    "known is text": lambda f: f["columns"][0]["steps"][0].update(known="yes"),
    "known is missing": lambda f: f["columns"][0]["steps"][0].pop("known"),
    "known to others": lambda f: f["columns"][0]["steps"][0].update(known=True),
    "no secret": lambda f: f["columns"][0].pop("secret"),
    "secret is text": lambda f: f["columns"][0].update(secret="yes"),
    "secret of nobody": lambda f: f["columns"][0].update(secret={"step": f["columns"][0]["steps"][0], "parties": []}),
    "secret of a path": lambda f: f["columns"][0].update(
        secret={"step": f["columns"][0]["steps"][0], "parties": ["../x"]}
    ),
    "a secret step that cannot": lambda f: f["columns"][0].update(
        secret={"step": {"step": "Clip", "lower": 0.1, "upper": 0.9}, "parties": ["bank"]}
    ),
    "a step that does not fit": lambda f: f["columns"][1].update(steps=[{**f["columns"][0]["steps"][0]}]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_odd_in_it(folder, name):
    change(folder, CHANGES[name])
    with pytest.raises(InputError):
        Prepared.load(folder, SCHEMA)


@given(
    st.binary(max_size=60)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5), lambda s: st.lists(s) | st.dictionaries(st.text(max_size=5), s)
    )
)
@settings(max_examples=60, deadline=None)
def test_anything_in_its_place(saved, tmp_path_factory, anything):
    folder = tmp_path_factory.mktemp("odd")
    (folder / "pipeline.json").write_bytes(anything if isinstance(anything, bytes) else json.dumps(anything).encode())
    with pytest.raises(InputError):
        Prepared.load(folder, SCHEMA)


@pytest.mark.parametrize(
    "text", ['{"format": NaN}', "[" * 100_000, '{"format": "securemodel pipeline 1"}', "", "\ud7ff"]
)
def test_other_texts(folder, text):
    (folder / "pipeline.json").write_text(text)
    with pytest.raises(InputError):
        Prepared.load(folder, SCHEMA)


def tensors(folder, how) -> None:
    path = folder / "bank.safetensors"
    found = safetensors.torch.load_file(path)
    safetensors.torch.save_file(how(found), path)


@pytest.mark.parametrize(
    "how",
    [
        lambda f: {**f, "more": torch.zeros(1)},
        lambda f: dict(list(f.items())[1:]),
        lambda f: {name: t.float() for name, t in f.items()},
        lambda f: {name: torch.cat([t, t]) for name, t in f.items()},
    ],
)
def test_other_parameters(folder, how):
    tensors(folder, how)
    with pytest.raises(InputError, match="other parameters"):
        Prepared.load(folder, SCHEMA)


def test_files_that_are_damaged_or_not_there(folder):
    path = folder / "bank.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match="no safetensors"):
        Prepared.load(folder, SCHEMA)
    path.write_bytes(b"x" * (1 << 25))
    with pytest.raises(InputError, match="more than these"):
        Prepared.load(folder, SCHEMA)
    path.unlink()
    with pytest.raises(FileError, match="bank"):
        Prepared.load(folder, SCHEMA)
    assert Prepared.load(folder, SCHEMA, "shop").feature_names_out
    with pytest.raises(FileError):
        Prepared.load(folder / "nowhere", SCHEMA)
