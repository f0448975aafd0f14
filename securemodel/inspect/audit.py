"""Who learns what: read from a program, for each party and the dealer.

Everything here is counted from the nodes of the program, so it holds for a text as for what compile() returns; only
lines of code and `reveal` are known for the latter alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, cast

from protocols.errors import explain
from protocols.gates import GATES
from protocols.identity import DEALER, PartiesConfig
from protocols.names import PUBLIC
from securemodel.compiler.ir import CLIENT, PHASES, Node
from securemodel.compiler.ops import OUTPUTS, ROWS
from securemodel.compiler.owners import owner_of, weight_owners
from securemodel.compiler.positions import is_table, table_nodes
from securemodel.compiler.wire import sent_bits
from securemodel.engines.paillier.owned_layers import reply_bytes, request_bytes
from securemodel.errors import InputError
from securemodel.inspect.audittext import Audit
from securemodel.inspect.statement import Constant, Output, Role, Seen
from securemodel.inspect.weak import same_organisation, weak_choices
from securemodel.program import Program, checked


def audit(program: Program, config: PartiesConfig | None = None) -> Audit:
    """Reads a program of any protocol. With a parties file, also whether the dealer and a party are one organisation.

    Raises InputError for training with Paillier alone.
    """
    if any(node.op == "linear_step" for node in checked(program, "audit()").graph.nodes):
        why, fix = "its messages are no nodes of a graph", "docs/training.md says what each party learns"
        raise InputError(explain("training with Paillier alone has no audit", where="audit()", why=why, fix=fix))
    outputs = _outputs(program)
    roles = [_party(program, name, outputs) for name in program.parties]
    roles += [_contributor(program, name) for name in program.contributors]
    roles += (
        [_client(program, outputs)]
        if any(map(program.header.is_stranger, (*program.header.inputs, *program.header.outputs)))
        else []
    )
    if has_dealer(program):
        roles.append(_dealer(program))
    warnings = [*weak_choices(program, outputs), *(same_organisation(program, config) if config else ())]
    return Audit(
        program.digest, program.protocol, rounding_of(program), tuple(roles), outputs, _by_design(program),
        _masks(program), _constants(program), tuple(warnings),
    )  # fmt: skip


def has_dealer(program: Program) -> bool:
    """Whether somebody deals correlated randomness: for every gate, but not for encrypted numbers alone."""
    return program.protocol != "crypten" and all(node.op != "settings" for node in program.graph.nodes)


def rounding_of(program: Program) -> str:
    """How products are cut to the program's fractional bits: "exact", "fast", "none", or what another protocol does."""
    if program.protocol == "crypten":
        return "by CrypTen"
    if not has_dealer(program):
        return "in float, by the receiver"
    if not any("truncate" in node.op or node.op in ("window", "shift") for node in program.graph.nodes):
        return "none"
    return program.header.rounding


def _live(program: Program) -> Iterable[Node]:
    live = getattr(program, "live", None)  # a graph of Paillier may have nodes that no output needs
    return program.graph.nodes if live is None else [node for node in program.graph.nodes if node.id in live]


def _size(node: Node) -> int:
    return math.prod(node.shape)


# ---- results
def _outputs(program: Program) -> tuple[Output, ...]:
    names, header = program.result_names, program.header
    found = {node.attrs["index"]: node for node in program.graph.nodes if node.op in OUTPUTS}
    out = []
    for index, (name, to) in enumerate(zip(names, header.outputs, strict=True)):
        node = found[index]
        excess = max(0, (node.frac or 0) - header.frac_bits)
        out.append(Output(name, to, node.shape, node.attrs["dtype"], node.frac, excess, rounding_of(program)))
    return tuple(out)


def _by_design(program: Program) -> tuple[str, ...]:
    header = program.header
    to = ", ".join(f"{name} to {who}" for name, who in zip(program.result_names, header.outputs, strict=True))
    return (
        f"results: {to or 'none'}{_what_reveal_was(program)}",
        f"the program's text: {len(program.graph.nodes)} nodes, all shapes, names of weights, numbers of the code (below)",
        f"shapes of a run's inputs: {', '.join(str(list(shape)) for shape in header.input_shapes)}",
        "how many rows a run has, how many runs there are, and when",
        "the size and time of every message; neither follows a secret, but an owner's float computations take their time",
        *(f"{what}: the same at every party, and given by all" for what in _public(program)),
    )


def _what_reveal_was(program: Program) -> str:
    if program.maker != Program.maker:
        return ""
    known = f"compile(reveal={program.reveal!r})" if program.model is not None else "unknown: a text does not say"
    return f"; reveal: {known}"


