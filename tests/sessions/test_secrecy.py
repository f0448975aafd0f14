"""What must not get out: values in texts, masks used twice, parts of a result, what fills up a batch."""

from __future__ import annotations

import gc
import itertools
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import securemodel
from protocols import prg
from protocols.channel import Purpose
from protocols.channel.base import Channel
from protocols.errors import PeerAborted, SecureModelError
from protocols.fixedpoint import encode
from protocols.prg import Stream
from securemodel.engines.masked import opening
from securemodel.engines.masked.rounds import Together
from securemodel.engines.masked.store import prepare
from securemodel.sessions.session import Epochs

SENTINEL = 731.40625  # exact in fixed point, in floats and in decimals
OURS = ("protocols", "securemodel")


def texts_of_our_objects() -> list[str]:
    """What printing any object of this project's types would show now."""
    texts = []
    for thing in gc.get_objects():
        if str(getattr(type(thing), "__module__", "")).split(".")[0] not in OURS:
            continue
        try:
            texts += [repr(thing), str(thing)]
        except AttributeError:
            pass  # another thread is still making it
    return texts


def forbidden(keys: list[bytes]) -> list[str]:
    """What no text may contain: the sentinel as a float or in the ring, tensors, keys."""
    ring = [str(int(SENTINEL * 2**16)), str(int(SENTINEL * 2**32))]
    return ["731.40", *ring, "tensor(", *(repr(k)[2:20] for k in keys), *(k.hex()[:16] for k in keys)]


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """All stream keys that are made during the test."""
    made: list[bytes] = []
    init = Stream.__init__

    def noted(self: Stream, key: bytes, *device: Any) -> None:
        made.append(bytes(key))
        init(self, key, *device)

    monkeypatch.setattr(Stream, "__init__", noted)
    return made


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """What other tests of this process left, of which there can be very much, is not looked at."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize("source", ["dealer", "store"])
def test_no_text_shows_a_value(worlds, tools, keys, monkeypatch, capfd, caplog, tmp_path, source) -> None:
    caplog.set_level(logging.DEBUG, "securemodel")
    bank_model = tools.make_model()
    with torch.no_grad():
        bank_model[0].weight.fill_(SENTINEL)
    program = tools.make_program(bank_model)
    texts: list[str] = []
    begin, rounds = Channel.begin, itertools.count()

    def watched(self: Channel, label: Any, *rest: Any) -> Any:
        if next(rounds) in (3, 8, 14):  # in the agreement, while loading and in the middle of a run
            texts.extend(texts_of_our_objects())
        return begin(self, label, *rest)

    monkeypatch.setattr(Channel, "begin", watched)
    x = torch.full((2, 4), SENTINEL)
    world = worlds(program, dealer=source == "dealer", receive_s=60.0)  # looking at all objects takes a while
    options = {"store": prepare(program, 3, tmp_path / "store")} if source == "store" else {}
    results = world.run({"bank": lambda s: s.run(None), "hospital": lambda s: (s.run(x), s.run(x * 1e9))}, **options)
    errors = [error for error in results.values() if isinstance(error, SecureModelError)]
    peers = [error for error in errors if isinstance(error, PeerAborted)]
    texts += [text for error in peers for text in (str(error), repr(error))] + world.said
    texts += list(capfd.readouterr()) + [record.getMessage() for record in caplog.records if record.name in OURS]
    assert len(texts) > 100 and len(keys) >= 4
    for text in texts:
        for part in forbidden(keys):
            assert part not in text, f"{part!r} in {text[:300]!r}"


def test_the_check_above_would_notice(keys) -> None:
    stream = Stream(bytes(range(32)))
    stream_text = repr({"lam": torch.full((2,), SENTINEL)})
    assert any(part in stream_text for part in forbidden(keys))
    assert any(part in repr(keys[0]) for part in forbidden(keys)) and "hidden" in repr(stream)


# Three parties: the receiver of a sum learns the sum, not the summands.


class Sum(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y


def revealed_to(name: str, made: Any, *inputs: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The result of a run, and the shares of it that a party received."""
    received: list[torch.Tensor] = []
    finish = made.channels[name]._finish

    def noted() -> dict[str, torch.Tensor]:
        out = finish()
        received[:] = [part.view(torch.int64) for part in out.values() if part.numel() == 32]
        return out

    made.channels[name]._finish = noted
    result = made.run(*inputs)
    made.channels[name]._finish = finish
    return result, received


