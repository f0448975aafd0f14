"""Flower apps with the client's and the server's line, over a grid in this process. Run by test_flower.py, beside flwr."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
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
from protocols.identity import DEALER, Timeouts
from securemodel.edge.errors import Refused, ServiceError
from securemodel.edge.flower import RECORD, SecureMod, layout_of, packed, unpacked
from securemodel.edge.flower_model import _KEYS as KEYS
from securemodel.edge.flower_model import MODEL
from securemodel.edge.rounds import Layout, RoundCard
from securemodel.engines.masked.dealer import serve
from securemodel.federated import Aggregation, Task, mean, weighted_mean
from securemodel.federated.aggregator import Aggregator
from securemodel.federated.flower import SecureStrategy, config, insecure_local, record_to_state, relay, state_to_record
from securemodel.federated.rounds import Listening, front, meetings, place_of, public_key, sessions
from securemodel.service.keys import KeyBook, digest_of, new_key
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
        (ones, lambda node: float("nan"), "'num-examples' is no whole number"),
        (ones, lambda node: float("inf"), "'num-examples' is no whole number"),
    ],
    ids=["too large", "an array missing", "another shape", "too many rows", "half a row", "no number", "infinite"],
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


ODD = {
    "no records": RecordDict(),
    "another type": RecordDict({RECORD: ArrayRecord({"0": Array(np.zeros(3))})}),
    "a rank that is none": RecordDict(
        {RECORD: ArrayRecord({"9" * 5000: Array("uint8", (1,), "securemodel.sealed", b"x")})}
    ),
    "a text": RecordDict({RECORD: ConfigRecord({"0": "x"})}),
}


@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_replies_without_shares_are_named_and_the_round_goes_on(content: RecordDict) -> None:
    strategy = secure()
    odd = lambda reply: Message(content, reply_to=reply) if reply.metadata.src_node_id == 1 else reply
    grid = DirectGrid(app(ones), 3, tamper=odd)
    replies = grid.send_and_receive(strategy.configure_train(1, record(ZERO), ConfigRecord(), grid))
    assert strategy.aggregate_train(1, replies)[0] is not None
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


# ---- clients alone get the aggregate
def hidden(strategy: FedAvg | None = None, **more: Any) -> SecureStrategy:
    opens = insecure_local(weighted_mean(), slots=8, limit=4.0, max_weight=100, reveal="clients")
    return SecureStrategy(strategy or FedAvg(), opens, **more)


def whole_round(strategy: SecureStrategy, grid: DirectGrid, number: int) -> MetricRecord | None:
    """Training and what follows it; the server gets no model."""
    assert round_of(strategy, grid, ZERO, number) is None
    replies = grid.send_and_receive(strategy.configure_evaluate(number, record(ZERO), ConfigRecord(), grid))
    return strategy.aggregate_evaluate(number, replies)


def test_clients_alone_have_the_model_also_who_was_away() -> None:
    seen: dict[int, list[float]] = {node: [] for node in range(1, 5)}

    def train(node: int, model: Model) -> Model:
        seen[node].append(float(model["w"][0]))
        return own(node, model)

    grid, strategy = DirectGrid(app(train), 4), hidden()
    for number, lost in ((1, {4}), (2, {3, 4}), (3, set[int]())):
        grid._lost = lost
        whole_round(strategy, grid, number)
    close = lambda values: pytest.approx(values, abs=2**-15)
    assert seen == {1: close([0, 0.5, 0.875]), 2: close([0, 0.5, 0.875]), 3: close([0, 0.875]), 4: []}
    assert "has not the model" in strategy.outcomes[3].refused["4"]
    for node in (1, 2, 3):
        model = numpy(grid.contexts[node].state.array_records[MODEL])
        assert (
            model["w"].dtype == np.float32 and model["w"].tolist() == close([1.375] * 3) and model["scale"].shape == ()
        )
    assert all(outcome.revealed == "to clients: the aggregate" for outcome in strategy.outcomes.values())
    assert all(
        not numpy(m.content["arrays"])["w"].any()
        for m in strategy.configure_train(4, record(ZERO), ConfigRecord(), grid)
    )


def test_evaluation_of_a_model_that_the_server_has_not() -> None:
    made = ClientApp(mods=[SecureMod(insecure_trust_server=True)])

    @made.train()
    def _(message: Message, context: Context) -> Message:
        arrays = record(own(context.node_id, numpy(message.content["arrays"])))
        return Message(RecordDict({"arrays": arrays, "m": MetricRecord({"num-examples": 1})}), reply_to=message)

    @made.evaluate()
    def _(message: Message, context: Context) -> Message:
        found = float(numpy(message.content["arrays"])["w"][0])
        return Message(RecordDict({"m": MetricRecord({"num-examples": 1, "accuracy": found})}), reply_to=message)

    opens = insecure_local(weighted_mean(), slots=8, max_weight=10)
    strategy = hidden(FedAvg(fraction_evaluate=0.5), evaluate=opens, evaluate_metrics={"accuracy": 2.0})
    grid = DirectGrid(made, 4)
    for number, right in ((1, 0.625), (2, 1.25)):
        assert whole_round(strategy, grid, number) == {"accuracy": pytest.approx(right, abs=2**-12)}


def test_what_does_not_go_with_results_for_clients_alone() -> None:
    for wrong in (hidden(FedAdam()), hidden(metrics={"loss": 10.0})):
        with pytest.raises(ConfigError, match="the server has none"):
            wrong.configure_train(1, record(ZERO), ConfigRecord(), DirectGrid(app(ones), 2))


def test_a_server_that_hands_out_wrong_results_is_named() -> None:
    grid, strategy = DirectGrid(app(own), 3), hidden()
    whole_round(strategy, grid, 1)
    delivered = strategy._train.deliver
    of_another = lambda number, client: delivered(number, "2")
    strategy._train.deliver = of_another  # type: ignore[method-assign]
    strategy._results._has.clear()
    for context in grid.contexts.values():
        context.state = RecordDict({**context.state, KEYS: ConfigRecord({**context.state[KEYS], "round": 0})})
    whole_round(strategy, grid, 2)
    assert ["no key of this client" in why for why in strategy.outcomes[2].refused.values()] == [True, True]


# ---- aggregators elsewhere
class Fronts:
    """Aggregators that answer over HTTP to whoever shows the relay's key, and meet when all clients have shared."""

    def __init__(self, layout: Layout, folder: Path, clients: int, aggregation: Aggregation, **more: Any) -> None:
        names = ("north", "south")
        config, identities = loopback_parties(
            names, folder / "parties", dealer=True, timeouts=Timeouts(30, 30), lanes=2
        )
        threading.Thread(target=serve, args=(config, identities[DEALER]), daemon=True).start()
        task = Task("t", aggregation, layout, slots=clients, limit=4.0, aggregators=names, **more)
        self._links = {name: meetings(name, config, identities[name]) for name in names}
        self.ends = {
            name: Aggregator(
                task,
                place_of(task, name, config, identities[name], folder / name),
                rounds=9,
                sessions=sessions(task, name, replace(config, identity=folder / "parties" / name)),
            )
            for name in names
        }
        self.stack, told, self.key, book = ExitStack(), [], new_key(), KeyBook(folder / "keys.json")
        book.add(digest_of(self.key), "server")
        for name, end in self.ends.items():
            port = self.stack.enter_context(front(end, Listening("127.0.0.1", 0, None, book), Log(None)))
            told.append({"name": name, "url": f"http://127.0.0.1:{port}", "hpke": public_key(config, name)})
        self.file = {"securemodel_federation": 1, "aggregators": told}

    def meet(self) -> None:
        def met(name: str) -> None:
            with self._links[name]() as channel:
                self.ends[name].meet(channel)

        assert not any(run_together({name: lambda name=name: met(name) for name in self.ends}).values())

    @contextmanager
    def ending(self, number: int) -> Iterator[None]:
        """Inside, the round ends when all slots are taken, and the next one begins."""

        def ends() -> None:
            while any(len(end.held(number)) < end.task.slots for end in self.ends.values()):
                time.sleep(0.02)
            self.meet()
            self.meet()

        thread = threading.Thread(target=ends)
        thread.start()
        yield
        thread.join()