def _public(program: Program) -> list[str]:
    header = program.header
    inputs = [name for name, owner in zip(program.input_names, header.inputs, strict=True) if owner == PUBLIC]
    weights = "weights" if program.maker == Program.maker else "weights that the training starts with"
    return [*inputs, *([weights] if PUBLIC in weight_owners(header.weights) else [])]


_ROWS_MASKS = "all steps, and all sessions of a training: the rows are sent once; with a store, as long as the store"


def _masks(program: Program) -> dict[str, str]:
    if not has_dealer(program):
        return {}
    return {
        "of weights": "from one load of the model to the next; with a store, as long as the store",
        **({"of rows that are shared once": _ROWS_MASKS} if table_nodes(program.graph) else {}),
        "of inputs and of values in between": "one run",
        "of results": "never: a receiver gets the shares, and they add up to the result",
    }


# ---- parties
def _party(program: Program, me: str, outputs: Iterable[Output]) -> Role:
    learns = tuple(out.name for out in outputs if out.to in (me, "all"))
    sees = {"crypten": _sees_crypten}.get(program.protocol, _sees if has_dealer(program) else _sees_encrypted)
    return Role(
        me, _brings(program, me), tuple(sees(program, me)), learns, _in_the_clear(program, me), _trust(program, me)
    )


def _contributor(program: Program, me: str) -> Role:
    """An owner who shared its rows and left: it sees nothing, and trusts those who stay."""
    trust = (
        "to share rows that belong to the others', position by position; it takes no part in a run, and stops none",
    )
    return Role(me, _brings(program, me), (), (), _in_the_clear(program, me), trust)


def _client(program: Program, outputs: Iterable[Output]) -> Role:
    """Whoever asks the parties, and is none of them."""
    nodes = [node for node in program.graph.nodes if node.op == "client_output"]
    numbers = sum(map(_size, nodes))
    hidden_by = "shares of zero; their sum is for this client"
    sees = Seen("shares of results", "run", len(nodes), numbers, 64 * numbers * len(program.parties), hidden_by)
    trust = ("nothing; its inputs can be anything, and are forced within bounds where the program has them",)
    return Role(
        CLIENT, _brings(program, CLIENT), (sees,), tuple(out.name for out in outputs if out.to == CLIENT), {}, trust
    )


def _in_the_clear(program: Program, me: str) -> dict[str, int]:
    return dict(Counter(_what(node) for node in _live(program) if node.op == "float" and node.owner == me))


def _brings(program: Program, me: str) -> tuple[str, ...]:
    header = program.header
    weights = [
        node for node in program.graph.nodes
        if node.op == "placeholder" and node.attrs["name"].startswith("state:")
        and owner_of(header.weights, node.attrs["name"].removeprefix("state:")) == me
    ]  # fmt: skip
    given = zip(program.input_names, header.inputs, header.input_shapes, strict=True)
    inputs = [f"{name} {list(shape)}" for name, owner, shape in given if owner == me]
    rows = [f"all rows {list(node.shape)}, shared once" for node in table_nodes(program.graph) if node.owner == me]
    return (*([f"{sum(map(_size, weights))} weights"] if weights else []), *inputs, *rows)


def _what(node: Node) -> str:
    """The line of code a computation is from; in a text, the PyTorch function."""
    return " ".join((node.source or node.attrs["target"]).split())


def _trust(program: Program, me: str) -> tuple[str, ...]:
    if program.protocol == "crypten" and me == program.parties[0]:
        return ("everything: it makes all correlated randomness, and can read every secret",)
    return ("to follow the program (semi-honest)", "to keep its key file and its own data to itself")


_MASKED = {
    "input": ("{} of {}", "a mask of the owner alone"),
    "positions": ("positions of {1}", "an order that their owner and the dealer alone know"),
    "mask": ("values in between", "a mask that the parties share"),
    "mask_bits": ("bits of comparisons", "a mask that the parties share"),
}
"""What is opened under a mask: a name, and what hides it."""
_ENTERED = {"own": "{}", "client_input": "inputs of clients"}
"""What is opened under a mask of all parties as it entered, in shares."""
_LEFT = "a mask that the parties share, out of its owner's file"


