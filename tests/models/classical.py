"""Fitted models of scikit-learn on small data, and what of them is compared."""

from __future__ import annotations

import numpy as np
from sklearn import (
    cluster,
    compose,
    discriminant_analysis,
    ensemble,
    linear_model,
    model_selection,
    multiclass,
    multioutput,
    naive_bayes,
    neighbors,
    neural_network,
    svm,
    tree,
)  # fmt: skip
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler, OneHotEncoder, OrdinalEncoder, RobustScaler, StandardScaler


def table(rows: int = 400, columns: int = 6, classes: int = 2, seed: int = 0):
    """Columns of different size, and labels."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(rows, columns)) * 10.0 ** np.arange(-1, columns - 1).clip(-1, 3) + 3
    y = (
        ((x - x.mean(0)) / x.std(0)) @ random.normal(size=(columns, classes)) + random.gumbel(size=(rows, classes))
    ).argmax(1)
    return x, y


def mixed(rows: int = 400, seed: int = 1):
    """Two numbers with missing values, a category 0 to 3, a category of 10, 20, 30; labels."""
    random = np.random.default_rng(seed)
    x = np.column_stack([
        random.normal(50, 20, rows), random.lognormal(3, 1, rows), random.integers(0, 4, rows),
        10 * random.integers(1, 4, rows),
    ])  # fmt: skip
    y = ((x[:, 0] > 50) ^ (x[:, 2] == 1) ^ (random.random(rows) < 0.1)).astype(int)
    x[random.random(rows) < 0.1, 0] = np.nan
    x[random.random(rows) < 0.1, 1] = np.nan
    return x, y


def preparing(sparse=False):
    numbers = make_pipeline(SimpleImputer(strategy="median"), StandardScaler())
    return ColumnTransformer([
        ("codes", OneHotEncoder(handle_unknown="ignore", sparse_output=sparse), [2, 3]), ("numbers", numbers, [0, 1])
    ])  # fmt: skip


FOREST = {"n_estimators": 8, "max_depth": 5, "random_state": 0}
CLASSIFIERS = {
    "logistic": make_pipeline(StandardScaler(), linear_model.LogisticRegression()),
    "ridge classes": make_pipeline(RobustScaler(), linear_model.RidgeClassifier()),
    "sgd": make_pipeline(MinMaxScaler(), linear_model.SGDClassifier(loss="log_loss", random_state=0)),
    "linear svm": make_pipeline(StandardScaler(), svm.LinearSVC()),
    "svm": make_pipeline(StandardScaler(), svm.SVC()),
    "svm poly": make_pipeline(StandardScaler(), svm.SVC(kernel="poly", degree=2, coef0=1.0)),
    "perceptron": make_pipeline(StandardScaler(), neural_network.MLPClassifier((12, 6), max_iter=300, random_state=0)),
    "bayes": naive_bayes.GaussianNB(),
    "bits": make_pipeline(naive_bayes.BernoulliNB(binarize=3.0)),
    "neighbors": make_pipeline(StandardScaler(), neighbors.KNeighborsClassifier(5)),
    "lda": make_pipeline(StandardScaler(), PCA(4), discriminant_analysis.LinearDiscriminantAnalysis()),
    "qda": make_pipeline(StandardScaler(), discriminant_analysis.QuadraticDiscriminantAnalysis()),
    "centroids": make_pipeline(StandardScaler(), neighbors.NearestCentroid()),
    "centroids of columns": neighbors.NearestCentroid(shrink_threshold=0.1),
    "frequent centroids": make_pipeline(StandardScaler(), neighbors.NearestCentroid(priors="empirical")),
    "calibrated": CalibratedClassifierCV(make_pipeline(StandardScaler(), svm.LinearSVC()), cv=3),
    "isotonic": CalibratedClassifierCV(
        make_pipeline(StandardScaler(), linear_model.LogisticRegression()), method="isotonic", cv=2
    ),
    "isotonic tree": CalibratedClassifierCV(
        tree.DecisionTreeClassifier(max_depth=3, random_state=0), method="isotonic", cv=2
    ),
    "tree": tree.DecisionTreeClassifier(max_depth=4, random_state=0),
    "stump": tree.DecisionTreeClassifier(max_depth=1, random_state=0),
    "forest": ensemble.RandomForestClassifier(**FOREST),
    "extra": ensemble.ExtraTreesClassifier(**FOREST),
    "boosted": ensemble.GradientBoostingClassifier(n_estimators=6, random_state=0),
    "exponential": ensemble.GradientBoostingClassifier(n_estimators=6, loss="exponential", random_state=0),
    "ada": ensemble.AdaBoostClassifier(tree.DecisionTreeClassifier(max_depth=2), n_estimators=6, random_state=0),
    "histogram": ensemble.HistGradientBoostingClassifier(max_iter=5, max_leaf_nodes=12, random_state=0),
    "scaled forest": make_pipeline(StandardScaler(), ensemble.RandomForestClassifier(**FOREST)),
}
REGRESSORS = {
    "least squares": make_pipeline(StandardScaler(), linear_model.LinearRegression()),
    "poisson": make_pipeline(StandardScaler(), linear_model.PoissonRegressor()),
    "svr": make_pipeline(StandardScaler(), svm.SVR()),
    "perceptron": make_pipeline(
        StandardScaler(),
        neural_network.MLPRegressor(hidden_layer_sizes=(8,), activation="tanh", max_iter=300, random_state=0),
    ),
    "neighbors": make_pipeline(StandardScaler(), neighbors.KNeighborsRegressor(3)),
    "tree": tree.DecisionTreeRegressor(max_depth=5, random_state=0),
    "forest": ensemble.RandomForestRegressor(**FOREST),
    "boosted": ensemble.GradientBoostingRegressor(n_estimators=6, random_state=0),
    "histogram": ensemble.HistGradientBoostingRegressor(max_iter=5, random_state=0),
    "histogram poisson": ensemble.HistGradientBoostingRegressor(loss="poisson", max_iter=5, random_state=0),
}
OF_ROWS = {
    "means": (make_pipeline(StandardScaler(), cluster.KMeans(3, n_init=1, random_state=0)), "class"),
    "means of columns": (cluster.MiniBatchKMeans(4, n_init=1, random_state=0), "class"),
    "isolation": (ensemble.IsolationForest(n_estimators=5, max_samples=32, random_state=0), "scores"),
    "isolation of some": (
        ensemble.IsolationForest(n_estimators=5, max_samples=32, contamination=0.1, random_state=0),
        "scores",
    ),
    "one class": (make_pipeline(StandardScaler(), svm.OneClassSVM(nu=0.2)), "scores"),
}
MIXED = {
    "logistic": make_pipeline(preparing(), linear_model.LogisticRegression()),
    "forest": make_pipeline(preparing(), ensemble.RandomForestClassifier(**FOREST)),
    "ordinal": make_pipeline(
        ColumnTransformer([("codes", OrdinalEncoder(), [2, 3])], remainder=SimpleImputer()),
        ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
    ),
    "categories": ensemble.HistGradientBoostingClassifier(
        categorical_features=[2, 3], max_iter=5, max_leaf_nodes=8, random_state=0
    ),
    "missing": ensemble.RandomForestClassifier(**FOREST),
}

LOGISTIC = make_pipeline(StandardScaler(), linear_model.LogisticRegression())
MACHINE = make_pipeline(StandardScaler(), svm.LinearSVC())
RIDGE = make_pipeline(StandardScaler(), linear_model.Ridge())
SMALL_TREE = tree.DecisionTreeClassifier(max_depth=3, random_state=0)
FEW = {"n_estimators": 3, "random_state": 0}
OF_CLASSES = {
    "bagged trees": ensemble.BaggingClassifier(SMALL_TREE, **FEW),
    "bagged trees of some columns": ensemble.BaggingClassifier(SMALL_TREE, max_features=0.5, **FEW),
    "bagged lines": ensemble.BaggingClassifier(LOGISTIC, max_features=0.5, **FEW),
    "bagged votes": ensemble.BaggingClassifier(MACHINE, **FEW),
    "votes": ensemble.VotingClassifier([("a", LOGISTIC), ("b", SMALL_TREE), ("c", MACHINE)], weights=[2, 1, 1]),
    "mean": ensemble.VotingClassifier([("a", LOGISTIC), ("b", SMALL_TREE)], voting="soft", weights=[1, 2]),
    "stack": ensemble.StackingClassifier([("a", MACHINE), ("b", SMALL_TREE)], cv=2),
    "rest": multiclass.OneVsRestClassifier(LOGISTIC),
    "rest of trees": multiclass.OneVsRestClassifier(SMALL_TREE),
    "pairs": multiclass.OneVsOneClassifier(MACHINE),
    "pairs of trees": multiclass.OneVsOneClassifier(SMALL_TREE),
    "svm of pairs": make_pipeline(StandardScaler(), svm.SVC(kernel="linear", decision_function_shape="ovo")),
    "searched": model_selection.GridSearchCV(LOGISTIC, {"logisticregression__C": [1, 2]}, cv=2),
}
_MEMBERS = [("a", RIDGE), ("b", tree.DecisionTreeRegressor(max_depth=3))]
OF_NUMBERS = {
    "bagged trees": ensemble.BaggingRegressor(tree.DecisionTreeRegressor(max_depth=3), **FEW),
    "bagged lines": ensemble.BaggingRegressor(RIDGE, max_features=0.5, **FEW),
    "mean": ensemble.VotingRegressor(_MEMBERS, weights=[1, 2]),
    "stack": make_pipeline(StandardScaler(), ensemble.StackingRegressor(_MEMBERS, cv=2, passthrough=True)),
    "scaled target": compose.TransformedTargetRegressor(RIDGE, transformer=MinMaxScaler()),
    "logarithm": compose.TransformedTargetRegressor(RIDGE, func=np.log1p, inverse_func=np.expm1),
    "inliers": make_pipeline(StandardScaler(), linear_model.RANSACRegressor(random_state=0)),
}
OF_TARGETS = {
    "lines": RIDGE,
    "trees": ensemble.RandomForestRegressor(max_depth=3, **FEW),
    "one each": multioutput.MultiOutputRegressor(ensemble.GradientBoostingRegressor(**FEW)),
    "scaled": compose.TransformedTargetRegressor(RIDGE, transformer=StandardScaler()),
}
