"""Encrypted graphs at work: against torch, counted, at the edges of limits, between parties, and when they fail."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import securemodel
from protocols.channel import link as link_module
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import (
    BadFrame,
    ConfigError,
    InputError,
    Mismatch,
    PeerAborted,
    PeerDied,
    PeerStalled,
    SecureModelError,
)
from protocols.identity import PartiesConfig, Timeouts, plain_config
from protocols.paillier import keys, load_private, save_private
from securemodel.compiler.wire import START
from securemodel.engines.paillier.party import Client, Server, key_bytes, key_text, read_key
from securemodel.engines.paillier.program import PaillierProgram
from securemodel.engines.paillier.walk import PaillierWalk
from securemodel.engines.walk import Rows, Talk

TWO = {"weights": "bank", "inputs": "client", "outputs": "client", "protocol": "paillier", "insecure_key_bits": 512}
LIMIT_S = 120.0


def compiled(model: nn.Module, *inputs: torch.Tensor, **options) -> PaillierProgram:
    return securemodel.compile(model.eval(), inputs, **{**TWO, **options})


class Machine(nn.Module):
    """A linear support vector machine: the side of a plane, and how far from it."""

    def __init__(self):
        super().__init__()
        self.plane = nn.Linear(6, 1)

    def forward(self, x):
        distance = self.plane(x)
        return distance > 0, distance


class Components(nn.Module):
    """Principal components: centered rows times directions, and the length of what they span."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("directions", torch.linalg.qr(torch.randn(6, 3)).Q)

    def forward(self, x):
        made = (x - self.mean) @ self.directions
        return made, made.square().sum(1)


class Bag(nn.Module):
    """Words to scores: rows of a table, their mean, a layer."""

    def __init__(self):
        super().__init__()
        self.table, self.layer = nn.Embedding(12, 4), nn.Linear(4, 3)

    def forward(self, words):
        return self.layer(self.table(words).mean(1)).argmax(1), self.table(words).sum(1)


class Attempt(nn.Module):
    """A product of hidden numbers, which is for the client, and then a layer on one of its factors."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 2), nn.Linear(2, 2)

    def forward(self, x):
        factor = torch.tanh(x[:, 4:])
        return self.first(x[:, :4]) * factor, self.second(factor)


class Squeezed(nn.Module):
    """A score without an axis of its own; of one row alone it would have no axis at all."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 1)

    def forward(self, x):
        return torch.sigmoid(self.layer(x).squeeze())


