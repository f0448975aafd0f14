"""LeNet-5 as a model of a service, computed by the secure engine with all parties in this process."""

from __future__ import annotations

import hashlib
import threading
from concurrent.futures import Future
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

import securemodel
from examples.lenet_mnist.model import MEAN, STD, LeNet5
from securemodel.edge import wire

EXAMPLE = Path(__file__).parents[2] / "examples/lenet_mnist"
_PARTIES = ("bank", "hospital")


class Normalized(torch.nn.Module):
    """The network without its first step, which clients do before they share: see `Digits.recipe`."""

    def __init__(self, network: LeNet5) -> None:
        super().__init__()
        self.features, self.classifier = network.features, network.classifier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))


class Digits:
    """What `linear_service` takes for a model. A request is run when both parties have their share of it."""

    recipe: ClassVar = [["resize", 28, 28], ["divide", 255.0], ["subtract", MEAN], ["divide", STD]]

    def __init__(self) -> None:
        network = LeNet5()
        network.load_state_dict(load_file(EXAMPLE / "lenet5.safetensors"))
        self.plain = Normalized(network.eval())
        self.name, self.rows = "lenet5", 4
        self.family = securemodel.compile_service(
            self.plain, torch.zeros(1, 1, 28, 28), weights="bank", parties=_PARTIES, sizes=(4,), clamp=None,
            recipe={"x": self.recipe},
        )  # fmt: skip
        self.session = securemodel.local(self.family)
        self.session.load(self.family, self.plain)
        self._lock, self._waiting, self._results = threading.Lock(), {}, {}

    def card(self) -> dict[str, Any]:
        return self.family.card()

    def answer(self, rank: int, request: wire.Request) -> wire.Answer:
        (share,) = request.shares()
        with self._lock:
            given, done = self._waiting.setdefault(request.id, ({}, Future()))
            given[_PARTIES[rank]] = [torch.from_numpy(share.copy())]
            last = len(given) == len(_PARTIES)
        if last:
            manifest = hashlib.sha256(request.id.encode()).digest()
            done.set_result(self.session.run_shares(self.rows, given, len(share), manifest))
        result, (port,) = done.result(60), self.family.outputs
        (out,) = result.shares[_PARTIES[rank]]
        return wire.Answer(
            request.id, self.name, "1", result.run, 0, self.rows, {port.name: out.numpy()}, {port.name: port.frac_bits}
        )