def test_a_server_relays_to_aggregators_elsewhere(tmp_path: Path) -> None:
    """As the guide has it: weighted, with a dealer, and with an API key for all sites."""
    layout = layout_of(ZERO, ["loss"], integers=False)
    fronts = Fronts(layout, tmp_path, 3, weighted_mean(), max_weight=1000)
    with fronts.stack:
        fronts.meet()  # opens round 1
        trusting = app(own, lambda node: 100 * node, mods=[SecureMod(fronts.file)])
        grid, aggregators = DirectGrid(trusting, 3), relay(fronts.file, key=fronts.key)
        with pytest.raises(ConfigError, match="other arrays"):  # without the loss
            SecureStrategy(FedAvg(), aggregators).configure_train(1, record(ZERO), ConfigRecord(), grid)
        with pytest.raises(Refused, match="API key"):
            relay(fronts.file)(layout).receive(1, 0, "1", b"")
        strategy = SecureStrategy(FedAvg(), aggregators, metrics={"loss": 10.0})
        replies = grid.send_and_receive(strategy.configure_train(1, record(ZERO), ConfigRecord(), grid))
        with fronts.ending(1):
            arrays, metrics = strategy.aggregate_train(1, replies)
    assert arrays is not None and metrics is not None
    np.testing.assert_allclose(arrays["w"].numpy(), [3.5 / 6] * 3, atol=2**-16)
    assert metrics["loss"] == pytest.approx(0.5 + 14 / 6, abs=1e-3)


