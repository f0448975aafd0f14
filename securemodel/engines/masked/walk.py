"""One party's walk of the masked engine: what prepares, then the party online."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import cast

import torch

from protocols.channel import HEADER_BYTES
from protocols.errors import PreprocessingReused, explain
from protocols.gates import Dealt
from protocols.identity import DEALER
from protocols.prg import EPOCHS, Stream, new_key
from securemodel.compiler.capture import ModelState
from securemodel.compiler.ir import Phase
from securemodel.compiler.positions import table_nodes
from securemodel.engines.masked.ahead import Ahead, AtOnce
from securemodel.engines.masked.dealing import Dealing
from securemodel.engines.masked.party import OnlineParty, TakePrepared
from securemodel.engines.masked.preparing import Item, Prepared, Preparing, Source
from securemodel.engines.masked.sources import DealtHere, NoSource, Wanted
from securemodel.engines.masked.store import Store
from securemodel.engines.masked.tables import Tables, table_streams
from securemodel.engines.masked.zero import local_pairs
from securemodel.engines.walk import Inputs, Rows, Steps, Walk
from securemodel.program import Program

Device = torch.device | str | Mapping[str, torch.device | str]
_AHEAD_BYTES = 256 << 20
_STOP_S = 2.0  # longest wait for the preparing thread, before and after its source is cut off


class MaskedWalk(Walk):
    """A party with what it needs before its inputs are there.

    With `threaded`, a thread prepares, and `ahead` also the run after the one that goes on. With `deal_after_inputs` the
    dealer is asked only when the inputs are shared: benchmarks time it so.
    """

    def __init__(
        self,
        party: OnlineParty,
        stream: Stream,
        source: NoSource,
        *,
        store: Store | None = None,
        threaded: bool = False,
        ahead: bool = False,
    ) -> None:
        self.party, self.source, self.deal_after_inputs = party, source, False
        self.others: Mapping[int, Callable[[int], Prepared]] = {}
        """What makes the parts of nodes that no dealer deals for, by node: functions of the epoch."""
        self.preparing = Preparing(
            party.program.graph, party.program.parties, party.me, stream, self if party.role.last else None
        )
        self._store, self._ahead, self._asked = store, ahead and not store, 0
        self._step_of_epoch = 0
        self._worker = Ahead(self._prepare, _AHEAD_BYTES, party.me) if threaded else AtOnce(self._prepare)
        self._counted: dict[int, int] = {}
        self._dealt = 0

    @property
    def dealt_bytes(self) -> int:
        return self._dealt

    @property
    def shared_times(self) -> tuple[float, float]:
        return self.party.inputs_shared_at, self.party.result_shared_at

    # ---- phases
    def load(self, epoch: int, model: ModelState | None) -> Steps[None]:
        self.party.clear.set_model(model)
        yield from self._load(epoch)

    def _load(self, epoch: int) -> Steps[None]:
        if self._store:  # one store, one set of weights: the same mask over others would show their difference
            self._check_step(self._store)
            self._store.bind_weights(self.party.clear.loaded_digest())
        self._worker.discard()
        self._asked = self._store.next_run - 1 if self._store else epoch
        self._step_of_epoch = self.party.tables.first - self._asked - 1
        self.source.ask(epoch, "load", self.party.tables.first)
        self._worker.submit(epoch, "load")
        yield from self.party.load(epoch, self._worker.take_from(epoch))
        self._end(epoch)

    def run(self, epoch: int, inputs: Inputs, rows: Rows) -> Steps[tuple[list[torch.Tensor | None], Rows]]:
        if not self.deal_after_inputs:
            self.ask(epoch)
            self._ask_ahead(epoch)
        self.party.step = self._step_of_epoch + epoch
        self.party.clear.set_inputs(inputs)
        self.party.agreed = partial(self._agreed, epoch)
        result = yield from self.party.run(epoch, self._take_from(epoch), rows)
        self._end(epoch)
        self._ask_ahead(epoch)
        return result

    def _ask_ahead(self, epoch: int) -> None:
        """Has the run after this one prepared, as soon as this one is: on a slow link both take as long."""
        if self._ahead and epoch + 1 < EPOCHS:
            self.ask(epoch + 1)

    def check_prepared(self) -> None:
        if self._store:
            self._store.check_has(self._store.next_run)

    def first_of(self, steps: int) -> int:
        used = self._store.next_run - 1 if self._store else 0
        return -(-used // steps) * steps

    def begin_at(self, step: int) -> None:
        """The first run after the next load makes this step: a store gives up what it has for those before."""
        self.party.tables.first = step
        if self._store:
            self._store.start_at(step + 1)

    def _check_step(self, store: Store) -> None:
        """Raises PreprocessingReused where the next prepared run is not about the rows of the next step."""
        step, first = store.next_run - 1, self.party.tables.first
        if table_nodes(self.party.program.graph) and first != step:
            raise PreprocessingReused(
                explain(
                    f"this store's next run is step {step}, but the training goes on with step {first}",
                    where=str(store.path),
                    why="the masks of the rows that a step reads are chosen when it is prepared, and used once",
                    fix="prepare another store, of which the steps made are given up, connect to a dealer, or compile with "
                    "batches(..., resident=False) and prepare that",
                )
            )

    @property
    def is_ready(self) -> bool:
        """Whether all that was asked for waits for nothing but its inputs."""
        return self._worker.is_prepared(self._asked)

    def prepare_next(self) -> None:
        """Has one more run prepared than was asked for."""
        self.ask(self._asked + 1)

    def ask(self, epoch: int) -> None:
        """Has a run prepared, where that was not asked for yet."""
        while self._asked < epoch:
            self._asked += 1
            if self._store:
                self._store.consume(self._asked)
            self.source.ask(self._asked, "run")
            self._worker.submit(self._asked, "run")

    def _agreed(self, epoch: int, rows: Rows) -> None:
        self.ask(epoch)
        self.agreed(rows)

    def _take_from(self, epoch: int) -> TakePrepared:
        take = self._worker.take_from(epoch)
        if not self.others:
            return take
        return lambda node: self.others[node](epoch) if node in self.others else take(node)

    def _end(self, epoch: int) -> None:
        self._worker.finish(epoch)
        self._dealt += self._counted.pop(epoch, 0)

    # ---- preparing
    def _prepare(self, epoch: int, phase: Phase) -> Iterator[Item]:
        self.source.begin(epoch, phase, self.party.tables.first if phase == "load" else 0)
        loaded = {} if phase == "load" else self.party.loaded_operands
        yield from self.preparing.run(epoch, phase, loaded, self._step_of_epoch + epoch)
        self.source.finish()

    def dealt(self, epoch: int, wanted: Wanted, device: torch.device) -> list[Dealt]:
        """The last party's shares of what is dealt for some nodes; their messages are counted."""
        nbytes = HEADER_BYTES * len(wanted) + sum(part.nbytes for _, parts in wanted for part in parts)
        self._counted[epoch] = self._counted.get(epoch, 0) + nbytes
        return cast(Source, self.source).dealt(epoch, wanted, device)

    # ---- the end
    def abort(self, reason: str) -> None:
        self._stop()
        self.source.abort(reason)
        self._release()

    def close(self) -> None:
        self._stop()
        self.source.close()
        self._release()

    def _stop(self) -> None:
        """From here on, nobody else uses the source."""
        if not self._worker.close(_STOP_S):
            self.source.interrupt()
            self._worker.close(_STOP_S)

    def _release(self) -> None:
        if self._store:
            self._store.close()


