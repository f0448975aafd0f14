"""Models of XGBoost, LightGBM and CatBoost give what their libraries give."""

from __future__ import annotations

import json

import catboost
import lightgbm
import numpy as np
import pandas
import pytest
import torch
import xgboost
from sklearn import ensemble
from sklearn.base import clone
from threadpoolctl import threadpool_limits
from torch import nn

import securemodel
from securemodel.errors import InputError
from securemodel.models import from_catboost, from_lightgbm, from_sklearn, from_structure, from_xgboost, structure

TWO = {"weights": "a", "inputs": "b", "outputs": "b"}
BOUND = 2.0**-12


@pytest.fixture(autouse=True)
def one_thread():
    """Threads of the libraries would wait for those of torch."""
    with threadpool_limits(1, user_api="openmp"):
        yield


def data(classes=2, rows=1200, seed=3):
    """Numbers, of which some repeat and some are missing, and a column of small whole numbers; labels, a target."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, 5))
    x[:, 1] = np.round(x[:, 1] * 4)
    x[:, 2] = x[:, 2] * 1e4 + 3e5
    x[:, 4] = random.integers(0, 6, rows)
    score = x[:, 0] * 2 + np.abs(x[:, 1]) / 2 + np.isin(x[:, 4], [1, 4]) + random.normal(size=rows) / 3
    y = np.digitize(score, np.quantile(score, np.arange(1, classes) / classes))
    x[random.random(x.shape) < 0.05] = np.nan
    x[:, 4] = np.nan_to_num(x[:, 4])
    return x, y, np.abs(score)


class Parts(nn.Module):
    """Several modules on the same columns, compiled once."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, *columns):
        return tuple(part(*columns) for part in self.parts)


def agree(pairs, rows) -> None:
    """Each module gives, in the clear and among parties, what is beside it. Those of whole numbers are classes."""
    rows = torch.tensor(np.asarray(rows, float))
    module = Parts(*[m for m, _ in pairs], pairs[0][0])
    program = securemodel.compile(module, rows, **TWO)
    with securemodel.local(program) as session:
        made = session.run(rows)
    for result, clear, (_, expected) in zip(made, module(rows), pairs, strict=False):
        expected = np.asarray(expected)
        assert result.shape == clear.shape == expected.shape and expected.std() > 0.01
        whole = expected.dtype.kind in "iu"
        assert np.abs(clear.numpy() - expected).max() < (
            1e-9 if whole else 3e-7 * (10 + abs(expected).max())
        )  # float32
        assert np.abs(result.numpy() - expected).max() < (1e-9 if whole else BOUND * max(1, abs(expected).max()))


def on_thresholds(x, thresholds, rows=200):
    """Rows with values that are thresholds, or are next to one as float32."""
    random, made = np.random.default_rng(0), x[:rows].copy()
    for column, values in thresholds.items():
        chosen = np.float32(random.choice([v for v in sorted(values) if abs(v) < 1e38], rows))
        beside = [chosen, np.nextafter(chosen, np.float32(np.inf)), np.nextafter(chosen, np.float32(-np.inf))]
        made[:, column] = np.where(np.isnan(made[:, column]), np.nan, np.choose(random.integers(0, 3, rows), beside))
    return made


def trees_of(model):
    return json.loads(bytes(model.get_booster().save_raw("json")))["learner"]["gradient_booster"]["model"]["trees"]


SMALL = {"n_estimators": 6, "max_depth": 4, "n_jobs": 1}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("method", ["hist", "exact"])
def test_xgboost_classes(classes, method):
    x, y, _ = data(classes)
    model = xgboost.XGBClassifier(tree_method=method, **SMALL).fit(x, y)
    found: dict[int, set] = {}
    for tree in trees_of(model):
        for node, left in enumerate(tree["left_children"]):
            if left != -1:
                found.setdefault(tree["split_indices"][node], set()).add(tree["split_conditions"][node])
    rows = on_thresholds(x, found)
    agree([(from_xgboost(model), model.predict_proba(rows)),
           (from_xgboost(model, output="scores"), model.predict(rows, output_margin=True)),
           (from_xgboost(model, output="class"), model.predict(rows))], rows)  # fmt: skip


