"""Run by test_triton.py in a process of its own: prints what each kernel takes of a GPU of compute capability 9.0.

Kernels are compiled ahead of time, which needs no GPU, and numbers are read from what ptxas made.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from protocols.kernels.gpu import bilinear, keystream, launch, openings, planes, pointwise, tables

WHOLE, LONG, RING, BYTES, SHORT = "i32", "i64", "*i64", "*u8", "*i16"
SIXTEEN_DIGITS = planes.layer_of(((0, 4), (4, 4), (8, 4), (12, 4)))
DIVIDED = {
    "n", "words", "depth", "padded_m", "padded_n", "a_step", "b_step", "padded_rows", "padded_columns", "padded_size",
}  # fmt: skip
"""Numbers that are multiples of 16, as Triton finds out when a kernel is called, so that memory is read in wide pieces."""
Kernel = tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]


def rings(*names: str, **others: str) -> dict[str, str]:
    """Types of arguments, in order: ring values by name, then others."""
    return {**dict.fromkeys(names, RING), **others}


def kernels_made() -> Iterator[tuple[str, Kernel]]:
    """By name: a kernel, the types of its arguments, those that are fixed, and how it is launched."""
    block, four = {"BLOCK": launch.BLOCK}, {"num_warps": launch.WARPS}
    stream = {"rows": "*i32", "table": RING, "key": RING}
    yield "stream", (keystream.stream_kernel, stream, {"COLUMNS": 8, "LANES": keystream.LANES}, four)
    sides = {"rows": WHOLE, "columns": WHOLE, "batch_step": LONG, "row_step": WHOLE, "column_step": WHOLE,
             "padded_rows": WHOLE, "padded_columns": WHOLE}  # fmt: skip
    cut = {"LIMBS": 8, "ROWS": bilinear._CUT_ROWS, "COLUMNS": bilinear._CUT_COLUMNS}
    yield "limbs", (bilinear.limbs_kernel, {"x": RING, "out": "*i8", **sides}, cut, four)
    sizes = dict.fromkeys(("m", "n", "padded_m", "padded_n", "depth", "a_step", "b_step"), WHOLE)
    for rows, parts in ((128, 1), (128, 4), (16, 4)):
        fixed = {"ROWS": rows, "COLUMNS": 64, "DEPTH": bilinear.DEPTH, "PARTS": parts, "MOST": bilinear._MOST_DEPTH}
        options = {"num_warps": bilinear.WARPS if rows == 128 else 4, "num_stages": bilinear.STAGES}
        signature = {"a": "*i8", "b": "*i8", "out": RING, **sizes}
        yield f"product {rows}x64, {parts} parts", (bilinear.product_kernel, signature, fixed, options)

    count = {"n": WHOLE, "offset": LONG, "f": WHOLE, "less": LONG}
    both = {"FIRST": True, "CARRY": True, **block}
    signature = rings("out", "m", "a", k=SHORT, chat=RING, gamma=RING, **count)
    yield "truncate", (pointwise.truncate_kernel, signature, both, four)
    signature = rings("out", "bhat", "m", "a", k=SHORT, b=RING, ba=RING, bk=SHORT, chat=RING, gamma=RING, bgamma=RING)
    yield "select_truncated", (pointwise.select_truncated_kernel, {**signature, **count}, both, four)
    signature = rings("out", "bhat", "m", "lam", "beta", "beta_lam", n=WHOLE)
    yield "select", (pointwise.select_kernel, signature, {"FIRST": True, "MASKED": True, **block}, four)
    signature = rings("out", "bhat", "beta", n=WHOLE)
    yield "bit_to_ring", (pointwise.bit_to_ring_kernel, signature, {"FIRST": True, **block}, four)
    signature = rings("out", "words", "v", n=WHOLE)
    yield "bit_times", (pointwise.bit_times_kernel, signature, {"TIMES": True, **block}, four)
    signature = rings("a", k=SHORT, lam=RING, n=WHOLE, f=WHOLE)
    yield "deal_truncation", (pointwise.deal_truncation_kernel, signature, block, four)

    packs, words = {"WORDS": planes.WORDS}, {"n": WHOLE, "words": WHOLE}
    for name, kind in (("pack_bits", BYTES), ("msb_plane", RING)):
        yield name, (planes.plane_kernel, {"out": RING, "x": kind, **words, "offset": LONG, "bit": WHOLE}, packs, four)
    yield "unpack_bits", (planes.unpack_kernel, {"out": BYTES, "words": RING, "n": WHOLE}, block, four)
    digits = dict.fromkeys(("digits", "low_bits", "shift"), WHOLE)
    yield "thermometer", (planes.thermometer_kernel, {"out": SHORT, "lam": RING, "n": WHOLE, **digits}, block, four)
    signature = rings("out", "m", therm=SHORT, **words, **digits, offset=LONG)
    yield "leaves", (planes.leaves_kernel, signature, packs, four)
    fixed = {"GROUPS": tuple(group[:4] for group in SIXTEEN_DIGITS), "BLOCK": planes.BLOCK}
    yield "monomials", (planes.monomials_kernel, rings("out", "masks", words=WHOLE), fixed, four)
    signature = rings("out", "opened", "masks", "monomials", "bits", words=WHOLE)
    fixed = {"GROUPS": SIXTEEN_DIGITS, "FIRST": True, "BLOCK": planes.BLOCK}
    yield "combine", (planes.combine_kernel, signature, fixed, four)

    fixed = {"SIZE": 256, "WORDS": 4, **block}
    yield "unit_vectors", (tables.unit_vectors_kernel, rings("out", "lam", n=WHOLE), fixed, four)
    sizes = dict.fromkeys(("n", "columns", "padded_columns", "padded_size"), WHOLE)
    for size, columns in ((256, 4), (64, 2), (16, 2)):
        fixed = {"SIZE": size, "WORDS": max(2, size // 32), "COLUMNS": columns, "ROWS": tables.ROWS}
        signature = rings("out", "m", bits="*i32", limbs="*i8", **sizes)
        yield f"lookup of {size}, {columns} columns", (tables.lookup_kernel, signature, fixed, four)
    shifts, fixed = dict.fromkeys(("n", "shift0", "shift1", "shift2"), WHOLE), {"SIGNED": True, **block}
    signature = rings("out", "y0", "y1", "y2", "power0", "power1", "power2", "masks", **shifts)
    yield "spline", (tables.spline_kernel, signature, {**fixed, "FIRST": True}, four)
    signature = rings("out", "l0", "l1", "l2", "lam", "sign", **shifts, rest=WHOLE, drop=WHOLE)
    yield "deal_spline", (tables.deal_spline_kernel, signature, fixed, four)
    cuts = dict.fromkeys(("n", "rest", "cut0", "cut1", "cut2"), WHOLE)
    for weighted in (False, True):
        fixed = {"SIZE": 128, "WORDS": 2, "PARTS": 16, "WEIGHTED": weighted, **block}
        signature = rings("out", "m", "chosen", "table", **cuts)
        yield f"coefficients, {'weights' if weighted else 'bits'}", (tables.around_kernel, signature, fixed, four)

    for width in (8, 5):
        fixed = {"WIDTH": width, "BITS": False, "BLOCK": openings.BLOCK}
        signature = {"value": RING, "wire": BYTES, "share": RING, "mask": RING, "n": WHOLE, "size": WHOLE}
        yield f"hide {width} bytes", (openings.hide_kernel, signature, {**fixed, "SHARED": True}, four)
        yield f"join {width} bytes", (openings.join_kernel, {"value": RING, "part": BYTES, "n": WHOLE}, fixed, four)


def compiled(kernel: Any, signature: dict[str, str], fixed: dict[str, Any], options: dict[str, int]) -> dict[str, int]:
    """What the kernel takes."""
    names, given = kernel.arg_names, {**signature, **dict.fromkeys(fixed, "constexpr")}
    assert sorted(names) == sorted(given), (names, [*given])
    aligned = [at for at, name in enumerate(names) if given[name].startswith("*") or name in DIVIDED]
    source = ASTSource(
        fn=kernel,
        signature={name: given[name] for name in names},
        constexprs={(names.index(name),): value for name, value in fixed.items()},
        attrs={(at,): [["tt.divisibility", 16]] for at in aligned},
    )
    return _numbers(triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options))


def _numbers(made: Any) -> dict[str, int]:
    tools = Path(triton.__file__).parent / "backends/nvidia/bin"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        said = lambda *words: subprocess.run([*words, file.name], capture_output=True, text=True, check=True).stdout
        usage, code = said(str(tools / "cuobjdump"), "-res-usage"), said(str(tools / "nvdisasm"))
    registers, stack, local = (int(re.findall(rf"{what}:(\d+)", usage)[-1]) for what in ("REG", "STACK", "LOCAL"))
    count = lambda word: len(re.findall(rf"\b{word}\b", code))
    return {"registers": registers, "stack": stack, "local": local, "shared": made.metadata.shared,
            "spilled": count(r"(STL|LDL)(\.\w+)*"), "IGMMA": count("IGMMA"), "IMMA": count("IMMA"),
            "loads": count(r"LDG(\.\w+)*"), "loads of 16 bytes": count(r"LDG\.E\.128(\.\w+)*"),
            "rotations": len(re.findall(r"\bSHF\.L\.W", code)) + len(re.findall(r"\bPRMT\b", code))}  # fmt: skip


if __name__ == "__main__":
    assert os.environ["TRITON_INTERPRET"] == "0"
    for name, kernel in kernels_made():
        print(json.dumps([name, compiled(*kernel)]), flush=True)