class Both(nn.Module):
    """Features of both parties: a product of theirs, and a layer on all of them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 2)

    def forward(self, ours, theirs):
        return torch.sigmoid(self.layer(torch.cat([ours * theirs, theirs], 1)))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1, stride=1), nn.BatchNorm2d(3), nn.AvgPool2d(2), nn.Conv2d(3, 2, 2), nn.Flatten(),
        nn.Linear(18, 4), nn.Softmax(1),
    )  # fmt: skip


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape) * 2


MODELS: dict[str, Callable[[], tuple]] = {
    "linear regression": lambda: (nn.Linear(6, 1), rows(5, 6)),
    "logistic regression": lambda: (nn.Sequential(nn.Linear(6, 1), nn.Sigmoid()), rows(5, 6)),
    "softmax regression": lambda: (nn.Sequential(nn.Linear(6, 4), nn.Softmax(1)), rows(30, 6)),
    "support vector machine": lambda: (Machine(), rows(5, 6)),
    "principal components": lambda: (Components(), rows(5, 6)),
    "convolutions and averages": lambda: (convolutions(), rows(2, 1, 8, 8)),
    "bag of words": lambda: (Bag(), torch.randint(12, (3, 5))),
    "projection of one row": lambda: (nn.Sequential(nn.Linear(6, 50), nn.Linear(50, 40)), rows(1, 6)),
    "a product of hidden numbers": lambda: (Attempt(), rows(3, 6)),
    "a squeezed result": lambda: (Squeezed(), rows(4, 6)),
    "three axes": lambda: (nn.Linear(6, 2), rows(3, 4, 6)),
}


def off(made, expected) -> float:
    """Largest difference; infinite where kinds or shapes differ."""
    pairs = zip(*[x if isinstance(x, tuple) else (x,) for x in (made, expected)], strict=True)
    alike = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    return max((a.double() - b.double()).abs().max().item() if alike(a, b) else float("inf") for a, b in pairs)


@pytest.mark.parametrize("name", MODELS)
def test_models_agree_with_torch_and_cost_what_the_plan_says(name):
    torch.manual_seed(1)
    model, x = MODELS[name]()
    with torch.no_grad():
        program, expected = compiled(model, x, frac_bits=20), model(x)
    with securemodel.local(program) as session:
        made = session.run(x)
        plan = program.plan()
        assert (session.stats.rounds, session.stats.sent_bytes) == (plan.rounds, plan.sent_bytes)
        assert session.stats.preprocessing_bytes == session.load_stats.rounds == 0
    assert off(made, expected) < 1e-4


def test_inputs_of_the_server_are_never_encrypted_and_rows_go_one_by_one():
    torch.manual_seed(1)
    model, ours, theirs = Both(), rows(5, 3), rows(5, 3)
    program = compiled(model, ours, theirs, inputs=("bank", "client"), frac_bits=20)
    assert not program.shared and (program.shape.inputs, program.shape.lanes) == (3, 1)
    with securemodel.local(program) as session, torch.no_grad():
        assert off(session.run(ours, theirs), model(ours, theirs)) < 1e-4
        assert off(session.run(ours[:3], theirs[:3]), model(ours[:3], theirs[:3])) < 1e-4
        assert session.stats.sent_bytes == program.plan().sent_bytes


@pytest.mark.parametrize("count", [1, 3, 4, 5, 11])
def test_any_number_of_rows_runs_in_batches(count):
    torch.manual_seed(1)
    model, x = nn.Sequential(nn.Linear(6, 2), nn.Tanh()), rows(count, 6)
    program = compiled(model, rows(4, 6), frac_bits=20)
    with securemodel.local(program) as session, torch.no_grad():
        assert off(session.run(x), model(x)) < 1e-4
        assert session.stats.rounds == 2 * -(-count // 4)


def test_weights_and_inputs_at_their_limits_work_and_beyond_are_refused():
    model = nn.Linear(6, 2)
    with torch.no_grad():
        model.weight.fill_(-8.0)
        model.bias.fill_(6 * 8.0 * 4.0)
    program, x = compiled(model, rows(3, 6), input_limit=4.0), torch.full((3, 6), -4.0)
    with securemodel.local(program) as session:
        assert torch.equal(session.run(x), torch.full((3, 2), 384.0))
        before = session.channels["client"].stats.sent_bytes
        x[2, 5] = 4.01
        with pytest.raises(InputError, match="party 'client' has inputs[^$]*above the limit 4[^$]*input_limit"):
            session.run(x)
        with torch.no_grad():
            model.weight[1, 5] = 8.01
        with pytest.raises(InputError, match="party 'bank' has weights[^$]*above the limit 8[^$]*weight_limit"):
            session.load(program, model)
        assert session.channels["client"].stats.sent_bytes == before
    assert "4.01" not in str(program.settings)


def test_the_limit_is_on_the_layers_multiplied_out():
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(3.0)
    with pytest.raises(InputError, match="multiplied out"), securemodel.local(compiled(model, rows(1, 6))) as session:
        session.run(rows(1, 6))
    with securemodel.local(compiled(model, rows(1, 6), weight_limit=36.0)) as session:
        assert off(session.run(torch.ones(1, 6)), torch.full((1, 2), 216.0)) < 1e-3


def test_weights_can_be_changed_and_none_are_needed_at_the_client():
    torch.manual_seed(1)
    first, second, x = nn.Linear(6, 2), nn.Linear(6, 2), rows(2, 6)
    with torch.device("meta"):
        nothing = nn.Linear(6, 2)
    with securemodel.local(compiled(nothing, x, frac_bits=20)) as session, torch.no_grad():
        for model in (first, second):
            session.load(session.program, model)
            assert off(session.run(x), model(x)) < 1e-4
        with pytest.raises(InputError, match="on the meta device"):
            session.load(session.program, nothing)


# ---- one run by hand, with messages changed on the way


def pair(program: PaillierProgram) -> tuple[Client, Server]:
    """Both parties, after the weights were loaded."""
    key = keys.insecure_generate(512)
    client, server = Client(program, b"session", key), Server(program, b"session", key.public)
    server.load(program.model)
    return client, server


def step(walk, message: bytes | None = None) -> Talk:
    """The next message a party wants to send or get."""
    return walk.send({} if message is None else {"bank": tensor(message), "client": tensor(message)})


def tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def sent(talk: Talk) -> bytes:
    return b"".join(next(iter(talk.sends.values())))


def by_hand(client: Client, server: Server, x: torch.Tensor, epoch: int, on_way=lambda m: m, on_return=lambda m: m):
    """One run; the functions change the request and the answer."""
    asking, answering = client.run(epoch, [x], Rows(len(x), 0)), server.run(epoch, [None], Rows())
    request = sent(next(asking))
    next(answering)
    reply = sent(step(answering, on_way(request)))
    step(asking)
    with pytest.raises(StopIteration) as end:
        step(asking, on_return(reply))
    return end.value.value[0][0], request, reply


@pytest.fixture(scope="module")
def program() -> PaillierProgram:
    torch.manual_seed(1)
    return compiled(nn.Sequential(nn.Linear(6, 2), nn.Sigmoid()), torch.zeros(3, 6))


def test_changed_cut_replayed_and_foreign_messages_name_the_peer(program):
    client, server = pair(program)
    x = rows(3, 6)
    made, request, reply = by_hand(client, server, x, 1)
    assert off(made, program.model(x).detach()) < 1e-3
    damage = {
        "changed": lambda m: m[:-50] + bytes([m[-50] ^ 1]) + m[-49:],
        "cut": lambda m: m[:-4],
        "replayed": {"client": lambda m: request, "bank": lambda m: reply},
        "of the other party": {"client": lambda m: m[: START.size] + reply, "bank": lambda m: request[START.size :]},
    }
    for what, change in damage.items():
        for name, kind in (("client", "request"), ("bank", "answer")):
            apply = change[name] if isinstance(change, dict) else change
            ways = {"on_way": apply} if name == "client" else {"on_return": apply}
            with pytest.raises(BadFrame, match=f"party '{name}' sent a message that cannot be used") as caught:
                by_hand(client, server, x, 2, **ways)
            assert caught.value.party == name and f"{kind} of run 2" in str(caught.value), what
    other, _ = pair(program)
    with pytest.raises(BadFrame, match="is for the key"):
        by_hand(client, server, x, 2, on_way=lambda m: m[: START.size] + sent(next(other.run(2, [x], Rows(3, 0))))[32:])


def test_messages_of_another_session_are_refused(program):
    client, server = pair(program)
    elsewhere = Client(program, b"another", client.key)
    with pytest.raises(BadFrame, match="message sent again"):
        by_hand(elsewhere, server, rows(3, 6), 1)


@pytest.mark.parametrize("counts", [(0, 0), (4, 0), (2, 1), (0, 3)])
def test_impossible_numbers_of_rows_are_refused(program, counts):
    client, server = pair(program)
    start = START.pack(START.unpack(client.start([rows(3, 6)], Rows(3, 0)))[0], *counts, 0)
    with pytest.raises(BadFrame, match=f"announced {counts[0]} rows, and {counts[1]}"):
        by_hand(client, server, rows(3, 6), 1, on_way=lambda m: start + m[START.size :])


def test_keys_that_are_none_or_of_another_size_are_refused(program):
    key, small = keys.insecure_generate(512), keys.insecure_generate(256)
    text = key_text(key, key_bytes(512))
    secure = compiled(nn.Linear(6, 2), torch.zeros(1, 6), insecure_key_bits=None, key_bits=2048)
    cases = (
        (program, text[:-900]),
        (program, b"\xff" * len(text)),
        (program, key_text(small, key_bytes(512))),
        (secure, text),
    )
    for which, bad in cases:
        with pytest.raises(Mismatch, match="party 'client' sent a key that cannot be used"):
            read_key(bad, "client", which.settings)
    assert read_key(text, "client", program.settings) == key.public


def test_an_answer_says_nothing_about_the_weights_but_the_scores():
    """Weights that give the same scores give answers of the same sizes and plaintexts, and never the same bytes."""
    x, seen = torch.tensor([[1.0, 1.0], [0.5, 0.5]]), []
    for weight in ([[2.0, -1.0]], [[-1.0, 2.0]]):
        model = nn.Linear(2, 1, bias=False)
        model.weight.data = torch.tensor(weight)
        program = compiled(model, x)
        client, server = pair(program)
        for _ in range(3):
            made, _, reply = by_hand(client, server, x, 1)
            seen.append((made.tolist(), len(reply), reply))
    assert len({str(made) for made, _, _ in seen}) == len({size for _, size, _ in seen}) == 1
    assert len({reply[200:300] for _, _, reply in seen}) == len(seen)


# ---- between parties


def places(program: PaillierProgram, receive_s: float = 10.0, connect_s: float = 10.0) -> PartiesConfig:
    """A configuration without a dealer."""
    addresses = dict(zip(program.parties, free_addresses(2), strict=True))
    return plain_config(addresses, timeouts=Timeouts(connect_s=connect_s, receive_s=receive_s))


def together(
    program: PaillierProgram, tasks: dict[str, Callable], config: PartiesConfig | None = None, **options
) -> dict:
    """Each party's result or error, and none waits for ever."""
    config = config or places(program)

    def party(me: str):
        mine = {k: v.get(me) if isinstance(v, dict) else v for k, v in options.items()}
        with securemodel.connect(program, me, config, insecure_plain=True, **mine) as session:
            return tasks[me](session)

    return run_together({me: lambda me=me: party(me) for me in tasks}, LIMIT_S)


