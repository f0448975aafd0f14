"""Aggregations that look at updates: equal to those in the clear, whoever is absent, and whatever liars share."""

from __future__ import annotations

import math
from functools import cache
from itertools import count

import numpy as np
import pytest
import torch
from rounds import arrays, clear_mean, play, task

from protocols.errors import Mismatch
from securemodel.edge.updates import Layout, RoundCard, Uploads, share_elements, share_update
from securemodel.errors import CompileError
from securemodel.federated import (
    Outcome,
    Protection,
    Task,
    custom,
    krum,
    median,
    norm_bounded_mean,
    norm_histogram,
    open_local,
    stages,
    trimmed_mean,
    weighted_mean,
)
from securemodel.federated.projections import FACTOR_BITS, slack
from securemodel.federated.uploads import Presence

SIZE, CLIENTS = 40, 6
OWN = torch.tensor([0.5])
COUNTER = count(1)
NAMES = "abcdef"


def vectors(seed: int = 1) -> dict[str, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return {name: {"x": rng.uniform(-1, 1, SIZE)} for name in NAMES}


AGGREGATIONS = {
    "bounded": norm_bounded_mean(3.0),
    "bounded, weighted": norm_bounded_mean(3.0, weighted=True),
    "scaled": norm_bounded_mean(3.0, over="scale"),
    "trimmed": trimmed_mean(0.2),
    "median": median(),
    "krum": krum(1, bound=6.0, keep=3),
    "mixed, trimmed": trimmed_mean(0.2, dishonest=1, bound=6.0),
    "mixed, median": median(dishonest=1, bound=6.0),
    "norms": norm_histogram([2.0, 3.5, 3.7]),
    "custom": custom(lambda updates, weights: (updates * weights.unsqueeze(1)).sum(0) / weights.sum(), weighted=True),
    "weighted": weighted_mean(),
}


@cache
def made(name: str) -> Task:
    aggregation = AGGREGATIONS[name]
    most = 1000 if aggregation.weighted else 1
    minimum = 3 if aggregation.mixes else 2
    return Task("t", aggregation, Layout.of({"x": np.zeros(SIZE)}), slots=8, max_weight=most, minimum=minimum)


def matrix_of(updates) -> np.ndarray:
    return np.stack([update["x"] for update in updates.values()])


def in_the_clear(name: str, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    norms, count = np.linalg.norm(x, axis=1), len(x)
    if name.startswith("mixed, "):
        distances = ((x[:, None] - x[None]) ** 2).sum(-1)
        near = np.argsort(distances, axis=1, kind="stable")[:, : count - 1]
        return in_the_clear(name.removeprefix("mixed, "), x[near].mean(1), weights)
    if name == "trimmed":
        cut = int(0.2 * count)
        return np.sort(x, axis=0)[cut : count - cut].mean(0)
    if name == "median":
        return np.median(x, axis=0)
    if name == "scaled":
        return (x * np.minimum(1, 3.0 / norms)[:, None]).mean(0)
    if name == "krum":
        distances = np.sort(((x[:, None] - x[None]) ** 2).sum(-1), axis=1)
        return x[np.argsort(distances[:, : count - 3 + 1].sum(1))[:3]].mean(0)
    return np.average(x, axis=0, weights=weights)


@pytest.mark.parametrize("present", [NAMES, NAMES[:5], "abde"])
@pytest.mark.parametrize(
    "name", ["trimmed", "median", "mixed, trimmed", "mixed, median", "scaled", "krum", "custom", "weighted"]
)
def test_as_in_the_clear(name: str, present: str) -> None:
    updates = {client: update for client, update in vectors().items() if client in present}
    weights = {client: 1 + 99 * (client in "bd") for client in updates}
    weights = weights if made(name).max_weight > 1 else dict.fromkeys(updates, 1)
    out = play(made(name), updates, weights)
    expected = in_the_clear(name, matrix_of(updates), np.array(list(weights.values())))
    near = 2**-14 if name in ("custom", "scaled") else 2**-16
    assert out.aggregate is not None and np.abs(out.aggregate["x"] - expected).max() <= near


def test_equal_updates_are_mixed_as_often_as_all() -> None:
    """Distances that are equal would else take more than what is divided by."""
    same = {client: {"x": np.full(SIZE, 0.25)} for client in NAMES[:5]}
    assert np.array_equal(play(made("mixed, median"), same).aggregate["x"], same["a"]["x"])


def test_what_few_know_is_not_cut_off_with_a_lie() -> None:
    """Where all but the liar leave the liar out of their mixes, the result is the mean of the honest."""
    updates = {client: {"x": np.eye(1, SIZE)[0] * (client in "ab")} for client in NAMES}
    updates["f"] = {"x": np.full(SIZE, -0.9)}
    of = lambda name: play(made(name), updates).aggregate["x"]
    assert of("trimmed")[0] == 0.25
    assert np.abs(of("mixed, trimmed") - matrix_of(updates)[:5].mean(0)).max() <= 2**-16


@pytest.mark.parametrize("name", ["bounded", "bounded, weighted"])
def test_updates_within_the_bound_all_count(name: str) -> None:
    updates = {client: {"x": 2.999 * x["x"] / np.linalg.norm(x["x"])} for client, x in vectors().items()}
    weights = dict.fromkeys(updates, 1)
    if name.endswith("weighted"):
        weights |= {"a": 1000, "b": 0, "c": 7}
    out = play(made(name), updates, weights)
    assert out.present == tuple(NAMES)
    assert np.abs(out.aggregate["x"] - clear_mean(updates, weights)["x"]).max() <= 2**-16


@pytest.mark.parametrize("aggregation", [norm_bounded_mean(3.0, weighted=True), weighted_mean()])
def test_bounds_are_exact_for_weights_of_any_size(aggregation) -> None:
    """Of many rows: numbers in a program are limited, and the limit of a norm is a product with the weight."""
    bounded, most = aggregation.bound is not None, 10_000_000 if aggregation.bound else 2**40
    of = Task("t", aggregation, Layout.of({"x": np.zeros(SIZE)}), slots=8, max_weight=most)
    with open_local(of) as federation:
        card = federation.card(1)
        for client, update in vectors().items():
            times = 1.05 * slack(64) if client in "de" else 1
            x = update["x"] / np.linalg.norm(update["x"]) * 2.99 * times * most / card.unit
            uploads = lie(card, client, np.rint(x), most + (client == "f"))
            for rank, part in uploads.items():
                federation.receive(1, rank, client, part)
        assert federation.finish(1).present == tuple("abc" if bounded else "abcde")


def test_norms_in_bins() -> None:
    updates = vectors()
    norms = np.linalg.norm(matrix_of(updates), axis=1)
    out = play(made("norms"), updates)
    assert out.aggregate["counts"].tolist() == np.histogram(norms, [0, 2.0, 3.5, 3.7, np.inf])[0].tolist()
    assert out.aggregate["edges"].tolist() == [2.0, 3.5, 3.7] and sum(out.aggregate["counts"]) == CLIENTS


def test_a_client_hears_that_its_update_is_too_large_before_it_is_dropped() -> None:
    with pytest.raises(ValueError, match="norm"):
        play(made("bounded"), {"a": {"x": np.full(SIZE, 0.9)}})


@pytest.mark.parametrize(
    "aggregation", [krum(0, bound=9.0, keep=2), norm_bounded_mean(9.0, over="scale"), norm_histogram([9.0])]
)
def test_fewer_slots_than_programs(aggregation) -> None:
    slots = 3 if aggregation.keep else 1
    of = Task("t", aggregation, Layout.of({"x": np.zeros(SIZE)}), slots=slots, minimum=min(slots, 2))
    out = play(of, dict.fromkeys(NAMES[:slots], vectors()["a"]))
    expected = {"counts": [1, 0]} if aggregation.edges else {"x": vectors()["a"]["x"]}
    assert all(np.abs(out.aggregate[name] - x).max() <= 2**-14 for name, x in expected.items())


def test_of_equals_no_more_are_chosen_than_should_be() -> None:
    out = play(made("krum"), dict.fromkeys(NAMES, vectors()["a"]))
    assert out.present == ("a", "b", "c") and set(out.refused) == set("def")


# ---- liars
def lie(card: RoundCard, client: str, elements, weight: int = 1) -> Uploads:
    return share_elements(card, np.array(elements, np.int64).astype(card.dtype), weight, client)


def liars(card: RoundCard) -> dict[str, np.ndarray]:
    """What somebody might share who hopes that something wraps around."""
    half, size = 1 << (card.bits - 1), card.count
    one = np.eye(1, size, dtype=np.int64)[0]
    alternating = np.where(np.arange(size) % 2, 1, -1).astype(np.int64)
    return {
        "least": one * -half,
        "most": one * (half - 1),
        "quarter": one * (half // 2),
        "all quarters": alternating * (half // 2),
        "squares are zero": alternating << (card.bits - 4),
        "pairs that cancel": alternating * (half - 3),
    }


def attacked(task_of: Task, cheats: dict[str, np.ndarray], honest, weight: int = 1) -> Outcome:
    with open_local(task_of) as federation:
        card = federation.card(1)
        given = [share_update(card, update, id=client) for client, update in honest.items()]
        given += [lie(card, client, elements, weight) for client, elements in cheats.items()]
        for uploads in given:
            for rank, part in uploads.items():
                federation.receive(1, rank, uploads.client, part)
        return federation.finish(1)


FEWEST = {"krum": 5, "mixed, trimmed": 3}
"""Honest clients, with which those that are left can still be compared."""


@pytest.mark.parametrize("name", ["bounded", "scaled", "trimmed", "mixed, trimmed", "krum"])
def test_ring_elements_out_of_range_are_dropped_by_name(name: str) -> None:
    honest = {client: update for client, update in vectors().items() if client in "abcdef"[: FEWEST.get(name, 2)]}
    honest = {client: {"x": update["x"] * 0.5} for client, update in honest.items()}
    of, room = made(name), 8 - len(honest)
    card = of.card(1, ["A" * 43] * 2)
    cheats = dict(list(liars(card).items())[:room])
    out = attacked(of, cheats, honest)
    assert set(cheats) <= set(out.refused) and set(out.present) <= set(honest)
    if name != "krum":
        expected = in_the_clear(name.removeprefix("mixed, "), matrix_of(honest), np.ones(len(honest)))
        assert np.abs(out.aggregate["x"] - expected).max() <= 2**-14  # who is dropped counts among those who may lie


def test_a_liar_who_passes_moves_the_mean_by_no_more_than_is_stated() -> None:
    of, honest = made("bounded"), {client: {"x": vectors()[client]["x"] * 0.5} for client in "ab"}
    card = of.card(1, ["A" * 43] * 2)
    direction = np.ones(SIZE) / np.sqrt(SIZE)
    cheats = {f"times {times}": np.rint(direction * 3.0 * times / card.unit) for times in (0.99, 1.5, 2, 3, 5, 50)}
    out = attacked(of, cheats, honest)
    moved = out.aggregate["x"] * len(out.present) - matrix_of(honest).sum(0)
    passed = [client for client in out.present if client in cheats]
    assert "times 0.99" in passed and not {"times 5", "times 50"} & set(passed)
    assert np.linalg.norm(moved) <= len(passed) * slack(64) * 1.01 * 3.0


def test_liars_who_make_the_sum_wrap_around_move_it_by_little_more() -> None:
    layout, bound, liars_count = Layout.of({"x": np.zeros(SIZE)}), 5.4, 36
    of = Task("t", norm_bounded_mean(bound), layout, slots=40, limit=0.3)
    card, honest = of.card(1, ["A" * 43] * 2), {client: {"x": vectors()[client]["x"] * 0.3} for client in "ab"}
    cheat = np.eye(1, SIZE)[0] * 1.35 * bound  # passes unless 53 of 64 entries are not zero
    out = attacked(of, {f"liar {n}": np.rint(cheat / card.unit) for n in range(liars_count)}, honest)
    moved = out.aggregate["x"] * len(out.present) - matrix_of(honest).sum(0)
    assert card.bits == 32 and len(out.present) == liars_count + 2
    assert moved[0] < 0 < liars_count * cheat[0]
    assert np.linalg.norm(moved) <= 17 / 15 * liars_count * cheat[0]


def test_scaled_liars_move_the_mean_by_the_bound() -> None:
    of, honest = made("scaled"), {client: {"x": vectors()[client]["x"] * 0.5} for client in "ab"}
    card = of.card(1, ["A" * 43] * 2)
    out = attacked(of, {"double": np.rint(np.ones(SIZE) / np.sqrt(SIZE) * 6.0 / card.unit)}, honest)
    moved = out.aggregate["x"] * len(out.present) - matrix_of(honest).sum(0)
    assert "double" not in out.present or abs(np.linalg.norm(moved) - 3.0) < 0.01


def test_factors_of_norms_are_within_what_is_stated() -> None:
    """Of norms up to the slack: what is longer than the bound becomes as long but for 2^-13 of it; what is not, stays."""
    of = made("scaled")
    bound, number = of.bounds.norm, of.numbers["factors"]
    norms = np.concatenate([np.geomspace(0.01, slack(64), 37) * bound, [bound, bound - 1, bound + 1]])
    squares = torch.from_numpy(np.floor(norms**2).astype(np.int64))
    found = []
    with open_local(of) as federation:
        for part in squares.split(8):
            drawn = torch.randint(-(2**62), 2**62, part.shape)
            out = federation._session().run_shares(
                number, {"first": [part - drawn], "second": [drawn]}, number, bytes(32)
            )
            found.append(out.shares["first"][0] + out.shares["second"][0])
    factors, exact = torch.cat(found).numpy() * 2.0**-FACTOR_BITS, np.sqrt(squares.numpy())
    long = exact > bound
    assert (np.abs(factors[long] * exact[long] / bound - 1) <= 2**-13).all()
    assert (factors[~long] >= 1 - 2**-FACTOR_BITS).all() and (factors <= 1).all()


@pytest.mark.parametrize("weight", [-1, 1001, 2**62, 2**63, 2**64 - 1])
@pytest.mark.parametrize("name", ["weighted", "bounded, weighted", "custom"])
def test_weights_out_of_range_are_dropped_by_name(name: str, weight: int) -> None:
    honest = {client: vectors()[client] for client in "ab"}
    honest = {client: {"x": update["x"] * 0.5} for client, update in honest.items()}
    out = attacked(made(name), {"liar": np.zeros(SIZE)}, honest, weight)
    assert out.present == ("a", "b") and "liar" in out.refused
    assert np.abs(out.aggregate["x"] - clear_mean(honest)["x"]).max() <= 2**-14


def test_a_large_update_cannot_hide_behind_a_small_weight() -> None:
    of, honest = made("bounded, weighted"), {client: {"x": vectors()[client]["x"] * 0.5} for client in "ab"}
    card = of.card(1, ["A" * 43] * 2)
    cheat = np.rint(np.ones(SIZE) * 3.0 / np.sqrt(SIZE) / card.unit * 100)
    assert "liar" in attacked(of, {"liar": cheat}, honest, 1).refused
    assert "liar" in attacked(of, {"liar": cheat}, honest, 100).present


@pytest.mark.parametrize("name", ["trimmed", "median"])
def test_few_liars_within_the_range_do_not_get_outside_of_what_honest_clients_have(name: str) -> None:
    of, honest = made(name), {client: vectors()[client] for client in "abcde"}
    card = of.card(1, ["A" * 43] * 2)
    out = attacked(of, {"liar": np.full(SIZE, round(1.0 / card.unit))}, honest)
    x = matrix_of(honest)
    assert "liar" in out.present
    assert (out.aggregate["x"] <= x.max(0) + 2**-16).all() and (out.aggregate["x"] >= x.min(0) - 2**-16).all()


def test_an_aggregator_that_opens_another_toss_is_named() -> None:
    of = made("bounded")
    with open_local(of) as federation:
        federation.card(1)
        inboxes = federation._rounds[1]
        own = [stages.Round(of, inbox, Presence((), (), {})) for inbox in inboxes]
        steps = [stages.toss(each) for each in own]
        promised = [next(step).data for step in steps]
        opened = [step.send(promised).data for step in steps]
        with pytest.raises(Mismatch, match="another toss") as caught:
            steps[0].send([opened[0], bytes(32)])
        assert caught.value.party == "second"
        with pytest.raises(StopIteration) as ended:
            steps[1].send(opened)
        assert ended.value.value == bytes(a ^ b for a, b in zip(*opened, strict=True))


def test_a_round_that_is_repeated_is_of_the_same_clients() -> None:
    """An aggregator that lies of the choice, and aborts, would get sums over two sets: their difference is an update."""
    of = made("bounded")
    with open_local(of) as federation:
        federation.card(1)
        own = stages.Round(of, federation._rounds[1][0], Presence((), (), {}))

        def opened(*bits: int) -> list[str]:
            step = own.open_bits("accepted", "abc", torch.tensor(bits))
            next(step)
            with pytest.raises(StopIteration) as ended:
                step.send([np.array(bits).tobytes(), bytes(24)])
            return ended.value.value

        assert opened(1, 0, 1) == opened(1, 0, 1) == ["a", "c"]
        with pytest.raises(Mismatch, match="other clients count") as caught:
            opened(1, 1, 1)
        assert caught.value.party == "second"


@pytest.mark.parametrize("name", ["trimmed", "bounded"])
def test_the_program_that_admits_is_exact_at_its_edges(name: str) -> None:
    """On projections that nobody could choose: one number at the edge, and, where norms matter, squares at the edge."""
    of, shift = made(name), 64 - made(name).ring[0]
    reach, half = of.bounds.reach, 1 << (of.ring[0] - 1)
    rows = torch.zeros(8, 64, dtype=torch.int64)
    for slot, edge in enumerate([reach, -reach, reach + 1, -reach - 1, half - 1, -half]):
        rows[slot, slot + 7] = edge
    rows[6:] = torch.tensor([[reach * 2 // 11], [reach * 5 // 22]])  # 64 of them: 1.45 and 1.82 times the reach
    within = [1, 1, 0, 0, 0, 0, 1, 0 if name == "bounded" else 1]
    weights = torch.ones(8, dtype=torch.int64)
    limits = of.bounds.limits(weights)
    given = [rows << shift, limits[0], weights, 1 - weights, rows << shift, limits[1]][: 6 if name == "bounded" else 4]
    with open_local(of) as federation:
        drawn = [torch.randint(-(2**62), 2**62, x.shape) for x in given]
        shares = {"first": [x - r for x, r in zip(given, drawn, strict=True)], "second": drawn}
        out = federation._session().run_shares(1, shares, 1, bytes(32)).shares
    assert (out["first"][0] + out["second"][0]).tolist() == within


def test_three_aggregators() -> None:
    of = task(trimmed_mean(0.3), aggregators=("a", "b", "c"), slots=4, minimum=3)
    updates = {str(at): arrays(at) for at in range(4)}
    out = play(of, updates)
    x = np.sort(np.stack([update["weight"].astype(float) for update in updates.values()]), axis=0)
    assert np.abs(out.aggregate["weight"] - x[1:3].mean(0)).max() <= 2**-16


def test_too_few_are_left_after_the_check() -> None:
    of = made("bounded")
    card = of.card(1, ["A" * 43] * 2)
    out = attacked(of, {"liar": liars(card)["most"]}, {"a": {"x": np.zeros(SIZE)}})
    assert out.aggregate is None and out.present == ("a",) and "liar" in out.refused


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: norm_bounded_mean(0.0), "bound"),
        (lambda: norm_bounded_mean(1.0, over="keep"), "over"),
        (lambda: norm_bounded_mean(1.0, over="scale", weighted=True), "weighted"),
        (lambda: trimmed_mean(0.5), "trim"),
        (lambda: krum(-1, bound=1.0), "dishonest"),
        (lambda: trimmed_mean(dishonest=-1), "dishonest"),
        (lambda: trimmed_mean(dishonest=1), "bound"),
        (lambda: median(bound=1.0), "bound"),
        (lambda: median(dishonest=1, bound=math.nan), "bound"),
        (lambda: task(median(dishonest=1, bound=1.0)), "minimum"),
        (lambda: norm_histogram([2.0, 1.0]), "bins"),
        (lambda: norm_histogram([1.0, float("nan")]), "bins"),
        (lambda: norm_histogram([1.0, float("inf")]), "bins"),
        (lambda: norm_histogram(1.0), "bins"),
        (lambda: norm_bounded_mean("1"), "bound"),
        (lambda: norm_bounded_mean(1.0, rows=64.5), "rows"),
        (lambda: trimmed_mean("0.1"), "trim"),
        (lambda: krum(1.5, bound=1.0), "dishonest"),
        (lambda: krum(1, bound=1.0, keep=2.5), "keep"),
        (lambda: task(krum(6, bound=1.0)), "8 slots are too few"),
        (lambda: custom(None), "no function"),
        (lambda: task(krum(1, bound=1.0, keep=1)), "minimum"),
        (lambda: task(median(), bits=32), "64 bits"),
        (lambda: task(median(), levels=127), "levels"),
        (lambda: task(norm_bounded_mean(1e18)), "fit"),
        (lambda: task(norm_bounded_mean(100.0), frac_bits=60), "fit"),
        (lambda: task(norm_bounded_mean(1e6), bits=32), "fit"),
        (lambda: task(median(), protection=Protection(1.0, 1.0)), "noise"),
        (lambda: task(norm_histogram([1.0]), reveal="clients"), "clients"),
        (lambda: task(custom(lambda x, w: x.sum(0) + OWN)).programs, "tensors"),
        (lambda: task(custom(lambda x, w: x.sum(1))).programs, r"gives \[8\]"),
        (lambda: task(custom(lambda x, w: (x.sum(0), w))).programs, "gives a tuple"),
        (lambda: task(custom(lambda x, w: x.sum(0) * next(COUNTER))).programs, "different results each time"),
        (lambda: task(custom(lambda x, w: x.reshape(8, 4, -1).sum((0, 1)))).programs, "cannot take 7 columns"),
        (lambda: task(custom(lambda x, w: x.sum(0).flip(0))).programs, "mixes columns"),
        (lambda: task(custom(lambda x, w: (x / x.square().sum(1, keepdim=True)).sum(0))).programs, "mixes columns"),
    ],
)
def test_aggregations_that_cannot_be(make, word: str) -> None:
    with pytest.raises(CompileError, match=word):
        make()
