"""Programs as text, their digests, and what compile and check say about models and arguments they cannot use."""

import copy
import re
from dataclasses import dataclass

import pytest
import torch
from running import TWO, Fn, run
from torch import nn

import securemodel
from securemodel.compiler import capture
from securemodel.compiler.capture import tensors_in
from securemodel.compiler.ir import digest, program_text
from securemodel.compiler.reading import parse_program
from securemodel.errors import CompileError, ProgramError, UnsupportedOperator


def network(hidden: int = 6) -> nn.Module:
    torch.manual_seed(4)
    layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(18, hidden), nn.ReLU6(), nn.Linear(hidden, 3), nn.LeakyReLU()).eval()


IMAGES = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def program():
    return securemodel.compile(network(), IMAGES, **TWO)


# --- text and digest ---


def test_text_is_read_back_unchanged(program):
    header, graph = parse_program(program.text())
    assert program_text(header, graph) == program.text()
    assert (header, graph) == (program.header, program.graph)
    assert digest(program.text()) == program.digest


def test_text_of_every_kind_of_node_is_read_back(capture_once):
    functions = [
        lambda x, y: (torch.relu(x * y), (x + y).argmax(1), x > y),
        lambda x, y: torch.nn.functional.pad(x * y, (1, 1), value=2.5) * 0.3,
        lambda x, y: (x * y).sum() - torch.square(x + y).mean(),
        lambda x, y: torch.cat([x, y, x.clamp(-float("inf"), 1.0)]),
    ]
    for function in functions:
        for width in (24, 64):
            inputs = (torch.randn(3, 4), torch.randn(3, 4))
            made = securemodel.compile(Fn(function), inputs, weights="a", inputs=("a", "b"), outputs="all", width=width)
            assert program_text(*parse_program(made.text())) == made.text()


def test_a_saved_program_is_the_same(program, tmp_path):
    program.save(tmp_path / "program.txt")
    loaded = securemodel.Program.load(tmp_path / "program.txt")
    assert loaded.digest == program.digest and loaded.parties == ("a", "b")


def test_text_has_no_paths_and_no_weights(program):
    assert "/" not in program.text() and ".py" not in program.text()
    weight = network()[5].weight.flatten()[0].item()
    assert f"{weight:.5f}"[:6] not in program.text()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "",
        lambda text: "hello\n",
        lambda text: text.replace("secure-program 2", "secure-program 1"),
        lambda text: text.replace("secure-program 2 {", "secure-program 2 ["),
        lambda text: text.replace('"weights":"a"', '"heights":"a"'),
        lambda text: text.replace('"rounding":"exact"', '"rounding":"up"'),
        lambda text: text.replace("%3 =", "%4 =", 1),
        lambda text: text.replace("mask %", "mask %9999"),
        lambda text: text.replace(" : masked", " : "),
        lambda text: text.replace('{"invert":true', '{"invert":tru'),
        lambda text: text + "%1 = surprise\n",
    ],
)
def test_damaged_text_is_refused(program, change):
    changed = change(program.text())
    assert changed != program.text()
    with pytest.raises(ProgramError):
        parse_program(changed)


def test_digest_is_the_same_without_weights(program):
    meta = network().to("meta")
    assert securemodel.compile(meta, IMAGES, **TWO).digest == program.digest
    assert next(meta.parameters()).is_meta, "compile must leave the model as it was"
    other = network()
    nn.init.ones_(other[5].weight)
    assert securemodel.compile(other, IMAGES * 2, **TWO).digest == program.digest


@pytest.mark.parametrize(
    "changes",
    [
        {"parties": ("b", "a")},
        {"parties": ("a", "b", "c")},
        {"weights": "c"},
        {"weights": "public", "outputs": "a"},
        {"inputs": "a", "outputs": "b"},
        {"outputs": "a"},
        {"outputs": "all"},
        {"frac_bits": 15},
        {"width": 32},
    ],
    ids=str,
)
def test_digest_tells_settings_apart(program, changes):
    assert securemodel.compile(network(), IMAGES, **{**TWO, **changes}).digest != program.digest


