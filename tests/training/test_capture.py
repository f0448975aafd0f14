"""A captured step computes what the user's loop body computes, and leaves everything as it was."""

import copy

import families
import pytest
import torch
import torch.nn.functional as F
from families import EXACT, ROOTS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from securemodel.training import (
    as_torch_keeps_them,
    capture_step,
    draws,
    run_in_float,
    start_states,
)  # fmt: skip
from securemodel.training.naming import named, tensors

SLOW = ("encoder", "gan", "seq2seq", "resnet", "lstm", "gru")


def cases(table):
    return [pytest.param(table[name], id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name in table]


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


@pytest.mark.parametrize("make", cases(EXACT))
def test_steps_are_those_of_torch(make):
    torch.manual_seed(7)
    check_family(make(), 1e-6)


@pytest.mark.parametrize("make", cases(ROOTS))
def test_steps_with_roots_are_near_those_of_torch(make):
    """In float64: in float32 a parameter whose gradient is 0, such as a bias before batch norm, moves by its noise."""
    torch.manual_seed(7)
    check_family(make().double(), 1e-6, scale=1, floor=0)


def vectors_and_classes(count=3):
    torch.manual_seed(3)
    return [(torch.randn(8, 12), torch.randint(4, (8,))) for _ in range(count)]


def family_of(step, models, optimizers, *schedulers):
    return families.Family(step, models, optimizers, vectors_and_classes(), list(schedulers))


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.1, **options})


# Loop bodies as people write them


def test_gradients_cleared_at_the_end():
    model = families.mlp()
    optimizer = sgd(model)

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    captured = check_family(family_of(step, model, optimizer), 1e-6)
    assert not [name for name in captured.states if name.endswith(".grad")]


def test_gradients_that_nobody_clears_are_states():
    model = families.mlp()
    optimizer = sgd(model)

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    captured = check_family(family_of(step, model, optimizer), 1e-6)
    assert captured.states["model.0.weight.grad"].kind == "gradient"
    assert not captured.states["model.0.weight.grad"].start.any()


def test_gradients_set_to_zero_are_no_states():
    model = families.mlp()
    optimizer = sgd(model, momentum=0.9)

    def step(x, y):
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    captured = check_family(family_of(step, model, optimizer), 1e-6)
    assert captured.returned.names == () and len(captured.states) == 12


def test_several_backwards_and_a_list_of_parameters_made_before():
    model = families.mlp()
    optimizer, parameters = sgd(model), [p for p in model.parameters()]

    def step(x, y):
        optimizer.zero_grad()
        for part, labels in zip(x.chunk(2), y.chunk(2), strict=True):
            (F.cross_entropy(model(part), labels) / 2).backward()
        norm = nn.utils.clip_grad_norm_(parameters, 0.05)
        optimizer.step()
        return norm

    check_family(family_of(step, model, optimizer), 1e-6)


def test_groups_frozen_parameters_and_weights_used_twice():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.encode, self.decode, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 4)
            self.decode.weight = self.encode.weight
            self.head.bias.requires_grad_(False)
            self.unused = nn.Linear(2, 2)

        def forward(self, x):
            return self.head(torch.tanh(self.decode(torch.tanh(self.encode(x)))))

    model = Tied()
    groups = [
        {"params": [*model.encode.parameters(), model.decode.bias], "lr": 0.2, "weight_decay": 0.01},
        {"params": [*model.head.parameters(), *model.unused.parameters()], "momentum": 0.5},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [lambda n: 0.5**n, lambda n: 1 / (1 + n)])
    captured = check_family(family_of(step, model, optimizer, schedule), 1e-6)
    assert captured.numbers == ("optimizer.groups.0.lr", "optimizer.groups.1.lr", "optimizer.groups.1.momentum")
    assert captured.states["model.head.bias"].output is None
    assert "model.decode.weight" not in captured.states
    assert "optimizer.model.unused.weight.momentum_buffer" not in captured.states


