"""What the passes make of a graph, read as text, and what they must leave alone."""

from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from running import TWO, Fn, difference, run
from torch import nn
from torch.testing import assert_close

import securemodel
from protocols.gates import GATES, dealt_bytes
from protocols.shares import window
from securemodel.compiler.approximations import SMOOTH, center_of, opened_bytes, pieces
from securemodel.compiler.ir import PHASES, Graph
from securemodel.compiler.ops import mask_origin
from securemodel.compiler.passes.masks import narrow_masks
from securemodel.compiler.passes.schedule import order_nodes
from securemodel.compiler.reading import parse_node, parse_program
from securemodel.engines.clear import ClearSide
from securemodel.errors import ProgramError
from securemodel.inspect.fixed import FixedPoint

X = torch.randn(2, 3, 6, 6)


def ops(program: securemodel.Program, *names: str) -> list:
    """The nodes of the named operators, in order."""
    return [node for node in program.graph.nodes if node.op in names]


def two_inputs(function, shape=(2, 3, 6, 6), **options) -> securemodel.Program:
    inputs = (torch.randn(shape), torch.randn(shape))
    return securemodel.compile(Fn(function), inputs, weights="a", inputs=("a", "b"), outputs="b", **options)


def graph(text: str) -> Graph:
    return Graph([parse_node(line.strip()) for line in text.strip().splitlines()])


# --- folding into weights ---


class Scaled(nn.Module):
    """A convolution and a factor per channel; `also` says what else is done with the convolution."""

    def __init__(self, also=None, scale_shape=(4, 1, 1)) -> None:
        super().__init__()
        self.conv, self.also = nn.Conv2d(3, 4, 3), also
        self.scale = nn.Parameter(torch.randn(scale_shape))

    def forward(self, x):
        y = self.conv(x)
        return (y * self.scale, self.also(y)) if self.also else y * self.scale


def products(program) -> list[str]:
    made = ops(program, "bilinear", "bilinear_public", "multiply_truncated")
    return [node.attrs.get("kind", "mul") for node in made]


def test_batch_norm_is_folded_into_the_convolution_before():
    for before in (nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3, bias=False), nn.ConvTranspose2d(3, 4, 3)):
        program = securemodel.compile(nn.Sequential(before, nn.BatchNorm2d(4)), X, **TWO)
        assert len(products(program)) == 1 and products(program)[0].startswith("conv")
        assert not ops(program, "mask", "truncate"), "folding leaves nothing to do online but the convolution"


def test_a_factor_is_folded_into_the_layer_before():
    assert products(securemodel.compile(Scaled(), X, **TWO)) == ["conv2d"]
    assert products(securemodel.compile(nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), X[0, 0], **TWO)) == [
        "matmul"
    ]
    per_row = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(6))
    assert products(securemodel.compile(per_row, X[0], **TWO)) == ["matmul", "mul"], (
        "a factor per row is not per column"
    )


@pytest.mark.parametrize(
    "also", [torch.relu, lambda y: y, lambda y: y.sum(1)], ids=["has another user", "is returned", "is summed"]
)
def test_nothing_is_folded_into_what_is_needed_elsewhere(also):
    assert products(securemodel.compile(Scaled(also), X, **TWO)) == ["conv2d", "mul"]


@pytest.mark.parametrize("shape", [(4, 4), (1, 1, 4), (2, 1, 1, 1)])
def test_nothing_is_folded_that_is_not_one_factor_per_channel(shape):
    assert products(securemodel.compile(Scaled(scale_shape=shape), X, **TWO)) == ["conv2d", "mul"]


def test_nothing_is_folded_for_another_owner():
    model = Fn(lambda x, scale, w: torch.conv2d(x, w) * scale)
    inputs = (X, torch.randn(4, 1, 1), torch.randn(4, 3, 3, 3))
    arrange = lambda *owners: securemodel.compile(model, inputs, weights="a", inputs=owners, outputs="b")
    assert products(arrange("b", "b", "a")) == ["conv2d", "mul"]
    assert products(arrange("b", "a", "a")) == ["conv2d"]
    assert products(arrange("b", "public", "a")) == ["conv2d"], "whoever owns the weights knows public factors too"


def test_grouped_transposed_convolutions_are_not_folded():
    model = nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), nn.BatchNorm2d(4))
    assert products(securemodel.compile(model, torch.randn(1, 4, 5, 5), **TWO)) == ["conv_transpose2d", "mul"]