@pytest.mark.parametrize("objective", ["reg:squarederror", "count:poisson", "reg:gamma", "reg:tweedie", "reg:logistic"])
def test_xgboost_objectives(objective):
    x, _, target = data()
    target = target / (target.max() + 1) if objective == "reg:logistic" else target + 0.1
    model = xgboost.XGBRegressor(objective=objective, **SMALL).fit(x, target)
    agree([(from_xgboost(model), model.predict(x[:100]))], x[:100])


def test_xgboost_dart_weights_forests_linear_models_and_vector_leaves(tmp_path):
    x, y, target = data()
    both = np.stack([target, target + 100], 1)
    for model, wanted in (
        (xgboost.XGBRegressor(booster="dart", rate_drop=0.5, seed=1, **SMALL), target),
        (xgboost.XGBRFRegressor(n_estimators=5, max_depth=4), target),
        (xgboost.XGBRegressor(multi_strategy="multi_output_tree", **SMALL), both),
        (xgboost.XGBRegressor(**SMALL), both),
    ):
        model.fit(x, wanted)
        agree([(from_xgboost(model), model.predict(x[:80]))], x[:80])
    model.save_model(tmp_path / "m.json")
    assert structure(from_xgboost(tmp_path / "m.json")) == structure(from_xgboost(model))
    model = xgboost.XGBRegressor(booster="gblinear", n_estimators=5).fit(x[:, [0, 1, 3]], y)
    agree([(from_xgboost(model), model.predict(x[:80, [0, 1, 3]]))], x[:80, [0, 1, 3]])


def test_xgboost_weights_of_dart_where_newer_versions_have_them():
    x, _, target = data()
    model = xgboost.XGBRegressor(booster="dart", rate_drop=0.5, seed=1, **SMALL).fit(x, target)
    whole = json.loads(bytes(model.get_booster().save_raw("json")))
    booster = whole["learner"]["gradient_booster"]
    if "gbtree" in booster:
        model_part = {**booster["gbtree"]["model"], "weight_drop": booster["weight_drop"]}
        whole["learner"]["gradient_booster"] = {"name": "gbtree", "model": model_part}

    rows = torch.tensor(x[:50])
    assert torch.equal(from_xgboost(Written(whole))(rows), from_xgboost(model)(rows))
    assert np.abs(from_xgboost(Written(whole))(rows).numpy() - model.predict(x[:50])).max() < 1e-5


def test_xgboost_stops_at_the_best_iteration():
    x, y, _ = data()
    noise = np.random.default_rng(0).integers(0, 2, 400)
    model = xgboost.XGBClassifier(early_stopping_rounds=2, **{**SMALL, "n_estimators": 20})
    model.fit(x[:800], y[:800], eval_set=[(x[800:], noise)], verbose=False)
    assert len(trees_of(model)) > model.best_iteration + 1
    agree([(from_xgboost(model), model.predict_proba(x[:80]))], x[:80])


class Written:
    """A booster that wrote this JSON."""

    def __init__(self, whole: dict) -> None:
        self.whole = whole

    def save_raw(self, _):
        return bytearray(json.dumps(self.whole), "utf8")


@pytest.mark.parametrize("version, rising", [([3, 2, 0], False), ([3, 3, 0], False), ([3, 4, 1], True)])
def test_xgboost_quantiles_are_sorted_where_the_version_that_wrote_them_does_it(version, rising):
    x, _, target = data()
    model = xgboost.XGBRegressor(objective="reg:quantileerror", quantile_alpha=[0.5, 0.5001, 0.52], **SMALL)
    margins = model.fit(x, target).predict(x[:80], output_margin=True)
    assert (np.diff(margins, axis=1) < 0).any()
    whole = {**json.loads(bytes(model.get_booster().save_raw("json"))), "version": version}
    module = from_xgboost(Written(whole))
    agree([(module, np.sort(margins, 1) if rising else margins)], x[:80])
    assert structure(from_structure(structure(module))) == structure(module)