@pytest.fixture(autouse=True)
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_GOODBYE_S", 0.2)


@pytest.mark.parametrize("ahead", [True, False])
def test_two_parties_need_nobody_else_and_send_what_the_plan_says(program, ahead):
    x, plan = rows(7, 6), program.plan()

    def task(session):
        opening = session.channel.stats.sent_bytes
        made = [session.run(x if session.me == "client" else None) for _ in range(2)]
        return made, session.stats, opening

    results = together(program, dict.fromkeys(program.parties, task), ahead=ahead)
    made, _, opening = results["client"]
    for y in made:
        assert off(y, program.model(x).detach()) < 1e-3
    assert results["bank"][0] == [None, None]
    for name in program.parties:
        assert results[name][1].rounds == 3 * plan.rounds
        assert results[name][1].sent_bytes == {name: 3 * plan.sent_bytes[name]}
    assert opening - results["bank"][2] == plan.opening_bytes


def test_a_party_that_goes_away_or_stays_silent_is_named_in_time(program):
    x = rows(3, 6)

    def follow(session):
        return session.run(x if session.me == "client" else None)

    def silent(session):
        time.sleep(4)

    for quiet, kind in ((securemodel.Session.close, PeerDied), (silent, PeerStalled)):
        for gone, other in (("client", "bank"), ("bank", "client")):
            start = time.monotonic()
            error = together(program, {gone: quiet, other: follow}, places(program, 1.5))[other]
            assert isinstance(error, kind) and error.party == gone and "→" in str(error)
            assert time.monotonic() - start < 12


