"""Deep models with layers by the Paillier gate: against torch, counted, at edges of limits, and when they fail."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import nn

import securemodel
from protocols.channel import link as link_module
from protocols.channel.testing import free_addresses, run_together
from protocols.errors import BadFrame, InputError, PeerAborted, PreprocessingReused, ProtocolError
from protocols.identity import PartiesConfig, Timeouts, plain_config
from protocols.paillier import keys, wire
from protocols.paillier.cipher import trivial
from securemodel.engines.masked.dealer import serve
from securemodel.engines.paillier.deep import DeepProgram
from securemodel.engines.paillier.owned_layers import ClientLayers, OwnerLayers
from securemodel.inspect.fixed import fixed_point
from securemodel.program import Program

TWO = {"weights": "bank", "inputs": "client", "outputs": "client", "protocol": "paillier", "insecure_key_bits": 512}
LIMIT_S = 120.0


def compiled(model: nn.Module, *inputs: torch.Tensor, **options) -> DeepProgram:
    return securemodel.compile(model.eval(), inputs, **{**TWO, **options})


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, (2, 1), (1, 0), groups=2), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip


def sequence() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 3, 3, 2, 1), nn.GELU(), nn.Conv1d(3, 2, 2), nn.Flatten(), nn.Linear(6, 2))


MODELS: dict[str, Callable[[], tuple]] = {
    "layers": lambda: (small(), torch.randn(3, 4)),
    "images": lambda: (images(), torch.randn(2, 2, 8, 8)),
    "sequence": lambda: (sequence(), torch.randn(2, 2, 8)),
    "three axes": lambda: (nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(2, 3, 4)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_agree_with_torch_and_cost_what_the_plan_says(name):
    torch.manual_seed(1)
    model, x = MODELS[name]()
    program = compiled(model, x)
    plan, masked = (
        program.plan(),
        securemodel.compile(model, x, weights="bank", inputs="client", outputs="client").plan(),
    )
    with securemodel.local(program) as session, torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(session.run(x), model(x), atol=2e-3, rtol=0)
            assert (session.stats.rounds, session.stats.sent_bytes) == (plan.rounds, plan.sent_bytes)
            assert session.stats.preprocessing_bytes == plan.preprocessing_bytes
    assert plan.preprocessing_bytes < masked.preprocessing_bytes and plan.rounds == masked.rounds + 2
    assert plan.masked.digest == masked.digest


@pytest.mark.parametrize("name", MODELS)
def test_results_are_those_of_fixed_point_in_the_clear(name):
    torch.manual_seed(2)
    model, x = MODELS[name]()
    program = compiled(model, x)
    with securemodel.local(program) as session:
        assert torch.equal(session.run(x), session.run(x))
        assert torch.equal(session.run(x), fixed_point(program, x)[0])


def test_no_weight_of_a_layer_is_shared_and_the_dealer_makes_no_product():
    program = compiled(images(), torch.zeros(2, 2, 8, 8))
    operators = [node.op for node in program.graph.nodes]
    assert operators.count("owned_layer") == 2 and "bilinear" not in operators
    assert [node.owner for node in program.graph.nodes if node.op == "input"] == ["client"]
    assert "bilinear" not in program.plan().dealt and "bilinear" not in program.plan().trust


class Both(nn.Module):
    """Inputs of both parties, and a product of them, which is the dealer's."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, ours, theirs):
        return self.second(torch.relu(self.first(ours * theirs + ours)))


@pytest.mark.parametrize("changes", [{}, {"parties": ("client", "bank")}, {"outputs": "bank"}, {"outputs": "all"}])
def test_any_order_and_receiver_and_inputs_of_both(changes):
    torch.manual_seed(1)
    model, inputs = Both(), (torch.randn(3, 3), torch.randn(3, 3))
    program = compiled(model, *inputs, inputs=("bank", "client"), **changes)
    assert "bilinear" in program.plan().dealt
    with securemodel.local(program) as session, torch.no_grad():
        torch.testing.assert_close(session.run(*inputs), model(*inputs), atol=2e-3, rtol=0)
        assert session.stats.sent_bytes == program.plan().sent_bytes


