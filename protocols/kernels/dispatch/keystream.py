"""ChaCha20 key streams, as they are called."""

from collections.abc import Sequence

import torch
from torch import Tensor

from protocols.kernels.variant import kernels_for

_MODES = ("set", "add", "sub", "xor")
_STREAM_BYTES = 64 << 32
_LANES = (torch.int64, torch.int32, torch.int16, torch.uint8)


def chacha20(out: Tensor, key: bytes, nonce: bytes, mode: str = "set", offset: int = 0) -> Tensor:
    """Combine a ChaCha20 key stream into a tensor, in place, and return it.

    out: contiguous; its bytes are taken in little-endian order. key: 32 bytes. nonce: 12 bytes. offset: the first
    64-byte block of the stream to use. mode: "set" and "xor" work on any dtype but bool, "add" and "sub" wrap around
    on int64, int32, int16 or uint8 lanes. ValueError also when the stream would pass its 2^32 blocks.
    (RFC 8439, section 2.4)
    """
    if len(key) != 32 or len(nonce) != 12:
        raise ValueError(f"chacha20: key and nonce must have 32 and 12 bytes, not {len(key)} and {len(nonce)}")
    _streamable(out, mode)
    size = out.numel() * out.element_size()
    if not 0 <= offset <= (1 << 32) - (size + 63) // 64:
        raise ValueError(
            f"chacha20: {size} bytes from block {offset} on do not fit in one stream of 2^32 blocks (256 GiB); "
            "continue under another nonce"
        )
    return kernels_for(out).chacha20(out, key, nonce, mode, offset)


def _streamable(out: Tensor, mode: str) -> None:
    """TypeError or ValueError unless a key stream can be combined into a tensor in this mode."""
    if mode not in _MODES:
        raise ValueError(f"chacha20: mode must be one of {', '.join(_MODES)}, not {mode!r}")
    if not out.is_contiguous():
        raise ValueError(f"chacha20: out must be contiguous, but has shape {tuple(out.shape)}, strides {out.stride()}")
    if out.dtype not in _LANES:
        if mode in ("add", "sub"):
            raise TypeError(f"chacha20: {mode!r} works on int64, int32, int16 and uint8, not on {out.dtype}")
        if out.dtype is torch.bool:
            raise TypeError(
                "chacha20: a bool tensor cannot hold random bytes; fill a uint8 tensor and take its low bits"
            )


def chacha20_many(outs: Sequence[Tensor], key: bytes, nonces: bytes, modes: Sequence[str]) -> None:
    """`chacha20` from block 0 on for several tensors, each with a nonce of its own and a mode, in one call.

    nonces: 12 bytes for each tensor, one after the other. No tensor may have more than 256 GiB.
    """
    if len(key) != 32 or not len(nonces) == 12 * len(outs) == 12 * len(modes):
        raise ValueError(
            f"chacha20_many: a key of 32 bytes, and for each of {len(outs)} tensors a mode and a nonce of 12 bytes; not "
            f"{len(key)}, {len(modes)} and {len(nonces)}"
        )
    for out, mode in zip(outs, modes, strict=True):
        if out.dtype is not torch.int64 or mode not in _MODES or not out.is_contiguous():
            _streamable(out, mode)
        if out.nbytes > _STREAM_BYTES:
            raise ValueError("chacha20_many: a tensor has more bytes than the 2^32 blocks of a stream (256 GiB)")
    if outs:
        kernels_for(*outs).chacha20_many(outs, key, nonces, modes)
