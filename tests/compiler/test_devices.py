"""A whole program away from main memory: nothing is made, and nothing moves, elsewhere than at the places named here.

All parties and the dealer compute on the device "meta", which has no values: what they do depends on none. Modes of torch
watch every tensor that is made or used, as an operator of any of both kinds would be fast on a GPU and wrong there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_wire import CASES, compiled
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from protocols import correlations
from protocols.gates import GATES, Part
from protocols.kernels import twins
from protocols.prg import Stream, Use
from securemodel.engines.masked import opening
from securemodel.engines.masked.walk import local_walks
from securemodel.sessions.session import Session

ROOT = Path(__file__).parents[2]
PACKAGES = (f"{ROOT}/protocols/", f"{ROOT}/securemodel/")
META, CPU = torch.device("meta"), torch.device("cpu")

ENCODING = {
    "engines/clear.py:encoded",  # an owner's float becomes ring elements
    "engines/clear.py:revealed",  # and a result becomes a float
    "engines/clear.py:set_model",
    "engines/clear.py:set_inputs",
    "engines/clear.py:agreed_digest",
}
MESSAGES = {
    "engines/masked/party.py:_start",
    "engines/start.py:agreed_rows",
    "engines/masked/party.py:_incoming",  # cuts messages into parts
    "engines/masked/party.py:_agreed",
    "compiler/positions.py:rows_read",  # public positions
    "sessions/session.py:_in_range",  # a bit that is revealed
    "devices.py:host_bytes",
    "devices.py:to_host",
    "devices.py:to_device_together",
    "engines/masked/sources.py:_handed_over",  # what the dealer made, as bytes: it is widened where it is read
    "channel/buffers.py:byte_view",
    "channel/local.py:_copied",
}
CROSSINGS = {
    "engines/masked/party.py:_encoded",
    "engines/masked/opening.py:opened",
    "devices.py:to_device",
    "devices.py:to_host",
}


def callers() -> list[str]:
    """The project's functions that are running, innermost first."""
    found, frame = [], sys._getframe(2)
    while frame:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGES) and not code.co_name.startswith("<"):
            found.append(f"{code.co_filename.removeprefix(str(ROOT)).split('/', 2)[2]}:{code.co_name}")
        frame = frame.f_back
    return found or ["a test"]


class Watch:
    """What was made, or used, in main memory, and where tensors crossed: names of functions."""

    def __init__(self) -> None:
        self.on_cpu: set[str] = set()
        self.crossed: set[str] = set()
        self.seen = 0

    def note(self, *values) -> None:
        tensors = [t for t in tree_leaves(values) if isinstance(t, torch.Tensor)]
        self.seen += len(tensors)
        if any(t.device != META for t in tensors):
            stack = callers()
            self.on_cpu.update(() if ENCODING & set(stack) else stack[:1])

    def noting(self, function: Callable) -> Callable:
        def call(*args, **kwargs):
            made = function(*args, **kwargs)
            self.note(made)
            return made

        return call

    def cross(self) -> None:
        self.crossed.add(callers()[0])


class Calls(TorchFunctionMode):
    """Sees every function of torch that is called, those that make tensors from other memory too."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in ("cpu", "to") and isinstance(args[0], torch.Tensor):
            target = CPU if name == "cpu" else args[1]
            if isinstance(target, torch.device) and target != args[0].device:
                self.watch.cross()
                return torch.zeros(args[0].shape, dtype=args[0].dtype, device=target)
        if name == "copy_" and args[0].device != args[1].device:
            self.watch.cross()
            return args[0].zero_()
        made = func(*args, **(kwargs or {}))
        self.watch.note(made)
        return made


class Operators(TorchDispatchMode):
    """Sees what operators read, which may be a tensor that torch made itself of an index in a list."""

    def __init__(self, watch: Watch) -> None:
        super().__init__()
        self.watch = watch

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, made)) if isinstance(t, torch.Tensor)]
        if any(t.device == META for t in tensors) and func is not torch.ops.aten.copy_.default:
            self.watch.note(tensors)
        return made


@contextmanager
def watched() -> Iterator[Watch]:
    """Watches everything; key streams, which are a thousand operators each, are left out."""
    made = Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(twins, "chacha20", lambda out, *rest: out)
        patch.setattr(twins, "chacha20_many", lambda outs, *rest: None)
        patch.setattr(opening, "check", lambda node, part, sender: None)  # no device has made what it looks at
        for name in ("frombuffer", "from_numpy"):  # functions of torch that its modes do not see
            patch.setattr(torch, name, made.noting(getattr(torch, name)))
        with Calls(made), Operators(made):
            yield made


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.slow if "three" in case and "smooth" not in case else ())
        for case in CASES  # what three parties do otherwise than two is in the gate of smooth functions
    ],
)
def test_everything_is_made_where_the_party_computes(case):
    program, inputs = compiled(case)
    with watched() as watch, Session(program, local_walks(program, device="meta")) as session:
        session.run(*inputs)
    assert watch.on_cpu <= MESSAGES and watch.crossed <= CROSSINGS
    assert watch.seen > 100 and "devices.py:to_host" in watch.crossed


def test_these_programs_have_every_gate():
    used = {node.op for case in CASES for node in compiled(case)[0].graph.nodes}
    assert set(GATES) <= used


def test_the_watch_notices(monkeypatch):
    program, inputs = compiled("square, two parties")
    monkeypatch.setattr(
        GATES["square"].__class__, "deal", lambda gate, attrs, masks: {"square": torch.arange(24).view(4, 6)}
    )
    with watched() as watch, Session(program, local_walks(program, device="meta")) as session:
        session.run(*inputs)
    assert "engines/masked/dealing.py:_gate" in watch.on_cpu


def test_what_an_operator_reads_from_main_memory_is_noticed():
    planes, index = torch.zeros(3, 2, dtype=torch.int64, device="meta"), torch.tensor([0, 2])
    with watched() as watch:
        planes[index]
    assert watch.on_cpu == {"a test"}


@pytest.mark.parametrize("made", [lambda: torch.frombuffer(bytearray(8), dtype=torch.uint8), lambda: torch.tensor([1])])
def test_tensors_of_other_memory_are_noticed(made):
    with watched() as watch:
        made()
    assert watch.on_cpu == {"a test"}


def test_a_stream_draws_on_its_device():
    stream = Stream(bytes(32), "meta")
    assert stream.draw((2, 3), 1, 2, Use.MASK).device == META
    assert correlations.full_mask([stream, stream], 1, 2, (4,)).device == META
    assert correlations.full_bit_mask([stream, stream], 1, 2, (4,)).device == META
    dealt = correlations.expand_share(stream, 1, 2, [Part("a", "add", (3,), torch.int16)])
    assert dealt["a"].device == META and dealt["a"].dtype is torch.int16
    assert Stream(bytes(32)).device == CPU
