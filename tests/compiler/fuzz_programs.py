"""Texts of programs with odd sizes, attributes, forms, names and types: each is refused with an error of this project, or
can be planned, dealt for, prepared and evaluated.

As a script (`python tests/compiler/fuzz_programs.py --texts 20000`) it makes as many as wanted; `make sanitize` does so
with kernels that notice every access outside of memory.
"""

from __future__ import annotations

import argparse
import copy
import faulthandler
import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

import securemodel
from protocols import kernels
from protocols.bilinear import bilinear
from protocols.correlations import expand_share
from protocols.errors import SecureModelError
from protocols.gates import GATES
from protocols.linear import LINEAR
from protocols.prg import Stream, insecure_test_key
from protocols.shares import Masked, MaskedBits, Order, Role
from securemodel.compiler.ir import PHASES, TEXT_VERSION, Graph, Header, Node
from securemodel.compiler.ops import ROWS, Case, Wrong, check_attrs, narrowed, opened_widths
from securemodel.engines.masked.dealing import Dealing
from securemodel.engines.masked.preparing import LoadedOperand, Preparing
from securemodel.engines.masked.store import prepare
from securemodel.engines.paillier.operators import ENCRYPTED_ROWS
from securemodel.program import Program

MAX_BYTES = 4 << 20
STUCK_S = 120  # longer than any text takes, on a busy machine too
INTEGERS = (
    0, -1, 1, 2, 3, 4, 5, 7, 8, 16, 63, 64, 65, 255, 256, 257, 65536, (1 << 31) - 1, 1 << 31, 1 << 32, 1 << 60, 1 << 62,
    (1 << 63) - 1, 1 << 63, -(1 << 31), -(1 << 63), 1 << 64, 10**30,
)  # fmt: skip
ODD = (
    *INTEGERS, 0.5, -0.0, 1e308, float("nan"), float("inf"), None, True, False, "", "x", "%0", "%99999", "../../X", "/abs",
    "all", "public", "mul", "conv2d", "\u0663", [], [[]], {}, [0] * 2000, [1 << 62] * 3, {"a": 1},
)  # fmt: skip


def _grown(module: nn.Module, *shapes: tuple[int, ...], **options: Any) -> Program:
    torch.manual_seed(1)
    roles = {"weights": "bank", "inputs": "client", "outputs": "client"}
    return securemodel.compile(module.eval(), tuple(map(torch.zeros, shapes)), **{**roles, **options})


