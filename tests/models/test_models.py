"""Whole image classifiers give the logits torch gives."""

import pytest
import torch
import zoo

import securemodel

SMALL = [(zoo.lenet5, (3, 1, 28, 28)), (zoo.alexnet_cifar10, (1, 3, 32, 32))]
LARGE = [(zoo.resnet18_cifar10, (1, 3, 32, 32)), (zoo.vgg16_cifar10, (1, 3, 32, 32))]
LARGE += [(zoo.resnet18, (1, 3, 224, 224)), (zoo.resnet50, (1, 3, 224, 224))]

CASES = [
    *(pytest.param(make, shape, id=make.__name__) for make, shape in SMALL),
    *(pytest.param(make, shape, id=make.__name__, marks=pytest.mark.slow) for make, shape in LARGE),
]


@pytest.fixture(autouse=True)
def fixed_weights():
    torch.manual_seed(20)


def secure_and_clear(make, shape, **settings) -> tuple[torch.Tensor, torch.Tensor]:
    model, images = make(), torch.randn(shape)
    program = securemodel.compile(model, images, **{"weights": "a", "inputs": "b", "outputs": "b", **settings})
    with torch.no_grad(), securemodel.local(program) as session:
        return session.run(images), model(images)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("make, shape", CASES)
def test_logits_agree_with_torch(make, shape):
    made, expected = secure_and_clear(make, shape)
    scale = float(expected.abs().max())
    assert 0.1 < scale < 100, "logits of this size make the bound below mean something else"
    assert float((made - expected).abs().max()) < 2.0**-8 * scale


@pytest.mark.parametrize("settings", [{"parties": ("b", "c", "a")}, {"width": 32}], ids=["three parties", "width 32"])
def test_lenet5_in_other_settings(settings):
    made, expected = secure_and_clear(zoo.lenet5, (2, 1, 28, 28), **settings)
    assert float((made - expected).abs().max()) < 2.0**-8 * float(expected.abs().max())


def test_several_images_are_the_same_as_one_by_one():
    model, images = zoo.lenet5(), torch.randn(5, 1, 28, 28)
    program = securemodel.compile(model, images[:2], weights="a", inputs="b", outputs="b")
    with torch.no_grad(), securemodel.local(program) as session:
        together = session.run(images)
        apart = torch.cat([session.run(image.unsqueeze(0)) for image in images])
        expected = model(images)
    for made in (together, apart):
        assert made.shape == expected.shape
        assert float((made - expected).abs().max()) < 2.0**-8 * float(expected.abs().max())