def test_xgboost_expectiles_add_up():
    x, _, target = data()
    options = {"objective": "reg:quantileerror", "quantile_alpha": [0.1, 0.5, 0.9], "n_estimators": 1}
    model = xgboost.XGBRegressor(**{**SMALL, **options}).fit(x, target)
    whole = json.loads(bytes(model.get_booster().save_raw("json")))
    whole["learner"]["objective"] = {"name": "reg:expectileerror"}
    parameters, booster = whole["learner"]["learner_model_param"], whole["learner"]["gradient_booster"]["model"]
    added = model.predict(x[:80], output_margin=True) - np.array(json.loads(parameters["base_score"]))
    parameters["base_score"] = "[1E0,1.5E0,2.5E0]"  # results, not margins: ln(exp(1) - 1) = 0.5413 makes a rise of 1
    margins = added + [1, -0.432752, 0.541325]
    expected = np.cumsum(np.concatenate([margins[:, :1], np.logaddexp(0, margins[:, 1:])], 1), 1)
    agree([(from_xgboost(Written(whole)), expected)], x[:80])
    booster.update(trees=[], tree_info=[])
    for base, right in (  # of XGBoost 3.4.1
        ("[2.992E-1,3.1183E0,3.1244E0]", [0.2992, 3.1183, 3.1244]), ("[1E0,3E0,2E0]", [1, 3, 3.000001]),
    ):  # fmt: skip
        parameters["base_score"] = base
        assert from_xgboost(Written(whole))(torch.zeros(1, 5))[0].tolist() == pytest.approx(right, abs=1e-7)


def test_xgboost_base_scores():
    x = np.arange(10.0).reshape(-1, 1)
    model = xgboost.XGBRegressor(n_estimators=1).fit(x, np.stack([x[:, 0], x[:, 0] + 100], 1))
    whole = json.loads(bytes(model.get_booster().save_raw("json")))
    assert whole["learner"]["learner_model_param"]["base_score"] == "[4.5E0,1.045E2]"
    assert from_xgboost(model)(torch.tensor([[3.0]]))[0].tolist() == pytest.approx(model.predict([[3.0]])[0].tolist())
    whole["learner"]["gradient_booster"]["model"].update(trees=[], tree_info=[])
    assert from_xgboost(Written(whole))(torch.zeros(1, 1)).tolist() == [[4.5, 104.5]]
    whole["learner"]["learner_model_param"]["base_score"] = "2.5E0"  # of older files
    assert from_xgboost(Written(whole))(torch.zeros(1, 1)).tolist() == [[2.5, 2.5]]
    labels = [0] * 5 + [1] * 3 + [2] * 2
    model = xgboost.XGBClassifier(n_estimators=1).fit(np.zeros((10, 1)), labels)
    margins = from_xgboost(model, output="scores")(torch.zeros(1, 1))[0].tolist()
    assert margins == pytest.approx([0.4757, -0.0351, -0.4406], abs=1e-3)