class _Mixed(nn.Module):
    """Sums, moves, tables, indices and comparisons."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        z = x + y
        padded = nn.functional.pad(torch.cat([z, z[:, 1:]], 1).flip(1), (1, 2)).cumsum(1)
        moved = -padded.t() * 0.3, z.roll(1, 1) * 0.25, (z @ torch.ones(3, 2)).unsqueeze(1).expand(2, 4, 2).sum(1)
        chosen = nn.functional.one_hot((x * y).argmax(1), 3), z.max(1).values, z.sort(1).values
        ordered = securemodel.permute(y, x[:, 0].argsort(stable=True))
        return (
            *moved,
            *chosen,
            torch.tanh(z),
            z.square() * torch.relu(z),
            (z - 1).floor(),
            torch.where(z > 0, x, y),
            ordered,
        )


class _Running(nn.Module):
    """A weighted mean of what came before."""

    def forward(self, x: torch.Tensor, mean: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = 0.75 * mean + 0.25 * x
        return torch.relu(mean), mean


def _trained() -> Program:
    """A training step on rows of two owners that are shared once."""
    torch.manual_seed(1)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        (model(torch.cat([x, y], 1)) ** 2).mean().backward()
        optimizer.step()

    own = securemodel.owned
    data = securemodel.dataset(x=own("bank", torch.zeros(7, 2)), y=own("client", torch.zeros(7, 1)))
    return securemodel.compile_training(
        step, model, optimizer, batch=data.batches(3, seed=2), parties=["bank", "client"]
    ).program


def _guarded() -> Program:
    """A network in measured ranges, with a guard."""
    program = _grown(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), (2, 3))
    return securemodel.tune(program, torch.ones(2, 3), tolerance=1, guard=True).program


def _served() -> Program:
    """A model that answers clients who are no parties."""
    torch.manual_seed(1)
    parties, model = ("bank", "hospital"), nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    family = securemodel.compile_service(
        model, torch.zeros(1, 3), weights="bank", parties=parties, sizes=[2], clamp=(0, 1)
    )
    return family.programs[2]


@cache
def seeds() -> tuple[Program, ...]:
    """Programs that the texts are made from; together they have every operator."""
    image = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 4, 2, dilation=2, groups=2), nn.Flatten(), nn.Linear(4, 2)
    )
    turned = nn.Sequential(nn.ConvTranspose2d(1, 2, 2, 2), nn.GELU())
    series = nn.Sequential(nn.Conv1d(2, 2, 3, padding=1), nn.ReLU(), nn.ConvTranspose1d(2, 1, 2, 2, output_padding=1))
    mixed = {"inputs": ("bank", "client"), "outputs": "all"}
    key = {"protocol": "paillier", "insecure_key_bits": 1024}
    return (
        _grown(image, (2, 2, 6, 6)),
        _grown(turned, (1, 1, 2, 3)),
        _grown(turned, (1, 1, 2, 3), rounding="fast"),
        _grown(nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1)), (2, 3), rounding="fast"),
        _grown(series, (1, 2, 5)),
        _grown(_Mixed(), (2, 3), (2, 3), **mixed, width=40),
        _grown(_Mixed(), (2, 3), (2, 3), **mixed, parties=("client", "idle", "bank")),
        _grown(_Running(), (2, 3), (2, 3), state={1: 1}),
        _trained(),
        _served(),
        _grown(nn.Sequential(nn.Conv1d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 2)), (1, 1, 4), **key),
        _grown(nn.Sequential(nn.Linear(3, 2), nn.Softmax(-1)), (2, 3), **key),
        _guarded(),
    )


# ---- texts
def line(node: Node) -> str:
    """A line of a text, of whatever the node holds."""
    owner = f"@{node.owner}" if node.owner else ""
    attrs = " " + json.dumps(node.attrs, sort_keys=True, separators=(",", ":")) if node.attrs else ""
    frac = f" f{node.frac}" if node.frac is not None else ""
    shape, load = ",".join(map(str, node.shape)), " load" if node.phase == "load" else ""
    return f"%{node.id} = {node.op}{owner}{''.join(f' %{a}' for a in node.args)}{attrs} : {node.form}{frac} [{shape}]{load}"


def text_of(kind: str, fields: dict[str, Any], nodes: list[Node]) -> str:
    first = f"{kind} {TEXT_VERSION} {json.dumps(fields, sort_keys=True, separators=(',', ':'))}"
    return "\n".join([first, *map(line, nodes)]) + "\n"


def _leaves(value: Any, path: tuple = ()) -> list[tuple]:
    """The places in a nest, its lists and tables included."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    inner = [leaf for key, part in list(parts)[:50] for leaf in _leaves(part, (*path, key))]
    return [path, *inner] if path else inner


