"""Layers whose weights one party holds in the clear, on the masked engine's values, without dealt products.

For a masked x = m - λ_S - λ_C and a layer B(., W) of the owner S, B(x, W) = B(m - λ_S, W) - B(λ_C, W). S computes the
first term alone. The second is shared before the input is known, by the gate of `protocols.paillier.linear_gate` run on the
mask: C sends Enc(λ_C) and gets u = B(λ_C, W) + r, S keeps r (Delphi, Mishra et al., USENIX Security 2020, section 4.1).
The shares of the result are B(m - λ_S, W) + r and -u. All layers share one message each way.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import accumulate
from typing import cast

import torch

from protocols.errors import InputError, PreprocessingReused, explain
from protocols.fixedpoint import encode
from protocols.paillier import PrivateKey, PublicKey, fixed, wire
from protocols.paillier.cipher import Draw
from protocols.paillier.linear_gate import RING_BITS, ClientGate, GateShape, ServerGate
from protocols.paillier.patches import Patches, conv2d_patches, linear_patches
from protocols.paillier.pool import InsecurePool
from securemodel.compiler.capture import ModelState
from securemodel.compiler.ir import Graph, Node
from securemodel.engines.clear import ClearSide
from securemodel.engines.masked.preparing import Prepared
from securemodel.program import Program


def owned_layers(graph: Graph) -> list[Node]:
    """The layers of a program that are computed so."""
    return [node for node in graph.nodes if node.op == "owned_layer"]


def mark_owned_layers(graph: Graph, owner: str, settings: Mapping[str, object]) -> None:
    """Turns products of a secret by weights that one party holds in the clear into `owned_layer` nodes.

    These are linear layers and convolutions; other products stay as they are. `settings` become attributes.
    """
    for node in graph.nodes:
        if node.op != "bilinear" or node.attrs["kind"] not in ("matmul", "conv1d", "conv2d"):
            continue
        y = graph[node.args[1]]
        flat = node.attrs["kind"] != "matmul" or len(y.shape) == 2
        if flat and y.op == "share" and y.phase == "load" and y.owner == owner:
            node.op, node.owner, node.attrs = "owned_layer", owner, {**node.attrs, **settings}


def patches_of(graph: Graph, node: Node) -> Patches:
    """Where a layer reads its input."""
    x, y = (graph[a].shape for a in node.args)
    attrs = node.attrs["attrs"]
    if node.attrs["kind"] == "matmul":
        return linear_patches(x, y[1])
    steps = [attrs[name] for name in ("stride", "padding", "dilation")]
    if node.attrs["kind"] == "conv1d":  # an image of one row
        x, y = (*x[:2], 1, x[2]), (*y[:2], 1, y[2])
        steps = [[rest, step] for rest, step in zip((1, 0, 1), steps, strict=True)]
    stride, padding, dilation = map(tuple, steps)
    return conv2d_patches(x, y, stride, padding, dilation, attrs["groups"])


def gate_shape(graph: Graph, node: Node) -> GateShape:
    """A layer's geometry, and how wide its weights may be."""
    largest = fixed.magnitude(node.attrs["weight_limit"], node.attrs["weight_frac"])
    return GateShape(patches_of(graph, node), largest.bit_length() + 1)


def request_bytes(graph: Graph, node: Node) -> int:
    """Bytes of a layer's part of the client's message; exact."""
    shape = gate_shape(graph, node)
    return wire.message_bytes(node.attrs["key_bits"], (math.prod(shape.patches.input_shape),), 1 << RING_BITS - 1)


