"""What is revealed of a model's result: exactly what was asked for, under the model's own names."""

import pytest
import torch
from running import TWO, difference, run
from torch import nn

import securemodel
from securemodel.compiler.lower import LOWERINGS
from securemodel.compiler.postprocess import capture_revealing, result_names
from securemodel.errors import CompileError

CLASSES = 7
needs_topk = pytest.mark.skipif(
    torch.ops.aten.topk.default not in LOWERINGS, reason="torch.topk has no secure version yet"
)


def classifier() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES)).eval()


@pytest.fixture(scope="module")
def inputs() -> torch.Tensor:
    return 3 * torch.randn(4, 5, generator=torch.Generator().manual_seed(3))


def top(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities, classes = scores.softmax(-1).topk(k)
    return classes, probabilities


def test_probabilities(inputs):
    model = classifier()
    (made,) = run(securemodel.compile(model, inputs, **TWO, reveal="probabilities"), inputs)
    assert difference(made, model(inputs).softmax(-1)) < 2**-9


def test_class_and_nothing_else(inputs):
    model = classifier()
    program = securemodel.compile(model, inputs, **TWO, reveal="class")
    (made,) = run(program, inputs)
    assert made.dtype == torch.int64 and torch.equal(made, model(inputs).argmax(-1))
    (revealed,) = [node for node in program.graph.nodes if node.op == "reveal"]
    assert revealed.shape == (4,) and revealed.frac == 0


@needs_topk
@pytest.mark.parametrize("k", [1, 2, CLASSES])
def test_top(inputs, k):
    model = classifier()
    with torch.no_grad():
        scores = model(inputs)
    classes, probabilities = run(securemodel.compile(model, inputs, **TWO, reveal=("top", k)), inputs)
    assert torch.equal(classes, top(scores, k)[0]) and difference(probabilities, top(scores, k)[1]) < 2**-8
    classes, best = run(securemodel.compile(model, inputs, **TWO, reveal=("top", k, "scores")), inputs)
    assert torch.equal(classes, top(scores, k)[0]) and difference(best, scores.topk(k).values) < 2**-10


@pytest.mark.parametrize("k", [1, 3, CLASSES])
def test_top_in_the_clear(inputs, k):
    """The owner of everything computes it with torch."""
    model = classifier()
    program = securemodel.compile(
        model, inputs, weights="b", inputs="b", outputs="a", parties=("a", "b"), reveal=("top", k)
    )
    classes, probabilities = run(program, inputs)
    assert torch.equal(classes, top(model(inputs), k)[0])
    assert difference(probabilities, top(model(inputs), k)[1]) < 2**-14


def test_without_a_secure_topk_the_error_is_the_usual_one(inputs, monkeypatch):
    monkeypatch.delitem(LOWERINGS, torch.ops.aten.topk.default, raising=False)
    with pytest.raises(securemodel.UnsupportedOperator, match="aten.topk.default  reveal Top"):
        securemodel.compile(classifier(), inputs, **TWO, reveal=("top", 2))


def test_weights_and_layers_keep_their_names(inputs):
    with torch.device("meta"):
        empty = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    program, model = securemodel.compile(empty, inputs, **TWO, reveal="class"), classifier()
    names = {n.attrs["name"] for n in program.graph.nodes if n.op == "placeholder"}
    assert names == {"input:0", "state:0.weight", "state:0.bias", "state:2.weight", "state:2.bias"}
    with securemodel.local(program) as session:
        session.load(program, model)
        assert torch.equal(session.run(inputs), model(inputs).argmax(-1))
    layers = [layer.name for layer in program.plan().layers]
    assert {"0 Linear", "1 ReLU", "2 Linear", "reveal Class"} <= set(layers)


def test_layers_of_the_models_own_forward_have_no_module_before_them(inputs):
    class Own(nn.Module):
        def forward(self, x):
            return x * 2

    plain, shown = (capture_revealing(Own(), (inputs,), reveal) for reveal in ("all", "class"))
    first = [next(n for n in c.graph.nodes if n.op == "call_function") for c in (plain, shown)]
    paths = [list(n.meta["nn_module_stack"].values())[-1][0] for n in first]
    assert paths == ["", ""]


def test_rows_stay_independent(inputs):
    model = classifier()
    program = securemodel.compile(model, inputs, **TWO, reveal="class")
    assert program.row_independent
    more = torch.cat([inputs, inputs.flip(0), inputs[:1]])
    assert torch.equal(run(program, more)[0], model(more).argmax(-1))


def test_over_rows_it_is_not_row_by_row():
    """One score a row: the class is one of the rows, so they belong together."""
    program = securemodel.compile(nn.Flatten(0), torch.zeros(3, 1), **TWO, reveal="class")
    assert not program.row_independent


def test_all_is_what_the_model_returns(inputs):
    plain, spelled = (securemodel.compile(classifier(), inputs, **TWO, **more) for more in ({}, {"reveal": "all"}))
    assert plain.digest == spelled.digest
    assert securemodel.compile(classifier(), inputs, **TWO, reveal="class").digest != plain.digest


def test_scores_in_a_mapping_or_tuple(inputs):
    class Named(nn.Module):
        def __init__(self, pack) -> None:
            super().__init__()
            self.inner, self.pack = classifier(), pack

        def forward(self, x):
            return self.pack(self.inner(x))

    for pack in (lambda x: {"logits": x}, lambda x: (x,)):
        (made,) = run(securemodel.compile(Named(pack), inputs, **TWO, reveal="class"), inputs)
        assert torch.equal(made, classifier()(inputs).argmax(-1))


@pytest.mark.parametrize(
    "function, says",
    [(lambda x: (x, x), "several results"), (lambda x: x > 0, "torch.bool"), (lambda x: x.sum(), r"\[\]")],
)
def test_results_that_are_no_scores(inputs, function, says):
    class Model(nn.Module):
        def forward(self, x):
            return function(x)

    with pytest.raises(CompileError, match=says):
        securemodel.compile(Model(), inputs, **TWO, reveal="class")


@pytest.mark.parametrize(
    "reveal", ["", "classes", None, 3, ("top",), ("top", 0), ("top", True), ("top", 2, "odds"), ("best", 2), ["class"]]
)
def test_words_that_mean_nothing(inputs, reveal):
    with pytest.raises(CompileError, match="means nothing"):
        securemodel.compile(classifier(), inputs, **TWO, reveal=reveal)


def test_more_than_there_are(inputs):
    with pytest.raises(CompileError, match="more than the model has: 7 classes"):
        securemodel.compile(classifier(), inputs, **TWO, reveal=("top", 8))


def test_names_of_results():
    assert result_names("all", 1) == ("output",) and result_names("all", 2) == ("output0", "output1")
    assert result_names("class", 1) == ("class",) and result_names("probabilities", 1) == ("probability",)
    assert result_names(("top", 2), 2) == ("class", "probability")
    assert result_names(("top", 2, "scores"), 2) == ("class", "score")
