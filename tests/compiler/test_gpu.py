"""A party on a GPU gives the same bits as one on the CPU: on the wire, and of results. The GPU is one that is not there."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pretend
import pretended_party
import pytest
import torch
from click.testing import CliRunner
from test_wire import CASES, TRAINED, compiled, digest_of
from torch import nn

import securemodel
from protocols import devices, kernels
from protocols.channel.testing import free_addresses, loopback_parties, run_together
from protocols.errors import ConfigError
from protocols.gates import GATES, dealt_bytes
from protocols.identity import DEALER, Timeouts, plain_config
from protocols.kernels.twins import bilinear
from protocols.prg import insecure_test_key
from securemodel.cli import dealing as dealing_command
from securemodel.cli import main as command_line
from securemodel.compiler.wire import steps
from securemodel.engines.masked import masks
from securemodel.engines.masked.dealer import serve
from securemodel.engines.masked.pipeline import pipelined
from securemodel.engines.masked.tables import Tables
from securemodel.engines.masked.walk import local_walks
from securemodel.invocation import Invocation, invoked
from securemodel.sessions.session import Session

ROOT = str(Path(__file__).parents[2])
WAYS = {"all on GPUs": "", "one party": "a", "the dealer": DEALER}
QUICK = {
    ("network, two parties", "all on GPUs"), ("network, two parties", "one party"), ("network, two parties", "the dealer"),
    (f"{TRAINED}, two parties", "all on GPUs"), ("rows in another's order, two parties", "one party"),
    ("relu, 24 bits, three parties", "all on GPUs"), ("secret positions, two parties", "the dealer"),
    ("smooth function, two parties", "all on GPUs"),
}  # fmt: skip
TRIED = [(case, way) for case in CASES for way in WAYS if way == "all on GPUs" or "two parties" in case]


@pytest.fixture
def gpu() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, pretend.pretended():
        pretend.quick_streams(patch)
        yield


def ran(case: str, places: dict[str, torch.device]) -> tuple[dict[str, str], list[torch.Tensor]]:
    """(hash of what each party sends in a load and two runs, what the runs give), with keys of a test."""
    program, inputs = compiled(case)
    keys = {name: insecure_test_key(11, name) for name in program.parties}
    tables = {name: Tables(insecure_test_key(11, f"rows of {name}")) for name in program.parties}
    hashes = {name: hashlib.sha256() for name in program.parties}
    session = Session(program, local_walks(program, keys, device=places, tables=tables))
    for name, channel in session.channels.items():
        channel.begin = recording(channel.begin, hashes[name])
    with session:
        given = [session.run(*inputs) for _ in range(2)]
    outputs = [x for each in given for x in (each if isinstance(each, tuple) else (each,)) if x is not None]
    return {name: hashed.hexdigest() for name, hashed in hashes.items()}, outputs


def recording(begin, hashed):
    def begin_recorded(label, sends, receives):
        for peer, buffers in sorted(sends.items()):
            hashed.update(peer.encode() + digest_of(label, buffers))
        begin(label, sends, receives)

    return begin_recorded


@pytest.mark.parametrize(
    ("case", "way"), [pytest.param(*t, marks=() if t in QUICK else pytest.mark.slow) for t in TRIED]
)
def test_the_same_bits(case, way):
    everybody = (*compiled(case)[0].parties, DEALER)
    expected = ran(case, dict.fromkeys(everybody, pretend.HERE))
    on = {name: pretend.GPU if not WAYS[way] or name == WAYS[way] else pretend.HERE for name in everybody}
    with pytest.MonkeyPatch.context() as patch, pretend.pretended():
        pretend.quick_streams(patch)
        found = ran(case, on)
    assert found[0] == expected[0] and len(found[1]) == len(expected[1])
    assert all(torch.equal(x, y) for x, y in zip(found[1], expected[1], strict=True))


def test_parties_that_compute_on_what_each_chose(gpu):
    program, inputs = compiled("network, three parties")
    first, *addresses = free_addresses(4)
    config = plain_config(
        dict(zip(program.parties, addresses, strict=True)), dealer=first, timeouts=Timeouts(connect_s=30, receive_s=60)
    )
    options = {"insecure_plain": True, "device": "cuda"}
    threading.Thread(target=serve, args=(config, None), kwargs=options, daemon=True).start()
    chosen = {"a": "cuda", "b": None, "c": torch.device("cuda:0")}

    def party(me: str) -> object:
        with securemodel.connect(program, me, config, insecure_plain=True, ledger=False, device=chosen[me]) as session:
            return session.run(inputs[0] if me == "b" else None)

    results = run_together({me: lambda me=me: party(me) for me in program.parties}, 120)
    with securemodel.local(program) as session:
        expected = session.run(*inputs)
    assert all(torch.equal(results[me], expected) for me in program.parties), results


@pytest.mark.parametrize(
    "there", ["a", pytest.param("b", marks=pytest.mark.slow), pytest.param(DEALER, marks=pytest.mark.slow)]
)
def test_one_of_three_processes_is_on_a_gpu(there, tmp_path):
    """Between processes with TLS: whoever has the GPU, b learns the bits that a session on the CPU gives."""
    roster, _ = loopback_parties(["a", "b"], tmp_path, dealer=True)
    script, path = Path(pretended_party.__file__), os.pathsep.join([str(Path(__file__).parent), ROOT])
    started = []
    for role in (DEALER, "a", "b"):
        config = tmp_path / f"{role}.toml"
        config.write_text(roster.path.read_text() + f'[me]\nidentity = "{role}"\n')
        words = [sys.executable, str(script), str(config), role, "cuda" if role == there else "cpu"]
        environment = {**os.environ, "PYTHONPATH": path}
        started.append(subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in started:
            _, said = process.communicate(timeout=200)
            assert not process.returncode, said[-3000:]
    finally:
        for process in started:
            process.kill()
    with securemodel.local(pretended_party.program()) as session:
        expected = session.run(pretended_party.INPUT)
    assert torch.equal(torch.load(tmp_path / "b.out"), expected)


def test_a_dealer_on_a_gpu_from_the_command_line(gpu, tmp_path):
    roster, _ = loopback_parties(["a", "b"], tmp_path, dealer=True)
    for role in (DEALER, "a", "b"):
        (tmp_path / f"{role}.toml").write_text(roster.path.read_text() + f'[me]\nidentity = "{role}"\n')
    program, made = pretended_party.program(), []

    def dealing() -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                dealing_command, "serve", lambda *given, **options: made.append(options) or serve(*given, **options)
            )
            words = ["dealer", "--config", str(tmp_path / f"{DEALER}.toml"), "--once", "--device", "cuda"]
            return CliRunner().invoke(command_line, words)

    def party(me: str) -> object:
        with securemodel.connect(program, me, tmp_path / f"{me}.toml", ledger=False, device="cpu") as session:
            return session.run(pretended_party.INPUT if me == "b" else None)

    calls = {DEALER: dealing, "a": lambda: party("a"), "b": lambda: party("b")}
    results = run_together(calls, 120)
    assert results[DEALER].exit_code == 0, results[DEALER].output
    assert made[0]["device"] == "cuda"
    with securemodel.local(program, device="cpu") as session:
        assert torch.equal(results["b"], session.run(pretended_party.INPUT))


def test_weights_stay_on_the_device(gpu):
    """Once weights are loaded, nothing of their size crosses: neither to the GPU nor back."""
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 2)).eval()
    program = securemodel.compile(model, torch.zeros(1, 64), weights="a", inputs="b", outputs="b")
    with securemodel.local(program, device="cuda") as session:
        pretend.crossed.clear()
        session.load(program, model)
        largest = lambda: max(size for _, size, _ in pretend.crossed)
        assert largest() >= 8 * 64 * 48
        for _ in range(2):
            pretend.crossed.clear()
            session.run(torch.ones(1, 64))
            assert largest() < 8 * 48 * 64


def test_a_training_on_a_gpu_and_its_checkpoint(gpu, tmp_path):
    def trained(device: str, steps: int, folder=None) -> torch.Tensor:
        torch.manual_seed(4)
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.25, momentum=0.5)

        def step(x, y):
            loss = nn.functional.mse_loss(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        own = securemodel.owned
        x, y = torch.arange(12.0).view(4, 3) / 16, torch.arange(4.0).view(4, 1) / 8
        data = securemodel.dataset(x=own("a", x), y=own("b", y))
        job = securemodel.compile_training(step, model, optimizer, batch=data.batches(2, seed=3), parties=["a", "b"])
        with job.local(device=device) as run:
            if folder:
                run.resume(folder)
            list(run.steps(steps))
            if folder:
                run.checkpoint(folder)
            return torch.cat([weight.flatten() for weight in run.export(to="a").values()])

    expected = trained("cpu", 4)
    assert torch.equal(trained("cuda", 4), expected)
    trained("cuda", 2, tmp_path)
    assert torch.equal(trained("cpu", 2, tmp_path), expected)


def test_twins_on_a_gpu(monkeypatch):
    wide = torch.tensor([[2**63 - 1, -(2**63), -1], [1, 2**31, 2**62 + 12345]])
    out = torch.arange(40, dtype=torch.int16)
    streamed = kernels.chacha20(out.clone(), bytes(range(32)), bytes(12), "sub", 3)
    product, signs = wide @ wide.t(), torch.tensor([[5, -6], [0, 127]], dtype=torch.int8)
    small = wide[:, :2].to(torch.int32).contiguous()
    signed = kernels.sign_product(small, signs)
    with pretend.pretended():
        made = kernels.chacha20(out.to(pretend.GPU), bytes(range(32)), bytes(12), "sub", 3)
        assert torch.equal(made.cpu(), streamed)
        there = wide.to(pretend.GPU)
        assert torch.equal(kernels.matmul(there, there.t()).cpu(), product)
        assert torch.equal(kernels.sign_product(small.to(pretend.GPU), signs.to(pretend.GPU)).cpu(), signed)
        with pytest.raises(RuntimeError, match="not implemented"):  # where whole numbers are multiplied as they are
            bilinear.product(there, there.t(), exact_integers=True)
        with pytest.raises(RuntimeError, match="same device"):
            there + wide
        with pytest.raises(RuntimeError, match="was read"):
            int(there[0, 0])


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gpu", "no device is called 'gpu'"),
        (3.5, "no device is called"),
        ("mps", "nothing here computes on the device 'mps'"),
        ("meta", "float64"),
    ],
)
def test_what_is_no_device_is_refused(name, told):
    with pytest.raises(ConfigError, match=told):
        devices.chosen(name)


@pytest.mark.parametrize(
    ("built", "there", "name", "told"),
    [
        (False, 0, "cuda", "built without CUDA"),
        (True, 0, "cuda", "finds no GPU"),
        (True, 2, "cuda:2", "there are 2 GPUs(.|\n)*cuda:1"),
    ],
)
def test_a_gpu_that_is_not_there_is_named(built, there, name, told, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: there)
    with pytest.raises(ConfigError, match=told):
        devices.chosen(name)
    with pytest.raises(ConfigError, match=told):
        securemodel.local(compiled("square, two parties")[0], device=name)


def test_a_gpu_that_is_there_is_taken(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(devices, "_beside", set())
    assert devices.chosen("cuda") == torch.device("cuda:0") and devices.chosen("cuda:1") == torch.device("cuda:1")
    assert devices.chosen(None) == devices.chosen("cpu") == torch.device("cpu")


def test_encrypted_programs_compute_on_the_cpu_alone(gpu):
    program = securemodel.compile(
        nn.Linear(2, 1), torch.zeros(1, 2), weights="a", inputs="b", outputs="b", protocol="paillier",
        insecure_key_bits=512,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="'paillier' computes on the CPU alone"):
        securemodel.local(program, device="cuda")


@pytest.mark.filterwarnings("ignore::securemodel.errors.InsecureBackendWarning")
def test_crypten_computes_on_the_cpu_alone(gpu):
    program = securemodel.compile(
        nn.Linear(2, 1), torch.zeros(1, 2), weights="a", inputs="b", outputs="b", protocol="crypten"
    )
    with pytest.raises(ConfigError, match="'crypten' computes on the CPU alone(.|\n)*leave the device out"):
        securemodel.local(program, device="cuda")
    with pytest.raises(ConfigError, match="'crypten' computes on the CPU alone"):
        securemodel.connect(program, "a", device="cuda")


def test_the_command_line_names_a_device(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    program = compiled("square, two parties")[0]
    with invoked(Invocation(device="cuda")), pytest.raises(ConfigError, match="built without CUDA"):
        securemodel.local(program)
    with invoked(Invocation(device="cuda")):
        securemodel.local(program, device="cpu").close()
    roster, _ = loopback_parties(["a", "b"], tmp_path, dealer=True)
    config = tmp_path / "dealer.toml"
    config.write_text(roster.path.read_text() + f'[me]\nidentity = "{DEALER}"\n')
    ended = CliRunner().invoke(command_line, ["dealer", "--config", str(config), "--once", "--device", "cuda"])
    assert ended.exit_code == 1 and "built without CUDA" in ended.output


# ---- what crosses
KEPT_THERE = {"devices.py:to_device", "devices.py:to_device_together"}
HERE = {"devices.py:to_host", "opening.py:opened"}


def crossings(program: securemodel.Program, inputs: list[torch.Tensor]) -> list[tuple[str, int, str]]:
    """The copies of a second run, with all parties and the dealer on GPUs."""
    with pytest.MonkeyPatch.context() as patch, pretend.pretended():
        pretend.quick_streams(patch)
        places = dict.fromkeys((*program.parties, DEALER), pretend.GPU)
        with Session(program, local_walks(program, device=places)) as session:
            session.run(*inputs)
            pretend.crossed.clear()
            session.run(*inputs)
            return list(pretend.crossed)


@pytest.mark.parametrize("case", [case for case in CASES if "two parties" in case])
def test_nothing_is_brought_to_a_gpu_but_messages_and_inputs(case):
    """An index that is made at each call, of a list, is a copy that the device waits for."""
    program, inputs = compiled(case)
    found = crossings(program, inputs)
    assert {by for way, _, by in found if way == "there"} <= KEPT_THERE
    assert {by for way, _, by in found if way == "here"} <= HERE


def test_what_is_dealt_crosses_as_it_is_sent_and_in_one_copy_a_portion():
    case = "smooth function, two parties"
    program, inputs = compiled(case)
    found, graph = crossings(program, inputs), program.graph
    there, here = ([size for way, size, _ in found if way == kind] for kind in ("there", "here"))
    dealt = sum(dealt_bytes(GATES[n.op], n.attrs, [graph[a].shape for a in n.args], n.shape)
                for n in graph.nodes if n.op in GATES and n.phase == "run")  # fmt: skip
    sent = sum(program.plan().total.sent_bytes.values())
    given = 8 * sum(x.numel() for x in inputs)
    assert dealt in there and sum(there) < dealt + sent + given
    portions = len(masks.portions(graph, "run"))
    opened = sum(bool(step.talk) for step in steps(graph, "run"))
    assert len(there) <= portions + 2 * (opened + 1) + len(inputs)
    assert len(here) <= portions + 2 * (opened + 1)


def test_parts_of_one_piece_of_memory_cross_together(gpu):
    whole = torch.arange(200, dtype=torch.uint8)
    near, far = [whole[3:40], whole[48:50], whole[41:41]], [whole[:5], whole[180:]]
    for parts, copies in (([*near, torch.arange(9, dtype=torch.uint8)], 2), (far, 2), ([], 0)):
        pretend.crossed.clear()
        found = devices.to_device_together(parts, pretend.GPU)
        assert len(pretend.crossed) == copies and len(found) == len(parts)
        assert all(torch.equal(x.inner, y) and x.device == pretend.GPU for x, y in zip(found, parts, strict=True))
    assert devices.to_device_together(near, pretend.HERE) == near


@pytest.mark.parametrize("count", [1, 1 << 17])
def test_what_comes_to_main_memory_lies_together_and_small_parts_cross_together(gpu, count):
    types = (torch.uint8, torch.int16, torch.int64, torch.uint8, torch.int32)
    given = [torch.arange(count * size, dtype=torch.int64).to(t).view(count, size) for t, size in zip(types, (3, 5, 1, 0, 2),
                                                                                                 strict=True)]  # fmt: skip
    there = [x.to(pretend.GPU) for x in given]
    pretend.crossed.clear()
    found = devices.to_host(there)
    assert len(pretend.crossed) == (1 if count == 1 else len(given))
    assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(found, given, strict=True))
    assert len({x.untyped_storage().data_ptr() for x in found if x.numel()}) == 1


def test_threads_of_a_session_compute_in_the_order_of_the_one_that_opened_it(monkeypatch):
    """Torch has a current stream for each thread; here a name stands for one, and shares are made and read in one alone."""
    now, seen = threading.local(), set()

    @contextmanager
    def in_stream(name: str) -> Iterator[None]:
        now.name, before = name, getattr(now, "name", "default")
        yield
        now.name = before

    def noting(function):
        def call(*given):
            seen.add((getattr(now, "name", "default"), re.split("[-_]", threading.current_thread().name)[0]))
            return function(*given)

        return call

    monkeypatch.setattr(devices, "_beside", {torch.device("cuda", 0)})
    monkeypatch.setattr(devices, "_current", lambda device: getattr(now, "name", "default"))
    monkeypatch.setattr(devices, "_in_stream", in_stream)
    monkeypatch.setattr(kernels, "chacha20_many", noting(kernels.chacha20_many))
    monkeypatch.setattr(kernels, "hide", noting(kernels.hide))
    program, inputs = compiled("network, two parties")
    first, *addresses = free_addresses(3)
    config = plain_config(
        dict(zip(program.parties, addresses, strict=True)), dealer=first, timeouts=Timeouts(connect_s=30, receive_s=60)
    )

    def party(me: str) -> object:
        with in_stream("own"):
            session = securemodel.connect(program, me, config, insecure_plain=True, ledger=False)
        with session:
            return asyncio.run(session.run_async(inputs[0] if me == "b" else None))

    threading.Thread(target=serve, args=(config, None), kwargs={"insecure_plain": True}, daemon=True).start()
    results = run_together({me: lambda me=me: party(me) for me in program.parties}, 120)
    assert not any(isinstance(result, BaseException) for result in results.values()), results
    of_parties = {(name, thread) for name, thread in seen if thread in ("prepare", "session")}
    assert of_parties == {("own", "prepare"), ("own", "session")}
    made = (getattr(now, "name", "default") for _ in range(3))
    with in_stream("dealer's"):
        assert list(pipelined(made, lambda item: 1 << 30, 1 << 40)) == ["dealer's"] * 3