class Residual(nn.Module):
    """A layer that reads a normalized value, beside that value: `after` makes it of both."""

    def __init__(self, after, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.layer, self.after = nn.Linear(4, 6), norm, layer, after

    def forward(self, x):
        y = self.norm(self.first(x))
        return self.after(y, self.layer(y.transpose(0, 1)).transpose(0, 1))


@pytest.mark.parametrize("norm", [nn.LayerNorm(6), nn.LayerNorm(6, bias=False)], ids=["shifted", "scaled"])
def test_a_layer_after_a_norm_takes_its_scale_and_shift_in(norm):
    x = torch.randn(3, 5, 4)
    nn.init.normal_(norm.weight)
    model = Residual(lambda y, z: y + z, nn.Linear(6, 6), norm)
    program = securemodel.compile(model, x, **TWO)
    (scaled,) = [n for n in ops(program, "bilinear") if program.graph[n.args[1]].shape == (6,)]
    assert scaled.shape == (3, 5, 6)
    users = [program.graph[u].op for u in program.graph.users()[scaled.id]]
    assert users == ["linear"], "only the sum with the residual reads what is scaled, and nobody opens it"
    assert_close(run(program, x)[0], model(x), atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("after", "layer"),
    [
        (lambda y, z: torch.relu(y) + z, nn.Linear(6, 6)),
        (lambda y, z: y + z, nn.Linear(6, 6, bias=False)),
        (lambda y, z: y + z, nn.Sequential(nn.ReLU(), nn.Linear(6, 6))),
    ],
    ids=["opened elsewhere", "no bias takes a shift", "no layer"],
)
def test_what_is_opened_anyway_or_has_nowhere_to_go_is_not_folded(after, layer):
    x, norm = torch.randn(3, 5, 4), nn.LayerNorm(6)
    program = securemodel.compile(Residual(after, layer, norm), x, **TWO)
    (layer_,) = [n for n in ops(program, "bilinear") if program.graph[n.args[1]].shape == (6, 6)]
    read = program.graph[layer_.args[0]]
    while read.op == "linear":
        read = program.graph[read.args[0]]
    assert read.op == "mask" and program.graph[read.args[0]].op in ("truncate", "select_truncated")
    assert ops(program, "multiply_truncated"), "the norm's last product is truncated for its scale alone"


def test_what_was_folded_already_is_not_folded_again():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)).eval()
    nn.init.normal_(model[1].weight)
    x = torch.randn(5, 4)
    assert_close(run(securemodel.compile(model, x, **TWO), x)[0], model(x), atol=1e-3, rtol=0)


def test_attention_divides_what_it_mixed():
    q, k, v = (torch.randn(2, 8, 4) for _ in range(3))
    attend = Fn(nn.functional.scaled_dot_product_attention)
    program = securemodel.compile(attend, (q, k, v), weights="a", inputs=("a", "b", "b"), outputs="b")
    assert [n.shape for n in ops(program, "multiply_truncated")] == [(2, 8, 4)], "4 columns are divided, not 8 scores"
    assert_close(run(program, q, k, v)[0], attend(q, k, v), atol=1e-3, rtol=0)
    wide = securemodel.compile(attend, (q, k, torch.randn(2, 8, 9)), weights="a", inputs=("a", "b", "b"), outputs="b")
    assert (2, 8, 8) in [n.shape for n in ops(wide, "bilinear")[1:]], "9 columns: the 8 scores are divided"


def test_of_squares_that_are_summed_one_number_is_dealt():
    program = securemodel.compile(nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), torch.randn(5, 4), **TWO)
    assert not ops(program, "square")
    assert (5, 1, 1) in [node.shape for node in ops(program, "bilinear")]


# --- bits of an opening ---


@pytest.mark.parametrize("function", [lambda x, y: nn.functional.gelu(x + y), lambda x, y: nn.functional.gelu(x * y)])
@pytest.mark.parametrize("parties", [("a", "b"), ("a", "c", "b")])
def test_with_fast_rounding_splines_find_their_piece_in_the_opening_of_their_argument(function, parties):
    x, y = 3 * torch.randn(200), 3 * torch.randn(200)
    program = securemodel.compile(
        Fn(function), (x, y), weights="a", inputs=("a", "b"), outputs="b", rounding="fast", parties=parties
    )
    assert not ops(program, "truncate")
    (place,) = ops(program, "window")
    assert place.attrs["bits"] == 7 + 13, "an entry of 128, and a number of 13 bits below"
    widths = [node.attrs["width"] for node in ops(program, "mask")]
    assert widths == [64, 24, 32, 32, 32], "the argument, coefficients, the value"
    added = [node.attrs["added"] for node in ops(program, "select_truncated") if "added" in node.attrs]
    assert added == [7 << 15], "the value is opened less 3.5"
    assert difference(run(program, x, y)[0], function(x, y)) < 2**-13