def test_xgboost_missing_values():
    x, y = np.array([1.0, 2, 3, 4]).reshape(-1, 1), [0.0, 0, 1, 1]
    options = {"n_estimators": 1, "max_depth": 1, "learning_rate": 1, "reg_lambda": 0, "min_child_weight": 0}
    for method in ("exact", "hist"):
        model = xgboost.XGBRegressor(tree_method=method, **options).fit(x, y)
        assert from_xgboost(model)(torch.tensor([[torch.nan]])).numpy() == pytest.approx(model.predict([[np.nan]]))
    model = xgboost.XGBRegressor(missing=-1, **options).fit(np.array([-1.0, -1, 2, 4]).reshape(-1, 1), [5.0, 5, 0, 1])
    rows = np.array([[-1.0], [2], [4], [np.nan]])
    assert from_xgboost(model)(torch.tensor(rows)).numpy() == pytest.approx(model.predict(rows))
    forgotten, told = from_xgboost(model.get_booster()), from_xgboost(model.get_booster(), missing=-1)
    assert forgotten(torch.tensor(rows))[0] != told(torch.tensor(rows))[0] == pytest.approx(5)


def test_xgboost_categories_are_matched_by_value():
    random = np.random.default_rng(0)
    names, numbers = random.choice(["u", "v", "w"], 400), random.choice([10, 20, 30], 400)
    y = (names == "v") ^ (numbers == 20) ^ (random.random(400) < 0.1)
    for order in (["u", "v", "w"], ["w", "v", "u"]):
        frame = pandas.DataFrame({"a": pandas.Categorical(names, categories=order), "b": pandas.Categorical(numbers)})
        model = xgboost.XGBClassifier(enable_categorical=True, max_cat_to_onehot=1, **SMALL).fit(frame, y)
        rows = np.column_stack([[order.index(n) for n in names], numbers]).astype(float)
        rows[::7, 0] = np.nan
        frame.loc[::7, "a"] = None
        module = from_xgboost(model)
        agree([(module, model.predict_proba(frame.iloc[:90]))], rows[:90])
    rows[0, 1] = 25
    program = securemodel.compile(module, torch.tensor(rows[:90]), **TWO)
    with securemodel.local(program) as session, pytest.raises(InputError, match="out of range"):
        session.run(torch.tensor(rows[:90]))


LIGHT = {"n_estimators": 6, "num_leaves": 12, "verbose": -1, "n_jobs": 1}


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("options", [{}, {"use_missing": False}, {"zero_as_missing": True}], ids=str)
def test_lightgbm_classes(classes, options):
    x, y, _ = data(classes)
    model = lightgbm.LGBMClassifier(**LIGHT, **options).fit(x, y, categorical_feature=[4])
    text = model.booster_.model_to_string()
    found: dict[int, set] = {}
    for block in text.split("\nTree=")[1:]:
        pairs = dict(line.split("=", 1) for line in block.split("\n") if "=" in line)
        for column, threshold in zip(pairs["split_feature"].split(), pairs["threshold"].split(), strict=True):
            if column != "4":
                found.setdefault(int(column), set()).add(float(threshold))
    rows = x[:250].copy()
    random = np.random.default_rng(0)
    for column, values in found.items():
        rows[:150, column] = random.choice([*values, 0.0, np.nan], 150)
    rows[:30, 4] = random.choice([-1, 7, np.nan], 30)
    agree([(from_lightgbm(model), model.predict_proba(rows)),
           (from_lightgbm(model, output="scores"), model.predict(rows, raw_score=True)),
           (from_lightgbm(model, output="class"), model.predict(rows))], rows)  # fmt: skip


@pytest.mark.parametrize("objective", ["regression", "poisson", "gamma", "quantile"])
def test_lightgbm_objectives(objective):
    x, _, target = data()
    model = lightgbm.LGBMRegressor(objective=objective, **LIGHT).fit(x, target + 0.1)
    agree([(from_lightgbm(model), model.predict(x[:100]))], x[:100])


@pytest.mark.parametrize(
    "options, classes",
    [({"objective": "multiclassova"}, 3), ({"sigmoid": 2.0}, 2), ({"objective": "multiclassova", "sigmoid": 0.5}, 3)],
    ids=str,
)
def test_lightgbm_links(options, classes):
    x, y, _ = data(classes)
    model = lightgbm.LGBMClassifier(**LIGHT, **options).fit(x, y)
    rows = x[:80]
    agree([(from_lightgbm(model), model.booster_.predict(rows) if classes > 2 else model.predict_proba(rows)),
           (from_lightgbm(model, output="scores"), model.predict(rows, raw_score=True)),
           (from_lightgbm(model, output="class"), model.predict(rows))], rows)  # fmt: skip