def reply_bytes(graph: Graph, node: Node) -> int:
    """Bytes of a layer's part of the owner's message; exact."""
    shape, bits = gate_shape(graph, node), node.attrs["key_bits"]
    cells = -(-shape.patches.outputs // shape.slots(bits).count)
    return wire.message_bytes(bits, (cells,), (1 << shape.mask_bits) - 1)


class _Layers:
    """What both sides have: the layers, their messages' sizes, and shares that are used once."""

    def __init__(self, program: Program, session: bytes) -> None:
        self._graph, self._session, self._digest = program.graph, session.hex(), program.digest
        self.nodes = owned_layers(program.graph)
        self._shares: dict[tuple[int, int], torch.Tensor] = {}
        self.rings: dict[int, torch.Tensor] = {}
        self.insecure_draw: Draw | None = None

    @cached_property
    def shapes(self) -> dict[int, GateShape]:
        """Geometry by layer."""
        return {node.id: gate_shape(self._graph, node) for node in self.nodes}

    @cached_property
    def request_sizes(self) -> list[int]:
        """Bytes of the layers' parts of the client's message."""
        return [request_bytes(self._graph, node) for node in self.nodes]

    @cached_property
    def reply_sizes(self) -> list[int]:
        """Bytes of the layers' parts of the owner's message."""
        return [reply_bytes(self._graph, node) for node in self.nodes]

    def _context(self, epoch: int, node: Node) -> str:
        return f"{self._session}/{self._digest}/{epoch}/{node.id}"

    def _parts(self, message: bytes, sizes: list[int]) -> Iterator[tuple[Node, bytes]]:
        """Each layer with its part of a message."""
        for node, size, end in zip(self.nodes, sizes, accumulate(sizes), strict=True):
            yield node, message[end - size : end]

    def _pool(self, key: PrivateKey | PublicKey) -> InsecurePool | None:
        """What a test that must repeat blinds with; None is the operating system's randomness."""
        return InsecurePool(key, self.insecure_draw) if self.insecure_draw else None

    def load(self, model: ModelState | None) -> None:
        """Takes the weights, where this side has them."""
        self.forget()

    def forget(self) -> None:
        """Drops shares of runs that did not come to an end."""
        self._shares.clear()

    def take(self, epoch: int, node: Node) -> torch.Tensor:
        """This party's prepared share of a layer, once. Raises PreprocessingReused."""
        if (epoch, node.id) not in self._shares:
            what, fix = "was not prepared, or was used before", "open a new session; every run prepares its own"
            raise PreprocessingReused(explain(f"layer {node.id} of run {epoch} {what}", fix=fix))
        return self._shares.pop((epoch, node.id))

    def part(self, node: Node, epoch: int) -> Prepared:
        """What this party's walk takes for a layer, once: its prepared share, and the weights where it has them."""
        return {"share": self.take(epoch, node), "weights": self.rings.get(node.id)}


class ClientLayers(_Layers):
    """The side that does not know the weights, and has the key."""

    def __init__(self, program: Program, session: bytes, key: PrivateKey) -> None:
        super().__init__(program, session)
        self.key = key

    def request(self, epoch: int, masks: Mapping[int, torch.Tensor | None]) -> bytes:
        """The message to the owner; `masks` has this party's share of the mask of each layer's input."""
        self.forget()
        made = []
        for node in self.nodes:
            mask, shape = masks[node.args[0]], self.shapes[node.id].patches.input_shape
            mask = torch.zeros(shape, dtype=torch.int64) if mask is None else mask.reshape(shape)
            made.append(self._gate(epoch, node).request(mask, self._pool(self.key)))
        return b"".join(made)

    def finish(self, epoch: int, message: bytes) -> None:
        """Keeps this party's shares. Raises ProtocolError for another message than the owner's."""
        for node, part in self._parts(message, self.reply_sizes):
            result = self._gate(epoch, node).finish(part)
            self._shares[epoch, node.id] = -result.reshape(node.shape)

    def _gate(self, epoch: int, node: Node) -> ClientGate:
        return ClientGate(self.key, self.shapes[node.id], self._context(epoch, node))


class OwnerLayers(_Layers):
    """The side that knows the weights."""

    def __init__(self, program: Program, session: bytes, key: PublicKey) -> None:
        super().__init__(program, session)
        self.key = key
        self._clear = ClearSide(program, cast(str, self.nodes[0].owner))

    def load(self, model: ModelState | None) -> None:
        """Takes the weights. Raises InputError for one above the limit."""
        self.forget()
        self._clear.set_model(model)
        self.rings = {node.id: self._ring(node) for node in self.nodes}

    def _ring(self, node: Node) -> torch.Tensor:
        limit, weights = node.attrs["weight_limit"], self._clear.value(node.args[1])
        if not bool((weights.abs() <= limit).all()):
            raise InputError(
                explain(
                    f"{self._clear.describe(node.args[1])} has a number that is not finite or above the limit {limit:g}",
                    fix="compile with a larger weight_limit at both parties; it is public",
                )
            )
        return encode(weights, node.attrs["weight_frac"], limit, "weights").contiguous()

    def reply(self, epoch: int, message: bytes) -> bytes:
        """The message to the client; keeps r. Raises ProtocolError for another message than the client's."""
        self.forget()
        made = []
        for node, part in self._parts(message, self.request_sizes):
            shape, ring = self.shapes[node.id], self.rings[node.id]
            ring = ring.T if node.attrs["kind"] == "matmul" else ring
            weights = ring.reshape(shape.patches.weight_shape).contiguous()
            gate = ServerGate(self.key, shape, weights, self._context(epoch, node))
            reply, masks = gate.reply(part, self._pool(self.key), self.insecure_draw)
            self._shares[epoch, node.id] = masks.reshape(node.shape)
            made.append(reply)
        return b"".join(made)
