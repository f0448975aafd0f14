"""Families of models that expand their weights to the rows of a batch: one load still serves all sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification

import securemodel
from securemodel.compiler.capture import capture
from securemodel.compiler.expanded import expand_in_runs
from securemodel.compiler.reading import load_of, parse_programs
from securemodel.errors import CompileError, ProgramError
from securemodel.inspect.fixed import fixed_point
from tests.service.test_family import asked, drawn, seeded, served

SIZES = (1, 3)
Forward = Callable[[nn.Module, torch.Tensor], Any]


class Made(nn.Module):
    """A model of a few parameters whose forward is given: rows of three numbers go in."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.row, self.token = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(1, 1, 3))
        self.square, self.table = nn.Parameter(torch.randn(3, 3)), nn.Embedding(4, 3)
        self.one_kind, self.head = nn.Embedding(1, 3), nn.Linear(3, 2)
        self.register_buffer("ids", torch.arange(4).unsqueeze(0), persistent=False)
        self.register_buffer("kinds", torch.zeros(1, 4, dtype=torch.long), persistent=False)
        self.made = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.made(self, x)


def looked_up(m, x):
    """Ids of an owner's, as they are, of a table of one, and gathered as Bert does it."""
    ids, kinds = m.ids.expand(len(x), 4), m.kinds.expand(len(x), -1)
    return x + m.table(ids)[:, 1:].sum(1) + m.one_kind(kinds)[:, 0] + m.table(kinds.gather(1, ids)).mean(1)


def broadcast(m, x):
    """Where operators broadcast, one row of a weight is all they read."""
    row = m.row.expand(len(x), 3)
    chosen = torch.where((m.row > 0).expand(len(x), 3), x * (row * 2).sin(), row)
    return chosen / (row.abs() + 1) + m.head(m.token.expand(len(x), 1, 3)).mean((1, 2)).unsqueeze(1)


def expanded(m, x):
    """Where they do not, the row is expanded: a token before the others, as in ViT, and matrices."""
    words = torch.cat([m.token.expand(len(x), -1, -1), x.unsqueeze(1)], 1) @ m.square.expand(len(x), 3, 3)
    return torch.cat([words.flatten(1), m.row.repeat(len(x), 2)], 1) * 2


def across(m, x):
    """Rows on the second axis, and a part of a layer in pieces that have none."""
    return torch.cat([m.row.unsqueeze(1).repeat(1, len(x)), x.T + m.square.split(1)[0].T], 0).T


def public(m, x):
    """Public numbers with rows: alone, and as a mask."""
    numbers = torch.cat([x, torch.ones(len(x), 1) * m.row, torch.ones(len(x), 1), torch.zeros_like(x) + 3], 1)
    words = torch.stack([x, x * m.row], 1)
    mask = torch.full((len(x), 2, 2), -torch.inf).triu(1)
    return numbers, (words @ words.transpose(1, 2) + mask).softmax(-1).mean(1)


def of_weights_alone(m, x):
    """Nothing else has rows here."""
    row = m.row.expand(len(x), 3)
    return row * 2 + torch.zeros(len(x), 1), row * x.mean(0)


MODELS = [looked_up, broadcast, expanded, across, public, of_weights_alone]


@pytest.mark.parametrize("forward", MODELS)
def test_one_load_serves_all_sizes(forward):
    model = seeded(lambda: Made(forward))
    family = served(model, drawn(1, 3), sizes=SIZES)
    one, three = (family.programs[size] for size in SIZES)
    assert load_of(one.graph) == load_of(three.graph)
    x = drawn(3, 3) * 4 - 2
    with securemodel.local(family) as session:
        session.load(family, model)
        kept = session.weight_shares()
        check(model(x[:1]), asked(session, family, 1, x[:1]))
    with securemodel.local(family) as session:
        session.load_shares(kept)
        got = asked(session, family, 3, x)
    assert all(torch.equal(have, want.double()) for have, want in zip(got, fixed_point(three, x), strict=True))
    check(model(x), got)


def check(wanted: torch.Tensor | tuple[torch.Tensor, ...], got: list[torch.Tensor]) -> None:
    for have, want in zip(got, wanted if isinstance(wanted, tuple) else (wanted,), strict=True):
        assert have.shape == want.shape and (have - want).abs().max() < 2e-3


def numbered(m, x):
    return x * (m.row * torch.arange(len(x)).unsqueeze(1))


def summed(m, x):
    return x + m.row.expand(len(x), 3).sum(0)


def counted(m, x):
    return x + m.row.expand(len(x), 3).cumsum(0)


def scaled(m, x):
    return x + m.row * len(x)


def strewn(m, x):
    """The same shape as if each row were repeated, but the elements of another row."""
    return x.unsqueeze(1) + m.row.expand(len(x), 3).reshape(3, len(x)).T.unsqueeze(1)


def other_steps(m, x):
    return x + (m.row.expand(3, 3) if len(x) == 3 else m.row)


@pytest.mark.parametrize("forward", [numbered, summed, counted, scaled, strewn, other_steps])
def test_what_is_not_the_same_for_each_row_stays_as_it_is(forward):
    model = seeded(lambda: Made(forward))
    three, two = (capture(model, (drawn(rows, 3),)) for rows in (3, 2))
    before = str(three.graph)
    expand_in_runs(three, two.graph)
    assert str(three.graph) == before


def test_a_family_of_what_is_not_the_same_for_each_row_is_refused():
    with pytest.raises(CompileError, match="other values are made of the weights"):
        served(seeded(lambda: Made(numbered)), drawn(1, 3), sizes=SIZES)


def test_only_public_values_and_what_is_expanded_say_that_they_have_the_rows_of_a_run():
    family = served(seeded(lambda: Made(expanded)), drawn(1, 3), sizes=SIZES)
    lines = family.programs[3].text().split("\n")
    assert any('"kind":"expand","run":true' in line for line in lines)
    for op, old in (("linear", '"attrs":{"dim"'), ("float@bank", '"target"')):
        at = next(i for i, line in enumerate(lines) if f" = {op}" in line and old in line)
        wrong = lines[at].replace(old, f'"run":true,{old}', 1).removesuffix(" load")
        with pytest.raises(ProgramError, match="have the rows of a run"):
            parse_programs("\n".join([*lines[:at], wrong, *lines[at + 1 :]]))


def test_bert_of_hugging_face_answers_as_in_torch():
    config = BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, num_labels=3,
    )  # fmt: skip
    model = seeded(lambda: BertForSequenceClassification(config))
    ids = torch.arange(24).view(4, 6) % 20
    family = served(model, ids[:1], sizes=(1, 4))
    with securemodel.local(family) as session, torch.no_grad():
        session.load(family, model)
        for rows in (1, 4):
            (got,) = asked(session, family, rows, ids[:rows])
            assert (got - model(ids[:rows]).logits).abs().max() < 2e-3
