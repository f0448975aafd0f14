"""From a captured model to an encrypted graph.

Each party computes alone what it can. Where numbers of both meet in a linear operator, the client's are encrypted and the
server computes. The first operator that is not linear is for the client, which decrypts its operands; what comes of it
may meet no more numbers of the server, as that would need them to go back under encryption.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from protocols.errors import InputError, explain
from protocols.names import PUBLIC
from securemodel.compiler.builder import Builder, CannotLower, Value, mapped, values_in
from securemodel.compiler.capture import Captured
from securemodel.compiler.ir import Graph, Header, Rounding
from securemodel.compiler.lower.choosing import one_hot_of
from securemodel.compiler.lowering import Lowered, in_the_clear, lower_model, secure_version
from securemodel.compiler.owners import Weights
from securemodel.compiler.postprocess import Source, capture_revealing, revealing
from securemodel.compiler.rows import rows_stand_alone
from securemodel.engines.masked import compiling as masked
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.operators import LARGEST_LIMIT
from securemodel.engines.paillier.owned_layers import mark_owned_layers, owned_layers
from securemodel.engines.paillier.program import PaillierProgram
from securemodel.errors import CompileError

aten = torch.ops.aten

KEY_BITS = (2048, 3072)
MOST_PRODUCTS = 1 << 26
_LINEAR = frozenset({"linear", "factor", "ldexp", "rescale"})
_REMEDY = "compile with protocol='masked', which computes any function of both parties' numbers and needs a dealer"


@dataclass
class Split:
    """Lowers operators with numbers of both parties: linear ones for the server, others for the client."""

    server: Weights
    encrypted: dict[int, Value] = field(default_factory=dict)
    shown: dict[int, Value] = field(default_factory=dict)
    _late: set[int] = field(default_factory=set)
    _seen: int = 0

    def __call__(self, g: Builder, node: torch.fx.Node, args: list, kwargs: dict[str, Any]) -> Any:
        """The version of a captured operator. Raises CannotLower."""
        self._mark_late(g)
        if not any(v.id in self._late for v in values_in([args, kwargs])):
            before, encrypted = len(g.graph.nodes), dict(self.encrypted)
            made = self._on_ciphertexts(g, node, args, kwargs)
            if made is not None and _is_linear(g.graph, before):
                return made
            del g.graph.nodes[before:]
            for number in [n for n in g.calls if n >= before]:
                del g.calls[number]
            self.encrypted = encrypted
        return self._by_client(g, node, args, kwargs)

    def _mark_late(self, g: Builder) -> None:
        """Finds what follows from decrypted numbers, among the nodes that are new."""
        for node in g.graph.nodes[self._seen :]:
            if node.op == "decrypt" or any(a in self._late for a in node.args):
                self._late.add(node.id)
        self._seen = len(g.graph.nodes)

    def _on_ciphertexts(self, g: Builder, node: torch.fx.Node, args: list, kwargs: dict[str, Any]) -> Any:
        hide = lambda v: self._encrypt(g, v) if v.owner not in (None, PUBLIC, self.server) else v
        try:
            if node.target is aten.embedding.default:
                return self._embedding(g, *args, **kwargs)
            return secure_version(g, node, mapped(args, Value, hide), mapped(kwargs, Value, hide))
        except CannotLower:
            return None

    def _embedding(self, g: Builder, weight: Value, index: Value, *rest: Any) -> Value:
        """A row of the server's table: the client's position as a unit vector, times the table."""
        if weight.owner not in (PUBLIC, self.server) or index.secret:
            raise CannotLower("a table or a position that nobody knows")
        count = weight.shape[0]
        unit = g.float(one_hot_of, index, count, shape=(*index.shape, count), integer=True)
        return g.bilinear("matmul", self._encrypt(g, unit), weight)

    def _encrypt(self, g: Builder, x: Value) -> Value:
        if x.id not in self.encrypted:
            node = g.graph.add("encrypt", [x.id], x.shape, owner=x.owner, source=g.source)
            self.encrypted[x.id] = Value(node.id, x.shape, None, x.integer)
        return self.encrypted[x.id]

    def _by_client(self, g: Builder, node: torch.fx.Node, args: list, kwargs: dict[str, Any]) -> Any:
        """The operator itself at the client, on what it decrypts. Raises CannotLower where the server must help."""
        operands = values_in([args, kwargs])
        if any(v.owner == self.server for v in operands):
            late = any(v.id in self._late for v in operands)
            what = "numbers of both parties meet behind a step that is not linear" if late else (
                "it is not linear in the client's numbers, and reads some of the server's"
            )  # fmt: skip
            raise CannotLower(what, _REMEDY)
        show = lambda v: self.show(g, v)
        return in_the_clear(g, node, mapped(args, Value, show), mapped(kwargs, Value, show))

    def show(self, g: Builder, x: Value) -> Value:
        """What the client gets by decrypting; other values as they are."""
        if not x.secret:
            return x
        if x.id not in self.shown:
            attrs = {"integer": True} if x.integer else {}
            client = next(g.graph[v].owner for v in self.encrypted)
            node = g.graph.add("decrypt", [x.id], x.shape, "float", owner=client, attrs=attrs, source=g.source)
            self.shown[x.id] = Value(node.id, x.shape, client, x.integer)
        return self.shown[x.id]


def _is_linear(graph: Graph, start: int) -> bool:
    """Whether the nodes from `start` on are linear in what is encrypted."""
    for node in graph.nodes[start:]:
        hidden = sum(graph[a].form != "float" for a in node.args)
        product = node.op == "bilinear" and hidden == 1
        if node.form != "float" and node.op != "encrypt" and node.op not in _LINEAR and not product:
            return False
    return True


def lower(
    captured: Captured, weights: Weights, owners: Sequence[str], frac_bits: int = 16, width: int = 64,
    rounding: Rounding = "exact",
) -> Lowered:  # fmt: skip
    """Splits every operator between the parties; a model that cannot be split is lowered for the masked engine.

    Collects what neither can do instead of stopping at the first.
    """
    split = Split(weights)
    lowered = lower_model(captured, weights, owners, frac_bits, split, width)
    if not lowered.problems:
        return replace(lowered, outputs=tuple(split.show(lowered.builder, v) for v in lowered.outputs))
    made = masked.lower(captured, weights, owners, frac_bits, width=width, rounding=rounding)
    return Deep(**vars(made))


@dataclass(frozen=True)
class Deep(Lowered):
    """A model with a step in the middle that is not linear, lowered for the masked engine."""


def assemble(
    header: Header,
    lowered: Lowered,
    source: Source,
    truncate_outputs: bool = False,
    *,
    weight_limit: float = 8.0,
    input_limit: float = 256.0,
    key_bits: int = 3072,
    insecure_key_bits: int | None = None,
) -> PaillierProgram | DeepProgram:
    """The program of a lowered model. Raises CompileError, InputError.

    weight_limit: the largest magnitude in the server's matrix, all linear layers multiplied out; input_limit: in what the
    client encrypts; both are public. key_bits: 2048 or 3072; insecure_key_bits: any size, for tests.
    `truncate_outputs` changes nothing: outputs keep all their fractional bits.
    """
    server, client = _check_roles(header)
    model, examples, reveal = source.model, source.examples, source.reveal
    _check_options(weight_limit, input_limit, key_bits)
    key = {"key_bits": insecure_key_bits or key_bits, "insecure": insecure_key_bits is not None}
    if isinstance(lowered, Deep):
        settings = {**key, "weight_limit": float(weight_limit)}
        mark = partial(mark_owned_layers, owner=server, settings=settings)
        deep = DeepProgram(header, *masked.run_passes(header, lowered, truncate_outputs, mark), model, examples)
        if owned_layers(deep.graph):
            return deep
        raise CompileError(explain("no layer has weights of one party in the clear", fix="leave out protocol="))
    _check_linear(header, client)
    rows, first = 1, lambda x: x[:1]
    if rows_stand_alone(revealing(model, reveal), examples) and header.input_shapes[0][0] > 1:
        rows = header.input_shapes[0][0]
        one = (
            {k: first(x) for k, x in examples.items()} if isinstance(examples, Mapping) else tuple(map(first, examples))
        )
        lowered = lower(capture_revealing(model, one, reveal), header.weights, header.inputs, header.frac_bits)
    graph = lowered.builder.graph
    for index, (value, dtype) in enumerate(zip(lowered.outputs, lowered.dtypes, strict=True)):
        if value.owner not in (client, PUBLIC):
            raise CompileError(
                f"output {index} is a number of {value.owner!r} alone: return only what needs both parties"
            )
        attrs = {"index": index, "to": client, "dtype": dtype}
        graph.add("reveal", [value.id], value.shape, "float", owner=client, attrs=attrs)
    settings = {**key, "rows": rows, "weight_limit": float(weight_limit), "input_limit": float(input_limit)}
    graph.add("settings", form="public", attrs=settings)
    program = PaillierProgram(header, graph, lowered.builder.calls, model, examples)
    _check_size(program)
    return program


def _check_roles(header: Header) -> tuple[str, str]:
    """The weights' owner, and the client: the one other party. Raises CompileError."""
    if not isinstance(header.weights, str):
        raise CompileError("protocol 'paillier' is for weights of one owner: name one, or leave out protocol=")
    others = [name for name in header.parties if name != header.weights]
    if header.weights == PUBLIC or len(header.parties) != 2:
        who = "everybody knows the weights" if header.weights == PUBLIC else f"there are {len(header.parties)} parties"
        raise CompileError(
            explain(
                f"protocol 'paillier' is for a server with weights and one client, but {who}",
                fix="name one owner of the weights and one other party, or leave out protocol=",
            )
        )
    return header.weights, others[0]


