"""Flower apps with the client's and the server's line, over a grid in this process. Run by test_flower.py, beside flwr."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flower_grid import DirectGrid
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedMedian, FedProx, Krum, QFedAvg

from protocols.channel.testing import loopback_parties, run_together
from protocols.errors import ConfigError
from protocols.identity import Timeouts
from securemodel.edge.errors import ServiceError
from securemodel.edge.flower import RECORD, SecureMod, layout_of, packed, unpacked
from securemodel.edge.rounds import Layout
from securemodel.federated import Task, mean, weighted_mean
from securemodel.federated.aggregator import Aggregator
from securemodel.federated.flower import SecureStrategy, insecure_local, record_to_state, relay, state_to_record
from securemodel.federated.rounds import Listening, front, meetings, place_of, public_key
from securemodel.service.logs import Log

Model = Mapping[str, np.ndarray]


def record(arrays: Mapping[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(x)) for name, x in arrays.items()})


def numpy(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: x.numpy() for name, x in arrays.items()}


def app(
    train: Callable[[int, Model], Model], weight: Callable[[int], Any] = lambda node: 1, mods: list | None = None
) -> ClientApp:
    """Clients that make of a model what `train` says for their node, and report a loss of 0.5 + node."""
    made = ClientApp(mods=[SecureMod(insecure_trust_server=True)] if mods is None else mods)

    @made.train()
    def _(message: Message, context: Context) -> Message:
        arrays = record(train(context.node_id, numpy(message.content["arrays"])))
        metrics = MetricRecord({"num-examples": weight(context.node_id), "loss": 0.5 + context.node_id})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @made.evaluate()
    def _(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 10 * context.node_id, "accuracy": 0.2 * context.node_id})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return made


def secure(
    strategy: FedAvg | None = None, *, limit: float = 4.0, max_weight: int = 100_000, **more: Any
) -> SecureStrategy:
    opens = insecure_local(weighted_mean(), slots=8, limit=limit, max_weight=max_weight)
    return SecureStrategy(strategy or FedAvg(), opens, **more)


def round_of(strategy: SecureStrategy, grid: DirectGrid, model: Mapping[str, Any], number: int = 1) -> dict | None:
    """The model after one round, or None where the round gave nothing."""
    messages = strategy.configure_train(number, record(model), ConfigRecord(), grid)
    arrays, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
    return arrays and numpy(arrays)


ZERO = {"w": np.zeros(3, np.float32), "scale": np.float32(0)}


def ones(node: int, model: Model) -> Model:
    return {name: np.ones_like(x) for name, x in model.items()}


def own(node: int, model: Model) -> Model:
    """Each client its own: node / 4 more in every place."""
    return {name: x + np.asarray(node / 4, x.dtype) for name, x in model.items()}


# ---- values
def test_three_clients_with_sixty_thousand_rows_each_average_to_what_all_have() -> None:
    found = round_of(secure(), DirectGrid(app(ones, lambda node: 60_000), 3), ZERO)
    assert found is not None
    assert found["w"].tolist() == [1.0, 1.0, 1.0]
    assert found["scale"].shape == () and found["scale"].dtype == np.float32 and found["scale"] == 1.0


@pytest.mark.parametrize(
    "make",
    [FedAvg, lambda: FedAvgM(server_momentum=0.9), lambda: FedAdam(eta=0.1), lambda: FedProx(proximal_mu=0.1)],
    ids=["FedAvg", "FedAvgM", "FedAdam", "FedProx"],
)
def test_strategies_come_to_what_they_come_to_in_the_clear(make: Callable[[], FedAvg]) -> None:
    start = {"w": np.array([0.5, -1, 2], np.float32), "scale": np.float32(1.5)}
    weight = lambda node: (100, 1, 1000)[node - 1]
    clear, hidden = make(), secure(make(), metrics={"loss": 10.0})
    plain, sealed = DirectGrid(app(own, weight, mods=[]), 3), DirectGrid(app(own, weight), 3)
    one, other = clear.start(plain, record(start), num_rounds=3), hidden.start(sealed, record(start), num_rounds=3)
    for name, x in numpy(one.arrays).items():
        found = other.arrays[name].numpy()
        assert found.dtype == np.float32 and found.shape == x.shape  # Flower's FedAdam makes float64 of it
        np.testing.assert_allclose(found, x, atol=2**-16)
    for number, told in one.train_metrics_clientapp.items():
        assert other.train_metrics_clientapp[number]["loss"] == pytest.approx(told["loss"], abs=1e-3)


def test_whole_numbers_stay_whole_and_are_kept_or_rounded() -> None:
    counts = lambda node, model: {**ones(node, model), "batches": np.array((5, 8)[node - 1])}
    start = {**ZERO, "batches": np.array(0)}
    for rule, right in (("keep", 0), ("round", 6)):  # 6.5, to even
        found = round_of(secure(integers=rule, limit=10.0), DirectGrid(app(counts), 2), start)
        assert found is not None and found["batches"].dtype == np.int64 and found["batches"] == right


def test_bfloat16_goes_in_and_comes_out() -> None:
    state = {"w": torch.tensor([1.5, -2.25], dtype=torch.bfloat16), "n": torch.tensor(7)}
    sent = state_to_record(state)
    assert sent["w"].dtype == "float32"
    found = round_of(secure(), DirectGrid(app(own), 2), numpy(sent))
    assert found is not None
    back = record_to_state(record(found), state)
    assert back["w"].dtype == torch.bfloat16 and back["w"].tolist() == [1.875, -1.875]
    assert back["n"].dtype == torch.int64 and back["n"] == 7


def test_evaluation_is_of_bounded_metrics_weighted_by_secret_numbers() -> None:
    opens = insecure_local(weighted_mean(), slots=8, max_weight=1000)
    strategy = secure(evaluate=opens, evaluate_metrics={"accuracy": 1.0})
    grid = DirectGrid(app(ones), 3)
    messages = strategy.configure_evaluate(1, record(ZERO), ConfigRecord(), grid)
    found = strategy.aggregate_evaluate(1, grid.send_and_receive(messages))
    assert found is not None and found["accuracy"] == pytest.approx(0.2 * (1 + 4 + 9) / 6, abs=2**-16)
    assert [list(reply.content) for reply in grid.replies] == [[RECORD]] * 3


def test_without_aggregators_for_it_there_is_no_evaluation_unless_both_sides_say_it_is_no_secret() -> None:
    grid = DirectGrid(app(ones), 2)
    assert list(secure().configure_evaluate(1, record(ZERO), ConfigRecord(), grid)) == []
    clear = secure(evaluate="clear")
    refused = grid.send_and_receive(clear.configure_evaluate(1, record(ZERO), ConfigRecord(), grid))
    assert all("in the clear" in reply.error.reason for reply in refused)
    grid = DirectGrid(app(ones, mods=[SecureMod(insecure_trust_server=True, clear=["evaluate"])]), 2)
    replies = grid.send_and_receive(clear.configure_evaluate(1, record(ZERO), ConfigRecord(), grid))
    assert clear.aggregate_evaluate(1, replies) == {"accuracy": pytest.approx(0.2 * 5 / 3)}


# ---- what the server sees
def test_the_server_gets_sealed_shares_and_neither_updates_nor_weights_nor_metrics() -> None:
    grid = DirectGrid(app(ones, lambda node: 60_000), 3)
    strategy = secure(metrics={"loss": 10.0})
    assert round_of(strategy, grid, ZERO) is not None
    for reply in grid.replies:
        assert list(reply.content) == [RECORD]
        parts = unpacked(reply.content)
        assert set(parts) == {0, 1} and all(data.startswith(b"SMS1") for data in parts.values())
        assert not any(np.float32(1).tobytes() * 3 in data for data in parts.values())


# ---- clients that fail
def test_lost_and_failing_clients_change_nothing_for_the_others() -> None:
    def train(node: int, model: Model) -> Model:
        if node == 2:
            raise RuntimeError("no data today")
        return {"w": np.array([1, np.nan, 1], np.float32), "scale": model["scale"]} if node == 3 else ones(node, model)

    strategy = secure()
    found = round_of(strategy, DirectGrid(app(train, lambda node: 10), 5, lost=[4]), ZERO)
    assert found is not None and found["w"].tolist() == [1.0, 1.0, 1.0]
    outcome = strategy.outcomes[1]
    assert outcome.present == ("1", "5") and set(outcome.refused) == {"2", "3"}
    assert "no data today" in outcome.refused["2"] and "'w'" in outcome.refused["3"]


@pytest.mark.parametrize(
    ("train", "weight", "named"),
    [
        (lambda node, model: own(40, model), lambda node: 1, "input 'w' cannot be encoded"),
        (lambda node, model: {"w": model["w"]}, lambda node: 1, "not those of the model"),
        (lambda node, model: {**model, "w": np.zeros(4, np.float32)}, lambda node: 1, "not those of the model"),
        (ones, lambda node: 100_001, "no weight"),
        (ones, lambda node: 0.5, "'num-examples' is no whole number"),
    ],
    ids=["too large", "an array missing", "another shape", "too many rows", "half a row"],
)
def test_replies_that_cannot_be_shared_are_named_and_the_round_goes_on(train, weight, named: str) -> None:
    mixed = lambda node, model: train(node, model) if node == 1 else ones(node, model)
    strategy = secure()
    found = round_of(strategy, DirectGrid(app(mixed, lambda node: weight(node) if node == 1 else 1), 3), ZERO)
    assert found is not None and found["w"].tolist() == [1.0, 1.0, 1.0]
    assert named in strategy.outcomes[1].refused["1"]


def test_clients_without_any_examples_give_nothing_but_a_reason() -> None:
    strategy = secure()
    assert round_of(strategy, DirectGrid(app(ones, lambda node: 0), 3), ZERO) is None
    assert "add up to zero" in strategy.outcomes[1].revealed


def test_below_the_minimum_nothing_is_revealed_and_the_model_stays() -> None:
    strategy = SecureStrategy(FedAvg(), insecure_local(mean(), slots=8, minimum=3))
    assert round_of(strategy, DirectGrid(app(ones), 3, lost=[1]), ZERO) is None
    assert strategy.outcomes[1].aggregate is None and "fewer than 3" in strategy.outcomes[1].revealed


def test_more_clients_than_slots_are_refused_before_any_is_asked() -> None:
    with pytest.raises(ConfigError, match="asks 9 clients, and the task has 8 slots"):
        secure().configure_train(1, record(ZERO), ConfigRecord(), DirectGrid(app(ones), 9))


# ---- a server that lies
def file_of(strategy: SecureStrategy) -> dict[str, Any]:
    """A federation.json of a strategy's aggregators."""
    card = strategy._train._card
    assert card is not None
    told = [{"name": each.name, "url": "http://127.0.0.1:1", "hpke": each.key} for each in card.aggregators]
    return {"securemodel_federation": 1, "aggregators": told}