@pytest.mark.parametrize("rest", [False, True])
def test_bits_of_an_opening_less_those_of_its_mask(rest):
    """j + 1 or j, and what is left of a number beside as many steps."""
    attrs = {"shift": 16, "bits": 12} if rest else {"shift": 28, "bits": 8}
    z, lam = torch.randint(-(2**40), 2**40, (5000,)), torch.randint(-(2**63), 2**63 - 1, (5000,))
    seen = window(z + lam, attrs) - window(lam, attrs)
    steps = (window(z + lam, {"shift": 28, "bits": 8}) - window(lam, {"shift": 28, "bits": 8})) % 256
    more = steps - ((z >> 28) % 256)
    assert set((more % 256).tolist()) == {0, 1}
    if rest:
        cut = (z >> 16) - ((z >> 28) << 12) - seen - (more % 256 << 12)
        assert set(cut.tolist()) <= {0, -1} and int(seen.abs().max()) < 4096
    else:
        assert torch.equal(seen % 256, steps)


@pytest.mark.parametrize("parties", [("a", "b"), ("a", "c", "b")])
@pytest.mark.parametrize("name", ["gelu", "silu", "softplus"])
def test_a_function_less_the_middle_of_its_values_is_opened_in_fewer_bytes(name, parties):
    """Inside, at both ends, and outside, where what is added must not count."""
    fit = SMOOTH[name]
    center = center_of(fit, 16)
    bare, less = (opened_bytes(pieces(fit, 16, False, 1.0, -number), fit, 16) for number in (0.0, center))
    assert less < bare and center_of(SMOOTH["tanh"], 16) == 0.0
    ends = [end + step for end in (fit.low, fit.high) for step in (-1, -0.5, -(2.0**-16), 0, 2.0**-16, 0.5, 1)]
    x = torch.cat([torch.tensor(ends), torch.linspace(-40, 40, 401)]).double()
    function = lambda x, y: getattr(nn.functional, name)(x + y)
    roles = {"weights": "a", "inputs": ("a", "b"), "outputs": "b", "parties": parties, "rounding": "fast"}
    program = securemodel.compile(Fn(function), (x, x), **roles)
    assert [n.attrs["added"] for n in ops(program, "select_truncated") if "added" in n.attrs] == [center * 2**16]
    made = run(program, x, torch.zeros_like(x))[0]
    assert float((made.double() - function(x, 0 * x)).abs().max()) < fit.max_error + 2.0**-15


def test_a_number_is_added_in_a_selection_only_where_nobody_else_reads_the_sum():
    def function(x, y):
        t = x * y + 0.25
        return torch.where(y > 0, t, 0), t

    x, y = torch.randn(40), torch.randn(40)
    program = securemodel.compile(
        Fn(function), (x, y), weights="a", inputs=("a", "b"), outputs=("b", "b"), rounding="fast"
    )
    assert not any("added" in node.attrs for node in program.graph.nodes)


def test_with_exact_rounding_no_text_reads_bits_of_an_opening():
    text = securemodel.compile(nn.GELU(), torch.zeros(3), **TWO, rounding="fast").text()
    fast = two_inputs(lambda x, y: nn.functional.gelu(x + y), (3,), rounding="fast").text()
    assert '"fast"' in fast and "window" not in text, "an owner's own function is no part of this"
    with pytest.raises(ProgramError, match="no value depends on masks"):
        parse_program(fast.replace('"fast"', '"exact"'))


@pytest.mark.parametrize("classes", [32, 128])
def test_a_largest_value_and_what_it_is_taken_from_are_opened_once(classes):
    """Differences of players, and those to the winner, follow from the openings of both."""
    program = two_inputs(lambda x, y: nn.functional.softmax(x * y / 8, -1), (3, classes), rounding="fast")
    opened = [n for n in ops(program, "mask") if n.shape == (3, classes)]
    sources = [program.graph[n.args[0]].op for n in opened]
    assert sources == ["bilinear", "spline", "select_truncated", "bilinear"], (
        "scores as products, and no sums of scores"
    )
    x, y = 4 * torch.randn(3, classes), 4 * torch.randn(3, classes)
    assert difference(run(program, x, y)[0], nn.functional.softmax(x * y / 8, -1)) < 2**-9


