"""A program's text is checked line by line against the table of operators; what is wrong is named with its line."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import fuzz_programs
import pytest
import torch
from torch import nn

import securemodel
from protocols.bilinear import BILINEAR
from protocols.gates import GATES, REMASKED
from protocols.linear import LINEAR
from securemodel.compiler import builder
from securemodel.compiler.ops import KINDS, PRODUCTS, ROWS, TALK, Wrong, product_shape
from securemodel.compiler.passes import masks, scales
from securemodel.compiler.reading import parse_program
from securemodel.engines.masked.masks import DERIVED, FRESH
from securemodel.engines.masked.party import LOCAL
from securemodel.errors import ProgramError
from securemodel.inspect.audit import _MASKED as MASKED
from securemodel.inspect.fixed import VALUES, WIDE
from securemodel.program import Program

FAST_TEXTS = 300


@pytest.fixture(scope="module")
def text() -> str:
    """A convolution, a comparison and a layer."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)).eval()
    return securemodel.compile(model, torch.zeros(1, 1, 4, 4), weights="a", inputs="b", outputs="b").text()


def changed(text: str, part: str, old: str, new: str) -> tuple[str, int]:
    """The text with the first line that has `part` changed, and that line's number."""
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if part in line and old in line)
    lines[at] = lines[at].replace(old, new, 1)
    return "\n".join(lines), at + 1


def test_the_table_has_every_operator_and_kind():
    walked = {name for name, row in ROWS.items() if not row.signature.endswith("-> float") or row.opens}
    masked = {name for name, row in ROWS.items() if re.search("masked|order|window", row.signature.split("-> ")[-1])}
    assert LOCAL.keys() | TALK | GATES.keys() == ROWS.keys() and not LOCAL.keys() & (TALK | GATES.keys())
    assert VALUES.keys() == walked and WIDE.keys() == GATES.keys()
    assert [*FRESH, *DERIVED, *REMASKED] == list(dict.fromkeys([*FRESH, *DERIVED, *REMASKED]))
    assert {*FRESH, *DERIVED, *REMASKED} == masked
    assert MASKED.keys() | {"reveal"} == TALK
    assert KINDS.keys() == LINEAR.keys() and PRODUCTS.keys() == BILINEAR.keys()


def test_the_passes_have_a_rule_for_all_that_a_graph_has_before_them():
    built = set(re.findall(r'_secret\(\s*"(\w+)"', Path(builder.__file__).read_text()))
    rewritten, new = (
        {"rescale", "factor", "ldexp", "index"},
        {"share", "positions", "truncate", "owned_layer", "reveal", "client_output", "beyond"},
    )
    assert scales.RULES.keys() == built | {"state", "keep", "client_input"}
    assert masks.RULES.keys() == scales.RULES.keys() - rewritten | new


def test_every_row_is_used_by_the_programs_that_texts_are_made_from():
    nodes = [node for program in fuzz_programs.seeds() for node in program.graph.nodes]
    assert ROWS.keys() <= {node.op for node in nodes}
    assert KINDS.keys() <= {node.attrs.get("kind") for node in nodes}