def test_clients_share_with_the_aggregators_that_they_trust_and_no_others() -> None:
    honest, other = secure(), secure()
    for strategy in (honest, other):
        strategy.configure_train(1, record(ZERO), ConfigRecord(), DirectGrid(app(ones), 2))
    trusting = app(ones, mods=[SecureMod(file_of(honest))])
    assert round_of(honest, DirectGrid(trusting, 2), ZERO, 2) is not None
    assert round_of(other, DirectGrid(trusting, 2), ZERO, 2) is None
    assert all("other aggregators" in why for why in other.outcomes[2].refused.values())


def test_a_mod_must_be_told_whom_to_trust() -> None:
    with pytest.raises(ServiceError, match="whom it shares with"):
        SecureMod()


def test_a_server_that_asks_in_the_clear_gets_nothing() -> None:
    grid = DirectGrid(app(ones), 2)
    replies = grid.send_and_receive(FedAvg().configure_train(1, record(ZERO), ConfigRecord(), grid))
    assert all("in the clear" in reply.error.reason for reply in replies)


def test_a_server_that_gives_one_client_another_model_is_found_out() -> None:
    strategy, grid = secure(), DirectGrid(app(ones), 3)
    messages = strategy.configure_train(1, record(ZERO), ConfigRecord(), grid)
    content = RecordDict({**messages[0].content, "arrays": record({**ZERO, "w": np.full(3, 2, np.float32)})})
    trap = Message(content, messages[0].metadata.dst_node_id, "train")
    strategy.aggregate_train(1, grid.send_and_receive([trap, *messages[1:]]))
    assert ["another model" in why for why in strategy.outcomes[1].refused.values()] == [True]


