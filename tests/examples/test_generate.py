"""The example of writing with a memory: what it writes is what transformers writes, and a letter costs what it costs."""

import pytest
import torch

import securemodel

WORDS, COUNT = "sea", 4
KINDS = pytest.mark.parametrize("kind", ["gpt2", "llama"])


@KINDS
def test_a_step_with_its_memory_is_the_model_with_its_own(kind, example):
    module = example("generate", "model")
    torch.manual_seed(5)
    model = module.new_model(kind)
    letters, inputs = module.numbers(module.SENTENCE[: module.PLACES]), module.first_inputs()
    step, wrote = module.Step(model).eval(), []
    with torch.no_grad():
        right = model(letters).logits.argmax(-1)
        for place in range(letters.shape[1]):
            given = {"given": letters[:, place : place + 1], "reading": torch.ones(1), "place": torch.tensor([place])}
            new, written, keys, values = step(**{**inputs, **given})
            inputs |= {"written": written, "keys": keys, "values": values}
            wrote.append(new)
    assert torch.equal(torch.cat(wrote, 1), right) and len(right.unique()) > 2


@KINDS
def test_it_writes_what_transformers_writes(kind, example):
    module, script = example("generate", "model"), example("generate", "write")
    model = module.trained(kind, steps=60)
    program = script.make_program(kind)
    reveals = [node for node in program.graph.nodes if node.op == "reveal"]
    assert [node.shape for node in reveals] == [(1, 1)], "a letter is revealed, and nothing of the memory"
    letters = module.numbers(WORDS)
    with torch.no_grad(), securemodel.local(program) as session:
        right = model.generate(letters, max_new_tokens=COUNT, do_sample=False, pad_token_id=0)[0, len(WORDS) :]
        session.load(program, module.Step(model).eval())
        written = script.write(session, WORDS, len(WORDS), COUNT)
        assert session.stats.rounds == program.plan().rounds, "the last letter costs what the plan says of any"
    assert written == "".join(module.LETTERS[at] for at in right.tolist())


@pytest.mark.slow
@KINDS
def test_the_parties_write(kind, example, run_example):
    script = example("generate", "write")
    said = run_example(script.__file__, [kind, "she s"], script.PARTIES)
    assert "client | she s[ells sea s]" in said
    assert not any(line.startswith("lab |") and "she" in line for line in said)
