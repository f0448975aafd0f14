"""Models of other people, tiny and with random weights: how each is made and what it is given.

Weights are as the library draws them, plus noise, so that no part of a model is zero or one throughout.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from securemodel.models import dense_moe

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

NOISE = 0.05
BATCH, STEPS, WORDS, WIDTH = 2, 6, 40, 16
SIDE = 32

Inputs = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Family:
    """Classes of one architecture with the same sizes: `config` is a class of transformers, `made` gives the inputs.

    `inputs` replaces those of single classes. `called`: the model sets itself up in its first call, which is made.
    """

    config: str
    sizes: Mapping[str, Any]
    classes: tuple[str, ...]
    made: Callable[[], Inputs]
    inputs: Mapping[str, Callable[[], Inputs]] = field(default_factory=dict)
    called: bool = False


# ---- what models are given
def _random() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def words(steps: int = STEPS) -> torch.Tensor:
    """Numbers of words; 0 to 2 stand for padding, beginning and end."""
    return torch.randint(3, WORDS, (BATCH, steps), generator=_random())


def tokens() -> Inputs:
    return {"input_ids": words()}


def padded() -> Inputs:
    """One of the two texts ends early."""
    ids, mask = words(), torch.ones(BATCH, STEPS, dtype=torch.int64)
    mask[1, 4:], ids[1, 4:] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def pairs() -> Inputs:
    return {"input_ids": words(), "decoder_input_ids": words(4)}


def ended() -> Inputs:
    """Texts that end with the word for it, from which BART and its kin classify."""
    return {"input_ids": torch.cat([words()[:, :-1], torch.full((BATCH, 1), 2)], 1)}


def boxes() -> Inputs:
    corners = torch.randint(0, 20, (BATCH, STEPS, 2), generator=_random())
    return {"input_ids": words(), "bbox": torch.cat([corners, corners + 10], -1)}


def images(side: int = SIDE, count: int = 1) -> Inputs:
    return {"pixel_values": torch.randn(count, 3, side, side, generator=_random())}


def captioned() -> Inputs:
    return {"input_ids": words(), **images(count=BATCH)}


def wave(count: int = 800) -> Inputs:
    return {"input_values": torch.randn(1, count, generator=_random())}


def spectrogram(name: str = "input_features", shape: tuple[int, ...] = (1, 8, 16)) -> Callable[[], Inputs]:
    return lambda: {name: torch.randn(shape, generator=_random())}


# ---- sizes
_ENDS = {"vocab_size": WORDS, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TALL = {"num_hidden_layers": 2, "num_attention_heads": 2}
ENCODER = {**_ENDS, **_TALL, "hidden_size": WIDTH, "intermediate_size": 32, "max_position_embeddings": 32}
DECODER = {**ENCODER, "num_key_value_heads": 1}
WIDE = {"d_model": WIDTH, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}  # fmt: skip
BART = {**_ENDS, **WIDE, "decoder_start_token_id": 1, "max_position_embeddings": 32, "forced_eos_token_id": None}
T5 = {**_ENDS, "d_model": WIDTH, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "decoder_start_token_id": 0}
GPT = {**_ENDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32}
VISION = {**_TALL, "hidden_size": WIDTH, "intermediate_size": 32, "image_size": SIDE, "patch_size": 8, "num_labels": 3}
STAGES = {"depths": [1, 1], "num_labels": 3, "image_size": SIDE, "num_channels": 3}
SPEECH = {**_ENDS, **_TALL, "hidden_size": WIDTH, "intermediate_size": 32, "conv_dim": [8, 8], "conv_stride": [5, 4],
          "conv_kernel": [10, 8], "num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4,
          "num_conv_pos_embedding_groups": 2, "classifier_proj_size": 8, "use_weighted_layer_sum": False}  # fmt: skip
EXPERTS = {**DECODER, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
TEXT_TOWER = {**_ENDS, **_TALL, "hidden_size": WIDTH, "intermediate_size": 32, "max_position_embeddings": 32}


def _heads(name: str, *heads: str) -> tuple[str, ...]:
    """`_heads("Bert", "Model", "MaskedLM")`: names of classes."""
    return tuple(f"{name}{head}" if head == "Model" or head.endswith("Model") else f"{name}For{head}" for head in heads)


_CAUSAL = ("CausalLM",)
_LABELED = ("Model", "CausalLM", "SequenceClassification")
_READERS = ("Model", "MaskedLM", "SequenceClassification")


def _encoder(name: str, *heads: str, config: str = "", **sizes: Any) -> Family:
    return Family(config or f"{name}Config", {**ENCODER, **sizes}, _heads(name, *heads or _READERS), padded)


def _decoder(name: str, *heads: str, config: str = "", base: Mapping[str, Any] = DECODER, **sizes: Any) -> Family:
    return Family(config or f"{name}Config", {**base, **sizes}, _heads(name, *heads or _CAUSAL), tokens)


def _seq2seq(name: str, *heads: str, base: Mapping[str, Any] = BART, **sizes: Any) -> Family:
    chosen = _heads(name, *heads or ("Model", "ConditionalGeneration"))
    labeled = {name: ended for name in chosen if name.endswith("SequenceClassification")}
    return Family(f"{name}Config", {**base, **sizes}, chosen, pairs, labeled)


def _vision(name: str, *heads: str, base: Mapping[str, Any] = VISION, **sizes: Any) -> Family:
    chosen = _heads(name, *heads or ("Model", "ImageClassification"))
    return Family(f"{name}Config", {**base, **sizes}, chosen, images)


def _speech(name: str, *heads: str, **sizes: Any) -> Family:
    return Family(f"{name}Config", {**SPEECH, **sizes}, _heads(name, *heads or ("Model", "CTC")), wave)


TRANSFORMERS: dict[str, Family] = {
    # encoders of text
    "BERT": _encoder("Bert", *_READERS, "TokenClassification", "QuestionAnswering"),
    "RoBERTa": _encoder("Roberta", *_READERS, "TokenClassification"),
    "XLM-RoBERTa": _encoder("XLMRoberta", "SequenceClassification"),
    "CamemBERT": _encoder("Camembert", "TokenClassification"),
    "DistilBERT": Family(
        "DistilBertConfig",
        {"vocab_size": WORDS, "dim": WIDTH, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
         "max_position_embeddings": 32},
        _heads("DistilBert", *_READERS, "QuestionAnswering"), padded,
    ),
    "ALBERT": _encoder("Albert", embedding_size=8),
    "ELECTRA": _encoder("Electra", *_READERS, embedding_size=8),
    "DeBERTa": _encoder("Deberta", relative_attention=True, max_relative_positions=8, pos_att_type=["c2p", "p2c"]),
    "DeBERTa-v2": _encoder(
        "DebertaV2", relative_attention=True, position_buckets=4, pos_att_type=["c2p", "p2c"], share_att_key=True,
        norm_rel_ebd="layer_norm", conv_kernel_size=3, conv_act="gelu",
    ),
    "MPNet": _encoder("MPNet", "Model", "MaskedLM"),
    "MobileBERT": _encoder("MobileBert", "Model", intra_bottleneck_size=8, embedding_size=8),
    "SqueezeBERT": _encoder("SqueezeBert", "Model", embedding_size=16, q_groups=2, k_groups=2, v_groups=2,
                            post_attention_groups=1, intermediate_groups=2, output_groups=2),
    "XLNet": Family(
        "XLNetConfig", {"vocab_size": WORDS, "d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 32},
        ("XLNetModel", "XLNetLMHeadModel", "XLNetForSequenceClassification"), tokens,
    ),
    "Funnel": Family(
        "FunnelConfig",
        {"vocab_size": WORDS, "d_model": WIDTH, "n_head": 2, "d_head": 8, "d_inner": 32, "block_sizes": [1, 1],
         "num_decoder_layers": 1},
        ("FunnelModel", "FunnelForMaskedLM"), tokens,
    ),
    "Longformer": Family("LongformerConfig", {**ENCODER, "attention_window": 4}, ("LongformerModel",), tokens),
    "BigBird": _encoder("BigBird", "Model", "MaskedLM", attention_type="original_full"),
    "FNet": Family("FNetConfig", {**ENCODER, "type_vocab_size": 2}, ("FNetModel",), tokens),
    "RoFormer": _encoder("RoFormer", "Model", "MaskedLM"),
    "Nyströmformer": _encoder("Nystromformer", "Model", num_landmarks=6, segment_means_seq_len=6, conv_kernel_size=3),
    "ConvBERT": _encoder("ConvBert", "Model", embedding_size=16, conv_kernel_size=3, head_ratio=1),
    "RemBERT": _encoder("RemBert", "Model", input_embedding_size=8, output_embedding_size=8),
    "ERNIE": _encoder("Ernie", "Model"),
    "ESM": _encoder("Esm", "Model", "MaskedLM", position_embedding_type="rotary", mask_token_id=3, token_dropout=False),
    "I-BERT": _encoder("IBert", "Model", quant_mode=False),
    "CANINE": _encoder("Canine", "Model", downsampling_rate=2, local_transformer_stride=4, num_hash_buckets=16,
                       num_hash_functions=2),
    "LayoutLM": Family("LayoutLMConfig", {**ENCODER, "max_2d_position_embeddings": 64},
                       ("LayoutLMModel", "LayoutLMForTokenClassification"), boxes),
    "ModernBERT": _encoder("ModernBert", cls_token_id=1, sep_token_id=2, global_attn_every_n_layers=2,
                           local_attention=4, reference_compile=False),
    "EuroBERT": _encoder("EuroBert", "Model", "MaskedLM", num_key_value_heads=2),
    "NomicBERT": _encoder("NomicBert", "Model", "MaskedLM"),
    "JinaEmbeddingsV3": _encoder("JinaEmbeddingsV3", "Model", "MaskedLM"),
    # text to text
    "T5": _seq2seq("T5", "Model", "ConditionalGeneration", base=T5),
    "T5 encoder": Family("T5Config", {**T5, "feed_forward_proj": "gated-gelu"}, ("T5EncoderModel",), padded),
    "MT5": _seq2seq("MT5", "Model", base=T5),
    "BART": _seq2seq("Bart", "Model", "ConditionalGeneration", "SequenceClassification"),
    "mBART": _seq2seq("MBart", "Model"),
    "Pegasus": _seq2seq("Pegasus"),
    "Marian": Family("MarianConfig", BART, ("MarianModel", "MarianMTModel"), pairs),
    "Blenderbot": _seq2seq("Blenderbot", "Model"),
    "M2M-100": _seq2seq("M2M100", "Model"),
    "LED": _seq2seq("LED", "Model", attention_window=4, max_encoder_position_embeddings=32,
                    max_decoder_position_embeddings=32),
    "ProphetNet": Family("ProphetNetConfig",
                         {**_ENDS, "hidden_size": WIDTH, "num_encoder_layers": 1, "num_decoder_layers": 1,
                          "num_encoder_attention_heads": 2, "num_decoder_attention_heads": 2, "encoder_ffn_dim": 32,
                          "decoder_ffn_dim": 32, "max_position_embeddings": 32, "ngram": 2},
                         ("ProphetNetModel",), pairs),
    # decoders
    "GPT": Family("OpenAIGPTConfig", {"vocab_size": WORDS, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": 32},
                  ("OpenAIGPTLMHeadModel",), tokens),
    "GPT-2": Family("GPT2Config", GPT,
                    ("GPT2Model", "GPT2LMHeadModel", "GPT2ForSequenceClassification", "GPT2ForTokenClassification"),
                    tokens),
    "GPT-Neo": Family("GPTNeoConfig",
                      {**_ENDS, "hidden_size": WIDTH, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 32,
                       "attention_types": [[["global", "local"], 1]], "window_size": 4},
                      _heads("GPTNeo", *_CAUSAL), tokens),
    "GPT-NeoX": _decoder("GPTNeoX", *_LABELED, base=ENCODER),
    "GPT-J": Family("GPTJConfig", {**GPT, "rotary_dim": 4}, _heads("GPTJ", *_CAUSAL), tokens),
    "CodeGen": Family("CodeGenConfig", {**GPT, "n_head": 4, "rotary_dim": 4, "n_ctx": 32}, _heads("CodeGen", *_CAUSAL),
                      tokens),
    "GPT-BigCode": Family("GPTBigCodeConfig", GPT, _heads("GPTBigCode", *_CAUSAL), tokens),
    "OPT": Family("OPTConfig",
                  {**_ENDS, **_TALL, "hidden_size": WIDTH, "ffn_dim": 32, "max_position_embeddings": 32,
                   "word_embed_proj_dim": WIDTH},
                  _heads("OPT", *_LABELED), tokens),
    "BLOOM": Family("BloomConfig", {**_ENDS, "hidden_size": WIDTH, "n_layer": 2, "n_head": 2},
                    _heads("Bloom", *_LABELED), tokens),
    "XGLM": Family("XGLMConfig",
                   {**_ENDS, "d_model": WIDTH, "ffn_dim": 32, "num_layers": 2, "attention_heads": 2,
                    "max_position_embeddings": 32}, _heads("XGLM", *_CAUSAL), tokens),
    "CTRL": Family("CTRLConfig", {**GPT, "dff": 32}, ("CTRLLMHeadModel",), tokens),
    "Llama": _decoder("Llama", *_LABELED),
    "Mistral": _decoder("Mistral", *_LABELED, sliding_window=4),
    "Mixtral": _decoder("Mixtral", num_local_experts=4, num_experts_per_tok=2, sliding_window=None),
    "Qwen2": _decoder("Qwen2", *_LABELED),
    "Qwen2-MoE": _decoder("Qwen2Moe", base=EXPERTS, num_experts=4, shared_expert_intermediate_size=32),
    "Qwen3": _decoder("Qwen3", *_LABELED, head_dim=8),
    "Qwen3-MoE": _decoder("Qwen3Moe", base=EXPERTS, num_experts=4, head_dim=8),
    "Qwen3.5": _decoder("Qwen3_5Text", "Model", config="Qwen3_5TextConfig", head_dim=8, linear_num_key_heads=2,
                        linear_num_value_heads=2, linear_key_head_dim=8, linear_value_head_dim=8,
                        layer_types=["linear_attention", "full_attention"]),
    "Phi": _decoder("Phi", partial_rotary_factor=0.5),
    "Phi-3": _decoder("Phi3"),
    "Gemma": _decoder("Gemma", head_dim=8),
    "Gemma 2": _decoder("Gemma2", head_dim=8, query_pre_attn_scalar=8, sliding_window=4),
    "Gemma 3": Family("Gemma3TextConfig",
                      {**DECODER, "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4,
                       "layer_types": ["sliding_attention", "full_attention"]},
                      ("Gemma3TextModel", "Gemma3ForCausalLM"), tokens),
    "Gemma 3n": Family("Gemma3nTextConfig",
                       {**DECODER, "head_dim": 8, "sliding_window": 4, "vocab_size_per_layer_input": WORDS,
                        "hidden_size_per_layer_input": 8, "laurel_rank": 4, "altup_num_inputs": 2,
                        "num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.5, 0.0],
                        "layer_types": ["sliding_attention", "full_attention"]},
                       ("Gemma3nForCausalLM",), tokens),
    "Gemma 4": Family("Gemma4TextConfig",
                      {**DECODER, "head_dim": 8, "global_head_dim": 8, "sliding_window": 4,
                       "vocab_size_per_layer_input": WORDS, "hidden_size_per_layer_input": 8,
                       "layer_types": ["sliding_attention", "full_attention"], "num_kv_shared_layers": 0},
                      ("Gemma4ForCausalLM",), tokens),
    "Falcon": _decoder("Falcon", *_LABELED, base=ENCODER, new_decoder_architecture=False, multi_query=True,
                       alibi=False, ffn_hidden_size=32),
    "MPT": Family("MptConfig", {"vocab_size": WORDS, "d_model": WIDTH, "n_layers": 2, "n_heads": 2, "max_seq_len": 32,
                                "expansion_ratio": 2}, _heads("Mpt", *_CAUSAL), tokens),
    "StableLM": _decoder("StableLm", partial_rotary_factor=0.5),
    "SmolLM3": _decoder("SmolLM3"),
    "OLMo": _decoder("Olmo"),
    "OLMo 2": _decoder("Olmo2"),
    "OLMo 3": _decoder("Olmo3", layer_types=["sliding_attention", "full_attention"], sliding_window=4),
    "OLMoE": _decoder("Olmoe", base=EXPERTS, num_experts=4),
    "Cohere": _decoder("Cohere"),
    "Cohere 2": _decoder("Cohere2", layer_types=["sliding_attention", "full_attention"], sliding_window=4),
    "Granite": _decoder("Granite"),
    "Granite-MoE": _decoder("GraniteMoe", num_local_experts=4, num_experts_per_tok=2),
    "StarCoder 2": _decoder("Starcoder2", sliding_window=None),
    "Persimmon": _decoder("Persimmon", base=ENCODER),
    "Nemotron": _decoder("Nemotron"),
    "GLM": _decoder("Glm", head_dim=8),
    "GLM-4": _decoder("Glm4", head_dim=8),
    "Helium": _decoder("Helium", head_dim=8),
    "Arcee": _decoder("Arcee"),
    "Seed-OSS": _decoder("SeedOss", head_dim=8),
    "EXAONE 4": _decoder("Exaone4", sliding_window=4, layer_types=["sliding_attention", "full_attention"]),
    "ERNIE 4.5": _decoder("Ernie4_5", head_dim=8),
    "Hunyuan": _decoder("HunYuanDenseV1", head_dim=8),
    "Ministral": _decoder("Ministral", head_dim=8, sliding_window=4),
    "Ministral 3": _decoder("Ministral3", head_dim=8),
    "Apertus": _decoder("Apertus"),
    "GPT-OSS": _decoder("GptOss", head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4,
                        layer_types=["sliding_attention", "full_attention"]),
    "DeepSeek-V3": _decoder("DeepseekV3", base=EXPERTS, n_routed_experts=4, n_group=1, topk_group=1, kv_lora_rank=8,
                            q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
                            first_k_dense_replace=1, num_key_value_heads=2),
    "LFM2": _decoder("Lfm2", layer_types=["conv", "full_attention"], block_auto_adjust_ff_dim=False),
    "Mamba": Family("MambaConfig", {**_ENDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4},
                    _heads("Mamba", *_CAUSAL), tokens),
    "Mamba 2": Family("Mamba2Config", {**_ENDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4,
                                       "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 4},
                      _heads("Mamba2", *_CAUSAL), tokens),
    "RWKV": Family("RwkvConfig", {**_ENDS, "hidden_size": WIDTH, "num_hidden_layers": 2, "attention_hidden_size": WIDTH,
                                  "intermediate_size": 32, "context_length": 32, "rescale_every": 1},
                   ("RwkvForCausalLM",), tokens, called=True),
    "RecurrentGemma": _decoder("RecurrentGemma", lru_width=WIDTH, attention_window_size=4, head_dim=8,
                               block_types=["recurrent", "attention"]),
    "EmbeddingGemma 2": _encoder("EmbeddingGemma2Text", "Model", num_key_value_heads=1, head_dim=8, embedding_dim=8,
                                 hidden_size_per_layer_input=8, sliding_window=4),
    "NanoChat": _decoder("NanoChat", num_key_value_heads=2),
    "CWM": _decoder("Cwm", head_dim=8),
    "MiniCPM3": _decoder("MiniCPM3", kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4,
                         v_head_dim=8, num_key_value_heads=2),
    "OLMo hybrid": _decoder("OlmoHybrid"),
    # images
    "ViT": _vision("ViT"),
    "DeiT": _vision("DeiT"),
    "BEiT": _vision("Beit", "Model", "ImageClassification", use_relative_position_bias=True),
    "DINOv2": _vision("Dinov2"),
    "DINOv2 with registers": _vision("Dinov2WithRegisters", "Model"),
    "DINOv3": _vision("DINOv3ViT", "Model", num_register_tokens=2),
    "DINOv3 ConvNeXt": Family("DINOv3ConvNextConfig",
                              {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "image_size": SIDE},
                              ("DINOv3ConvNextModel",), images),
    "I-JEPA": _vision("IJepa", "Model"),
    "ViT-MSN": _vision("ViTMSN", "Model"),
    "Swin": _vision("Swin", base=STAGES, embed_dim=8, num_heads=[2, 2], window_size=4, patch_size=4),
    "Swin v2": _vision("Swinv2", "Model", base=STAGES, embed_dim=8, num_heads=[2, 2], window_size=4, patch_size=4),
    "ConvNeXt": _vision("ConvNext", base=STAGES, hidden_sizes=[8, 16], num_stages=2),
    "ConvNeXt v2": _vision("ConvNextV2", "Model", base=STAGES, hidden_sizes=[8, 16], num_stages=2),
    "ResNet": _vision("ResNet", base=STAGES, embedding_size=8, hidden_sizes=[8, 16], layer_type="basic"),
    "RegNet": _vision("RegNet", "Model", base=STAGES, embedding_size=8, hidden_sizes=[8, 16], groups_width=8),
    "MobileNet v2": _vision("MobileNetV2", "Model", base={"image_size": SIDE, "depth_multiplier": 0.25}),
    "MobileViT": Family("MobileViTConfig",
                        {"image_size": 64, "patch_size": 2, "hidden_sizes": [16, 16, 16], "num_attention_heads": 2,
                         "neck_hidden_sizes": [8, 8, 8, 8, 16, 16, 16]},
                        ("MobileViTModel",), lambda: images(64)),
    "PoolFormer": _vision("PoolFormer", "Model", base={
        "depths": [1, 1], "hidden_sizes": [8, 16], "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2],
        "padding": [2, 1]}),
    "SegFormer": Family("SegformerConfig",
                        {"depths": [1, 1], "hidden_sizes": [8, 16], "num_encoder_blocks": 2, "sr_ratios": [2, 1],
                         "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2],
                         "mlp_ratios": [2, 2], "decoder_hidden_size": 8},
                        ("SegformerModel", "SegformerForSemanticSegmentation"), images),
    "DPT": Family("DPTConfig",
                  {**VISION, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3], "is_hybrid": False,
                   "neck_hidden_sizes": [8, 8, 8, 8], "fusion_hidden_size": 8, "reassemble_factors": [4, 2, 1, 0.5]},
                  ("DPTForDepthEstimation",), images),
    "CLIP vision": Family("CLIPVisionConfig", VISION, ("CLIPVisionModel", "CLIPVisionModelWithProjection"), images),
    "CLIP text": Family("CLIPTextConfig", TEXT_TOWER, ("CLIPTextModel", "CLIPTextModelWithProjection"), tokens),
    "CLIP": Family("CLIPConfig", {"text_config": TEXT_TOWER, "vision_config": VISION, "projection_dim": 8},
                   ("CLIPModel",), captioned),
    "SigLIP vision": Family("SiglipVisionConfig", VISION, ("SiglipVisionModel",), images),
    "SigLIP text": Family("SiglipTextConfig", TEXT_TOWER, ("SiglipTextModel",), tokens),
    "SigLIP 2 text": Family("Siglip2TextConfig", TEXT_TOWER, ("Siglip2TextModel",), tokens),
    "SigLIP 2 vision": Family(
        "Siglip2VisionConfig", {**VISION, "num_patches": 16},
        ("Siglip2VisionModel",),
        lambda: {"pixel_values": torch.randn(1, 12, 192, generator=_random()),
                 "pixel_attention_mask": torch.ones(1, 12, dtype=torch.int64),
                 "spatial_shapes": torch.tensor([[4, 3]])},
    ),
    "BLIP vision": Family("BlipVisionConfig", VISION, ("BlipVisionModel",), images),
    "ChineseCLIP text": Family("ChineseCLIPTextConfig", ENCODER, ("ChineseCLIPTextModel",), padded),
    "AIMv2": Family("Aimv2VisionConfig", VISION, ("Aimv2VisionModel",), images),
    "ViLT": Family("ViltConfig", {**ENCODER, "image_size": SIDE, "patch_size": 8}, ("ViltModel",),
                   lambda: {**captioned(), "pixel_mask": torch.ones(BATCH, SIDE, SIDE, dtype=torch.int64)}),
    "YOLOS": Family("YolosConfig", {**VISION, "image_size": [SIDE, SIDE], "num_detection_tokens": 4},
                    ("YolosForObjectDetection",), images),
    "DETR": Family("DetrConfig",
                   {**WIDE, "num_queries": 4, "use_timm_backbone": False, "use_pretrained_backbone": False,
                    "num_labels": 3},
                   ("DetrForObjectDetection",), images),
    # sound and series
    "Whisper": Family("WhisperConfig",
                      {**_ENDS, **WIDE, "num_mel_bins": 8, "max_source_positions": 8, "max_target_positions": 16,
                       "decoder_start_token_id": 1},
                      ("WhisperModel", "WhisperForConditionalGeneration"),
                      lambda: {**spectrogram()(), "decoder_input_ids": words(4)[:1]}),
    "Wav2Vec2": _speech("Wav2Vec2", "Model", "CTC", "SequenceClassification"),
    "HuBERT": _speech("Hubert"),
    "WavLM": _speech("WavLM", "Model"),
    "UniSpeech": _speech("UniSpeech", "Model"),
    "Data2Vec audio": _speech("Data2VecAudio", "Model"),
    "AST": Family("ASTConfig", {**VISION, "max_length": 16, "num_mel_bins": 16, "patch_size": 8, "frequency_stride": 8,
                                "time_stride": 8},
                  ("ASTModel", "ASTForAudioClassification"), spectrogram("input_values", (1, 16, 16))),
    "PatchTST": Family("PatchTSTConfig",
                       {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4,
                        "num_hidden_layers": 1, "d_model": WIDTH, "num_attention_heads": 2, "ffn_dim": 32,
                        "prediction_length": 4},
                       ("PatchTSTModel", "PatchTSTForPrediction"), spectrogram("past_values", (2, 16, 2))),
    "PatchTSMixer": Family("PatchTSMixerConfig",
                           {"num_input_channels": 2, "context_length": 16, "patch_length": 4, "patch_stride": 4,
                            "num_layers": 1, "d_model": 8, "prediction_length": 4},
                           ("PatchTSMixerModel", "PatchTSMixerForPrediction"),
                           spectrogram("past_values", (2, 16, 2))),
    "TimesFM 2.5": Family("TimesFm2_5Config",
                          {**DECODER, "patch_length": 4, "context_length": 16, "horizon_length": 4, "head_dim": 8,
                           "output_quantile_len": 4},
                          ("TimesFm2_5ModelForPrediction",), spectrogram("past_values", (2, 16))),
    "TimesFM": Family("TimesFmConfig",
                      {**ENCODER, "patch_length": 4, "context_length": 16, "horizon_length": 4, "head_dim": 8},
                      ("TimesFmModelForPrediction",), spectrogram("past_values", (2, 16))),
}  # fmt: skip


TORCHVISION = {
    "ResNet": ("resnet18", 32), "ResNeXt": ("resnext50_32x4d", 32),
    "SqueezeNet": ("squeezenet1_1", 32), "DenseNet": ("densenet121", 32), "ShuffleNet v2": ("shufflenet_v2_x0_5", 32),
    "MobileNet v2": ("mobilenet_v2", 32), "MobileNet v3": ("mobilenet_v3_small", 32),
    "MNASNet": ("mnasnet0_5", 32), "EfficientNet": ("efficientnet_b0", 32), "RegNet": ("regnet_y_400mf", 32),
    "ConvNeXt": ("convnext_tiny", 32),
}  # fmt: skip
"""Functions of torchvision.models, and the side of the image that each is given."""

_SMALL = {"img_size": SIDE, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2, "num_classes": 3}
TIMM: dict[str, tuple[str, Mapping[str, Any]]] = {
    "ViT": ("vit_tiny_patch16_224", _SMALL),
    "DeiT 3": ("deit3_small_patch16_224", _SMALL),
    "EVA-02": ("eva02_tiny_patch14_224", _SMALL),
    "CaiT": ("cait_xxs24_224", _SMALL),
    "Swin": ("swin_tiny_patch4_window7_224", {"img_size": SIDE, "window_size": 4, "embed_dim": 8, "depths": (1, 1),
                                              "num_heads": (2, 2), "num_classes": 3}),
    "ConvNeXt": ("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16), "num_classes": 3}),
    "ResNet": ("resnet10t", {"num_classes": 3}),
    "EfficientNet": ("tf_efficientnet_lite0", {"num_classes": 3}),
    "MobileNet v4": ("mobilenetv4_conv_small_035", {"num_classes": 3}),
    "GhostNet": ("ghostnet_050", {"num_classes": 3}),
    "LeViT": ("levit_128s", {"img_size": 64, "num_classes": 3}),
    "PVT v2": ("pvt_v2_b0", {"num_classes": 3}),
    "RepVGG": ("repvgg_a0", {"num_classes": 3}),
}  # fmt: skip
"""Names of timm, and the arguments of `create_model`."""

PEFT: dict[str, Mapping[str, Any]] = {
    "LoraConfig": {"r": 2}, "IA3Config": {"feedforward_modules": ["down_proj"]}, "LoHaConfig": {"r": 2}, "OFTConfig": {"oft_block_size": 4},
}  # fmt: skip
"""Configurations of peft for two matrices of each layer of a Llama."""


# ---- making them
def noisy(model: nn.Module, largest: int = 2) -> nn.Module:
    """Adds noise to all weights with at most this many dimensions, but those of a backbone of usual size."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim <= largest and weight.numel() <= 4096:
                weight += NOISE * torch.randn(weight.shape, generator=generator)
    return model.eval()