@pytest.mark.parametrize("swap", ["clients", "ranks", "halves"])
def test_a_server_that_mixes_shares_up_is_named_and_nothing_wrong_comes_out(swap: str) -> None:
    strategy, grid = secure(), DirectGrid(app(own), 4)
    replies = grid.send_and_receive(strategy.configure_train(1, record(ZERO), ConfigRecord(), grid))
    first, second = (next(r for r in replies if r.metadata.src_node_id == node) for node in (1, 2))
    one, two = unpacked(first.content), unpacked(second.content)
    if swap == "clients":
        first.content, second.content = second.content, first.content
    elif swap == "ranks":
        first.content = RecordDict({RECORD: packed({0: one[1], 1: one[0]})})
    else:
        first.content = RecordDict({RECORD: packed({0: one[0], 1: two[1]})})
    arrays, _ = strategy.aggregate_train(1, replies)
    outcome = strategy.outcomes[1]
    wrong = {"1", "2"} if swap == "clients" else {"1"}
    right = [node / 4 for node in (1, 2, 3, 4) if str(node) not in wrong]
    assert arrays is not None and set(outcome.present) == {"1", "2", "3", "4"} - wrong
    np.testing.assert_allclose(arrays["w"].numpy(), np.mean(right), atol=2**-16)
    assert wrong <= set(outcome.refused) | set(outcome.absent)


