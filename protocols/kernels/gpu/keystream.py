"""ChaCha20 key streams in Triton: a lane makes a block of 64 bytes, and combines it with what is there.

Several tensors are one launch. A table says of each where it is, how long, and which stream; programs find their row by
their number. Memory is read and written in words of 64 bits; narrower lanes are added side by side in them.
"""

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from protocols.devices import to_device
from protocols.kernels.gpu.launch import on_device

LANES = 128
"""Blocks of a program."""
WARPS = 4
_MODES = {"set": 0, "add": 1, "sub": 2, "xor": 3}
_COLUMNS = 8
_TOPS = {1: 0x8080808080808080, 2: 0x8000800080008000, 4: 0x8000000080000000, 8: 0x8000000000000000}
"""By bytes of a lane, the highest bit of each."""


@triton.jit
def _rotated(x, bits: tl.constexpr):
    return (x << bits) | (x >> (32 - bits))


@triton.jit
def _quarter(a, b, c, d):
    a = a + b
    d = _rotated(d ^ a, 16)
    c = c + d
    b = _rotated(b ^ c, 12)
    a = a + b
    d = _rotated(d ^ a, 8)
    c = c + d
    b = _rotated(b ^ c, 7)
    return a, b, c, d


@triton.jit
def _word(table, at):
    return tl.load(table + at).to(tl.uint32)


@triton.jit
def _pair(low, high):
    return low.to(tl.int64) | (high.to(tl.int64) << 32)


@triton.jit
def stream_kernel(rows, table, key, COLUMNS: tl.constexpr, LANES: tl.constexpr):
    """rows: int32, of each program its row of `table`: address, words, mode, top bits of lanes, first block, first program, nonce
    in two words; `key`: int64[8], words of 32 bits."""
    program = tl.program_id(0)
    row = table + tl.load(rows + program) * COLUMNS
    words, mode, tops = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    first, start, nonce, last = tl.load(row + 4), tl.load(row + 5), tl.load(row + 6), tl.load(row + 7)
    block = (program - start) * LANES + tl.arange(0, LANES)
    counter = (first + block).to(tl.uint32)
    zero = counter * 0
    k0, k1, k2, k3 = zero + _word(key, 0), zero + _word(key, 1), zero + _word(key, 2), zero + _word(key, 3)
    k4, k5, k6, k7 = zero + _word(key, 4), zero + _word(key, 5), zero + _word(key, 6), zero + _word(key, 7)
    n0, n1, n2 = zero + nonce.to(tl.uint32), zero + (nonce >> 32).to(tl.uint32), zero + last.to(tl.uint32)
    c0, c1, c2, c3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    a0, a1, a2, a3, a4, a5, a6, a7 = c0, c1, c2, c3, k0, k1, k2, k3
    b0, b1, b2, b3, b4, b5, b6, b7 = k4, k5, k6, k7, counter, n0, n1, n2
    for _ in range(10):
        a0, a4, b0, b4 = _quarter(a0, a4, b0, b4)
        a1, a5, b1, b5 = _quarter(a1, a5, b1, b5)
        a2, a6, b2, b6 = _quarter(a2, a6, b2, b6)
        a3, a7, b3, b7 = _quarter(a3, a7, b3, b7)
        a0, a5, b2, b7 = _quarter(a0, a5, b2, b7)
        a1, a6, b3, b4 = _quarter(a1, a6, b3, b4)
        a2, a7, b0, b5 = _quarter(a2, a7, b0, b5)
        a3, a4, b1, b6 = _quarter(a3, a4, b1, b6)
    v0, v1 = _pair(a0 + c0, a1 + c1), _pair(a2 + c2, a3 + c3)
    v2, v3 = _pair(a4 + k0, a5 + k1), _pair(a6 + k2, a7 + k3)
    v4, v5 = _pair(b0 + k4, b1 + k5), _pair(b2 + k6, b3 + k7)
    v6, v7 = _pair(b4 + counter, b5 + n0), _pair(b6 + n1, b7 + n2)
    even, odd = tl.join(tl.join(v0, v4), tl.join(v2, v6)), tl.join(tl.join(v1, v5), tl.join(v3, v7))
    stream = tl.reshape(tl.join(even, odd), (LANES, 8))
    at = block[:, None] * 8 + tl.arange(0, 8)[None, :]
    out = tl.load(row).to(tl.pointer_type(tl.int64)) + at
    there = tl.load(out, mask=(at < words) & (mode != 0), other=0)
    rest = ~tops
    plus = ((there & rest) + (stream & rest)) ^ ((there ^ stream) & tops)
    minus = ((there | tops) - (stream & rest)) ^ ((there ^ ~stream) & tops)
    made = tl.where(mode == 1, plus, tl.where(mode == 2, minus, there ^ stream))
    tl.store(out, made, mask=at < words)


def _aligned(out: Tensor) -> Tensor:
    """The tensor as words of 64 bits, or new words with its bytes where it has odd ends."""
    raw = out.view(-1).view(torch.uint8)
    if raw.numel() % 8 == 0 and raw.data_ptr() % 8 == 0:
        return raw.view(torch.int64)
    copy = raw.new_zeros(-(-raw.numel() // 8) * 8)
    copy[: raw.numel()] = raw
    return copy.view(torch.int64)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _combined(outs: Sequence[Tensor], key: bytes, nonces: bytes, modes: Sequence[str], offset: int) -> None:
    outs_now, device = [_aligned(out) for out in outs], outs[0].device
    programs = [-(-words.numel() // (8 * LANES)) for words in outs_now]
    starts = np.concatenate([[0], np.cumsum(programs)])
    table = np.zeros((len(outs), _COLUMNS), np.int64)
    for row, (out, words, mode, start) in enumerate(zip(outs, outs_now, modes, starts, strict=False)):
        table[row, :6] = (
            words.data_ptr(), words.numel(), _MODES[mode], _signed(_TOPS.get(out.element_size(), 0)), offset, start
        )  # fmt: skip
    fields = np.frombuffer(nonces, np.uint32).reshape(-1, 3).astype(np.uint64)
    table[:, 6] = (fields[:, 0] | fields[:, 1] << np.uint64(32)).view(np.int64)
    table[:, 7] = fields[:, 2].view(np.int64)
    rows = np.repeat(np.arange(len(outs), dtype=np.int32), programs)
    words_of_key = np.frombuffer(key, np.uint32).astype(np.int64)
    if not len(rows):
        return
    together = np.concatenate([table.reshape(-1), words_of_key, np.pad(rows, (0, len(rows) % 2)).view(np.int64)])
    given, at = to_device(torch.from_numpy(together), device), table.size
    with on_device(device):
        stream_kernel[(len(rows),)](
            given[at + len(words_of_key) :].view(torch.int32), given, given[at:], COLUMNS=_COLUMNS, LANES=LANES,
            num_warps=WARPS,
        )  # fmt: skip
    for out, words in zip(outs, outs_now, strict=True):
        raw = out.view(-1).view(torch.uint8)
        if words.data_ptr() != raw.data_ptr():
            raw.copy_(words.view(torch.uint8)[: raw.numel()])


def chacha20(out: Tensor, key: bytes, nonce: bytes, mode: str = "set", offset: int = 0) -> Tensor:
    """Combine the key stream into `out`, in place."""
    _combined([out], key, nonce, [mode], offset)
    return out


def chacha20_many(outs: Sequence[Tensor], key: bytes, nonces: bytes, modes: Sequence[str]) -> None:
    """Combine the key stream of each nonce into the tensor in its place."""
    _combined(outs, key, nonces, modes, 0)
