"""One party's walk through runs of several sizes after one load: inputs and outputs are a client's, in shares."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import cast

import torch

from protocols.gates import GATES, dealt_bytes, numel
from protocols.prg import Stream, new_key
from securemodel.compiler.ir import Graph, Phase
from securemodel.compiler.ops import ELEMENT_BYTES
from securemodel.engines.masked.dealing import Dealing, FamilyDealing
from securemodel.engines.masked.masks import has_mask
from securemodel.engines.masked.party import OnlineParty
from securemodel.engines.masked.preparing import Item, Preparing
from securemodel.engines.masked.sources import DealtHere, NoSource
from securemodel.engines.masked.walk import MaskedWalk
from securemodel.engines.masked.zero import local_pairs
from securemodel.engines.walk import Inputs, Rows, Steps
from securemodel.program import Program

_REST_S = 0.05


class ServingWalk(MaskedWalk):
    """A party of programs of several sizes with the same load. A run is prepared, in the order of `ask_for`, and then made
    in any order.

    Where a thread prepares, it rests while a run goes on and another of the same size is ready: that run is faster by it.
    """

    def __init__(
        self, parties: Mapping[int, OnlineParty], stream: Stream, source: NoSource, threaded: bool = False
    ) -> None:
        self._parties, sizes = dict(parties), list(parties)
        super().__init__(self._parties[sizes[0]], stream, source, threaded=threaded)
        self._of_size = {
            size: Preparing(party.program.graph, party.program.parties, party.me, stream, self.preparing.source)
            for size, party in self._parties.items()
        }
        self._which = {size: at for at, size in enumerate(sizes)}
        self._sizes: dict[int, int] = {}
        self._at_rest = threading.Event()  # no run goes on
        self._at_rest.set()
        self._now = 0

    def load_shares(self, epoch: int, shares: Mapping[int, torch.Tensor]) -> Steps[None]:
        """Takes the weights from this party's shares of them, by node; the others give theirs."""
        self.party.given_weights = shares
        try:
            yield from self._load(epoch)
        finally:
            self.party.given_weights = None

    def _load(self, epoch: int) -> Steps[None]:
        yield from super()._load(epoch)
        self._sizes.clear()
        for party in self._parties.values():
            party.load_like(self.party)
            party.clear.set_inputs([None] * len(party.program.header.inputs))

    def ask_for(self, epoch: int, size: int) -> None:
        """Has a run of a size prepared; epochs only grow."""
        self._sizes[epoch] = size
        self.source.ask(epoch, "run", self._which[size])
        self._worker.submit(epoch, "run")

    def is_prepared(self, epoch: int) -> bool:
        """Whether a run that was asked for waits for nothing but its inputs."""
        return self._worker.is_prepared(epoch)

    def look(self) -> None:
        """Raises what ended the preparing of runs, or the link to the dealer."""
        self._worker.look()
        self.source.look()

    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list[torch.Tensor | None], Rows]]:
        """A run that was asked for. Inputs and outputs are this party's shares of them."""
        party = self._parties[self._sizes[epoch]]
        party.shares = cast(Sequence[torch.Tensor], inputs)
        party.manifest = self.manifest + rows.now.to_bytes(4, "little")
        self._now = epoch
        self._at_rest.clear()
        try:
            result = yield from party.run(epoch, self._worker.take_from(epoch), rows)
        finally:
            self._at_rest.set()
        self._end(epoch)
        del self._sizes[epoch]
        return result

    manifest = b""
    """What all parties have in common of the next run, beside its program."""

    def _prepare(self, epoch: int, phase: Phase) -> Iterator[Item]:
        if phase == "load":
            yield from super()._prepare(epoch, phase)
            return
        size = self._sizes[epoch]
        self.source.begin(epoch, phase, self._which[size])
        for item in self._of_size[size].run(epoch, phase, self.party.loaded_operands):
            yield item
            while not self._at_rest.is_set() and self._can_wait(size):
                self._at_rest.wait(_REST_S)
        self.source.finish()

    def _can_wait(self, size: int) -> bool:
        """Whether the run that goes on needs nothing that is to be prepared, and another of a size is ready."""
        now, asked = self._now, self._sizes.copy().items()
        return self.is_prepared(now) and any(
            of == size and epoch != now and self.is_prepared(epoch) for epoch, of in asked
        )

    def _stop(self) -> None:
        self._at_rest.set()
        super()._stop()


def prepared_bytes(graph: Graph) -> int:
    """Bytes of masks and dealt shares that a party has of a prepared run, at most."""
    run = [node for node in graph.nodes if node.phase == "run"]
    shapes = lambda node: [graph[a].shape for a in node.args]
    dealt = sum(dealt_bytes(GATES[n.op], n.attrs, shapes(n), n.shape) for n in run if n.op in GATES)
    return dealt + sum(ELEMENT_BYTES * numel(node.shape) for node in run if has_mask(node))


def local_serving_walks(
    programs: Mapping[int, Program],
    make_party: Callable[..., OnlineParty] = OnlineParty,
    device: torch.device | str = "cpu",
) -> dict[str, ServingWalk]:
    """The walks of all parties, with the dealer in this process."""
    names = next(iter(programs.values())).parties
    keys = {name: new_key() for name in names}
    streams = {name: Stream(key, device) for name, key in keys.items()}
    dealing = FamilyDealing([Dealing(program.graph, names, streams) for program in programs.values()])
    walks = {}
    for name in names:
        pairs = local_pairs(keys, name)
        parties = {size: make_party(program, name, streams[name], pairs) for size, program in programs.items()}
        source = DealtHere(dealing) if name == names[-1] else NoSource()
        walks[name] = ServingWalk(parties, streams[name], source)
    return walks