def _sees(program: Program, me: str) -> list[Seen]:
    """Of the masked engine: what is opened, shares of results, what is dealt, and messages of encrypted layers."""
    found: dict[tuple[str, str, str], list[tuple[int, int]]] = {}

    def note(what: str, node: Node, numbers: int, bits: int, hidden_by: str) -> None:
        found.setdefault((what, node.phase, hidden_by), []).append((numbers, bits))

    peers = len(program.parties) - 1
    for node in program.graph.nodes:
        if node.op in _MASKED and node.owner != me:
            what, hidden_by = _MASKED[node.op]
            given = "rows" if is_table(program.graph, node) else "weights" if node.phase == "load" else "inputs"
            what = _ENTERED.get(program.graph[node.args[0]].op, what).format(given, node.owner)
            hidden_by = _LEFT if node.owner in program.contributors else hidden_by
            senders = 1 if ROWS[node.op].opens == "owner to all" else peers
            note(what, node, _size(node), _size(node) * sent_bits(node) * senders, hidden_by)
        elif node.op == "client_input":
            note("shares of clients' inputs", node, _size(node), _size(node) * 64, "the other parties' shares")
        elif node.op == "reveal" and node.owner in (me, "all"):
            hidden_by = "nothing: it is for this party" if peers == 1 else "shares of zero; their sum is for this party"
            note("shares of results", node, _size(node), _size(node) * 64 * peers, hidden_by)
        elif node.op in GATES and me == program.parties[-1]:
            shapes = [program.graph[a].shape for a in node.args]
            parts = GATES[node.op].parts(node.attrs, shapes, node.shape)
            bits = 8 * sum(part.nbytes for part in parts)
            note("corrections of the dealer", node, sum(map(_numel, parts)), bits, "the other parties' streams")
        elif node.op == "owned_layer":
            owner = cast(Any, program).client  # a deep program's
            client = me == owner
            size, count = (reply_bytes, node) if client else (request_bytes, program.graph[node.args[0]])
            hidden_by = "a share of the server" if client else f"the Paillier key of {owner}"
            note("encrypted numbers", node, _size(count), 8 * size(program.graph, node), hidden_by)
    return [
        Seen(what, phase, len(sizes), sum(n for n, _ in sizes), sum(b for _, b in sizes), hidden_by)
        for (what, phase, hidden_by), sizes in found.items()
    ]


def _numel(part: Any) -> int:
    return math.prod(part.shape)


def _sees_encrypted(program: Any, me: str) -> list[Seen]:
    """Of linear models by Paillier: the server sees ciphertexts, the client linear scores in the clear."""
    shape = program.shape
    if me == program.server:
        numbers, size = shape.inputs * shape.rows, 8 * shape.request_bytes
        return [Seen("encrypted numbers of the client", "run", len(program.nodes("encrypt")), numbers, size, f"the Paillier key of {program.client}")]  # fmt: skip
    numbers, size = shape.outputs * shape.rows, 8 * shape.reply_bytes
    return [Seen("linear scores", "run", len(program.nodes("decrypt")), numbers, size, "nothing: it decrypts them")]


def _sees_crypten(program: Program, me: str) -> list[Seen]:
    nodes = [node for node in program.graph.nodes if node.op == "input"]
    hidden_by = "nothing: it knows all masks" if me == program.parties[0] else "masks that the first party makes"
    seen = []
    for phase in PHASES:
        mine = [node for node in nodes if node.phase == phase]
        if mine:
            numbers = sum(map(_size, mine))
            seen.append(Seen("shares of inputs and weights", phase, len(mine), numbers, 64 * numbers, hidden_by))
    return seen


def _dealer(program: Program) -> Role:
    sees = (
        "the program's text, with the numbers of the code (below); no weights, inputs or results",
        "who takes part and from where, when runs happen and how many",
    )
    trusted = (
        "to work together with no party: it knows every mask, and any party knows every masked value",
        "to follow the program, and to keep no keys",
    )
    gates = [node for node in program.graph.nodes if node.op in GATES]
    brings = (f"correlated randomness for {len(gates)} gates, and the keys of all masks",)
    return Role(DEALER, brings, (), sees, {}, trusted)


# ---- numbers of the code
def _constants(program: Program) -> tuple[Constant, ...]:
    found: dict[str, list[float]] = {}
    users = program.graph.users()
    for node in _live(program):
        numbers: list[float] = []
        if node.op == "float":
            whole = node.owner == PUBLIC and node.attrs["target"] == "tensor"
            numbers = _numbers(
                [node.attrs["args"], list(node.attrs["kwargs"].values())], (int, float) if whole else (float,)
            )
        elif node.op == "linear" and node.attrs["kind"] == "scale":
            numbers = [node.attrs["attrs"]["factor"]]
        elif node.op in ("lookup", "lookup_shared"):
            numbers = _numbers(node.attrs["table"], (int, float))
        if numbers:
            sources = (node.source, *(program.graph[user].source for user in users[node.id]), f"%{node.id}")
            found.setdefault(" ".join(next(filter(None, sources)).split()), []).extend(numbers)
    return tuple(Constant(source, len(numbers), tuple(numbers[:4])) for source, numbers in found.items())


def _numbers(arg: Any, kinds: tuple[type, ...]) -> list[float]:
    if isinstance(arg, (list, tuple)):
        return [number for part in arg for number in _numbers(part, kinds)]
    return [arg] if type(arg) in kinds else []
