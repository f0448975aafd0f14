"""Families of programs that answer clients who are no parties: shares go in, shares come out, and their sum is the answer."""

from __future__ import annotations

import importlib.util
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import securemodel
from securemodel.compiler.reading import MAX_FAMILY, load_of, parse_programs
from securemodel.engines.masked import party as party_module
from securemodel.errors import CompileError, InputError, ProgramError
from securemodel.family import Family
from securemodel.inspect.audit import audit
from securemodel.inspect.fixed import fixed_point
from securemodel.sessions.serving import Result, ServingSession

MANIFEST = bytes(range(32))
EDGES = (0, 1, -1, (1 << 16) - 1, 1 << 16, 1 << 62, -(1 << 62), (1 << 63) - 1, -(1 << 63))


def seeded(make: Any, seed: int = 1) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().eval()


def drawn(*shape: int, seed: int = 7) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def parties(count: int) -> tuple[str, ...]:
    return ("bank", "hospital", "lab", "registry", "shop")[:count]


def served(model: nn.Module, example: Any, count: int = 2, **options: Any) -> Family:
    defaults = {"weights": "bank", "parties": parties(count), "sizes": (2,), "clamp": None}
    return securemodel.compile_service(model, example, **{**defaults, **options})


def ring(x: torch.Tensor, frac_bits: int) -> torch.Tensor:
    return (x.double() * 2.0**frac_bits).round().long() if x.is_floating_point() else x.long()


def split(value: torch.Tensor, count: int) -> list[torch.Tensor]:
    """Shares of ring elements, as a client makes them."""
    masks = [
        torch.frombuffer(bytearray(os.urandom(8 * value.numel())), dtype=torch.int64).view(value.shape)
        for _ in range(count - 1)
    ]
    return [value - sum(masks, torch.zeros_like(value)), *masks]


