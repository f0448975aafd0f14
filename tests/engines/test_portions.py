"""What is made of streams for a portion of nodes is what is made node by node, whatever the portions are."""

import pytest
import torch
from torch import nn

import securemodel
from protocols.correlations import unpacked
from protocols.gates import GATES
from protocols.prg import Stream, insecure_test_key
from securemodel.engines.masked import masks
from securemodel.engines.masked.dealing import Dealing
from securemodel.engines.masked.masks import has_mask, portions
from securemodel.engines.masked.preparing import LoadedOperand, Preparing

SIZES = (1, 700, 1 << 18)


@pytest.fixture(scope="module", params=[2, 3])
def program(request):
    parties = ("a", "b", "c")[: request.param]
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 4), nn.ReLU())
    return securemodel.compile(model, torch.zeros(3, 6), weights="a", inputs="b", outputs="b", parties=parties)


def made(program, size: int, monkeypatch) -> list:
    """All that the dealer and each party make in a load and a run, by node."""
    monkeypatch.setattr(masks, "PORTION_BYTES", size)
    graph, names = program.graph, program.parties
    streams = {name: Stream(insecure_test_key(1, name)) for name in names}
    dealing, out = Dealing(graph, names, streams), []
    last: dict[int, list[torch.Tensor]] = {}

    class Dealt:
        def dealt(self, epoch, wanted, device):
            return unpacked([list(zip(parts, last[node], strict=True)) for node, parts in wanted])

    preparing = [Preparing(graph, names, name, streams[name], Dealt() if name == names[-1] else None) for name in names]
    loaded: dict[int, LoadedOperand] = {}
    for epoch, phase in enumerate(("load", "run"), 3):
        last.clear()
        last.update((node, [share.clone() for share in shares]) for node, shares in dealing.deal(epoch, phase))
        out += [share.clone() for shares in last.values() for share in shares]
        for each in preparing:
            for node, prepared in each.run(epoch, phase, loaded):
                out += [node, *(share for share in prepared.values() if share is not None)]
        ones = {n.id: torch.ones(n.shape, dtype=torch.int64) for n in graph.nodes if n.form == "masked"}
        loaded = {i: LoadedOperand(x, x, x) for i, x in ones.items() if graph[i].phase == "load"}
    return out


def test_portions_of_any_size_make_the_same(program, monkeypatch):
    whole, *others = [made(program, size, monkeypatch) for size in reversed(SIZES)]
    assert len(whole) > 100
    for other in others:
        assert len(other) == len(whole)
        for x, y in zip(whole, other, strict=True):
            assert x == y if isinstance(x, int) else torch.equal(x, y)


@pytest.mark.parametrize("size", SIZES)
def test_portions_are_all_nodes_in_their_order(program, size, monkeypatch):
    monkeypatch.setattr(masks, "PORTION_BYTES", size)
    graph = program.graph
    for phase in ("load", "run"):
        found = portions(graph, phase)
        wanted = [n.id for n in graph.nodes if n.phase == phase and (n.op in GATES or has_mask(n))]
        assert [node.id for nodes in found for node in nodes] == wanted
        assert size > 1 or all(len(nodes) == 1 for nodes in found)
        for nodes in found:
            assert len(nodes) == 1 or sum(masks._made_bytes(graph, n) for n in nodes) <= size


def test_a_run_waits_for_little_of_what_is_dealt(program, monkeypatch):
    """The first portion is small, and each of the next has twice the room, up to the largest."""
    monkeypatch.setattr(masks, "FIRST_PORTION_BYTES", 700)
    monkeypatch.setattr(masks, "PORTION_BYTES", 2000)
    sizes = [sum(masks._made_bytes(program.graph, n) for n in nodes) for nodes in portions(program.graph, "run")]
    alone = [len(nodes) == 1 for nodes in portions(program.graph, "run")]
    for at, (size, one) in enumerate(zip(sizes, alone, strict=True)):
        assert one or size <= min(700 << at, 2000)
    assert len(sizes) > 3 and max(sizes) > 1400