@pytest.mark.parametrize(
    ("part", "old", "new", "says"),
    [
        ("conv2d", "[1,2,2,2]", "[1,0,2,2]", "no elements"),
        ("conv2d", "[1,2,2,2]", "[1,2,2,3]", r"shape \[1, 2, 2, 2\], not \[1, 2, 2, 3\]"),
        ("conv2d", '"stride":[1,1]', '"stride":[1,9223372036854775808]', "stride cannot be"),
        ("conv2d", '"padding":[0,0]', '"padding":[0,2147483647]', "shape"),
        ("conv2d", '"dilation":[1,1]', '"dilation":[0,1]', "dilation cannot be"),
        ("conv2d", '"groups":1', '"groups":true', "groups cannot be"),
        ("conv2d", '"kind":"conv2d"', '"kind":"conv3d"', "kind cannot be"),
        ("conv2d", ',"kind"', ',"more":1,"kind"', "damaged|attributes"),
        ("conv2d", " f32 ", " f16 ", "fractional bits 32, not 16"),
        ("conv2d", ": additive", ": masked", "masked masked -> additive"),
        ("placeholder@b", "[1,1,4,4]", "[9223372036854775807,9,9,9]", "no size of a tensor"),
        ("placeholder@b", "[1,1,4,4]", "[0,1,4,4]", r"shape \[1, 1, 4, 4\], not \[0"),
        ("placeholder@b", "input:0", "input:1", "no input"),
        ("placeholder@b", "placeholder@b", "placeholder@a", "owner 'b', not 'a'"),
        ("= input@", "load", "", "damaged|load True, not False"),
        ("= mask ", '"width":64', '"width":8', "64 bits of it are read, but 8"),
        ("= digits", '"low_bits":63', '"low_bits":69', "low_bits cannot be"),
        ("= digits", '"shift":[0]', '"shift":[-64]', "shift cannot be"),
        ("= digits", '"shift":[0]', '"shift":[2]', "not within 64"),
        ("= digits", '"shift":[0]', '"shift":[0,0]', "one number for each of 1 operands"),
        ("= digits", '"offset":[-32768]', '"offset":[-2305843009213693952]', "offset cannot be"),
        ("= top_bit", '"bit":[63]', '"bit":[]', "one number for each"),
        ("= combine", '"digits":16', '"digits":15', "planes"),
        ("= combine", '"apart":4', '"apart":16', "nothing to combine"),
        ("= part", '"row":0', '"row":31', "not within"),
        ("= part", '"start":0', '"start":1', "not within"),
        ("= select_truncated", '"offset":32768', '"offset":1152921504606846977', "offset cannot be"),
        ("= select_truncated", '"offset":32768', '"offset":65536', "more than 16 bits round"),
        ("= select_truncated", ',"offset":32768', "", "rounding is exact"),
        ("= reveal", '"dtype":"float32"', '"dtype":"load"', "dtype cannot be"),
        ("= reveal", '"index":0', '"index":1', "no output 1"),
        ("= reveal", "reveal@b", "reveal@a", "owner 'b', not 'a'"),
        ("= mask ", "= mask ", "= surprise ", "no such operator"),
    ],
)
def test_a_line_that_states_something_else_is_named(text, part, old, new, says):
    other, number = changed(text, part, old, new)
    with pytest.raises(ProgramError, match=says) as caught:
        parse_program(other)
    assert f"line {number}" in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("parties", ["a", "../../X"], "'../../X' cannot be a party's name: a name starts with a letter"),
        ("parties", ["/abs", "b"], "cannot be a party's name"),
        ("parties", ["a", "all"], "none of all, dealer, public"),
        ("parties", ["a"], "two or more"),
        ("parties", ["a", "b", "b"], "all different"),
        ("parties", "ab", "damaged"),
        ("frac_bits", 25, "outside 4..24"),
        ("frac_bits", True, "outside 4..24"),
        ("frac_bits", 16.0, "outside 4..24"),
        ("width", 65, "outside 24..64"),
        ("weights", "c", "among the weights is no party"),
        ("inputs", ["c"], "owner 'c', not 'b'"),
        ("inputs", ["b", "b"], "2 inputs have 1 shapes"),
        ("input_shapes", [[1 << 62, 4]], "no size of a tensor"),
        ("input_shapes", [[-1]], "no size of a tensor"),
        ("input_shapes", [[1.5]], "no shape"),
        ("rounding", "up", "none of exact, fast"),
        ("rounding", "fast", "rounding is fast"),
        ("outputs", ["c"], "among the outputs is no party"),
        ("outputs", ["b", "b"], "reveals the outputs"),
        ("outputs", [], "no output 0"),
        ("more", 1, "a program states"),
    ],
)
def test_a_first_line_that_compile_would_not_write_is_refused(text, field, value, says):
    first, rest = text.split("\n", 1)
    fields = json.loads(first.split(" ", 2)[2]) | {field: value}
    first = "secure-program 2 " + json.dumps(fields, sort_keys=True, separators=(",", ":"))
    with pytest.raises(ProgramError, match=says):
        parse_program(f"{first}\n{rest}")


@pytest.mark.parametrize(
    "value", ["NaN", "Infinity", "-Infinity", "1e999", "[" * 100_000, "9" * 5000, "[" * 40 + "]" * 40]
)
def test_numbers_without_end_and_nests_without_bottom_are_refused(text, value):
    other, number = changed(text, '"target"', '"kwargs":{}', '"kwargs":{"x":' + value + "}")
    with pytest.raises(ProgramError) as caught:
        parse_program(other)
    assert f"line {number}" in str(caught.value)


@pytest.mark.parametrize(
    "old, new",
    [("%1 = ", "%01 = "), ('{"attrs"', '{ "attrs"'), ('"groups":1', '"groups":1,"groups":1'), ("%1 ", "%\u0661 ")],
)
def test_a_program_has_one_text(text, old, new):
    assert old in text
    with pytest.raises(ProgramError):
        parse_program(text.replace(old, new, 1))


def test_a_program_too_large_names_the_figure(text, tmp_path: Path):
    with pytest.raises(ProgramError, match="allowed are 1000\n") as caught:
        parse_program(text, max_bytes=1000)
    assert "--max-gib" in str(caught.value) and "line " in str(caught.value)
    (tmp_path / "program.txt").write_text(text)
    with pytest.raises(ProgramError, match="too large"):
        Program.load(tmp_path / "program.txt", 1000)
    assert Program.load(tmp_path / "program.txt").text() == text


