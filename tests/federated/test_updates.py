"""A client's update in shares: encoded as said, bound to its place, refused by name where it is not as the card says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounds import arrays

from securemodel.edge import sealing, updates
from securemodel.edge.errors import Disagreement, InputError, WireError
from securemodel.edge.rounds import Aggregator, Field, Layout, RoundCard
from securemodel.edge.updates import (
    NONCE_BYTES,
    add_results,
    combine,
    commitment,
    encode,
    read_part,
    result_part,
    seal_part,
    share_update,
    unseal_part,
)

KEYS = [sealing.one_time_key() for _ in range(3)]


def card(**options) -> RoundCard:
    told = {
        "task": "demo", "program": "00" * 32, "round": 4, "model": "11" * 32, "layout": Layout.of(arrays(0)), "bits": 32,
        "frac_bits": 20, "limit": 2.0, "slots": 100, "max_weight": 1, "deadline": 1e9, "minimum": 2,
        "aggregators": tuple(Aggregator(f"a{rank}", sealing.public_of(key)) for rank, key in enumerate(KEYS)),
    }  # fmt: skip
    return RoundCard(**told | options)


def one(value: float, dtype: str = "float64") -> dict[str, np.ndarray]:
    return {"x": np.array([value], dtype)}


@given(
    bits=st.sampled_from([32, 64]),
    values=st.lists(st.sampled_from([0, 1, -1, 2.0, -2.0, 2.0**-20, -(2.0**-21), 1.9999999]), min_size=1, max_size=40),
    weight=st.integers(0, 5),
)
def test_shares_add_up_to_what_was_encoded(bits: int, values: list[float], weight: int) -> None:
    told = card(bits=bits, frac_bits=20, slots=20, max_weight=5, layout=Layout.of({"x": np.array(values, float)}))
    parts = [read_part(told, rank, "c", part) for rank, part in share_update(
        told, {"x": np.array(values, float)}, weight=weight, id="c").items()]  # fmt: skip
    total = combine([part.share(told) for part in parts])
    assert total.tolist() == np.rint(np.array(values) * weight * 2**20).astype(int).tolist()
    assert sum(part.weight() for part in parts) % 2**64 == weight


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_a_share_can_be_read_from_any_place(bits: int) -> None:
    update = {"x": np.random.default_rng(1).uniform(-1, 1, 100)}
    told = card(bits=bits, frac_bits=0 if bits == 16 else 12, limit=1.0, layout=Layout.of(update))
    for rank, data in share_update(told, update, id="c").items():
        part = read_part(told, rank, "c", data)
        for start, stop in [(0, 100), (16, 100), (48, 49), (96, 97)]:
            assert np.array_equal(part.share(told, start, stop), part.share(told)[start:stop])


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("aes", [True, False])
def test_arrays_of_any_shape_are_shared_piece_by_piece(bits: int, aes: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "PIECE_BYTES", 128)
    monkeypatch.setattr(updates, "HAS_AES", aes)
    drawn = np.random.default_rng(2).uniform(-1, 1, (30, 7))
    update = {
        "turned": drawn.T,
        "one": np.array(-1.0),
        "none": np.zeros((0, 3)),
        "some": drawn[::3, ::-2].astype(np.float32),
    }
    flat = np.concatenate([np.float64(x).reshape(-1) for x in update.values()])
    told = card(bits=bits, frac_bits=0 if bits == 16 else 12, limit=1.0, layout=Layout.of(update))
    assert encode(told, update).view(f"i{bits // 8}").tolist() == np.rint(flat / told.unit).tolist()
    assert told.layout.flatten(update, 1.0).tolist() == flat.tolist()
    parts = [read_part(told, rank, "c", part) for rank, part in share_update(told, update, id="c").items()]
    assert np.array_equal(combine([part.share(told) for part in parts]), np.rint(flat / told.unit))
    for part in parts:
        for start, stop in [(0, len(flat)), (64, 200), (192, 193)]:
            places, shares = zip(*part.pieces(told, start, stop), strict=True)
            assert np.array_equal(np.concatenate(shares), part.share(told, start, stop))
            assert [at for place in places for at in range(place.start, place.stop)] == list(range(start, stop))


def test_a_bound_is_of_the_norm_of_all_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "PIECE_BYTES", 128)
    update = {"x": np.full(100, 0.5), "y": np.full((5, 5), 0.5)}  # of norm sqrt(125) / 2
    told = card(bits=64, limit=1.0, layout=Layout.of(update), bound=5.59017)
    encode(told, update)
    update["y"][4, 4] = 0.501
    with pytest.raises(InputError, match="norm is beyond"):
        encode(told, update)
    update["y"][4, 4] = np.nan
    with pytest.raises(InputError, match="cannot be encoded") as caught:
        encode(told, update)
    assert "y[4, 4], the first of 1" in str(caught.value)


def test_parts_are_small_and_fresh() -> None:
    told = card()
    first, second = share_update(told, arrays(1), id="c"), share_update(told, arrays(1), id="c")
    assert len(first[0]) < 27 * 4 + 1000 and len(first[1]) < 1000
    bodies = [read_part(told, rank, "c", each[rank]).body for each in (first, second) for rank in range(3)]
    assert len({bytes(body) for body in bodies}) == 6


def test_the_commitment_hides_the_update_from_who_has_the_seeds() -> None:
    """Without a nonce in each part, an aggregator with the seeds could try updates against the commitment."""
    told = card()
    parts = [read_part(told, rank, "c", part) for rank, part in share_update(told, arrays(1), id="c").items()]
    values = combine([encode(told, arrays(1)), *(-part.share(told) for part in parts[1:])])
    assert values.tobytes() == bytes(parts[0].data[:-8])
    guessed = replace(parts[0], body=bytes(NONCE_BYTES) + bytes(parts[0].data))
    assert commitment([part.digest for part in parts]) == parts[0].commit
    assert commitment([part.digest for part in [guessed, *parts[1:]]]) != parts[0].commit


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"weight": np.zeros((3, 6), np.float32)}, "[3, 6]"),
        ({"weight": np.zeros((3, 7))}, "float64"),
        ({"temperature": np.array(np.nan)}, "not a number"),
        ({"temperature": np.array(-np.inf)}, "infinite"),
        ({"bias": np.array([0, 0, 2.25, 0, 0], np.float16)}, "bias[2]"),
        ({"bias": ["a"] * 5}, "no numbers"),
        ({"more": np.array(1.0)}, "more"),
    ],
)
def test_an_update_that_is_not_as_the_card_says(change, named: str) -> None:
    with pytest.raises(InputError) as caught:
        share_update(card(), arrays(1) | change)
    assert named in str(caught.value)


def test_a_missing_array_and_wrong_weights() -> None:
    update = arrays(1)
    del update["bias"]
    with pytest.raises(InputError, match="bias"):
        share_update(card(), update)
    for weight in (-1, 2, 1.0, True):
        with pytest.raises(InputError, match="weight"):
            share_update(card(), arrays(1), weight=weight)
    with pytest.raises(InputError, match="name"):
        share_update(card(), arrays(1), id="a\nb")


def test_a_card_of_any_sizes_takes_no_memory() -> None:
    huge = Layout((Field("x", (2**39,), "float64", "real"), Field("y", (2**39, 2**39), "float64", "real")))
    with pytest.raises(InputError, match="the round's card says"):
        share_update(RoundCard.read(card(layout=huge).text()), {"x": np.zeros(1), "y": np.zeros(1)})


def test_the_magnitude_that_is_refused_is_not_said() -> None:
    with pytest.raises(InputError) as caught:
        share_update(card(layout=Layout.of(one(0))), one(123.25))
    assert "123" not in str(caught.value)


def test_a_card_reads_back() -> None:
    for told in (card(), card(positions=(0, 5, 26)), card(bits=16, frac_bits=0, levels=127), card(reveal="clients")):
        assert RoundCard.read(told.text()) == told and RoundCard.read(told.text()).digest == told.digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 8}, {"bits": "32"}, {"frac_bits": 63}, {"frac_bits": 24}, {"limit": 0}, {"limit": float("inf")}, {"limit": True},
        {"slots": 0}, {"max_weight": 2000}, {"minimum": 0}, {"minimum": 101}, {"deadline": None}, {"reveal": "all"},
        {"levels": 0}, {"positions": ()}, {"positions": (3, 3)}, {"positions": (-1, 3)}, {"positions": (3, 27)},
        {"aggregators": (Aggregator("a", "A" * 43),)}, {"aggregators": (Aggregator("a", "A"),) * 2},
    ],
)  # fmt: skip
def test_cards_that_are_none(wrong) -> None:
    with pytest.raises(WireError) as caught:
        card(**wrong)
    assert caught.value.code == "bad_card"


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{}", b'{"securemodel_round":2}', card().text().replace(b'"model"', b'"modes"'),
             card().text().replace(b'"real"', b'"sent"'), card().text().replace(b'"float32"', b'"object"'),
             card().text().replace(b"[3,7]", b"[3,-7]")],
)  # fmt: skip
def test_texts_that_are_no_card(text: bytes) -> None:
    with pytest.raises(WireError):
        RoundCard.read(text)


def test_parts_are_bound_to_their_place() -> None:
    told = card()
    parts = share_update(told, arrays(1), id="c")
    wrong = {
        "relabeled": [(told, 1, "c", parts[0]), (told, 0, "d", parts[0])],
        "other_round": [(card(round=5), 0, "c", parts[0])],
        "other_card": [(card(model="22" * 32), 0, "c", parts[0]), (card(program="22" * 32), 0, "c", parts[0])],
        "length": [(told, 0, "c", parts[0] + b"0"), (told, 1, "c", parts[1][:-1])],
        "bad_part": [(told, 0, "c", b""), (told, 0, "c", b"SMU1\xff\xff\xff\xff"), (told, 0, "c", parts[0][1:])],
    }
    for code, cases in wrong.items():
        for case in cases:
            with pytest.raises(WireError) as caught:
                read_part(*case)
            assert caught.value.code == code


def test_the_first_aggregator_gets_no_seed() -> None:
    told = card()
    part = read_part(told, 1, "c", share_update(told, arrays(1), id="c")[1])
    with pytest.raises(WireError, match="seed"):
        read_part(told, 0, "c", replace(part, rank=0, body=bytes(part.body)).bytes())


def test_a_server_that_passes_parts_on_can_neither_read_nor_move_them() -> None:
    told = card()
    uploads = share_update(told, arrays(1), id="c")
    sealed = uploads.sealed()
    assert unseal_part(KEYS[1], told, 1, "c", sealed[1]) == uploads[1]
    assert uploads[0][-100:] not in sealed[0]
    relabeled = sealed[1].replace(b'"client":"c"', b'"client":"d"')
    for case, code in [
        ((KEYS[0], told, 1, "c", sealed[1]), "bad_header"),
        ((KEYS[1], told, 1, "d", sealed[1]), "relabeled"),
        ((KEYS[1], told, 1, "d", relabeled), "bad_header"),
        ((KEYS[1], told, 0, "c", sealed[1]), "relabeled"),
        ((KEYS[1], card(round=5), 1, "c", sealed[1]), "other_round"),
        ((KEYS[1], told, 1, "c", sealed[1][:-1] + b"\0\0"), "bad_header"),
    ]:
        with pytest.raises(WireError) as caught:
            unseal_part(*case)
        assert caught.value.code == code


def test_clients_add_up_results_of_one_round() -> None:
    told = card(reveal="clients", layout=Layout.of({"x": np.zeros(2)}))
    key = sealing.one_time_key()
    total = np.array([3, -5], np.int64).astype(np.uint32)
    shares = [total - np.uint32(7) - np.uint32(2**31), np.full(2, 7, np.uint32), np.full(2, 2**31, np.uint32)]
    blobs = {
        rank: result_part(told, rank, share, [4, -1, -1][rank], 0.5, sealing.public_of(key))
        for rank, share in enumerate(shares)
    }
    assert add_results(told, blobs, key)["x"].tolist() == [0.75, -1.25]
    with pytest.raises(Disagreement):
        add_results(told, {0: blobs[0], 1: blobs[1]}, key)
    with pytest.raises(WireError):
        add_results(told, {**blobs, 0: blobs[1]}, key)
    with pytest.raises(WireError):
        add_results(card(reveal="clients", round=5, layout=told.layout), blobs, key)
    with pytest.raises(WireError):
        add_results(told, blobs, sealing.one_time_key())


def test_where_there_is_no_aes_all_get_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "HAS_AES", False)
    told = card()
    parts = [read_part(told, rank, "c", part) for rank, part in share_update(told, arrays(1), id="c").items()]
    assert [part.form for part in parts] == ["values"] * 3
    assert np.array_equal(combine([part.share(told) for part in parts]), encode(told, arrays(1)).view(np.int32))
    assert sum(part.weight() for part in parts) % 2**64 == 1


def test_sealing_needs_a_recent_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "HAS_HPKE", False)
    with pytest.raises(InputError, match="cryptography"):
        seal_part(card(), 0, "c", b"x")
