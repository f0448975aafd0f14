"""What cannot be one program for all data is refused with the user's line; models and optimizers stay as they were."""

import copy
import random

import families
import numpy
import pytest
import torch
import torch.nn.functional as F
from stepping import sgd, vectors_and_classes
from torch import nn

from securemodel.errors import CompileError, InputError
from securemodel.training import capture_step

OUTSIDE = torch.zeros(())


def refusal(body, *words, model=None, optimizer=None):
    """The error when `body(model, optimizer, x, y)` is captured as a step: its text, which has these words."""
    model = model or families.mlp()
    optimizer = optimizer or sgd(model)

    def step(x, y):
        return body(model, optimizer, x, y)

    with pytest.raises(CompileError) as caught:
        capture_step(step, model, optimizer, vectors_and_classes()[0])
    text = str(caught.value)
    assert all(word in text for word in words), text
    return text


def line_of(body, offset):
    return f"test_refusals.py:{body.__code__.co_firstlineno + offset}"


def test_a_branch_on_a_loss():
    def body(model, optimizer, x, y):
        loss = F.cross_entropy(model(x), y)
        if loss > 3:
            loss = loss * 2
        return loss

    refusal(body, line_of(body, 2), "its `if` goes depends on values", "torch.where", "out of the step")


def test_a_number_out_of_a_tensor():
    def body(model, optimizer, x, y):
        loss = F.cross_entropy(model(x), y)
        return loss.item()

    refusal(body, line_of(body, 2), "`item`", "return the tensor")


def test_a_number_whose_error_is_caught():
    def body(model, optimizer, x, y):
        try:
            return float(model(x).sum())
        except Exception:
            return 0.0

    refusal(body, "takes values out of a tensor")


def test_rows_chosen_by_values():
    def body(model, optimizer, x, y):
        return model(x)[y > 1].sum()

    refusal(body, line_of(body, 1))


def test_a_check_of_values_inside_torch():
    def body(model, optimizer, x, y):
        return F.gaussian_nll_loss(model(x)[:, 0], y.float(), model(x)[:, 1] ** 2)

    refusal(body, line_of(body, 1), "takes values out of a tensor", "out of the step")


def test_a_step_that_does_not_run():
    def body(model, optimizer, x, y):
        return model(x.t())

    refusal(body, line_of(body, 1), "make the step run on its examples")


def test_a_tensor_that_is_no_state():
    def body(model, optimizer, x, y):
        OUTSIDE.add_(model(x).sum())

    refusal(body, line_of(body, 1), "belongs to no model", "buffer")


def test_a_model_that_was_not_given():
    other = nn.Linear(12, 12)

    def body(model, optimizer, x, y):
        model(other(x)).sum().backward()

    refusal(body, line_of(body, 1), "none of its models")
    assert other.weight.grad is None


def test_a_scheduler_in_the_step():
    model = families.mlp()
    optimizer = sgd(model)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1)

    def body(model, optimizer, x, y):
        schedule.step()

    refusal(body, line_of(body, 1), "StepLR", "outside of the step", model=model, optimizer=optimizer)
    assert schedule.last_epoch == 0 and optimizer.param_groups[0]["lr"] == 0.1


def test_a_learning_rate_changed_in_the_step():
    model = families.mlp()
    optimizer = sgd(model)

    def body(model, optimizer, x, y):
        optimizer.param_groups[0]["lr"] *= 0.5

    refusal(body, "changes lr of an optimizer", model=model, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize("draw", [random.random, lambda: numpy.random.rand()], ids=["random", "numpy"])
def test_random_numbers_that_would_be_constants(draw):
    def body(model, optimizer, x, y):
        return model(x * draw())

    before = random.getstate()
    refusal(body, "would be the same in every step")
    assert random.getstate() == before


def test_random_numbers_of_secret_probabilities():
    def body(model, optimizer, x, y):
        return torch.bernoulli(torch.sigmoid(model(x)))

    refusal(body, line_of(body, 1), "torch.rand_like(p) < p")


def test_a_closure():
    def body(model, optimizer, x, y):
        optimizer.step(lambda: 0.0)

    refusal(body, line_of(body, 1), "closure")


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.SparseAdam, torch.optim.Rprop, torch.optim.NAdam])
def test_optimizers_without_a_secure_form(kind):
    model = families.mlp()
    refusal(lambda *given: None, kind.__name__, "use ", model=model, optimizer=kind(model.parameters()))


