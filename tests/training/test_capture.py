"""A captured step computes what the user's loop body computes, and leaves everything as it was."""

import copy

import families
import pytest
import torch
import torch.nn.functional as F
from families import EXACT, ROOTS
from stepping import assert_alike, check_family, family_of, in_step, sgd, values_of, vectors_and_classes
from torch import nn
from torch.utils.checkpoint import checkpoint

from securemodel.compiler.capture import source_line
from securemodel.compiler.lowering import lower_model
from securemodel.training import capture_step

SLOW = ("encoder", "gan", "seq2seq", "resnet", "lstm", "gru", "lenet5")


def cases(table):
    return [pytest.param(table[name], id=name, marks=[pytest.mark.slow] if name in SLOW else []) for name in table]


@pytest.mark.parametrize("make", cases(EXACT))
def test_steps_are_those_of_torch(make):
    torch.manual_seed(7)
    check_family(make(), 1e-6)


@pytest.mark.parametrize("make", cases(ROOTS))
def test_steps_with_roots_are_near_those_of_torch(make):
    """In float64: in float32 a parameter whose gradient is 0, such as a bias before batch norm, moves by its noise."""
    torch.manual_seed(7)
    check_family(make().double(), 1e-6, scale=1, floor=0)


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


def test_compiled_and_checkpointed_modules_run_as_they_are_written():
    class Careful(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 4)

        def forward(self, x):
            hidden = checkpoint(lambda x: F.relu(self.first(x)), x, use_reentrant=False)
            return self.second(hidden)

    model = torch.compile(Careful(), backend="eager")
    optimizer = torch.optim.SGD(model.parameters(), lr=torch.tensor(0.1))

    def step(x, y):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    check_family(family_of(step, model, optimizer), 1e-6)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)


def test_gradients_of_another_layout():
    model = nn.Linear(12, 4)

    def step(x, y):
        model.zero_grad()
        F.cross_entropy(torch.einsum("bi,oi->bo", x, model.weight), y).backward()
        optimizer.step()

    optimizer = sgd(model)
    check_family(family_of(step, model, optimizer), 1e-6)


@pytest.mark.parametrize("positions", [[3, 1, 1], torch.tensor([True, False, True, False])], ids=["list", "mask"])
def test_public_positions(positions):
    model = families.mlp()
    optimizer = sgd(model)

    def step(x, y):
        optimizer.zero_grad()
        model(x)[:, positions].square().mean().backward()
        optimizer.step()

    check_family(family_of(step, model, optimizer), 1e-6)


def test_weights_written_through_their_data():
    model = families.mlp()

    def step(x, y):
        F.cross_entropy(model(x), y).backward()
        for parameter in model.parameters():
            parameter.data -= 0.1 * parameter.grad
            parameter.grad = None

    check_family(family_of(step, model, sgd(model)), 1e-6)


def test_weights_returned_as_they_are():
    model = families.mlp()
    optimizer = sgd(model)

    def step(x, y):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        return [parameter for parameter in model.parameters()]

    check_family(family_of(step, model, optimizer), 1e-6)
    captured = capture_step(lambda: {"bias": model[0].bias}, model, None, ())
    assert captured.captured.states[captured.captured.outputs[0].name] == "model.0.bias"


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


OTHERS = ["", "def other(x):\n    return loss, out\n", "step = (\n"]


@pytest.mark.parametrize("text", OTHERS)
def test_a_step_whose_file_is_another_by_now_has_numbers_for_names(tmp_path, text):
    model = families.mlp()
    source = "def pair(x, y):\n    out = model(x)\n    loss = F.cross_entropy(out, y)\n    return loss, out\n"
    given = {"model": model, "F": F}
    path = tmp_path / "step.py"
    path.write_text(text)
    exec(compile(source, str(path), "exec"), given)
    captured = capture_step(given["pair"], model, sgd(model), vectors_and_classes()[0])
    assert captured.returned.names == ("0", "1")


@pytest.mark.slow
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
    model = nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4))
    optimizer = sgd(model, momentum=0.9)
    captured = capture_step(train_step(model, optimizer), model, optimizer, vectors_and_classes()[0])
    public = {name for name, state in captured.states.items() if state.public}
    assert public == {name for name in captured.states if name.endswith("num_batches_tracked")} and len(public) == 2


# The graph


