"""Models of scikit-learn that are made of others give what scikit-learn gives."""

from __future__ import annotations

import classical
import numpy as np
import pytest
import torch
from sklearn import ensemble, multiclass, multioutput, neighbors, svm
from test_classical import agrees, fitted, one_thread, outputs_of, securely  # noqa: F401

import securemodel
from securemodel.errors import InputError
from securemodel.models import from_sklearn, from_structure, structure


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        pytest.param(name, classes, marks=() if (at + classes) % 2 else pytest.mark.slow)
        for at, name in enumerate(classical.OF_CLASSES)
        for classes in (2, 3)
    ],
)
def test_classifiers(name, classes):
    x, y = classical.table(160, classes=classes)
    estimator = fitted(classical.OF_CLASSES[name], x, y)
    agrees(estimator, x[:40], outputs_of(estimator))


@pytest.mark.parametrize("name", classical.OF_NUMBERS)
def test_regressors(name):
    x, y = classical.table(160)
    agrees(fitted(classical.OF_NUMBERS[name], x, np.abs(x[:, 0] - 3) * 5 + y), x[:40], ["value"])


@pytest.mark.parametrize("name", classical.OF_TARGETS)
def test_several_targets(name):
    x, y = classical.table(160)
    agrees(fitted(classical.OF_TARGETS[name], x, np.stack([x[:, 0] * 5, y - x[:, 1]], 1)), x[:40], ["value"])


def test_votes_that_are_equal_are_for_the_first_class():
    x, y = classical.table(160, classes=3)
    members = [("a", classical.LOGISTIC), ("b", classical.SMALL_TREE)]
    estimator = fitted(ensemble.VotingClassifier(members), x, y)
    named = estimator.transform(x)
    rows = x[named[:, 0] != named[:, 1]][:20]
    assert len(set(estimator.predict(rows))) > 1
    agrees(estimator, rows, ["class"])


@pytest.mark.parametrize("broken", [False, True], ids=["first", "broken"])
def test_classes_of_machines_where_each_pair_has_another_winner(broken):
    random = np.random.default_rng(4)
    x, y, grid = random.normal(size=(60, 2)), random.integers(0, 3, 60), random.normal(size=(2000, 2))
    estimator = svm.SVC(gamma=1, break_ties=broken).fit(x, y)
    pairs = svm.SVC(gamma=1, decision_function_shape="ovo").fit(x, y)
    scores = pairs.decision_function(grid)
    won = (scores > 0) & (np.abs(scores).min(1) > 0.01)[:, None]
    rows = grid[(won[:, 0] == won[:, 2]) & (won[:, 0] != won[:, 1])][:30]
    assert len(rows) > 5
    made = securely(from_sklearn(estimator, output="class"), torch.tensor(rows)).numpy()
    assert made.tolist() == estimator.predict(rows).tolist()
    assert broken == bool(made.any())  # without it, the first class


def test_what_is_public_makes_the_same_program():
    x, y = classical.table(160, classes=3)
    for name in ("bagged lines", "votes", "stack", "pairs"):
        module, rows = from_sklearn(fitted(classical.OF_CLASSES[name], x, y), output="class"), torch.tensor(x[:5])
        programs = [
            securemodel.compile(m, rows, weights="a", inputs="b", outputs="b")
            for m in (module, from_structure(structure(module)))
        ]
        assert programs[0].digest == programs[1].digest


LABELS = "several labels|several targets|MultiOutputClassifier"


@pytest.mark.parametrize(
    "estimator, word, options",
    [
        (neighbors.KNeighborsRegressor(3), LABELS, {}),
        (neighbors.KNeighborsClassifier(3), LABELS, {}),
        (classical.CLASSIFIERS["ridge classes"], LABELS, {}),
        (classical.CLASSIFIERS["perceptron"], LABELS, {}),
        (classical.SMALL_TREE, LABELS, {}),
        (multiclass.OneVsRestClassifier(classical.LOGISTIC), LABELS, {}),
        (multioutput.MultiOutputClassifier(classical.LOGISTIC), LABELS, {}),
    ],
)
def test_several_labels_are_refused(estimator, word, options):
    x, y = classical.table(60)
    with pytest.raises(InputError, match=word):
        from_sklearn(fitted(estimator, x, np.stack([y, (x[:, 1] > x[:, 0]).astype(int)], 1)), **options)


@pytest.mark.parametrize(
    "name, options, word",
    [("votes", {"output": "probabilities"}, "hard"), ("pairs", {"output": "probabilities"}, "no predict_proba")],
)
def test_outputs_that_a_library_has_not_are_refused(name, options, word):
    x, y = classical.table(60)
    with pytest.raises(InputError, match=word):
        from_sklearn(fitted(classical.OF_CLASSES[name], x, y), **options)


def test_stacks_end_with_a_linear_model():
    x, y = classical.table(60)
    stack = ensemble.StackingClassifier([("a", classical.SMALL_TREE)], classical.SMALL_TREE, cv=2)
    with pytest.raises(InputError, match="linear model"):
        from_sklearn(fitted(stack, x, y))
