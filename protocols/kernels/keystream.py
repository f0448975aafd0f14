"""ChaCha20 key stream written over, added to, subtracted from or XORed into a tensor."""

import torch
from torch import Tensor

from protocols.kernels import twins
from protocols.kernels.variant import native

_MODES = {"set": 0, "add": 1, "sub": 2, "xor": 3}
_LANES = (torch.int64, torch.int32, torch.int16, torch.uint8)


def chacha20(out: Tensor, key: bytes, nonce: bytes, mode: str = "set", offset: int = 0) -> Tensor:
    """Combine a ChaCha20 key stream into a tensor, in place, and return it.

    out: contiguous; its bytes are taken in little-endian order. key: 32 bytes. nonce: 12 bytes. offset: the first
    64-byte block of the stream to use. mode: "set" and "xor" work on any dtype but bool, "add" and "sub" wrap around
    on int64, int32, int16 or uint8 lanes. Raises TypeError or ValueError for anything else, and ValueError
    when the stream would pass its 2^32 blocks. (RFC 8439, section 2.4)
    """
    if mode not in _MODES:
        raise ValueError(f"chacha20: mode must be one of {', '.join(_MODES)}, not {mode!r}")
    if len(key) != 32 or len(nonce) != 12:
        raise ValueError(f"chacha20: key and nonce must have 32 and 12 bytes, not {len(key)} and {len(nonce)}")
    if not out.is_contiguous():
        raise ValueError(f"chacha20: out must be contiguous, but has shape {tuple(out.shape)}, strides {out.stride()}")
    if out.dtype not in _LANES:
        if mode in ("add", "sub"):
            raise TypeError(f"chacha20: {mode!r} works on int64, int32, int16 and uint8, not on {out.dtype}")
        if out.dtype is torch.bool:
            raise TypeError(
                "chacha20: a bool tensor cannot hold random bytes; fill a uint8 tensor and take its low bits"
            )
    size = out.numel() * out.element_size()
    if not 0 <= offset <= (1 << 32) - (size + 63) // 64:
        raise ValueError(
            f"chacha20: {size} bytes from block {offset} on do not fit in one stream of 2^32 blocks (256 GiB); "
            "continue under another nonce"
        )
    kernels = native(out)
    if kernels is None:
        return twins.chacha20(out, key, nonce, mode, offset)
    kernels.chacha20(
        out.data_ptr(), size, key, nonce, _MODES[mode], out.element_size(), offset, torch.get_num_threads()
    )
    return out