def _set(value: Any, path: tuple, new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def _odd(r: random.Random, old: Any = None) -> Any:
    if type(old) is int and r.random() < 0.4:
        return old + r.choice((-1, 1))
    return copy.deepcopy(r.choice(INTEGERS if r.random() < 0.6 else ODD))


def _change_nest(r: random.Random, nest: Any) -> None:
    places = _leaves(nest)
    if not places or r.random() < 0.05:
        nest["more"] = _odd(r)
        return
    path = r.choice(places)
    old = nest
    for key in path:
        old = old[key]
    if r.random() < 0.08:
        holder = nest
        for key in path[:-1]:
            holder = holder[key]
        del holder[path[-1]]
    else:
        _set(nest, path, _odd(r, old))


def _change_node(r: random.Random, nodes: list[Node], fields: dict[str, Any]) -> None:
    node = r.choice(nodes)
    what = r.randrange(12)
    if what <= 3 and node.attrs:
        node.attrs = copy.deepcopy(node.attrs)
        _change_nest(r, node.attrs)
    elif what == 4:
        shape = list(node.shape) or [1]
        shape[r.randrange(len(shape))] = _odd(r, shape[0])
        node.shape = tuple(shape)
    elif what == 5:
        node.shape = (*node.shape, r.choice(INTEGERS)) if r.random() < 0.5 else node.shape[1:]
    elif what == 6 and node.args:
        args, at = list(node.args), r.randrange(len(node.args))
        alike = [n.id for n in nodes if n.id < node.id and args[at] < len(nodes) and n.form == nodes[args[at]].form]
        args[at] = r.choice((*(alike if r.random() < 0.7 else range(node.id + 1)), 1 << 40))
        node.args = tuple(args)
    elif what == 7:
        node.args = r.choice((node.args[::-1], node.args[1:], node.args * 2, (*node.args, 0)))
    elif what == 8:
        node.op = r.choice((*ROWS, *ENCRYPTED_ROWS, "eval", "rescale", "is_negative"))
    elif what == 9:
        node.form = r.choice(("float", "public", "additive", "masked", "bits", "masked_bits", "secret", "bit", "x"))
    elif what == 10:
        node.frac = r.choice((None, 0, -1, 1, 16, 32, 61, 62, 63, 64, 1 << 31, 1 << 62))
    else:
        node.owner = r.choice((None, "bank", "client", "public", "all", "dealer", "../X", "x" * 70))
        node.phase = r.choice(PHASES)


def _resize(r: random.Random, nodes: list[Node], fields: dict[str, Any]) -> None:
    """Another size of something that is brought in."""
    node = r.choice([node for node in nodes if node.op in ("placeholder", "float") and node.shape] or nodes)
    if node.shape:
        shape = list(node.shape)
        shape[r.randrange(len(shape))] = r.choice((0, 1, 2, 3, 5, 17, 64, 200, 1 << 20, 1 << 31, 1 << 62))
        node.shape = tuple(shape)
    name = str(node.attrs.get("name"))
    if name.startswith("input:") and name[6:].isdecimal() and len(name) == 7:
        fields["input_shapes"][int(name[6:]) % len(fields["input_shapes"])] = list(node.shape)


def _change_header(r: random.Random, nodes: list[Node], fields: dict[str, Any]) -> None:
    _change_nest(r, fields)


def _change_lines(r: random.Random, nodes: list[Node], fields: dict[str, Any]) -> None:
    at, other = r.randrange(len(nodes)), r.randrange(len(nodes))
    if r.random() < 0.3:
        nodes[at], nodes[other] = nodes[other], nodes[at]
    elif r.random() < 0.5:
        nodes.insert(at, copy.copy(nodes[other]))
    else:
        del nodes[at]
    if r.random() < 0.5:
        for number, node in enumerate(nodes):
            node.id = number


def _rederive(header: Header, nodes: list[Node], rows: dict) -> None:
    """Makes the nodes agree with their changed operands again, as far as the table allows: such texts get further."""
    graph = Graph(nodes)
    for node in nodes:
        try:
            case = Case(node, tuple(nodes[a] for a in node.args), header)
            row = rows[node.op]
            if node.op == "bit_to_ring":
                continue
            check_attrs(node.attrs, row.attrs, row.optional)
            made = row.rule(case)
            node.shape, node.frac = made.shape, made.frac
            node.owner, node.phase = row.owner(case), row.phase(case)
        except (Wrong, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError, RuntimeError):
            continue
    try:
        for node, width in zip(nodes, opened_widths(graph, rows), strict=True):
            if node.op in ("mask", "input"):
                node.attrs = narrowed(node, width)
    except (KeyError, TypeError, AttributeError, IndexError):
        pass


def _damage(r: random.Random, text: str) -> str:
    """The same text with letters changed."""
    at = r.randrange(len(text))
    piece = r.choice(
        (
            "",
            "[" * 100_000,
            "{" * 3000,
            "9" * 5000,
            "\r",
            "\0",
            "\u0663",
            "\ud800",
            "%",
            "\n",
            "NaN",
            "-Infinity",
            '"',
            "}",
        )
    )
    return text[:at] + piece + text[at + r.randrange(3) :]


CHANGES: tuple[Callable, ...] = (_change_node,) * 5 + (_resize,) * 4 + (_change_header, _change_lines)


def make_text(seed: int) -> str:
    """A text that this number stands for."""
    r = random.Random(seed)
    program = r.choice(seeds())
    kind = program.text().split(" ", 1)[0]
    fields = json.loads(program.text().split("\n", 1)[0].split(" ", 2)[2])
    nodes = [copy.copy(node) for node in program.graph.nodes]
    for _ in range(r.choice((1, 1, 1, 2, 3))):
        if nodes:
            try:
                r.choice(CHANGES)(r, nodes, fields)
            except (TypeError, KeyError, IndexError, AttributeError, ValueError):
                pass  # an earlier change left nothing to change here
    if r.random() < 0.7:
        shapes = fields.get("input_shapes")
        try:
            changed = Header(**{**vars(program.header), "input_shapes": tuple(map(tuple, shapes))})
        except TypeError:
            changed = program.header
        _rederive(changed, nodes, ENCRYPTED_ROWS if kind == "paillier-program" else ROWS)
    text = text_of(kind, fields, nodes)
    return _damage(r, text) if r.random() < 0.08 else text


# ---- what is done with them
def try_text(text: str, folder: Path, stores: bool = False) -> str:
    """What became of a text: "accepted", or the kind of error that refused it. Any other error is passed on."""
    path = folder / "program.txt"
    path.write_bytes(text.encode(errors="surrogatepass"))
    try:
        program = Program.load(path, MAX_BYTES)
    except SecureModelError as error:
        return type(error).__name__
    try:
        str(program.plan())
        if "secret" not in {node.form for node in program.graph.nodes}:
            _deal(program)
            if stores and program.protocol == "masked":
                made = prepare(program, 1, folder / "stores")
                assert all(folder in path.parents for path in made.values())
    except SecureModelError as error:
        return f"later {type(error).__name__}"
    return "accepted"


def _deal(program: Program) -> None:
    streams = {name: Stream(insecure_test_key(1, name)) for name in program.parties}
    dealing = Dealing(program.graph, program.parties, streams)
    me, loaded = program.parties[0], {}
    preparing = Preparing(program.graph, program.parties, me, streams[me])
    for epoch, phase in enumerate(PHASES):
        for _ in dealing.deal(epoch, phase):
            pass
        for _ in preparing.run(epoch, phase, loaded):
            pass
        if phase == "load":
            masked = [n for n in program.graph.nodes if n.phase == "load" and n.form in ("masked", "masked_bits")]
            zeros = {n.id: torch.zeros(n.shape, dtype=torch.int64) for n in masked}
            loaded = {i: LoadedOperand(zero, zero, zero) for i, zero in zeros.items()}
    for node in program.graph.nodes:
        made = _evaluate(program.graph, node, streams[me])
        assert made is None or tuple(made.shape) == node.shape, (
            f"%{node.id} = {node.op} has another shape than it states"
        )


def _evaluate(graph: Graph, node: Node, stream: Stream) -> torch.Tensor | None:
    """What a party computes for a node, of zeros; None for what is not computed from shares."""
    xs = [graph[a] for a in node.args]
    zeros = [torch.zeros(x.shape, dtype=torch.int64) for x in xs]
    if node.op == "linear":
        return LINEAR[node.attrs["kind"]](*zeros, **node.attrs["attrs"])
    if node.op == "bilinear_public":
        return bilinear(node.attrs["kind"], *(zeros[::-1] if node.attrs["swapped"] else zeros), node.attrs["attrs"])
    if node.op not in GATES:
        return None
    dealt = expand_share(stream, 2, node.id, GATES[node.op].parts(node.attrs, [x.shape for x in xs], node.shape))
    forms = {"masked": Masked, "window": Masked, "masked_bits": MaskedBits, "order": lambda at, order: Order(at, None)}
    operands = [forms[x.form](zero, zero) if x.form in forms else zero for x, zero in zip(xs, zeros, strict=True)]
    made = GATES[node.op].evaluate(Role(0, 2), node.attrs, operands, dealt)
    return (made.m if isinstance(made, Masked) else made).view(node.shape)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--texts", type=int, default=20_000)
    options.add_argument("--first", type=int, default=0)
    given = options.parse_args()
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        for seed in range(given.first, given.first + given.texts):
            folder = Path(name) / str(seed)
            folder.mkdir()
            faulthandler.dump_traceback_later(STUCK_S, exit=True)
            try:
                found[try_text(make_text(seed), folder, stores=seed % 10 == 0)] += 1
            except BaseException:
                print(f"text {seed} is neither refused nor accepted")
                raise
            if seed % 1000 == 999:
                print(f"{seed + 1}: {dict(found)}", flush=True)
    faulthandler.cancel_dump_traceback_later()
    print(f"{given.texts} texts with the kernels of {Path(kernels.__file__).parent}: {dict(found)}")


if __name__ == "__main__":
    main()