def local_walks(
    program: Program,
    keys: Mapping[str, bytes] | None = None,
    make_party: Callable[..., OnlineParty] = OnlineParty,
    device: Device = "cpu",
    tables: Mapping[str, Tables] | None = None,
) -> dict[str, MaskedWalk]:
    """The walks of all parties, with the dealer in this process: for tests, notebooks and plans.

    device: what all compute on, or each party by its name, and DEALER. tables: what the parties shared in earlier sessions.
    """
    tables = tables or {name: Tables() for name in program.parties}
    places = device if isinstance(device, Mapping) else dict.fromkeys((*program.parties, DEALER), device)
    masks = table_streams(
        program.graph, program.parties, lambda name, owner: Stream(tables[name].key_of(owner), places[DEALER])
    )
    keys = keys or {name: new_key() for name in program.parties}
    streams = {name: Stream(key, places[name]) for name, key in keys.items()}
    dealing = {name: Stream(key, places[DEALER]) for name, key in keys.items()}
    walks = {}
    for name in program.parties:
        party = make_party(program, name, streams[name], local_pairs(keys, name))
        party.tables, last = tables[name], party.role.last
        source = DealtHere(Dealing(program.graph, program.parties, dealing, masks)) if last else NoSource()
        walks[name] = MaskedWalk(party, streams[name], source)
    return walks