def test_a_critic_with_cut_weights_updated_twice_and_a_penalty():
    """As in WGAN (Arjovsky et al. 2017) and WGAN-GP (Gulrajani et al. 2017)."""
    generator, critic = nn.Linear(4, 12), nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 1))
    models = {"generator": generator.double(), "critic": critic.double()}
    of_generator = torch.optim.RMSprop(generator.parameters(), lr=1e-3, eps=1e-12)
    of_critic = torch.optim.Adam(critic.parameters(), lr=1e-3, eps=1e-12)

    def step(real):
        for _ in range(2):
            fake = generator(torch.randn(8, 4, dtype=torch.float64))
            mixed = (real + torch.rand(8, 1, dtype=torch.float64) * (fake - real)).detach().requires_grad_()
            (slope,) = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)
            loss = critic(fake.detach()).mean() - critic(real).mean() + ((slope.norm(dim=1) - 1) ** 2).mean()
            of_critic.zero_grad()
            loss.backward()
            of_critic.step()
            for parameter in critic.parameters():
                parameter.data.clamp_(-0.1, 0.1)
        for parameter in critic.parameters():
            parameter.requires_grad_(False)
        of_generator.zero_grad()
        (-critic(generator(torch.randn(8, 4, dtype=torch.float64))).mean()).backward()
        of_generator.step()
        for parameter in critic.parameters():
            parameter.requires_grad = True
        return loss

    batches = [(x.double(),) for x, _ in vectors_and_classes()]
    family = families.Family(step, models, {"g": of_generator, "c": of_critic}, batches)
    captured = check_family(family, 1e-6, scale=1, floor=0)
    assert [n for n in captured.numbers if n.startswith("c.groups.0.lr")] == ["c.groups.0.lr", "c.groups.0.lr@1"]
    assert [random.kind for random in captured.random] == ["normal", "uniform"] * 2 + ["normal"]


def test_a_moving_average_of_weights():
    model = families.mlp()
    average, optimizer = copy.deepcopy(model).requires_grad_(False), sgd(model)

    def step(x, y):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
                slow.lerp_(fast, 0.1)

    captured = check_family(family_of(step, [model, average], optimizer), 1e-6)
    assert captured.states["model1.0.weight"].output is not None


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_a_schedule_that_cycles_momentum_too(kind):
    model = families.mlp().double()
    optimizer = kind(model.parameters(), lr=0.1, **({"momentum": 0.9} if kind is torch.optim.SGD else {"eps": 1e-12}))

    def step(x, y):
        loss = F.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    family = family_of(step, model, optimizer, schedule)
    family.batches = [(x.double(), y) for x, y in vectors_and_classes()]
    captured = capture_step(step, model, optimizer, family.batches[0], scale=1, floor=0)
    for states, returned, expected, _ in in_step(family, captured):
        assert_alike(states, values_of(model), 1e-6)
        torch.testing.assert_close(returned, expected)


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD])
def test_an_optimizer_that_has_already_made_steps(kind):
    torch.manual_seed(4)
    options = {"momentum": 0.9, "dampening": 0.5} if kind is torch.optim.SGD else {"eps": 1e-12}
    family = families.of_optimizer(kind, lr=1e-2, **options)().double()
    for batch in family.batches:
        family.step(*batch)
    check_family(family, 1e-6, scale=1, floor=0)


# What a step returns, and names


def test_names_of_what_is_given_and_returned():
    model = families.mlp()
    optimizer = sgd(model)

    def train(x, y):
        out = model(x)
        loss = F.cross_entropy(out, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return out, loss

    def pair(x, y):
        out, loss = train(x, y)
        return loss, out

    def parts(x, y):
        out, loss = train(x, y)
        return {"loss": loss, "rest": [out, 3, None]}

    batch = vectors_and_classes()[0]
    captured = capture_step(pair, model, optimizer, batch)
    assert captured.returned.names == ("loss", "out")
    assert [part.name for part in captured.batch] == ["x", "y"] and captured.batch[1].dtype == torch.int64
    captured = capture_step(parts, model, optimizer, {"y": batch[1], "x": batch[0]})
    assert captured.returned.names == ("loss", "rest.0")
    assert [part.name for part in captured.batch] == ["y", "x"]
    made = captured.returned.restore([torch.tensor(1.0), torch.tensor(2.0)])
    assert made == {"loss": torch.tensor(1.0), "rest": [torch.tensor(2.0), 3, None]}


def test_names_are_stable():
    def names():
        captured = check_family(ROOTS["gan"]().double(), 1e-6, scale=1, floor=0)
        return list(captured.states), captured.numbers

    states, numbers = names()
    assert (states, numbers) == names()
    assert {"generator.0.weight", "generator.4.num_batches_tracked", "optimizer0.generator.0.weight.exp_avg_sq"} < {
        *states
    }
    assert "optimizer1.critic.3.bias.exp_avg" in states and "optimizer1.groups.0.exp_avg_gain" in numbers


def test_counts_of_steps_are_public_and_nothing_else():
    family = EXACT["resnet"]()
    captured = capture_step(family.step, family.models, family.optimizers, family.batches[0])
    public = {name for name, state in captured.states.items() if state.public}
    assert public == {name for name in captured.states if name.endswith("num_batches_tracked")} and len(public) == 6