def _check_linear(header: Header, client: str) -> None:
    """Raises CompileError for what only deep models can have."""
    if header.width != 64:
        raise CompileError("a linear model compares nothing with protocol 'paillier': leave out width")
    if set(header.outputs) != {client}:
        raise CompileError(
            explain(
                f"with protocol 'paillier' only the client, {client!r}, can learn the outputs of a linear model",
                why="it alone can decrypt",
                fix=f"outputs={client!r}, or leave out protocol=",
            )
        )


def _check_options(weight_limit: float, input_limit: float, key_bits: int) -> None:
    for name, limit in (("weight_limit", weight_limit), ("input_limit", input_limit)):
        if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit <= LARGEST_LIMIT:
            raise InputError(f"{name} = {limit!r} is not a number above 0 and up to 2^30")
    if key_bits not in KEY_BITS:
        raise InputError(explain(f"key_bits = {key_bits!r}", fix="use 3072, or 2048"))


def _check_size(program: PaillierProgram) -> None:
    """Raises CompileError where nothing is to be encrypted, or too much."""
    if not program.nodes("encrypt"):
        raise CompileError(
            explain(
                "no output is computed from numbers of both parties",
                why="each party can compute alone what it is to know",
                fix="run the model in the clear",
            )
        )
    shape = program.shape
    if shape.inputs * shape.outputs * (1 if shape.shared else shape.rows) > MOST_PRODUCTS:
        raise CompileError(
            explain(
                f"the linear part has {shape.inputs} inputs and {shape.outputs} outputs in a row",
                why=f"the server multiplies it out into one matrix, of at most {MOST_PRODUCTS} numbers",
                fix="return fewer numbers, or leave out protocol=",
            )
        )
