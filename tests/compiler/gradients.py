"""A function with its gradients as one graph of ATen operators, as autograd writes them, and the rows that are tested."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.func import functionalize
from torch.fx.experimental.proxy_tensor import make_fx

from securemodel.compiler.capture import decompositions

aten = torch.ops.aten
UNIT = 2.0**-16


def with_gradients(
    function: Callable, dy: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The results of a function, then its gradients by the inputs that are reals.

    `dy` are the gradients by the results that have some; none for one number, whose gradient is 1.
    """
    given = [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs]
    made = results(function, given)
    wanted = [x for x in given if x.is_floating_point()]
    found = torch.autograd.grad([y for y in made if y.requires_grad], wanted, dy or None, allow_unused=True)
    return [*(y.detach() for y in made), *(d for d in found if d is not None)]


def results(function: Callable, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    made = function(*inputs)
    return [made] if isinstance(made, torch.Tensor) else list(made)


def seeds(function: Callable, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Gradients for the results of a function, as `with_gradients` takes them."""
    made = results(function, [x.detach().requires_grad_() if x.is_floating_point() else x for x in inputs])
    generator = torch.Generator().manual_seed(1)
    shapes = [y.shape for y in made if y.requires_grad]
    return [] if shapes == [()] else [on_grid(torch.randn(shape, generator=generator)) for shape in shapes]


def captured(function: Callable, dy: Sequence[torch.Tensor], inputs: Sequence[torch.Tensor]) -> torch.nn.Module:
    """`with_gradients` as a module of (gradients, inputs), whose forward calls the operators that autograd chose."""
    count = len(dy)
    plain = make_fx(lambda *given: with_gradients(function, given[:count], given[count:]))(*dy, *inputs)
    for node in plain.graph.nodes:
        if node.target is aten.native_batch_norm.default:
            node.target = aten._native_batch_norm_legit.default
    plain.recompile()
    rewritten = functionalize(torch.fx.Interpreter(plain).run, remove="mutations")
    return make_fx(rewritten, decomposition_table=decompositions())(*dy, *inputs)


@dataclass(frozen=True)
class Row:
    """`operators` must be lowered for a function of `inputs` and its gradients.

    These are off by at most `units` 2^-16, times the largest result where that is above one.
    """

    operators: tuple
    function: Callable
    inputs: tuple[torch.Tensor, ...]
    units: float
    label: str


ROWS: list[Row] = []


def row(operators, function: Callable, inputs: Sequence, units: float, label: str = "") -> None:
    """Adds a row; inputs are shapes or tensors, put on the grid of 16 fractional bits."""
    operators = operators if isinstance(operators, tuple) else (operators,)
    generator = torch.Generator().manual_seed(len(ROWS))
    made = tuple(on_grid(torch.randn(x, generator=generator) if isinstance(x, tuple) else x) for x in inputs)
    name = str(operators[-1] if operators else "").removeprefix("aten.").removesuffix(".default")
    ROWS.append(Row(operators, function, made, units, f"{name} {label}".strip() + f" #{len(ROWS)}"))


def on_grid(x: torch.Tensor) -> torch.Tensor:
    return (x.double() / UNIT).round().mul(UNIT).float() if x.is_floating_point() else x


def like(x, options):
    """Options with their weights in the precision of x."""
    return {name: v.to(x.dtype) if isinstance(v, torch.Tensor) else v for name, v in options.items()}


def told(options):
    return ", ".join(name if isinstance(v, torch.Tensor) else f"{name}={v}" for name, v in options.items())


IMAGE, SEQUENCE, MATRIX = (2, 4, 7, 8), (2, 4, 9), (3, 5)
EDGES = torch.tensor([-30.0, -6, -3, -1, -0.5, -UNIT, 0, UNIT, 0.25, 1 - UNIT, 1, 1 + UNIT, 3, 6, 6 + UNIT, 30])
LINE = torch.linspace(-20, 20, 801)

# --- convolutions ---
backward = (aten.convolution.default, aten.convolution_backward.default)
for options in (
    {},
    {"padding": 1},
    {"stride": 2, "padding": (2, 1)},
    {"stride": (1, 3), "dilation": (2, 1)},
    {"groups": 2, "padding": 1},
    {"groups": 4, "stride": 2},
):
    shape = (8, 4 // options.get("groups", 1), 3, 3)
    row(backward, lambda x, w, b, o=options: F.conv2d(x, w, b, **o), (IMAGE, shape, (8,)), 4, f"2d {told(options)}")
    row(backward, lambda x, w, o=options: F.conv2d(x, w, **o), (IMAGE, shape), 4, f"2d without bias {told(options)}")
for options in ({}, {"stride": 2, "padding": 2}, {"dilation": 3}, {"groups": 2, "padding": 1}):
    shape = (6, 4 // options.get("groups", 1), 3)
    row(backward, lambda x, w, b, o=options: F.conv1d(x, w, b, **o), (SEQUENCE, shape, (6,)), 4, f"1d {told(options)}")
for options in ({}, {"stride": 2}, {"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2, "groups": 2}):
    shape = (4, 6 // options.get("groups", 1), 3)
    row(
        backward,
        lambda x, w, b, o=options: F.conv_transpose1d(x, w, b, **o),
        (SEQUENCE, shape, (6,)),
        4,
        f"1d transposed {told(options)}",
    )
    row(
        backward,
        lambda x, w, b, o=options: F.conv_transpose2d(x, w, b, **o),
        (IMAGE, (*shape, 3), (6,)),
        4,
        f"2d transposed {told(options)}",
    )

# --- linear layers and parts ---
row((), F.linear, (MATRIX, (4, 5), (4,)), 3, "linear")
row(aten.slice_backward.default, lambda x: (x[:, 1:3], x[:, ::2]), (MATRIX,), 2)
row(aten.select_backward.default, lambda x: (x[:, 1], x[-1]), (MATRIX,), 2)
row((), lambda x: torch.unsafe_split(x, 2, 1)[1], (MATRIX,), 2, "unsafe_split")
row((), lambda x, y: torch.cat([x, y], 1).expand(2, 3, 10), (MATRIX, MATRIX), 2, "cat and expand")
row(aten.addcmul.default, lambda x, y, z: torch.addcmul(x, y, z, value=0.3), (MATRIX,) * 3, 4)
row(aten.addcdiv.default, lambda x, y, z: torch.addcdiv(x, y, z, value=0.3), (MATRIX, MATRIX, torch.rand(3, 5) + 1), 60)
row(aten.lerp.Scalar, lambda x, y: torch.lerp(x, y, 0.1), (MATRIX, MATRIX), 2)
row(aten.lerp.Tensor, lambda x, y, w: torch.lerp(x, y, w), (MATRIX,) * 3, 4)

# --- piecewise linear activations ---
row(aten.threshold_backward.default, F.relu, (EDGES,), 1)
row(aten.threshold_backward.default, lambda x, y: F.relu(x * y), ((4, 6), (4, 6)), 3, "of a product")
row(aten.threshold_backward.default, lambda x: F.threshold(x, 0.25, 0.0), (EDGES,), 1, "at a quarter")
row(aten.hardtanh_backward.default, F.relu6, (EDGES,), 1, "relu6")
row(aten.hardtanh_backward.default, F.hardtanh, (EDGES,), 1)
row(aten.hardtanh_backward.default, lambda x: F.hardtanh(x, -0.5, 0.25), (EDGES,), 1)
row(aten.leaky_relu_backward.default, F.leaky_relu, (EDGES,), 12)
row(aten.leaky_relu_backward.default, lambda x: F.leaky_relu(x, 0.25), (EDGES,), 3)
row(aten._prelu_kernel_backward.default, F.prelu, (IMAGE, (4,)), 4)
row(aten._prelu_kernel_backward.default, F.prelu, (EDGES[:, None], torch.tensor([0.25])), 4)
row(aten.hardsigmoid_backward.default, F.hardsigmoid, (EDGES,), 5)
row(aten.hardswish_backward.default, F.hardswish, (EDGES[1:-1],), 16)
row((), lambda x: x.clamp(-1, 1), (EDGES,), 1, "clamp")
row((), lambda x: x.clamp(min=-1), (EDGES,), 1, "clamp")
row((), torch.abs, (EDGES,), 1, "abs")

# --- smooth activations ---
row(aten.elu_backward.default, F.elu, (EDGES,), 10)
row(aten.elu_backward.default, lambda x: F.elu(x, 2.0), (EDGES,), 16, "alpha 2")
row(aten.elu_backward.default, F.selu, (EDGES,), 24, "selu")
row(aten.elu_backward.default, lambda x: F.celu(x, 0.5), (EDGES,), 10, "celu")
row(aten.sigmoid_backward.default, torch.sigmoid, (LINE,), 12)
row(aten.tanh_backward.default, torch.tanh, (LINE,), 16)
row(aten.gelu_backward.default, F.gelu, (LINE,), 16)
row(aten.gelu_backward.default, lambda x: F.gelu(x, approximate="tanh"), (LINE,), 16, "tanh")
row(aten.silu_backward.default, F.silu, (LINE,), 24)
row(aten.mish_backward.default, F.mish, (LINE,), 40)
row(aten.softplus_backward.default, F.softplus, (LINE,), 12)
row((aten.log_sigmoid_forward.default, aten.log_sigmoid_backward.default), F.logsigmoid, (LINE,), 12)

# --- pooling ---
routes = (aten.max_pool2d_with_indices.default, aten.max_pool2d_with_indices_backward.default)
TIES = torch.tensor([0.0, 1.0, 1.0, -1.0]).repeat(64).reshape(2, 2, 8, 8)
TIES = torch.where(torch.arange(8) % 3 == 0, TIES.transpose(2, 3), TIES)
for options in (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 1},
):
    for image in (IMAGE, TIES, torch.zeros(1, 1, 7, 7)):
        row(routes, lambda x, o=options: F.max_pool2d(x, **o), (image,), 5, told(options))
row(routes, lambda x: F.max_pool2d(F.relu(x), 2), (torch.randn(2, 2, 6, 6),), 3, "of relu")
row(routes, lambda x: F.max_pool1d(x, 3, 2, 1), (SEQUENCE,), 3, "1d")
for options in (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    {"kernel_size": (3, 2), "divisor_override": 5},
):
    row(aten.avg_pool2d_backward.default, lambda x, o=options: F.avg_pool2d(x, **o), (IMAGE,), 4, told(options))
for size in (1, 3, (3, 5), (7, 8)):
    operators = () if size == 1 else aten._adaptive_avg_pool2d_backward.default
    row(operators, lambda x, s=size: F.adaptive_avg_pool2d(x, s), (IMAGE,), 4, f"{size}")
for options in ({"scale_factor": 2}, {"size": (9, 5)}, {"scale_factor": (1.5, 2.5)}):
    row(
        aten.upsample_nearest2d_backward.default, lambda x, o=options: F.interpolate(x, **o), (IMAGE,), 2, told(options)
    )
for options in ({"scale_factor": 2}, {"size": (5, 10), "align_corners": True}, {"scale_factor": (0.6, 1.7)}):
    row(
        aten.upsample_bilinear2d_backward.default,
        lambda x, o=options: F.interpolate(x, mode="bilinear", **o), (IMAGE,), 4, told(options),
    )  # fmt: skip

# --- softmax and losses ---
VOLUME = (2, 2, 4, 5, 4)
for options in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False}):
    row(aten.avg_pool3d_backward.default, lambda x, o=options: F.avg_pool3d(x, **o), (VOLUME,), 4, told(options))
    options.pop("count_include_pad", None)
    row(
        (aten.max_pool3d_with_indices.default, aten.max_pool3d_with_indices_backward.default),
        lambda x, o=options: F.max_pool3d(x, **o), (VOLUME,), 2, told(options),
    )  # fmt: skip
row(
    (aten._adaptive_avg_pool3d.default, aten._adaptive_avg_pool3d_backward.default),
    lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1)), (VOLUME,), 4,
)  # fmt: skip
for x, options in (
    (SEQUENCE, {"size": 7}), (VOLUME, {"scale_factor": 1.7}), (VOLUME, {"size": (2, 7, 4)}),
):  # fmt: skip
    dims = len(x) - 2
    row(
        getattr(aten, f"upsample_nearest{dims}d_backward").default, lambda x, o=options: F.interpolate(x, **o), (x,), 2,
        told(options),
    )  # fmt: skip
    mode, kind = ("linear", "linear1d") if dims == 1 else ("trilinear", "trilinear3d")
    for align in (False, True):
        row(
            (getattr(aten, f"upsample_{kind}").default, getattr(aten, f"upsample_{kind}_backward").default),
            lambda x, o=options, a=align, m=mode: F.interpolate(x, **o, mode=m, align_corners=a), (x,), 4,
            told({**options, "align_corners": align}),
        )  # fmt: skip
for options in ({"size": (7, 3)}, {"scale_factor": 2.0, "align_corners": True}):
    row(
        aten.upsample_bicubic2d_backward.default,
        lambda x, o=options: F.interpolate(x, **o, mode="bicubic"), (IMAGE,), 6, told(options),
    )  # fmt: skip
for x, padding in ((SEQUENCE, (1, 2)), (IMAGE, (2, 0, 1, 3)), (IMAGE, (-1, 2, 1, -2)), (VOLUME, (1, 2, 0, 1, 3, 0))):
    row(
        getattr(aten, f"replication_pad{len(x) - 2}d_backward").default,
        lambda x, p=padding: F.pad(x, p, mode="replicate"), (x,), 3, str(padding),
    )  # fmt: skip
for options in (
    {}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1, 0)}, {"groups": 2, "stride": (1, 2, 1)},
):  # fmt: skip
    weight = (4, 2 // options.get("groups", 1), 2, 3, 2)
    row(
        backward,
        lambda x, w, b, o=options: F.conv3d(x, w, b, **o),
        (VOLUME, weight, (4,)),
        8,
        f"3d {told(options)}",
    )
for options in ({}, {"stride": 2, "padding": 1, "output_padding": 1}, {"groups": 2, "dilation": (2, 1, 1)}):
    row(
        backward, lambda x, w, o=options: F.conv_transpose3d(x, w, None, **o), (VOLUME, (2, 2, 2, 3, 2)), 8,
        f"3d transposed {told(options)}".strip(),
    )  # fmt: skip
for shrink in (F.softshrink, F.hardshrink):
    edges = torch.tensor([[0.5, -0.5, 0.25, -0.25, 0.0], [0.5 + UNIT, -0.5 - UNIT, 3.0, -3.0, 0.75]])
    row(getattr(aten, f"{shrink.__name__}_backward").default, shrink, (edges,), 2)
    row(getattr(aten, f"{shrink.__name__}_backward").default, lambda x, f=shrink: f(x, 0.25), (edges,), 2, "0.25")
LABELS, PIXELS = torch.tensor([4, 0, 2, 2, 1, 4]), torch.arange(24).reshape(2, 3, 4) % 5
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.25, 1.5])
row(aten._softmax_backward_data.default, lambda x: F.softmax(x, -1), ((4, 6),), 16)
row(aten._softmax_backward_data.default, lambda x: F.softmax(x, 1), (IMAGE,), 16)
row(
    (aten._safe_softmax.default, aten._softmax_backward_data.default),
    lambda x: aten._safe_softmax(x, -1),
    ((4, 6),),
    16,
    "safe",
)
row(aten._log_softmax_backward_data.default, lambda x: F.log_softmax(x, -1), ((4, 6),), 24)
row(aten._log_softmax_backward_data.default, lambda x: F.log_softmax(x, 1), (IMAGE,), 24)
classes = (aten.nll_loss_forward.default, aten.nll_loss_backward.default, aten._log_softmax_backward_data.default)
for options in (
    {},
    {"reduction": "sum"},
    {"reduction": "none"},
    {"weight": WEIGHTS},
    {"weight": WEIGHTS, "reduction": "sum"},
    {"ignore_index": 2},
    {"ignore_index": 2, "reduction": "none", "weight": WEIGHTS},
    {"label_smoothing": 0.1},
    {"label_smoothing": 0.1, "weight": WEIGHTS, "ignore_index": 2},
):
    bound = 40 if options.get("reduction") == "sum" else 10
    row(classes, lambda x, t, o=options: F.cross_entropy(x, t, **like(x, o)), ((6, 5), LABELS), bound, told(options))
row(classes, lambda x, t: F.cross_entropy(x, t), ((5,), torch.tensor(3)), 10, "one row")
for options in ({}, {"reduction": "sum"}, {"reduction": "none"}, {"label_smoothing": 0.1}, {"weight": WEIGHTS}):
    for ignored in (-1, 255) if options else (-1,):
        marked = torch.where(LABELS == 2, ignored, LABELS)
        row(
            classes, lambda x, t, o=options, i=ignored: F.cross_entropy(x, t, ignore_index=i, **like(x, o)),
            ((6, 5), marked), 40 if options.get("reduction") == "sum" else 10, f"left out {ignored} {told(options)}".strip(),
        )  # fmt: skip
row(
    (aten.nll_loss2d_forward.default, aten.nll_loss2d_backward.default),
    lambda x, t: F.cross_entropy(x, t),
    ((2, 5, 3, 4), PIXELS),
    10,
)
row(
    (aten.nll_loss2d_forward.default, aten.nll_loss2d_backward.default),
    lambda x, t: F.cross_entropy(x, t, WEIGHTS.to(x.dtype), ignore_index=255),
    ((2, 5, 3, 4), torch.where(PIXELS == 3, 255, PIXELS)), 10, "weights, ignored",
)  # fmt: skip
for options in (
    {}, {"reduction": "sum"}, {"reduction": "none"}, {"pos_weight": WEIGHTS}, {"pos_weight": WEIGHTS, "weight": WEIGHTS},
):  # fmt: skip
    labels = torch.tensor([[0.0, 1, 1, 0, 1], [1, 0, 0.5, 0, 1], [0, 0, 1, 1, 1]])
    bound = 70 if options.get("reduction") == "sum" else 16
    row(
        (), lambda x, o=options: F.binary_cross_entropy_with_logits(x, labels.to(x.dtype), **like(x, o)),
        (MATRIX,), bound, f"binary_cross_entropy_with_logits {told(options)}".strip(),
    )  # fmt: skip
row(
    (),
    F.binary_cross_entropy_with_logits,
    (MATRIX, torch.rand(3, 5)),
    16,
    "binary_cross_entropy_with_logits two values",
)
for options in ({}, {"p": 2, "margin": 0.5}, {"weight": WEIGHTS, "reduction": "sum"}, {"reduction": "none"}):
    row(
        (),
        lambda x, t, o=options: F.multi_margin_loss(x, t, **like(x, o)),
        ((6, 5), LABELS),
        16,
        f"multi_margin_loss {told(options)}".strip(),
    )
row((), F.multi_margin_loss, ((5,), torch.tensor(3)), 16, "multi_margin_loss one row")
for order, bound in ((1.0, 4), (2.0, 24), (math.inf, 4)):
    row(
        aten._cdist_forward.default,
        lambda x, y, p=order: torch.cdist(x, y, p),
        ((2, 4, 5), (2, 3, 5)),
        bound,
        f"p={order}",
    )
row((), F.mse_loss, (MATRIX, MATRIX), 3, "mse")
row((), F.l1_loss, (MATRIX, MATRIX), 2, "l1")
row(
    (),
    lambda x, y: F.kl_div(F.log_softmax(x, 1), F.softmax(y, 1), reduction="batchmean"),
    (MATRIX, MATRIX),
    120,
    "kl_div",
)
for options in ({}, {"beta": 0.5}, {"reduction": "none"}, {"beta": 2.0, "reduction": "sum"}):
    row(
        (aten.smooth_l1_loss.default, aten.smooth_l1_loss_backward.default),
        lambda x, y, o=options: F.smooth_l1_loss(x, y, **o), (MATRIX, MATRIX), 20, told(options),
    )  # fmt: skip
for options in ({}, {"delta": 0.5}, {"reduction": "none"}):
    row(
        (aten.huber_loss.default, aten.huber_loss_backward.default),
        lambda x, y, o=options: F.huber_loss(x, y, **o), (MATRIX, MATRIX), 6, told(options),
    )  # fmt: skip

# --- normalization ---
norm = (aten.native_layer_norm.default, aten.native_layer_norm_backward.default)
row(norm, lambda x, w, b: F.layer_norm(x, (32,), w, b), ((8, 32), (32,), (32,)), 3)
row(norm, lambda x, w, b: F.layer_norm(x, (4, 6), w, b), ((5, 4, 6), (4, 6), (4, 6)), 4, "24 elements")
row(norm, lambda x: F.layer_norm(x, (20,)), ((8, 20),), 3, "without weights")
norm = (aten.native_group_norm.default, aten.native_group_norm_backward.default)
row(norm, lambda x, w, b: F.group_norm(x, 2, w, b), (IMAGE, (4,), (4,)), 3)
row(norm, lambda x: F.group_norm(x, 4), (IMAGE,), 3, "without weights")
norm = (aten._native_batch_norm_legit_functional.default, aten.native_batch_norm_backward.default)
MEANS, VARS = torch.tensor([0.5, -1.0, 0.0, 2.0]), torch.tensor([1.0, 0.5, 2.0, 1.5])


def batch_norm(x, means, variances, *affine):
    """The result, and the running statistics after it."""
    means, variances = means.detach().clone(), variances.detach().clone()
    return F.batch_norm(x, means, variances, *affine, training=True), means, variances


for shape in ((32, 4), (4, 4, 7, 7), (16, 4, 8, 8), (8, 4, 12)):
    row(norm, batch_norm, (shape, MEANS, VARS, (4,), (4,)), 8, f"{shape}")
row(norm, batch_norm, ((4, 4, 7, 7), MEANS, VARS), 8, "without weights")
row(norm, lambda x, *rest: batch_norm(3 + 4 * x, *rest), ((16, 4, 8, 8), MEANS, VARS, (4,), (4,)), 8, "wide")
NARROW = torch.randn((16, 4, 8, 8), generator=torch.Generator().manual_seed(3)) / 16
row(norm, batch_norm, (NARROW, MEANS, VARS, (4,), (4,)), 24, "narrow")

# --- tables and positions ---
TOKENS = torch.tensor([[1, 4, 4], [0, 1, 2]])
row(
    (aten.embedding.default, aten.embedding_dense_backward.default), lambda w, t: F.embedding(t, w), ((6, 5), TOKENS), 2
)
row(
    aten.embedding_dense_backward.default, lambda w, t: F.embedding(t, w, padding_idx=4), ((6, 5), TOKENS), 2, "padding"
)
row(aten.index_put.default, lambda w, t: w[t], ((6, 5), TOKENS), 2, "accumulate")
row(aten.linalg_vector_norm.default, lambda x: torch.linalg.vector_norm(x), (MATRIX,), 30)
