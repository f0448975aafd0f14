"""Two language models of transformers that write letter by letter, and one step of writing with what they remember.

GPT-2 (Radford et al. 2019) and a Llama (Touvron et al. 2023), tiny, trained in seconds to say one sentence by heart.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Cache, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

SENTENCE = "she sells sea shells by the sea shore. "
LETTERS = sorted(set(SENTENCE))
PLACES = 24
"""The most letters that a model remembers, the prompt included."""
LAYERS, HEADS, WIDTH = 2, 2, 32
KINDS = ("gpt2", "llama")


def new_model(kind: str) -> PreTrainedModel:
    """An untrained model, ready for inference."""
    letters = {"vocab_size": len(LETTERS), "bos_token_id": None, "eos_token_id": None}
    if kind == "gpt2":
        sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": PLACES}
        return GPT2LMHeadModel(GPT2Config(**letters, **sizes)).eval()
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 2 * HEADS}
    more = {"num_key_value_heads": HEADS, "head_dim": WIDTH // HEADS, "intermediate_size": 2 * WIDTH}
    return LlamaForCausalLM(LlamaConfig(**letters, **sizes, **more, max_position_embeddings=PLACES)).eval()


def numbers(text: str) -> torch.Tensor:
    """The letters of a text as whole numbers, [1, N]."""
    return torch.tensor([[LETTERS.index(letter) for letter in text]])


def trained(kind: str, steps: int = 120) -> PreTrainedModel:
    """A model that goes on with the sentence wherever one begins."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = new_model(kind)
    twice = numbers(2 * SENTENCE)[0]
    windows = torch.stack([twice[at : at + PLACES] for at in range(len(SENTENCE))])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        logits = model(windows[:, :-1]).logits
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


class Remembered(Cache):
    """Keys and values [layers, N, heads, PLACES, size] with room for all places: a step writes one and reads all."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, here: torch.Tensor) -> None:
        self.layers: list = []  # transformers 5 looks for them
        self.keys, self.values, self.here = list(keys), list(values), here.unsqueeze(-1)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):  # the rest differs between versions
        self.keys[layer_idx] = torch.where(self.here, key_states, self.keys[layer_idx])
        self.values[layer_idx] = torch.where(self.here, value_states, self.values[layer_idx])
        return self.keys[layer_idx], self.values[layer_idx]

    def get_seq_length(self, layer_idx=0) -> int:
        return 0


class Step(nn.Module):
    """Reads one letter, and writes the next one.

    `given` is the letter of the prompt [N, 1], which counts while `reading` is 1, [1]; after that the letter written
    before does. `place` is the number of the step, [1]. Gives the letter written, [N, 1], and what the next step needs:
    that letter, keys and values.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, given, reading, place, written, keys, values):
        letter = torch.where(reading > 0, given, written)
        table = self.model.get_input_embeddings().weight
        vectors = F.one_hot(letter, table.shape[0]).to(table.dtype) @ table
        places = torch.arange(PLACES)
        memory = Remembered(keys, values, places == place)
        seen = (places <= place).expand(given.shape[0], 1, 1, PLACES)
        made = self.model(
            inputs_embeds=vectors,
            position_ids=place.expand(given.shape),
            attention_mask=torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min),
            past_key_values=memory,
            use_cache=True,
        )
        new = made.logits[:, -1:].argmax(-1)
        return new, new, torch.stack(memory.keys), torch.stack(memory.values)


def first_inputs(rows: int = 1) -> dict[str, torch.Tensor]:
    """What the first step is given, by name: an empty memory, and a letter that nobody has written."""
    memory = torch.zeros(LAYERS, rows, HEADS, PLACES, WIDTH // HEADS)
    whole = torch.zeros(rows, 1, dtype=torch.int64)
    one = torch.zeros(1, dtype=torch.int64)
    return {"given": whole, "reading": one, "place": one, "written": whole, "keys": memory, "values": memory.clone()}
