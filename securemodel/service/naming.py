"""Which lanes there are, the number by which engines of one lane find each other, and where files of weights are."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from securemodel.service.config import ServiceConfig


@dataclass(frozen=True, order=True)
class Lane:
    """One lane of one version of a model. `number` counts the lanes of that version from 0."""

    model: str
    version: int
    number: int


def lane_number(config: ServiceConfig, lane: Lane) -> int:
    """The lane of the parties file that engines meet at (see `protocols.identity`), which is added to their ports.

    Two versions of a model can be loaded side by side, so each model has twice the numbers of its lanes: those of odd
    versions are above those of even ones.
    """
    found = config.model(lane.model)
    before = config.models[: config.models.index(found)]
    return sum(2 * model.lanes for model in before) + (lane.version % 2) * found.lanes + lane.number


def lane_count(config: ServiceConfig) -> int:
    """How many numbers there are: the ports that a party's engines use, from the one in the parties file on."""
    return sum(2 * model.lanes for model in config.models)


def weights_folder(config: ServiceConfig, model: str) -> Path:
    """Where a party keeps what it has of a model's weights: VERSION.weights of its owner, VERSION-LANE.shares."""
    return config.data / "weights" / model