def test_lightgbm_stops_at_the_best_iteration():
    x, _, target = data()
    booster = lightgbm.train({"verbose": -1, "num_threads": 1, "num_leaves": 8}, lightgbm.Dataset(x, target), 6)
    every = booster.predict(x[:80])
    booster.best_iteration = 2
    assert np.abs(booster.predict(x[:80]) - every).max() > 0.1
    agree([(from_lightgbm(booster), booster.predict(x[:80]))], x[:80])


def test_lightgbm_zero_is_between_its_thresholds():
    x = np.repeat([-1.0, 0.0, 1.0], 40).reshape(-1, 1)
    model = lightgbm.LGBMRegressor(**LIGHT, min_child_samples=1).fit(x, x[:, 0] ** 2 + x[:, 0])
    rows = np.array([[-1.0], [0.0], [-0.0], [1.0], [1e-36], [1e-30]])
    agree([(from_lightgbm(model), model.predict(rows))], rows)


def test_lightgbm_missing_against_the_rest():
    x = np.array([np.nan] * 50 + [*range(50)]).reshape(-1, 1)
    model = lightgbm.LGBMRegressor(**LIGHT, min_child_samples=1).fit(x, [5.0] * 50 + [0.0] * 50)
    rows = np.array([[np.nan], [1e30], [-1e30], [3.0]])
    agree([(from_lightgbm(model), model.predict(rows))], rows)


def test_lightgbm_forests_are_means_but_raw_scores_are_sums(tmp_path):
    x = np.repeat([0.0, 1.0], 100).reshape(-1, 1)
    model = lightgbm.LGBMRegressor(
        boosting_type="rf", bagging_freq=1, bagging_fraction=0.9, **{**LIGHT, "n_estimators": 4}
    ).fit(x, 10 + 10 * x[:, 0])
    rows = torch.tensor([[0.0], [1.0]])
    assert from_lightgbm(model)(rows).tolist() == pytest.approx([10, 20])
    assert model.predict(rows.numpy(), raw_score=True).tolist() == pytest.approx([40, 80])
    classes = lightgbm.LGBMClassifier(
        boosting_type="rf", bagging_freq=1, bagging_fraction=0.9, **{**LIGHT, "n_estimators": 4}
    ).fit(x, x[:, 0] + (np.arange(200) % 7 == 0) > 0)
    for output, raw in (("scores", {"raw_score": True}), ("probabilities", {})):
        expected = (classes.predict if raw else classes.predict_proba)(rows.numpy(), **raw)
        assert np.abs(from_lightgbm(classes, output=output)(rows).numpy() - expected).max() < 1e-6
    model.booster_.save_model(tmp_path / "m.txt")
    assert from_lightgbm(tmp_path / "m.txt")(rows).tolist() == pytest.approx(model.predict(rows.numpy()).tolist())


@pytest.mark.parametrize("classes", [0, 2, 3])
def test_lightgbm_linear_leaves_are_plain_where_one_of_their_columns_is_missing(classes):
    x, y, target = data(max(classes, 2))
    kind = lightgbm.LGBMClassifier if classes else lightgbm.LGBMRegressor
    model = kind(linear_tree=True, linear_lambda=0.1, **LIGHT)
    model.fit(x, y if classes else target, categorical_feature=[4])
    trees = model.booster_.model_to_string().split("\nTree=")[1:]
    assert "leaf_features= \n" not in trees[-1] and "\nleaf_coeff=" in trees[-1]
    rows = x[:150]
    assert np.isnan(rows).any(1).sum() > 20
    module = from_lightgbm(model)
    agree([(module, model.predict_proba(rows) if classes else model.predict(rows))], rows)
    other = from_structure(structure(module))
    programs = [securemodel.compile(m, torch.tensor(rows[:5]), **TWO) for m in (module, other)]
    assert programs[0].digest == programs[1].digest