DENSE = ("Mixtral", "Qwen2-MoE", "Qwen3-MoE", "OLMoE", "Granite-MoE", "GPT-OSS", "DeepSeek-V3")
"""Architectures that compute a token with some of their experts."""

Make = Callable[[], tuple[nn.Module, Inputs]]


def of_transformers(architecture: str, name: str) -> tuple[nn.Module, Inputs]:
    """A model of transformers and what it is given."""
    library, family = _library("transformers"), TRANSFORMERS[architecture]
    torch.manual_seed(10)
    model = getattr(library, name)(getattr(library, family.config)(**family.sizes))
    model, given = noisy(model, 4), family.inputs.get(name, family.made)()
    if family.called:
        with torch.no_grad():
            model(**given)
    return model, given


def of_experts(architecture: str, name: str) -> tuple[nn.Module, Inputs]:
    """The same with every expert computed."""
    model, given = of_transformers(architecture, name)
    return dense_moe(model), given


def of_torchvision(name: str, side: int) -> tuple[nn.Module, Inputs]:
    """A model of torchvision of its usual size, and a small image."""
    torch.manual_seed(10)
    return noisy(getattr(_library("torchvision").models, name)(), 1), {"x": images(side)["pixel_values"]}


def of_timm(name: str, sizes: Mapping[str, Any]) -> tuple[nn.Module, Inputs]:
    """A model of timm and an image."""
    torch.manual_seed(10)
    model = _library("timm").create_model(name, **sizes)
    return noisy(model, 1), {"x": images(sizes.get("img_size", SIDE))["pixel_values"]}


