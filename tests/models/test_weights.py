"""Packed weights are the numbers they mean: hand-made files of each layout, and those that packages write."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization import (
    Float8WeightOnlyConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    quantize_,
)

import securemodel
from securemodel.errors import CompileError, InputError
from securemodel.models import dequantized, read_weights
from securemodel.models.packings import from_words

X = torch.randn(2, 64, generator=torch.Generator().manual_seed(5))


def packed(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """Words of whole numbers along the last axis, made bit by bit."""
    rows = []
    for row in numbers.tolist():
        whole = sum(int(x) << (i * bits) for i, x in enumerate(row))
        count = -(-len(row) * bits // 32)
        words = [(whole >> (32 * i)) & 0xFFFFFFFF for i in range(count)]
        rows.append([w - (1 << 32) if w >> 31 else w for w in words])
    return torch.tensor(rows, dtype=torch.int32)


def drawn(*shape: int, below: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))


def scales(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(9)) + 0.5


def written(folder, tensors: dict, config: dict | None = None):
    save_file(
        {name: t.clone(memory_format=torch.contiguous_format) for name, t in tensors.items()},
        folder / "model.safetensors",
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return read_weights(folder)


@given(st.integers(1, 8), st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_whole_numbers_out_of_words(bits, numbers):
    wanted = torch.tensor([[x % (1 << bits) for x in numbers]])
    assert torch.equal(from_words(packed(wanted, bits), bits, len(numbers)), wanted.int())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
def test_gptq(tmp_path, bits, version):
    n, k, groups = 32, 64, 4
    q, z = drawn(n, k, below=1 << bits), drawn(groups, n, below=1 << bits, seed=2)
    z[0, :4] = torch.tensor([0, 1, (1 << bits) - 1, 0])
    scale, group = scales(groups, n), drawn(k, below=groups, seed=3).int()
    stored = packed(z, bits)
    if version == "gptq":  # less 1, whole words at a time
        ones = sum(1 << start for start in range(0, 32, bits))
        stored = ((stored.long() - ones) & 0xFFFFFFFF).to(torch.int64)
        stored = torch.where(stored >> 31 == 1, stored - (1 << 32), stored).int()
    tensors = {"l.qweight": packed(q, bits).T, "l.qzeros": stored, "l.scales": scale, "l.g_idx": group}
    made = written(tmp_path, tensors | {"l.bias": scale[0]}, {"quantization_config": {"checkpoint_format": version}})
    assert set(made) == {"l.weight", "l.bias"}
    assert torch.equal(made["l.weight"], (q - z.T[:, group.long()]) * scale.T[:, group.long()])


def test_zero_points_of_gptq_carry_from_one_to_the_next():
    word = torch.tensor([[(0x05EFE73F + 0x11111111) & 0xFFFFFFFF]])
    assert from_words(word, 4, 8).tolist() == [[0, 5, 8, 15, 0, 0, 7, 1]]


def test_awq(tmp_path):
    n, k, groups = 16, 32, 2
    q, z, scale = drawn(k, n, below=16), drawn(groups, n, below=16, seed=2), scales(groups, n)
    mixed = [0, 2, 4, 6, 1, 3, 5, 7]  # the column that each four bits of a word hold
    order = [8 * word + column for word in range(n // 8) for column in mixed]
    tensors = {"l.qweight": packed(q[:, order], 4), "l.qzeros": packed(z[:, order], 4), "l.scales": scale}
    group = torch.arange(k) // 16
    assert torch.equal(written(tmp_path, tensors)["l.weight"], ((q - z[group]) * scale[group]).T)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("zeros", [False, True])
def test_words_of_compressed_tensors(tmp_path, bits, zeros):
    n, k, groups, half = 32, 40, 5, 1 << (bits - 1)
    q, z, scale = drawn(n, k, below=1 << bits), drawn(n, groups, below=1 << bits, seed=2), scales(n, groups)
    tensors = {"l.weight_packed": packed(q, bits), "l.weight_scale": scale, "l.weight_shape": torch.tensor([n, k])}
    if zeros:
        tensors["l.weight_zero_point"] = packed(z.T, bits).T
    group = torch.arange(k) // 8
    wanted = (q - (z[:, group] if zeros else half)) * scale[:, group]
    assert torch.equal(written(tmp_path, tensors)["l.weight"], wanted)


def test_whole_numbers_of_8_bits(tmp_path):
    q = drawn(8, 16, below=256).sub(128).to(torch.int8)
    by_row = {"a.weight": q, "a.weight_scale": scales(8, 1)}
    in_all = {
        "b.weight": q,
        "b.weight_scale": torch.tensor([0.5]),
        "b.weight_zero_point": torch.tensor([3]).to(torch.int8),
    }
    made = written(tmp_path, by_row | in_all | {"ids": q})
    assert torch.equal(made["a.weight"], q.float() * scales(8, 1))
    assert torch.equal(made["b.weight"], (q.float() - 3) * 0.5)
    assert torch.equal(made["ids"], q), "what has no scale stays as it is"


def test_floats_of_8_bits(tmp_path):
    w = (torch.randn(200, 300, generator=torch.Generator().manual_seed(0)) * 100).to(torch.float8_e4m3fn)
    scale = scales(2, 3)
    block = scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :300]
    tensors = {
        "a.weight": w, "a.weight_scale_inv": scale, "b.weight": w, "b.weight_scale": torch.tensor(0.25),
        "b.input_scale": torch.tensor(3.0), "c.weight": w, "c.norm": torch.ones(3, dtype=torch.bfloat16),
    }  # fmt: skip
    made = written(tmp_path, tensors)
    assert torch.equal(made["a.weight"], w.float() * block), "the inverse is a name only: it multiplies"
    assert torch.equal(made["b.weight"], w.float() * 0.25) and "b.input_scale" not in made
    assert torch.equal(made["c.weight"], w.float()) and made["c.norm"].dtype == torch.bfloat16
    config = {"quantization_config": {"config_groups": {"g": {"weights": {"block_structure": [100, 150]}}}}}
    scale = scales(2, 2)
    made = written(tmp_path, {"a.weight": w, "a.weight_scale": scale}, config)
    wanted = w.float() * scale.repeat_interleave(100, 0).repeat_interleave(150, 1)
    assert torch.equal(made["a.weight"], wanted)


def test_floats_of_4_bits(tmp_path):
    q = drawn(4, 16, below=256).to(torch.uint8)
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])
    numbers = torch.stack([table[(q & 15).long()], table[(q >> 4).long()]], -1).flatten(1)
    small = scales(4, 2).to(torch.float8_e4m3fn)
    powers = drawn(4, 1, below=9).add(123).to(torch.uint8)
    made = written(tmp_path, {
        "a.weight_packed": q, "a.weight_scale": small, "a.weight_global_scale": torch.tensor([4.0]),
        "b.weight_packed": q, "b.weight_scale": powers,
        "c.weight": q, "c.weight_scale": small, "c.weight_scale_2": torch.tensor(0.5),
    })  # fmt: skip
    sixteen = small.float().repeat_interleave(16, 1)
    assert torch.equal(made["a.weight"], numbers * sixteen / 4)
    assert torch.equal(made["b.weight"], numbers * torch.exp2(powers.float() - 127))
    assert torch.equal(made["c.weight"], numbers * sixteen * 0.5)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"l.qweight": torch.zeros(4, 8).int()}, "no scales beside it"),
        ({"l.qweight": torch.zeros(4, 8).int(), "l.qzeros": torch.zeros(1, 3).int(), "l.scales": torch.ones(1, 8)}, "GPTQ with"),
        ({"l.qweight": torch.zeros(4, 3).int(), "l.qzeros": torch.zeros(1, 3).int(), "l.scales": torch.ones(1, 8)}, "AWQ with"),
        ({"l.weight": torch.zeros(4, 8).char(), "l.weight_scale": torch.ones(4, 3)}, "scales [4, 3]"),
        ({"l.weight": torch.zeros(4, 8).char(), "l.weight_scale": torch.tensor(float("nan"))}, "NaN"),
        ({"l.weight": torch.zeros(4, 8).to(torch.float8_e4m3fn), "l.weight_scale_inv": torch.ones(2, 2)}, "blocks of 128"),
        ({"l.weight_packed": torch.zeros(4, 3).int(), "l.weight_scale": torch.ones(4, 1),
          "l.weight_shape": torch.tensor([5, 24])}, "words [4, 3]"),
        ({"l.gate_blocks": torch.zeros(4, 3).byte()}, "packed in a way that is not read"),
    ],
)  # fmt: skip
def test_layouts_that_are_not_read_are_refused(tmp_path, tensors, words):
    with pytest.raises(InputError) as error:
        written(tmp_path, tensors)
    assert words in str(error.value) and "l" in str(error.value)


def test_files_that_are_not_there_or_lead_elsewhere(tmp_path):
    for path in (tmp_path / "no.safetensors", tmp_path / "a.bin", tmp_path / "no.gguf", tmp_path):
        with pytest.raises(InputError):
            read_weights(path)
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match=r"broken\.safetensors"):
        read_weights(tmp_path / "broken.safetensors")
    index = {"weight_map": {"a": "../elsewhere.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="elsewhere"):
        read_weights(tmp_path)


def test_files_of_an_index(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(2)}, tmp_path / "2.safetensors")
    index = {"weight_map": {"a": "1.safetensors", "b": "2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert list(read_weights(tmp_path)) == ["a", "b"]


def test_gguf(tmp_path):
    numbers = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    kinds = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "test")
    writer.add_tensor("whole", np.arange(6).reshape(2, 3).astype(np.int32))
    writer.add_tensor("wide", numbers.astype(np.float64))
    writer.add_tensor("plain", numbers)
    for kind in ("BF16", "Q8_0", "Q4_0"):
        made = gguf.quantize(numbers, kinds[kind])
        writer.add_tensor(kind, made, raw_dtype=kinds[kind])
    scale = np.array([0x38, 0x40, 0x48, 0x30], dtype=np.uint8)  # 1, 2, 4, 1/2 in half of their size
    block = np.concatenate([scale, np.arange(32, dtype=np.uint8)])[None]
    writer.add_tensor("NVFP4", block, raw_dtype=kinds.NVFP4)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file, writer.close):
        step()
    made = read_weights(tmp_path / "m.gguf")
    assert made["whole"].tolist() == [[0, 1, 2], [3, 4, 5]] and made["wide"].dtype == torch.float64
    assert torch.equal(made["plain"], torch.from_numpy(numbers))
    assert torch.equal(made["BF16"], torch.from_numpy(numbers).bfloat16().float())
    for kind, bound in (("Q8_0", 0.02), ("Q4_0", 0.4)):
        assert made[kind].shape == (4, 64) and float((made[kind] - torch.from_numpy(numbers)).abs().max()) < bound
    low = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6]) * float(made["NVFP4"][0, 1] / 0.5)
    assert torch.equal(made["NVFP4"][0, :8], low), "the low halves of a group's bytes are its first eight numbers"


@pytest.mark.parametrize("config", [Int8WeightOnlyConfig(version=2), Float8WeightOnlyConfig()])
def test_models_and_files_of_torchao(tmp_path, config):
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    quantize_(model, config)
    tensors, about = flatten_tensor_state_dict(model.state_dict())
    save_file(tensors, tmp_path / "m.safetensors", metadata=about)
    with pytest.raises(CompileError, match=r"securemodel\.models\.dequantized"):
        securemodel.compile(model, X, weights="bank", inputs="hospital", outputs="all")
    plain = dequantized(model)
    read = read_weights(tmp_path / "m.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in plain.state_dict().items()) and len(read) == 4
    with securemodel.local(securemodel.compile(plain, X, weights="bank", inputs="hospital", outputs="all")) as session:
        assert float((session.run(X) - model(X)).abs().max()) < 2e-4


def test_layers_that_round_their_inputs_are_named():
    model = nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 4))
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    with pytest.warns(UserWarning, match=r"0\.weight and 1 more round their inputs"):
        plain = dequantized(model)
    assert float((plain(X) - model(X)).abs().max()) < 0.05