def test_optimizers_with_a_step_of_their_own():
    class Mine(torch.optim.SGD):
        def step(self, closure=None):
            return super().step(closure)

    model = families.mlp()
    refusal(lambda *given: None, "Mine", model=model, optimizer=Mine(model.parameters()))
    optimizer = sgd(model)
    optimizer.step = lambda: None
    refusal(lambda *given: None, "its own `step`", model=model, optimizer=optimizer)
    optimizer = sgd(model)
    optimizer.register_step_post_hook(lambda *given: None)
    refusal(lambda *given: None, "hooks", model=model, optimizer=optimizer)


def test_hooks_on_gradients():
    model = families.mlp()
    model[0].weight.register_hook(lambda gradient: gradient * 2)
    refusal(lambda *given: None, "hooks on gradients", "model.0.weight", model=model)


def test_modules_that_cannot_be_traced():
    scripted = torch.jit.script(nn.Linear(12, 4))
    refusal(lambda *given: None, "torch.jit", model=scripted, optimizer=torch.optim.SGD(scripted.parameters(), lr=0.1))
    lazy = nn.Sequential(nn.LazyLinear(4))
    refusal(lambda *given: None, "no shape yet", "model.0.weight", model=lazy, optimizer=sgd(lazy))


def test_models_and_optimizers_that_do_not_belong_together():
    model, other = families.mlp(), families.mlp()
    refusal(lambda *given: None, "none of the models", model=model, optimizer=sgd(other))
    refusal(lambda *given: None, "same name", model={"a": model}, optimizer={"a": sgd(model)})
    refusal(lambda *given: None, "model is a SGD and no model", model=sgd(model), optimizer=sgd(model))


def test_a_constant_that_changes_after_the_capture():
    torch.manual_seed(1)
    family = families.of_optimizer(torch.optim.AdamW, lr=0.1)()
    public = capture_step(family.step, family.models, family.optimizers, family.batches[0]).public_inputs()
    family.optimizers.param_groups[0]["lr"] = 0.2
    assert public.next()["optimizer.groups.0.lr"] == 0.2
    family.optimizers.param_groups[0]["eps"] = 0.5
    with pytest.raises(InputError, match=r"eps of an optimizer has changed[\s\S]*optimizer.groups.0"):
        public.next()


def everything(model, optimizer):
    """What a capture could disturb, as values that can be compared."""
    modules = [(dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in model.modules()]
    parts = {k: v for k, v in vars(optimizer).items() if k not in ("param_groups", "state")}
    groups = [{**group, "params": [id(p) for p in group["params"]]} for group in optimizer.param_groups]
    state = {id(p): {k: copy.deepcopy(v) for k, v in s.items()} for p, s in optimizer.state.items()}
    flags = [(id(p), p.requires_grad, p.grad is None, p.detach().clone()) for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    return repr((modules, parts, groups, state, flags, buffers)), torch.get_rng_state().tolist(), random.getstate()


class Careless(nn.Module):
    """Changes itself in all the ways it can."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.register_buffer("last", torch.zeros(8, 4))
        self.calls, self.kept = 0, []

    def forward(self, x):
        self.calls += 1
        out = self.drop(self.norm(self.fc(x)))
        self.kept.append(out)
        self.seen = self.last = out.detach()
        self.fc.weight.requires_grad_(False)
        return out


@pytest.mark.parametrize("fails", [False, True])
def test_a_capture_leaves_no_trace(fails):
    torch.manual_seed(2)
    model = Careless()
    optimizer = torch.optim.Adam(model.parameters())
    F.cross_entropy(model(torch.randn(8, 12)), torch.randint(4, (8,))).backward()
    optimizer.step()
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    model.fc.weight.requires_grad_()

    def step(x, y):
        model.eval()
        model.train()
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.manual_seed(5)
        if fails:
            raise ValueError("no")
        return loss

    batch = vectors_and_classes()[0]
    before = everything(model, optimizer)
    try:
        captured = capture_step(step, model, optimizer, batch)
        assert captured.states["model.last"].output is not None
    except CompileError as problem:
        assert fails and "ValueError: no" in str(problem)
    assert everything(model, optimizer) == before
