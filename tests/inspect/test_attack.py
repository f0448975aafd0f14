"""The attack on a program finds nothing in this engine, and finds what is wrong with engines that are broken."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

import securemodel
from protocols.prg import Draws, Stream, Use
from securemodel.engines.masked import party
from securemodel.errors import InputError
from securemodel.inspect import tampering
from securemodel.inspect import views as views_module
from securemodel.inspect.attack import LEAST_SESSIONS, attack
from securemodel.inspect.tampering import ATTACKS, FOREIGN, HANG, NAMED, UNCHANGED, WRONG, tamper
from securemodel.inspect.uniform import ALARM, BITS, CONSTANT, PAIRS, SPREAD_OF_BITS, Examination, examine
from securemodel.inspect.views import views
from securemodel.program import Program

SESSIONS = 10


def made(parties: tuple[str, ...] = ("bank", "hospital"), **options: Any) -> Program:
    """A layer, comparisons and, for two parties, a function by splines."""
    last = torch.nn.Sigmoid() if len(parties) == 2 else torch.nn.ReLU()
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3), last).eval()
    roles = {"weights": "bank", "inputs": "hospital", "outputs": "hospital"}
    return securemodel.compile(model, torch.zeros(4, 4), **roles, parties=parties, **options)


def findings(program: Program) -> list[Examination]:
    """What the tests of all views say is not random."""
    tested = [test for view in views(program, SESSIONS) for test in examine(view)]
    return [test for test in tested if test.chance * len(tested) < ALARM]


@pytest.mark.parametrize("parties", [("bank", "hospital"), ("bank", "hospital", "helper")], ids=len)
@pytest.mark.parametrize("options", [{}, {"width": 32}], ids=str)
def test_the_views_of_this_engine_look_random(parties: tuple[str, ...], options: dict) -> None:
    assert findings(made(parties, **options)) == []


def test_the_views_of_parties_that_clients_ask_look_random() -> None:
    assert findings(served()) == []


def test_a_client_that_hands_its_input_to_one_party_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = views_module.client_shares

    def plain(program: Program, inputs: Sequence[torch.Tensor]) -> dict[str, list[torch.Tensor]]:
        given = shares(program, inputs)
        whole = [sum(parts[1:], parts[0]) for parts in zip(*given.values(), strict=True)]
        return {name: whole if name == "bank" else [x * 0 for x in whole] for name in given}

    monkeypatch.setattr(views_module, "client_shares", plain)
    assert {found.party for found in findings(served())} == {"bank", "hospital", "helper"}


def served() -> Program:
    """The same for clients who are no parties."""
    parties = ("bank", "hospital", "helper")
    model = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)).eval()
    example = torch.zeros(1, 4)
    family = securemodel.compile_service(model, example, weights="bank", parties=parties, sizes=(4,), clamp=(0, 1))
    return family.programs[4]


# Engines that are broken: each is noticed, and by the test that is meant for it, where there is one.

FILL = Stream.fill


def broken(change: Callable[..., Any]) -> Callable[[pytest.MonkeyPatch], None]:
    """Masks and dealt shares changed alike at the parties and the dealer, so that results stay right."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        def fill(
            self: Stream, out: torch.Tensor, epoch: int, node: int, purpose: int, mode: str = "set", index: int = 0
        ) -> Any:
            found = change(self, torch.empty_like(out), epoch, node, purpose, index)
            if found is None:
                return FILL(self, out, epoch, node, purpose, mode, index)
            steps = {"set": out.copy_, "add": out.add_, "sub": out.sub_, "xor": out.bitwise_xor_}
            return steps[mode](found)

        def fill_each(self: Draws, stream: Stream, epoch: int, outs: Sequence[torch.Tensor]) -> None:
            for place, out in zip(self.places, outs, strict=True):
                stream.fill(out, epoch, place.node, place.purpose, place.mode, place.index)

        monkeypatch.setattr(Stream, "fill", fill)
        monkeypatch.setattr(Draws, "fill", fill_each)

    return patch


def without(*purposes: Use) -> Callable[..., Any]:
    return lambda stream, out, epoch, node, purpose, index: out.zero_() if purpose in purposes else None


def one_without(op: str) -> Callable[..., Any]:
    """Only the last opening of this kind is bare."""
    bare = next(node.id for node in reversed(made().graph.nodes) if node.op == op)
    purposes = (Use.MASK, Use.BIT_MASK)
    return lambda stream, out, epoch, node, purpose, index: (
        out.zero_() if node == bare and purpose in purposes else None
    )


def even(stream: Stream, out: torch.Tensor, epoch: int, node: int, purpose: int, index: int) -> Any:
    """Masks that are even: the last bit shows."""
    return FILL(stream, out, epoch, node, purpose).mul_(2) if purpose == Use.MASK else None


def few(stream: Stream, out: torch.Tensor, epoch: int, node: int, purpose: int, index: int) -> Any:
    """Masks out of a pool of two for each word."""
    if purpose != Use.MASK:
        return None
    chosen = int(FILL(stream, torch.empty(1, dtype=torch.int64), epoch, node, purpose)[0] & 1)
    return FILL(Stream(bytes([chosen]) * 32), out, epoch, node, purpose)


def address(**fixed: int) -> Callable[..., Any]:
    """Streams read at the same address again and again."""

    def read(stream: Stream, out: torch.Tensor, epoch: int, node: int, purpose: int, index: int) -> Any:
        if purpose == Use.DEALT:
            return None
        return FILL(stream, out, fixed.get("epoch", epoch), fixed.get("node", node), purpose, "set", index)

    return read


