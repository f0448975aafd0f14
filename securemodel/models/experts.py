"""Mixtures of experts of transformers, with every expert computed: which of them count for a token stays secret."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from protocols.errors import explain
from securemodel.errors import InputError


def dense_moe(model: nn.Module) -> nn.Module:
    """A copy of a model of transformers that computes all experts for every token and adds up those that were chosen.

    The original sends each token to the experts that its scores choose, so what is computed depends on values. Here a
    product with zero takes the place of leaving an expert out: the result is the same, the work that of all experts.
    Parameters and buffers are those of the original, under the same names.

    Raises InputError where no mixture of experts is known: those with one tensor of weights for all experts
    (transformers 5), and in 4.57 the blocks of Mixtral, Qwen-MoE, OLMoE, Granite-MoE, GPT-OSS and DeepSeek and what is
    built like them.
    """
    kept = {id(t): t for t in (*model.parameters(), *model.buffers())}
    dense, found = copy.deepcopy(model, kept), 0
    for module in dense.modules():
        if known := _known(module):
            method, computed = known
            setattr(module, method, partial(computed, module))
            found += 1
    if not found:
        fix = "models without experts, and those that compute all of them, are compiled as they are"
        raise InputError(explain(f"{type(model).__name__} has no mixture of experts that is known", fix=fix))
    return dense


def _known(module: Any) -> tuple[str, Callable] | None:
    """The method of a mixture of experts that chooses, and what computes it densely; None for other modules."""
    parts = {name for name, _ in (*module.named_children(), *module.named_parameters(recurse=False))}
    if "down_proj" in parts and hasattr(module, "_apply_gate") and not module.has_post_expert_norm:
        return "forward", _packed
    if "gate_up_proj_bias" in parts and hasattr(module, "limit") and not hasattr(module, "_apply_gate"):
        return "forward", _clamped
    if "experts" in parts and isinstance(module.experts, nn.ModuleList):
        if hasattr(module, "moe"):
            return "moe", _listed
        return ("forward", _block) if isinstance(getattr(module, "gate", None), nn.Linear) else None
    if {"router", "input_linear", "output_linear", "activation"} <= parts and hasattr(module.router, "layer"):
        return "forward", _parallel
    return None


def chosen(places: torch.Tensor, weights: torch.Tensor, experts: int) -> torch.Tensor:
    """The weight of each expert for each token, [tokens, experts], from places and weights [tokens, k]."""
    return (F.one_hot(places, experts).to(weights.dtype) * weights.unsqueeze(-1)).sum(1)


def _packed(
    module: Any, hidden_states: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    """Experts of transformers 5, whose weights are one tensor for each layer of all of them."""
    first, down = module.gate_up_proj if module.has_gate else module.up_proj, module.down_proj
    if not module.is_transposed:
        first, down = first.transpose(1, 2), down.transpose(1, 2)
    weights, inner = chosen(top_k_index, top_k_weights, first.shape[0]), hidden_states @ first
    if module.has_bias:
        inner = inner + (module.gate_up_proj_bias if module.has_gate else module.up_proj_bias).unsqueeze(1)
    made = _added_up(module._apply_gate(inner) if module.has_gate else module.act_fn(inner), weights, down)
    return made + weights @ module.down_proj_bias if module.has_bias else made


def _clamped(
    module: Any, hidden_states: torch.Tensor, router_indices: Any, routing_weights: torch.Tensor
) -> torch.Tensor:
    """GPT-OSS's experts of transformers 4, for weights [tokens, experts] that are zero where an expert is not chosen."""
    tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
    inner = tokens @ module.gate_up_proj + module.gate_up_proj_bias.unsqueeze(1)
    gate, up = inner[..., ::2].clamp(max=module.limit), inner[..., 1::2].clamp(-module.limit, module.limit)
    made = _added_up((up + 1) * gate * torch.sigmoid(gate * module.alpha), routing_weights, module.down_proj)
    return (made + routing_weights @ module.down_proj_bias).reshape(hidden_states.shape)


def _added_up(inner: torch.Tensor, weights: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """The last layers of all experts as one: [experts, tokens, inner], weights [tokens, experts], [experts, inner, width]."""
    weighted = (inner * weights.T.unsqueeze(-1)).transpose(0, 1)
    return weighted.flatten(1) @ down.flatten(0, 1)


def _listed(
    module: Any, hidden_states: torch.Tensor, topk_indices: torch.Tensor, topk_weights: torch.Tensor
) -> torch.Tensor:
    """A list of experts, for tokens [tokens, width]."""
    weights = chosen(topk_indices, topk_weights, len(module.experts))
    return torch.stack(
        [expert(hidden_states) * w.unsqueeze(-1) for expert, w in zip(module.experts, weights.T, strict=True)]
    ).sum(0)


def _block(module: Any, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A router and a list of experts, in some models with one that all tokens share."""
    tokens = hidden_states.reshape(-1, hidden_states.shape[-1])
    logits = module.gate(tokens)
    scores, places = logits.topk(module.top_k, dim=-1)
    normalized = getattr(module, "norm_topk_prob", True)
    weights = scores.softmax(-1) if normalized else logits.softmax(-1).gather(-1, places)
    made = _listed(module, tokens, places, weights)
    if hasattr(module, "shared_expert"):
        made = made + torch.sigmoid(module.shared_expert_gate(tokens)) * module.shared_expert(tokens)
    return made.reshape(hidden_states.shape), logits


def _parallel(module: Any, layer_input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Granite's block of transformers 4: both layers of all experts as one tensor each."""
    tokens = layer_input.reshape(-1, layer_input.shape[-1])
    logits = module.router.layer(tokens)
    scores, places = logits.topk(module.router.top_k, dim=-1)
    weights = chosen(places, scores.softmax(-1), logits.shape[-1])
    gate, up = (tokens @ module.input_linear.weight.transpose(1, 2)).chunk(2, dim=-1)
    made = _added_up(module.activation(gate) * up, weights, module.output_linear.weight.transpose(1, 2))
    return made.reshape(layer_input.shape), logits