def test_shares_of_an_earlier_round_are_refused_by_name() -> None:
    strategy, grid = secure(), DirectGrid(app(own), 3)
    assert round_of(strategy, grid, ZERO) is not None
    old = {reply.metadata.src_node_id: reply.content for reply in grid.replies}

    def replay(reply: Message) -> Message:
        if reply.metadata.src_node_id == 1:
            reply.content = old[1]
        return reply

    again = DirectGrid(app(own), 3, tamper=replay)
    found = round_of(strategy, again, ZERO, 2)
    assert found is not None and found["w"] == pytest.approx([0.625] * 3, abs=2**-16)
    assert "round 1" in strategy.outcomes[2].refused["1"]


def test_replies_without_shares_are_named() -> None:
    strategy = secure()
    empty = lambda reply: Message(RecordDict(), reply_to=reply) if reply.metadata.src_node_id == 1 else reply
    grid = DirectGrid(app(ones), 3, tamper=empty)
    messages = strategy.configure_train(1, record(ZERO), ConfigRecord(), grid)
    replies = grid.send_and_receive(messages)
    strategy.aggregate_train(1, replies)
    assert any("has no shares" in why for why in strategy.outcomes[1].refused.values())


# ---- strategies
@pytest.mark.parametrize(
    "make",
    [
        FedMedian,
        Krum,
        lambda: QFedAvg(client_learning_rate=0.1),
        lambda: strategies.DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 1.0, 2),
        lambda: type("Mine", (FedMedian,), {})(),
    ],
    ids=["FedMedian", "Krum", "QFedAvg", "DP", "a kind of FedMedian"],
)
def test_strategies_that_look_at_each_update_are_refused(make) -> None:
    with pytest.raises(ConfigError, match="cannot work on the aggregate alone"):
        secure(make())


def test_a_model_that_changes_its_arrays_between_rounds_is_refused() -> None:
    strategy, grid = secure(), DirectGrid(app(ones), 2)
    assert round_of(strategy, grid, ZERO) is not None
    with pytest.raises(ValueError, match="other arrays"):
        strategy.configure_train(2, record({"v": np.zeros(2, np.float32)}), ConfigRecord(), grid)


def test_errors_of_flower_are_told_as_they_are() -> None:
    strategy = secure()
    broken = lambda reply: Message(Error(3, "node unavailable"), reply_to=reply)
    assert round_of(strategy, DirectGrid(app(ones), 2, tamper=broken), ZERO) is None
    assert all("node unavailable" in why for why in strategy.outcomes[1].refused.values())


# ---- aggregators elsewhere
class Fronts:
    """Aggregators that answer over HTTP, and meet when all clients have shared."""

    def __init__(self, layout: Layout, folder: Path, clients: int) -> None:
        names = ("north", "south")
        config, identities = loopback_parties(names, folder / "parties", timeouts=Timeouts(30, 30))
        task = Task("t", mean(), layout, slots=clients, limit=4.0, aggregators=names)
        self._links = {name: meetings(name, config, identities[name]) for name in names}
        self.ends = {
            name: Aggregator(task, place_of(task, name, config, identities[name], folder / name), rounds=9)
            for name in names
        }
        self.stack, told = ExitStack(), []
        for name, end in self.ends.items():
            port = self.stack.enter_context(front(end, Listening("127.0.0.1", 0), Log(None)))
            told.append({"name": name, "url": f"http://127.0.0.1:{port}", "hpke": public_key(config, name)})
        self.file = {"securemodel_federation": 1, "aggregators": told}

    def meet(self) -> None:
        def met(name: str) -> None:
            with self._links[name]() as channel:
                self.ends[name].meet(channel)

        assert not any(run_together({name: lambda name=name: met(name) for name in self.ends}).values())


def test_a_server_relays_to_aggregators_elsewhere(tmp_path: Path) -> None:
    layout = layout_of(ZERO, ["loss"], integers=False)
    fronts = Fronts(layout, tmp_path, 3)
    with fronts.stack:
        fronts.meet()  # opens round 1
        trusting = app(own, lambda node: 100 * node, mods=[SecureMod(fronts.file)])
        grid = DirectGrid(trusting, 3)
        with pytest.raises(ConfigError, match="other arrays"):  # without the loss
            SecureStrategy(FedAvg(), relay(fronts.file)).configure_train(1, record(ZERO), ConfigRecord(), grid)
        strategy = SecureStrategy(FedAvg(), relay(fronts.file), metrics={"loss": 10.0})
        replies = grid.send_and_receive(strategy.configure_train(1, record(ZERO), ConfigRecord(), grid))
        ending = threading.Timer(1.0, fronts.meet)  # all slots are taken: the round ends
        ending.start()
        arrays, metrics = strategy.aggregate_train(1, replies)
        ending.join()
    assert arrays is not None and metrics is not None
    np.testing.assert_allclose(arrays["w"].numpy(), [0.5] * 3, atol=2**-16)
    assert metrics["loss"] == pytest.approx(2.5, abs=1e-3)
