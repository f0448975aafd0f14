"""Models of transformers compile as they are: keyword inputs, outputs with names, masks that nobody sees."""

import os

import pytest
import torch
from both import THREE, TWO, difference

import securemodel

os.environ["HF_HUB_OFFLINE"] = "1"
transformers = pytest.importorskip("transformers")

BOUND = 2.0**-10
BATCH, STEPS, WIDTH = 2, 6, 16
MASK = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
ATTENTION = pytest.mark.parametrize("attention", ["sdpa", pytest.param("eager", marks=pytest.mark.slow)])
KINDS = pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])


def model(kind: str, attention: str = "sdpa") -> torch.nn.Module:
    torch.manual_seed(10)
    common = {"vocab_size": 40, "attn_implementation": attention}
    if kind == "bert":
        sizes = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        return transformers.BertModel(transformers.BertConfig(**common, **sizes, max_position_embeddings=16))
    if kind == "distilbert":
        sizes = {"dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 32, "max_position_embeddings": 16}
        return transformers.DistilBertModel(transformers.DistilBertConfig(**common, **sizes))
    sizes = {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return transformers.GPT2Model(transformers.GPT2Config(**common, **sizes))


def embedded(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return {"inputs_embeds": torch.randn(BATCH, STEPS, WIDTH, generator=generator), **more}


def kept(made: torch.Tensor) -> torch.Tensor:
    """Only real tokens: what stands at padded places is nobody's business."""
    return made[MASK == 1] if made.ndim == 3 else made


@KINDS
@ATTENTION
def test_embedded_tokens(kind, attention):
    assert difference(model(kind, attention), embedded()) < BOUND


@KINDS
def test_three_parties(kind):
    assert difference(model(kind), embedded(), THREE) < BOUND


@KINDS
@pytest.mark.parametrize("owner", ["public", "b"])
@ATTENTION
def test_padding(kind, owner, attention):
    settings = {**TWO, "inputs": {"inputs_embeds": "b", "attention_mask": owner}}
    assert difference(model(kind, attention), embedded(attention_mask=MASK), settings, where=kept) < BOUND


@KINDS
def test_token_numbers_of_one_party_and_the_table_of_another(kind):
    ids = torch.randint(0, 40, (BATCH, STEPS), generator=torch.Generator().manual_seed(12))
    coarse = 4 * BOUND  # before it is normalized, a table of deviation 0.02 has ten significant bits
    assert difference(model(kind), {"input_ids": ids}) < coarse
    assert difference(model(kind), (ids,)) < coarse


def test_caches_and_empty_fields_are_no_outputs():
    for kind, count in (("bert", 2), ("gpt2", 1)):
        program = securemodel.compile(model(kind).eval(), embedded(), **TWO)
        assert len(program.header.outputs) == count


def test_any_number_of_rows_by_name():
    bert, given = model("bert").eval(), embedded()
    program = securemodel.compile(bert, given, **TWO)
    assert program.row_independent
    more = torch.cat([given["inputs_embeds"], given["inputs_embeds"].flip(0)[:1]])
    with torch.no_grad(), securemodel.local(program) as session:
        made, right = session.run(more)[0], bert(inputs_embeds=more)[0]
    assert made.shape == right.shape and (made - right).abs().max() < BOUND
