"""What packed weights mean: integers and small floats with scales, in the layouts of GPTQ, AWQ, compressed-tensors, fp8.

A layer's weight is several tensors beside each other, such as `qweight`, `scales` and `qzeros`. Shapes: n outputs, k inputs.
Words are int32, whose bits are read from the lowest on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from protocols.errors import InputError, explain

Parts = Mapping[str, torch.Tensor]
"""The tensors of one layer, by the last part of their names."""

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)
"""Where AWQ puts the eight columns of a word."""
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_DEEPSEEK_BLOCK = (128, 128)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
WEIGHT = "weight"


@dataclass(frozen=True)
class Form:
    """What a model's configuration says of its packed weights: GPTQ's `checkpoint_format`, the block of fp8 scales."""

    gptq_v1: bool = True
    block: tuple[int, int] | None = None


def form_of(config: Mapping[str, Any]) -> Form:
    """The form in a `quantization_config`, or in GPTQ's own quantize_config.json."""
    block = config.get("weight_block_size")
    for group in config.get("config_groups", {}).values():
        block = block or (group.get("weights") or {}).get("block_structure")
    return Form(config.get("checkpoint_format", "gptq") == "gptq", tuple(block) if block else None)


def unpacked(name: str, parts: Parts, form: Form) -> torch.Tensor | None:
    """The weight float32[n, k] of a layer; None where nothing is packed. Raises InputError for other layouts."""
    if "qweight" in parts:
        made = _gptq_or_awq(name, parts, form)
    elif "weight_packed" in parts:
        made = _compressed(name, parts)
    elif WEIGHT in parts and (scale := _scale_of(parts)) is not None:
        made = _scaled(name, parts, scale, form)
    else:
        return None
    if not bool(made.isfinite().all()):
        raise _refused(f"{name}.{WEIGHT}", "among its numbers are NaN or infinities", "quantize it again")
    return made


BESIDE = frozenset({
    "qweight", "qzeros", "scales", "g_idx", "weight_packed", "weight_shape", "weight_scale", "weight_scale_inv",
    "weight_scale_2", "weight_global_scale", "weight_zero_point", "weight_g_idx",
})  # fmt: skip
"""Names of tensors that say what a packed weight means."""
OF_INPUTS = frozenset(
    {"input_scale", "input_global_scale", "input_zero_point", "k_scale", "v_scale", "q_scale", "output_scale"}
)
"""How a layer rounds what it is given; numbers of full precision are not rounded."""


def _refused(where: str, why: str, fix: str) -> InputError:
    return InputError(explain("these packed weights are not read", where=where, why=why, fix=fix))


