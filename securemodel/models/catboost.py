"""Models of CatBoost as torch modules, read from its JSON: `from_catboost`."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from protocols.errors import InputError, explain
from securemodel.models.columns import groups_of, reading, settled
from securemodel.models.forest import Trees
from securemodel.models.heads import Head, Link, Output
from securemodel.models.sources import Missing, code_at_most

_LINKS: dict[str, Link] = {
    "Logloss": "sigmoid", "CrossEntropy": "sigmoid", "MultiClass": "softmax", "MultiClassOneVsAll": "each",
    "Poisson": "exp", "Tweedie": "exp",
    "RMSE": "none", "MAE": "none", "Quantile": "none", "MAPE": "none", "Huber": "none", "LogCosh": "none", "Expectile": "none",
}  # fmt: skip
_CLASSIFIERS = ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll")


@reading("CatBoost")
def from_catboost(
    model: Any,
    *,
    columns: Sequence[Sequence[int | str]] | None = None,
    output: Output | None = None,
    pool: Any = None,
) -> nn.Module:
    """The module of a fitted CatBoost model, or of a JSON file that `save_model(..., format="json")` wrote.

    `columns` and `output` are those of `from_sklearn`; "scores" are raw values (`prediction_type="RawFormulaVal"`).
    Columns of categories hold whole numbers, as in fitting, and are compared one value at a time (`one_hot_max_size`); those
    that CatBoost replaces by statistics of the training data are refused, and so are texts. It keeps hashes of categories:
    `pool` (a `catboost.Pool` with all of them, such as that of fitting) says what they stand for; a file has that from
    `save_model(..., format="json", pool=...)`.

    Raises InputError for forms that are not read.
    """
    if isinstance(model, (str, Path)):
        whole = json.loads(Path(model).read_text())
    else:
        with tempfile.TemporaryDirectory() as folder:
            model.save_model(f"{folder}/model.json", format="json", pool=pool)
            whole = json.loads(Path(folder, "model.json").read_text())
    info = whole["features_info"]
    if info.get("text_features") or info.get("embedding_features"):
        raise InputError(explain("columns of text in CatBoost", fix="encode them before fitting"))
    objective = json.loads(json.dumps(whole["model_info"]["params"]))["loss_function"]["type"]
    if objective not in _LINKS:
        raise InputError(explain(f"the loss {objective!r}", fix=f"losses that are read: {', '.join(_LINKS)}"))
    classifier = objective in _CLASSIFIERS
    wanted: Output = output or ("probabilities" if classifier else "value")
    if classifier == (wanted == "value"):
        raise InputError(explain(f"output={wanted!r} of {objective}", fix="see the documentation of from_sklearn"))
    floats, categories = info.get("float_features", []), info.get("categorical_features", [])
    scale, bias = whole["scale_and_bias"]
    trees = Trees(len(bias), single=True)
    treatments: dict[str, Missing] = {"AsIs": "low", "AsFalse": "low", "AsTrue": "high"}
    places = [(f["flat_feature_index"], treatments[f["nan_value_treatment"]]) for f in floats]
    find = Conditions(trees, places, [f["flat_feature_index"] for f in categories], _hashes(info))
    for tree in whole.get("oblivious_trees", []):
        _add_oblivious(trees, tree, find, scale)
    for tree in whole.get("trees", []):
        _add_nested(trees, tree, find, scale)
    trees.start = trees.start + np.array(bias, float)
    names = [f["feature_id"] for f in sorted([*floats, *categories], key=lambda f: f["flat_feature_index"])]
    width = 1 + max(f["flat_feature_index"] for f in [*floats, *categories])
    body = trees.module(groups_of(columns, width, names))
    known = whole["model_info"].get("class_params", {}).get("class_names") if classifier else None
    return settled(Head(body, wanted, _LINKS[objective]), known, names)


def _hashes(info: dict) -> dict[int, str]:
    """The category of each hash, as text."""
    return {int(entry["hash"]): entry["value"] for entry in info.get("cat_features_hash", [])}


@dataclass(frozen=True)
class Conditions:
    """What splits are on columns: `numbers` are (column, where missing values are), `categories` columns."""

    trees: Trees
    numbers: list[tuple[int, Missing]]
    categories: list[int]
    hashes: dict[int, str]

    def of(self, split: dict) -> tuple[tuple, bool]:
        """A condition, and whether rows for which it holds are right (they have the category), or left (not above)."""
        if split["split_type"] == "FloatFeature":
            column, missing = self.numbers[split["float_feature_index"]]
            return self.trees.number(column, int(code_at_most(split["border"], single=True)), missing), False
        if split["split_type"] != "OneHotFeature":
            raise InputError(
                explain("categories that CatBoost replaces by statistics of the training data",
                        fix="fit with one_hot_max_size of at least the number of categories, or encode them before fitting")
            )  # fmt: skip
        text = self.hashes.get(split["value"] % 2**32)
        if text is None:
            raise InputError(explain("the model has hashes of categories only",
                                     fix="name pool= to from_catboost, or to save_model(..., format='json')"))  # fmt: skip
        if not text.removeprefix("-").isdecimal():
            raise InputError(
                explain("categories of CatBoost that are texts", fix="make them whole numbers before fitting")
            )
        return self.trees.category(self.categories[split["cat_feature_index"]], [float(text)]), True


def _add_oblivious(trees: Trees, tree: dict, find: Conditions, scale: float) -> None:
    """One split a level: bit i of a leaf's number says whether a row is above border i, or has category i."""
    conditions = [find.of(split) for split in tree["splits"]]
    leaves = np.array(tree["leaf_values"], float).reshape(-1, trees.outputs) * scale
    first = len(leaves)  # nodes of level i are numbered first * i + bits so far

    def split(node: int):
        level, bits = divmod(node, first)
        if level == len(conditions):
            return None
        condition, above = conditions[level]
        low, high = first * (level + 1) + bits, first * (level + 1) + bits + (1 << level)
        return (condition, high, low) if above else (condition, low, high)

    trees.add(split, lambda node: leaves[node % first])


def _add_nested(trees: Trees, tree: dict, find: Conditions, scale: float) -> None:
    nodes = [tree]

    def split(node: int):
        here = nodes[node]
        if "split" not in here:
            return None
        nodes.extend([here["left"], here["right"]])
        condition, right = find.of(here["split"])
        low, high = len(nodes) - 2, len(nodes) - 1
        return (condition, high, low) if right else (condition, low, high)

    trees.add(split, lambda node: np.array(nodes[node]["value"], float).reshape(-1) * scale)
