"""Run by test_triton.py in a process of its own, as `python triton_cases.py streams`."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from protocols import kernels
from protocols.kernels import gpu, twins
from protocols.kernels.gpu import bilinear, keystream

KEY, NONCE = bytes(range(32)), bytes.fromhex("000000090000004a00000000")
EDGES = [0, 1, -1, 0x7F, 0x80, 0x7F7F7F7F7F7F7F7F, 0xFFFF, 1 << 31, 1 << 62, 2**63 - 1, -(2**63)]
GENERATOR = torch.Generator().manual_seed(3)


def ring(*shape: int) -> torch.Tensor:
    """Ring values of which about half are edge values."""
    wild = torch.randint(-(2**63), 2**63 - 1, shape, generator=GENERATOR)
    edges = torch.tensor(EDGES)[torch.randint(len(EDGES), shape, generator=GENERATOR)]
    return torch.where(torch.rand(shape, generator=GENERATOR) < 0.5, wild, edges)


def equal(found: torch.Tensor, expected: torch.Tensor, what: object) -> None:
    same = found.dtype == expected.dtype and found.shape == expected.shape
    assert same and torch.equal(found.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8)), what


@contextmanager
def changed(module: Any, **values: int) -> Iterator[None]:
    """Other sizes of tiles than those that are tuned for a GPU, so that small operands have several."""
    before = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    yield
    vars(module).update(before)


def streams() -> None:
    block = keystream.chacha20(torch.zeros(16, dtype=torch.int32), KEY, NONCE, offset=1)
    assert [int(word) & 0xFFFFFFFF for word in block[:4]] == [0xE4E7F110, 0x15593BD1, 0x1FDD0F50, 0xC47120A3]
    with changed(keystream, LANES=4):
        out, last = torch.arange(40, dtype=torch.int64), (1 << 32) - 5
        found = keystream.chacha20(out.clone(), KEY, NONCE, "sub", last)
        equal(found, kernels.chacha20(out.clone(), KEY, NONCE, "sub", last), "the end of a stream")
        cases = (
            (torch.int64, "set", 5), (torch.int64, "set", 0), (torch.int64, "add", 40), (torch.int64, "xor", 9),
            (torch.int32, "add", 7), (torch.int32, "sub", 8), (torch.int16, "add", 9), (torch.int16, "sub", 12),
            (torch.uint8, "add", 80), (torch.uint8, "sub", 1), (torch.uint8, "xor", 3),
        )  # fmt: skip
        outs = [ring(size + 3).to(dtype)[3:] for dtype, _, size in cases]  # some begin at odd places
        expected, nonces, modes = (
            [out.clone() for out in outs],
            os.urandom(12 * len(outs)),
            [mode for _, mode, _ in cases],
        )
        keystream.chacha20_many(outs, KEY, nonces, modes)
        kernels.chacha20_many(expected, KEY, nonces, modes)
        for case, found, right in zip(cases, outs, expected, strict=True):
            equal(found, right, case)


def products() -> None:
    for m, k, n in ((5, 70, 9), (2, 0, 3), (0, 4, 2)):
        a, b, out = ring(m, k), ring(k, n), ring(m, n)
        equal(bilinear.matmul(a, b), a @ b, (m, k, n))
        equal(bilinear.matmul(a.t().contiguous().t(), b, out.clone(), "sub"), out - a @ b, (m, k, n))
    most = torch.full((2, 300), 0x7F7F7F7F7F7F7F7F), torch.full((300, 2), -0x7F7F7F7F7F7F7F80)
    equal(bilinear.matmul(*most), most[0] @ most[1], "largest digits")
    for tiles, depth in ((0, 64), (1 << 20, 1 << 14)):  # one part or four, K in several pieces or one
        with changed(bilinear, _MANY_TILES=tiles, _MOST_DEPTH=depth, ROWS=16, COLUMNS=16):
            a, b, out = ring(2, 5, 70), ring(70, 18).expand(2, 70, 18), ring(2, 5, 18)
            equal(bilinear.matmul(a, b, out.clone(), "add"), out + a @ b, tiles)
            equal(bilinear.matmul(a, b[0]), a @ b[0], tiles)
    a, b = ring(2, 1, 3, 4), ring(1, 3, 4, 2)
    equal(bilinear.matmul(a.expand(2, 3, 3, 4), b.expand(2, 3, 4, 2)), a @ b, "batches")
    x, w = ring(2, 4, 6, 5), ring(6, 2, 3, 3)
    settings = ((1, 2), ((1, 0), (1, 1)), (1, 1), 2)
    equal(bilinear.conv2d(x, w, *settings), kernels.conv2d(x, w, *settings), "convolution")
    a, b = ring(3, 5).to(torch.int32), torch.tensor([[1, -5], [0, 7], [-1, -1], [127, 0], [3, -128]], dtype=torch.int8)
    equal(bilinear.sign_product(a, b), kernels.sign_product(a, b), "signs")


def package() -> None:
    """The same kernels as the twins', with equal signatures."""
    assert gpu.__all__ == twins.__all__
    for name in gpu.__all__:
        kernel, twin = (inspect.signature(getattr(module, name)) for module in (gpu, twins))
        assert kernel == twin, name