@pytest.mark.parametrize(
    "model, images",
    [
        (network(hidden=7), IMAGES),
        (network(), IMAGES[:1]),
        (network()[:-1], IMAGES),
        (nn.Sequential(*network()[:-1], nn.LeakyReLU(0.02)), IMAGES),
        (nn.Sequential(*network(), nn.Identity(), nn.ReLU()), IMAGES),
    ],
)
def test_digest_tells_models_apart(program, model, images):
    assert securemodel.compile(model, images, **TWO).digest != program.digest


# --- arguments ---


def compiled(**changes):
    return securemodel.compile(nn.Linear(4, 2), torch.randn(3, 4), **{**TWO, **changes})


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"parties": ("a", "c")}, "unknown party b"),
        ({"parties": ("b", "c"), "outputs": "d"}, "unknown party a, d"),
        ({"weights": "b"}, "at least two online parties, got b"),
        ({"weights": "public", "outputs": "b"}, "at least two"),
        ({"weights": "public", "inputs": "public", "outputs": "all"}, "at least two"),
        ({"parties": ("a", "b", "a")}, "bad party names"),
        ({"weights": "dealer"}, "'dealer'"),
        ({"weights": "a b"}, "'a b'"),
        ({"weights": ""}, "''"),
        ({"weights": "a/../b"}, "bad party names"),
        ({"width": 23}, "width = 23 is outside 24..64"),
        ({"width": 65}, "width = 65"),
        ({"frac_bits": 3}, "frac_bits = 3"),
        ({"frac_bits": 25}, "frac_bits = 25"),
        ({"frac_bits": 20, "width": 27}, "width = 27 is outside 28..64 for 20 fractional bits"),
        ({"outputs": ("a", "b")}, "outputs names 2 receivers, but the model returns 1"),
        ({"inputs": ("a", "b")}, "inputs names 2 owners for 1 example inputs"),
        ({"inputs": ()}, "inputs names 0 owners"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used(changes, text):
    with pytest.raises(CompileError, match=re.escape(text)):
        compiled(**changes)


def test_inputs_must_be_tensors():
    with pytest.raises(CompileError, match="must be tensors"):
        securemodel.compile(Fn(lambda x: x + 1), ([1, 2],), **TWO)


def test_models_that_cannot_be_exported():
    with pytest.raises(CompileError, match="(?s)Fn cannot be compiled.*torch.where"):
        securemodel.compile(Fn(lambda x: x if x.sum() > 0 else -x), torch.randn(3), **TWO)


def test_models_that_change_their_state():
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x):
            self.count += 1
            return x * self.count

    with pytest.raises(CompileError, match="(?s)changes its own state.*count.*self.count .= 1.*call the model once"):
        securemodel.compile(Counts(), torch.randn(3), **TWO)


@pytest.mark.parametrize("way", ["data", "no_grad"])
def test_models_that_write_the_same_in_every_run(way):
    class Bounded(nn.Linear):
        def forward(self, x):
            if way == "data":
                self.weight.data.clamp_(-0.1, 0.1)
            else:
                with torch.no_grad():
                    self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    model, x = Bounded(3, 2), torch.randn(2, 3)
    before = model.weight.detach().clone()
    program = securemodel.compile(model, x, **TWO)
    with securemodel.local(program) as session:
        made = [session.run(x) for _ in range(2)]
    assert torch.equal(model.weight, before)
    torch.testing.assert_close(torch.stack(made), model(x).detach().expand(2, 2, 2), atol=1e-3, rtol=0)


def test_models_that_read_the_data_of_a_parameter():
    model, x = Fn(lambda x: x @ weight.data), torch.randn(2, 3)
    model.weight = weight = nn.Parameter(torch.randn(3, 2))
    with securemodel.local(securemodel.compile(model, x, **TWO)) as session:
        torch.testing.assert_close(session.run(x), (x @ weight).detach(), atol=1e-3, rtol=0)


# --- operators without a secure version ---


class Unsupported(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(x)
        a = torch.i0(y)  # first
        b = torch.special.i1(y)  # second
        c = torch.special.i0e(a) + b[:, :1]  # third, behind the first
        return torch.nextafter(torch.relu(c), y.sum())  # fourth


def lines_of(module: type[nn.Module]) -> dict[str, int]:
    """Line numbers by the word after the comment sign."""
    import inspect

    lines, start = inspect.getsourcelines(module)
    return {line.split("# ")[1].split(",")[0].strip(): start + i for i, line in enumerate(lines) if "# " in line}


def secret_first() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), Unsupported())


