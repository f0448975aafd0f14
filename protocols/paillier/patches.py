"""Linear layers as matrix products of weights by places in their input: public geometry that both parties compute.

Output g, m, p of a layer is sum over k of weights[g, m, k] * input[places[g, k, p]], where place -1 is a zero. A linear
layer has one group and one column p for each row of its input; a convolution has a column for each position.
"""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from protocols import kernels
from protocols.errors import InputError


@dataclass(frozen=True, eq=False)
class Patches:
    """Where a linear layer reads its input, and the shapes of its input, its weights and its output.

    places: int[G, K, P]; rows: outputs of one group at one position; order: how [G, M, P] becomes the output.
    """

    places: np.ndarray
    rows: int
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    inner_shape: tuple[int, ...]
    order: tuple[int, ...]

    @property
    def terms(self) -> int:
        """Products in one output."""
        return self.places.shape[1]

    @property
    def outputs(self) -> int:
        """Numbers in the output."""
        return prod(self.output_shape)

    def weights(self, w: np.ndarray) -> np.ndarray:
        """Weights in their own shape as [G, M, K]. InputError for another shape."""
        if tuple(w.shape) != self.weight_shape:
            raise InputError(f"the weights have shape {tuple(w.shape)}, the layer {self.weight_shape}")
        return w.reshape(self.places.shape[0], self.rows, self.terms)

    def arrange(self, values: np.ndarray) -> np.ndarray:
        """The output in its own shape from values [G, M, P, ...]."""
        rest = values.shape[3:]
        spread = values.reshape(*self.inner_shape, *rest)
        order = (*self.order, *range(len(self.order), spread.ndim))
        return spread.transpose(order).reshape(*self.output_shape, *rest)

    def apply(self, w: Tensor, x: Tensor) -> Tensor:
        """The layer on ring values in the clear, with wrap-around: int64[*weight_shape], int64[*input_shape]."""
        read = torch.cat([x.reshape(-1), x.new_zeros(1)])[torch.from_numpy(self.places)]
        product = kernels.matmul(torch.from_numpy(self.weights(w.numpy())).contiguous(), read)
        return torch.from_numpy(np.ascontiguousarray(self.arrange(product.numpy())))


def linear_patches(input_shape: tuple[int, ...], outputs: int) -> Patches:
    """x [*, K] times weights [M, K] transposed: output [*, M], as in torch.nn.functional.linear."""
    *batch, inner = input_shape
    count = prod(batch)
    places = np.arange(count * inner).reshape(count, inner).T[None]
    return Patches(
        places, outputs, tuple(input_shape), (outputs, inner), (*batch, outputs), (1, outputs, count), (0, 2, 1)
    )  # fmt: skip


def conv2d_patches(
    input_shape: tuple[int, ...], weight_shape: tuple[int, ...], stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0), dilation: tuple[int, ...] = (1, 1), groups: int = 1,
) -> Patches:  # fmt: skip
    """x [N, C, H, W] by weights [O, C/groups, h, w]: output [N, O, H', W'], as in torch.nn.functional.conv2d.

    Raises InputError for shapes that do not fit.
    """
    (n, c, height, width), (o, inner, kh, kw) = input_shape, weight_shape
    if groups < 1 or c != inner * groups or o % groups:
        raise InputError(f"conv2d: input {input_shape} and weights {weight_shape} do not fit with groups={groups}")
    tall = (height + 2 * padding[0] - dilation[0] * (kh - 1) - 1) // stride[0] + 1
    wide = (width + 2 * padding[1] - dilation[1] * (kw - 1) - 1) // stride[1] + 1
    if min(tall, wide) < 1:
        raise InputError(f"conv2d: weights {weight_shape} are larger than the padded input {input_shape}")
    number = np.full((n, c, height + 2 * padding[0], width + 2 * padding[1]), -1)
    number[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = np.arange(
        n * c * height * width
    ).reshape(input_shape)
    rows = stride[0] * np.arange(tall)[:, None] + dilation[0] * np.arange(kh)
    columns = stride[1] * np.arange(wide)[:, None] + dilation[1] * np.arange(kw)
    read = number[:, :, rows[:, None, :, None], columns[None, :, None, :]]  # [N, C, H', W', h, w]
    read = read.reshape(n, groups, inner, tall, wide, kh, kw).transpose(1, 2, 5, 6, 0, 3, 4)
    places = read.reshape(groups, inner * kh * kw, n * tall * wide)
    inner_shape = (groups, o // groups, n, tall, wide)
    return Patches(
        places, o // groups, tuple(input_shape), tuple(weight_shape), (n, o, tall, wide), inner_shape, (2, 0, 1, 3, 4)
    )  # fmt: skip
