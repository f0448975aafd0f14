"""Runs metrics as secure programs: scores are the sum of two owners' numbers, labels a third party's or the second's."""

from __future__ import annotations

from torch import Tensor, nn

import securemodel
from securemodel.data.measured import Measured, Metric, Terms

PARTIES = ("bank", "shop", "registry")


class _Asked(nn.Module):
    def __init__(self, metrics: list[Metric], terms: Terms) -> None:
        super().__init__()
        self.metrics, self.terms, self.names = metrics, terms, []

    def forward(self, first: Tensor, second: Tensor, label: Tensor, weight: Tensor | None = None) -> tuple[Tensor, ...]:
        self.names.clear()
        made = []
        for at, metric in enumerate(self.metrics):
            shown = metric.finish(metric.part.sums(label, first + second, weight), self.terms)
            self.names += [(at, name) for name in shown]
            made += shown.values()
        return tuple(made)


def securely(
    metrics: list[Metric],
    label: Tensor,
    first: Tensor,
    second: Tensor,
    parties: int = 3,
    minimum: int = 1,
    weight: Tensor | None = None,
    unit: int = 1,
    heaviest: float = 1.0,
) -> tuple[list[Measured], list[dict[str, Tensor]]]:
    """(what is read, what was revealed) of metrics that one program computes."""
    terms = Terms(len(label), weight is not None, unit, heaviest, minimum)
    asked = _Asked(metrics, terms)
    inputs = (first, second, label) if weight is None else (first, second, label, weight)
    owners = ("bank", "shop", PARTIES[parties - 1], "shop")[: len(inputs)]
    program = securemodel.compile(
        asked, inputs, weights="public", inputs=owners, outputs="bank", parties=PARTIES[:parties]
    )
    asked(*inputs)
    with securemodel.local(program) as session:
        outputs = session.run(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    shown: list[dict[str, Tensor]] = [{} for _ in metrics]
    for (at, name), value in zip(asked.names, outputs, strict=True):
        shown[at][name] = value
    return [metric.read(each, terms) for metric, each in zip(metrics, shown, strict=True)], shown