def test_all_unsupported_operators_are_listed_at_once():
    with pytest.raises(UnsupportedOperator) as caught:
        securemodel.compile(secret_first(), torch.randn(3, 4), **TWO)
    report, text = caught.value.report, str(caught.value)
    assert [p.operator.split(".")[1] for p in report.problems] == ["i0", "special_i1", "special_i0e", "nextafter"]
    lines = lines_of(Unsupported)
    for problem, word in zip(report.problems, ("first", "second", "third", "fourth"), strict=True):
        assert f"test_compile.py:{lines[word]}" in problem.source and "Unsupported" in problem.source
        assert problem.reason and problem.remedy
        assert all(part in text for part in (problem.operator, problem.source, problem.reason, problem.remedy))
    assert "i0(y)" in report.problems[0].source
    assert text.startswith("4 operators of this model have no secure version (Sequential)")


def test_check_says_what_compile_says():
    model, x = secret_first(), torch.randn(3, 4)
    report = securemodel.check(model, x)
    with pytest.raises(UnsupportedOperator) as caught:
        securemodel.compile(model, x, **TWO)
    assert not report and str(report) == str(caught.value)


def test_check_of_a_supported_model():
    report = securemodel.check(network(), IMAGES)
    assert report and report.problems == ()
    assert "aten.conv2d.default" in report.operators
    assert str(report) == f"Sequential: all {len(report.operators)} operators have a secure version"


def test_one_owner_may_use_any_operator():
    x = torch.rand(3, 4)
    model = nn.Sequential(Fn(lambda x: torch.erfinv(x / 2)), nn.Linear(4, 2)).eval()
    made = run(securemodel.compile(model, x, **TWO), x)[0]
    assert torch.allclose(made, model(x), atol=1e-3)


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda s: s**65, "the power 65"),
        (lambda s: s[s > 0], "what a mask picks depends on values"),
        (lambda s: torch.frexp(s)[1], "no secure version"),
    ],
)
def test_reasons(function, reason):
    report = securemodel.check(nn.Sequential(nn.Linear(4, 4), Fn(function)), torch.randn(3, 4))
    assert len(report.problems) == 1 and reason in report.problems[0].reason


def test_compiling_leaves_the_model_as_it_was():
    model = network()
    before = copy.deepcopy(model.state_dict())
    securemodel.compile(model, IMAGES, **TWO)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_nothing_shows_what_is_inside(program):
    assert (
        repr(program) == f"Program({len(program.graph.nodes)} nodes, parties=['a', 'b'], digest={program.digest[:12]})"
    )


# --- named inputs, nests of outputs ---


@dataclass
class Named:
    """A result with names, as libraries of models have them."""

    total: torch.Tensor
    nothing: None = None
    cache: object = None


class ByName(nn.Module):
    """Takes its inputs by name and returns `made` of their difference."""

    def __init__(self, made) -> None:
        super().__init__()
        self.scale, self.made = nn.Parameter(torch.tensor(3.0)), made

    def forward(self, *, left, right):
        return self.made(self.scale * left - right)


NESTS = {
    "dict": lambda x: {"a": x, "b": [x + 1, None], "c": 5},
    "dataclass": lambda x: Named(x, cache=object()),
    "tuple": lambda x: (x, None, (x * 2,)),
}


@pytest.mark.parametrize("name", NESTS)
def test_outputs_are_the_tensors_of_a_nest(name):
    x, y, model = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 4.0]), ByName(NESTS[name])
    owners = {"right": "b", "left": "c"}
    program = securemodel.compile(model, {"left": x, "right": y}, weights="a", inputs=owners, outputs="b")
    assert program.header.inputs == ("c", "b")
    expected = tensors_in(model(left=x, right=y))
    made = run(program, x, y)
    assert len(made) == len(expected) == {"dict": 2, "dataclass": 1, "tuple": 2}[name]
    for one, other in zip(made, expected, strict=True):
        torch.testing.assert_close(one, other.detach(), atol=1e-3, rtol=0)


