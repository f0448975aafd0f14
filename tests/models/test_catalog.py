"""Other people's models: a dozen agree with themselves in the clear, and all of them, or are refused as the page says."""

import runpy
import sys
from pathlib import Path

import catalog
import pytest
import torch
import transformers

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "models.md"
DOZEN = (
    "BertForSequenceClassification", "DebertaV2Model", "XLNetModel", "T5Model", "GPT2ForSequenceClassification",
    "LlamaForCausalLM", "Qwen3Model", "Gemma2ForCausalLM", "Mamba2ForCausalLM", "ViTForImageClassification", "CLIPTextModel",
    "Wav2Vec2Model",
)  # fmt: skip
MODELS = {
    name: (architecture, make) for library, architecture, name, make in catalog.models() if library == "transformers"
}


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(DOCS / "make_models.py"))


@pytest.mark.parametrize(
    "name", [*DOZEN[::4], *(pytest.param(name, marks=pytest.mark.slow) for at, name in enumerate(DOZEN) if at % 4)]
)
def test_a_dozen(script, name):
    tried = script["run"](*MODELS[name][1]())
    assert tried.status == "agrees" and tried.error < 2e-3, tried


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", MODELS)
def test_every_class_is_what_the_page_says(script, name):
    architecture, make = MODELS[name]
    tried = script["apart"](make)
    listed = section(f"transformers {transformers.__version__}").partition(f"| {architecture} | `{name}` | ")[2]
    said = listed.partition(" |")[0]
    assert tried.status == (said if said in ("refused", "WRONG", "FAILED") else "agrees"), tried


def section(title: str) -> str:
    """The part of the page under this heading."""
    return PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_page_has_the_installed_version():
    assert section(f"transformers {transformers.__version__}"), "run `python docs/make_models.py`"


@pytest.mark.parametrize(
    ("made", "right", "error"),
    [([1.0, 2.0], [1.0, 2.0], 0.0), ([1.0, 2.5], [1.0, 2.0], 0.25), ([float("nan")], [1.0], float("inf")),
     ([1.0], [0.0], float("inf")), ([1.0], [1.0, 1.0], float("inf"))],
)  # fmt: skip
def test_differences_are_relative_and_nothing_escapes_them(script, made, right, error):
    assert script["difference"](torch.tensor(made), torch.tensor(right)) == error


def test_a_model_that_crashes_its_process_is_told(script):
    assert "ended without a word" in script["apart"](lambda: sys.exit(3)).why
    linear = torch.nn.Linear(2, 2), {"input": torch.ones(1, 2)}
    assert script["apart"](lambda: linear).status == "agrees"
