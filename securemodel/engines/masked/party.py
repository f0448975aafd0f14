"""One online party's walk through a program: a coroutine that computes, and yields when it must talk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from protocols.bilinear import bilinear
from protocols.channel import Label, Purpose
from protocols.correlations import hidden_order, mask_share
from protocols.devices import to_device
from protocols.errors import explain
from protocols.gates import GATES, HALVED, REMASKED, Dealt, ready_attrs
from protocols.prg import Stream
from protocols.shares import Masked, MaskedBits, Role, public_share, to_additive
from securemodel.compiler.ir import PHASES, Node, Phase
from securemodel.compiler.positions import is_table, table_nodes, take_rows
from securemodel.compiler.wire import START, is_given, serves_client, steps
from securemodel.engines.clear import ClearSide, revealed
from securemodel.engines.masked import calls, opening
from securemodel.engines.masked.calls import Call, Step, TakePrepared
from securemodel.engines.masked.dealing import last_uses
from securemodel.engines.masked.masks import known_factors
from securemodel.engines.masked.preparing import LoadedOperand, Prepared
from securemodel.engines.masked.rounds import Cut, Opening, Round, Together
from securemodel.engines.masked.tables import TABLE_EPOCH, Tables
from securemodel.engines.masked.zero import add_zero
from securemodel.engines.start import agreed_rows, start_bytes
from securemodel.engines.walk import Message, Rows, Steps, Talk
from securemodel.errors import InputError
from securemodel.program import Program

_STAYS = ("keep", "client_output")
_NOTHING = torch.empty(0, dtype=torch.uint8)  # of a message: in main memory, whatever the party computes on


class OnlineParty:
    """Runs a program's phases as coroutines: each `yield` is a round, and is answered with what was received."""

    def __init__(self, program: Program, me: str, stream: Stream, pairs: Mapping[str, Stream]) -> None:
        self.program, self.me = program, me
        self._stream = stream
        graph, names = program.graph, program.parties
        self.role = Role(names.index(me), len(names))
        self.peers = tuple(n for n in names if n != me)
        self._all_pairs = dict(pairs)
        self._pairs = self._all_pairs if len(names) > 2 else {}
        self.shares: Sequence[torch.Tensor] = ()
        """This party's shares of a client's inputs, for the next run."""
        self.manifest = b""
        """What all parties have in common of the next run, beside the program and its public values."""
        self.given_weights: Mapping[int, torch.Tensor] | None = None
        """This party's shares of the weights of the next load, by node, where all parties have such; else their owner
        gives them."""
        self._loaded_at = 0
        self._graph = graph
        self._tables, self._serves = table_nodes(graph), serves_client(graph)
        self._known = known_factors(graph, names)
        check_runnable(program)
        self._digest, self._epoch = b"", 0
        self._loaded: dict[int, Any] = {}
        self.kept: dict[str, torch.Tensor | None] = {}
        """This party's shares of what the next run reads, None for zero."""
        self.loaded_operands: dict[int, LoadedOperand] = {}
        self.tables = Tables()
        self.step = 0
        """Which rows of these a run reads."""
        self.clear = ClearSide(program, me)
        self.agreed: Callable[[Rows], None] = lambda rows: None
        """Told the rows of a run once the parties agree on them, before anything is sent that depends on a secret
        of a party without inputs."""
        self.inputs_shared_at = self.result_shared_at = 0.0
        self._flat = {phase: self._flattened(phase) for phase in PHASES}
        self._rounds: dict[tuple[Phase, int, frozenset[int]], Round] = {}

    def fresh(self, times: int) -> dict[str, torch.Tensor]:
        """This party's shares of all states in main memory, hidden by shares of zero: together they say what the kept ones do.

        All parties call it after the same run, with the same number from 1 of how often they did.
        """
        kept = self._graph.keeps()
        shares = {
            name: torch.zeros(kept[name].shape, dtype=torch.int64) if share is None else share.cpu()
            for name, share in self.kept.items()
        }
        return {
            name: add_zero(shares[name], self.me, self._all_pairs, self._epoch, node, times)
            for node, name in enumerate(sorted(shares))
        }

    # ---- phases
    def load(self, epoch: int, take: TakePrepared) -> Steps[None]:
        """Shares the weights; what it leaves is used by every later run."""
        self._loaded = {}
        self.tables.shared |= self._contributed()
        env = yield from self._phase("load", epoch, take, Rows(), lambda values: None)
        self.tables.shared = {node.id: env[node.id] for node in self._tables}
        self._loaded = {i: v for i, v in env.items() if v is not None or self._graph[i].form != "float"}
        self.loaded_operands = {
            i: LoadedOperand(v.m, v.lam, None if i in self.tables.shared else to_additive(v, self.role))
            for i, v in env.items()
            if isinstance(v, Masked)
        }
        bits = {i: LoadedOperand(v.hat, v.beta, None) for i, v in env.items() if isinstance(v, MaskedBits)}
        self.loaded_operands.update(bits)

        self._loaded_at = epoch

    def load_like(self, other: OnlineParty) -> None:
        """Takes what a party left of the last load that runs another program with the same load."""
        self._loaded, self.loaded_operands, self._loaded_at = other._loaded, other.loaded_operands, other._loaded_at

    def weight_shares(self) -> dict[int, torch.Tensor]:
        """This party's shares of the loaded weights, by node, hidden by shares of zero; after one load always the same."""
        shares = {}
        for node in self.weights():
            share = self._loaded[node.id]
            share = torch.zeros(node.shape, dtype=torch.int64) if share is None else share.cpu()
            shares[node.id] = add_zero(share, self.me, self._all_pairs, self._loaded_at, node.id)
        return shares

    def weights(self) -> list[Node]:
        """The nodes by which weights enter as shares."""
        return [node for node in self._graph.nodes if node.op == "own" and node.phase == "load"]

    def _contributed(self) -> dict[int, Masked]:
        """The rows of owners who left, by node, where they are not there yet."""
        device, found = self._stream.device, {}
        for given in self.tables.contributed.values():
            stream = Stream(given.key, device)
            for node, rows in given.rows.items():
                if node not in self.tables.shared:
                    found[node] = Masked(to_device(rows, device), mask_share(stream, TABLE_EPOCH, node, rows.shape))
        return found

    def run(self, epoch: int, take: TakePrepared, rows: Rows) -> Steps[tuple[list, Rows]]:
        """One run; returns (this party's outputs, None where it may not learn; the rows that count)."""
        outputs: list[torch.Tensor | None] = [None] * len(self.program.header.outputs)
        agreed = [rows]

        def agree(rows: Rows) -> None:
            agreed.append(rows)
            self.agreed(rows)

        yield from self._phase("run", epoch, take, rows, agree, outputs)
        return outputs, agreed[-1]

    def _flattened(self, phase: Phase) -> tuple[Step, ...]:
        """A phase as calls that are ready, step by step."""
        done = {} if phase == "load" else last_uses(self._graph, phase)
        return tuple(
            Step(
                tuple(
                    (node, self._ready(node), tuple(done.get(node.id, ())), node.op if node.op in _STAYS else "")
                    for node in step.local
                ),
                tuple((node, tuple(done.get(node.id, ()))) for node in step.talk),
                step.talk[0].id if step.talk else index,
                bool(step.talk) and step.talk[-1].op == "reveal",
                (phase, index),
                any(is_table(self._graph, node) for node in step.talk),
            )
            for index, step in enumerate(steps(self._graph, phase))
        )

    def _phase(self, phase: Phase, epoch: int, take, rows: Rows, agree, outputs=None):
        env, kept = {**self._loaded, **self.tables.shared}, {}
        self._digest, self._epoch = self.clear.agreed_digest(phase, self._agreed(phase)), epoch
        first, agreed, watched = True, rows, type(self)._release is not OnlineParty._release
        for step in self._flat[phase]:
            for node, call, done, stays in step.calls:
                env[node.id] = made = call(env, take)
                if stays == "keep":
                    kept[node.attrs["name"]] = made
                elif stays:
                    outputs[node.attrs["index"]] = made
                if watched or done:
                    self._release(env, node, done)
            if not step.talk and not first:
                continue
            if step.reveals:
                self.result_shared_at = time.perf_counter()
            made = self._round(step, first)
            if together := made.together:
                lams = [cast(torch.Tensor, take(i)["lam"]) for i in together.ids]
                values, wires = together.hidden(env, lams)
                received = yield Talk(
                    Label(epoch, step.at, Purpose.OPEN), dict.fromkeys(made.receives, wires), made.receives
                )
                self._open(made, step, env, values, lams, received)
                for node, done in step.talk:
                    self._release(env, node, done)
                continue
            items = [
                (node, self._outgoing(node, env, take, epoch, agreed))
                for node, _ in step.talk
                if node.id not in self.tables.shared
            ]
            start = self._start(rows) if first else None
            received = yield made.talk(Label(epoch, step.at, Purpose.START if first else Purpose.OPEN), items, start)
            if first:
                agreed = agreed_rows(self.program, self.me, self._digest, rows, received)
                agree(agreed)
            self._incoming(items, env, received, made.cuts, outputs)
            if first:
                self.inputs_shared_at = time.perf_counter()
            for node, done in step.talk:
                self._release(env, node, done)
            first = False
        self.kept = {**self.kept, **kept}  # a phase that fails changes nothing
        return env

    def _agreed(self, phase: Phase) -> dict[str, torch.Tensor]:
        """What all parties must agree on: of tables, that they are at the same step, and have shared them or not; of what
        clients ask, what is run."""
        tables = self._tables
        if self._serves:
            manifest = self.manifest if phase == "run" else bytes([self.given_weights is not None])
            return {"what is run": torch.tensor(list(manifest), dtype=torch.uint8)}
        if phase == "run" or not tables:
            return {}
        return {
            "rows: the first step": torch.tensor(self.tables.first),
            "rows: shared": torch.tensor(all(node.id in self.tables.shared for node in tables)),
        }

    def _release(self, env: dict, node: Node, done: Sequence[int]) -> None:
        """Called after each node: what nobody reads any more is dropped."""
        for value in done:
            env.pop(value, None)

    # ---- talking
    def _start(self, rows: Rows) -> torch.Tensor:
        return torch.frombuffer(bytearray(start_bytes(self._digest, rows)), dtype=torch.uint8)

    def _round(self, step: Step, first: bool) -> Round:
        """Who sends and receives what of a step's openings in one message: of rows that are shared already, nothing."""
        key = (*step.place, frozenset(self.tables.shared) if step.tables else frozenset())
        if key not in self._rounds:
            nodes = [node for node, _ in step.talk if node.id not in self.tables.shared]
            self._rounds[key] = Round.of(nodes, self.me, self.peers, START.size if first else 0)
        return self._rounds[key]

    def _open(
        self,
        made: Round,
        step: Step,
        env: dict,
        values: Sequence[torch.Tensor],
        lams: Sequence[torch.Tensor],
        received: Message,
    ) -> None:
        """Takes the peers' parts of what all parties open to all."""
        env.update(cast(Together, made.together).opened(values, lams, received))

    def _outgoing(
        self, node: Node, env: dict, take: TakePrepared, epoch: int, rows: Rows
    ) -> tuple[torch.Tensor | None, opening.Part | None]:
        """(what goes on the wire, this party's part of the opening)."""
        if is_given(node) and node.owner != self.me:
            return None, None
        part = opening.part_of(node, *self._shares(node, env, take, epoch, rows))
        return opening.outgoing(node, part), part

    def _shares(
        self, node: Node, env: dict, take: TakePrepared, epoch: int, rows: Rows
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """This party's shares of what is opened and of the mask that hides it."""
        if node.op == "input":
            if is_table(self._graph, node):
                stream = Stream(self.tables.key, self._stream.device)
                return self._encoded(node), mask_share(stream, TABLE_EPOCH, node.id, node.shape)
            return self._encoded(node), mask_share(self._stream, epoch, node.id, node.shape)
        if node.op == "positions":
            return self._encoded(node), hidden_order(self._stream, epoch, node.id, node.attrs["size"])
        if node.op != "reveal":
            return env[node.args[0]], take(node.id)["lam"]
        share = self._present(env, node)
        if 0 < rows.now < self.program.header.rows:
            share = opening.without_filling(share, rows.now)
        return add_zero(share, self.me, self._pairs, epoch, node.id) if self._pairs else share, None

    def _incoming(
        self, items: Sequence[Opening], env: dict, received: Message, cuts: Sequence[Sequence[Cut]], outputs
    ) -> None:
        for (node, (_, kept)), pieces in zip(items, cuts, strict=True):
            parts = {}
            for peer, start, end in pieces:
                payload = received.get(peer, _NOTHING)
                parts[peer] = payload if end is None else payload[start:end]
                opening.check(node, parts[peer], peer)
            env[node.id] = self._opened(node, kept, parts, outputs)

    def _opened(self, node: Node, mine: opening.Part | None, parts: Message, outputs) -> Any:
        if node.op == "reveal" and node.owner not in (self.me, "all"):
            return None
        value = opening.opened(node, mine, parts.values(), self._stream.device)
        if node.op != "reveal":
            return value
        outputs[node.attrs["index"]] = revealed(node, cast(torch.Tensor, value))
        return None

    # ---- computing
    def _encoded(self, node: Node) -> torch.Tensor:
        """A value of this party, or public, as ring elements on the device that the party computes on."""
        return to_device(self.clear.encoded(node), self._stream.device)

    def _ready(self, node: Node) -> Call:
        """What computes a node that does not talk: its operands, attributes and shapes are found here, once."""
        if node.op not in GATES:
            return LOCAL[node.op](self, node)
        attrs, i = ready_attrs(node.attrs, self._stream.device), node.id
        return lambda env, take: self._gate(node, attrs, env, cast(Dealt, take(i)))

    def _gate(self, node: Node, attrs: dict, env: dict, dealt: Dealt) -> torch.Tensor | Masked:
        args = node.args
        if node.id in self._known:
            return self._known_product(node, attrs, env, dealt)
        if node.op in HALVED and node.phase == "run" and args[1] in self.loaded_operands:
            return HALVED[node.op].finish(attrs, env[args[0]].m, self.loaded_operands[args[1]].share, dealt)
        made = GATES[node.op].evaluate(self.role, attrs, [env[a] for a in args], dealt)
        return made if node.op in REMASKED or made.shape == node.shape else made.view(node.shape)

    def _known_product(self, node: Node, attrs: dict, env: dict, dealt: Dealt) -> torch.Tensor:
        """A product whose second operand one party knows: that one multiplies it by what it knows of the first, the others
        their shares of the first one's mask by what all know of the second."""
        gate, x, y = HALVED[node.op], env[node.args[0]], node.args[1]
        loaded = self.loaded_operands.get(y)
        if self._known[node.id] != self.me:
            return (dealt if loaded else gate.prepare(attrs, x.lam, env[y].m, dealt))["product"]
        if loaded:
            value = loaded.share if self.role.first else loaded.value
        else:
            value = env[y].m - env[y].lam
        return gate.finish(attrs, x.m if x.lam is None else x.m - x.lam, value, dealt)

    def _public_product(self, node: Node, share: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        first, second = (known, share) if node.attrs["swapped"] else (share, known)
        return bilinear(node.attrs["kind"], first, second, node.attrs["attrs"])

    def _present(self, env: dict, node: Node) -> torch.Tensor:
        """A node's operand as a share that is there."""
        share = env[node.args[0]]
        if share is None:
            return torch.zeros(self._graph[node.args[0]].shape, dtype=torch.int64, device=self._stream.device)
        return share

    def _own(self, node: Node) -> torch.Tensor | None:
        if self.given_weights is not None:
            return to_device(self.given_weights[node.id], self._stream.device)
        return self._encoded(node) if node.owner == self.me else None

    def _state(self, node: Node) -> torch.Tensor | None:
        """What the run before kept, or a checkpoint, from which it comes into main memory."""
        share = self.kept[node.attrs["name"]]
        return None if share is None else to_device(share, self._stream.device)

    def _client_input(self, node: Node) -> torch.Tensor:
        return to_device(self.shares[int(node.attrs["name"].removeprefix("input:"))], self._stream.device)

    def _client_output(self, node: Node, env: dict) -> torch.Tensor:
        """This party's share for the client, who has no other share and must learn the sum alone: so two parties add shares
        of zero, too."""
        return add_zero(self._present(env, node), self.me, self._all_pairs, self._epoch, node.id).cpu()

    def _owned_layer(self, node: Node, env: dict, prepared: Prepared) -> torch.Tensor:
        """What was made of the others' masks, and at the weights' owner the product of the rest, in the clear."""
        x, share = env[node.args[0]], cast(torch.Tensor, prepared["share"])
        if prepared["weights"] is None:
            return share
        known = x.m if x.lam is None else x.m - x.lam
        product = bilinear(node.attrs["kind"], known, prepared["weights"], node.attrs["attrs"])
        return product.view(node.shape) + share


def _rows(self: OnlineParty, node: Node) -> Call:
    (x,), i = node.args, node.id
    return lambda env, take: Masked(take_rows(self._graph, node, env[x].m, self.step), take(i)["lam"])


def _bilinear_public(self: OnlineParty, node: Node) -> Call:
    x, y = node.args
    return lambda env, take: None if env[x] is None else self._public_product(node, env[x], env[y])


_NOT_YET = lambda self, node: lambda env, take: None  # an owner computes it where it enters the ring
_of_operand = lambda use: lambda self, node: lambda env, take: use(self, env[node.args[0]])
LOCAL: dict[str, Callable[[OnlineParty, Node], Call]] = {
    "placeholder": _NOT_YET,
    "float": _NOT_YET,
    "encode": lambda self, node: lambda env, take: self._encoded(node),
    "own": lambda self, node: lambda env, take: self._own(node),
    "client_input": lambda self, node: lambda env, take: self._client_input(node),
    "client_output": lambda self, node: lambda env, take: self._client_output(node, env),
    "public_masked": lambda self, node: calls.public_masked(node),
    "public_additive": _of_operand(lambda self, x: public_share(x, self.role)),
    "to_additive": _of_operand(lambda self, x: to_additive(x, self.role)),
    "state": lambda self, node: lambda env, take: self._state(node),
    "keep": _of_operand(lambda self, x: x),
    "rows": _rows,
    "linear": lambda self, node: calls.linear_call(self._graph, node, self._stream.device),
    "part": lambda self, node: calls.part(node),
    "window": lambda self, node: calls.window_call(node),
    "xor": lambda self, node: calls.xor(node),
    "bilinear_public": _bilinear_public,
    "owned_layer": lambda self, node: lambda env, take: self._owned_layer(node, env, take(node.id)),
}
"""For the operators that are no gates and do not talk: what computes a node at a party."""


def check_runnable(program: Program) -> None:
    """A program that was read from a file lacks the calls that its owners make in the clear. Raises InputError."""
    if any(node.op == "float" and node.id not in program.calls for node in program.graph.nodes):
        raise InputError(
            explain(
                "this program was read from a file, and such a program can be planned and dealt for, but not run",
                why="the file does not hold what the owners compute in the clear",
                fix="run the program that compile() returns",
            )
        )
