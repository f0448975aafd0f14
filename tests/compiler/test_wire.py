"""What goes over the wire is under review: a seeded run of small programs gives the bytes in wire.json.

A refactor leaves the file alone. A change of protocol changes it on purpose: run this file as a script
(`PYTHONPATH=. python tests/compiler/test_wire.py`) and commit the difference with the change.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from itertools import count
from pathlib import Path

import pytest
import torch
from running import Fn
from torch import nn

import securemodel
from protocols import kernels
from protocols.channel import Label, Purpose
from protocols.gates import GATES
from protocols.paillier import PrivateKey, PublicKey
from protocols.prg import Stream, insecure_test_key
from securemodel.compiler.ir import PHASES
from securemodel.engines.masked.dealing import Dealing
from securemodel.engines.masked.tables import Tables
from securemodel.engines.masked.walk import local_walks
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.walk import local_deep_walks
from securemodel.engines.paillier.walk import local_walks as local_paillier_walks
from securemodel.sessions.session import Session

BASELINE = Path(__file__).with_name("wire.json")
DIGEST_BYTES = 16


def exact(*shape: int) -> torch.Tensor:
    """Numbers that the ring holds exactly, so that no platform rounds them differently."""
    return ((torch.arange(torch.Size(shape).numel()) * 37 % 64) - 30).reshape(shape) / 16


def with_exact_weights(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(exact(*parameter.shape) / 4)
    return model


PROGRAMS = {
    "product": (lambda x, y: x * y, {}),
    "square": (lambda x, y: torch.square(x - y), {}),
    "truncation": (lambda x, y: torch.square(x * y), {}),
    "product with a truncated value": (lambda x, y: x * y * x, {}),
    "relu of a product": (lambda x, y: torch.relu(x * y), {}),
    "relu of a sum": (lambda x, y: torch.relu(x + y), {}),
    "relu, 24 bits": (lambda x, y: torch.relu(x + y), {"width": 24}),
    "relu, in measured ranges": (lambda x, y: torch.relu(x + y), {"guard": True}),
    "relu and product, measured": (lambda x, y: torch.relu(x * y) * x, {"guard": False}),
    "comparison, 32 bits": (lambda x, y: x * y < 0.5, {"width": 32}),
    "maximum of windows": (lambda x, y: nn.functional.max_pool1d((x + y).unsqueeze(0), 3, 2), {}),
    "index of the largest": (lambda x, y: (x * y).argmax(1), {}),
    "public factors": (lambda x, y: (x + y) * torch.tensor([0.5, -0.75, 3.0, 1.25, 2.0, 0.0]), {}),
    "softmax of products, fast": (lambda x, y: torch.softmax(x * y, 1), {"rounding": "fast"}),
    "largest": (lambda x, y: (x + y).amax(1), {}),
    "secret positions": (lambda x, y: nn.functional.one_hot((x + y).argmax(1), 6), {}),
    "rows in another's order": (lambda x, y: securemodel.permute(y, x[:, 0].argsort(stable=True)), {}),
    "smooth function": (lambda x, y: torch.tanh(x + y), {}),
    "to two receivers": (lambda x, y: (x + y, x * y), {"outputs": ("a", "all")}),
    "linear layer": (with_exact_weights(nn.Linear(6, 3)), {"inputs": "b"}),
    "network": (with_exact_weights(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))), {"inputs": "b"}),
    "images": (
        with_exact_weights(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2, 2))),
        {"inputs": "b", "shape": (2, 1, 4, 4)},
    ),
}  # fmt: skip
PARTIES = {"two": ("a", "b"), "three": ("a", "c", "b")}
TRAINED = "rows that are shared once"
CASES = [f"{name}, {parties} parties" for name in (*PROGRAMS, TRAINED) for parties in PARTIES]
ENCRYPTED = {
    "encrypted, linear": with_exact_weights(nn.Linear(6, 3)),
    "encrypted, network": PROGRAMS["network"][0],
}
_P = 0xFC5AD0FDC9C0BFC72CC1A2BD84C190519344D8587EA9446DE5BCFBE20A448E6B
_Q = 0xD54D6F048F4C9F3E6359B5A1DBA87C6CB53B8A92998D84185BE2994B3A68E447


@cache
def compiled(case: str) -> tuple[securemodel.Program, list[torch.Tensor]]:
    name, parties = case.removesuffix(" parties").rsplit(", ", 1)
    if name == TRAINED:
        return trained(PARTIES[parties])
    model, settings = PROGRAMS[name]
    settings = {"inputs": ("a", "b"), "outputs": "all", **settings}
    inputs = [exact(*settings.pop("shape", (4, 6))) for _ in range(1 if settings["inputs"] == "b" else 2)]
    module, guard = model if isinstance(model, nn.Module) else Fn(model), settings.pop("guard", None)
    program = securemodel.compile(module, inputs, weights="a", parties=PARTIES[parties], **settings)
    return securemodel.tune(
        program, *inputs, tolerance=1, guard=guard
    ).program if guard is not None else program, inputs


def trained(parties: tuple[str, ...]) -> tuple[securemodel.Program, list[torch.Tensor]]:
    model = with_exact_weights(nn.Linear(6, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)

    def step(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.mse_loss(model(torch.cat([x, y], 1)), z)
        loss.backward()
        optimizer.step()
        return loss

    own = securemodel.owned
    data = securemodel.dataset(x=own("a", exact(9, 4)), y=own("b", exact(9, 2)), z=own("b", exact(9, 1)))
    batches = data.batches(4, seed=5)
    job = securemodel.compile_training(step, model, optimizer, batch=batches, parties=parties, reveal="all")
    numbers = job.captured.public_inputs().next()
    return job.program, [*batches.inputs(0, lambda name: True), *(numbers[name] for name in job.captured.numbers)]


def digest_of(label: Label, buffers) -> bytes:
    """Hash of one message, without the program's digest in a phase's first one: it is no protocol."""
    content = hashlib.sha256(str(label).encode())
    for index, buffer in enumerate(buffers):
        tensor = isinstance(buffer, torch.Tensor)
        data = buffer.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor else bytes(buffer)
        content.update(data[DIGEST_BYTES:] if label.purpose == Purpose.START and index == 0 else data)
    return content.digest()


def sent(case: str, seed: int = 2024) -> dict[str, str]:
    """Hash of all that each party, and the dealer, sends in a load and a run with keys of a test."""
    program, inputs = compiled(case)
    keys = {name: insecure_test_key(seed, name) for name in program.parties}
    tables = {name: Tables(insecure_test_key(seed, f"rows of {name}")) for name in program.parties}
    hashes = {name: hashlib.sha256() for name in (*program.parties, "dealer")}
    session = Session(program, local_walks(program, keys, tables=tables))
    for name, channel in session.channels.items():
        channel.begin = _recording(channel.begin, hashes[name])
    with session:
        session.run(*inputs)
    streams, masks = (
        {name: Stream(key) for name, key in keys.items()},
        {n: [Stream(t.key)] for n, t in tables.items()},
    )
    dealing = Dealing(program.graph, program.parties, streams, masks)
    for epoch, phase in enumerate(PHASES):
        for node, shares in dealing.deal(epoch, phase):
            hashes["dealer"].update(node.to_bytes(4, "little") + b"".join(t.numpy().tobytes() for t in shares))
    return {name: value.hexdigest()[:32] for name, value in hashes.items()}


def sent_encrypted(case: str, seed: int = 2024) -> dict[str, str]:
    """The same for a program on encrypted numbers; its digest, which ciphertexts are bound to, is left out."""
    x, drawn = exact(4, 6), count()
    settings = {"weights": "a", "inputs": "b", "outputs": "b", "protocol": "paillier", "insecure_key_bits": 512}
    program = securemodel.compile(ENCRYPTED[case], x, **settings)
    program.__dict__["digest"] = "0" * 64

    def draw(size: int) -> bytes:
        return hashlib.shake_256(f"{seed} {next(drawn)}".encode()).digest(size)

    keys = {name: insecure_test_key(seed, name) for name in program.parties}
    hashes = {name: hashlib.sha256() for name in program.parties}
    key = PrivateKey(_P, _Q, PublicKey(_P * _Q, _P * _Q - 4, True))
    deep = isinstance(program, DeepProgram)
    walks = local_deep_walks(program, key, keys, draw) if deep else local_paillier_walks(program, key, draw)
    made = Session(program, walks)
    for name, channel in made.channels.items():
        channel.begin = _recording(channel.begin, hashes[name])
    with made as session:
        torch.testing.assert_close(session.run(x), ENCRYPTED[case](x).detach(), rtol=0, atol=0.01)
    return {name: value.hexdigest()[:32] for name, value in hashes.items()}


def _recording(begin, content):
    def recorded(label, sends, receives):
        for peer in sorted(sends):
            content.update(peer.encode() + digest_of(label, sends[peer]))
        begin(label, sends, receives)

    return recorded


@pytest.mark.parametrize("case", CASES)
def test_the_wire_is_what_it_was(case):
    assert sent(case) == json.loads(BASELINE.read_text())[case], "see the top of this file"


@pytest.mark.parametrize("case", ENCRYPTED)
def test_the_encrypted_wire_is_what_it_was(case):
    assert sent_encrypted(case) == json.loads(BASELINE.read_text())[case], "see the top of this file"
    other = sent_encrypted(case, 1)
    assert all(other[name] != value for name, value in sent_encrypted(case).items())


def test_other_seeds_give_other_bytes():
    first, other = sent(CASES[0], 1), sent(CASES[0], 2)
    assert sent(CASES[0], 1) == first
    assert all(other[name] != first[name] for name in first)


@pytest.mark.parametrize("variant", kernels.info()["available"])
def test_every_build_of_the_kernels_sends_the_same(variant):
    with kernels.use(variant):
        for case in ("network, two parties", "images, three parties", "index of the largest, two parties"):
            assert sent(case) == json.loads(BASELINE.read_text())[case], case
        for case in ENCRYPTED:
            assert sent_encrypted(case) == json.loads(BASELINE.read_text())[case], case


def test_every_gate_is_on_the_wire():
    used = {node.op for case in CASES for node in compiled(case)[0].graph.nodes}
    assert set(GATES) | {"input", "mask", "mask_bits", "reveal", "bilinear_public", "rows"} <= used


if __name__ == "__main__":
    lines = {case: sent(case) for case in CASES} | {case: sent_encrypted(case) for case in ENCRYPTED}
    BASELINE.write_text(json.dumps(lines, indent=1) + "\n")
