"""Models of XGBoost as torch modules, read from its JSON: `from_xgboost`. Both dialects, of 3.2 and of 3.3 and later."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from protocols.errors import InputError, explain
from securemodel.models.columns import groups_of, reading, settled
from securemodel.models.forest import Trees
from securemodel.models.heads import Head, Link, Output
from securemodel.models.sklearn_steps import Features
from securemodel.models.sources import Number, code_less

_LINKS: dict[str, Link] = {
    "binary:logistic": "sigmoid", "reg:logistic": "sigmoid", "multi:softprob": "softmax", "multi:softmax": "softmax",
    "count:poisson": "exp", "reg:gamma": "exp", "reg:tweedie": "exp",
    "binary:logitraw": "none", "reg:squarederror": "none", "reg:absoluteerror": "none", "reg:pseudohubererror": "none",
    "reg:squaredlogerror": "none", "reg:quantileerror": "none", "reg:expectileerror": "none",
    "rank:ndcg": "none", "rank:map": "none", "rank:pairwise": "none",
}  # fmt: skip
_CLASSIFIERS = ("binary:logistic", "multi:softprob", "multi:softmax")


_SORTING = (3, 4)
"""The version of XGBoost that first sorts the quantiles of a row; the one that wrote a model decides."""
_LEAST_RISE = 1e-6
"""From one expectile's base score to the next, as XGBoost takes it."""


class Sorted(nn.Module):
    """The results of each row in rising order."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.body(*columns).sort(1).values


class Rising(nn.Module):
    """The first result of each row, and for each other what it adds, as softplus."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        made = self.body(*columns)
        return torch.cat([made[:, :1], F.softplus(made[:, 1:])], 1).cumsum(1)


@reading("XGBoost")
def from_xgboost(
    model: Any,
    *,
    columns: Sequence[Sequence[int | str]] | None = None,
    output: Output | None = None,
    missing: float | None = None,
) -> nn.Module:
    """The module of an XGBModel, a Booster, or a JSON file that `save_model` wrote; it takes float[rows, columns].

    `columns` and `output` are those of `from_sklearn`; "scores" are margins (`output_margin=True`). `missing`: the number
    that stands for missing values beside NaN. An XGBModel has it; a file or a Booster does not. Columns of categories
    hold the values that the model's table has, or the places in it of texts; others are refused, as XGBoost does.

    Raises InputError for forms that are not read.
    """
    limit = None
    if isinstance(model, (str, Path)):
        if Path(model).suffix != ".json":
            raise InputError(
                explain(f"the file {str(model)!r}", why="only JSON is read", fix="save_model('model.json')")
            )
        whole = json.loads(Path(model).read_text())
    else:
        if hasattr(model, "get_booster"):
            given = getattr(model, "missing", math.nan)
            missing = missing if missing is not None or given is None or math.isnan(given) else float(given)
            stopped = model.get_booster().attributes().get("best_iteration")
            limit = None if stopped is None else int(stopped) + 1
            model = model.get_booster()
        whole = json.loads(bytes(model.save_raw("json")))
    learner = whole["learner"]
    objective = learner["objective"]["name"]
    if objective not in _LINKS:
        raise InputError(explain(f"the objective {objective!r}", fix=f"objectives that are read: {', '.join(_LINKS)}"))
    params, names = learner["learner_model_param"], learner.get("feature_names", [])
    width, classes = int(params["num_feature"]), int(params["num_class"])
    outputs = max(1, classes, int(params.get("num_target", 1)))
    classifier = objective in _CLASSIFIERS
    wanted: Output = output or ("probabilities" if classifier else "value")
    if classifier == (wanted == "value"):
        raise InputError(explain(f"output={wanted!r} of {objective}", fix="see the documentation of from_sklearn"))
    start, groups = _start(params["base_score"], objective, outputs), groups_of(columns, width, names)
    booster = learner["gradient_booster"]
    if booster["name"] == "gblinear":
        x = Features.of_columns(width)
        x.sources = [Number(c, 0, 0.0) for c in range(width)]
        weights = np.array(booster["model"]["weights"], float).reshape(width + 1, outputs)
        body: nn.Module = x.times(weights[:-1], weights[-1] + start).module(groups)
    else:
        body = _trees(booster, learner, outputs, start, limit, missing).module(groups)
    if outputs > 1 and objective == "reg:expectileerror":
        body = Rising(body)
    if outputs > 1 and objective == "reg:quantileerror" and tuple(whole["version"]) >= _SORTING:
        body = Sorted(body)
    module = Head(body, wanted, _LINKS[objective])
    return settled(module, list(range(max(2, classes))) if classifier else None, names)


