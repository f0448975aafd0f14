"""Prints pages from what the code declares: `python docs/make_costs.py > docs/costs.md`, and with the word `training`
docs/training-costs.md."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import securemodel
from protocols.gates import GATES, dealt_bytes
from securemodel.compiler.passes.schedule import rounds
from securemodel.compiler.wire import START, item_bytes
from securemodel.planning.costs import NETWORKS, Machine
from securemodel.planning.units import bytes_text, count_text, network_text, seconds_text
from securemodel.planning.work import gate_bytes

ROOT = Path(__file__).resolve().parent.parent
ELEMENTS = 6400  # a multiple of 64: no padding in packed bits
PARTIES = ("alice", "bob")


class Function(nn.Module):
    """A function of two parties' values."""

    def __init__(self, function: Callable) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.function(x, y)


OPERATORS: tuple[tuple[str, Callable, tuple[int, ...]], ...] = (
    ("sum, difference, negation; product with a whole number", lambda x, y: 3 * (x + y) - y, (ELEMENTS,)),
    ("product", lambda x, y: (x + y) * (x - y), (ELEMENTS,)),
    ("product of products (truncates one)", lambda x, y: (x + y) * (x - y) * (x + y), (ELEMENTS,)),
    ("product with a public number", lambda x, y: (x + y) * 0.3, (ELEMENTS,)),
    ("square", lambda x, y: (x + y).square(), (ELEMENTS,)),
    ("third power", lambda x, y: (x + y).pow(3), (ELEMENTS,)),
    ("comparison `x > 0`", lambda x, y: x + y > 0, (ELEMENTS,)),
    ("ReLU", lambda x, y: torch.relu(x + y), (ELEMENTS,)),
    ("ReLU of a product (truncates it)", lambda x, y: torch.relu((x + y) * (x - y)), (ELEMENTS,)),
    ("ReLU6, hardtanh, clamp to an interval", lambda x, y: torch.clamp(x + y, -1.0, 1.0), (ELEMENTS,)),
    ("leaky ReLU", lambda x, y: nn.functional.leaky_relu(x + y), (ELEMENTS,)),
    ("maximum of 4 (2 x 2 pooling)", lambda x, y: nn.functional.max_pool2d(x + y, 2), (1, 1, 80, 80)),
    ("arg-max of 10", lambda x, y: (x + y).argmax(1), (640, 10)),
)


def compiled(function: Callable, shape: tuple[int, ...], **options) -> securemodel.Program:
    """A function of two parties' values as a program that reveals its result to both."""
    arguments = {"weights": "public", "inputs": PARTIES, "outputs": "all", **options}
    return securemodel.compile(Function(function), (torch.zeros(shape), torch.zeros(shape)), **arguments)


WIDTHS = ({"width": 64}, {"width": 32})
ROUNDINGS = ({"rounding": "exact"}, {"rounding": "fast"})
ROUNDED: tuple[tuple[str, Callable, tuple[int, ...]], ...] = (
    ("product of products", lambda x, y: (x + y) * (x - y) * (x + y), (ELEMENTS,)),
    ("ReLU of a product", lambda x, y: torch.relu((x + y) * (x - y)), (ELEMENTS,)),
    ("maximum of 4 products", lambda x, y: nn.functional.max_pool2d((x + y) * (x - y), 2), (1, 1, 80, 80)),
    ("floor", lambda x, y: (x + y).floor(), (ELEMENTS,)),
    ("GELU", lambda x, y: nn.functional.gelu(x + y), (ELEMENTS,)),
    ("sigmoid of a product", lambda x, y: torch.sigmoid((x + y) * (x - y)), (ELEMENTS,)),
    ("softmax of 128", lambda x, y: torch.softmax(x + y, 1), (50, 128)),
    ("layer norm of 128", lambda x, y: nn.functional.layer_norm(x + y, (128,)), (50, 128)),
)


def operator_row(name: str, function: Callable, shape: tuple[int, ...], variants: Sequence[dict] = WIDTHS) -> list[str]:
    """Rounds and bytes per input element, without the first message and the reveal."""
    cells = [name]
    for options in variants:
        program = compiled(function, shape, **options)
        nodes = [n for n in program.graph.nodes if n.phase == "run"]
        opened = sum(item_bytes(n) for n in nodes if n.op in ("input", "mask", "mask_bits"))
        dealt = sum(gate_bytes(program.graph, n) for n in nodes)
        cells += [str(program.plan().rounds - 2), f"{opened / ELEMENTS:.4g}", f"{dealt / ELEMENTS:.4g}"]
    return cells