def test_any_number_of_rows_and_new_weights():
    first, second, x = small(), nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), torch.randn(5, 4)
    with securemodel.local(compiled(first, torch.zeros(2, 4))) as session, torch.no_grad():
        for model in (first, second):
            session.load(session.program, model)
            torch.testing.assert_close(session.run(x), model(x), atol=2e-3, rtol=0)


def test_weights_at_the_limit_work_and_beyond_are_refused_before_anything_is_sent():
    model = small()
    with torch.no_grad():
        model[0].weight.fill_(-8.0)
        model[2].weight.fill_(8.0)
    x = -torch.ones(2, 4)
    with securemodel.local(compiled(model, x)) as session, torch.no_grad():
        torch.testing.assert_close(session.run(x), model(x), atol=2e-2, rtol=0)
        before = session.channels["bank"].stats.sent_bytes
        for bad in (8.001, float("nan"), float("inf")):
            model[2].weight[1, 2] = bad
            with pytest.raises(InputError, match="weight '2.weight' has a number[^$]*limit 8[^$]*weight_limit"):
                session.load(session.program, model)
        assert session.channels["bank"].stats.sent_bytes == before


def test_programs_are_saved_and_differ_by_their_settings(tmp_path):
    program = compiled(small(), torch.zeros(2, 4))
    program.save(tmp_path / "program.txt")
    again = Program.load(tmp_path / "program.txt")
    assert isinstance(again, DeepProgram) and again.digest == program.digest
    assert again.plan().sent_bytes == program.plan().sent_bytes and again.plan().masked is None
    assert str(again.plan()) and len({compiled(small(), torch.zeros(2, 4), **c).digest for c in (
        {}, {"weight_limit": 9.0}, {"insecure_key_bits": 640})}) == 3  # fmt: skip


# ---- the gates' messages by hand


@pytest.fixture(scope="module")
def sides() -> tuple[ClientLayers, OwnerLayers]:
    program, key = compiled(small(), torch.zeros(2, 4)), keys.insecure_generate(512)
    client, owner = ClientLayers(program, b"s", key), OwnerLayers(program, b"s", key.public)
    owner.load(program.model)
    return client, owner


def masks(client: ClientLayers) -> dict[int, torch.Tensor]:
    graph = client._graph
    return {n.args[0]: torch.randint(-(2**62), 2**62, graph[n.args[0]].shape) for n in client.nodes}


def test_messages_have_the_planned_sizes_and_shares_are_used_once(sides):
    client, owner = sides
    request = client.request(1, masks(client))
    reply = owner.reply(1, request)
    client.finish(1, reply)
    assert (len(request), len(reply)) == (sum(client.request_sizes), sum(client.reply_sizes))
    for side in sides:
        side.take(1, side.nodes[0])
        for epoch, node in ((1, side.nodes[0]), (2, side.nodes[1])):
            with pytest.raises(PreprocessingReused, match="was not prepared, or was used before"):
                side.take(epoch, node)
    client.forget()
    with pytest.raises(PreprocessingReused):
        client.take(1, client.nodes[1])


def test_a_reply_that_does_not_divide_into_slots_is_the_owners_fault(sides):
    client, owner = sides
    whole = owner.reply(3, client.request(3, masks(client)))
    size, node = client.reply_sizes[0], client.nodes[0]
    context = client._context(3, node) + "/reply"
    answer = wire.read(whole[:size], client.key.public, context)
    public = client.key.public
    lifted = public.residues.multiply(answer.cells, trivial(public, [1 << 509] * len(answer.cells)))
    bad = wire.write(replace(answer, cells=lifted), context) + whole[size:]
    with pytest.raises(ProtocolError, match="does not divide into"):
        client.finish(3, bad)


