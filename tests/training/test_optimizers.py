"""Each update beside torch's optimizer, on the same gradients, for 20 steps."""

import pytest
import torch

from securemodel.training.optimizers import Roots, rule_of, started
from securemodel.training.publics import PublicInputs, Update

SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
RMSprop, Adagrad = torch.optim.RMSprop, torch.optim.Adagrad

SAME = [
    (SGD, {}),
    (SGD, {"weight_decay": 0.1, "maximize": True}),
    (SGD, {"momentum": 0.9, "dampening": 0.4}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (Adam, {"weight_decay": 0.1}),
    (Adam, {"betas": (0.5, 0.9), "decoupled_weight_decay": True, "weight_decay": 0.1}),
    (AdamW, {}),
    (AdamW, {"amsgrad": True, "betas": (0.5, 0.6)}),
    (Adam, {"amsgrad": True, "weight_decay": 0.1}),
    (RMSprop, {"weight_decay": 0.1}),
    (RMSprop, {"centered": True, "momentum": 0.9, "alpha": 0.9}),
    (Adagrad, {"lr_decay": 0.1, "weight_decay": 0.1}),
]
ids = [f"{kind.__name__} {' '.join(options)}".strip() for kind, options in SAME]


def both(kind, options, roots, gradients, lr=0.01):
    """The parameters after each step: of the rule, and of torch."""
    start = torch.linspace(-1, 1, gradients.shape[1], dtype=gradients.dtype)
    parameter = torch.nn.Parameter(start.clone())
    optimizer = kind([parameter], lr=lr, **options)
    group, rule = optimizer.param_groups[0], rule_of(optimizer, "optimizer")
    memory, mine = started(optimizer, group, "optimizer"), start
    state = {slot: torch.zeros_like(start) for slot in rule.slots(group)}
    for gradient in gradients:
        numbers, memory = rule.numbers(group, memory)
        sign = -1 if group["maximize"] else 1
        mine, state = rule.update(mine, sign * gradient, state, numbers, group, roots)
        parameter.grad = gradient.clone()
        optimizer.step()
        yield mine, parameter.detach()


@pytest.mark.parametrize(("kind", "options"), SAME, ids=ids)
def test_twenty_steps_are_those_of_torch(kind, options):
    """Gradients far above eps: rsqrt(v + eps^2) is 1 / (sqrt(v) + eps) but for a relative eps / sqrt(v)."""
    torch.manual_seed(0)
    size = 0.1 + torch.rand(20, 50)
    gradients = size * torch.randn(20, 50).sign()
    for mine, theirs in both(kind, options, Roots(), gradients):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", [Adam, RMSprop, Adagrad])
@pytest.mark.parametrize("size", [1e-12, 1e-8, 1e-6, 1.0])
def test_the_first_update_is_within_the_stated_factor_of_torchs(kind, size):
    """sqrt(v + eps^2) is between (sqrt(v) + eps) / sqrt(2) and sqrt(v) + eps."""
    gradients = size * torch.linspace(0.1, 1, 50, dtype=torch.float64)[None]
    start = torch.linspace(-1, 1, 50, dtype=torch.float64)
    ((mine, theirs),) = both(kind, {}, Roots(), gradients)
    ratio = (start - mine) / (start - theirs)
    assert (ratio >= 1 - 1e-3).all() and (ratio <= 2**0.5 + 1e-3).all()


@pytest.mark.parametrize("scale", [1.0, 128.0])
def test_a_floor_is_felt_as_an_eps_of_its_root_by_the_scale(scale):
    """With a scale S and a floor F the update is that of torch with an eps between 0.4 and 1 times sqrt(F) / S.

    For every v the two are equal at eps = sqrt(v + F/S^2) - sqrt(v), which is at most sqrt(F) / S; for v < F/S^2 at
    least 0.4 of it.
    """
    floor = 2.0**-10
    eps = floor**0.5 / scale
    gradients = eps * torch.linspace(1e-3, 1, 50, dtype=torch.float64)[None]
    start = torch.linspace(-1, 1, 50, dtype=torch.float64)
    ((mine, largest),) = both(Adam, {"eps": 0.41 * eps}, Roots(scale, floor), gradients)
    ((_, smallest),) = both(Adam, {"eps": eps}, Roots(scale, floor), gradients)
    made = (start - mine) / 0.01
    assert ((start - smallest) / 0.01 <= made + 1e-9).all() and (made <= (start - largest) / 0.01 + 1e-9).all()


def test_schedulers_do_not_miss_the_updates(recwarn):
    """A scheduler of torch warns when it is called before the optimizer was; public numbers stand for an update."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = SGD([parameter], lr=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    update = Update("o.groups.0", "", rule_of(optimizer, "o"), optimizer, 0, ("p",), {})
    PublicInputs([update], {"o.groups.0": {"steps": 0}}).next()
    schedule.step()
    assert not recwarn.list