def _window(low_bits: int) -> dict:
    return {"shift": [0], "low_bits": low_bits, "offset": [0]}


_SELECTED = {"invert": False, "bits": 16}
GATE_CASES: tuple[tuple[str, str, dict, list[tuple[int, ...]]], ...] = (
    ("bilinear", "product, matrix product, convolution: per element of the result", {}, [(ELEMENTS,), (ELEMENTS,)]),
    ("square", "square", {}, [(ELEMENTS,)]),
    ("truncate", "division by 2^16, fast rounding", {"bits": 16}, [(ELEMENTS,)]),
    (
        "truncate",
        "division by 2^16, exact, beside the digits of its carry",
        {"bits": 16},
        [(ELEMENTS,), (1, ELEMENTS // 64)],
    ),
    ("shift", "division by 2^16, fast, of which 48 bits are read", {"bits": 16, "read": 48}, [(ELEMENTS,)]),
    ("multiply_truncated", "product with value / 2^16, fast rounding", {"bits": 16}, [(ELEMENTS,), (ELEMENTS,)]),
    ("multiply_truncated", "the same, exact", {"bits": 16}, [(ELEMENTS,), (ELEMENTS,), (1, ELEMENTS // 64)]),
    ("digits", "digits of a comparison, width 64", _window(63), [(ELEMENTS,)]),
    ("digits", "digits of a comparison, width 32", _window(31), [(ELEMENTS,)]),
    ("digits", "digits of the carry of a division by 2^16", _window(16), [(ELEMENTS,)]),
    ("top_bit", "top bit of a comparison", {"bit": [63], "offset": [0]}, [(ELEMENTS,)]),
    ("combine", "first layer over 16 digits (width 64)", {"digits": 16}, [(27, ELEMENTS // 64)]),
    ("combine", "second layer, over 4 digits", {"digits": 4}, [(6, ELEMENTS // 64)]),
    ("combine", "only layer over 2 digits", {"digits": 2}, [(2, ELEMENTS // 64)]),
    (
        "conjunction",
        "whether three bits are set",
        {"size": ELEMENTS, "terms": [[[0, False], [1, False], [2, False]]]},
        [(1, 3 * ELEMENTS // 64)],
    ),
    (
        "beyond",
        "whether values left the range that they are compared in",
        {"bit": 24, "offset": 0, "checks": 4, "key": 0},
        [(ELEMENTS,), (1, ELEMENTS // 64)],
    ),
    ("select", "bit times value", {"invert": False}, [(1, ELEMENTS // 64), (ELEMENTS,)]),
    ("select_truncated", "bit times value / 2^16, fast rounding", _SELECTED, [(1, ELEMENTS // 64), (ELEMENTS,)]),
    ("select_truncated", "the same, exact", _SELECTED, [(1, ELEMENTS // 64), (ELEMENTS,), (1, ELEMENTS // 64)]),
    ("unit", "unit vector of an index into 256", {"size": 256}, [(ELEMENTS,)]),
    ("permute", "rows in another party's order: per element", {}, [(ELEMENTS // 2,), (ELEMENTS,)]),
    ("bit_to_ring", "bit as a number", {"invert": False, "shape": [ELEMENTS]}, [(1, ELEMENTS // 64)]),
)


def gate_row(name: str, what: str, attrs: dict, shapes: Sequence[tuple[int, ...]]) -> list[str]:
    """Dealt bytes per element."""
    shape = (attrs["checks"],) if "checks" in attrs else (ELEMENTS,)
    return [f"`{name}`", what, f"{dealt_bytes(GATES[name], attrs, shapes, shape) / ELEMENTS:.4g}"]


def mlp() -> nn.Module:
    """Three layers of 128, 128 and 10 on images of 28 x 28."""
    layers = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def lenet5() -> nn.Module:
    """The network of examples/lenet_mnist."""
    return runpy.run_path(str(ROOT / "examples" / "lenet_mnist" / "model.py"))["LeNet5"]()


@cache
def model_program(make: Callable[[], nn.Module], rows: int) -> securemodel.Program:
    """One party's model on the other's images."""
    with torch.device("meta"):
        model = make()
    arguments = {"weights": "alice", "inputs": "bob", "outputs": "bob"}
    return securemodel.compile(model, torch.zeros(rows, 1, 28, 28), **arguments)


def model_row(name: str, make: Callable[[], nn.Module], rows: int) -> list[str]:
    """Costs of one run."""
    lan, wan = (model_program(make, rows).plan(network) for network in ("lan", "wan"))
    products = max(cost.multiply_adds for cost in lan.total.parties.values())
    sent, memory = max(lan.sent_bytes.values()), max(lan.peak_bytes.values())
    cells = [name, str(rows), str(lan.rounds), bytes_text(sent), bytes_text(lan.preprocessing_bytes)]
    return [*cells, count_text(products), bytes_text(memory), seconds_text(lan.seconds), seconds_text(wan.seconds)]


_BITS = ("mask_bits digits", "mask_bits combine", "mask_bits xor")
_MATCH = (*_BITS, "mask_bits conjunction")
_NORM: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("n x - sum of x, with the residual", ("mask sub",), "is truncated, which takes its opening"),
    ("the same, truncated", ("mask truncate",), "is squared in all bits, which takes one of its own"),
    ("sum of squares S", ("mask add",), "a product of what was just opened"),
    (
        "coefficients of 1/sqrt for each power of 16; first digits",
        ("mask slice + mask_bits digits",),
        "read where S is",
    ),
    (
        "values; second digits, the last for large powers",
        ("mask spline + mask_bits combine + mask_bits xor",),
        "polynomials with these coefficients",
    ),
    ("which power S has", ("mask_bits xor",), "the digits' last layer"),
    ("the value that holds", ("mask add",), "a choice by these bits; no value is known to be it before"),
    ("x - mean, times it", ("mask mul",), "is truncated, which takes its opening"),
    ("normalized x", ("mask truncate",), "is a factor of the next layer in all bits"),
)
_NORM_ROUNDS = tuple(("layer norm", *row) for row in _NORM)
ENCODER_ROUNDS: tuple[tuple[str, str, tuple[str, ...], str], ...] = (
    ("attention", "queries, keys, values", ("mask add",), "are truncated, which takes their opening"),
    ("attention", "the same, truncated", ("mask truncate",), "are factors of products that are read in all bits"),
    ("attention", "scores", ("mask matmul",), "products of these; opened once, for all that follows"),
    ("maximum", "64 matches of two", _BITS, "each layer of digits has the bits of the one before"),
    ("maximum", "their winners", ("mask cat",), "a choice by these bits"),
    ("maximum", "8 matches of eight", _MATCH, "three layers, and who lost to none"),
    ("maximum", "their winners", ("mask cat",), "a choice by these bits"),
    ("maximum", "the last match", _MATCH, "as before"),
    ("maximum", "the largest score", ("mask add",), "a choice by these bits"),
    ("softmax", "coefficients of exp; first digits of what is below the domain", ("mask slice + mask_bits digits",),
     "read where a score less the largest is"),
    ("softmax", "values; second digits", ("mask spline + mask_bits combine",), "polynomials with these coefficients"),
    ("softmax", "what is below the domain", ("mask_bits xor",), "the digits' last layer"),
    ("softmax", "exponentials, and their sum S", ("mask select_truncated + mask sum",), "a choice by these bits"),
    ("softmax", "exponentials times values; coefficients of 1/S; digits",
     ("mask matmul + mask slice + mask_bits digits",), "products of these, and side by side what S asks for"),
    ("softmax", "values of 1/S; which holds", ("mask spline + mask_bits xor",), "polynomials, beside the digits"),
    ("softmax", "1/S", ("mask add",), "a choice by these bits"),
    ("attention", "the mixed values, times it", ("mask multiply_truncated",), "is truncated, which takes its opening"),
    ("attention", "the same, truncated", ("mask truncate",), "is a factor of the next layer in all bits"),
    *_NORM_ROUNDS,
    ("GELU", "its arguments", ("mask add",), "the layer's products and sums"),
    ("GELU", "coefficients; first digits of both ends", ("mask slice + mask_bits digits",), "read where an argument is"),
    ("GELU", "values; second digits", ("mask spline + mask_bits combine",), "polynomials with these coefficients"),
    ("GELU", "on which side of the ends", ("mask_bits xor",), "the digits' last layer"),
    ("GELU", "what holds", ("mask add",), "a choice by these bits"),
    *_NORM_ROUNDS,
)  # fmt: skip
"""An encoder layer with fast rounding: part, what is opened, the openings of each round, why it waits for the one before."""


@cache
def encoder_program(layers: int = 2) -> securemodel.Program:
    """Encoder layers as BERT-base has them, on 128 tokens."""
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", layer_norm_eps=1e-12, batch_first=True)
        model = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
    arguments = {"weights": "alice", "inputs": "bob", "outputs": "bob", "rounding": "fast"}
    return securemodel.compile(model, torch.zeros(1, 128, 768), **arguments)


def layer_openings() -> list[tuple[str, int]]:
    """Of each round of a layer that another one follows: which operators' results are opened, and the bytes of each party."""
    graph = encoder_program().graph
    found = []
    for _, talk in rounds(graph, "run"):
        if not talk or talk[0].op == "input" or not talk[0].source.startswith(("layers.0.", "layers.0 ")):
            continue
        opened = [(node.op, graph[node.args[0]]) for node in talk]
        kinds = {f"{op} {x.attrs.get('kind', x.op) if x.op in ('linear', 'bilinear') else x.op}" for op, x in opened}
        found.append((" + ".join(sorted(kinds)), sum(map(item_bytes, talk))))
    return found


def encoder_rows() -> list[list[str]]:
    """The rounds of a layer, as ENCODER_ROUNDS tells them. Raises ValueError where the program has others."""
    openings, rows = layer_openings(), []
    if [kind for kind, _ in openings] != [kind for *_, kinds, _ in ENCODER_ROUNDS for kind in kinds]:
        raise ValueError("ENCODER_ROUNDS are not the rounds of an encoder layer")
    at = 0
    for part, what, kinds, why in ENCODER_ROUNDS:
        sent = sum(size for _, size in openings[at : at + len(kinds)])
        number = f"{at + 1}" if len(kinds) == 1 else f"{at + 1} to {at + len(kinds)}"
        rows.append([number, part, what, bytes_text(sent), why])
        at += len(kinds)
    return rows


def parts_of_a_layer() -> list[list[str]]:
    """How many rounds each part of a layer takes."""
    parts = dict.fromkeys(part for part, *_ in ENCODER_ROUNDS)
    return [[part, str(sum(len(kinds) for of, _, kinds, _ in ENCODER_ROUNDS if of == part))] for part in parts]


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; all columns but those of text to the right."""
    rows = list(rows)
    numbers = [all(row[i][:1].isdigit() for row in rows) for i in range(len(heading))]
    rule = ["---:" if number else "---" for number in numbers]
    return "\n".join("| " + " | ".join(row) + " |" for row in (heading, rule, *rows))


def document() -> str:
    """The whole page."""
    machine = Machine()
    networks = "\n".join(f"- `{network_text(network)}`" for network in NETWORKS.values())
    heading = ["operation", "rounds", "opened", "dealt", "rounds, width 32", "opened, width 32", "dealt, width 32"]
    rounded = ["operation", "rounds", "opened", "dealt", "rounds, fast", "opened, fast", "dealt, fast"]
    return TEXT.format(
        networks=networks,
        operators=table(heading, (operator_row(*row) for row in OPERATORS)),
        rounded=table(rounded, (operator_row(*row, ROUNDINGS) for row in ROUNDED)),
        gates=table(["gate", "what it does", "dealt bytes an element"], (gate_row(*row) for row in GATE_CASES)),
        layer=len(layer_openings()),
        stack=encoder_program().plan().rounds - 2 * len(layer_openings()),
        layer_parts=table(["part", "rounds"], parts_of_a_layer()),
        layer_rounds=table(["round", "part", "what is opened", "sent", "why it waits"], encoder_rows()),
        models=table(
            ["model", "rows", "rounds", "sent by a party", "dealt", "multiply-adds", "memory", "lan", "wan"],
            (model_row(name, make, rows) for name, make in (("MLP", mlp), ("LeNet-5", lenet5)) for rows in (1, 100)),
        ),
        plan=replace(model_program(lenet5, 1).plan("wan"), digest="(digest)"),
        start=START.size,
        products=f"{machine.multiply_adds_per_s / 1e9:g}",
        moved=f"{machine.bytes_per_s / 1e9:g}",
        made=f"{machine.prepared_bytes_per_s / 1e9:g}",
        overhead=f"{machine.seconds_per_operation * 1e6:g}",
    )


TEXT = """\
# Costs

This page is printed by `docs/make_costs.py` from what the code declares; a test compares it with the code, and other
tests compare what the code declares with the messages that are counted in real runs.

## The plan of a program

`program.plan(network)` says what one run costs with the number of rows the program was compiled for. `print` shows it
layer by layer; `securemodel plan FILE` does the same for a saved program.

```text
{plan}
```

- **Rounds, bytes sent and preprocessing bytes are exact**: those that `session.stats` counts, with the 32 bytes of each
  message's header and the {start} bytes with which a phase's first message begins. What TLS and TCP add is not in
  them. A run of more rows than were compiled for is several runs.
- A **round** is one exchange of messages: all parties send at once, then wait for each other. Openings of several
  layers that share a message are one round; it counts for the layer of the first of them.
- **Preprocessing** is what the dealer sends, all of it to the last party. It does not depend on the inputs.
- **Multiply-adds** are products in the ring while a run goes on, for the party that has most. Half of those of a layer
  with loaded weights are made before, with the masks; `plan.total` has these, and the dealer's, too.
- **Memory** is an estimate: ring tensors that a party holds at once, with up to 256 MiB prepared ahead. The model and
  the inputs in the clear, messages on their way and what a kernel needs while it works are not in it.
- Loading the weights is done once for all runs and is shown apart.

Layers are modules, or lines of the model's own `forward`. A program read from a file does not know them: there a layer
is a product or a comparison, named by the node of the program's text.

### Predicted time

    seconds = rounds x latency + max(sent, received) x 8 / bandwidth
            + multiply-adds / {products}e9 + bytes touched / {moved}e9 + operations x {overhead}e-6

The rates were measured on two cores of an AMD EPYC server with AVX-512, and hold for a party that has such a machine to
itself and finds everything prepared; preparing a run is predicted apart, with {made}e9 bytes of masks and dealt shares
a second. Expect a factor of two of error in computing. Other rates: `securemodel.planning.plan.Machine`; another
network: `Network(bandwidth, latency)` there, with bits per second and seconds **one way** (half of a round trip). By
name there are:

{networks}

Processes of one host share its cores and are slower than `local` says.

## Operators

Two online parties, for each element of the input. *Opened* is what each party sends to the other, *dealt* what the
dealer sends, in bytes. Operands are shares that are not masked yet, so opening them is counted; what is opened once
serves every operation that reads it. Message headers are left out. `width` is the argument of `compile`.

{operators}

With three or more parties each party sends what it opens to each of the others; rounds and dealt bytes stay the same.

## Rounding

What `rounding="exact"`, the default, costs beside `rounding="fast"`, at width 64. What fast rounding tells is in the
[threat model](threat-model.md#what-an-output-says).

{rounded}

Times of whole networks, as [benchmarks](benchmarks.md) defines them: three processes on two cores, TLS, the dealer
included; medians of 9 runs, the better of two such measurements, seconds. *Before* is the build before exact rounding
existed, measured in the same minutes; both modes of today's build make comparisons together, which it did not. MB are
those that a party sends, and those that the dealer sends.

| network | before | fast | exact | exact / before | rounds fast | rounds exact | MB sent fast | exact | MB dealt fast | exact |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |
| LeNet-5, 128 images | 0.117 | 0.113 | 0.135 | 1.15 | 39 | 41 | 11.5 | 12.6 | 49.5 | 63.2 |
| VGG16, CIFAR | 0.133 | 0.128 | 0.147 | 1.11 | 118 | 120 | 4.7 | 5.0 | 17.8 | 24.0 |
| ResNet-18, CIFAR | 0.195 | 0.196 | 0.218 | 1.12 | 89 | 92 | 10.9 | 11.6 | 38.4 | 54.0 |
| encoder layer, 32 x 384 | 0.132 | 0.121 | 0.144 | 1.09 | 59 | 119 | 6.5 | 7.1 | 19.8 | 29.3 |
| MiniLM-L6, 32 tokens | 0.712 | 0.683 | 0.864 | 1.21 | 349 | 709 | 39.6 | 43.3 | 118.9 | 176.0 |

On links of high latency rounds count more: transformers and recurrent networks take about twice the rounds.

## Rounds of an encoder layer

One layer of BERT-base on 128 tokens, two parties, fast rounding, takes {layer} rounds; L layers take {layer} L + {stack},
the inputs included. *Sent* is what each party sends. What runs side by side shares a round: coefficients and
digits, the mixed values and the reciprocal of their weights' sum, both ends of a domain. What is truncated is opened a
second time only where all its bits are read.

{layer_parts}

{layer_rounds}

## Gates

{gates}

## Models

One party has the weights, the other the images (28 x 28).

{models}
"""


# ---- the page of trainings
def small_vgg() -> nn.Module:
    """Six convolutions of 3 x 3 in three pairs, each with max pooling after it, and two layers."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (32, 64, 128):
        layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2048, 128), nn.ReLU(), nn.Linear(128, 10))


Sizes = tuple[tuple[int, ...], ...]
BATCH = 128
TRAININGS: tuple[tuple[str, str, Callable[[], nn.Module], Sizes], ...] = (
    ("table, 100,000 x 50", "logistic regression", lambda: nn.Linear(50, 2), ((100_000, 25), (100_000, 25))),
    (
        "table, 100,000 x 50", "MLP 50-64-2",
        lambda: nn.Sequential(nn.Linear(50, 64), nn.ReLU(), nn.Linear(64, 2)), ((100_000, 25), (100_000, 25)),
    ),
    ("MNIST, 60,000", "MLP 784-128-128-10", mlp, ((60_000, 1, 28, 28),)),
    ("MNIST, 60,000", "LeNet-5", lenet5, ((60_000, 1, 28, 28),)),
    ("CIFAR-10, 50,000", "small VGG", small_vgg, ((50_000, 3, 32, 32),)),
)  # fmt: skip


def training_row(data: str, name: str, make: Callable[[], nn.Module], sizes: Sizes) -> list[str]:
    """Costs of an epoch."""
    torch.manual_seed(0)
    model = make()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def step(*batch: torch.Tensor) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(torch.cat(batch[:-1], 1)), batch[-1]).backward()
        optimizer.step()

    def nobody_reads() -> torch.Tensor:
        raise AssertionError("a plan reads no data")

    columns = {f"x{at}": securemodel.owned(PARTIES[at], nobody_reads, shape=size) for at, size in enumerate(sizes)}
    labels = securemodel.owned(PARTIES[1], nobody_reads, shape=sizes[0][:1], dtype=torch.int64)
    batches = securemodel.dataset(**columns, labels=labels).batches(BATCH, resident=True)
    job = securemodel.compile_training(step, model, optimizer, batch=batches, parties=PARTIES)
    lan, wan = job.plan("lan"), job.plan("wan")
    one, steps = lan.step, lan.steps_per_epoch
    cells = [data, name, str(steps), str(one.rounds), bytes_text(max(lan.loading_bytes.values()))]
    cells += [bytes_text(max(one.sent_bytes.values())), bytes_text(one.preprocessing_bytes)]
    cells += [bytes_text(max(lan.bytes_per_epoch.values())), bytes_text(steps * one.preprocessing_bytes)]
    return [*cells, seconds_text(lan.seconds_per_epoch), seconds_text(wan.seconds_per_epoch)]


def training_document() -> str:
    """The whole page."""
    heading = ["data", "model", "steps", "rounds a step", "loading", "sent a step", "dealt a step"]
    heading += ["sent an epoch", "dealt an epoch", "lan", "wan"]
    return TRAINING_TEXT.format(batch=BATCH, trainings=table(heading, (training_row(*row) for row in TRAININGS)))


TRAINING_TEXT = """\
# What an epoch of training costs

This page is printed by `python docs/make_costs.py training` from what the code declares; a test compares it with the
code. Two parties and a dealer, SGD with momentum, cross-entropy, batches of {batch}. One party has the samples (of the
table each has half of the columns), the other the labels. Rows are shared once: *loading* is what the busiest party
sends before the first step, once for all epochs. *Sent* is what the busiest party sends, *dealt* what the dealer sends.

{trainings}

Rounds and bytes are exact, for exact rounding and 64 bits. Times are the plan's, of parties with a machine each, where
the dealer deals a step while the one before runs ([how they are predicted](costs.md#predicted-time)). What steps took
when they were measured is in the [benchmarks](benchmarks.md#training-steps). Of your own step, `job.plan("wan")` says
the same, layer by layer.

With `rounding="fast"` these times are 0.5 to 0.65 of what they are here. Where the dealer's line is the slow one,
preprocessing that is made beforehand (`securemodel prepare`) takes its bytes out of the training.
"""

if __name__ == "__main__":
    print(training_document() if sys.argv[1:] == ["training"] else document(), end="")
