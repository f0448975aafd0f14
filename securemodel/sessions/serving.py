"""Sessions that answer strangers: shares of a client's inputs go in, shares of its results come out."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch

from protocols import kernels
from protocols.devices import Device, chosen
from protocols.errors import explain
from protocols.identity import PartiesConfig
from protocols.prg import Stream
from securemodel.compiler.capture import ModelState
from securemodel.engines.masked.party import OnlineParty
from securemodel.engines.masked.serving import ServingWalk, local_serving_walks, prepared_bytes
from securemodel.engines.masked.sources import DealerSource, NoSource, largest_message
from securemodel.engines.walk import Rows, Steps
from securemodel.errors import InputError
from securemodel.invocation import current
from securemodel.program import Program
from securemodel.sessions.agree import agree
from securemodel.sessions.masked import introduce
from securemodel.sessions.remote import aborting, dial_dealer, join, place
from securemodel.sessions.session import Rounds, Session

AHEAD_BYTES = 256 << 20
_MOST_AHEAD = 4

Shares = Sequence[torch.Tensor]
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Result:
    """This party's shares of each output, `rows` rows of it, and which run they are of: the same words at all parties.

    Of a local session, the shares of each party by its name.
    """

    shares: Any = field(repr=False)
    run: str


class ServingSession(Session):
    """Programs of several sizes with one load. Every party makes the same calls in the same order.

    A run of as many rows as its size takes and gives whole tensors, whatever their axes are: so programs may be numbered
    in place of sizes, too.

    `pools`: how many runs of each size are prepared before they are asked for, the same at every party.
    """

    def __init__(
        self,
        programs: Mapping[int, Program],
        digest: str,
        walks: Mapping[str, ServingWalk],
        channels: Mapping[str, Rounds] | None = None,
        pools: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__(next(iter(programs.values())), walks, channels)
        self.programs, self.digest = dict(programs), digest
        self._depths = dict(pools or {})
        self._pools: dict[int, deque[int]] = {}

    def load(self, family: Any, model: ModelState | None) -> None:
        """Shares the weights of `model`, which their owner alone gives, for the runs of all sizes. Raises InputError."""
        if family.digest != self.digest:
            raise InputError(
                f"this session serves the family {self.digest[:12]}, not {family.digest[:12]}: "
                "open a session with the family you want to load"
            )
        with self._in_turn(self._turns.ask()):
            self._load_now(lambda walk, epoch: walk.load(epoch, model))

    def load_shares(self, shares: Any) -> None:
        """Loads weights from the shares that each party has of them (`weight_shares`), under fresh masks.

        Of a local session, those of each party by its name. Raises InputError for other names or shapes; Mismatch where
        another party loads a model.
        """
        given = {name: self._weights_of(walk, mine) for walk, (name, mine) in self._each_party(shares)}
        with self._in_turn(self._turns.ask()):
            self._load_now(lambda walk, epoch: walk.load_shares(epoch, given[walk.party.me]))

    def weight_shares(self) -> Any:
        """This party's shares of the loaded weights, by name, for `load_shares` of a later session.

        Together with those of all other parties, from the same load, they add up to the weights; fewer tell nothing.
        After one load they are the same each time. Of a local session, those of each party by its name.
        """
        with self._in_turn(self._turns.ask()):
            self._check_ready()
            made = {
                name: {str(node): share for node, share in walk.party.weight_shares().items()}
                for name, walk in self._serving().items()
            }
        return made[self.me] if self._awaited else made

    def run_shares(
        self, size: int, shares: Any, rows: int, manifest: bytes, tell: Callable[[Result], None] = lambda result: None
    ) -> Result:
        """One run of the program of a size, on this party's shares of `rows` rows of each input: int64 [rows, ...].

        Free rows are zeros that everybody knows, and their results are dropped here. All parties call it with the same
        size, rows and manifest (32 bytes): these are compared in the first message, whose values are hidden by fresh masks,
        before anything is opened. Of a local session, `shares` are those of each party by its name. `tell` is told the
        result before the next run is prepared, so that whoever waits for it does not wait for that. Raises InputError
        (nothing is sent then), Mismatch and PeerError.
        """
        turn = self._turns.ask()
        with self._in_turn(turn):
            self._check_ready()
            self._check_size(size, rows, manifest)
            given = {name: self._filled(mine, size, rows) for _, (name, mine) in self._each_party(shares)}
            result = self._timed("stats", lambda: self._run_size(size, given, rows, manifest))
            try:
                tell(result)
            finally:  # whatever became of it: all parties number their runs alike
                self._ask_ahead(size)
            return result

    def run(self, *inputs: torch.Tensor | None):
        """Refused: nobody here has the inputs. Raises InputError."""
        raise InputError(
            explain(
                "the inputs of this session are a client's, in shares",
                fix="give every party's shares to run_shares(), or compile() a program whose inputs a party owns",
            )
        )

    def look(self) -> None:
        """Whether all others are still there, and the dealer: between two runs, without waiting. Raises PeerError, and closes."""
        with self._guarded():
            self.channel.look()
            for walk in self._serving().values():
                walk.look()

    @property
    def runs_ahead(self) -> dict[int, int]:
        """How many runs of each size are prepared at the parties of this process, and wait to be asked for."""
        worst = lambda epochs: min(sum(map(walk.is_prepared, epochs)) for walk in self._serving().values())
        return {size: worst(list(pool)) for size, pool in self._pools.items()}

    # ---- what is given
    def _serving(self) -> dict[str, ServingWalk]:
        return cast(dict[str, ServingWalk], self.walks)

    def _each_party(self, given: Any) -> list[tuple[ServingWalk, tuple[str, Any]]]:
        """What each party of this process gives, with its walk. Raises InputError."""
        walks = self._serving()
        by_name = {self.me: given} if self._awaited else given
        if not isinstance(by_name, Mapping) or set(by_name) != set(walks):
            raise InputError(f"a local session takes shares of each party by its name: {', '.join(walks)}")
        return [(walk, (name, by_name[name])) for name, walk in walks.items()]

    def _weights_of(self, walk: ServingWalk, shares: Weights) -> dict[int, torch.Tensor]:
        nodes = {str(node.id): node for node in walk.party.weights()}
        wrong = [name for name in nodes.keys() | shares.keys() if not _fits(nodes.get(name), shares.get(name))]
        if wrong:
            raise InputError(
                explain(
                    f"these are no shares of this family's weights: {len(wrong)} of {len(nodes)} are not there or of "
                    "another shape",
                    fix="give what weight_shares() gave for the same family",
                )
            )
        return {node.id: shares[name] for name, node in nodes.items()}

    def _check_size(self, size: int, rows: int, manifest: bytes) -> None:
        if size not in self.programs:
            raise InputError(f"there is no program of size {size}: the sizes are {', '.join(map(str, self.programs))}")
        if not 1 <= rows <= size:
            raise InputError(f"a run of size {size} takes 1 to {size} rows, not {rows}")
        if rows < size and not self.programs[size].row_independent:
            raise InputError(f"the rows of this model depend on each other: a run of size {size} takes {size} rows")
        if not isinstance(manifest, bytes) or len(manifest) != 32:
            raise InputError("a manifest has 32 bytes: the SHA-256 of what all parties are about to run")

    def _filled(self, shares: Shares, size: int, rows: int) -> list[torch.Tensor]:
        """Shares of a whole run: the rows that nobody gave are zeros at every party."""
        whole = self.programs[size].header.input_shapes
        shapes = whole if rows == size else [(rows, *shape[1:]) for shape in whole]
        fits = len(shares) == len(shapes) and all(
            isinstance(x, torch.Tensor) and x.dtype == torch.int64 and tuple(x.shape) == shape
            for x, shape in zip(shares, shapes, strict=True)
        )
        if not fits:
            expected = ", ".join(str(list(shape)) for shape in shapes)
            raise InputError(f"the shares of {rows} rows are int64 tensors of the shapes {expected}")
        return [torch.cat([x, x.new_zeros(size - rows, *x.shape[1:])]) if rows < size else x for x in shares]

    # ---- runs
    def _load_now(self, begin: Callable[[Any, int], Steps]) -> None:
        """Loads, and has the first runs of each size prepared."""
        super()._load_now(begin)
        self._pools = {size: deque() for size in self.programs}
        for number in range(max(self._depths.values(), default=0)):
            for size in self.programs:
                if number < self._depths.get(size, 0):
                    self._pools[size].append(self._ask(size))

    def _ask(self, size: int) -> int:
        """Has a run prepared, and returns its epoch: all parties number them in the same order."""
        self._runs += 1
        epoch = self._epochs.run(self._runs)
        for walk in self._serving().values():
            walk.ask_for(epoch, size)
        return epoch

    def _ask_ahead(self, size: int) -> None:
        """Has one more run of a size prepared, where such are."""
        if self._depths.get(size, 0):
            with self._guarded():
                self._pools[size].append(self._ask(size))

    def _run_size(self, size: int, given: Mapping[str, Shares], rows: int, manifest: bytes) -> Result:
        told = self.programs[size].header.rows if rows == size else rows  # programs may be numbered
        with self._guarded():
            pool = self._pools[size]
            epoch = pool.popleft() if pool else self._ask(size)
            runs = {}
            for name, walk in self._serving().items():
                walk.manifest = manifest
                runs[name] = walk.run(epoch, given[name], Rows(told, 0))
            finished = self._step(runs)
        cut = lambda share: share if rows == size else share[:rows]
        outputs = {name: [cut(share) for share in shares] for name, (shares, _) in finished.items()}
        run = f"{self.channel.session.hex()[:16]}:{epoch}"
        return Result(outputs[self.me] if self._awaited else outputs, run)


def _fits(node: Any, share: Any) -> bool:
    known = node is not None and isinstance(share, torch.Tensor)
    return known and share.dtype == torch.int64 and tuple(share.shape) == node.shape


def pools_of(programs: Mapping[int, Program], limit_bytes: int = AHEAD_BYTES) -> dict[int, int]:
    """How many runs of each size are prepared ahead: one of each, then a few of the smaller ones, while memory is left."""
    each = {size: prepared_bytes(program.graph) for size, program in programs.items()}
    pools, left = dict.fromkeys(programs, 0), limit_bytes
    for most in (1, _MOST_AHEAD):
        for size, nbytes in each.items():
            more = min(most - pools[size], left // max(1, nbytes))
            pools[size], left = pools[size] + more, left - more * nbytes
    return pools


def open_local(programs: Mapping[int, Program], digest: str, device: Device = None) -> ServingSession:
    """A session of all parties in this process."""
    kernels.keep_freed_memory()
    return ServingSession(programs, digest, local_serving_walks(programs, device=chosen(device or current().device)))


def open_connection(
    programs: Mapping[int, Program],
    digest: str,
    me: str | None,
    config: str | Path | PartiesConfig | None,
    *,
    ahead: bool = True,
    insecure_plain: bool = False,
    device: Device = None,
) -> ServingSession:
    """One party's end of a session between processes."""
    kernels.keep_freed_memory()
    on = chosen(device or current().device)
    first = next(iter(programs.values()))
    pools = pools_of(programs) if ahead else {}
    me, config, own = place(first.parties, me, config, insecure_plain, "serve")
    channel = join(me, config, own, insecure_plain, dealer=True)
    with aborting(channel):
        pairs = agree(digest, me, channel, None, ahead=str(sorted(pools.items())))
        link = dial_dealer(me, config, own, insecure_plain)
        with aborting(link):
            stream = Stream(introduce("".join(program.text() for program in programs.values()), link), on)
            parties = {size: OnlineParty(program, me, stream, pairs) for size, program in programs.items()}
            largest = largest_message(*(program.graph for program in programs.values()))
            source = DealerSource(link, largest) if first.parties[-1] == me else NoSource(link)
            walk = ServingWalk(parties, stream, source, threaded=True)
    return ServingSession(programs, digest, {me: walk}, {me: channel}, pools)
