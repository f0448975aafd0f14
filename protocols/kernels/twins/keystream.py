"""The ChaCha20 key stream in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

_CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k", RFC 8439 section 2.3


def _signed32(value: int) -> int:
    return value - (1 << 32) if value >> 31 else value


def _rotate(x: Tensor, bits: int) -> Tensor:
    return (x << bits) | ((x >> (32 - bits)) & ((1 << bits) - 1))


def _quarter_round(s: list[Tensor], a: int, b: int, c: int, d: int) -> None:
    for x, y, z, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
        s[x] = s[x] + s[y]
        s[z] = _rotate(s[z] ^ s[x], bits)


def keystream(size: int, key: bytes, nonce: bytes, offset: int, device: torch.device) -> Tensor:
    """The first `size` key stream bytes from 64-byte block `offset` on, uint8[size] (RFC 8439, section 2.4)."""
    blocks = -(-size // 64)
    words = [int.from_bytes((key + nonce)[i : i + 4], "little") for i in range(0, 44, 4)]
    counter = torch.arange(offset, offset + blocks, device=device).to(torch.int32)
    start = [torch.full_like(counter, _signed32(v)) for v in (*_CONSTANTS, *words[:8])] + [counter]
    start += [torch.full_like(counter, _signed32(v)) for v in words[8:]]
    state = list(start)
    for _ in range(10):
        for a, b, c, d in ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15)):
            _quarter_round(state, a, b, c, d)
        for a, b, c, d in ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14)):
            _quarter_round(state, a, b, c, d)
    stream = torch.stack([x + y for x, y in zip(state, start)], dim=1)
    return stream.view(torch.uint8).reshape(-1)[:size]


def chacha20(out: Tensor, key: bytes, nonce: bytes, mode: str = "set", offset: int = 0) -> Tensor:
    """Combine the key stream into `out`, in place."""
    if out.numel() == 0:
        return out
    flat = out.view(-1)
    stream = keystream(out.numel() * out.element_size(), key, nonce, offset, out.device)
    if mode in ("set", "xor"):
        raw = flat.view(torch.uint8)
        raw.copy_(stream if mode == "set" else raw ^ stream)
    else:
        lanes = stream.clone().view(out.dtype)
        flat.add_(lanes) if mode == "add" else flat.sub_(lanes)
    return out


def chacha20_many(outs: Sequence[Tensor], key: bytes, nonces: bytes, modes: Sequence[str]) -> None:
    """Combine the key stream of each nonce into the tensor in its place."""
    for at, (out, mode) in enumerate(zip(outs, modes, strict=True)):
        chacha20(out, key, nonces[12 * at : 12 * at + 12], mode)