def of_peft(config: str) -> tuple[nn.Module, Inputs]:
    """A Llama whose layers have been given more by peft, and tokens."""
    model, given = of_transformers("Llama", "LlamaForCausalLM")
    library = _library("peft")
    made = getattr(library, config)(target_modules=["q_proj", "down_proj"], **PEFT[config])
    return noisy(library.get_peft_model(model, made), 4), given


def _library(name: str) -> Any:
    return importlib.import_module(name)


def models() -> Iterator[tuple[str, str, str, Make]]:
    """(library, architecture, class, how it is made) of what the installed libraries have."""
    for architecture, family in TRANSFORMERS.items():
        for name in family.classes:
            if hasattr(_library("transformers"), name):
                yield "transformers", architecture, name, partial(of_transformers, architecture, name)
                if architecture in DENSE:
                    yield "transformers", architecture, f"dense_moe({name})", partial(of_experts, architecture, name)
    if find_spec("torchvision"):
        for architecture, (name, side) in TORCHVISION.items():
            yield "torchvision", architecture, name, partial(of_torchvision, name, side)
    if find_spec("timm"):
        for architecture, (name, sizes) in TIMM.items():
            yield "timm", architecture, name, partial(of_timm, name, sizes)
    if find_spec("peft"):
        for config in PEFT:
            yield "peft", "Llama", config, partial(of_peft, config)