CAT = {"iterations": 6, "depth": 4, "verbose": 0, "thread_count": 1, "allow_writing_files": False}


@pytest.mark.parametrize("policy", ["SymmetricTree", "Lossguide"])
@pytest.mark.parametrize("classes", [2, 3])
def test_catboost_classes(classes, policy):
    x, y, _ = data(classes)
    model = catboost.CatBoostClassifier(grow_policy=policy, **CAT).fit(x, y)
    borders = {column: values for column, values in enumerate(model.get_borders().values()) if len(values)}
    rows = on_thresholds(x, borders)
    expected = model.predict(rows).reshape(-1)
    agree([(from_catboost(model), model.predict_proba(rows)),
           (from_catboost(model, output="scores"), model.predict(rows, prediction_type="RawFormulaVal")),
           (from_catboost(model, output="class"), expected)], rows)  # fmt: skip


def test_catboost_classes_one_against_all():
    x, y, _ = data(3)
    model = catboost.CatBoostClassifier(loss_function="MultiClassOneVsAll", **CAT).fit(x, y)
    agree([(from_catboost(model), model.predict_proba(x[:80]))], x[:80])


@pytest.mark.parametrize("policy", ["SymmetricTree", "Lossguide"])
def test_catboost_scale_and_bias(policy):
    x, _, target = data()
    model = catboost.CatBoostRegressor(grow_policy=policy, **CAT).fit(x, target)
    model.set_scale_and_bias(2.5, -1.0)
    module, rows = from_catboost(model), x[:80]
    assert np.abs(module(torch.tensor(rows)).numpy() - model.predict(rows)).max() < 1e-5


@pytest.mark.parametrize("mode", ["Min", "Max"])
@pytest.mark.parametrize("loss", ["RMSE", "Poisson"])
def test_catboost_values_and_missing_ones(loss, mode, tmp_path):
    x, _, target = data()
    model = catboost.CatBoostRegressor(loss_function=loss, nan_mode=mode, **CAT).fit(x, target)
    expected = model.predict(x[:100], prediction_type="Exponent") if loss == "Poisson" else model.predict(x[:100])
    agree([(from_catboost(model), expected)], x[:100])
    model.save_model(str(tmp_path / "m.json"), format="json")
    assert structure(from_catboost(tmp_path / "m.json")) == structure(from_catboost(model))


def categories(texts=()):
    """Rows for CatBoost: a number, a column of 0 to 5, and one of -3 and 3, or of texts."""
    x, y, _ = data(rows=400)
    signs = np.where(x[:, 0] > 0, 3, -3)
    third = [texts[int(s > 0)] if texts else int(s) for s in signs]
    rows = [[float(a), int(b), c] for a, b, c in zip(x[:, 2], x[:, 4], third, strict=True)]
    return catboost.Pool(rows, y, cat_features=[1, 2]), np.column_stack([x[:, 2], x[:, 4], signs])


@pytest.mark.parametrize("policy", ["SymmetricTree", "Lossguide"])
def test_catboost_categories_one_at_a_time(policy, tmp_path):
    pool, rows = categories()
    model = catboost.CatBoostClassifier(grow_policy=policy, one_hot_max_size=10, **{**CAT, "iterations": 12}).fit(pool)
    module = from_catboost(model, pool=pool)
    rows[:40, 1], rows[40:80, 2] = 7, 0  # unknown ones are none of those that are known
    given = [[float(a), int(b), int(c)] for a, b, c in rows[:150]]
    agree([(module, model.predict_proba(given))], rows[:150])
    assert len(module.body.categories.parts[0]) > 3
    model.save_model(str(tmp_path / "m.json"), format="json", pool=pool)
    assert structure(from_catboost(tmp_path / "m.json")) == structure(module)
    with pytest.raises(InputError, match="pool="):
        from_catboost(model)


