"""Models of LightGBM as torch modules, read from its text format: `from_lightgbm`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from protocols.errors import InputError, explain
from securemodel.models.columns import groups_of, reading, settled
from securemodel.models.forest import Trees
from securemodel.models.heads import Head, Link, Output, Times
from securemodel.models.sources import Missing, Number, Sources, code_at_most

_LINKS: dict[str, Link] = {
    "binary": "sigmoid", "cross_entropy": "sigmoid", "multiclass": "softmax", "multiclassova": "each",
    "poisson": "exp", "gamma": "exp", "tweedie": "exp",
    "regression": "none", "regression_l1": "none", "huber": "none", "fair": "none", "quantile": "none", "mape": "none",
    "lambdarank": "none", "rank_xendcg": "none",
}  # fmt: skip
_CLASSIFIERS = ("binary", "multiclass", "multiclassova")


@reading("LightGBM")
def from_lightgbm(
    model: Any, *, columns: Sequence[Sequence[int | str]] | None = None, output: Output | None = None
) -> nn.Module:
    """The module of an LGBMModel, a Booster, or a text file that `save_model` wrote; it takes float[rows, columns].

    `columns` and `output` are those of `from_sklearn`; "scores" are raw scores (`raw_score=True`), which of random forests
    are sums, not means. Columns of categories hold whole numbers, or places in the list of a pandas column's texts.

    Raises InputError for forms that are not read.
    """
    classes = getattr(model, "classes_", None)
    if isinstance(model, (str, Path)):
        text = Path(model).read_text()
    else:
        text = getattr(model, "booster_", model).model_to_string()
    head, *blocks = text.split("\nTree=")
    about = _pairs(head)
    objective, *options = about.get("objective", "").split()
    if objective not in _LINKS or "sqrt" in options:
        what = " ".join([objective, *options]) or "a function of its own"
        raise InputError(explain(f"the objective {what}", fix=f"objectives that are read: {', '.join(_LINKS)}"))
    if blocks and "\nend of trees" not in text:
        raise InputError(explain("the text of the model is cut off", fix="save it again"))
    outputs, names = int(about["num_tree_per_iteration"]), about["feature_names"].split()
    described = [_pairs(block.split("\n\n")[0]) for block in blocks]
    slopes = _slopes(described, about)
    trees = Trees(outputs * (1 + len(slopes)), single=False, flat=True)
    values = _categories(text, about)
    for number, tree in enumerate(described):
        _add(trees, tree, number % outputs, values, slopes)
    classifier = objective in _CLASSIFIERS
    wanted: Output = output or ("probabilities" if classifier else "value")
    if classifier == (wanted == "value"):
        raise InputError(explain(f"output={wanted!r} of {objective}", fix="see the documentation of from_sklearn"))
    mean = outputs / len(blocks) if "average_output" in head.split("\n") and wanted != "scores" else 1.0
    trees.start = trees.start * mean
    groups = groups_of(columns, int(about["max_feature_idx"]) + 1, names)
    body: nn.Module = trees.module(groups, mean)
    if slopes:
        body = LinearLeaves(body, Sources([Number(c, e - _MORE_BITS, 0.0) for c, e in slopes.items()], groups), outputs)
    steep = next((float(option[8:]) for option in options if option.startswith("sigmoid:")), 1.0)
    if steep != 1 and wanted == "probabilities":
        body = Times(body, steep)
    known = classes if classes is not None else range(max(2, outputs)) if classifier else None
    return settled(Head(body, wanted, _LINKS[objective]), None if known is None else list(known), names)


def _pairs(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.split("\n") if "=" in line)


def _categories(text: str, about: dict[str, str]) -> dict[int, list[float]]:
    """For columns that were categories of pandas, the number that a column has for each code."""
    line = next((line for line in reversed(text.split("\n")) if line.startswith("pandas_categorical:")), "")
    lists = json.loads(line.partition(":")[2] or "null") or []
    infos = about["feature_infos"].split()
    marked = [at for at, info in enumerate(infos) if info != "none" and not info.startswith("[")]
    if lists and len(lists) != len(marked):
        raise InputError(explain("some columns of categories are of pandas, and others are not, or have one value only",
                                 fix="make all of them whole numbers before fitting"))  # fmt: skip
    numbers = lambda values: [float(v) if isinstance(v, (int, float)) else float(at) for at, v in enumerate(values)]
    return {column: numbers(values) for column, values in zip(marked, lists, strict=False)}


_MORE_BITS = 4
"""Columns have so many bits more in linear leaves."""


class LinearLeaves(nn.Module):
    """float[rows, outputs]: of leaves that are a number and a slope for each of some columns, the sums over trees."""

    def __init__(self, trees: nn.Module, numbers: Sources, outputs: int) -> None:
        super().__init__()
        self.trees, self.numbers, self.outputs = trees, numbers, outputs

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        x = self.numbers(*columns)
        found = self.trees(*columns).reshape(len(x), self.outputs, -1)
        return found[:, :, 0] + (found[:, :, 1:] * x.unsqueeze(1)).sum(2) * 2.0**-_MORE_BITS


def _slopes(trees: Sequence[dict[str, str]], about: dict[str, str]) -> dict[int, int]:
    """The columns that linear leaves multiply, and for each the power of two that its training values are below."""
    found = sorted({int(column) for tree in trees for column in tree.get("leaf_features", "").split()})
    infos = about["feature_infos"].split()
    ends = {column: [abs(float(end)) for end in infos[column].strip("[]").split(":")] for column in found}
    return {column: math.ceil(math.log2(max(*ends[column], 2.0**-30))) for column in found}


def _add(
    trees: Trees, tree: dict[str, str], group: int, values: dict[int, list[float]], slopes: dict[int, int]
) -> None:
    floats = lambda name: [float(number) for number in tree.get(name, "").split()]
    whole = lambda name: [int(number) for number in tree.get(name, "").split()]
    leaves, columns, kinds = floats("leaf_value"), whole("split_feature"), whole("decision_type")
    lefts, rights, thresholds = whole("left_child"), whole("right_child"), floats("threshold")
    codes = code_at_most(np.array(thresholds), single=False)
    bounds, words = whole("cat_boundaries"), whole("cat_threshold")

    linear, places = tree.get("is_linear", "0") != "0", {column: at for at, column in enumerate(slopes)}
    ends = np.cumsum([0, *whole("num_features")])
    reads, coefficients = whole("leaf_features"), floats("leaf_coeff")

    def split(node: Any):
        if isinstance(node, tuple):  # a leaf, and how many of the columns that it multiplies are known to be there
            number, present = node
            if present is None or ends[number] + present == ends[number + 1]:
                return None
            missing = trees.category(reads[ends[number] + present], [math.nan])
            return missing, (number, None), (number, present + 1)
        column, kind = columns[node], kinds[node]
        yes, no = (at if at >= 0 else (-1 - at, 0 if linear else None) for at in (lefts[node], rights[node]))
        if kind & 1:
            at = int(thresholds[node])
            bits = words[bounds[at] : bounds[at + 1]]
            chosen = [c for c in range(32 * len(bits)) if bits[c // 32] >> (c % 32) & 1]
            known = values.get(column)
            members = [float(c) if known is None else known[c] for c in chosen]
            return trees.category(column, members), yes, no
        side: Missing = "low" if kind & 2 else "high"
        mode = kind >> 2 & 3  # of missing values: none, zeros, NaN
        if mode == 0:
            side = "zero"
        return trees.number(column, codes[node], side, 0.0 if mode == 1 else None), yes, no

    def leaf(node: Any) -> np.ndarray:
        """One number for each output, each followed by the slopes."""
        number, present = node
        made = np.zeros((trees.outputs // (1 + len(slopes)), 1 + len(slopes)))
        made[group, 0] = leaves[number] if present is None else floats("leaf_const")[number]
        for at in range(ends[number], ends[number + 1]) if present is not None else ():
            column = reads[at]
            made[group, 1 + places[column]] += coefficients[at] * 2.0 ** slopes[column]
        return made.reshape(-1)

    trees.add(split, leaf, 0 if columns else (0, 0 if linear else None))
