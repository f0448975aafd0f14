"""Means over shares equal means in the clear; who is not in, and why, is said; below the minimum nothing is."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounds import arrays, clear_mean, play, task, upload

from protocols import files
from protocols.errors import InputError
from securemodel.edge import errors as edge
from securemodel.edge import sealing
from securemodel.edge import updates as edge_updates
from securemodel.edge.updates import Layout, add_results, read_part, share_update
from securemodel.errors import CompileError
from securemodel.federated import Task, blocks, mean, open_local, weighted_mean
from securemodel.federated.budgets import Budget
from securemodel.federated.spool import Spool
from securemodel.federated.uploads import Inbox, agree, receipt

WEIGHTED = Task("w", weighted_mean(), Layout.of({"x": np.zeros(())}), slots=6, limit=8.0, max_weight=60_000)


def close(made, expected) -> None:
    assert set(made) == set(expected)
    for name, x in expected.items():
        assert np.abs(np.float64(made[name]) - x).max() <= 2**-16 + 2**-11 * (made[name].dtype == np.float16)


@pytest.mark.parametrize("aggregators", [("a", "b"), ("a", "b", "c")])
@pytest.mark.parametrize("bits", [32, 64])
def test_a_mean(aggregators, bits: int) -> None:
    updates = {f"client {at}": arrays(at) for at in range(5)}
    out = play(task(mean(), aggregators=aggregators, bits=bits), updates)
    close(out.aggregate, clear_mean(updates))
    assert {name: x.dtype.name for name, x in out.aggregate.items()} == {
        "weight": "float32", "temperature": "float64", "bias": "float16"
    }  # fmt: skip
    assert out.aggregate["temperature"].shape == () and out.present == tuple(updates) and not out.refused


@pytest.mark.parametrize("bits", [32, 64])
def test_a_mean_piece_by_piece(bits: int, monkeypatch) -> None:
    monkeypatch.setattr(edge_updates, "PIECE_BYTES", 128)
    monkeypatch.setattr(blocks, "GROUP", 64)
    updates = {f"c{at}": {"x": np.random.default_rng(at).uniform(-1, 1, 150)} for at in range(3)}
    out = play(Task("t", mean(), Layout.of(updates["c0"]), slots=3, bits=bits), updates)
    close(out.aggregate, {"x": sum(update["x"] for update in updates.values()) / 3})


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 60_000),
            st.sampled_from([0.0, 1.0, -1.0, 8.0, -8.0, 2.0**-16]) | st.floats(-8, 8, allow_nan=False),
        ),
        min_size=2,
        max_size=6,
    ).filter(lambda each: sum(weight for weight, _ in each) > 0)
)
def test_means_do_not_depend_on_the_scale_of_weights(each) -> None:
    updates = {f"c{at}": {"x": np.array(x)} for at, (_, x) in enumerate(each)}
    weights = {f"c{at}": weight for at, (weight, _) in enumerate(each)}
    out = play(WEIGHTED, updates, weights)
    close(out.aggregate, clear_mean(updates, weights))


def test_counters_are_rounded_if_asked() -> None:
    updates = {"a": {"x": np.array([1.0]), "n": np.array(5)}, "b": {"x": np.array([0.0]), "n": np.array(8)}}
    layout = Layout.of(updates["a"], integers="round")
    out = play(Task("n", mean(), layout, slots=2, limit=100.0), updates)
    assert out.aggregate["n"] == 6 and out.aggregate["n"].dtype == np.int64


def test_coarse_updates_take_two_bytes_a_number_and_chosen_places_fewer_numbers() -> None:
    layout = Layout.of({"x": np.zeros(1000)})
    rng = np.random.default_rng(5)
    updates = {name: {"x": rng.uniform(-1, 1, 1000)} for name in "abcdef"}
    coarse = Task("c", mean(), layout, slots=100, levels=127)
    out = play(coarse, updates)
    assert np.abs(out.aggregate["x"] - clear_mean(updates)["x"]).max() <= 0.5 / 127 + 1e-9
    assert out.bytes["first"] < 6 * (2000 + 600)
    places = (3, 500, 999)
    out = play(Task("c", mean(), layout, slots=100), updates, positions=places)
    expected = np.zeros(1000)
    expected[list(places)] = clear_mean(updates)["x"][list(places)]
    assert np.abs(out.aggregate["x"] - expected).max() <= 2**-16 and out.bytes["first"] < 6 * 700


def test_clients_alone_get_the_result() -> None:
    updates = {f"client {at}": arrays(at) for at in range(3)}
    with open_local(task(mean(), reveal="clients")) as federation:
        card = federation.card(1)
        shared = {client: share_update(card, update, id=client) for client, update in updates.items()}
        for client, uploads in shared.items():
            for rank, part in uploads.sealed().items():
                federation.receive(1, rank, client, part)
        out = federation.finish(1)
    assert out.aggregate is None
    for client, uploads in shared.items():
        blobs = {rank: each[client] for rank, each in out.deliveries.items()}
        close(add_results(card, blobs, uploads.key), clear_mean(updates))
        with pytest.raises(edge.InputError, match=r"Uploads\.key"):
            add_results(card, blobs)
        with pytest.raises(edge.WireError, match="last upload"):
            add_results(card, blobs, sealing.one_time_key())


def test_a_key_that_nothing_can_be_sealed_to_does_not_end_the_round() -> None:
    with open_local(task(mean(), reveal="clients")) as federation:
        card = federation.card(1)
        upload(federation, {name: arrays(0) for name in "ab"})
        for rank, data in share_update(card, arrays(0), id="liar").items():
            part = replace(read_part(card, rank, "liar", data), answer_key="A" * 43)  # zero: of small order
            with pytest.raises(InputError, match="the key of a part is none"):
                federation.receive(1, rank, "liar", part.bytes())
        assert federation.finish(1).present == ("a", "b")
    with pytest.raises(edge.WireError, match="nothing can be sealed"):
        sealing.seal("A" * 43, b"", b"")


def test_who_is_not_in() -> None:
    updates = {f"client {at}": arrays(at) for at in range(5)}
    with open_local(task(mean())) as federation:
        upload(federation, {name: updates[name] for name in ("client 0", "client 1")})
        card = federation.card(1)
        half = share_update(card, updates["client 2"], id="client 2")
        federation.receive(1, 0, "client 2", half[0])
        one, other = (share_update(card, updates["client 3"], id="client 3") for _ in range(2))
        federation.receive(1, 0, "client 3", one[0])
        federation.receive(1, 1, "client 3", other[1])
        with pytest.raises(InputError, match="bytes"):
            federation.receive(1, 1, "client 4", half[1][:50] + b"0")
        out = federation.finish(1)
    close(out.aggregate, clear_mean({name: updates[name] for name in ("client 0", "client 1")}))
    assert out.present == ("client 0", "client 1") and out.absent == ("client 2",)
    assert out.refused["client 3"] == "its parts belong to different uploads" and "client 4" in out.refused


def test_a_part_that_is_not_of_the_committed_upload() -> None:
    """Its header says the right upload, but what follows it is another one's."""
    told = task(mean()).card(1, [sealing.public_of(sealing.one_time_key())] * 2)
    one, other = (share_update(told, arrays(at), id="c") for at in range(2))
    mixed = replace(read_part(told, 1, "c", one[1]), body=read_part(told, 1, "c", other[1]).body)
    receipts = [{"c": receipt(read_part(told, 0, "c", one[0]))}, {"c": receipt(mixed)}]
    assert agree(receipts, 8).refused == {"c": "its parts belong to different uploads"}
    receipts[1] = {"c": receipt(read_part(told, 1, "c", one[1]))}
    assert agree(receipts, 8).present == ("c",)