def test_catboost_categories_as_statistics_or_texts_are_refused():
    pool, _ = categories()
    model = catboost.CatBoostClassifier(one_hot_max_size=2, **{**CAT, "iterations": 40}).fit(pool)
    with pytest.raises(InputError, match="one_hot_max_size"):
        from_catboost(model, pool=pool)
    pool, _ = categories(["low", "high"])
    model = catboost.CatBoostClassifier(one_hot_max_size=10, **CAT).fit(pool)
    with pytest.raises(InputError, match="whole numbers"):
        from_catboost(model, pool=pool)


READ = {
    "xgboost": (xgboost.XGBClassifier(**SMALL), from_xgboost),
    "xgboost exact": (xgboost.XGBClassifier(tree_method="exact", **SMALL), from_xgboost),
    "lightgbm": (lightgbm.LGBMClassifier(**LIGHT), from_lightgbm),
    "catboost": (catboost.CatBoostClassifier(**CAT), from_catboost),
    "forest": (ensemble.RandomForestClassifier(n_estimators=8, max_depth=6, random_state=0), from_sklearn),
    "boosted": (ensemble.GradientBoostingClassifier(n_estimators=8, random_state=0), from_sklearn),
    "histogram": (ensemble.HistGradientBoostingClassifier(max_iter=8, random_state=0), from_sklearn),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", READ)
def test_decimals_like_those_of_training_go_where_the_library_sends_them(name, seed):
    """Values of few digits, of which most are thresholds, or are next to some as float32 or float64."""
    random = np.random.default_rng(seed)
    x = np.round(random.normal(size=(2500, 4)) * [1, 3, 10, 0.3], 1) * [1, 1, 1e-3, 1e5]
    y = (x[:, 0] + x[:, 1] / 2 + x[:, 2] * 50 + random.normal(size=2500) > 0).astype(int)
    model, read = READ[name]
    model = clone(model).fit(x[:500], y[:500])
    rows = np.concatenate([x, np.nextafter(x[:250], np.inf), np.nextafter(x[:250], -np.inf)])
    if name in ("lightgbm", "histogram"):
        rows = x  # numbers of float64 that differ by less than 2^-40 of themselves are one
    made = read(model)(torch.tensor(rows)).detach().numpy()
    assert np.abs(made - model.predict_proba(rows)).max() < 1e-5


def test_public_structures_of_boosted_trees_and_columns_of_two_parties():
    x, y, _ = data()
    models = [
        from_xgboost(xgboost.XGBClassifier(**SMALL).fit(x, y), columns=[[4, 1], [0, 2, 3]]),
        from_lightgbm(lightgbm.LGBMClassifier(**LIGHT).fit(x, y, categorical_feature=[4]), columns=[[4, 1], [0, 2, 3]]),
    ]
    for module in models:
        parts = torch.tensor(x[:50])[:, [4, 1]], torch.tensor(x[:50])[:, [0, 2, 3]]
        settings = {"weights": "model", "inputs": ("bank", "shop"), "outputs": "bank"}
        programs = [securemodel.compile(m, parts, **settings) for m in (module, from_structure(structure(module)))]
        assert programs[0].digest == programs[1].digest
        with securemodel.local(programs[0]) as session:
            assert (session.run(*parts) - module(*parts)).abs().max() < BOUND


@pytest.mark.parametrize("read, name", [(from_xgboost, "m.json"), (from_lightgbm, "m.txt"), (from_catboost, "m.json")])
def test_damaged_files_are_refused(read, name, tmp_path):
    for text in ("", "{}", '{"learner": {}}', "tree\nnum_class=1"):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError):
            read(tmp_path / name)