def test_the_parts_of_a_sum_are_not_shown() -> None:
    shapes = (torch.zeros(4), torch.zeros(4))
    parties = {"inputs": ("bank", "hospital"), "outputs": "helper", "parties": ("bank", "hospital", "helper")}
    program = securemodel.compile(Sum(), shapes, weights="bank", **parties)
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])
    made = securemodel.local(program)
    result, first = revealed_to("helper", made, x, y)
    torch.testing.assert_close(result, x + y)
    _, second = revealed_to("helper", made, x, y)
    parts = [encode(v, 16, 2.0**30, "part") for v in (x, y)]
    assert len(first) == len(second) == 2
    for share in (*first, *second):
        assert all(not torch.equal(share, part) for part in parts)
        assert (share.abs() > 2**40).any()  # not a small number: hidden by a share of zero
    assert all(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_the_parts_of_a_sum_are_not_shown_between_processes(worlds) -> None:
    shapes = (torch.zeros(4), torch.zeros(4))
    parties = {"inputs": ("bank", "hospital"), "outputs": "all", "parties": ("bank", "hospital", "helper")}
    program = securemodel.compile(Sum(), shapes, weights="bank", **parties)
    x, y = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([10.0, 20.0, 30.0, 40.0])
    given = {"bank": (x, None), "hospital": (None, y), "helper": (None, None)}
    sent: list[torch.Tensor] = []

    def run(made: Any) -> torch.Tensor:
        begin = made.channel.begin

        def noted(label: Any, sends: Any, receives: Any) -> Any:
            if label.purpose == Purpose.OPEN:
                sent.extend(b.clone() for buffers in sends.values() for b in buffers if b.numel() == 4)
            return begin(label, sends, receives)

        made.channel.begin = noted
        return made.run(*given[made.me])

    results = worlds(program).run(dict.fromkeys(given, run))
    for result in results.values():
        torch.testing.assert_close(result, x + y)
    assert sent and all((share.abs() > 2**40).any() for share in sent)


# What fills up a batch, and numbers that must not repeat.


@pytest.mark.parametrize("parties", [("bank", "hospital"), ("bank", "helper", "hospital")])
def test_rows_that_fill_a_batch_up_are_zeros_whose_results_nobody_gets(parties) -> None:
    """What the receiver puts together for them is zero, and not what the weights make of a row."""
    model = torch.nn.Linear(2, 1)
    torch.nn.init.ones_(model.bias)
    program = securemodel.compile(
        model, torch.zeros(3, 2), weights="bank", inputs="hospital", outputs="hospital", parties=parties
    )
    given, got = [], []
    with securemodel.local(program) as made:
        for party in (walk.party for walk in made.walks.values()):
            opened = party._opened

            def noted(node: Any, kept: Any, parts: Any, outputs: Any, opened=opened) -> Any:
                value = opened(node, kept, parts, outputs)
                if node.op == "reveal" and outputs[0] is not None:
                    got.append(outputs[0])
                return value

            encoded = party.clear.encoded
            party.clear.encoded = lambda node, encoded=encoded: given.append(encoded(node)) or given[-1]
            party._opened = noted
        x = torch.ones(5, 2)
        assert torch.allclose(made.run(x), model(x), atol=2.0**-12)
    assert got[-1].shape == (3, 1) and got[-1][2].item() == 0.0 and got[-1][:2].abs().min() > 0
    assert not given[-1][2].any() and given[-1][:2].all()


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([0, 2**20 - 3, 2**32 - 3]))
def test_epochs_never_repeat(runs: list[int], start: int) -> None:
    """Of loads with so many runs each, and one more run that was prepared ahead of every load."""
    epochs, numbers, before = Epochs(start), [], 0
    for count in runs:
        numbers.append(epochs.next_load(before))
        numbers += [epochs.run(number) for number in range(1, count + 2)]
        before = count
    assert numbers == sorted(set(numbers))


def test_epochs_end_before_masks_would_repeat() -> None:
    epochs = Epochs(prg.EPOCHS - 2)
    assert epochs.next_load(0) == prg.EPOCHS - 2 and epochs.run(1) == prg.EPOCHS - 1
    with pytest.raises(SecureModelError, match="used up its epochs"):
        epochs.run(2)


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("start", [2**20 - 4, 2**32 - 4])
def test_a_session_goes_on_after_any_number_of_runs(world, program, model, tools, start, ahead) -> None:
    """Across the numbers where it once ended, or where a header's or an address's field would overflow."""

    def use(made: Any) -> list:
        made._epochs = Epochs(start)
        mine, out = tools.rows(2) if made.me == "hospital" else None, []
        for weights in (model, model):
            made.load(program, weights if made.me == "bank" else None)
            out += [made.run(mine) for _ in range(5)]
        return out

    results = world.run({"bank": use, "hospital": use}, ahead=ahead)
    for y in results["hospital"]:
        torch.testing.assert_close(y, model(tools.rows(2)), atol=2**-10, rtol=0)
    assert len(results["hospital"]) == 10


@pytest.mark.parametrize("start", [0, 2**20 - 4, 2**32 - 4])
def test_no_mask_hides_two_values(world, program, model, tools, monkeypatch, start: int) -> None:
    """No party hides two values by the same share of a mask, also with new weights."""
    used: list[tuple[str, bytes]] = []
    part_of, hidden = opening.part_of, Together.hidden

    def noted(node: Any, share: Any, lam: Any) -> Any:
        note([lam])
        return part_of(node, share, lam)

    def noted_together(self: Any, env: Any, lams: Any) -> Any:
        note(lams)
        return hidden(self, env, lams)

    def note(lams: Any) -> None:
        used.extend((threading.current_thread().name, lam.numpy().tobytes()) for lam in lams if lam is not None)

    monkeypatch.setattr(opening, "part_of", noted)
    monkeypatch.setattr(Together, "hidden", noted_together)

    def use(made: Any) -> None:
        made._epochs = Epochs(start)
        mine = tools.rows(3) if made.me == "hospital" else None
        for weights in (model, tools.make_model(2), model):
            made.load(program, weights if made.me == "bank" else None)
            made.run(mine)
            made.run(mine)

    assert world.run({"bank": use, "hospital": use}) == {"bank": None, "hospital": None}
    assert len(used) > 50 and len(set(used)) == len(used)