def train_step(model, optimizer, loss_of=F.cross_entropy):
    def step(x, y):
        loss = loss_of(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    return step


def test_lines_of_forward_backward_and_update():
    model = nn.ModuleDict({"fc1": nn.Linear(12, 4)})
    optimizer = torch.optim.AdamW(model.parameters())

    def step(x, y):
        hidden = model["fc1"](x)
        loss = F.cross_entropy(torch.tanh(model["fc1"](hidden @ torch.ones(4, 12))), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss

    first = step.__code__.co_firstlineno
    graph = capture_step(step, model, optimizer, vectors_and_classes()[0]).captured.graph
    lines = {source_line(node) for node in graph.nodes if node.op == "call_function"}
    place = lambda line: f"test_capture.py:{first + line}"
    code = 'loss = F.cross_entropy(torch.tanh(model["fc1"](hidden @ torch.ones(4, 12))), y)'
    assert lines == {
        f'model.fc1 Linear  {place(1)}  hidden = model["fc1"](x)',
        f'backward of model.fc1 Linear  {place(1)}  hidden = model["fc1"](x)',
        f"model.fc1@1 Linear  {place(2)}  {code}",
        f"backward of model.fc1@1 Linear  {place(2)}  {code}",
        f"{place(2)}  {code}",
        f"{place(2)}  backward of {code}",
        f"{place(4)}  loss.backward()",
        f"optimizer AdamW  {place(5)}  optimizer.step()",
    }


def targets(family):
    captured = capture_step(family.step, family.models, family.optimizers, family.batches[0])
    return [str(n.target).removesuffix(".default") for n in captured.captured.graph.nodes if n.op == "call_function"]


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("logistic regression", "binary_cross_entropy_with_logits"),
        ("sgd", "_log_softmax _log_softmax_backward_data nll_loss_forward nll_loss_backward threshold_backward"),
        ("autoencoder", "sigmoid_backward tanh_backward"),
        ("lenet5", "convolution convolution_backward max_pool2d_with_indices max_pool2d_with_indices_backward"),
        ("resnet", "_native_batch_norm_legit_functional native_batch_norm_backward convolution_backward"),
    ],
)
def test_operators_with_lowerings_of_their_own_are_kept(name, kept):
    assert {f"aten.{operator}" for operator in kept.split()} <= {*targets(EXACT[name]())}


def test_operators_of_layers_and_losses_are_kept():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.Linear(12, 16)

        def forward(self, x):
            y = F.interpolate(F.avg_pool2d(self.norm(self.conv(self.fc(x).view(-1, 1, 4, 4))), 2), scale_factor=2)
            y = F.gelu(F.silu(F.hardtanh(F.elu(F.leaky_relu(y)))))
            return torch.softmax(F.adaptive_avg_pool2d(F.softplus(F.mish(y)), 2).flatten(1)[:, :4], 1)

    model = Layers()
    found = {*targets(family_of(train_step(model, sgd(model)), model, sgd(model)))}
    backward = "avg_pool2d _adaptive_avg_pool2d gelu silu hardtanh elu leaky_relu softplus mish native_group_norm"
    assert {f"aten.{operator}_backward" for operator in backward.split()} <= found
    assert {"aten.native_group_norm", "aten._softmax", "aten._softmax_backward_data"} <= found
    assert "aten.upsample_nearest2d_backward.vec" in found or "aten.upsample_nearest2d_backward" in found


def test_the_graph_is_functional_and_its_updates_are_on_one_vector():
    model = families.mlp()
    optimizer = torch.optim.AdamW(model.parameters())
    captured = capture_step(train_step(model, optimizer), model, optimizer, vectors_and_classes()[0])
    calls = [node for node in captured.captured.graph.nodes if node.op == "call_function"]
    assert not [n for n in calls if getattr(n.target, "_schema", None) and n.target._schema.is_mutable]
    assert sum(node.target is torch.ops.aten.rsqrt.default for node in calls) == 1


def test_the_graph_can_be_lowered():
    model = nn.Linear(12, 1)
    optimizer = sgd(model, momentum=0.9)
    examples = torch.randn(8, 12), torch.randn(8, 1)
    captured = capture_step(
        train_step(model, optimizer, lambda x, y: ((x - y) ** 2).mean()), model, optimizer, examples
    )
    owners = ["bank", "shop", *["public"] * len(captured.numbers)]
    lowered = lower_model(captured.captured, "bank", owners)
    assert not lowered.problems
    assert len(lowered.outputs) == 5 and all(value.secret for value in lowered.outputs)


def test_random_numbers_are_public_inputs():
    model = families.mlp()
    optimizer = sgd(model)

    def step(x, y):
        x = F.dropout(x, 0.25) + torch.normal(0.0, 2.0, (8, 12)) + torch.empty(12).uniform_(-1, 3)
        loss = F.cross_entropy(model(x), (y + torch.randint(1, 4, (8,))) % 4)
        loss = loss + (torch.bernoulli(torch.ones(3), 0.5) + torch.randperm(3)).sum() * 0
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    random = capture_step(step, model, optimizer, vectors_and_classes()[0]).random
    assert [(r.name, r.kind, r.parameters, r.shape) for r in random] == [
        ("random:0", "bernoulli", (0.75,), (8, 12)),
        ("random:1", "normal", (0.0, 2.0), (8, 12)),
        ("random:2", "uniform", (-1.0, 3.0), (12,)),
        ("random:3", "integers", (1.0, 4.0), (8,)),
        ("random:4", "bernoulli", (0.5,), (3,)),
        ("random:5", "permutation", (), (3,)),
    ]
    assert random[0].source.startswith(f"test_capture.py:{step.__code__.co_firstlineno + 1}, in step: x = F.dropout")
    drawn = [r.draw(torch.Generator().manual_seed(1)) for r in random]
    assert {*drawn[0].unique().tolist()} == {0.0, 1.0} and drawn[3].dtype == torch.int64
    assert drawn[5].sort().values.tolist() == [0, 1, 2] and -1 <= drawn[2].min() <= drawn[2].max() < 3
