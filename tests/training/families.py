"""Training steps in ordinary PyTorch, one family each: `make()` gives (step, models, optimizers, batches, schedulers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import lr_scheduler


@dataclass
class Family:
    step: Callable[..., Any]
    models: Any
    optimizers: Any
    batches: Sequence[tuple[torch.Tensor, ...]]
    schedulers: Sequence[Any] = field(default_factory=list)

    def double(self) -> Family:
        """The same in float64."""
        for model in self.models.values() if isinstance(self.models, dict) else [self.models]:
            model.double()
        for optimizer in self.optimizers if isinstance(self.optimizers, list) else [self.optimizers]:
            for state in optimizer.state.values():
                state.update({key: value.double() for key, value in state.items() if key != "step"})
        self.batches = [tuple(t.double() if t.is_floating_point() else t for t in batch) for batch in self.batches]
        return self


class LogisticRegression(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(12, 1)

    def forward(self, x):
        return self.linear(x).squeeze(-1)


class LeNet5(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 16, 5)
        self.fc1, self.fc2, self.fc3 = nn.Linear(400, 120), nn.Linear(120, 84), nn.Linear(84, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        return self.fc3(F.relu(self.fc2(F.relu(self.fc1(x)))))


class Block(nn.Module):
    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.norm2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        self.short = (
            nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o)) if i != o else nn.Identity()
        )

    def forward(self, x):
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.Sequential(Block(4, 4, 1), Block(4, 8, 2))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1).flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.cells, self.fc = kind(8, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x):
        return self.fc(self.cells(x)[0][:, -1])


class Encoder(nn.Module):
    def __init__(self, dropout):
        super().__init__()
        self.embedding, self.positions = nn.Embedding(64, 16), nn.Parameter(0.1 * torch.randn(6, 16))
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout, "gelu", batch_first=True, norm_first=True)
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 4)

    def forward(self, tokens):
        return self.fc(self.norm(self.layer(self.embedding(tokens) + self.positions)).mean(1))


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(32, 8), nn.Embedding(32, 8)
        self.encoder, self.decoder = nn.GRU(8, 8, batch_first=True), nn.GRU(16, 8, batch_first=True)
        self.out = nn.Linear(16, 32)

    def forward(self, source, target):
        hidden, last = self.encoder(self.source(source))
        context = last.transpose(0, 1).expand(-1, target.shape[1], -1)
        decoded, _ = self.decoder(torch.cat([self.target(target), context], -1), last)
        attended = torch.softmax(decoded @ hidden.transpose(1, 2), -1) @ hidden
        return self.out(torch.cat([decoded, attended], -1))


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode, self.decode = nn.Linear(20, 8), nn.Sequential(nn.Linear(4, 20), nn.Sigmoid())

    def forward(self, x):
        mean, log_var = self.encode(x).chunk(2, -1)
        return self.decode(mean + torch.randn_like(mean) * torch.exp(log_var / 2)), mean, log_var


def mlp():
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))


def classes(n, x):
    return [(x(), torch.randint(n, (8,))) for _ in range(3)]


def vectors(n=12):
    return torch.randn(8, n)


def supervised(model, batches, make=lambda p: torch.optim.SGD(p, lr=0.1), loss_of=F.cross_entropy, between=None):
    """The ordinary loop body for a model and a loss; `between` runs between backward and the update."""
    optimizer = make(model.parameters())

    def step(*batch):
        loss = loss_of(model(*batch[:-1]), batch[-1])
        optimizer.zero_grad()
        loss.backward()
        if between:
            between(model)
        optimizer.step()
        return loss

    return Family(step, model, optimizer, batches, [lr_scheduler.StepLR(optimizer, 1, 0.5)])


def of_optimizer(kind, **options):
    return lambda: supervised(mlp(), classes(4, vectors), lambda p: kind(p, **options))


def gan():
    generator = nn.Sequential(
        nn.Linear(4, 16), nn.ReLU(), nn.Unflatten(1, (4, 2, 2)), nn.ConvTranspose2d(4, 4, 4, 2, 1, bias=False),
        nn.BatchNorm2d(4), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1), nn.Tanh(),
    )  # fmt: skip
    critic = nn.Sequential(nn.Conv2d(1, 4, 4, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64, 1))
    of_generator = torch.optim.Adam(generator.parameters(), lr=1e-3, betas=(0.5, 0.999), eps=1e-12)
    of_critic = torch.optim.Adam(critic.parameters(), lr=2e-3, betas=(0.5, 0.999), eps=1e-12)
    loss_of = F.binary_cross_entropy_with_logits

    def step(real, noise):
        fake = generator(noise)
        d_real, d_fake = critic(real).squeeze(1), critic(fake.detach()).squeeze(1)
        d_loss = loss_of(d_real, torch.ones_like(d_real)) + loss_of(d_fake, torch.zeros_like(d_fake))
        of_critic.zero_grad()
        d_loss.backward()
        of_critic.step()
        g_loss = loss_of(critic(fake).squeeze(1), torch.ones_like(d_fake))
        of_generator.zero_grad()
        g_loss.backward()
        of_generator.step()
        return {"critic": d_loss, "generator": g_loss}

    batches = [(torch.rand(8, 1, 8, 8), torch.randn(8, 4)) for _ in range(3)]
    schedulers = [lr_scheduler.ExponentialLR(o, 0.5) for o in (of_generator, of_critic)]
    return Family(step, {"generator": generator, "critic": critic}, [of_generator, of_critic], batches, schedulers)


def vae():
    def loss_of(made, x):
        out, mean, log_var = made
        return F.binary_cross_entropy(out, x) - 0.5 * (1 + log_var - mean**2 - log_var.exp()).mean()

    return supervised(VAE(), [(x, x.clone()) for x in torch.rand(3, 8, 20)], loss_of=loss_of)


def focal(out, y):
    """Reads the probability of a class by gather, and by position."""
    chances = F.softmax(out[:, [3, 1, 0, 2]], 1)
    return ((1 - chances.gather(1, y[:, None]).squeeze(1)) ** 2 * -chances.log()[torch.arange(8), y]).mean()


def of_largest(out, y):
    """Gradients that go to the positions of the largest numbers, and to numbers written over others."""
    over = out.scatter(1, y[:, None], out[:, :1].tanh())
    return out.max(1).values.mean() + (out.topk(2, 1).values ** 2).mean() + (over**3).mean()


def seq2seq():
    model = Seq2Seq()
    loss_of = lambda out, target: F.cross_entropy(out.flatten(0, 1), target.flatten())
    batches = [tuple(torch.randint(32, (4, n)) for n in (5, 4, 4)) for _ in range(3)]
    return supervised(model, batches, loss_of=loss_of)


def tokens():
    return torch.randint(64, (8, 6))


def images(channels=1, size=28):
    return lambda: torch.randn(8, channels, size, size)


SGD, Adam, AdamW = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
RMSprop, Adagrad = torch.optim.RMSprop, torch.optim.Adagrad

EXACT: dict[str, Callable[[], Family]] = {
    "logistic regression": lambda: supervised(
        LogisticRegression(), [(vectors(), torch.rand(8).round()) for _ in range(3)],
        loss_of=F.binary_cross_entropy_with_logits,
    ),
    "sgd": of_optimizer(SGD, lr=0.1),
    "sgd weight decay": of_optimizer(SGD, lr=0.1, weight_decay=0.1, maximize=True),
    "momentum": of_optimizer(SGD, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "dampening": of_optimizer(SGD, lr=0.1, momentum=0.9, dampening=0.3),
    "nesterov": of_optimizer(SGD, lr=0.1, momentum=0.9, nesterov=True),
    "clip by norm": lambda: supervised(
        mlp(), classes(4, vectors), between=lambda m: nn.utils.clip_grad_norm_(m.parameters(), 0.1)
    ),
    "clip by value": lambda: supervised(
        mlp(), classes(4, vectors), between=lambda m: nn.utils.clip_grad_value_(m.parameters(), 0.01)
    ),
    "autoencoder": lambda: supervised(
        nn.Sequential(nn.Linear(20, 8), nn.Tanh(), nn.Linear(8, 20), nn.Sigmoid()),
        [(x, x.clone()) for x in torch.rand(3, 8, 20)], loss_of=F.mse_loss,
    ),
    "dropout": lambda: supervised(
        nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 4)), classes(4, vectors)
    ),
    "weight norm": lambda: supervised(
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(12, 8)), nn.ReLU(), nn.Linear(8, 4)),
        classes(4, vectors),
    ),
    "focal loss of positions": lambda: supervised(mlp(), classes(4, vectors), loss_of=focal),
    "largest of groups": lambda: supervised(mlp(), classes(4, vectors), loss_of=of_largest),
    "lenet5": lambda: supervised(LeNet5(), classes(10, images())),
    "resnet": lambda: supervised(
        ResNet(), classes(10, images(3, 8)), lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-4)
    ),
    "lstm": lambda: supervised(Recurrent(nn.LSTM), classes(4, lambda: torch.randn(8, 4, 8))),
    "gru": lambda: supervised(Recurrent(nn.GRU), classes(4, lambda: torch.randn(8, 4, 8))),
    "seq2seq": seq2seq,
    "vae": vae,
}  # fmt: skip
"""Steps whose mathematics is that of torch."""

ROOTS: dict[str, Callable[[], Family]] = {
    "adam": of_optimizer(Adam, lr=1e-2, eps=1e-12),
    "adam weight decay": of_optimizer(Adam, lr=1e-2, eps=1e-12, weight_decay=0.1),
    "adamw": of_optimizer(AdamW, lr=1e-2, eps=1e-12, weight_decay=0.1),
    "amsgrad": of_optimizer(Adam, lr=1e-2, eps=1e-12, amsgrad=True),
    "rmsprop": of_optimizer(RMSprop, lr=1e-2, eps=1e-12),
    "rmsprop centered momentum": of_optimizer(RMSprop, lr=1e-2, eps=1e-12, centered=True, momentum=0.5),
    "adagrad": of_optimizer(Adagrad, lr=1e-2, eps=1e-12, lr_decay=0.1, initial_accumulator_value=0.1),
    "encoder": lambda: supervised(Encoder(0.1), classes(4, tokens), lambda p: AdamW(p, lr=1e-3, eps=1e-12)),
    "gan": gan,
}
"""Steps with an optimizer that divides by roots."""
