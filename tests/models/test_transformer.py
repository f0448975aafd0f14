"""torch's attention and transformers give what torch gives, with masks of every kind."""

import pytest
import torch
from both import THREE, TWO, Model, difference
from torch import nn

BOUND = 2.0**-10
BATCH, STEPS, OTHERS, WIDTH, HEADS = 2, 4, 3, 8, 2
CAUSAL = nn.Transformer.generate_square_subsequent_mask(STEPS)
PADDING = torch.tensor([[False, False, False, True], [False, False, True, True]])
SETTINGS = pytest.mark.parametrize("settings", [TWO, THREE], ids=["two", "three"])
OF_LAYERS = pytest.mark.parametrize(
    "settings", [pytest.param(TWO, id="two"), pytest.param(THREE, id="three", marks=pytest.mark.slow)]
)


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(9)


def queries() -> torch.Tensor:
    return torch.randn(BATCH, STEPS, WIDTH)


def memory() -> torch.Tensor:
    return torch.randn(BATCH, OTHERS, WIDTH)


ATTENTION = {
    "self": lambda m, x: m(x, x, x),
    "no weights": lambda m, x: m(x, x, x, need_weights=False),
    "weights by head": lambda m, x: m(x, x, x, average_attn_weights=False),
    "mask of booleans": lambda m, x: m(x, x, x, attn_mask=CAUSAL < 0),
    "mask of numbers": lambda m, x: m(x, x, x, attn_mask=CAUSAL),
    "mask, no weights": lambda m, x: m(x, x, x, attn_mask=CAUSAL, need_weights=False),
    "mask by head": lambda m, x: m(x, x, x, attn_mask=CAUSAL.repeat(BATCH * HEADS, 1, 1)),
    "causal": lambda m, x: m(x, x, x, attn_mask=CAUSAL, is_causal=True, need_weights=False),
}
CONFIGURED = {
    "no bias": {"bias": False},
    "extra keys": {"add_bias_kv": True, "add_zero_attn": True},
    "sequence first": {"batch_first": False},
}


@SETTINGS
@pytest.mark.parametrize("name", ATTENTION)
def test_attention(name, settings):
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    assert difference(Model(attention, ATTENTION[name]), (queries(),), settings) < BOUND


@pytest.mark.parametrize("name", CONFIGURED)
def test_attention_configured(name):
    attention = nn.MultiheadAttention(WIDTH, HEADS, **{"batch_first": True, **CONFIGURED[name]})
    assert difference(Model(attention, ATTENTION["self"]), (queries(),)) < BOUND


@pytest.mark.parametrize("owner", ["a", "b"])
def test_cross_attention(owner):
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, kdim=6, vdim=6)
    given = (queries(), torch.randn(BATCH, OTHERS, 6))
    cross = Model(attention, lambda m, x, y: m(x, y, y))
    assert difference(cross, given, {**TWO, "inputs": ("b", owner)}) < BOUND


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("owner", ["public", "b"])
def test_key_padding(owner, need_weights):
    attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
    padded = Model(attention, lambda m, x, mask: m(x, x, x, key_padding_mask=mask, need_weights=need_weights))
    assert difference(padded, (queries(), PADDING), {**TWO, "inputs": ("b", owner)}) < BOUND


def layer(kind: type[nn.Module], **options) -> nn.Module:
    return kind(WIDTH, HEADS, 16, batch_first=True, **options)


@OF_LAYERS
@pytest.mark.parametrize("options", [{}, {"norm_first": True, "activation": "gelu"}], ids=["post-norm", "pre-norm"])
def test_encoder(options, settings):
    encoder = nn.TransformerEncoder(layer(nn.TransformerEncoderLayer, **options), 2, nn.LayerNorm(WIDTH))
    assert difference(encoder, (queries(),), settings) < BOUND
    assert difference(Model(encoder, lambda m, x: m(x, mask=CAUSAL)), (queries(),), settings) < BOUND


def test_encoder_of_padded_sequences():
    """At evaluation torch itself writes zeros where the padding is; only the rest can be compared."""
    encoder = nn.TransformerEncoder(layer(nn.TransformerEncoderLayer), 2)
    padded = Model(encoder, lambda m, x, mask: m(x, src_key_padding_mask=mask))
    settings = {**TWO, "inputs": ("b", "public")}
    assert difference(padded, (queries(), PADDING), settings, where=lambda made: made[~PADDING]) < BOUND


@OF_LAYERS
@pytest.mark.parametrize("hint", [None, True, False])
def test_decoder(hint, settings):
    decoder = nn.TransformerDecoder(layer(nn.TransformerDecoderLayer), 2)
    masked = Model(decoder, lambda m, x, y: m(x, y, tgt_mask=CAUSAL, tgt_is_causal=hint))
    assert difference(masked, (queries(), memory()), settings) < BOUND


def test_whole_transformer():
    whole = nn.Transformer(WIDTH, HEADS, 1, 1, 16, batch_first=True)
    masked = Model(whole, lambda m, x, y: m(x, y, tgt_mask=CAUSAL[:OTHERS, :OTHERS], tgt_is_causal=True))
    assert difference(masked, (queries(), memory())) < BOUND


def test_capturing_leaves_torch_as_it_was():
    before = nn.modules.transformer._detect_is_causal_mask
    test_whole_transformer()
    assert nn.modules.transformer._detect_is_causal_mask is before
