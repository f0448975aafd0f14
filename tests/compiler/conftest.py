"""Lets the tests of this folder import their table and helpers, and capture each model once."""

import copy
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from securemodel.compiler.capture import capture

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def capture_once(monkeypatch):
    """torch.export runs once per model in a test, however often the model is compiled."""
    captured = {}

    def cached(model, example_inputs):
        if id(model) not in captured:
            captured[id(model)] = model, capture(model, example_inputs)
        _, kept = captured[id(model)]
        graph = copy.deepcopy(kept.graph)
        output = next(node for node in graph.nodes if node.op == "output")
        return replace(kept, graph=graph, outputs=list(output.args[0]))

    monkeypatch.setattr("securemodel.compiler.postprocess.capture", cached)
