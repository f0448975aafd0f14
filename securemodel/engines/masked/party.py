"""One online party's walk through a program: a coroutine that computes, and yields when it must talk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch

from protocols import linear
from protocols.bilinear import bilinear
from protocols.channel import Label, Purpose
from protocols.correlations import hidden_order, mask_share
from protocols.errors import explain
from protocols.gates import GATES, HALVED, Dealt
from protocols.prg import Stream
from protocols.shares import Masked, MaskedBits, Role, add_shares, part_of_bits, public_share, to_additive
from securemodel.compiler.ir import PHASES, Node, Phase
from securemodel.compiler.positions import is_table, table_nodes, take_rows
from securemodel.compiler.wire import START, is_given, item_bytes, message_bytes, sends, serves_client, steps
from securemodel.engines.clear import ClearSide, revealed
from securemodel.engines.masked import opening
from securemodel.engines.masked.dealing import last_uses
from securemodel.engines.masked.preparing import LoadedOperand, Prepared
from securemodel.engines.masked.tables import TABLE_EPOCH, Tables
from securemodel.engines.masked.zero import add_zero
from securemodel.engines.start import agreed_rows, start_bytes
from securemodel.engines.walk import Message, Rows, Steps, Talk
from securemodel.errors import InputError
from securemodel.program import Program

_NOTHING = torch.empty(0, dtype=torch.uint8)  # of a message: in main memory, whatever the party computes on
TakePrepared = Callable[[int], Prepared]


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
        self._steps = {phase: steps(graph, phase) for phase in PHASES}
        self._done = {phase: last_uses(graph, phase) for phase in PHASES}
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

    def fresh(self, times: int) -> dict[str, torch.Tensor]:
        """This party's shares of all states, hidden by shares of zero: together they say what the kept ones do.

        All parties call it after the same run, with the same number from 1 of how often they did.
        """
        kept = self._graph.keeps()
        shares = {
            name: torch.zeros(kept[name].shape, dtype=torch.int64) if share is None else share
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
        self.tables.shared = {node.id: env[node.id] for node in table_nodes(self._graph)}
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
            share = torch.zeros(node.shape, dtype=torch.int64) if share is None else share
            shares[node.id] = add_zero(share, self.me, self._all_pairs, self._loaded_at, node.id).cpu()
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
                    found[node] = Masked(rows.to(device), mask_share(stream, TABLE_EPOCH, node, rows.shape))
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

    def _phase(self, phase: Phase, epoch: int, take, rows: Rows, agree, outputs=None):
        env, kept = {**self._loaded, **self.tables.shared}, {}
        self._digest, self._epoch = self.clear.agreed_digest(phase, self._agreed(phase)), epoch
        done, first, agreed = self._done[phase], True, rows
        for index, step in enumerate(self._steps[phase]):
            for node in step.local:
                env[node.id] = self._local(node, env, take)
                if node.op == "keep":
                    kept[node.attrs["name"]] = env[node.id]
                elif node.op == "client_output":
                    outputs[node.attrs["index"]] = env[node.id]
                self._release(env, done, node, phase)
            if not step.talk and not first:
                continue
            if step.talk and step.talk[-1].op == "reveal":
                self.result_shared_at = time.perf_counter()
            opened = [node for node in step.talk if node.id not in self.tables.shared]
            items = [(node, self._outgoing(node, env, take, epoch, agreed)) for node in opened]
            start = self._start(rows) if first else None
            at = step.talk[0].id if step.talk else index
            received = yield self._talk(Label(epoch, at, Purpose.START if first else Purpose.OPEN), items, start)
            if first:
                agreed = agreed_rows(self.program, self.me, self._digest, rows, received)
                agree(agreed)
            self._incoming(items, env, received, START.size if first else 0, outputs)
            if first:
                self.inputs_shared_at = time.perf_counter()
            for node in step.talk:
                self._release(env, done, node, phase)
            first = False
        self.kept = {**self.kept, **kept}  # a phase that fails changes nothing
        return env

    def _agreed(self, phase: Phase) -> dict[str, torch.Tensor]:
        """What all parties must agree on: of tables, that they are at the same step, and have shared them or not; of what
        clients ask, what is run."""
        tables = table_nodes(self._graph)
        if serves_client(self._graph):
            manifest = self.manifest if phase == "run" else bytes([self.given_weights is not None])
            return {"what is run": torch.tensor(list(manifest), dtype=torch.uint8)}
        if phase == "run" or not tables:
            return {}
        return {
            "rows: the first step": torch.tensor(self.tables.first),
            "rows: shared": torch.tensor(all(node.id in self.tables.shared for node in tables)),
        }

    def _release(self, env: dict, done: dict[int, list[int]], node: Node, phase: Phase) -> None:
        if phase == "load":
            return
        for value in done.get(node.id, ()):
            env.pop(value, None)

    # ---- talking
    def _start(self, rows: Rows) -> torch.Tensor:
        return torch.frombuffer(bytearray(start_bytes(self._digest, rows)), dtype=torch.uint8)

    def _talk(self, label: Label, items: list[tuple[Node, Any]], start: torch.Tensor | None) -> Talk:
        outgoing: dict[str, list[torch.Tensor]] = {}
        incoming: dict[str, int] = {}
        talk = [node for node, _ in items]
        for peer in self.peers:
            buffers = [start] if start is not None else []
            buffers += [wire for node, (wire, _) in items if sends(node, self.me, peer)]
            if any(buffer.numel() for buffer in buffers):
                outgoing[peer] = buffers
            expected = message_bytes(talk, peer, self.me, start is not None)
            if expected:
                incoming[peer] = expected
        return Talk(label, outgoing, incoming)

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
        if is_table(self._graph, node):
            stream = Stream(self.tables.key, self._stream.device)
            return self._encoded(node), mask_share(stream, TABLE_EPOCH, node.id, node.shape)
        if node.op == "input":
            return self._encoded(node), mask_share(self._stream, epoch, node.id, node.shape)
        if node.op == "positions":
            return self._encoded(node), hidden_order(self._stream, epoch, node.id, node.attrs["size"])
        if node.op != "reveal":
            return env[node.args[0]], take(node.id)["lam"]
        share = self._present(env, node)
        if 0 < rows.now < self.program.header.rows:
            share = opening.without_filling(share, rows.now)
        return add_zero(share, self.me, self._pairs, epoch, node.id) if self._pairs else share, None

    def _incoming(self, items, env: dict, received: Message, offset: int, outputs) -> None:
        at = dict.fromkeys(self.peers, offset)
        for node, (_, kept) in items:
            parts = {}
            for peer in self.peers:
                if sends(node, peer, self.me):
                    parts[peer] = received.get(peer, _NOTHING)[at[peer] : at[peer] + item_bytes(node)]
                    opening.check(node, parts[peer], peer)
                    at[peer] += item_bytes(node)
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
        return self.clear.encoded(node).to(self._stream.device)

    def _local(self, node: Node, env: dict, take: TakePrepared) -> Any:
        if node.op in GATES:
            return self._gate(node, env, cast(Dealt, take(node.id)))
        return LOCAL[node.op](self, node, env, take)

    def _gate(self, node: Node, env: dict, dealt: Dealt) -> torch.Tensor:
        operands = [env[a] for a in node.args]
        if (halved := HALVED.get(node.op)) and node.args[1] in self.loaded_operands:
            return halved.finish(node.attrs, operands[0].m, self.loaded_operands[node.args[1]].share, dealt)
        return GATES[node.op].evaluate(self.role, node.attrs, operands, dealt).view(node.shape)

    def _present(self, env: dict, node: Node) -> torch.Tensor:
        """A node's operand as a share that is there."""
        share = env[node.args[0]]
        if share is None:
            return torch.zeros(self._graph[node.args[0]].shape, dtype=torch.int64, device=self._stream.device)
        return share

    def _do_own(self, node: Node, env: dict, take) -> torch.Tensor | None:
        if self.given_weights is not None:
            return self.given_weights[node.id].to(self._stream.device)
        return self._encoded(node) if node.owner == self.me else None

    def _do_client_input(self, node: Node, env: dict, take) -> torch.Tensor:
        return self.shares[int(node.attrs["name"].removeprefix("input:"))].to(self._stream.device)

    def _do_client_output(self, node: Node, env: dict, take) -> torch.Tensor:
        """This party's share for the client, who has no other share and must learn the sum alone: so two parties add shares
        of zero, too."""
        return add_zero(self._present(env, node), self.me, self._all_pairs, self._epoch, node.id).cpu()

    def _do_public_masked(self, node: Node, env: dict, take) -> Masked:
        take(node.id)
        return Masked(env[node.args[0]], None)

    def _do_xor(self, node: Node, env: dict, take) -> Any:
        x, y = (env[a] for a in node.args)
        return MaskedBits(x.hat ^ y.hat, take(node.id)["lam"]) if node.form == "masked_bits" else x ^ y

    def _do_part(self, node: Node, env: dict, take) -> MaskedBits:
        hat = part_of_bits(env[node.args[0]].hat, node.attrs, node.shape)
        return MaskedBits(hat, take(node.id)["lam"])

    def _do_rows(self, node: Node, env: dict, take) -> Masked:
        return Masked(take_rows(self._graph, node, env[node.args[0]].m, self.step), take(node.id)["lam"])

    def _do_linear(self, node: Node, env: dict, take) -> Any:
        kind, attrs = node.attrs["kind"], node.attrs["attrs"]
        operands = [env[a] for a in node.args]
        if node.form == "masked":
            m = linear.LINEAR[kind](*[x.m for x in operands], **attrs)
            return Masked(m, take(node.id)["lam"])
        if kind == "add" and operands[0] is not None and operands[0].shape == torch.Size(node.shape):
            return add_shares(*operands)
        return linear.apply(kind, operands, attrs, [self._graph[a].shape for a in node.args], node.shape)

    def _do_owned_layer(self, node: Node, env: dict, take: TakePrepared) -> torch.Tensor:
        """What was made of the others' masks, and at the weights' owner the product of the rest, in the clear."""
        x, prepared = env[node.args[0]], take(node.id)
        share = cast(torch.Tensor, prepared["share"])
        if prepared["weights"] is None:
            return share
        known = x.m if x.lam is None else x.m - x.lam
        product = bilinear(node.attrs["kind"], known, prepared["weights"], node.attrs["attrs"])
        return product.view(node.shape) + share

    def _do_bilinear_public(self, node: Node, env: dict, take) -> torch.Tensor | None:
        x, y = (env[a] for a in node.args)
        if x is None:
            return None
        first, second = (y, x) if node.attrs["swapped"] else (x, y)
        return bilinear(node.attrs["kind"], first, second, node.attrs["attrs"])


Local = Callable[[OnlineParty, Node, dict, TakePrepared], Any]
_NOT_YET: Local = lambda self, node, env, take: None  # an owner computes it where it enters the ring
LOCAL: dict[str, Local] = {
    "placeholder": _NOT_YET,
    "float": _NOT_YET,
    "encode": lambda self, node, env, take: self._encoded(node),
    "own": OnlineParty._do_own,
    "client_input": OnlineParty._do_client_input,
    "client_output": OnlineParty._do_client_output,
    "public_masked": OnlineParty._do_public_masked,
    "public_additive": lambda self, node, env, take: public_share(env[node.args[0]], self.role),
    "to_additive": lambda self, node, env, take: to_additive(env[node.args[0]], self.role),
    "state": lambda self, node, env, take: self.kept[node.attrs["name"]],
    "keep": lambda self, node, env, take: env[node.args[0]],
    "rows": OnlineParty._do_rows,
    "linear": OnlineParty._do_linear,
    "part": OnlineParty._do_part,
    "xor": OnlineParty._do_xor,
    "bilinear_public": OnlineParty._do_bilinear_public,
    "owned_layer": OnlineParty._do_owned_layer,
}
"""What a party computes for the operators that are no gates and do not talk."""


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