def compiled() -> None:
    """Prints what a kernel takes of a GPU of compute capability 9.0, from what ptxas made."""
    whole, divided = "i32", {"depth", "padded_m", "padded_n", "a_step", "b_step", "padded_rows", "padded_columns"}
    product = dict.fromkeys(("m", "n", "padded_m", "padded_n", "depth", "a_step", "b_step"), whole)
    limbs = {"rows": whole, "columns": whole, "batch_step": "i64", "row_step": whole, "column_step": whole,
             "padded_rows": whole, "padded_columns": whole}  # fmt: skip
    made = {
        "stream": (keystream.stream_kernel, {"rows": "*i32", "table": "*i64", "key": "*i64"},
                   {"COLUMNS": 8, "LANES": keystream.LANES}, {"num_warps": keystream.WARPS}),
        "limbs": (bilinear.limbs_kernel, {"x": "*i64", "out": "*i8", **limbs},
                  {"LIMBS": 8, "ROWS": bilinear._CUT_ROWS, "COLUMNS": bilinear._CUT_COLUMNS}, {"num_warps": 4}),
    }  # fmt: skip
    for rows, parts, text in ((128, 1, "128x64, 1 part"), (128, 4, "128x64, 4 parts"), (16, 4, "16x64, 4 parts")):
        fixed = {"ROWS": rows, "COLUMNS": 64, "DEPTH": bilinear.DEPTH, "PARTS": parts, "MOST": bilinear._MOST_DEPTH}
        options = {"num_warps": bilinear.WARPS if rows == 128 else 4, "num_stages": bilinear.STAGES}
        signature = {"a": "*i8", "b": "*i8", "out": "*i64", **product}
        made[f"product {text}"] = (bilinear.product_kernel, signature, fixed, options)
    for name, (kernel, signature, fixed, options) in made.items():
        aligned = [at for at, (k, kind) in enumerate(signature.items()) if kind.startswith("*") or k in divided]
        names = [*signature, *fixed]
        source = ASTSource(
            fn=kernel, signature={**signature, **dict.fromkeys(fixed, "constexpr")},
            constexprs={(names.index(k),): value for k, value in fixed.items()},
            attrs={(at,): [["tt.divisibility", 16]] for at in aligned},
        )  # fmt: skip
        print(json.dumps([name, _numbers(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options))]))


def _numbers(made: Any) -> dict[str, int]:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        said = lambda *words: subprocess.run([*words, file.name], capture_output=True, text=True, check=True).stdout
        usage, code = said(str(tools / "cuobjdump"), "-res-usage"), said(str(tools / "nvdisasm"))
    registers, stack, local = (int(re.findall(rf"{what}:(\d+)", usage)[-1]) for what in ("REG", "STACK", "LOCAL"))
    count = lambda word: len(re.findall(rf"\b{word}\b", code))
    return {"registers": registers, "stack": stack, "local": local, "IGMMA": count("IGMMA"), "IMMA": count("IMMA"),
            "rotations": len(re.findall(r"\bSHF\.L\.W", code)) + len(re.findall(r"\bPRMT\b", code))}  # fmt: skip


if __name__ == "__main__":
    what = sys.argv[1]
    assert os.environ["TRITON_INTERPRET"] == ("0" if what == "compiled" else "1")
    {"streams": streams, "products": products, "package": package, "compiled": compiled}[what]()
    if what != "compiled":
        print("all equal")
