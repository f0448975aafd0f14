"""Prints docs/operators.md from the registry and the tests: `python docs/make_operators.py > docs/operators.md`."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn

import securemodel
from protocols.names import PUBLIC
from securemodel.compiler.builder import Value, values_in
from securemodel.compiler.capture import capture
from securemodel.compiler.lower import ACCURACY, LOWERINGS
from securemodel.compiler.lower.registry import anchor
from securemodel.compiler.lowering import lower_model
from securemodel.compiler.wire import item_bytes
from securemodel.planning.work import gate_bytes

ROOT = Path(__file__).resolve().parent.parent
PARTIES = ("alice", "bob")
FLAT, SQUARE, IMAGE, SEQUENCE, VOLUME = (1024,), (32, 32), (1, 4, 16, 16), (1, 16, 64), (1, 2, 8, 8, 8)

aten = torch.ops.aten


PLACES = torch.tensor([3, 1, 0, 2])
MASK = torch.arange(32) % 3 == 0


def _convolution(kind: type, **options) -> nn.Module:
    return kind(4, 4, 3, **options)


def _taken(name: str, *args) -> Callable:
    return lambda x: getattr(torch.Tensor, name)(x, *args)


CASES: dict[str, tuple[Callable, tuple[int, ...]]] = {
    "linear": (nn.Linear(32, 32), SQUARE),
    "addmm": (lambda x, y: torch.addmm(y, x, y), SQUARE),
    "mm": (torch.mm, SQUARE),
    "conv1d": (nn.Conv1d(16, 16, 3), SEQUENCE),
    "conv2d": (_convolution(nn.Conv2d), IMAGE),
    "conv_transpose1d": (nn.ConvTranspose1d(16, 16, 3), SEQUENCE),
    "conv_transpose2d": (_convolution(nn.ConvTranspose2d), IMAGE),
    "_native_batch_norm_legit_no_training": (nn.BatchNorm2d(4), IMAGE),
    "prelu": (nn.PReLU(), FLAT),
    "clamp": (_taken("clamp", -1.0, 1.0), FLAT),
    "clamp_min": (_taken("clamp_min", 0.5), FLAT),
    "clamp_max": (_taken("clamp_max", 0.5), FLAT),
    "argmax": (_taken("argmax", -1), SQUARE),
    "div": (torch.div, FLAT),
    "pow": (_taken("pow", 3), FLAT),
    "sum": (_taken("sum", -1), SQUARE),
    "mean": (_taken("mean", -1), SQUARE),
    "cumsum": (_taken("cumsum", -1), SQUARE),
    "_to_copy": (_taken("double"), FLAT),
    "view": (_taken("view", 32, 32), FLAT),
    "permute": (_taken("permute", 1, 0), SQUARE),
    "transpose": (_taken("transpose", 0, 1), SQUARE),
    "unsqueeze": (_taken("unsqueeze", 0), FLAT),
    "expand": (_taken("expand", 2, 1024), FLAT),
    "repeat": (_taken("repeat", 2), FLAT),
    "select": (_taken("select", 0, 1), SQUARE),
    "narrow": (_taken("narrow", 0, 1, 2), SQUARE),
    "split": (_taken("split", 8), SQUARE),
    "split_with_sizes": (_taken("split", [8, 24]), SQUARE),
    "cat": (lambda x, y: torch.cat([x, y]), SQUARE),
    "stack": (lambda x, y: torch.stack([x, y]), SQUARE),
    "flip": (_taken("flip", 0), SQUARE),
    "roll": (_taken("roll", 1), FLAT),
    "constant_pad_nd": (lambda x: F.pad(x, (1, 1)), SQUARE),
    "pad": (lambda x: F.pad(x, (1, 1)), SQUARE),
    "reflection_pad1d": (lambda x: F.pad(x, (1, 1), "reflect"), SEQUENCE),
    "replication_pad1d": (lambda x: F.pad(x, (1, 1), "replicate"), SEQUENCE),
    "upsample_nearest1d": (nn.Upsample(scale_factor=2), SEQUENCE),
    "upsample_nearest2d": (nn.Upsample(scale_factor=2), IMAGE),
    "softmax": (_taken("softmax", -1), SQUARE),
    "_softmax": (_taken("softmax", -1), SQUARE),
    "log_softmax": (_taken("log_softmax", -1), SQUARE),
    "_log_softmax": (_taken("log_softmax", -1), SQUARE),
    "logsumexp": (_taken("logsumexp", -1), SQUARE),
    "layer_norm": (nn.LayerNorm(32), SQUARE),
    "var": (_taken("var", -1), SQUARE),
    "amax": (_taken("amax", -1), SQUARE),
    "group_norm": (nn.GroupNorm(2, 4), IMAGE),
    "instance_norm": (nn.InstanceNorm2d(4), IMAGE),
    "rms_norm": (nn.RMSNorm(32), SQUARE),
    "cosine_similarity": (F.cosine_similarity, SQUARE),
    "cdist": (torch.cdist, SQUARE),
    "bitwise_and": (lambda x: (x > 0) & (x < 1), FLAT),
    "bitwise_or": (lambda x: (x > 1) | (x < 0), FLAT),
    "bitwise_xor": (lambda x: (x > 0) ^ (x < 1), FLAT),
    "bitwise_not": (lambda x: ~(x > 0), FLAT),
    "round": (torch.round, FLAT),
    "remainder": (_taken("remainder", 3.0), FLAT),
    "fmod": (_taken("fmod", 3.0), FLAT),
    "upsample_linear1d": (nn.Upsample(scale_factor=2, mode="linear"), SEQUENCE),
    "upsample_bicubic2d": (nn.Upsample(scale_factor=2, mode="bicubic"), IMAGE),
    "diagonal": (_taken("diagonal"), SQUARE),
    "unfold": (_taken("unfold", 0, 2, 2), SQUARE),
    "repeat_interleave": (_taken("repeat_interleave", 2), FLAT),
    "cummax": (lambda x: x.cummax(-1)[0], SQUARE),
    "cummin": (lambda x: x.cummin(-1)[0], SQUARE),
    "cumprod": (_taken("cumprod", -1), SQUARE),
    "index": (lambda x: x[:, PLACES], SQUARE),
    "index_select": (lambda x: x.index_select(1, PLACES), SQUARE),
    "gather": (lambda x: x.gather(1, PLACES.expand(32, 4)), SQUARE),
    "masked_select": (lambda x: x.masked_select(MASK), SQUARE),
    "as_strided": (lambda x: x.as_strided((8, 8), (4, 1)), SQUARE),
    "select_scatter": (lambda x: x.select_scatter(x[0], 0, 1), SQUARE),
    "scatter": (lambda x: x.scatter(1, PLACES.expand(32, 4), x), SQUARE),
    "scatter_add": (lambda x: x.scatter_add(1, PLACES.expand(32, 4), x), SQUARE),
    "scatter_reduce": (lambda x: x.scatter_reduce(1, PLACES.expand(32, 4), x, "sum"), SQUARE),
    "masked_scatter": (lambda x: x.masked_scatter(MASK, x), SQUARE),
    "index_reduce": (lambda x: x.index_reduce(1, x[0].argsort()[:4], x[:, :4], "amax"), SQUARE),
    "take": (_taken("take", PLACES), SQUARE),
    "put": (_taken("put", PLACES, torch.ones(4)), SQUARE),
    "nonzero_static": (lambda x: torch.nonzero_static(x > 0, size=8), (32,)),
    "bucketize": (lambda x: torch.bucketize(x, torch.arange(8.0)), FLAT),
    "searchsorted": (lambda x: torch.searchsorted(torch.arange(8.0), x), FLAT),
    "histc": (_taken("histc", 8, -1, 1), FLAT),
    "bincount": (lambda x: x.argmax(1).bincount(minlength=32), SQUARE),
    "mode": (lambda x: x.mode(-1)[0], SQUARE),
    "index_put": (lambda x: x.index_put((PLACES,), x[:4]), SQUARE),
    "addmv": (lambda x: torch.addmv(x[0], x, x[1]), SQUARE),
    "addbmm": (lambda x: torch.addbmm(x, x[None], x[None]), SQUARE),
    "baddbmm": (lambda x: torch.baddbmm(x[None], x[None], x[None]), SQUARE),
    "bilinear": (lambda x: F.bilinear(x, x, x[None]), SQUARE),
    "native_layer_norm": (nn.LayerNorm(32), SQUARE),
    "_native_batch_norm_legit": (nn.BatchNorm2d(4, track_running_stats=False), IMAGE),
    "pdist": (F.pdist, SQUARE),
    "avg_pool3d": (nn.AvgPool3d(2), (1, 1, 4, 16, 16)),
    "topk": (_taken("topk", 4), SQUARE),
    "max": (lambda x: x.max(-1)[0], SQUARE),
    "min": (lambda x: x.min(-1)[0], SQUARE),
    "kthvalue": (lambda x: x.kthvalue(4)[0], SQUARE),
    "median": (lambda x: x.median(-1)[0], SQUARE),
    "sort": (_taken("sort"), SQUARE),
    "argsort": (_taken("argsort"), SQUARE),
    "_upsample_bilinear2d_aa": (lambda x: F.interpolate(x, scale_factor=0.5, mode="bilinear", antialias=True), IMAGE),
    "_upsample_bicubic2d_aa": (lambda x: F.interpolate(x, scale_factor=0.5, mode="bicubic", antialias=True), IMAGE),
    "im2col": (lambda x: F.unfold(x, 3), IMAGE),
    "col2im": (lambda x: F.fold(x, (9, 9), 2), SEQUENCE),
    "linalg_inv_ex": (lambda x: torch.linalg.inv_ex(x)[0], SQUARE),
    "_linalg_solve_ex": (lambda x, y: torch.linalg.solve_ex(x, y)[0], SQUARE),
    "linalg_solve_triangular": (lambda x, y: torch.linalg.solve_triangular(x, y, upper=True), SQUARE),
    "cholesky_solve": (lambda x, y: torch.cholesky_solve(x, y), SQUARE),
    "cholesky_inverse": (torch.cholesky_inverse, SQUARE),
    "linalg_cholesky_ex": (lambda x: torch.linalg.cholesky_ex(x)[0], SQUARE),
    "linalg_qr": (lambda x: torch.cat(torch.linalg.qr(x), 1), (128, 8)),
    "linalg_matrix_exp": (torch.matrix_exp, SQUARE),
    "logcumsumexp": (_taken("logcumsumexp", -1), SQUARE),
    "scaled_dot_product_attention": (lambda x: F.scaled_dot_product_attention(x, x, x), SEQUENCE),
    "masked_fill": (lambda x: x.masked_fill(x > 0, 2.0), FLAT),
    "where": (lambda x: torch.where(x > 0, x, -x), FLAT),
    "max_pool1d": (nn.MaxPool1d(2), SEQUENCE),
    "max_pool2d": (nn.MaxPool2d(2), IMAGE),
    "max_pool2d_with_indices": (nn.MaxPool2d(2), IMAGE),
    "adaptive_max_pool2d": (nn.AdaptiveMaxPool2d(8), IMAGE),
    "max_pool3d_with_indices": (nn.MaxPool3d(2, return_indices=True), VOLUME),
    "adaptive_max_pool3d": (nn.AdaptiveMaxPool3d(2), VOLUME),
    "_adaptive_avg_pool3d": (nn.AdaptiveAvgPool3d(2), VOLUME),
    "max_unpool2d": (lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), IMAGE),
    "max_unpool3d": (lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), VOLUME),
    "_embedding_bag_forward_only": (lambda x: F.embedding_bag(x[:, :4].argsort(1), x), SQUARE),
    "grid_sampler_2d": (lambda x: F.grid_sample(x, x[:, :1].reshape(1, 8, 16, 2), align_corners=False), IMAGE),
    "grid_sampler_3d": (
        lambda x: F.grid_sample(x, torch.zeros(1, 2, 2, 2, 3), align_corners=False),
        VOLUME,
    ),
    "avg_pool1d": (nn.AvgPool1d(2), SEQUENCE),
    "avg_pool2d": (nn.AvgPool2d(2), IMAGE),
    "adaptive_avg_pool1d": (nn.AdaptiveAvgPool1d(32), SEQUENCE),
    "adaptive_avg_pool2d": (nn.AdaptiveAvgPool2d(8), IMAGE),
    "lstm": (nn.LSTM(64, 16, batch_first=True), SEQUENCE),
    "gru": (nn.GRU(64, 16, batch_first=True), SEQUENCE),
    "rnn_tanh": (nn.RNN(64, 16, batch_first=True), SEQUENCE),
    "rnn_relu": (nn.RNN(64, 16, batch_first=True, nonlinearity="relu"), SEQUENCE),
}
"""What the cost of an operator is measured on, by its name, where calling it on one or two flat tensors is not it."""


class Summed(nn.Module):
    """A function of one or two tensors that no party knows: sums of what two parties give."""

    def __init__(self, function: Callable, count: int) -> None:
        super().__init__()
        self.function, self.count = function, count

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        made = self.function(*(inputs[2 * i] + inputs[2 * i + 1] for i in range(self.count)))
        return made[0] if isinstance(made, (tuple, list)) else made


def cost(function: Callable, shape: tuple[int, ...], count: int) -> list[str]:
    """Rounds, and bytes sent and dealt for each element, without the first message and the reveal."""
    inputs = tuple(torch.zeros(shape) for _ in range(2 * count))
    arguments = {"weights": PARTIES[0], "inputs": PARTIES * count, "outputs": "all"}
    model = Summed(function, count).eval()
    model(*inputs)  # tells at once whether the operator takes these arguments
    program = securemodel.compile(model, inputs, **arguments)
    nodes = [node for node in program.graph.nodes if node.phase == "run"]
    sent = sum(item_bytes(node) for node in nodes if node.op in ("mask", "mask_bits"))
    dealt = sum(gate_bytes(program.graph, node) for node in nodes)
    elements = math.prod(shape)
    return [str(program.plan().rounds - 2), f"{sent / elements:.4g}", f"{dealt / elements:.4g}"]


def cost_cells(targets: Sequence) -> list[str]:
    """The cost of the first of some operators that can be measured; empty cells where there is none."""
    for target in targets:
        name = str(target).split(".")[1]
        function, shape = CASES.get(name, (target, FLAT))
        if name not in CASES and name.startswith("_"):
            continue
        for count in (1, 2):
            try:
                return cost(function, shape, count)
            except (TypeError, ValueError, IndexError, RuntimeError, securemodel.SecureModelError):
                continue  # it needs other arguments
    return ["", "", ""]


# ---- what is tested
def tested_forms() -> dict[object, list[str]]:
    """For each operator, the kinds of operands that the rows of tests/compiler give it."""
    sys.path.insert(0, str(ROOT / "tests" / "compiler"))
    import test_backward as backward
    import test_operators as tests  # the rows of all tables, in groups

    forms: dict[object, dict[str, None]] = {target: {} for target in LOWERINGS}
    noted = {target: _noting(forms[target], function) for target, function in LOWERINGS.items()}
    with mock.patch.dict(LOWERINGS, noted), torch.no_grad():
        for _, rows in tests.GROUPS:
            inputs = tuple(torch.randn(shape) for shape in rows[0].shapes)
            model = tests.Several([row.module for row in rows], "add").eval()
            given = (*inputs, *tests.veils(inputs, "add"))
            captured, owners = capture(model, given), ("b",) * len(inputs) + ("a",) * len(inputs)
            for weights in ("a", PUBLIC):
                lower_model(captured, weights, owners)
        for row in {row.operators: row for row in backward.ROWS}.values():  # one of each kind
            with torch.enable_grad():
                model, inputs, owners, _ = backward.veiled(row)
            lower_model(capture(model, inputs), PUBLIC, owners)
    order = ("secret", "secret × secret", "secret × owned", "owned × secret", "secret × public", "public × secret")
    rank = {form: place for place, form in enumerate(order)}
    return {target: sorted(found, key=lambda f: (rank.get(f, len(rank)), f)) for target, found in forms.items()}


def _noting(found: dict[str, None], function: Callable) -> Callable:
    def noted(g, *args, **kwargs):
        found[_form(values_in([args, kwargs]))] = None
        return function(g, *args, **kwargs)

    noted.__wrapped__ = function
    return noted


def _form(operands: Sequence[Value]) -> str:
    """`secret × owned`: of two operands in order, of more than two each kind once, and two where all are alike."""
    kinds = ["secret" if v.secret else "public" if v.owner == PUBLIC else "owned" for v in operands]
    different = list(dict.fromkeys(kinds))
    return " × ".join(kinds[:2] if len(kinds) <= 2 or len(different) == 1 else different)


# ---- the page
def sections() -> Iterator[tuple[str, list[list[object]]]]:
    """(heading, operators with one secure version each) for each file of lowerings."""
    found: dict[str, dict[Callable, list[object]]] = {}
    for target, function in LOWERINGS.items():
        if anchor(target):
            found.setdefault(function.__module__, {}).setdefault(function, []).append(target)
    for module, functions in sorted(found.items()):
        title = sys.modules[module].__doc__.split("\n")[0].split(":")[0].rstrip(".")
        yield title, list(functions.values())


def operator_row(targets: Sequence, forms: dict[object, list[str]], seen: set[str]) -> list[str]:
    """One line of a table; `seen` are the names that have been linked to already."""
    shown = " ".join(dict.fromkeys(_name(target, seen) for target in targets))
    seen.update(anchor(target) for target in targets)
    what = (LOWERINGS[targets[0]].__doc__ or "").split("\n")[0].replace("|", "\\|")
    tested = dict.fromkeys(form for target in targets for form in forms[target])
    accuracy = next((ACCURACY[target] for target in targets if target in ACCURACY), None)
    promise = [accuracy.domain or "all", str(accuracy)] if accuracy else ["", ""]
    return [shown, what, ", ".join(tested), *promise, *cost_cells(targets)]


def _name(target: object, seen: set[str]) -> str:
    """An operator's name, as a place to link to; with its overload where that place is taken."""
    _, name, overload = str(target).split(".")
    return f"`{name}.{overload}`" if anchor(target) in seen else f'<a id="{anchor(target)}"></a>`{name}`'