def test_a_second_a_late_and_a_repeated_upload() -> None:
    with open_local(task(mean())) as federation:
        card = federation.card(1)
        first, second = (share_update(card, arrays(at), id="c") for at in range(2))
        other = share_update(card, arrays(2), id="d")
        for rank in (0, 1):
            federation.receive(1, rank, "c", first[rank])
            federation.receive(1, rank, "c", first[rank])
            with pytest.raises(InputError, match="second upload"):
                federation.receive(1, rank, "c", second[rank])
            federation.receive(1, rank, "d", other[rank])
        out = federation.finish(1)
        close(out.aggregate, clear_mean({"c": arrays(0), "d": arrays(2)}))
        assert not out.refused
        with pytest.raises(InputError, match="is over"):
            federation.receive(1, 0, "c", first[0])
        with pytest.raises(InputError, match="round 1 is over"):
            federation.card(1)
        with pytest.raises(InputError, match="not open"):
            federation.finish(1)
        federation.card(2)
        with pytest.raises(InputError, match="of round 1, not 2"):
            federation.receive(2, 0, "c", first[0])


def test_below_the_minimum_nothing_is_revealed() -> None:
    out = play(task(mean(), minimum=3), {"a": arrays(0), "b": arrays(1)})
    assert out.aggregate is None and out.revealed.startswith("nothing") and out.present == ("a", "b")


