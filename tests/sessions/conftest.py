"""Small programs, and parties that run them in threads over real sockets, for the tests of sessions and faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import securemodel
from protocols.channel import link as link_module
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import PeerAborted, SecureModelError
from protocols.identity import PartiesConfig, Timeouts, plain_config
from securemodel.api import connect
from securemodel.engines.masked.dealer import serve
from securemodel.program import Program
from securemodel.sessions.session import Session

LIMIT_S = 120.0  # for a hang: how long a fault takes depends on how busy the machine is


def make_model(seed: int = 1, hidden: int = 3) -> torch.nn.Module:
    """Four numbers in, two out; the weights depend on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = torch.nn.Linear(4, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 2)
        return torch.nn.Sequential(*layers).eval()


def make_program(model: torch.nn.Module, **options: Any) -> Program:
    """Bank's weights, hospital's rows, two at a time; the hospital learns the result."""
    defaults = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}
    return securemodel.compile(model, (torch.zeros(2, 4),), **{**defaults, **options})


class Sum(torch.nn.Module):
    """A model of two inputs, for two owners."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x) + self.layer(y))


class World:
    """Parties in threads over plain sockets of this host, and a dealer like the one of the command line."""

    def __init__(
        self,
        program: Program,
        *,
        dealer: bool = True,
        receive_s: float = 20.0,
        connect_s: float = 20.0,
        lanes: int = 1,
        **dealing: Any,
    ) -> None:
        self.program = program
        first, *addresses = free_addresses(len(program.parties) + 1, lanes)
        self.config: PartiesConfig = plain_config(
            dict(zip(program.parties, addresses, strict=True)),
            dealer=first,
            timeouts=Timeouts(connect_s=connect_s, receive_s=receive_s),
        )
        self.said: list[str] = []
        if dealer:
            self.start_dealer(**dealing)

    def start_dealer(self, **dealing: Any) -> None:
        """A dealer that serves sessions until the test process ends."""
        options = {"insecure_plain": True, "say": self.said.append, **dealing}
        self.dealer = threading.Thread(target=serve, args=(self.config, None), kwargs=options, daemon=True)
        self.dealer.start()

    def connect(self, me: str, program: Program | None = None, **options: Any) -> Session:
        """One party's end, in the calling thread."""
        return connect(program or self.program, me, self.config, insecure_plain=True, **options)

    def run(self, tasks: dict[str, Callable[[Session], Any]], **options: Any) -> dict[str, Any]:
        """Connects each party and gives its session to its task; returns results or errors, by party."""

        def party(me: str) -> Any:
            mine = {k: v[me] if isinstance(v, dict) else v for k, v in options.items()}
            with self.connect(me, **mine) as session:
                return tasks[me](session)

        start = time.monotonic()
        results = run_together({me: lambda me=me: party(me) for me in tasks}, LIMIT_S)
        assert time.monotonic() - start < LIMIT_S
        return results

    def wait_until_said(self, part: str, times: int = 1) -> None:
        """Waits until the dealer has said something so many times."""
        deadline = time.monotonic() + LIMIT_S
        while sum(part in line for line in self.said) < times:
            assert time.monotonic() < deadline, f"the dealer never said {part!r}, but {self.said}"
            time.sleep(0.02)


@pytest.fixture(scope="session")
def model() -> torch.nn.Module:
    return make_model()


@pytest.fixture(scope="session")
def program(model: torch.nn.Module) -> Program:
    return make_program(model)


@pytest.fixture(scope="session")
def program3(model: torch.nn.Module) -> Program:
    """Like `program`, with a third party that owns nothing."""
    return make_program(model, parties=("bank", "hospital", "helper"))


@pytest.fixture(scope="session")
def two_owners() -> Program:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Sum().eval()
    rows = (torch.zeros(2, 4), torch.zeros(2, 4))
    return securemodel.compile(model, rows, weights="bank", inputs=("bank", "hospital"), outputs="hospital")


@pytest.fixture
def world(program: Program) -> World:
    return World(program)


@pytest.fixture
def worlds() -> Callable[..., World]:
    """Makes a world for a program of choice."""
    return World


@pytest.fixture(autouse=True)
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_GOODBYE_S", 0.2)


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    """Fails if a thread of a session outlives it."""
    yield
    deadline = time.monotonic() + 5
    while left := [t.name for t in threading.enumerate() if t.name.startswith(("prepare-", "beat-"))]:
        assert time.monotonic() < deadline, f"threads left: {left}"
        time.sleep(0.02)


def rows(count: int, seed: int = 7) -> torch.Tensor:
    """Inputs of moderate size."""
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed))


def tasks(program: Program, x: torch.Tensor, runs: int = 3) -> dict[str, Callable[[Session], Any]]:
    """All parties run a few times; the hospital has the input."""

    def some(session: Session) -> list:
        return [session.run(x if session.me == "hospital" else None) for _ in range(runs)]

    return dict.fromkeys(program.parties, some)


def check_texts(results: dict[str, Any]) -> None:
    """Every party has an error of ours, with all that an error should say."""
    for me, error in results.items():
        assert isinstance(error, SecureModelError), f"{me}: {error!r}"
        text = str(error)
        assert "why:" in text and "→" in text and "'" in text, f"{me}: {text}"
        assert isinstance(error, PeerAborted) or "where:" in text, f"{me}: {text}"


def works(world: Any, x: torch.Tensor) -> None:
    """The next session with the same dealer is a good one."""
    results = world.run(tasks(world.program, x, 1))
    expected = world.program.model(x).detach()
    torch.testing.assert_close(results["hospital"][0], expected, atol=2**-10, rtol=0)


@pytest.fixture
def tools() -> Any:
    """The helpers above, for test modules (which import nothing from here)."""

    class Tools:
        limit_s = LIMIT_S
        root = Path(securemodel.__file__).parent.parent

    for made in (make_model, make_program, rows, tasks, check_texts, works):
        setattr(Tools, made.__name__, staticmethod(made))
    return Tools