def test_a_server_waits_for_no_aggregator_beyond_the_rounds_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 clients, one after the other, each would wait for an aggregator that is gone."""
    layout, waited = layout_of(ZERO, [], integers=False), []
    told = Task("t", mean(), layout, slots=3, limit=4.0).card(1, ["A" * 43] * 2, deadline=1000.0)

    class Away:
        def card(self, **_: Any) -> RoundCard:
            return told

        def pass_on(self, *_: Any, timeout: float) -> None:
            waited.append(timeout)

    aggregators, now = config._Relay(Away(), layout, 60.0), [500.0]
    monkeypatch.setattr(config.time, "time", lambda: now[0])
    aggregators.card(1)
    for now[0] in (500.0, 990.0, 1000.0):
        aggregators.receive(1, 0, "1", b"")
    assert waited == [60.0, 10.0, 1.0]


def test_a_server_relays_what_is_for_clients_alone(tmp_path: Path) -> None:
    fronts = Fronts(layout_of(ZERO, [], integers=False), tmp_path, 3, mean(), reveal="clients")
    with fronts.stack:
        fronts.meet()
        grid = DirectGrid(app(own, mods=[SecureMod(fronts.file)]), 3)
        strategy = SecureStrategy(FedAvg(), relay(fronts.file, key=fronts.key))
        for number in (1, 2):
            replies = grid.send_and_receive(strategy.configure_train(number, record(ZERO), ConfigRecord(), grid))
            with fronts.ending(number):
                assert strategy.aggregate_train(number, replies) == (None, None)
            replies = grid.send_and_receive(strategy.configure_evaluate(number, record(ZERO), ConfigRecord(), grid))
            assert strategy.aggregate_evaluate(number, replies) is None
    assert all(end.outcome(2).aggregate is None for end in fronts.ends.values())
    for context in grid.contexts.values():
        assert numpy(context.state.array_records[MODEL])["w"] == pytest.approx([1.0] * 3, abs=2**-15)
