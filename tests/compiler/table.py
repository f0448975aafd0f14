"""The table of operators: which ATen operators a row is about, a module or function, and its inputs' shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from securemodel.compiler.lower.private import PRIVATE

aten = torch.ops.aten
IMAGE, SEQUENCE, MATRIX = ((2, 4, 7, 8),), ((2, 4, 9),), ((3, 5),)


@dataclass(frozen=True)
class Row:
    """`operators` must be lowered when `module` runs on secret inputs of `shapes`."""

    operators: tuple
    module: Callable
    shapes: tuple[tuple[int, ...], ...]


ROWS: list[Row] = []


def row(operators, module: Callable, shapes) -> None:
    ROWS.append(Row(operators if isinstance(operators, tuple) else (operators,), module, shapes))


class Weighted(nn.Module):
    """A function of the inputs and parameters of given shapes."""

    def __init__(self, function: Callable, *shapes: tuple[int, ...], shift: float = 0.0) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(s) + shift) for s in shapes)

    def forward(self, *inputs: torch.Tensor):
        return self.function(*inputs, *self.weights)


def used(norm: nn.Module) -> nn.Module:
    """A batch norm that has seen data and was trained."""
    nn.init.uniform_(norm.running_mean, -1.0, 1.0)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    if norm.affine:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -0.5, 0.5)
    return norm


torch.manual_seed(11)

# --- linear layers and products ---
row(aten.linear.default, nn.Linear(5, 4), MATRIX)
row(aten.linear.default, nn.Linear(5, 4, bias=False), MATRIX)
row(aten.linear.default, nn.Linear(9, 3), SEQUENCE)
row(aten.linear.default, nn.Linear(6, 3), ((6,),))
row(aten.addmm.default, Weighted(lambda x, w, b: torch.addmm(b, x, w), (5, 4), (4,)), MATRIX)
row(aten.mm.default, Weighted(lambda x, w: torch.mm(x, w), (5, 4)), MATRIX)
row(aten.mm.default, lambda x, y: torch.mm(x, y), ((4, 4), (4, 2)))
row(aten.bmm.default, lambda x, y: torch.bmm(x, y), ((2, 3, 5), (2, 5, 4)))
row(aten.baddbmm.default, lambda x, y, b: torch.baddbmm(b, x, y), ((2, 3, 5), (2, 5, 4), (3, 1)))
row(
    aten.baddbmm.default,
    lambda x, y, b: (torch.baddbmm(b, x, y, beta=0.5, alpha=-2.0), torch.baddbmm(b, x, y, beta=0, alpha=0.25)),
    ((2, 3, 5), (2, 5, 4), (3, 4)),
)
row(aten.baddbmm.default, Weighted(lambda x, y, b: torch.baddbmm(b, x, y), (2, 3, 4)), ((2, 3, 5), (2, 5, 4)))
row(aten.matmul.default, lambda x, y: x @ y, ((2, 3, 5), (2, 5, 4)))
row(aten.matmul.default, lambda x, y: x @ y, ((3, 1, 2, 5), (3, 5, 4)))
row((aten.matmul.default, aten.permute.default), lambda x: x @ x.T, MATRIX)
row(aten.matmul.default, Weighted(lambda x, w: x @ w, (5,)), MATRIX)
row(aten.matmul.default, Weighted(lambda x, w: w @ x, (3,)), MATRIX)
row(aten.matmul.default, Weighted(lambda x, w: w @ x, (4, 3)), MATRIX)
row(aten.matmul.default, lambda x, y: x @ y, ((5,), (5,)))
row(aten.matmul.default, lambda x, y: x @ y, ((5,), (5, 3)))
row(aten.matmul.default, lambda x, y: x @ y, ((5, 3, 5), (5,)))

# --- convolutions ---
for options in (
    {},
    {"padding": 1, "bias": False},
    {"stride": 2, "padding": (2, 1)},
    {"stride": (1, 3), "dilation": (2, 1)},
    {"groups": 2, "padding": 1},
    {"groups": 4, "stride": 2},
):
    row(aten.conv2d.default, nn.Conv2d(4, 8, 3, **options), IMAGE)
row(aten.conv2d.default, nn.Conv2d(4, 2, (1, 4)), IMAGE)
VOLUME = ((2, 4, 5, 4, 6),)
for options in ({}, {"stride": (2, 1, 2), "padding": (1, 0, 2), "dilation": (1, 1, 2)}, {"groups": 2, "padding": 2}):
    row(aten.convolution.default, nn.Conv3d(4, 6, 3, bias="groups" not in options, **options), VOLUME)
for options in ({}, {"stride": (2, 1, 3), "padding": (1, 0, 2), "output_padding": (1, 0, 2)}, {"dilation": 2}):
    row(aten.convolution.default, nn.ConvTranspose3d(4, 6, 3, groups=2, **options), VOLUME)
row(aten.max_pool3d.default, nn.MaxPool3d(3, 2, 1), VOLUME)
row(aten.conv2d.default, nn.Conv2d(4, 2, 3), ((4, 6, 6),))
row(aten.conv2d.padding, nn.Conv2d(4, 3, 3, padding="same"), IMAGE)
row(aten.conv2d.padding, nn.Conv2d(4, 3, (2, 4), padding="same", dilation=(1, 2)), IMAGE)
row(aten.conv2d.padding, nn.Conv2d(4, 3, 3, padding="valid"), IMAGE)
row(aten.conv2d.default, nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular"), IMAGE)
row(aten.conv2d.default, lambda x, y: F.conv2d(x, y, padding=1), ((4, 3, 5, 5), (4, 3, 3, 3)))
for options in ({}, {"stride": 2, "padding": 2}, {"dilation": 3, "bias": False}, {"groups": 2, "padding": 1}):
    row(aten.conv1d.default, nn.Conv1d(4, 6, 3, **options), SEQUENCE)
row(aten.conv1d.padding, nn.Conv1d(4, 6, 4, padding="same"), SEQUENCE)
row(aten.conv1d.padding, nn.Conv1d(4, 6, 3, padding="same", groups=2, dilation=2), SEQUENCE)
row(aten.conv1d.default, nn.Conv1d(4, 2, 3), ((4, 6),))
for options in ({}, {"stride": 2}, {"stride": 2, "padding": 1, "output_padding": 1}, {"dilation": 2, "groups": 2}):
    row(aten.conv_transpose2d.input, nn.ConvTranspose2d(4, 6, 3, **options), IMAGE)
    row(aten.conv_transpose1d.default, nn.ConvTranspose1d(4, 6, 3, **options), SEQUENCE)
row(aten.conv_transpose2d.input, nn.ConvTranspose2d(4, 2, (2, 3), stride=(1, 2), bias=False), IMAGE)

# --- normalization by known statistics ---
norm = aten._native_batch_norm_legit_no_training.default
row(norm, used(nn.BatchNorm2d(4)), IMAGE)
row(norm, used(nn.BatchNorm2d(4, affine=False)), IMAGE)
row(norm, used(nn.BatchNorm1d(4)), SEQUENCE)
row(norm, used(nn.BatchNorm1d(5)), MATRIX)
row(norm, nn.Sequential(nn.Conv2d(4, 6, 3), used(nn.BatchNorm2d(6))), IMAGE)
row(norm, nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), used(nn.BatchNorm2d(6)), nn.ReLU()), IMAGE)
row(norm, nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), used(nn.BatchNorm2d(6, affine=False))), IMAGE)
row(norm, nn.Sequential(nn.Conv1d(4, 6, 3), used(nn.BatchNorm1d(6))), SEQUENCE)
row(norm, nn.Sequential(nn.ConvTranspose2d(4, 6, 3), used(nn.BatchNorm2d(6))), IMAGE)
row(norm, nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), used(nn.BatchNorm2d(6))), IMAGE)
row(norm, nn.Sequential(nn.Linear(5, 6), used(nn.BatchNorm1d(6))), MATRIX)
row(norm, nn.Sequential(used(nn.BatchNorm2d(4)), nn.ReLU(), nn.Conv2d(4, 6, 3)), IMAGE)
row(norm, nn.Sequential(nn.Conv2d(4, 6, 3), used(nn.BatchNorm2d(6)), used(nn.BatchNorm2d(6))), IMAGE)

# --- activations ---
row(aten.relu.default, nn.ReLU(), IMAGE)
row(aten.relu6.default, nn.Sequential(nn.Linear(5, 40), nn.ReLU6()), MATRIX)
row(aten.relu6.default, lambda x: F.relu6(8 * x), MATRIX)
row(aten.leaky_relu.default, nn.LeakyReLU(), MATRIX)
row(aten.leaky_relu.default, nn.LeakyReLU(0.25), IMAGE)
row(aten.prelu.default, nn.PReLU(), IMAGE)
row(aten.prelu.default, Weighted(F.prelu, (4,)), IMAGE)
row(aten.prelu.default, Weighted(F.prelu, (5,)), MATRIX)
row(aten.hardtanh.default, nn.Hardtanh(), MATRIX)
row(aten.hardtanh.default, nn.Hardtanh(-0.5, 2.0), MATRIX)
row(aten.clamp.default, lambda x: x.clamp(-0.3, 0.7), MATRIX)
row(aten.clamp.default, lambda x: x.clamp(min=0.2), MATRIX)
row(aten.clamp.default, lambda x: x.clamp(max=-0.2), MATRIX)
row(aten.clamp_min.default, lambda x: torch.clamp_min(x, 0.5), MATRIX)
row(aten.clamp_max.default, lambda x: torch.clamp_max(x, 0.5), MATRIX)
row(aten.clamp_max.default, lambda x: torch.clamp_max(x * x, 0.5), MATRIX)
row(aten.clamp.default, lambda x: (x * x).clamp(0.25, 1.0), MATRIX)
row(aten.argmax.default, lambda x: x.argmax(1), MATRIX)
row(aten.argmax.default, lambda x: (x.argmax(-1, keepdim=True), x.argmax(0), x.argmax()), MATRIX)
row(aten.argmax.default, lambda x: (x.argmax(1), x.argmax(2, keepdim=True)), IMAGE)
row(aten.argmax.default, nn.Sequential(nn.Linear(5, 10), Weighted(lambda x: x.argmax(1))), MATRIX)
row(aten.argmax.default, lambda x: x.argmax(keepdim=True), MATRIX)

# --- pooling ---
for options in (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 3), "stride": (3, 2), "padding": (1, 0), "dilation": (2, 1)},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 3, "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "dilation": 2},
):
    row(aten.max_pool2d.default, nn.MaxPool2d(**options), IMAGE)
row(aten.max_pool2d.default, nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), IMAGE)
row(aten.max_pool2d.default, nn.Sequential(nn.Hardtanh(), nn.MaxPool2d(3, 2, 1)), IMAGE)
row(aten.max_pool2d.default, nn.Sequential(nn.ReLU6(), nn.MaxPool2d(3, 2, 1)), IMAGE)
row(aten.max_pool2d.default, nn.Sequential(nn.Conv2d(4, 3, 3), nn.MaxPool2d(2)), IMAGE)
row(aten.max_pool2d.default, nn.MaxPool2d(2), ((4, 6, 6),))
row(aten.max_pool1d.default, nn.MaxPool1d(3, 2, 1), SEQUENCE)
row(aten.max_pool1d.default, nn.MaxPool1d(2, ceil_mode=True, dilation=2), SEQUENCE)
row(aten.max_pool2d_with_indices.default, nn.MaxPool2d((3, 2), (2, 1), 1, return_indices=True), IMAGE)
row(aten.max_pool2d_with_indices.default, nn.MaxPool1d(3, 2, dilation=2, return_indices=True), SEQUENCE)
row(aten.max_pool3d_with_indices.default, nn.MaxPool3d(2, ceil_mode=True, return_indices=True), VOLUME)
row(aten.adaptive_max_pool2d.default, nn.AdaptiveMaxPool2d((3, 5), return_indices=True), IMAGE)
row(aten.adaptive_max_pool3d.default, nn.AdaptiveMaxPool3d((2, 3, 4), return_indices=True), VOLUME)
row(aten.max_unpool2d.default, lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), IMAGE)
row(aten.max_unpool2d.default, lambda x: F.max_unpool1d(*F.max_pool1d(x, 3, 1, return_indices=True), 3, 1), SEQUENCE)
row(aten.max_unpool3d.default, lambda x: F.max_unpool3d(*F.max_pool3d(x, 2, return_indices=True), 2), VOLUME)
row(aten.adaptive_max_pool2d.default, nn.AdaptiveMaxPool2d((3, 5)), IMAGE)
row(aten.adaptive_max_pool2d.default, nn.AdaptiveMaxPool2d(1), IMAGE)
for options in (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 2},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True, "count_include_pad": False},
    {"kernel_size": 2, "stride": 3, "ceil_mode": True},
    {"kernel_size": (2, 3), "divisor_override": 5},
    {"kernel_size": 3, "padding": 1, "divisor_override": 4},
):
    row(aten.avg_pool2d.default, nn.AvgPool2d(**options), IMAGE)
row(aten.avg_pool1d.default, nn.AvgPool1d(3, 2, 1), SEQUENCE)
row(aten.avg_pool1d.default, nn.AvgPool1d(3, 2, 1, ceil_mode=True, count_include_pad=False), SEQUENCE)
row(aten.adaptive_avg_pool2d.default, nn.AdaptiveAvgPool2d(1), IMAGE)
row(aten.adaptive_avg_pool2d.default, nn.AdaptiveAvgPool2d((3, 5)), IMAGE)
row(aten.adaptive_avg_pool2d.default, nn.AdaptiveAvgPool2d((None, 4)), IMAGE)
row(aten.adaptive_avg_pool2d.default, nn.Sequential(nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d((2, 4))), IMAGE)
row(aten._adaptive_avg_pool2d.default, lambda x: aten._adaptive_avg_pool2d(x, [3, 3]), IMAGE)
row(aten.adaptive_avg_pool1d.default, nn.AdaptiveAvgPool1d(4), SEQUENCE)
row(aten._adaptive_avg_pool3d.default, nn.AdaptiveAvgPool3d((2, 3, None)), VOLUME)

# --- arithmetic ---
row(aten.add.Tensor, lambda x: (x + 1.5, 2 + x, x + x, torch.add(x, x * x, alpha=-0.3)), MATRIX)
row(aten.add.Tensor, lambda x, y: (x + y, torch.add(x, y, alpha=3)), ((4, 1, 5), (4, 1)))
row(aten.add.Tensor, Weighted(lambda x, w: (x + w, w + x, torch.add(x, w, alpha=0.5)), (5,)), MATRIX)
row(aten.add.Tensor, lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0, -5.0]), MATRIX)
row(aten.add.Scalar, lambda x: aten.add.Scalar(x, 0.75, 2), MATRIX)
row((aten.sub.Tensor, aten.neg.default), lambda x: (x - 1.5, x - x * x, -x), MATRIX)
row(aten.sub.Tensor, lambda x, y: (x - y, torch.sub(x, y, alpha=2.5)), ((3, 4), (3, 1)))
row(aten.sub.Tensor, Weighted(lambda x, w: (x - w, w - x), (3, 5)), MATRIX)
row(aten.sub.Scalar, lambda x: aten.sub.Scalar(x, 0.75, 2), MATRIX)
row(aten.rsub.Scalar, lambda x: (1 - x, torch.rsub(x, 2.5, alpha=3)), MATRIX)
row(aten.rsub.Tensor, lambda x, y: aten.rsub.Tensor(x, y, alpha=0.5), ((3, 4), (3, 1)))
row(aten.rsub.Tensor, Weighted(lambda x, w: aten.rsub.Tensor(x, w), (5,)), MATRIX)
row(aten.mul.Tensor, lambda x: (x * 3, -0.7 * x, x * 0.25, x * -0.125, x * 2.0**-20, x * 0.5 * 0.5), MATRIX)
row(aten.mul.Tensor, lambda x, y: (x * y, y * x), ((4, 1, 5), (4, 1)))
row(aten.mul.Tensor, Weighted(lambda x, w: (x * w, w * x), (5,)), MATRIX)
row(aten.mul.Tensor, lambda x: (x * x, x * x * x, x * torch.tensor([0.5, -2.0, 0.3, 1.0, 7.0])), MATRIX)
row(aten.mul.Scalar, lambda x: aten.mul.Scalar(x, 1.25), MATRIX)
row(aten.div.Tensor, lambda x: (x / 2, x / 0.3, x / torch.tensor([1.0, 2.0, 0.5, -4.0, 3.0])), MATRIX)
row(aten.div.Tensor, Weighted(lambda x, w: x / w, (5,), shift=4.0), MATRIX)
row(aten.div.Scalar, lambda x: aten.div.Scalar(x, 3.0), MATRIX)
row(aten.square.default, lambda x: torch.square(x), MATRIX)
row(aten.pow.Tensor_Scalar, lambda x: (x**2, x**3, x**1, (0.5 * x) ** 5), MATRIX)
row(aten.sum.default, lambda x: x.sum(), MATRIX)
row(aten.sum.dim_IntList, lambda x: (x.sum(1), x.sum((0, -1), keepdim=True), x.sum(-2)), IMAGE)
row(aten.mean.default, lambda x: x.mean(), MATRIX)
row(aten.mean.dim, lambda x: (x.mean(1), x.mean((2, 3)), x.mean((-1, -2), keepdim=True)), IMAGE)
row(aten.cumsum.default, lambda x: (x.cumsum(1), x.cumsum(-2)), MATRIX)
row(aten.relu.default, Weighted(lambda x, w: x + F.relu(x @ w), (5, 5)), MATRIX)
row(aten.relu.default, lambda x: F.relu(x * x - 1.0) - F.relu(x), MATRIX)

# --- comparisons ---
row((aten.gt.Scalar, aten.lt.Scalar), lambda x: (x > 0.3, x < 0.3, 0.2 > x, 0.2 < x, (x > 0) * x), MATRIX)
row((aten.ge.Scalar, aten.le.Scalar), lambda x: (x >= 0.3, x <= -0.3, 0.2 >= x), MATRIX)
row((aten.gt.Tensor, aten.lt.Tensor), lambda x, y: (x > y, x < y, x.flip(1) > x), ((3, 4), (3, 1)))
row((aten.ge.Tensor, aten.le.Tensor), lambda x, y: (x >= y, x <= y), ((3, 4), (3, 1)))
row(aten.gt.Tensor, Weighted(lambda x, w: (x > w, w > x), (5,)), MATRIX)

row(
    aten.grid_sampler_2d.default,
    lambda x, at: [
        F.grid_sample(x, at, mode, padding, align)
        for mode, padding, align in (
            *(("bilinear", "zeros", False), ("bilinear", "border", True)),
            *(("nearest", "zeros", True), ("nearest", "border", False)),
        )
    ],
    ((2, 3, 4, 5), (2, 3, 2, 2)),
)
row(
    aten.grid_sampler_3d.default,
    lambda x: F.grid_sample(x, torch.linspace(-1.2, 1.2, 36).view(2, 1, 2, 3, 3), align_corners=False),
    VOLUME,
)

# --- moving elements ---
row(aten.view.default, lambda x: (x.view(2, -1), x.flatten(1), x.unflatten(1, (2, 2)), x.reshape(-1)), IMAGE)
row(aten._unsafe_view.default, lambda x: aten._unsafe_view(x, [8, -1]), IMAGE)
row(
    aten.permute.default,
    lambda x: (x.permute(0, 2, 3, 1), x.permute(-1, 0, 1, 2).reshape(8, -1), x.movedim(1, 3)),
    IMAGE,
)
row(aten.transpose.int, lambda x: (x.transpose(1, 2), x.transpose(-1, 0), x.mT), IMAGE)
row(aten.t.default, lambda x: x.t(), MATRIX)
row(aten.t.default, lambda x: x.t(), ((6,),))
row(aten.squeeze.dim, lambda x: (x.squeeze(1), x.squeeze(0), x.squeeze(-1)), ((3, 1, 5, 1),))
row((aten.squeeze.default, aten.squeeze.dims), lambda x: (x.squeeze(), x.squeeze((1, -1))), ((3, 1, 5, 1),))
row(aten.unsqueeze.default, lambda x: (x.unsqueeze(0), x.unsqueeze(-1), x[:, None]), MATRIX)
row(aten.expand.default, lambda x: (x.expand(3, 4, 5), x.expand(2, -1, 4, -1)), ((3, 1, 5),))
row(aten.repeat.default, lambda x: (x.repeat(2, 1), x.repeat(2, 1, 3)), MATRIX)
row(
    aten.slice.Tensor,
    lambda x: (x.narrow(-1, 2, 3), x[:, 1:3], x[..., -3:-1], x[:, ::2, 1::3], x[:, :, 5:100], x[1:]),
    IMAGE,
)
row(aten.select.int, lambda x: (x[1], x[:, -1], x[:, :, 2, -2]), IMAGE)
row(aten.split.Tensor, lambda x: (*x.split(3, -1), *x.chunk(2, 1), *x.chunk(3, 2)), IMAGE)
row(aten.split_with_sizes.default, lambda x: x.split([1, 3], 1), IMAGE)
row(aten.unbind.int, lambda x: (*x.unbind(1), *x.unbind(-1)), MATRIX)
row(aten.cat.default, lambda x: (torch.cat([x, x + 1], 1), torch.cat([x, -x, x], -1)), IMAGE)
row(aten.cat.default, Weighted(lambda x, w: torch.cat([x, w, x * 0.5], 0), (2, 5)), MATRIX)
row(aten.cat.default, lambda x, y: torch.cat([x, y * y], 1), ((3, 4), (3, 1)))
row(aten.stack.default, lambda x: (torch.stack([x, -x], 1), torch.stack([x, x], -1)), MATRIX)
row(aten.flip.default, lambda x: (x.flip(1), x.flip(-1, 0)), IMAGE)
row(aten.roll.default, lambda x: (x.roll(1, 0), x.roll((2, -1), (1, -1)), x.roll(3)), MATRIX)
row(aten.pad.default, lambda x: (F.pad(x, (1, 2)), F.pad(x, (1, 0, 2, 3), value=1.5), F.pad(x, (-1, 2, 0, -1))), IMAGE)
row(aten.pad.default, lambda x: F.pad(x, (1, 0, 2, 3), "reflect"), IMAGE)
row(aten.pad.default, lambda x: F.pad(x, (1, 0, 2, 3), "replicate"), IMAGE)
row(aten.pad.default, lambda x: F.pad(x, (1, 0, 2, 3), "circular"), IMAGE)
row(aten.pad.default, lambda x: F.pad(x, (8, 8), "reflect"), SEQUENCE)
row(aten.constant_pad_nd.default, lambda x: aten.constant_pad_nd(x, [1, 2], -0.5), IMAGE)
row(aten.reflection_pad1d.default, lambda x: aten.reflection_pad1d(x, [2, 1]), SEQUENCE)
row(aten.reflection_pad2d.default, lambda x: aten.reflection_pad2d(x, [2, 1, 0, 3]), IMAGE)
row(aten.replication_pad1d.default, lambda x: aten.replication_pad1d(x, [2, 1]), SEQUENCE)
row(aten.replication_pad2d.default, lambda x: aten.replication_pad2d(x, [2, 1, 0, 3]), IMAGE)
row(aten.upsample_nearest2d.vec, nn.Upsample(scale_factor=2), IMAGE)
row(aten.upsample_nearest2d.vec, nn.Upsample(scale_factor=(1.5, 2.7)), IMAGE)
row(aten.upsample_nearest2d.vec, nn.Upsample(size=(10, 5)), IMAGE)
row(aten.upsample_nearest1d.vec, nn.Upsample(scale_factor=3), SEQUENCE)
row(aten.upsample_nearest1d.vec, nn.Upsample(size=13), SEQUENCE)
row(aten.upsample_nearest1d.default, lambda x: aten.upsample_nearest1d(x, [12]), SEQUENCE)
row(aten.upsample_nearest2d.default, lambda x: aten.upsample_nearest2d(x, [9, 3]), IMAGE)
row(aten.clone.default, nn.Sequential(nn.Dropout(0.9), nn.Dropout2d(), nn.ReLU()), IMAGE)
row((aten.clone.default, aten.detach.default), lambda x: (x.clone() + 1, x.detach() - 1), MATRIX)
row(aten._to_copy.default, lambda x: x.double() * 2, MATRIX)

# --- smooth functions, functions of positive numbers, normalization: test_functions.py covers their domains ---
row((aten.sigmoid.default, aten.tanh.default, aten.erf.default), lambda x: (x.sigmoid(), x.tanh(), x.erf()), MATRIX)
row(aten.gelu.default, lambda x: (F.gelu(x), F.gelu(x, approximate="tanh")), MATRIX)
row((aten.silu.default, aten.mish.default), lambda x: (F.silu(x), F.mish(x)), MATRIX)
row(aten.softplus.default, F.softplus, MATRIX)
row((aten.elu.default, aten.celu.default, aten.selu.default), lambda x: (F.elu(x), F.celu(x, 0.5), F.selu(x)), MATRIX)
row((aten.hardsigmoid.default, aten.hardswish.default), lambda x: (F.hardsigmoid(4 * x), F.hardswish(4 * x)), MATRIX)
row((aten.exp.default, aten.expm1.default), lambda x: (torch.exp(-x.abs()), torch.expm1(-x.abs())), MATRIX)
row(aten.reciprocal.default, lambda x: (x.abs() + 1).reciprocal(), MATRIX)
row(aten.rsqrt.default, lambda x: (x.abs() + 1).rsqrt(), MATRIX)
row(aten.div.Tensor, lambda x, y: (x / (y.abs() + 1), 1 / (x.abs() + 1)), ((3, 4), (3, 1)))
row(aten.sqrt.default, lambda x: (x.abs() + 1).sqrt(), MATRIX)
row((aten.log.default, aten.log1p.default), lambda x: (torch.log(x.abs() + 1), torch.log1p(x.abs())), MATRIX)
row(aten.log2.default, lambda x: torch.log2(x.abs() + 1), MATRIX)
row((aten.abs.default, aten.sign.default), lambda x: (x.abs(), x.sign()), MATRIX)
row((aten.maximum.default, aten.minimum.default), lambda x, y: (x.maximum(y), x.minimum(y)), ((3, 4), (3, 1)))
row(aten.softmax.int, lambda x: (x.softmax(1), x.softmax(0)), MATRIX)
row(aten.log_softmax.int, lambda x: x.log_softmax(1), MATRIX)
row((aten.logsumexp.default, aten.amax.default), lambda x: (x.logsumexp(1), x.amax((0, 1))), MATRIX)
row(aten.layer_norm.default, nn.LayerNorm(5), MATRIX)
row(aten.var.correction, lambda x: (x.var(1), x.var(0, correction=0, keepdim=True)), MATRIX)

# --- recurrent layers, attention, choices ---
row(aten.lstm.input, nn.LSTM(9, 3, batch_first=True), SEQUENCE)
row(aten.gru.input, nn.GRU(9, 3, batch_first=True), SEQUENCE)
row((aten.rnn_tanh.input,), nn.RNN(9, 3, batch_first=True), SEQUENCE)
row((aten.rnn_relu.input,), nn.RNN(9, 3, batch_first=True, nonlinearity="relu"), SEQUENCE)
row(aten.scaled_dot_product_attention.default, lambda x: F.scaled_dot_product_attention(x, x, x), SEQUENCE)
row(
    aten.scaled_dot_product_attention.default,
    lambda q, k: F.scaled_dot_product_attention(q, k, k * 0.5, is_causal=True, enable_gqa=True),
    ((2, 4, 3, 5), (2, 2, 3, 5)),
)
row(aten.masked_fill.Tensor, lambda x: x.masked_fill(x > 0, torch.tensor(2.0)), MATRIX)
row((aten.where.self, aten.masked_fill.Scalar), lambda x: (torch.where(x > 0, x, -x), x.masked_fill(x > 0, 2)), MATRIX)

row(aten._neg_view.default, lambda x: torch.complex(x, x).conj().imag, MATRIX)

# --- order and secret positions ---
row(aten.sort.default, lambda x: (*x.sort(), *x.sort(0, descending=True)), MATRIX)
row(aten.sort.default, lambda x: (*x.sort(1), *x.sort(2)[:1]), IMAGE)
row(aten.argsort.default, lambda x: (x.argsort(), x.argsort(0, True)), MATRIX)
row(aten.topk.default, lambda x: (*x.topk(1), *x.topk(2), *x.topk(3, 0), *x.topk(4, largest=False)), MATRIX)
row((aten.max.dim, aten.min.dim), lambda x: (*x.max(1), *x.min(0, keepdim=True)), MATRIX)
row(aten.argmin.default, lambda x: (x.argmin(), x.argmin(1), x.argmin(0, keepdim=True)), MATRIX)
row((aten.kthvalue.default, aten.median.dim), lambda x: (*x.kthvalue(2), *x.median(0, keepdim=True)), MATRIX)
row((aten.median.default, aten.nanmedian.default), lambda x: (x.median(), x.nanmedian()), MATRIX)
row(aten.nanmedian.dim, lambda x: x.nanmedian(1), MATRIX)
row(aten.sort.stable, lambda x: (*x.sort(stable=True), *x.sort(dim=0, descending=True, stable=True)), MATRIX)
row(aten.mode.default, lambda x: ((2 * x).round().mode(1), (2 * x).round().mode(0, keepdim=True)), MATRIX)
row(
    (aten.bucketize.Tensor, aten.bucketize.Scalar),
    lambda x: (torch.bucketize(x, torch.tensor([-0.7, 0.1, 0.9])), torch.bucketize(0.2, x[0].sort()[0])),
    MATRIX,
)
row(aten.searchsorted.Tensor, lambda x, y: torch.searchsorted(x.sort()[0], y, right=True), (*MATRIX, *MATRIX))
row(aten.searchsorted.Scalar, lambda x: torch.searchsorted(x[0], 0.2, sorter=x[0].argsort()), MATRIX)
row(
    (aten.histc.default, aten.one_hot.default),
    lambda x: (x.histc(4, -1, 1), x.argmax(1).bincount(minlength=5)),
    MATRIX,
)
row(aten.one_hot.default, lambda x: x.argmax(0).bincount(x[0], minlength=3), MATRIX)
row(aten.one_hot.default, lambda x: F.one_hot(x.argmax(1), 5), MATRIX)
row(aten.embedding.default, Weighted(lambda x, w: F.embedding(x.argmax(1), w), (5, 4)), MATRIX)
row(
    aten._embedding_bag_forward_only.default,
    lambda x: [F.embedding_bag(x.argsort(1) % 3, x, mode=mode) for mode in ("sum", "mean", "max")],
    MATRIX,
)
row(aten._embedding_bag.default, Weighted(lambda x, w: F.embedding_bag(x.argsort(1), w), (5, 4)), MATRIX)
row(aten.index_select.default, lambda x: (x.index_select(1, x.argmax(1)), x.index_select(0, x.argmin(0))), MATRIX)
row((aten.gather.default, aten.topk.default), lambda x: x.gather(1, x.topk(2).indices), MATRIX)
row(aten.gather.default, lambda x: (x.take_along_dim(x.argsort(1), 1), x.take_along_dim(x.argmax())), MATRIX)
row(aten.index.Tensor, lambda x: (x[torch.arange(3), x.argmax(1)], x[x.argmax(0)[:, None], torch.arange(4)]), MATRIX)
row(aten.index.Tensor, lambda x: x[torch.tensor([1, 0]), x[0, :, :2, 0].argmax(0)], IMAGE)
row(
    (aten.scatter.src, aten.scatter.value),
    lambda x: (x.scatter(1, x.topk(2).indices, 2 * x), x.scatter(0, x.argmin(0, True), 1.5)),
    MATRIX,
)
row(aten.scatter_add.default, lambda x: x.scatter_add(1, x.topk(2).indices % 2, x[:, :2]), MATRIX)
row(
    aten.index_put.default,
    lambda x: x.index_put((torch.arange(3), x.argmax(1)), x[:, 0], accumulate=True),
    MATRIX,
)
row((aten.take.default, aten.put.default), lambda x: (x.take(x.argsort(1)), x.put(x.argmax(1), x[:, 0])), MATRIX)
row(aten.nonzero_static.default, lambda x: torch.nonzero_static(x > 0.3, size=6), MATRIX)
row(aten.masked_scatter.default, lambda x: x.masked_scatter(x > 0.3, x * 0.5), MATRIX)
row(aten.scatter_reduce.two, lambda x: x.scatter_reduce(1, x.argsort(1), x * 0.5, "mean"), MATRIX)
row(aten.index_reduce.default, lambda x: x.index_reduce(1, x[0].argsort()[:3] % 2, x[:, :3], "amax"), MATRIX)
row(
    (aten.scatter.reduce, aten.scatter.value_reduce),
    lambda x: (x.scatter(1, x.argsort(1), x, reduce="add"), x.scatter(1, x.argsort(1), 2.0, reduce="multiply")),
    MATRIX,
)

NOT_FROM_TORCH = {
    PRIVATE: "steps of training have it: tests/training/test_privacy.py",
    aten.alias.default: "torch.export removes aliases",
    aten.bincount.default: "captured models have one_hot (compiler/plain.py), and this where it is refused",
    aten.contiguous.default: "torch.export removes it where it changes nothing and writes clone where it does",
    aten.dropout.default: "torch.export writes dropout at evaluation as clone",
    aten.feature_dropout.default: "torch.export writes dropout at evaluation as clone",
    aten.lift_fresh_copy.default: "only tensors written in the code are lifted; nobody's secret",
    aten._prelu_kernel.default: "torch.export keeps prelu, which has the same function",
    aten.reshape.default: "torch.export writes it as view or clone and view",
    aten._softmax.default: "torch.export keeps softmax.int, which has the same function",
    aten._log_softmax.default: "torch.export keeps log_softmax.int, which has the same function",
    aten.var.dim: "an older form of var.correction, which it calls",
    aten.upsample_bilinear2d.default: "torch.export takes it apart; training steps have it, and .vec does the same",
    aten.narrow.default: "torch.export writes it as slice",
}
"""Operators with a secure version that no program hands to it, and why that is known."""