# ---- words
def from_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Whole numbers int32[..., count] below 2^bits out of the words int32[..., ceil(count bits / 32)] that hold them."""
    starts = torch.arange(count) * bits
    at, shift = starts // 32, starts % 32
    wide = words.to(torch.int64) & 0xFFFFFFFF
    wide = torch.cat([wide, torch.zeros_like(wide[..., :1])], -1)
    both = wide[..., at] | (wide[..., at + 1] << 32)
    return ((both >> shift) & ((1 << bits) - 1)).to(torch.int32)


def _gptq_or_awq(name: str, parts: Parts, form: Form) -> torch.Tensor:
    if missing := [part for part in ("scales", "qzeros") if part not in parts]:
        raise _refused(name, f"qweight has no {missing[0]} beside it", "give the whole checkpoint")
    packed, scales, zeros = parts["qweight"], parts["scales"].float(), parts["qzeros"]
    if packed.dtype != torch.int32 or scales.ndim != 2:
        raise _refused(
            name, f"qweight is {packed.dtype} with scales {list(scales.shape)}", "unpack it with its library"
        )
    return _gptq(name, parts, scales, form) if packed.shape[1] == scales.shape[1] else _awq(name, packed, scales, zeros)


def _gptq(name: str, parts: Parts, scales: torch.Tensor, form: Form) -> torch.Tensor:
    """q int32[k bits / 32, n]; in version 1, zero points are stored less 1, a word at a time modulo 2^32."""
    packed, zeros, (groups, n) = parts["qweight"], parts["qzeros"], scales.shape
    bits = zeros.shape[1] * 32 // n
    if bits not in (2, 4, 8) or zeros.shape[1] * 32 != bits * n:
        raise _refused(name, f"GPTQ with {bits} bits", "use 2, 4 or 8 bits, or unpack it with its library")
    k = packed.shape[0] * 32 // bits
    q = from_words(packed.T.contiguous(), bits, k)
    if form.gptq_v1:
        ones = sum(1 << start for start in range(0, 32, bits))
        zeros = (zeros.to(torch.int64) + ones) & 0xFFFFFFFF
    z = from_words(zeros, bits, n)
    group = parts["g_idx"].long() if "g_idx" in parts else torch.arange(k) // -(-k // groups)
    return (q - z.T[:, group]) * scales.T[:, group]


def _awq(name: str, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """q int32[k, n / 8], of 4 bits, with the columns of a word in AWQ's order."""
    groups, n = scales.shape
    if packed.shape[1] * 8 != n or zeros.shape != (groups, n // 8):
        raise _refused(name, f"AWQ with qweight {list(packed.shape)} and scales {list(scales.shape)}", "use 4 bits")
    in_order = lambda words: from_words(words, 4, n).view(-1, n // 8, 8)[..., list(_AWQ_ORDER)].reshape(-1, n)
    group = torch.arange(packed.shape[0]) // (packed.shape[0] // groups)
    return ((in_order(packed) - in_order(zeros)[group]) * scales[group]).T.contiguous()


# ---- compressed-tensors
def _compressed(name: str, parts: Parts) -> torch.Tensor:
    packed, scale = parts["weight_packed"], parts["weight_scale"]
    if packed.dtype == torch.uint8:
        return _fp4(name, packed, scale, parts.get("weight_global_scale"), inverse=True)
    n, k = (int(size) for size in parts["weight_shape"])
    bits = packed.shape[1] * 32 // k if k else 0
    if not 1 <= bits <= 8 or packed.shape != (n, -(-k * bits // 32)):
        raise _refused(name, f"words {list(packed.shape)} for a weight {[n, k]}", "unpack it with compressed-tensors")
    half = 1 << (bits - 1)
    q = from_words(packed, bits, k) - half
    zeros = parts.get("weight_zero_point")
    if zeros is not None and zeros.dtype == torch.int32 and zeros.shape[0] != scale.shape[0]:
        zeros = from_words(zeros.T.contiguous(), bits, n).T - half
    return _by_groups(name, q.float(), scale.float(), zeros, parts.get("weight_g_idx"))


def _by_groups(
    name: str, q: torch.Tensor, scale: torch.Tensor, zeros: torch.Tensor | None, group: torch.Tensor | None
) -> torch.Tensor:
    """(q - zero) scale, with one of each for some columns of a row, a row, or all."""
    scale = scale.reshape(-1, scale.shape[-1]) if scale.ndim else scale.reshape(1, 1)
    scale = scale.T if scale.shape == (1, q.shape[0]) and q.shape[0] > 1 else scale
    groups = scale.shape[1]
    if scale.shape[0] not in (1, q.shape[0]) or q.shape[1] % groups:
        raise _refused(name, f"scales {list(scale.shape)} for a weight {list(q.shape)}", "give whole groups")
    at = torch.arange(q.shape[1]) // (q.shape[1] // groups) if group is None or (group < 0).any() else group.long()
    if zeros is not None:
        q = q - zeros.float().reshape(scale.shape)[:, at]
    return q * scale[:, at]


def _fp4(
    name: str, packed: torch.Tensor, scale: torch.Tensor, whole: torch.Tensor | None, inverse: bool
) -> torch.Tensor:
    """Two 4-bit floats a byte, the first one low, with a scale for each 16 or 32 and one for all (or its inverse)."""
    table = torch.tensor([*_FP4, *(-x for x in _FP4)])
    q = torch.stack([table[(packed & 15).long()], table[(packed >> 4).long()]], -1).flatten(-2)
    scale = torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()
    made = _by_groups(name, q, scale, None, None)
    if whole is None:
        return made
    return made / whole.float() if inverse else made * whole.float()


# ---- scales beside weights of 8 bits
def _scale_of(parts: Parts) -> torch.Tensor | None:
    found = parts.get("weight_scale", parts.get("weight_scale_inv"))
    narrow = parts[WEIGHT].dtype in (*_FLOAT8, torch.int8, torch.uint8)
    return found if narrow else None


def _scaled(name: str, parts: Parts, scale: torch.Tensor, form: Form) -> torch.Tensor:
    """`weight_scale_inv` multiplies too."""
    weight = parts[WEIGHT]
    if weight.dtype == torch.uint8:
        return _fp4(name, weight, scale, parts.get("weight_scale_2"), inverse=False)
    blocks = "weight_scale_inv" in parts or (form.block is not None and scale.ndim == 2)
    if not blocks:
        return _by_groups(name, weight.float(), scale.float(), parts.get("weight_zero_point"), None)
    size = form.block or _DEEPSEEK_BLOCK
    n, k = weight.shape
    if tuple(scale.shape) != (-(-n // size[0]), -(-k // size[1])):
        raise _refused(name, f"scales {list(scale.shape)} for a weight {[n, k]} in blocks of {size[0]} x {size[1]}",
                       "give the folder with its config.json")  # fmt: skip
    spread = scale.float().repeat_interleave(size[0], 0).repeat_interleave(size[1], 1)
    return weight.float() * spread[:n, :k]
