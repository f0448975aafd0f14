"""Weights of files, packed ones too, as the numbers they mean: `read_weights`, and `dequantized` for models of torchao."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from protocols.errors import InputError, explain
from securemodel.compiler.capture import is_quantized
from securemodel.models.packings import BESIDE, OF_INPUTS, WEIGHT, Form, form_of, unpacked

_INDEX, _ONE = "model.safetensors.index.json", "model.safetensors"
_CONFIGS = ("config.json", "quantize_config.json")


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a GGUF or safetensors file, or of a folder as transformers saves it, by their names in it.

    Packed weights are unpacked: all types that the package gguf reads, GPTQ (2, 4, 8 bits), AWQ, compressed-tensors
    (whole numbers, fp8, fp4), fp8 with scales, torchao. They come as float32, under the name `LAYER.weight`; other
    floats as they are. Roundings of a layer's inputs are left out. GPTQ files of both versions are told apart by
    the folder's config.json or quantize_config.json, without which version 1 is assumed.

    Raises InputError for files and layouts that are not read.
    """
    path = Path(path)
    if path.suffix == ".gguf":
        return dict(_gguf(path))
    if path.is_dir():
        return _read(_files(path), _form(path))
    if path.suffix == ".safetensors" and path.exists():
        return _read([path], _form(path.parent))
    raise InputError(
        explain(f"no weights are read from {str(path)!r}", fix="give a .safetensors or .gguf file, or a model's folder")
    )


def dequantized(model: nn.Module) -> nn.Module:
    """A copy of a model in which the quantized parameters of torchao are plain ones, of the numbers they mean.

    Where its layers also round their inputs, a warning says that the copy does not: it computes in full precision.
    """
    made, rounds = copy.deepcopy(model), []
    for path, module in made.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if is_quantized(parameter):
                if getattr(parameter, "act_quant_kwargs", None) is not None:
                    rounds.append(f"{path}.{name}".lstrip("."))
                plain: torch.Tensor = parameter.dequantize()
                setattr(module, name, nn.Parameter(plain.detach().float(), requires_grad=False))
    if rounds:
        warnings.warn(f"the layers of {rounds[0]} and {len(rounds) - 1} more round their inputs; the copy does not",
                      stacklevel=2)  # fmt: skip
    return made


# ---- safetensors
def _files(folder: Path) -> list[Path]:
    if (folder / _INDEX).exists():
        names = json.loads((folder / _INDEX).read_text())["weight_map"].values()
        return [_inside(folder, name) for name in dict.fromkeys(names)]
    if (folder / _ONE).exists():
        return [folder / _ONE]
    found = sorted(folder.glob("*.safetensors"))
    if len(found) != 1:
        raise InputError(
            explain(f"the folder {str(folder)!r} has {len(found)} safetensors files and no {_INDEX}", fix="name a file")
        )
    return found


def _inside(folder: Path, name: str) -> Path:
    """A file that an index names. Raises InputError for names that lead elsewhere."""
    if Path(name).name != name:
        raise InputError(explain(f"{_INDEX} names the file {name!r:.100}", why="files are beside it, without folders"))
    return folder / name


def _form(folder: Path) -> Form:
    found = [json.loads((folder / name).read_text()) for name in _CONFIGS if (folder / name).exists()]
    for config in found:
        config = config.get("quantization_config", config)
        if not {"checkpoint_format", "weight_block_size", "config_groups"}.isdisjoint(config):
            return form_of(config)
    return Form()


def _read(files: list[Path], form: Form) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, torch.Tensor] = {}
    about: dict[str, str] = {}
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                about.update(opened.metadata() or {})
                tensors.update({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118
        except (OSError, SafetensorError) as problem:
            raise InputError(explain(f"the file {str(file)!r} cannot be read", why=str(problem))) from problem
    return _of_torchao(tensors, about) if "tensor_names" in about else dict(_plain(tensors, form))


def _of_torchao(tensors: dict[str, torch.Tensor], about: dict[str, str]) -> dict[str, torch.Tensor]:
    try:
        from torchao.prototype.safetensors.safetensors_support import unflatten_tensor_state_dict
    except ImportError as problem:
        raise InputError(explain("this file is written by torchao", fix="pip install torchao")) from problem
    made: Any = unflatten_tensor_state_dict(tensors, about)
    whole = made[0] if isinstance(made, tuple) else made
    return {name: t.dequantize().float() if is_quantized(t) else t for name, t in whole.items()}


def _plain(tensors: Mapping[str, torch.Tensor], form: Form) -> Iterator[tuple[str, torch.Tensor]]:
    layers: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        layer, _, last = name.rpartition(".")
        layers.setdefault(layer, {})[last] = tensor
    for layer, parts in layers.items():
        weight = unpacked(layer, parts, form)
        dot = f"{layer}." if layer else ""
        if weight is not None:
            yield f"{dot}{WEIGHT}", weight
        for last, tensor in parts.items():
            if weight is not None and (last == WEIGHT or last in BESIDE or last in OF_INPUTS):
                continue
            if not tensor.is_floating_point() and last.endswith("_blocks"):
                raise InputError(explain(f"{dot}{last} is packed in a way that is not read", fix="unpack it before"))
            yield f"{dot}{last}", tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


# ---- GGUF
def _gguf(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        import gguf
    except ImportError as problem:
        raise InputError(explain("GGUF files are read with the package gguf", fix="pip install gguf")) from problem
    try:
        reader = gguf.GGUFReader(path)
    except (OSError, ValueError) as problem:
        raise InputError(explain(f"the file {str(path)!r} cannot be read", why=str(problem))) from problem
    for tensor in reader.tensors:
        yield tensor.name, _of_gguf(gguf, tensor)


def _of_gguf(gguf: Any, tensor: Any) -> torch.Tensor:
    """Plain types are arrays already; the others are the package's to unpack."""
    kind = tensor.tensor_type.name
    if kind in ("F16", "F32", "F64", "I8", "I16", "I32", "I64"):
        return torch.from_numpy(tensor.data.copy())
    try:
        return torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
    except (NotImplementedError, KeyError, ValueError) as problem:
        raise InputError(
            explain(f"the tensor {tensor.name!r} is of the type {kind}, which is not read", why=str(problem),
                    fix="convert the file to a type that the package gguf reads, such as Q8_0 or BF16")
        ) from problem  # fmt: skip
