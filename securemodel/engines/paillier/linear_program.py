"""The program of a linear model's training with Paillier: whose columns are which, and the ranges of a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar, cast

import numpy as np
import torch

from protocols.errors import InputError, explain
from protocols.names import PUBLIC
from securemodel.compiler.ir import Graph, Header
from securemodel.engines.paillier.linear_step import INPUT_BITS, LinearStep
from securemodel.program import StepProgram

TRAINING_KIND = "paillier-training"
GUARD = "sum of squared scores"


@dataclass(frozen=True, repr=False)
class LinearProgram(StepProgram):
    """Made by `linear_program`."""

    protocol: ClassVar[str] = "paillier"
    kind: ClassVar[str] = TRAINING_KIND

    starts: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """The weights that training starts with."""

    def __reduce__(self):
        return partial(type(self), starts=self.starts), (self.header, self.graph)

    def plan(self, network: Any = "lan") -> Any:
        raise InputError(explain("a program of training has no plan of its own", fix="use that of its job: job.plan()"))

    @property
    def result_names(self) -> tuple[str, ...]:
        return (GUARD,) if self.header.outputs else ()

    @cached_property
    def attrs(self) -> Mapping[str, Any]:
        return self.graph[0].attrs

    @cached_property
    def shape(self) -> LinearStep:
        """Ranges and gates of a step."""
        given = self.attrs["shape"]
        return LinearStep(**{**given, "columns": tuple(given["columns"])})

    @property
    def key_settings(self) -> Mapping[str, Any]:
        """What a peer's key must be: see `securemodel.engines.paillier.party.read_key`."""
        return {"key_bits": self.shape.key_bits, "insecure": self.attrs["insecure"]}

    @property
    def labels_owner(self) -> str:
        return self.header.inputs[self.attrs["labels"]]

    def columns_of(self, party: str, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """float64[rows, columns] of one party, its bias as a column of ones."""
        places = self.attrs["columns"][self.parties.index(party)]
        mine = [cast(torch.Tensor, inputs[at]).double() for at in places]
        if self.attrs["bias"] and party == self.labels_owner:
            mine.append(torch.ones(mine[0].shape[0], 1, dtype=torch.float64))
        return torch.cat(mine, 1)

    def labels_of(self, party: str, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor | None:
        """float64[rows, outputs] of the party that has them."""
        return self.labels(inputs) if party == self.labels_owner else None

    def labels(self, inputs: Sequence[torch.Tensor | None]) -> torch.Tensor:
        """The same, at that party."""
        return cast(torch.Tensor, inputs[self.attrs["labels"]]).double().reshape(self.shape.rows, self.shape.outputs)

    def start(self) -> np.ndarray:
        """Starting weights float[columns, outputs], those of the first party in front."""
        weight, bias = self.starts["weight"].double(), self.starts.get("bias")
        parts = [weight[:, at].T for at in self.places()]
        if bias is not None:
            owner = self.parties.index(self.labels_owner)
            parts[owner] = torch.cat([parts[owner], bias.double()[None]])
        return torch.cat(parts).numpy()

    def places(self) -> list[list[int]]:
        """For each party, which columns of the model are its."""
        return [list(at) for at in self.attrs["places"]]


def linear_program(
    shape: LinearStep, parties: tuple[str, ...], owners: tuple[str, ...], shapes: tuple[tuple[int, ...], ...],
    start: Mapping[str, torch.Tensor], step: Any, *, columns: list[list[int]], places: list[list[int]], labels: int,
    bias: bool, factor: float, decay: float, guard: int, insecure: bool,
) -> LinearProgram:  # fmt: skip
    """`columns`: the inputs of each party in order, `places`: where they are in the model; `labels`: the input that has
    them. A step's rate is the learning rate times `factor`, its decay times `decay`; `guard`: every how many steps.
    """
    graph = Graph()
    attrs = {
        "shape": asdict(shape), "columns": columns, "places": places, "labels": labels, "bias": bias, "factor": factor,
        "decay": decay, "guard": guard, "insecure": insecure,
    }  # fmt: skip
    graph.add("linear_step", form="secret", attrs=attrs)
    outputs = ("all",) if guard else ()
    header = Header(parties, INPUT_BITS, 64, PUBLIC, owners, shapes, outputs)
    return LinearProgram(header, graph, step=step, starts=dict(start))