HEADING = ("operator", "computes", "tested operands", "domain", "error", "rounds", "sent", "dealt")


def document() -> str:
    """The whole page."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        forms, parts, seen = tested_forms(), [], set()
        for title, groups in sections():
            lines = [HEADING, ["---"] * 5 + ["---:"] * 3, *(operator_row(targets, forms, seen) for targets in groups)]
            parts.append(f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines))
    return TEXT.format(count=len(set(filter(None, map(anchor, LOWERINGS)))), sections="\n\n".join(parts))


TEXT = """\
# Operators

The {count} ATen operators that have a secure version. This page is printed by `docs/make_operators.py` from the table
of operators and the tests; a test compares it with them. `securemodel check` says which operators a model has.

- **Tested operands**: what the rows of `tests/compiler/table.py` and `gradients.py` (of these one of each kind) hand to
  the secure version, by who knows it: nobody (*secret*), one party (*owned*), everybody (*public*). Numbers are not
  operands. What one party alone can compute, it computes in the clear with PyTorch, whatever the operator.
- **Domain** and **error** are stated for approximations, for 16 fractional bits, with u = 2^-16, and held by tests
  ([functions](functions.md)). All other operators are exact but for the [rounding of fixed
  point](protocol.md#9-errors), or made of approximations, as attention and recurrent layers are. What happens outside
  of a domain is [told there](functions.md#outside-of-a-domain).
- **Rounds**, and **sent** and **dealt** bytes for each element of the input: for two parties, `width` 64, and 1,024
  elements (rows of 32, images of 16 x 16 with 4 channels, sequences of 16 steps with 64 features) whose operands are
  shares that nobody has opened yet. What a party sends to the other, and the dealer to the last party. Weights are
  loaded. Openings that other operators need too, and rounds of independent operators, are shared: the cost of a model
  is what its [plan](costs.md) says, and less than a sum of these. Where positions can be public or secret, the cost is
  that of public ones; a secret position in a table of K entries is the opening of a number, K numbers dealt, and a
  product with K secret numbers ([protocol](protocol.md#10-tables-and-splines)).

{sections}
"""

if __name__ == "__main__":
    print(document(), end="")