def test_what_the_client_gets_is_uniform_whatever_the_weights_are(sides):
    """The client's shares for all weights zero and all at the limit, on one mask: the top bits look alike."""
    client, owner = sides
    given, counts = masks(client), []
    for fill in (0, owner.nodes[0].attrs["weight_limit"]):
        owner.rings = {n: torch.full_like(w, int(fill * 2**16)) for n, w in owner.rings.items()}
        seen = []
        for epoch in range(60):
            client.finish(epoch, owner.reply(epoch, client.request(epoch, given)))
            seen += [client.take(epoch, node).reshape(-1) for node in client.nodes]
        counts.append(torch.bincount((torch.cat(seen) >> 60) & 15, minlength=16))
    for count in counts:
        expected = count.sum() / 16
        assert ((count - expected) ** 2 / expected).sum() < 60  # chi-squared of 15 degrees


# ---- between parties


class World:
    """Two parties and a dealer of this process, without TLS."""

    def __init__(self, program: DeepProgram, receive_s: float = 15.0) -> None:
        first, *rest = free_addresses(3)
        addresses = dict(zip(program.parties, rest, strict=True))
        times = Timeouts(connect_s=15.0, receive_s=receive_s)
        self.program, self.config = program, plain_config(addresses, dealer=first, timeouts=times)
        options = {"insecure_plain": True, "say": lambda text: None}
        threading.Thread(target=serve, args=(self.config, None), kwargs=options, daemon=True).start()

    def run(self, tasks: dict[str, Callable], config: PartiesConfig | None = None) -> dict:
        def party(me: str):
            with securemodel.connect(self.program, me, config or self.config, insecure_plain=True) as session:
                return tasks[me](session)

        return run_together({me: lambda me=me: party(me) for me in tasks}, LIMIT_S)


@pytest.fixture(autouse=True)
def short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "_GOODBYE_S", 0.2)


def test_sessions_prepare_by_themselves_or_ahead():
    world, x = World(compiled(small(), torch.zeros(2, 4))), torch.randn(5, 4)
    plan, model = world.program.plan(), world.program.model

    def task(session):
        mine, made = x if session.me == "client" else None, []
        made.append((session.run(mine), session.stats))
        session.prepare()
        one = None if mine is None else mine[:2]
        made.append((session.run(one), session.stats))
        session.load(session.program, model)
        made.append((session.run(one), session.stats))
        return made

    results = world.run(dict.fromkeys(world.program.parties, task))
    with torch.no_grad():
        for (made, _), expected in zip(results["client"], (model(x), model(x[:2]), model(x[:2])), strict=True):
            torch.testing.assert_close(made, expected, atol=2e-3, rtol=0)
    for name in world.program.parties:
        (_, three), (_, ready), (_, whole) = results[name]
        assert three.sent_bytes == {name: 3 * plan.sent_bytes[name]} and three.rounds == 3 * plan.rounds
        assert whole.sent_bytes == {name: plan.sent_bytes[name]} and ready.rounds == plan.online.rounds
        assert ready.sent_bytes == {name: plan.online.sent_bytes[name]}


@pytest.mark.parametrize("liar, side, method", [("client", ClientLayers, "request"), ("bank", OwnerLayers, "reply")])
def test_a_changed_message_names_who_sent_it(liar, side, method, monkeypatch):
    true = getattr(side, method)

    def changed(self, *args):
        message = true(self, *args)
        return message[:-40] + bytes([message[-40] ^ 1]) + message[-39:]

    monkeypatch.setattr(side, method, changed)
    world = World(compiled(small(), torch.zeros(2, 4)))
    task = lambda session: session.run(torch.randn(2, 4) if session.me == "client" else None)
    results = world.run(dict.fromkeys(world.program.parties, task))
    other = "bank" if liar == "client" else "client"
    assert isinstance(results[other], BadFrame) and results[other].party == liar
    assert f"'{liar}' sent a message that cannot be used" in str(results[other])
    assert isinstance(results[liar], PeerAborted) and results[liar].party == other