def test_no_more_clients_than_slots() -> None:
    with pytest.raises(InputError, match="slots"):
        play(task(mean(), slots=2), {name: arrays(0) for name in "abc"})


def test_weights_of_zero_alone_make_no_mean() -> None:
    with pytest.raises(ValueError, match="zero"):
        play(task(weighted_mean(), max_weight=5), {"a": arrays(0), "b": arrays(1)}, {"a": 0, "b": 0})


def test_what_is_no_update_is_named() -> None:
    made = task(weighted_mean(), max_weight=5)
    card, good = made.card(1, ["A" * 43] * 2), arrays(0)
    for bias in (torch.zeros(5, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.float16, requires_grad=True)):
        with pytest.raises(edge.InputError, match=r"'bias' is no array(.|\n)*x.detach"):
            share_update(card, {**good, "bias": bias})
    for wrong in (None, [1.0], 3):
        with pytest.raises(edge.InputError, match="named arrays"):
            share_update(card, wrong)  # type: ignore[arg-type]
    for unnamed in ([np.zeros(2)], {1: np.zeros(2), "1": np.zeros(3)}, {None: np.zeros(2)}):
        with pytest.raises(edge.InputError, match="named arrays"):
            Layout.of(unnamed)  # type: ignore[arg-type]
    with pytest.raises(edge.InputError, match="kept apart or rounded"):
        Layout.of(good, integers="both")  # type: ignore[arg-type]
    assert share_update(card, good, weight=np.int64(5)).parts  # as NumPy counts rows
    with pytest.raises(edge.InputError, match="0 to 5"):
        share_update(card, good, weight=True)


def test_uploads_outlive_a_process(tmp_path) -> None:
    """What an aggregator wrote is there when it starts again, and gone after the round."""
    made = task(mean())
    card = made.card(1, [sealing.public_of(sealing.one_time_key())] * 2)
    inbox = Inbox(card, 1, Spool(tmp_path / "round"))
    inbox.receive("c", share_update(card, arrays(1), id="c")[1])
    again = Inbox(card, 1, Spool(tmp_path / "round"))
    assert again.receipts == inbox.receipts
    again.spool.clear()
    assert not list(tmp_path.iterdir())


def test_folders_of_its_own_are_there_for_open_rounds_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = lambda: len(list(tmp_path.iterdir()))
    federation = open_local(task(mean()))
    assert left() == 0
    for number in (1, 2):
        federation.card(number)
    assert left() == 1
    federation.finish(1)
    assert left() == 1
    federation.finish(2)
    assert left() == 0
    card = federation.card(3)
    federation.receive(3, 0, "c", share_update(card, arrays(1), id="c")[0])
    assert left() == 1
    del federation  # nobody closed it, as in an app of Flower
    gc.collect()
    assert left() == 0


ENDS = {
    "returns": "pass",
    "fails": "1 / 0",
    "is interrupted": "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
}