def same_keys(monkeypatch: pytest.MonkeyPatch, fresh: bool) -> None:
    """Every party of a session has the same key: fresh in every session, or never."""
    counter = itertools.count()
    monkeypatch.setattr(
        "securemodel.engines.masked.walk.new_key", lambda: bytes([7 + (next(counter) // 2) * fresh]) * 32
    )


BROKEN: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str | None]] = {
    "no masks": (broken(without(Use.MASK)), CONSTANT),
    "no masks of bits": (broken(without(Use.BIT_MASK)), BITS),
    "bare dealt values": (broken(without(Use.DEALT)), BITS),
    "one input without a mask": (broken(one_without("input")), CONSTANT),
    "one value without a mask": (broken(one_without("mask")), None),
    "one comparison without a mask": (broken(one_without("mask_bits")), CONSTANT),
    "even masks": (broken(even), BITS),
    "masks out of a pool": (broken(few), SPREAD_OF_BITS),
    "one mask for all nodes": (broken(address(node=1)), PAIRS),
    "one mask for all runs": (broken(address(epoch=1)), PAIRS),
    "one key for all sessions": (lambda patch: same_keys(patch, False), CONSTANT),
    "one key for all parties": (lambda patch: same_keys(patch, True), PAIRS),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_engine_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    program = made()
    patch, question = BROKEN[name]
    patch(monkeypatch)
    found = findings(program)
    assert found if question is None else question in {test.question for test in found}


def test_shares_of_results_without_shares_of_zero_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x + y

    roles = {"weights": "bank", "inputs": ("bank", "hospital"), "outputs": "helper"}
    shapes = (torch.zeros(40), torch.zeros(40))
    program = securemodel.compile(Sum(), shapes, **roles, parties=("bank", "hospital", "helper"))
    assert findings(program) == []
    monkeypatch.setattr(party, "add_zero", lambda share, *rest: share)
    assert {test.party for test in findings(program)} == {"helper"}


def test_two_inputs_are_told_apart_where_masks_are_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    def small(stream: Stream, out: torch.Tensor, epoch: int, node: int, purpose: int, index: int) -> Any:
        return FILL(stream, out, epoch, node, purpose).bitwise_and_(0xFF) if purpose == Use.MASK else None

    program = made()
    broken(small)(monkeypatch)
    assert {BITS, PAIRS} & {test.question for test in findings(program)}


# Wrong messages.


@pytest.mark.parametrize("parties", [("bank", "hospital"), ("bank", "hospital", "helper")], ids=len)
def test_wrong_messages_end_in_named_errors_or_wrong_results(parties: tuple[str, ...]) -> None:
    """A bit flipped within a masked value is what no party can notice; everything else is refused by name.

    But for a last message that comes twice: nobody reads it the second time.
    """
    for found in tamper(made(parties), 2):
        assert found.outcomes[HANG] == found.outcomes[FOREIGN] == 0, found
        if found.attack != "bit flipped":
            assert found.outcomes[NAMED] + (found.attack == "repeated") * found.outcomes[UNCHANGED] == 2, found


def test_hangs_and_foreign_exceptions_and_wrong_results_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def raising(*rest: Any) -> None:
        raise ZeroDivisionError

    def all_flipped(link: Any, label: Any, buffers: Any, post: Callable) -> None:
        post(label, [bytes(255 - byte for byte in bytes(tampering.byte_view(buffer))) for buffer in buffers])

    def nothing(link: Any, label: Any, buffers: Any, post: Callable) -> None:
        post(label, buffers)

    found = {made.attack: made.outcomes for made in tamper(made(), 4, attacks={"raising": raising, "nothing": nothing, "flipped": all_flipped})}  # fmt: skip
    assert found["raising"][FOREIGN] == 4 and found["nothing"][UNCHANGED] == 4
    assert found["flipped"][WRONG] > 0
    monkeypatch.setattr(tampering, "run_together", lambda tasks, limit_s: (_ for _ in ()).throw(TimeoutError))
    scene = tampering._Scene.__new__(tampering._Scene)
    scene.program, scene.messages = made(), {("bank", "hospital"): 1}
    scene.limit_s = scene.receive_s = 0.1
    assert scene.attacked(ATTACKS["empty"]) == HANG


# The whole.


def test_an_attack_and_its_text() -> None:
    found = attack(made(), LEAST_SESSIONS)
    assert found.passed
    text = str(found)
    assert "0 findings" in text and "view of" in text and "bit flipped" in text and text.endswith("passed")
    assert json.loads(json.dumps(found.json()))["passed"] is True


def test_an_attack_on_a_broken_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    program = made()
    broken(without(Use.MASK))(monkeypatch)
    monkeypatch.setattr("securemodel.inspect.attack.tamper", lambda *rest: [])
    found = attack(program, LEAST_SESSIONS)
    assert not found.passed and "NOT RANDOM" in str(found) and str(found).endswith("FAILED")


def test_what_cannot_be_attacked(tmp_path) -> None:
    program = made()
    program.save(tmp_path / "program.txt")
    linear = securemodel.compile(torch.nn.Linear(4, 2), torch.zeros(2, 4), weights="bank", inputs="hospital", outputs="hospital", protocol="paillier")  # fmt: skip
    for other in (Program.load(tmp_path / "program.txt"), linear):
        with pytest.raises(InputError, match="cannot be attacked"):
            attack(other)
    with pytest.raises(InputError, match="too little"):
        attack(program, LEAST_SESSIONS - 1)
