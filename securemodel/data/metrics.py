"""All metrics by name, as `evaluate` takes them: `["auc", "ks", "f1"]`, or as functions with their settings.

Each is a function of torch tensors, (labels, scores, weights or None), that runs in the clear and within a secure program.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from protocols.errors import InputError, explain
from securemodel.data import curves, ranking
from securemodel.data.curves import Scale, calibration, gains, lift, pr, roc
from securemodel.data.decisions import accuracy, confusion, f1, precision, recall, top_k
from securemodel.data.losses import brier, log_loss, mae, mse, r2, rmse
from securemodel.data.measured import Measured, Metric, Part, Terms

CLASSIFICATION = ("accuracy", "confusion", "precision", "recall", "f1", "log_loss", "brier", "auc", "roc", "pr",
                  "average_precision", "ks", "lift", "gains", "calibration")  # fmt: skip
"""Names of metrics of two classes; of more, all but the curves, "average_precision", "ks", "lift" and "gains", and "top_k"."""
REGRESSION = ("mse", "rmse", "mae", "r2")


def auc(scores: Scale = "logit", classes: int = 2, exact: bool = False) -> Metric:
    """The area under the ROC curve: from 256 bins, with how far the exact one can be, or by sorting (`exact`)."""
    return ranking.auc(scores, classes) if exact else curves.auc(scores, classes)


def ks(scores: Scale = "logit", exact: bool = False) -> Metric:
    """The largest distance between the shares of both classes up to a score: from 256 bins, or by sorting (`exact`)."""
    return ranking.ks(scores) if exact else curves.ks(scores)


def average_precision(scores: Scale = "logit", exact: bool = False) -> Metric:
    """The mean precision over positive rows, as scikit-learn's: from 256 bins, or by sorting (`exact`)."""
    return ranking.average_precision(scores) if exact else curves.average_precision(scores)


def default_threshold(scores: Scale) -> float:
    """From which score on a row is called positive: 0 of logits, 1/2 of probabilities, the middle of other scores."""
    if isinstance(scores, tuple):
        return (scores[0] + scores[1]) / 2
    return 0.0 if scores == "logit" else 0.5


def named(
    wanted: Sequence[str | Metric] | str | Metric,
    *,
    scores: Scale = "logit",
    classes: int = 2,
    threshold: float | None = None,
    exact: bool = False,
    scale: float = 1.0,
    center: float = 0.0,
) -> list[Metric]:
    """Metrics by name, with the settings of an evaluation; those that are metrics already stay as they are.

    Raises InputError that lists all names there are none for.
    """
    wanted = [wanted] if isinstance(wanted, (str, Metric)) else list(wanted)
    cut = default_threshold(curves.known_scale(scores)) if threshold is None else threshold
    of_two = {
        **{name: partial(make, cut) for name, make in _DECISIONS.items()},
        **{name: partial(make, scores) for name, make in _CURVES.items()},
        **{name: partial(make, scores, exact=exact) for name, make in _RANKS.items()},
        "auc": partial(auc, scores, exact=exact),
        **({} if isinstance(scores, tuple) else {name: partial(make, scores) for name, make in _LOSSES.items()}),
    }
    of_more = {
        **{name: partial(make, cut, classes) for name, make in _DECISIONS.items()},
        "auc": partial(auc, scores, classes, exact),
        "top_k": partial(top_k, min(5, max(1, classes - 1)), classes),
        **(
            {}
            if isinstance(scores, tuple)
            else {name: partial(make, scores, classes) for name, make in _LOSSES.items()}
        ),
    }
    regression = {"mse": partial(mse, scale), "rmse": partial(rmse, scale), "mae": partial(mae, scale),
                  "r2": partial(r2, scale, center)}  # fmt: skip
    known = {**regression, **(of_two if classes == 2 else of_more)}
    if wrong := [str(name) for name in wanted if not isinstance(name, Metric) and name not in known]:
        about = f"of {classes} classes and scores {scores!r}"
        raise InputError(
            explain(f"no metric {about} is called {', '.join(wrong)}", fix=f"choose from {', '.join(known)}")
        )
    if not wanted:
        raise InputError(explain("no metric is asked for", fix=f"choose from {', '.join(known)}"))
    return [name if isinstance(name, Metric) else known[name]() for name in wanted]


_DECISIONS = {"accuracy": accuracy, "confusion": confusion, "precision": precision, "recall": recall, "f1": f1}
_CURVES = {"roc": roc, "pr": pr, "gains": gains, "lift": lift, "calibration": calibration}
_RANKS = {"ks": ks, "average_precision": average_precision}
_LOSSES = {"log_loss": log_loss, "brier": brier}

__all__ = [
    "CLASSIFICATION",
    "REGRESSION",
    "Measured",
    "Metric",
    "Part",
    "Scale",
    "Terms",
    "accuracy",
    "auc",
    "average_precision",
    "brier",
    "calibration",
    "confusion",
    "default_threshold",
    "f1",
    "gains",
    "ks",
    "lift",
    "log_loss",
    "mae",
    "mse",
    "named",
    "pr",
    "precision",
    "r2",
    "recall",
    "rmse",
    "roc",
    "top_k",
]