def shared(family: Family, inputs: Sequence[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
    each = [split(ring(x, port.frac_bits), len(family.parties)) for x, port in zip(inputs, family.inputs, strict=True)]
    return {name: [shares[rank] for shares in each] for rank, name in enumerate(family.parties)}


def opened(family: Family, result: Result) -> list[torch.Tensor]:
    """The outputs, in the ring, that a client makes of all shares."""
    return [sum(shares[1:], shares[0]) for shares in zip(*result.shares.values(), strict=True)]


def asked(session: ServingSession, family: Family, size: int, *inputs: torch.Tensor) -> list[torch.Tensor]:
    """What a client learns who asks this, as numbers."""
    result = session.run_shares(size, shared(family, inputs), len(inputs[0]), MANIFEST)
    return [y.double() / 2.0**port.frac_bits for y, port in zip(opened(family, result), family.outputs, strict=True)]


class Two(nn.Module):
    """A product of two inputs, and a table of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 3)
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        return self.layer(x * self.table(ids).sum(1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.norm(self.table(ids)).mean(1)))


def small() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))


def image() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 3), nn.Sigmoid())


CASES = [
    (small, 2, {"clamp": (0.0, 1.0)}, [drawn(2, 4)]),
    (small, 5, {}, [drawn(2, 4) * 8 - 4]),
    (image, 3, {"reveal": "class", "clamp": (0.0, 1.0)}, [drawn(2, 1, 4, 4)]),
    (image, 2, {"reveal": ("top", 2)}, [drawn(2, 1, 4, 4)]),
    (smooth, 2, {"reveal": "probabilities"}, [drawn(2, 3)]),
    (smooth, 3, {"truncate_outputs": False, "weights": "lab"}, [drawn(2, 3)]),
    (Two, 2, {"weights": {"table": "hospital", "layer": "bank"}}, [drawn(2, 3), torch.tensor([[0, 5], [3, 3]])]),
    (Tokens, 3, {}, [torch.tensor([[0, 1, 4], [2, 2, 3]])]),
]


@pytest.mark.parametrize(("make", "count", "options", "inputs"), CASES)
def test_a_client_gets_bit_for_bit_what_fixed_point_gives_and_costs_are_those_of_the_plan(make, count, options, inputs):
    model = seeded(make)
    family = served(model, tuple(inputs), count, **options)
    program = family.programs[2]
    expected = fixed_point(program, *inputs)
    with securemodel.local(family) as session:
        session.load(family, model)
        plan = program.plan()
        assert session.load_stats.rounds == plan.load.rounds
        assert session.load_stats.sent_bytes == plan.load.sent_bytes
        got = asked(session, family, 2, *inputs)
        assert session.stats.rounds == plan.rounds
        assert session.stats.sent_bytes == plan.sent_bytes
        assert session.stats.preprocessing_bytes == plan.preprocessing_bytes
    for have, want, port in zip(got, expected, family.outputs, strict=True):
        assert torch.equal(have, want.double()), port
        assert have.shape == (2, *port.shape)
    if family.outputs[0].kind != "class":
        with torch.no_grad():
            real = model(*inputs).softmax(-1) if options.get("reveal") == "probabilities" else model(*inputs)
        assert (got[0] - real).abs().max() < 2e-3


def test_all_sizes_run_after_one_load_and_their_epochs_are_of_one_row():
    model = seeded(small)
    family = served(model, drawn(1, 4), 3, sizes=(4, 1, 2), clamp=(0, 1))
    assert family.sizes == (1, 2, 4) and family.row_independent
    first, *others = family.programs.values()
    assert load_of(first.graph) and all(load_of(other.graph) == load_of(first.graph) for other in others)
    assert len({family.digest, *(program.digest for program in family.programs.values())}) == 4
    runs = []
    with securemodel.local(family) as session:
        session.load(family, model)
        for size, rows in ((4, 4), (1, 1), (4, 3), (2, 1), (1, 1), (2, 2)):
            x = drawn(rows, 4, seed=rows)
            result = session.run_shares(size, shared(family, [x]), rows, MANIFEST)
            runs.append(result.run)
            (y,) = opened(family, result)
            assert y.shape == (rows, 2)
            assert (y / 2.0**16 - model(x)).abs().max() < 1e-3
        again = drawn(4, 4)
        session.load(family, seeded(small, 2))
        assert (asked(session, family, 4, again)[0] - seeded(small, 2)(again)).abs().max() < 1e-3
        last = session.run_shares(1, shared(family, [again[:1]]), 1, MANIFEST).run
    heads, epochs = zip(*(run.split(":") for run in [*runs, last]), strict=True)
    assert len(set(heads)) == 1 and len(heads[0]) == 16
    assert sorted(set(map(int, epochs))) == list(map(int, epochs))


class Bias(nn.Module):
    """y = x + a + b."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([0.25, -3.0])), nn.Parameter(torch.tensor([7.5, 0.125]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.a + self.b


def _of_bank(family: Family, model: nn.Module) -> torch.Tensor:
    """What a client who knows its own shares sees of the bank's part of the model."""
    x = torch.zeros(2, 2)
    with securemodel.local(family) as session:
        session.load(family, model)
        shares = shared(family, [x])
        result = session.run_shares(2, shares, 2, MANIFEST)
    assert torch.equal(opened(family, result)[0].double() / 2.0**16, model(x).double())
    return (result.shares["bank"][0] - shares["bank"][0]).double() / 2.0**16


def test_without_shares_of_zero_two_parties_would_show_a_client_each_ones_weights(monkeypatch):
    model = Bias()
    family = served(model, torch.zeros(1, 2), weights={"a": "bank", "b": "hospital"})
    assert not torch.isclose(_of_bank(family, model), model.a.double(), atol=1e3).any()
    monkeypatch.setattr(party_module, "add_zero", lambda share, *args, **kwargs: share)
    assert torch.equal(_of_bank(family, model), model.a.double().expand(2, 2))


def test_what_goes_out_for_a_client_is_new_in_each_run_and_adds_up_to_the_same():
    model = seeded(small)
    family = served(model, drawn(1, 4))
    shares = shared(family, [drawn(2, 4)])
    with securemodel.local(family) as session:
        session.load(family, model)
        first, second = (session.run_shares(2, shares, 2, MANIFEST) for _ in range(2))
    assert torch.equal(opened(family, first)[0], opened(family, second)[0])
    for name in family.parties:
        assert not (first.shares[name][0] == second.shares[name][0]).any()


# ---- weights
def test_shares_of_weights_add_up_to_them_and_load_under_other_masks():
    model = seeded(small)
    family = served(model, drawn(1, 4), 3, weights="hospital")
    x = drawn(2, 4)
    with securemodel.local(family) as session:
        session.load(family, model)
        expected = asked(session, family, 2, x)
        kept = session.weight_shares()
        assert all(torch.equal(kept["lab"][name], session.weight_shares()["lab"][name]) for name in kept["lab"])
        masked = {node: value.m for node, value in session.walks["bank"].party._loaded.items() if hasattr(value, "m")}
    nodes = {node.id: node for node in family.programs[2].graph.nodes}
    sums = {int(name): sum(kept[me][name] for me in family.parties) for name in kept["bank"]}
    weights = {nodes[name].shape: value / 2.0 ** nodes[name].frac for name, value in sums.items()}
    assert (weights[4, 3] - model[0].weight.detach().t()).abs().max() < 2.0**-16
    for me in family.parties:
        assert not any((share == sums[int(name)]).any() for name, share in kept[me].items())
    with securemodel.local(family) as session:
        session.load_shares(kept)
        assert all(torch.equal(a, b) for a, b in zip(asked(session, family, 2, x), expected, strict=True))
        for node, m in masked.items():
            assert not (session.walks["bank"].party._loaded[node].m == m).any()
        again = session.weight_shares()
        assert torch.equal(sum(again[me][str(6)] for me in family.parties), sums[6])
        assert not (again["bank"]["6"] == kept["bank"]["6"]).any()


def test_other_shares_of_weights_are_refused():
    model = seeded(small)
    family = served(model, drawn(1, 4))
    with securemodel.local(family) as session:
        with pytest.raises(InputError, match="each party by its name"):
            session.load_shares({"bank": {}})
        with pytest.raises(InputError, match="4 of 4 are not there"):
            session.load_shares({name: {} for name in family.parties})
        session.load(family, model)
        kept = session.weight_shares()
        kept["bank"]["6"] = kept["bank"]["6"].float()
        with pytest.raises(InputError, match="1 of 4"):
            session.load_shares(kept)
        assert asked(session, family, 2, drawn(2, 4))


# ---- what is refused
@pytest.mark.parametrize(
    ("size", "rows", "manifest", "shares", "says"),
    [
        (3, 2, MANIFEST, None, "no program of size 3"),
        (2, 0, MANIFEST, None, "1 to 2 rows, not 0"),
        (2, 3, MANIFEST, None, "1 to 2 rows, not 3"),
        (2, 2, b"short", None, "32 bytes"),
        (2, 2, MANIFEST, [torch.zeros(2, 4)], r"int64 tensors of the shapes \[2, 4\]"),
        (2, 2, MANIFEST, [torch.zeros(1, 4, dtype=torch.int64)], r"\[2, 4\]"),
        (2, 2, MANIFEST, [torch.zeros(2, 5, dtype=torch.int64)], r"\[2, 4\]"),
        (2, 2, MANIFEST, [], r"\[2, 4\]"),
        (2, 1, MANIFEST, [torch.zeros(2, 4, dtype=torch.int64)], r"\[1, 4\]"),
    ],
)
def test_runs_that_cannot_be_are_refused_before_anything_is_sent(loaded, size, rows, manifest, shares, says):
    family, session = loaded
    sent = session.channel.stats.sent_bytes
    given = [torch.zeros(2, 4, dtype=torch.int64)] if shares is None else shares
    with pytest.raises(InputError, match=says):
        session.run_shares(size, dict.fromkeys(family.parties, given), rows, manifest)
    assert session.channel.stats.sent_bytes == sent
    assert asked(session, family, 2, drawn(2, 4))


@pytest.fixture(scope="module")
def loaded():
    model = seeded(small)
    family = served(model, drawn(1, 4), clamp=(0, 1))
    with securemodel.local(family) as session:
        session.load(family, model)
        yield family, session


def test_sessions_of_clients_take_shares_alone(loaded):
    _, session = loaded
    with pytest.raises(InputError, match="run_shares"):
        session.run(drawn(2, 4))
    with pytest.raises(InputError, match="serves the family"):
        session.load(served(seeded(small), drawn(1, 4)), seeded(small))


def test_rows_of_threads_come_back_to_them(loaded):
    family, session = loaded
    model, errors = seeded(small), []

    def ask(seed: int) -> None:
        x = drawn(1 + seed % 2, 4, seed=seed)
        errors.append((asked(session, family, 2, x)[0] - model(x)).abs().max().item())

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(errors) == 8 and max(errors) < 1e-3


def test_rows_that_depend_on_each_other_run_alone():
    class Centered(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x - x.mean(0)

    family = served(Centered(), drawn(1, 3))
    assert not family.row_independent and family.card()["row_independent"] is False
    x = drawn(2, 3)
    with securemodel.local(family) as session:
        session.load(family, None)
        with pytest.raises(InputError, match="depend on each other"):
            session.run_shares(2, shared(family, [x[:1]]), 1, MANIFEST)
        assert (asked(session, family, 2, x)[0] - (x - x.mean(0))).abs().max() < 1e-3


class Total(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()


@pytest.mark.parametrize(
    ("model", "options", "says"),
    [
        (small, {"parties": ("bank", "client")}, "cannot be called 'client'"),
        (small, {"parties": ("bank",)}, "at least two"),
        (small, {"weights": "public"}, "belong to parties"),
        (small, {"sizes": ()}, "numbers of rows"),
        (small, {"sizes": (0, 1)}, "numbers of rows"),
        (small, {"sizes": range(1, MAX_FAMILY + 2)}, "numbers of rows"),
        (small, {"clamp": (1.0, 1.0)}, "no bounds"),
        (small, {"clamp": (0.0, 1e-9)}, "no bounds"),
        (small, {"clamp": (0.0, 1e9)}, "no bounds"),
        (small, {"recipe": {"y": []}}, "of input, not"),
        (small, {"recipe": {"input": [("rot13",)]}}, "no step"),
        (small, {"recipe": {"input": [("divide", 0)]}}, "no step"),
        (small, {"recipe": {"input": [("divide", float("nan"))]}}, "no step"),
        (small, {"recipe": {"input": [("clamp", 1.0, 0.0)]}}, "cannot clamp"),
        (small, {"recipe": {"input": [("one_hot", True)]}}, "no step"),
        (small, {"recipe": {"input": ["grayscale"]}}, "no step"),
        (Total, {}, "a row for each row"),
    ],
)
def test_families_that_cannot_be_are_refused(model, options, says):
    width = {small: 4}.get(model, 3)
    with pytest.raises(CompileError, match=says):
        served(model(), drawn(1, width), **options)


def test_examples_have_rows_of_real_numbers():
    for example in (torch.tensor(1.0), torch.zeros(0, 4), torch.zeros(1, 4, dtype=torch.complex64)):
        with pytest.raises(CompileError, match="one row or more|complex"):
            served(small(), example)


# ---- what clients are told
def test_a_card_says_what_a_client_must_know_and_is_json():
    recipe = {"x": [("divide", 255.0), ("subtract", [0.5, 0.25, 0.1])], "ids": [["pad_ids", 2, 0]]}
    family = served(seeded(Two), {"x": drawn(1, 3), "ids": torch.tensor([[1, 2]])}, recipe=recipe, labels=["no", "yes"])
    card = json.loads(json.dumps(family.card()))
    assert card["inputs"] == [
        {"name": "x", "shape": [-1, 3], "frac_bits": 16, "kind": "real", "limit": 2.0**30},
        {"name": "ids", "shape": [-1, 2], "frac_bits": 0, "kind": "index", "limit": 5.0},
    ]
    assert card["outputs"] == [{"name": "output", "shape": [-1, 2], "frac_bits": 16, "kind": "scores", "limit": 0.0}]
    assert card["recipe"] == {"x": [["divide", 255.0], ["subtract", [0.5, 0.25, 0.1]]], "ids": [["pad_ids", 2, 0]]}
    assert card["digest"] == family.digest and card["sizes"] == [2] and card["labels"] == ["no", "yes"]
    assert card["clamp"] is None and card["reveal"] == "all"
    plan = family.programs[2].plan()
    assert card["plan"] == {
        "rounds": plan.rounds,
        "bytes_by_size": {"2": sum(plan.sent_bytes.values())},
        "preprocessing_by_size": {"2": plan.preprocessing_bytes},
    }
    assert "0." not in repr(family)


def test_outputs_are_named_by_what_they_are():
    tops = served(seeded(small), drawn(1, 4), reveal=("top", 2)).outputs
    assert [(port.name, port.kind, port.shape, port.frac_bits) for port in tops] == [
        ("class", "class", (2,), 0), ("probability", "probabilities", (2,), 16),
    ]  # fmt: skip
    assert [port.kind for port in served(seeded(small), drawn(1, 4), reveal=("top", 1, "scores")).outputs] == [
        "class", "scores",
    ]  # fmt: skip


def test_an_audit_says_what_a_client_and_the_parties_see():
    program = served(seeded(small), drawn(1, 4), 3).programs[2]
    found = {role.name: role for role in audit(program).roles}
    assert list(found) == ["bank", "hospital", "lab", "client", "dealer"]
    assert found["client"].learns == ("output",) and not found["bank"].learns
    assert found["client"].brings == ("input 0 [2, 4]",)
    seen = {what.what: what for what in found["hospital"].sees}
    assert seen["shares of clients' inputs"].numbers == 8 and seen["inputs of clients"].numbers == 8
    assert seen["weights"].phase == "load" and seen["weights"].numbers == 4 * 3 + 3 * 2
    assert [what.bits for what in found["client"].sees] == [4 * 64 * 3]


def test_one_program_of_a_family_opens_no_session_of_parties():
    program = served(seeded(small), drawn(1, 4)).programs[2]
    with pytest.raises(InputError, match="session of its family"):
        securemodel.local(program)
    with pytest.raises(InputError, match="session of its family"):
        securemodel.connect(program, "bank", "nowhere.toml", ledger=False)


def test_lenet_reads_digits_of_clients_as_plain_torch_does():
    folder = Path(__file__).parents[2] / "examples" / "lenet_mnist"
    model = _lenet(folder)
    with np.load(folder / "images.npz") as file:
        pixels = torch.from_numpy(file["images"][:12]).unsqueeze(1) / 255.0
    family = served(model, pixels[:1], 2, sizes=(4, 8), clamp=(0.0, 1.0))
    with securemodel.local(family) as session, torch.no_grad():
        session.load(family, model)
        scores = torch.cat([asked(session, family, 8, pixels[:8])[0], asked(session, family, 4, pixels[8:])[0]])
        assert torch.equal(scores.argmax(1), model(pixels).argmax(1))
        assert (scores - model(pixels)).abs().max() < 1e-2


def _lenet(folder: Path) -> nn.Module:
    spec = importlib.util.spec_from_file_location("lenet_of_service", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load_trained(folder / "lenet5.safetensors")


# ---- clients who lie
class Same(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


@pytest.fixture(scope="module")
def clamping():
    """Sessions that give back their inputs within bounds, by bounds."""
    made = {}
    for low, high in ((0.0, 1.0), (-2.5, 1024.25), (3.0, 3.0 + 2.0**-16), (-(2.0**20), -1.0)):
        family = served(Same(), torch.zeros(1, 32), 2, sizes=(1,), clamp=(low, high), truncate_outputs=False)
        session = securemodel.local(family)
        session.load(family, None)
        made[low, high] = family, session
    yield made
    for _, session in made.values():
        session.close()


ELEMENTS = st.one_of(st.sampled_from(EDGES), st.integers(-(1 << 63), (1 << 63) - 1), st.integers(-(1 << 18), 1 << 18))


@settings(max_examples=40, deadline=None)
@given(st.lists(ELEMENTS, min_size=32, max_size=32))
def test_every_element_of_the_ring_is_forced_within_the_bounds(clamping, elements):
    for (low, high), (family, session) in clamping.items():
        bottom, top = int(low * 2**16), int(high * 2**16)
        near = [edge + step for edge in (bottom, top) for step in (-1, 0, 1)]
        wrapped = [(bottom + (1 << 63) + step + (1 << 63)) % (1 << 64) - (1 << 63) for step in (-1, 0, 1)]
        x = torch.tensor([[*elements[:23], *near, *wrapped]])
        result = session.run_shares(
            1, {me: [share] for me, share in zip(family.parties, split(x, 2), strict=True)}, 1, MANIFEST
        )
        (y,) = opened(family, result)
        assert bool(((y >= bottom) & (y <= top)).all())
        honest = (x >= bottom - (1 << 40)) & (x <= top + (1 << 40))
        assert torch.equal(y[honest], x[honest].clamp(bottom, top))


def test_without_a_clamp_inputs_come_as_they_are():
    family = served(Same(), torch.zeros(1, len(EDGES)), sizes=(1,), truncate_outputs=False)
    x = torch.tensor([EDGES])
    with securemodel.local(family) as session:
        session.load(family, None)
        result = session.run_shares(
            1, {me: [share] for me, share in zip(family.parties, split(x, 2), strict=True)}, 1, MANIFEST
        )
    assert torch.equal(opened(family, result)[0], x)


def test_ids_outside_of_the_table_give_no_row_of_weights_to_others():
    model = seeded(Tokens)
    family = served(model, torch.tensor([[0, 1, 4]]), sizes=(1,))
    with securemodel.local(family) as session:
        session.load(family, model)
        for odd in (-1, 5, 1 << 40, -(1 << 63)):
            (y,) = asked(session, family, 1, torch.tensor([[odd, 0, 0]]))
            assert y.abs().max() < 100
        known = torch.tensor([[1, 0, 4]])
        assert (asked(session, family, 1, known)[0] - model(known)).abs().max() < 2e-3


# ---- texts
def test_texts_of_a_family_are_read_together():
    family = served(seeded(small), drawn(1, 4), sizes=(1, 2), clamp=(0, 1))
    texts = [program.text() for program in family.programs.values()]
    read = parse_programs("".join(texts))
    assert [header.input_shapes for header, _ in read] == [((1, 4),), ((2, 4),)]
    assert [len(graph.nodes) for _, graph in read] == [len(p.graph.nodes) for p in family.programs.values()]
    assert len(parse_programs(texts[0])) == 1
    other = served(seeded(small), drawn(1, 4), parties=("bank", "lab")).programs[2].text()
    for wrong, says in (
        (texts[0] + other, "share no load"),
        (texts[0] + securemodel.compile(small(), drawn(1, 4), weights="bank", inputs="hospital", outputs="bank").text(), "share no load"),
        (texts[0] * (MAX_FAMILY + 1), "at most 32"),
        ("%0 = nothing\n" + texts[0], "line 1"),
        ("", "line 1"),
    ):  # fmt: skip
        with pytest.raises(ProgramError, match=says):
            parse_programs(wrong)


@pytest.mark.parametrize(
    ("part", "old", "new", "says"),
    [
        ("= client_input", "input:0", "input:1", "no input"),
        ("= client_input", " f16 ", " f63 ", "cannot be encoded with 63"),
        ("= client_input", "client_input ", "client_input@bank ", "owner none, not 'bank'"),
        ("= client_input", "[2,4]", "[2,5]", r"shape \[2, 4\], not \[2, 5\]"),
        ("= client_input", "[2,4]", "[2,4] load", "phase 'run', not 'load'"),
        ("= client_output", '"index":0', '"index":1', "no output 1"),
        ("= client_output", '"dtype":"float32"', '"dtype":"load"', "dtype cannot be"),
        ("= client_output", " f16 ", " f17 ", "fractional bits 16, not 17"),
        ("secure-program", '["bank","hospital"]', '["bank","client"]', "is no client's|hospital"),
        ("secure-program", '"outputs":["client"]', '"outputs":["bank"]', "the output 0 is no client's"),
        ("secure-program", '"inputs":["client"]', '"inputs":["bank"]', "no client's"),
    ],
)
def test_a_text_states_nothing_else_of_clients(part, old, new, says):
    text = served(seeded(small), drawn(1, 4), clamp=(0, 1)).programs[2].text()
    lines = text.split("\n")
    at = next(i for i, line in enumerate(lines) if part in line and old in line)
    lines[at] = lines[at].replace(old, new, 1)
    with pytest.raises(ProgramError, match=says):
        parse_programs("\n".join(lines))


def test_a_party_never_encodes_what_a_client_gives():
    header, graph = parse_programs(served(seeded(small), drawn(1, 4)).programs[2].text())[0]
    at = next(node.id for node in graph.nodes if node.op == "client_input")
    line = f'%{at} = placeholder@client {{"name":"input:0"}} : float [2,4]\n%{at + 1} = own@client %{at} : additive f16 [2,4]'
    text = "\n".join([header.text(), *(node.text() for node in graph.nodes[:at]), line]) + "\n"
    with pytest.raises(ProgramError, match="enters as shares"):
        parse_programs(text)