@pytest.mark.parametrize("end", ENDS)
def test_a_process_leaves_no_folder_behind(end: str, tmp_path) -> None:
    code = f"""
import numpy as np
from securemodel.edge.rounds import Layout
from securemodel.federated import Task, mean, open_local

federation = open_local(Task("t", mean(), Layout.of({{"x": np.zeros(3)}}), slots=3))
federation.card(1)
import tempfile; from pathlib import Path
print(len(list(Path(tempfile.gettempdir()).iterdir())), flush=True)
{ENDS[end]}
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == "1\n" and (done.returncode == 0) == (end == "returns"), done.stderr
    assert not list(tmp_path.iterdir())


def test_tasks_that_cannot_be() -> None:
    for wrong in ({"max_weight": 2}, {"slots": 2**21}, {"aggregators": ("a",)}, {"aggregators": ("a", "a")},
                  {"bits": 32, "frac_bits": 30}, {"minimum": 9}, {"aggregators": "ab"}, {"limit": np.nan}, {"limit": 0.0},
                  {"deadline_s": np.nan}, {"deadline_s": -1.0}, {"slots": 8.0}, {"max_weight": 0},
                  {"budget": Budget(epsilon=1.0)}, {"aggregation": mean}, {"layout": arrays(0)}, {"name": 5}, {"name": "x" * 257},
                  {"aggregators": None}, {"bits": "32"}, {"frac_bits": "1"}, {"levels": "a"}, {"budget": None},
                  {"protection": 1.0}, {"limit": 1e-7}, {"limit": 1e300}, {"bits": 0}, {"bits": 33}, {"levels": 2**62}):  # fmt: skip
        with pytest.raises(CompileError):
            Task(**{"name": "t", "aggregation": mean(), "layout": Layout.of(arrays(0)), "slots": 8, **wrong})


def test_places_and_ranks_that_are_none_are_refused() -> None:
    with open_local(task(mean())) as federation:
        with pytest.raises(ValueError, match="positions"):
            federation.card(1, positions=[0.5, 2])
        card = federation.card(1, positions=np.array([0, 2]))
        part = share_update(card, arrays(0), id="a")[0]
        for rank in (-1, 2, "0", None):
            with pytest.raises(InputError, match="no aggregator of rank"):
                federation.receive(1, rank, "a", part)
        with pytest.raises(InputError, match="takes no uploads"):
            federation.receive("1", 0, "a", part)
        for number in ("2", None, 2.0):
            with pytest.raises(InputError, match="no number of a round"):
                federation.card(number)
        for client in (None, 5, b"a"):
            with pytest.raises(InputError, match="a client's name"):
                federation.receive(1, 0, client, part)
        for data in (None, "abc", 3):
            with pytest.raises(InputError, match="no part of an update"):
                federation.receive(1, 0, "a", data)
        with pytest.raises(edge.WireError, match="no part of a result"):
            add_results(card, {0: None, 1: None})
        federation.receive(1, 0, "a", part)


def test_rounding_up_does_not_make_a_sum_wrap_around() -> None:
    """Half a unit of each of 325 clients is more than there is room for beside their sum."""
    layout = Layout.of({"x": np.zeros(1)})
    made = Task("t", mean(), layout, slots=325, limit=0.393, bits=16, frac_bits=7)
    out = play(made, {f"c{at}": {"x": np.full(1, made.limit)} for at in range(325)})
    assert np.abs(out.aggregate["x"] - made.limit).max() <= 2**-8
    with pytest.raises(CompileError, match="do not fit"):
        Task("t", mean(), layout, slots=325, limit=0.393, bits=16, frac_bits=8)


@pytest.mark.parametrize("fleeting", [False, True])
def test_an_upload_is_on_the_disk_before_it_counts(tmp_path, monkeypatch, fleeting: bool) -> None:
    """With its name, where the folder is one that a restart goes on with."""
    written, real = [], files.os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda handle: written.append(handle) or real(handle))
    spool = Spool(tmp_path / "round", fleeting=fleeting)
    spool.put("a", b"part")
    assert len(written) == (0 if fleeting else 3) and bytes(spool.get("a")) == b"part"
