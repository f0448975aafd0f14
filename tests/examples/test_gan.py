"""The example of private generation: images and scores are those of plain torch, and its parties draw them."""

import pytest
import torch

import securemodel


@pytest.mark.parametrize("settings", [{}, {"parties": ("client", "witness", "lab")}], ids=["two", "three"])
def test_images_and_scores_agree_with_plain_torch(settings, example):
    model, script = example("gan", "model").load_trained(), example("gan", "generate")
    given = script.latent(5)[:4]
    owners = {"weights": "lab", "inputs": "client", "outputs": "client"}
    program = securemodel.compile(model, given, **owners, **settings)
    with torch.no_grad(), securemodel.local(program) as session:
        made, right = session.run(given), model(given)
    assert right[0].shape == (4, 1, 28, 28) and right[0].std() > 0.3
    assert (made[0] - right[0]).abs().max() < 2.0**-10
    assert (made[1] - right[1]).abs().max() < 2.0**-8 * right[1].abs().max().clamp(min=1)


def test_the_shipped_weights_draw_ink_on_paper(example):
    """Different vectors give different images, mostly paper, with as much ink as the digits they were trained on."""
    model, train = example("gan", "model"), example("gan", "train")
    real = train.digits(train.HERE.parent / "lenet_mnist" / "images.npz")
    with torch.no_grad():
        drawn = model.load_trained().draw(torch.randn(200, model.LATENT, generator=torch.Generator().manual_seed(6)))
    assert drawn.std(0).mean() > 0.2
    assert abs(float((drawn > 0).float().mean() - (real > 0).float().mean())) < 0.05


def test_training_moves_both_networks(example):
    train = example("gan", "train")
    images = train.digits(train.HERE.parent / "lenet_mnist" / "images.npz")[:100]
    first, later = train.fit(images, 1, seed=3).state_dict(), train.fit(images, 5, seed=3).state_dict()
    for name in ("generator.0.weight", "discriminator.0.weight"):
        assert not torch.allclose(first[name], later[name])


@pytest.mark.slow
def test_the_parties_draw(example, run_example, tmp_path):
    pytest.importorskip("matplotlib")
    script = example("gan", "generate")
    said = run_example(script.__file__, [str(tmp_path), "3"], script.PARTIES)
    assert any(line.startswith("client | 16 images") and "rounds" in line for line in said)
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