@pytest.mark.parametrize("parties", [("a", "b"), ("a", "c", "b")])
def test_a_truncated_value_that_is_compared_is_not_opened(parties):
    function = lambda x, y: torch.softmax(x * y, 1)
    x, y = torch.randn(40, 16), torch.randn(40, 16)
    roles = {"weights": "a", "inputs": ("a", "b"), "outputs": "b", "parties": parties}
    fast, exact = (securemodel.compile(Fn(function), (x, y), rounding=r, **roles) for r in ("fast", "exact"))
    (shift,) = ops(fast, "shift")
    assert shift.attrs == {"bits": 16, "read": 48} and not ops(exact, "shift")
    assert fast.plan().rounds < exact.plan().rounds
    assert difference(run(fast, x, y)[0], function(x, y)) < 2**-11
    read_by_products = securemodel.compile(Fn(lambda x, y: (x * y) @ y.T), (x, y), rounding="fast", **roles)
    assert not ops(read_by_products, "shift"), "they read more bits than are right"


def test_no_text_reads_more_of_a_shifted_opening_than_is_right():
    text = two_inputs(lambda x, y: torch.softmax(x * y, 1), (2, 16), rounding="fast").text()
    (line,) = (line for line in text.split("\n") if "= shift" in line)
    assert '"bits":16,"read":48' in line
    with pytest.raises(ProgramError, match="= shift\n.*49 bits of it are read, but 48 are right"):
        parse_program(text.replace('"bit":[47]', '"bit":[48]'))
    with pytest.raises(ProgramError, match="no value depends on masks|rounding is exact"):
        parse_program(text.replace('"fast"', '"exact"'))


NORMS = {"layer_norm": nn.functional.layer_norm, "rms_norm": nn.functional.rms_norm}


def normalizing(name: str, shape: tuple[int, int], eps: float, rounding: str, parties=("a", "b")):
    """(a program of a normalization of x y whose result is squared, the same in the clear)"""
    function = lambda x, y: NORMS[name](x * y, shape[1:], eps=eps).square()
    roles = {"weights": "a", "inputs": ("a", "b"), "outputs": "b", "parties": parties, "rounding": rounding}
    return securemodel.compile(Fn(function), (torch.zeros(shape), torch.zeros(shape)), **roles), function


@pytest.mark.parametrize("parties", [("a", "b"), ("a", "c", "b")])
@pytest.mark.parametrize("rounding", ["fast", "exact"])
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_normalized_is_truncated_in_the_bytes_that_it_can_have(norm, rounding, parties):
    """c / sqrt(mean of squares) is at most sqrt(n), which one number among zeros comes to."""
    x, y = torch.zeros(6, 768), torch.ones(6, 768)
    x[0, 0], x[1, 5], x[2, 1:3], x[3], x[4, 7] = 900.0, -(2.0**-4), torch.tensor([30.0, -30.0]), torch.randn(768), 1.0
    program, function = normalizing(norm, (6, 768), 1e-5, rounding, parties)
    cuts = [n for n in ops(program, "truncate") if n.shape == x.shape]
    assert cuts[-1].attrs["modulo"] in (48, 56) and "modulo" not in cuts[0].attrs
    made, right = run(program, x, y)[0], function(x, y)
    assert right.max() > 760 and ((made - right).abs() <= 2.0**-9 * (1 + right)).all()