def test_a_refused_weight_or_input_stops_the_other_party_without_saying_which(program):
    big = nn.Sequential(nn.Linear(6, 2), nn.Sigmoid())
    with torch.no_grad():
        big[0].weight.fill_(77.5)

    def load(session):
        session.load(session.program, big if session.me == "bank" else None)
        return session.run(rows(3, 6) if session.me == "client" else None)

    def give(session):
        return session.run(torch.full((3, 6), 777.5) if session.me == "client" else None)

    for task, at_fault, other in ((load, "bank", "client"), (give, "client", "bank")):
        results = together(program, dict.fromkeys(program.parties, task))
        assert isinstance(results[at_fault], InputError)
        assert isinstance(results[other], PeerAborted) and "77" not in str(results[other])
        assert "it was given an input or weights" in str(results[other])


def test_different_programs_and_rows_do_not_run(program):
    other = compiled(nn.Sequential(nn.Linear(6, 2), nn.Sigmoid()), torch.zeros(3, 6), weight_limit=9.0)
    config = places(program)
    parties = {"bank": program, "client": other}
    tasks = {me: lambda me=me: securemodel.connect(parties[me], me, config, insecure_plain=True) for me in parties}
    for error in run_together(tasks, LIMIT_S).values():
        assert isinstance(error, (Mismatch, PeerAborted)) and "program" in str(error)
    both = compiled(Both(), rows(4, 3), rows(4, 3), inputs=("bank", "client"))

    def uneven(session):
        own = rows(4 if session.me == "bank" else 3, 3)
        return session.run(*((own, None) if session.me == "bank" else (None, own)))

    results = together(both, dict.fromkeys(both.parties, uneven))
    assert all(isinstance(error, SecureModelError) for error in results.values())
    assert "bank 4, client 3" in str(results["bank"])