def _start(text: Any, objective: str, outputs: int) -> np.ndarray:
    """Margins before any tree: a number or a list; of one output, and expectiles, on the scale of the result."""
    found = json.loads(str(text))
    start = np.array(found if isinstance(found, list) else [found], float)
    if _LINKS[objective] == "sigmoid":
        start = np.log(start / (1 - start))
    elif _LINKS[objective] == "exp":
        start = np.log(start)
    start = np.broadcast_to(start, outputs).copy()
    if objective == "reg:expectileerror":
        start[1:] = np.log(np.expm1(np.maximum(np.diff(start), _LEAST_RISE)))
    return start


def _trees(booster: dict, learner: dict, outputs: int, start, limit: int | None, missing: float | None) -> Trees:
    inner = booster.get("gbtree", booster)["model"]
    weights = booster.get("weight_drop") or inner.get("weight_drop") or [1.0] * len(inner["trees"])
    count = len(inner["trees"])
    if limit is not None:
        count = inner["iteration_indptr"][limit]
    trees = Trees(outputs, single=True)
    trees.start = start
    values = _categories(inner.get("cats", {}), learner.get("feature_types", []))
    for number in range(count):
        _add(trees, inner["trees"][number], inner["tree_info"][number], weights[number], values, missing)
    return trees


def _categories(table: dict, kinds: list[str]) -> dict[int, tuple[float, ...]]:
    """For each column of categories with a table of values, the number of each code: itself, or the place of a text."""
    found = {}
    for column, part in enumerate(table.get("enc", [])):
        if column < len(kinds) and kinds[column] == "c" and part.get("values"):
            texts = "offsets" in part
            found[column] = tuple(map(float, range(len(part["offsets"]) - 1) if texts else part["values"]))
    return found


def _add(trees: Trees, tree: dict, group: int, weight: float, values: dict, missing: float | None) -> None:
    left, right, column = tree["left_children"], tree["right_children"], tree["split_indices"]
    conditions, size = np.array(tree["split_conditions"], np.float32), int(tree["tree_param"]["size_leaf_vector"] or 1)
    codes, kinds = code_less(conditions), tree.get("split_type") or [0] * len(left)
    segments = dict(
        zip(
            tree["categories_nodes"],
            zip(tree["categories_segments"], tree["categories_sizes"], strict=True),
            strict=True,
        )
    )

    def split(node: int):
        if left[node] == -1:
            return None
        goes_left = bool(tree["default_left"][node])
        if not kinds[node]:
            return (
                trees.number(column[node], codes[node], "low" if goes_left else "high", missing),
                left[node],
                right[node],
            )
        begin, length = segments[node]
        known = values.get(column[node])
        members = tree["categories"][begin : begin + length]
        chosen = [float(c) if known is None else known[c] for c in members]
        condition = trees.category(column[node], chosen if goes_left else [*chosen, math.nan], known)
        return condition, right[node], left[node]

    def leaf(node: int) -> np.ndarray:
        if size > 1:
            table = tree.get("leaf_weights") or tree["base_weights"]
            return np.array(table[size * right[node] : size * (right[node] + 1)], float) * weight
        made = np.zeros(trees.outputs)
        made[group] = float(conditions[node]) * weight
        return made

    trees.add(split, leaf)
