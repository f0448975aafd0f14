"""Mixtures of experts: the original is refused with its line, the dense one gives the same."""

import catalog
import pytest
import torch
from both import difference
from torch import nn

import securemodel
from protocols.errors import InputError
from securemodel.models import dense_moe

CLASSES = {
    "Mixtral": "MixtralForCausalLM",
    "Qwen2-MoE": "Qwen2MoeForCausalLM",
    "Qwen3-MoE": "Qwen3MoeForCausalLM",
    "OLMoE": "OlmoeForCausalLM",
    "Granite-MoE": "GraniteMoeForCausalLM",
    "GPT-OSS": "GptOssForCausalLM",
    "DeepSeek-V3": "DeepseekV3ForCausalLM",
}


@pytest.mark.parametrize("architecture", CLASSES)
def test_dense_is_the_same_with_the_same_parameters(architecture):
    model, given = catalog.of_transformers(architecture, CLASSES[architecture])
    dense = dense_moe(model)
    assert all(a is b for a, b in zip(model.parameters(), dense.parameters(), strict=True))
    assert list(model.state_dict()) == list(dense.state_dict())
    with torch.no_grad():
        made, right = dense(**given).logits, model(**given).logits
    assert (made - right).abs().max() < 1e-5 * right.abs().max()


@pytest.mark.parametrize("architecture", ["Mixtral", "Qwen2-MoE"])
def test_dense_runs_securely(architecture):
    model, given = catalog.of_transformers(architecture, CLASSES[architecture])
    assert difference(dense_moe(model), given) < 2.0**-9


@pytest.mark.parametrize("architecture", CLASSES)
def test_the_original_is_refused_with_the_line_that_chooses(architecture):
    model, given = catalog.of_transformers(architecture, CLASSES[architecture])
    problem = securemodel.check(model, given).problems[0]
    assert "which experts compute a token depends on values" in problem.reason
    assert "dense_moe(model)" in problem.remedy and "modeling_" in problem.source


def test_models_without_experts_are_refused():
    with pytest.raises(InputError, match="no mixture of experts"):
        dense_moe(nn.Linear(2, 2))
