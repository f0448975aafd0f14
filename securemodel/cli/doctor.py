"""securemodel doctor: what this installation has, and whether its parts work."""

from __future__ import annotations

import platform
import ssl
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import click
import torch
from torch import nn

import securemodel
from protocols import kernels
from protocols.channel import connect
from protocols.channel.testing import loopback_parties, run_together
from securemodel.cli.base import FAILED, Command

_TOLERANCE = 2.0**-8


@click.command(cls=Command)
def doctor() -> None:
    """Show what this installation uses, and test that its parts work.

    Ends with 1 if a test fails.
    """
    native = kernels.info()
    click.echo(f"securemodel  {securemodel.__version__}, {Path(securemodel.__file__).parent}")
    click.echo(f"python       {platform.python_version()}, {platform.platform()}")
    click.echo(f"torch        {torch.__version__}, {torch.get_num_threads()} threads")
    click.echo(f"kernels      {native['variant']} (available: {', '.join(cast(list, native['available']))})")
    click.echo(f"cpu          {platform.machine()}: {' '.join(cast(list, native['cpu'])) or 'features unknown'}")
    click.echo(f"tls          {ssl.OPENSSL_VERSION}\n")
    results = [
        _check("python is 3.10 or newer", lambda: _require(sys.version_info >= (3, 10), platform.python_version())),
        _check("compiled kernels are in use", _compiled, needed=False),
        _check("TLS 1.3 is available", lambda: _require(ssl.HAS_TLSv1_3, "this Python's OpenSSL lacks it")),
        _check("two parties meet over mutual TLS", _meet),
        _check("a network gives in shares what it gives in torch", _infer),
        _check("a training step gives in shares what it gives in torch", _train),
    ]
    if not all(results):
        click.get_current_context().exit(FAILED)


def _require(condition: bool, why: str) -> str:
    if not condition:
        raise RuntimeError(why)
    return ""


def _check(what: str, test: Callable[[], str], *, needed: bool = True) -> bool:
    try:
        note, good = test(), True
    except Exception as error:
        note, good = str(error) or type(error).__name__, False
    mark, color = ("✓", "green") if good else ("✗", "red") if needed else ("!", "yellow")
    click.echo(f"{click.style(mark, fg=color)} {what}" + (f": {note}" if note else ""))
    return good or not needed


def _compiled() -> str:
    why = "slow torch versions run instead; install a C++17 compiler and reinstall"
    return _require(kernels.info()["variant"] != "twins", why)


def _meet() -> str:
    with tempfile.TemporaryDirectory() as folder:
        config, own = loopback_parties(("a", "b"), Path(folder))
        results = run_together({name: partial(connect, name, config, own[name]) for name in own}, 20.0)
        closing = {}
        for name, result in results.items():
            if isinstance(result, BaseException):
                raise result
            closing[name] = result.close
        run_together(closing, 20.0)
    return ""


def _infer() -> str:
    """Convolution, pooling, comparison, products: most gates of an ordinary network."""
    layers = nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4)
    model, x = nn.Sequential(*layers).eval(), torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
    program = securemodel.compile(model, (x,), weights="a", inputs="b", outputs="b")
    with securemodel.local(program) as session:
        error = (session.run(x) - expected).abs().max().item()
    _require(error < _TOLERANCE, f"the result is off by {error:.3g}, allowed is {_TOLERANCE:.3g}")
    return f"largest difference {error:.1e}"


def _train() -> str:
    """A layer, its gradient and an optimizer's update, on rows of one party and labels of another."""
    x, y = torch.randn(8, 4), torch.randn(8)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x).squeeze(1), y).backward()
        optimizer.step()

    data = securemodel.dataset(x=securemodel.owned("a", x), y=securemodel.owned("b", y))
    job = securemodel.compile_training(step, model, optimizer, batch=data.batches(8, shuffle=False), parties=["a", "b"])
    with job.local() as run:
        run.step()
        weights = run.export(to="a")
    step(x, y)
    error = max((weights[name] - tensor).abs().max().item() for name, tensor in model.state_dict().items())
    _require(error < _TOLERANCE, f"the weights are off by {error:.3g}, allowed is {_TOLERANCE:.3g}")
    return f"largest difference {error:.1e}"