def test_a_key_from_a_file_is_used_and_checked(tmp_path):
    program = compiled(nn.Linear(6, 2), torch.zeros(1, 6), insecure_key_bits=None, key_bits=2048)
    path = tmp_path / "client.key"
    save_private(keys.generate(2048), path)
    seen = {}

    def task(session):
        seen[session.me] = session.walk.party.key
        return session.run(torch.zeros(1, 6) if session.me == "client" else None)

    results = together(program, dict.fromkeys(program.parties, task), paillier_key={"client": path}, ahead=False)
    assert not any(isinstance(result, BaseException) for result in results.values()), results
    assert seen["bank"] == seen["client"].public == load_private(path.read_text()).public
    large = compiled(nn.Linear(6, 2), torch.zeros(1, 6), insecure_key_bits=None)
    open_to_all = tmp_path / "open.key"
    open_to_all.write_text(path.read_text())
    open_to_all.chmod(0o644)
    for bad, which, part in (
        (path, large, "2048 bits"),
        (open_to_all, program, "chmod 600"),
        (tmp_path, program, "regular"),
    ):
        with pytest.raises(ConfigError, match=part):
            securemodel.connect(which, "client", places(which), insecure_plain=True, paillier_key=bad)
    masked = securemodel.compile(nn.Linear(6, 2), torch.zeros(1, 6), weights="bank", inputs="client", outputs="client")
    with pytest.raises(ConfigError, match="uses no Paillier key"):
        securemodel.connect(masked, "client", places(program), insecure_plain=True, paillier_key=path)
    with pytest.raises(ConfigError, match="uses no store"):
        securemodel.connect(program, "client", places(program), insecure_plain=True, store=tmp_path)


def test_no_secret_is_in_a_repr(program):
    client, server = pair(program)
    for thing in (client, server, client._gate, server._gate, program):
        assert len(repr(thing)) < 200 and str(client.key.insecure_primes()[0]) not in repr(thing)
    assert all(isinstance(walk, PaillierWalk) for walk in securemodel.local(program).walks.values())