@cache
def normalizing_few(norm: str, rounding: str, eps: float):
    return normalizing(norm, (4, 6), eps, rounding)[0]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(0, 2**32), st.sampled_from(sorted(NORMS)), st.sampled_from(["fast", "exact"]),
    st.sampled_from([1e-12, 1e-5, 1.0]), st.integers(-16, 12),
)  # fmt: skip
def test_no_normalized_value_is_larger_than_is_looked_at(seed, norm, rounding, eps, size):
    """Of rows of one number, of numbers alike, of single units in the last place, of random ones, from 2^-16 to 2^12."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.zeros(4, 6)
    x[0, seed % 6] = 1.0
    x[1], x[2] = torch.randint(-1, 2, (6,), generator=rng), 1.0
    x[2, 0], x[3] = -1.0, torch.randn(6, generator=rng)
    program = normalizing_few(norm, rounding, eps)
    clear = {name: ClearSide(program, name) for name in program.parties}
    for side in clear.values():
        side.set_model(program.model)
        side.set_inputs((x * 2.0**size, torch.ones(4, 6)))
    walker, looked_at = FixedPoint(program, clear), 0
    for phase in PHASES:
        for node, value, operands in walker.walk(phase):
            if node.op == "truncate" and node.shape == (4, 6) and "modulo" in node.attrs:
                looked_at += 1
                assert float(operands[0].number.abs().max()) + node.attrs.get("offset", 0) < 2.0 ** (
                    node.attrs["modulo"] - 2
                )
                assert torch.equal(value.ring.double(), value.number)
    assert looked_at == 1


ENDS = torch.tensor([2.0**15, -(2.0**15), 2.0**14, 1.0, 0.0, -1.0])


@pytest.mark.parametrize("parties", [("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("factor", [0.3, 1 / 32**0.5, 3.7])
@pytest.mark.parametrize("rounding", ["fast", "exact"])
def test_the_largest_of_scaled_scores_is_found_before_they_are_scaled(rounding, factor, parties):
    """With fast rounding, so that scores up to 2^30 less a 2^-16 of it may be scaled by any factor."""
    function = lambda x, y: torch.softmax(x * y * factor, -1)
    program = two_inputs(function, (3, 32), rounding=rounding, parties=parties)
    x, y = 4 * torch.randn(3, 32), 4 * torch.randn(3, 32)
    x[0], y[0] = 2.0**15 - 1 if rounding == "fast" else 2.0**13, ENDS[torch.arange(32) % 6]
    assert difference(run(program, x, y)[0], function(x, y)) < 2**-9
    if rounding == "fast":
        opened = [program.graph[n.args[0]].op for n in ops(program, "mask") if n.shape == (3, 32)]
        assert opened[:2] == ["bilinear", "spline"], "scores, once"


def test_what_a_party_owns_is_normalized_by_it():
    model, x = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 3)), torch.randn(5, 6)
    nn.init.normal_(model[0].weight)
    nn.init.normal_(model[0].bias)
    program = securemodel.compile(model, x, **TWO)
    assert [n.attrs["target"] for n in ops(program, "float") if n.owner == "b"] == ["layer_norm"]
    assert difference(run(program, x)[0], model(x)) < 2**-12


def test_comparisons_with_powers_of_one_grid_are_dealt_the_digits_of_their_value_once():
    """Of a sum of squares for each power of 16: the same ring elements, read with other fractional bits."""
    program = two_inputs(lambda x, y: nn.functional.layer_norm(x + y, (40,)), (3, 40), rounding="fast")
    several = [n for n in ops(program, "digits") if len(n.args) > 2]
    assert sum(len(n.args) for n in several) == 10 and all(n.attrs["of"] == [0] * len(n.args) for n in several)


def test_a_maximum_is_no_larger_than_what_it_is_of():
    program = two_inputs(lambda x, y: nn.functional.softmax(x * y / 8, -1), (3, 128), rounding="fast")
    assert max(n.attrs["low_bits"] for n in ops(program, "digits")) <= 48
    compared = [n for n in ops(program, "mask") if program.graph[n.args[0]].op == "linear" and n.shape[-1] > 1]
    assert all(n.attrs["width"] <= 48 for n in compared[1:]), "selected by a comparison, and read in few bits"


@pytest.mark.parametrize("elements", [100, 70_000])
def test_comparisons_of_one_value_with_several_numbers_are_dealt_its_digits_once(elements):
    clip = lambda x, y: torch.clamp(x + y, -1.0, 2.5)
    program = two_inputs(clip, (elements,))
    (digits,) = ops(program, "digits")
    assert digits.attrs["of"] == [0, 0] and len(ops(program, "combine")) == 2
    x, y = 2 * torch.randn(elements), 2 * torch.randn(elements)
    assert difference(run(program, x, y)[0], clip(x, y)) < 2**-13
    text = program.text()
    for wrong in ('"of":[1,1]', '"of":[0,7]', '"of":[0]'):
        with pytest.raises(ProgramError):
            parse_program(text.replace('"of":[0,0]', wrong))


def test_digits_of_different_masks_are_not_dealt_once():
    program = two_inputs(lambda x, y: (x + y < 0).float() + (y - x < 0).float(), (3,))
    (digits,) = ops(program, "digits")
    assert len(digits.args) == 2 and "of" not in digits.attrs
    for changed in ('"of":[0,0],"offset":[0,0],"shift":[0,0]', '"of":[0,0],"offset":[0,0],"shift":[0,1]'):
        with pytest.raises(ProgramError, match="have different masks"):
            parse_program(program.text().replace('"offset":[0,0],"shift":[0,0]', changed))


def test_no_more_is_dealt_than_is_read_of_a_gate():
    program = two_inputs(lambda x, y: nn.functional.gelu(x + y), (64,))
    (spline,), select = ops(program, "spline"), ops(program, "select_truncated")
    assert spline.attrs["read"] == 48 and "read" not in select[0].attrs and spline.attrs["shifts"] == [0, 0, 0]
    with pytest.raises(ProgramError, match="48 bits of it are read, but 40 are opened or dealt"):
        parse_program(program.text().replace('"read":48,"shifts"', '"read":40,"shifts"'))
    assert 64 * 6 * 4 == program_bytes(program, spline)
    fast = two_inputs(lambda x, y: nn.functional.gelu(x + y), (64,), rounding="fast")
    assert 64 * (3 + 4 + 4 + 4) == program_bytes(fast, *ops(fast, "spline"))


def program_bytes(program, node) -> int:
    return dealt_bytes(GATES[node.op], node.attrs, [program.graph[a].shape for a in node.args], node.shape)


def test_a_sum_of_public_numbers_has_a_mask_of_its_own():
    """A text may add up two of them, and whoever reads it comes to an end."""
    graph = Graph()
    for number in range(2):
        graph.add("encode", [], (), "public")
        graph.add("public_masked", [2 * number], (), "masked")
    added = graph.add("linear", [1, 3], (), "masked", attrs={"kind": "add", "attrs": {}})
    assert mask_origin(graph, added.id) == added.id


# --- fractional bits ---


def test_truncation_shares_the_opening_of_the_sign():
    program = securemodel.compile(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), X[0, 0], **TWO)
    assert [n.op for n in ops(program, "mask", "truncate", "select", "select_truncated")] == [
        "mask", "select_truncated", "mask",
    ]  # fmt: skip
    select = ops(program, "select_truncated")[0]
    assert {n.op for n in program.graph.nodes if select.args[1] in n.args} == {"digits", "top_bit", "select_truncated"}
    assert [n.frac for n in ops(program, "reveal")] == [32], "a result is revealed as it is"


def test_a_product_reads_a_truncated_value_from_the_opening_of_what_is_truncated():
    def chain(x, y):
        return x * y * x.flip(0) * y.flip(0)

    for rounding in ("exact", "fast"):
        program = two_inputs(chain, rounding=rounding)
        assert len(ops(program, "multiply_truncated")) == 2 and not ops(program, "truncate")
        assert len(ops(program, "mask")) == 2, "x y and what is made of it, each once"
    for function in (
        lambda x, y: (x * y * x, (x * y) @ x.mT),  # also read by a matrix product
        lambda x, y: (x * y * x, x * y * y),  # by another product
        lambda x, y: (x[:1] * y[:1]) * x,  # smaller than the result
        lambda x, y: (x * y).square(),
        lambda x, y: (x * y) @ x.mT,
    ):
        assert not ops(two_inputs(function), "multiply_truncated")


def test_products_of_products_are_truncated_once():
    def function(x, y):
        product = x * y
        return product * x, product * y

    program = two_inputs(function)
    assert len(ops(program, "truncate")) == 1 and {n.frac for n in ops(program, "reveal")} == {32}


def test_sums_of_products_are_not_truncated():
    program = two_inputs(lambda x, y: x * y + (x + y) * x - y)
    assert not ops(program, "truncate")


def test_powers_of_two_and_whole_numbers_are_free():
    program = two_inputs(lambda x, y: (x + y) * 0.25 * 3 + (x - y) * -0.5)
    assert not ops(program, "truncate", "bilinear", "bilinear_public", "mask")


# --- masks ---


def test_what_is_masked_already_is_not_masked_again():
    def function(x, y):
        return x * y, torch.relu(torch.cat([x, y, x])), torch.relu((x - y).flatten(1).transpose(0, 1))

    shapes = [n.shape for n in ops(two_inputs(function), "input", "mask")]
    assert shapes == [X.shape, X.shape], "sums, parts and orders of masked values are masked"
    shapes = [n.shape for n in ops(two_inputs(lambda x, y: torch.relu(x - y)), "input", "mask")]
    assert shapes == [X.shape], "the difference alone is masked where nothing needs x and y"


@pytest.mark.parametrize(
    "function",
    [
        lambda z, x: (torch.relu(z), z * z, z * x, z.clamp(0, 1)),
        lambda z, x: nn.functional.max_pool2d(torch.relu(z), 3, 1),
        lambda z, x: z[:, :1] * z[:, 1:2] * z[:, 2:],
        lambda z, x: torch.relu(torch.cat([z, x])) * torch.cat([x, z]),
    ],
)
def test_each_value_is_masked_at_most_once(function):
    program = two_inputs(lambda x, y: function(x * y, x))
    opened = [node.args for node in ops(program, "mask", "mask_bits")]
    assert len(opened) == len(set(opened))
    floats = [node.args for node in ops(program, "input")]
    assert len(floats) == len(set(floats))


def test_parts_of_a_tensor_share_one_mask():
    program = two_inputs(lambda x, y: [torch.relu(part) for part in (x * y).chunk(2, -1)])
    masks = ops(program, "mask")
    assert [m.shape for m in masks] == [(2, 3, 6, 6)], "two halves: the whole is masked, the halves follow"
    program = two_inputs(lambda x, y: torch.relu((x * y)[..., 0]))
    assert [m.shape for m in ops(program, "mask")] == [(2, 3, 6, 1)], "one sixth alone: only that is masked"


def test_columns_of_two_owners_are_sent_by_each_alone():
    layer = lambda x, y: torch.cat([x, y[..., :2]], -1).square()
    program = two_inputs(layer)
    shapes = [(n.op, n.shape, n.owner) for n in ops(program, "input", "mask")]
    assert shapes == [("input", X.shape, "a"), ("input", (2, 3, 6, 2), "b")], "side by side, each under its own mask"
    with securemodel.local(program) as session:
        assert (session.run(X, -X) - layer(X, -X)).abs().max() < 1e-3
    both = two_inputs(lambda x, y: torch.cat([torch.cat([x, y]), torch.cat([y, x])], -1).square())
    assert [(n.op, n.shape) for n in ops(both, "input", "mask")] == [("input", X.shape)] * 2, "of rows and columns, too"


def test_weights_are_masked_when_they_are_loaded():
    program = securemodel.compile(nn.Linear(6, 4), X[0, 0], **TWO)
    loads = {node.op: node.phase for node in ops(program, "input", "own", "bilinear", "reveal")}
    assert loads == {"input": "run", "own": "load", "bilinear": "run", "reveal": "run"}
    assert [n.phase for n in ops(program, "input")] == ["load", "run"]


def test_only_what_a_comparison_reads_is_opened():
    for width, opened in ((64, 64), (32, 48), (24, 40)):
        program = two_inputs(lambda x, y: x * y < 0.5, width=width)
        assert [m.attrs["width"] for m in ops(program, "mask")] == [opened], "16 bits of the product are never read"
    for width in (24, 32, 64):
        program = two_inputs(lambda x, y: torch.relu(x * y), width=width)
        assert [m.attrs["width"] for m in ops(program, "mask")] == [64], "the product itself needs all bits"


def test_narrow_masks_follow_local_operations():
    made = graph(
        """
        %0 = own@a : additive f16 [4]
        %1 = mask %0 {"width":64} : masked f16 [4]
        %2 = linear %1 {"attrs":{"dims":[0]},"kind":"flip"} : masked f16 [4]
        %3 = top_bit %2 {"bit":[29],"offset":[0]} : bits [1,1]
        %4 = mask %0 {"width":64} : masked f16 [4]
        %5 = linear %4 %1 {"attrs":{},"kind":"add"} : masked f16 [4]
        %6 = digits %5 %4 {"low_bits":11,"offset":[0,0],"shift":[1,-3]} : bits [5,2]
        %7 = square %4 : additive f32 [4]
        %8 = reveal@a %7 {"dtype":"float32","index":0} : float f32 [4]
        """
    )
    narrow_masks(made)
    assert [(n.id, n.attrs["width"]) for n in made.nodes if n.op == "mask"] == [(1, 32), (4, 64)]


# --- pooling before activations ---


def comparisons(program) -> int:
    return sum(node.shape[-1] for node in ops(program, "top_bit"))


@pytest.mark.parametrize("act", [torch.relu, nn.functional.relu6, lambda x: nn.functional.hardtanh(x, -2.0, 0.5)])
def test_pooling_comes_before_monotone_activations(act):
    big = (2, 8, 16, 16)
    first = two_inputs(lambda x, y: nn.functional.max_pool2d(act(x * y), 2), shape=big)
    second = two_inputs(lambda x, y: act(nn.functional.max_pool2d(x * y, 2)), shape=big)
    assert comparisons(first) == comparisons(second)
    assert [n.op for n in first.graph.nodes] == [n.op for n in second.graph.nodes]


def pooled_and_not(z):
    active = torch.relu(z)
    return nn.functional.max_pool2d(active, 2), active


@pytest.mark.parametrize(
    "function",
    [
        pooled_and_not,
        lambda z: nn.functional.max_pool2d(nn.functional.leaky_relu(z, -1.0), 2),
        lambda z: nn.functional.avg_pool2d(torch.relu(z), 2),
    ],
    ids=["relu has another user", "not monotone", "an average"],
)
def test_pooling_stays_behind_other_activations(function):
    program = two_inputs(lambda x, y: function(x * y), shape=(2, 8, 16, 16))
    everywhere = 2 * 8 * 16 * 16 // 64
    assert max(node.shape[-1] for node in ops(program, "top_bit")) == everywhere
    assert ops(program, "top_bit")[0].shape[-1] == everywhere, "the activation comes first"


# --- order ---


def test_nodes_that_nothing_reads_are_dropped():
    program = two_inputs(lambda x, y: (torch.relu(x * y), x * y + 1)[1])
    assert not ops(program, "top_bit", "digits", "mask")


def test_loading_comes_first_and_openings_of_one_round_stand_together():
    made = graph(
        """
        %0 = placeholder@b {"name":"input:0"} : float [4]
        %1 = input@b %0 : masked f16 [4]
        %2 = square %1 : additive f32 [4]
        %3 = mask %2 {"width":64} : masked f32 [4]
        %4 = placeholder@a {"name":"state:w"} : float [4] load
        %5 = input@a %4 : masked f16 [4] load
        %6 = square %1 : additive f32 [4]
        %7 = mask %6 {"width":64} : masked f32 [4]
        %8 = bilinear %3 %5 {"attrs":{},"kind":"mul"} : additive f48 [4]
        %9 = bilinear %7 %5 {"attrs":{},"kind":"mul"} : additive f48 [4]
        %10 = square %7 : additive f64 [4]
        %11 = reveal@b %8 {"dtype":"float32","index":0} : float f48 [4]
        %12 = reveal@b %9 {"dtype":"float32","index":1} : float f48 [4]
        """
    )
    ordered, ids = order_nodes(made)
    assert [f"{n.op}{'*' if n.phase == 'load' else ''}" for n in ordered.nodes] == [
        "placeholder*", "input*", "placeholder", "input", "square", "square", "mask", "mask", "bilinear", "bilinear",
        "reveal", "reveal",
    ]  # fmt: skip
    assert 10 not in ids and all(arg < node.id for node in ordered.nodes for arg in node.args)


def test_compiling_twice_gives_the_same_text():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )
    assert securemodel.compile(model, X, **TWO).text() == securemodel.compile(model, X, **TWO).text()


def test_a_deep_model_is_no_deep_recursion():
    def function(x, y):
        for _ in range(250):
            x = torch.relu(x * y)
        return x

    assert len(ops(two_inputs(function, shape=(2,)), "select_truncated")) == 250


# --- what is opened for functions ---


def test_a_value_that_is_compared_twice_is_masked_once():
    program = two_inputs(lambda x, y: torch.sigmoid(x + y), shape=(64,))
    opened = [node.attrs["width"] for node in ops(program, "mask")]
    assert sorted(opened) == [8, 48, 48, 48, 64], "argument, index, distance, coefficients, polynomial; nothing twice"


def test_all_pairs_are_compared_from_the_masks_of_their_operands():
    program = two_inputs(lambda x, y: (x * y).amax(0), shape=(8, 10))
    assert [node.shape for node in ops(program, "mask")] == [(8, 1, 10)], "28 differences of 8 values"
    fast = two_inputs(lambda x, y: (x * y).amax(0), shape=(8, 10), rounding="fast")
    assert [node.shape for node in ops(fast, "mask")] == [(8, 10), (8, 1, 10)], "products to truncate, and the same"


def test_few_differences_are_masked_themselves():
    program = two_inputs(lambda x, y: (x * y).amax(0), shape=(2, 10))
    assert [node.shape for node in ops(program, "mask")] == [(1, 1, 10)]


def rounds_of(module: nn.Module, x: torch.Tensor, rounding: str) -> int:
    return securemodel.compile(module.eval(), x, **TWO, truncate_outputs=True, rounding=rounding).plan().rounds


class Shifted(nn.Module):
    """A function of the input plus a parameter."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function, self.shift = function, nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.function(x + self.shift)


@pytest.mark.parametrize("rounding, most", [("fast", (27, 7, 13)), ("exact", (41, 14, 28))])
def test_rounds_stay_few(rounding, most):
    softmax = rounds_of(Shifted(lambda x: torch.softmax(x, 1)), torch.zeros(2, 128), rounding)
    gelu = rounds_of(Shifted(nn.functional.gelu), torch.zeros(4), rounding)
    few, more = (rounds_of(nn.LSTM(4, 8), torch.zeros(steps, 1, 4), rounding) for steps in (2, 5))
    made = (softmax, gelu, (more - few) / 3)
    assert all(rounds <= limit for rounds, limit in zip(made, most, strict=True)), made
