"""Runs captured steps beside eager ones."""

from __future__ import annotations

import families
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from securemodel.training import as_torch_keeps_them, capture_step, draws, run_in_float, start_states
from securemodel.training.naming import named, tensors


class Given(TorchDispatchMode):
    """Random operators of torch give these numbers, in order."""

    def __init__(self, random):
        super().__init__()
        self.random = iter(random)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **(kwargs or {}))
        drawn = next(self.random)
        return args[0].copy_(drawn) if func._schema.is_mutable else drawn


def values_of(models):
    return {name: tensor.detach().clone() for name, tensor in tensors(named(models, "model"))}


def in_step(family, captured):
    """Runs the captured step and the eager one, three times; yields what both have after each."""
    states, public = start_states(captured), captured.public_inputs()
    for seed, batch in enumerate(family.batches):
        numbers = public.next()
        random = draws(captured, torch.Generator().manual_seed(seed))
        states, returned = run_in_float(captured, states, batch, numbers, random)
        with Given(random.values()):
            expected = family.step(*batch)
        for scheduler in family.schedulers:
            scheduler.step()
        yield states, returned, expected, public.memory


def kept_by(optimizers, models):
    """The states of torch's optimizers by full name."""
    names = {id(tensor): name for name, tensor in tensors(named(models, "model"))}
    return {
        f"{optimizer}.{names[id(parameter)]}.{slot}": value
        for optimizer, thing in named(optimizers, "optimizer").items()
        for parameter, state in thing.state.items()
        for slot, value in state.items()
        if slot != "step" and value is not None
    }


def assert_alike(made, expected, tolerance):
    assert made.keys() >= expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            made[name], value.detach(), rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def check_family(family, tolerance, **options):
    captured = capture_step(family.step, family.models, family.optimizers, family.batches[0], **options)
    for states, returned, expected, memory in in_step(family, captured):
        assert_alike(states, values_of(family.models), tolerance)
        assert_alike(
            as_torch_keeps_them(captured, states, memory), kept_by(family.optimizers, family.models), tolerance
        )
        torch.testing.assert_close(returned, expected, rtol=tolerance, atol=tolerance)
    return captured


def vectors_and_classes(count=3):
    torch.manual_seed(3)
    return [(torch.randn(8, 12), torch.randint(4, (8,))) for _ in range(count)]


def family_of(step, models, optimizers, *schedulers):
    return families.Family(step, models, optimizers, vectors_and_classes(), list(schedulers))


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})
