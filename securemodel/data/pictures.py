"""Curves as pictures for a report: SVG that stands inside a page, without script, links or anything to load.

Drawn by matplotlib, which is wanted only here. What SVG files have and pages do not need (declarations, metadata, names of
namespaces) is left out, and ids have the picture's name, so that several stand on one page.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from protocols.errors import ConfigError, explain
from securemodel.data.measured import Measured

_SIZE = (4.6, 3.8)
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "securemodel", "font.family": "sans-serif", "font.size": 10}
_LINE, _PLAIN = {"color": "#1f5fa8", "linewidth": 1.8}, {"color": "#777777", "linewidth": 1.0, "linestyle": "--"}


def _points(x: Sequence[float], y: Sequence[float]) -> str:
    """A few points of a curve in words, for whoever hears the page."""
    at = sorted({round(i * (len(x) - 1) / 4) for i in range(5)})
    return "; ".join(f"{y[i]:.3f} at {x[i]:.3f}" for i in at)


def _roc(axes: Any, curve: Any) -> str:
    axes.plot(curve["false_positive_rate"], curve["true_positive_rate"], **_LINE)
    axes.plot([0, 1], [0, 1], **_PLAIN)
    axes.set(xlabel="false positive rate", ylabel="true positive rate", xlim=(0, 1), ylim=(0, 1.01))
    return (
        f"True positive rate: {_points(curve['false_positive_rate'], curve['true_positive_rate'])} false positive rate."
    )


def _pr(axes: Any, curve: Any) -> str:
    axes.step(curve["recall"], curve["precision"], where="post", **_LINE)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.01))
    return f"Precision: {_points(curve['recall'], curve['precision'])} recall."


def _gains(axes: Any, curve: Any) -> str:
    axes.plot(curve["rows"], curve["gain"], **_LINE)
    axes.plot([0, 1], [0, 1], **_PLAIN)
    axes.set(xlabel="share of rows, largest scores first", ylabel="share of positive rows", xlim=(0, 1), ylim=(0, 1.01))
    return f"Share of positive rows found: {_points(curve['rows'], curve['gain'])} of the rows."


def _calibration(axes: Any, curve: Any) -> str:
    axes.plot(curve["predicted"], curve["observed"], marker="o", **_LINE)
    axes.plot([0, 1], [0, 1], **_PLAIN)
    axes.set(xlabel="mean predicted probability", ylabel="share of positive rows", xlim=(0, 1), ylim=(0, 1))
    return f"Observed share: {_points(curve['predicted'], curve['observed'])} predicted."


_DRAWN: dict[str, tuple[str, Callable[[Any, Any], str]]] = {
    "roc": ("ROC curve", _roc),
    "pr": ("Precision and recall", _pr),
    "gains": ("Cumulative gains", _gains),
    "calibration": ("Calibration", _calibration),
}


def title(name: str) -> str:
    """What a curve is called in a report."""
    return _DRAWN[name][0] if name in _DRAWN else name.replace("_", " ")


def picture(made: Measured) -> str:
    """A curve as an SVG element with a title and a description in words; empty for what is no curve.

    Raises ConfigError where matplotlib is not installed.
    """
    if made.name not in _DRAWN or not made.curve:
        return ""
    heading, draw = _DRAWN[made.name]
    return drawn(made.name, heading, lambda axes: draw(axes, made.curve))


def drawn(name: str, heading: str, draw: Callable[[Any], str]) -> str:
    """What `draw` draws on axes, and says in words, as an SVG element with ids that begin with a name.

    Raises ConfigError where matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        fix = 'pip install "securemodel[report]", or do without: the numbers are there'
        raise ConfigError(explain("pictures need matplotlib, which is not installed", fix=fix)) from None
    with matplotlib.rc_context(_STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=_SIZE)
        axes = figure.subplots()
        said = draw(axes)
        axes.grid(alpha=0.25)
        figure.tight_layout()
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(file.getvalue(), name, heading, said)


def _inline(svg: str, name: str, heading: str, said: str) -> str:
    """The SVG element alone, with ids of its own and words for it."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    words = f'<title id="{name}-title">{html.escape(heading)}</title><desc id="{name}-desc">{html.escape(said)}</desc>'
    opening = f'<svg role="img" aria-labelledby="{name}-title {name}-desc"'
    svg = svg.replace("<svg", opening, 1)
    end = svg.index(">") + 1
    return svg[:end] + words + svg[end:]