def test_memory_beside_a_value_counts(text):
    """A convolution whose padded image is larger than all it reads and makes."""
    wide = text.replace('"dilation":[1,1]', '"dilation":[1000000,1000000]').replace(
        '"padding":[0,0]', '"padding":[1000000,1000000]'
    )
    assert wide != text
    with pytest.raises(ProgramError, match="too large|shape"):
        parse_program(wide)


@pytest.mark.parametrize("kind", ["conv2d", "conv_transpose2d"])
@pytest.mark.parametrize(("x", "y", "groups"), [((1, 1, 4, 4), (3, 2, 2, 2), 1), ((1, 4, 4, 4), (3, 2, 2, 2), 2)])
def test_channels_that_do_not_fit_are_refused_though_torch_lets_them_pass(kind, x, y, groups):
    attrs = {"stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": groups}
    attrs |= {"output_padding": [0, 0]} if kind == "conv_transpose2d" else {}
    with pytest.raises(Wrong, match="channels do not fit"):
        product_shape(kind, attrs, x, y)


@pytest.mark.parametrize(("output_padding", "stride", "dilation"), [(2, 2, 1), (2, 1, 2), (3, 1, 1)])
def test_an_output_padding_that_no_convolution_leaves_out_is_refused(output_padding, stride, dilation):
    attrs = {"stride": [stride] * 2, "padding": [0, 0], "dilation": [dilation] * 2, "groups": 1}
    shape = partial(product_shape, "conv_transpose2d", x=(1, 1, 4, 4), y=(1, 1, 3, 3))
    with pytest.raises(Wrong, match="output_padding"):
        shape(attrs={**attrs, "output_padding": [0, output_padding]})
    largest = max(stride, dilation) - 1
    (image, _), (padded, _) = (shape(attrs={**attrs, "output_padding": [0, more]}) for more in (0, largest))
    assert padded == (*image[:3], image[3] + largest)


def test_odd_texts_are_refused_or_run(tmp_path: Path):
    found = set()
    for seed in range(FAST_TEXTS):
        folder = tmp_path / str(seed)
        folder.mkdir()
        found.add(fuzz_programs.try_text(fuzz_programs.make_text(seed), folder, stores=seed % 20 == 0))
    assert {"accepted", "ProgramError"} <= found


def test_the_texts_of_all_protocols_are_read_as_they_were_written(tmp_path: Path):
    for program in fuzz_programs.seeds():
        program.save(tmp_path / "program.txt")
        read = Program.load(tmp_path / "program.txt")
        assert read.text() == program.text() and read.protocol == program.protocol


def test_what_has_no_end_in_the_clear_is_written_as_a_word():
    model = fuzz_programs.nn.Module()
    model.forward = lambda x, y: x + y.masked_fill(y > 0, float("-inf")).exp()
    options = {"weights": "a", "inputs": ("a", "b"), "outputs": "all"}
    program = securemodel.compile(model.eval(), (torch.zeros(3), torch.zeros(3)), **options)
    assert "Infinity" not in program.text() and parse_program(program.text())


def test_a_plan_needs_no_comparison_beside_each_top_bit(text, tmp_path: Path):
    """A text may take a top bit of a value that nothing else compares."""
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if " = reveal@" in line)
    number, x = at - 1, next(line for line in lines if " = mask %" in line).split(" ", 1)[0]
    added = [
        f'%{number} = top_bit {x} {{"bit":[63],"offset":[0]}} : bits [1,1]',
        lines[at].replace(f"%{number} =", f"%{number + 1} ="),
    ]
    (tmp_path / "program.txt").write_text("\n".join([*lines[:at], *added, ""]))
    assert str(Program.load(tmp_path / "program.txt").plan())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"bit":[63]', '"bit":[0]'),
        ('"bit":[63]', '"bit":[7]'),
        ('"shift":[0]', '"shift":[1]'),
        (r"xor (%\d+) %\d+", r"xor \1 \1"),
        (r"xor (%\d+) (%\d+)", r"xor \2 \1"),
        (r"xor %\d+ (%\d+)", r"xor \1 \1"),
    ],
)
def test_a_plan_takes_comparisons_that_are_no_signs(text, tmp_path: Path, old, new):
    """A text may compare any bits, and add any two of them."""
    old = old if "xor" in old else re.escape(old)
    made, count = re.subn(old, new, text)
    assert count
    (tmp_path / "program.txt").write_text(made)
    assert str(Program.load(tmp_path / "program.txt").plan())