def test_other_outputs_are_refused():
    with pytest.raises(CompileError, match="the model returns a float: return tensors"):
        securemodel.compile(Fn(lambda x: (x, 1.5)), torch.ones(2), **TWO)


@pytest.mark.parametrize("inputs", [{"left": "b"}, {"left": "b", "right": "b", "more": "a"}])
def test_owners_have_the_names_of_inputs(inputs):
    given = {"left": torch.ones(2), "right": torch.ones(2)}
    with pytest.raises(CompileError, match="give example_inputs as a dict with the same names"):
        securemodel.compile(ByName(lambda x: x), given, **{**TWO, "inputs": inputs})


def test_a_tensor_of_one_number_needs_no_secret():
    """The shape of a secret is public, so what is filled by a number is, too."""
    fills = lambda x: (x + x.new_zeros(2), x * torch.full_like(x, 3.0), x - torch.ones_like(x), x + x.new_full((2,), 2))
    x = torch.tensor([1.0, -2.0])
    made = run(securemodel.compile(ByName(fills), {"left": x, "right": x}, weights="a", inputs="b", outputs="b"), x, x)
    for one, other in zip(made, fills(3 * x - x), strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=0)


def test_operators_that_a_library_brings_later_are_taken_apart():
    class Twice(nn.Linear):
        def forward(self, x):
            return torch.ops.securemodel_late.twice(super().forward(x))

    compiled = lambda model: securemodel.compile(model.eval(), torch.zeros(1, 3), **TWO)
    compiled(nn.Linear(3, 3))
    library = torch.library.Library("securemodel_late", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x + x, "CompositeImplicitAutograd")
    assert any(node.op == "bilinear" for node in compiled(Twice(3, 3)).graph.nodes)


class Changing(nn.Module):
    """Changes its input, which no later run reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2))

    def forward(self, x):
        x -= 0.5
        return self.layers(x)


def test_a_model_may_change_its_input():
    model, x = Changing().eval(), torch.randn(3, 4)
    before = x.clone()
    made = run(securemodel.compile(model, x, **TWO), x)[0]
    assert torch.equal(x, before), "the user's own tensor stays as it was"
    torch.testing.assert_close(made, model(x.clone()).detach(), atol=2**-10, rtol=0)


def test_the_module_of_an_exported_program_is_a_model():
    x = torch.randn(3, 4)
    model = torch.export.export(nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval(), (x,)).module()
    assert securemodel.check(model, x)
    torch.testing.assert_close(run(securemodel.compile(model, x, **TWO), x)[0], model(x).detach(), atol=2**-10, rtol=0)


PLAIN = nn.Sequential(nn.Linear(4, 2), nn.ReLU()).eval()
NO_MODELS = {
    "lazy parameters": lambda x: nn.Sequential(nn.LazyLinear(2)),
    "an exported program": lambda x: torch.export.export(PLAIN, (x,)),
    "a TorchScript module": lambda x: torch.jit.trace(PLAIN, x),
    "a TorchScript module, or has one": lambda x: nn.Sequential(torch.jit.trace(PLAIN, x), nn.ReLU()),
    "no nn.Module": lambda x: torch.relu,
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("what", NO_MODELS)
def test_what_is_no_model_is_told_with_what_to_give(what):
    x = torch.zeros(3, 4)
    model = NO_MODELS[what](x)
    for refused in (lambda: securemodel.check(model, x), lambda: securemodel.compile(model, x, **TWO)):
        with pytest.raises(CompileError, match=rf"{what}.*(.|\n)*→"):
            refused()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (
            nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 5)
            ),
            (2, 3, 8, 8),
        ),
        (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 3, 8)),
    ],
    ids=["cnn", "transformer"],
)
def test_models_that_decompositions_leave_alone_are_not_traced_again(model, shape, monkeypatch):
    def compiled() -> str:
        return securemodel.compile(model, torch.zeros(shape), weights="a", inputs="b", outputs="b").text()

    monkeypatch.setattr(capture, "_is_lowered", lambda graph: False)
    twice = compiled()
    monkeypatch.undo()
    monkeypatch.setattr(capture, "_decomposed", None)
    assert compiled() == twice
