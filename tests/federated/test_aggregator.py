"""Aggregators in one process, with their journals and folders: rounds, crashes, lies, late and repeated uploads."""

import time
from collections.abc import Callable
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from protocols.channel import local_channels
from protocols.channel.testing import run_together
from protocols.errors import Mismatch, PeerAborted, PeerDied, PeerError
from securemodel.data import noise
from securemodel.edge import sealing
from securemodel.edge.errors import InputError
from securemodel.edge.updates import Layout, RoundCard, add_results, share_elements, share_update
from securemodel.federated import Task, mean, stages, weighted_mean
from securemodel.federated import aggregator as module
from securemodel.federated.aggregator import Aggregator, Place
from securemodel.federated.budgets import Budget
from securemodel.federated.journal import AGREED, COMPUTED, OPEN, REFUSED, RELEASED
from securemodel.federated.noise import Protection
from securemodel.federated.stages import toss
from securemodel.federated.uploads import Presence
from securemodel.ledger import Ledger, read_ledger
from securemodel.service.desk import Refused

LAYOUT = Layout.of({"w": np.zeros(5), "b": np.zeros(())})


def update(value):
    return {"w": np.full(5, value) / np.arange(1, 6), "b": np.array(value)}


class World:
    """Aggregators of one task, each in a folder of its own, under one clock that only tests move."""

    def __init__(self, tmp_path, task):
        self.task, self.folder, self.now = task, tmp_path, 1000.0
        self.private = [sealing.one_time_key() for _ in task.aggregators]
        self.public = [sealing.public_of(key) for key in self.private]
        self.ends = {name: self.started(name) for name in task.aggregators}

    def started(self, name):
        place = Place(name, self.folder / name, self.public, self.private[self.task.aggregators.index(name)])
        ledger = Ledger(self.folder / f"{name}.ledger")
        return Aggregator(self.task, place, clock=lambda: self.now, ledger=ledger)

    def restart(self, name):
        """A process that is gone, and another one in its place."""
        self.ends[name].close()
        self.ends[name] = self.started(name)

    def meet(self):
        """One meeting of all; the error of each, or its latest round."""
        channels = local_channels(self.task.aggregators, timeout_s=60)

        def met(name):
            with channels[name] as channel:
                return self.ends[name].meet(channel)

        return run_together({name: lambda name=name: met(name) for name in self.ends})

    def meet_well(self):
        found = self.meet()
        assert not [end for end in found.values() if isinstance(end, BaseException)], found
        return {name: end.state for name, end in found.items()}

    def open(self):
        assert set(self.meet_well().values()) == {OPEN}
        cards = {end.card() for end in self.ends.values()}
        assert len(cards) == 1
        return RoundCard.read(cards.pop())

    def upload(self, card, client, value, ranks=(0, 1), weight=1):
        uploads = share_update(card, update(value), weight=weight, id=client)
        sealed = uploads.sealed()
        for rank in ranks:
            self.ends[self.task.aggregators[rank]].receive(card.round, client, sealed[rank])
        return uploads

    def pass_deadline(self):
        self.now += self.task.deadline_s + 1

    def result(self, uploads):
        number, client = uploads.card.round, uploads.client
        blobs = {rank: end.result(number, client) for rank, end in enumerate(self.ends.values())}
        return add_results(uploads.card, blobs, uploads.key)


@pytest.fixture
def world(tmp_path) -> Callable[..., World]:
    return lambda **more: World(
        tmp_path, Task(**{"name": "t", "aggregation": mean(), "layout": LAYOUT, "slots": 4, "limit": 8.0, **more})
    )


def refusal(call, *given):
    with pytest.raises(Refused) as caught:
        call(*given)
    return caught.value


@pytest.mark.parametrize("reveal", ["aggregators", "clients"])
def test_a_round_from_open_to_released(world, reveal):
    here = world(reveal=reveal)
    card = here.open()
    first = here.upload(card, "a", 1.0)
    here.upload(card, "b", -2.0)
    here.upload(card, "c", 5.0, ranks=(0,))
    here.pass_deadline()
    assert set(here.meet_well().values()) == {RELEASED}
    outcome = here.ends["second"].outcome(1)
    assert (outcome.present, outcome.absent, outcome.refused) == (("a", "b"), ("c",), {})
    assert np.allclose(here.result(first)["w"], update(-0.5)["w"], atol=2**-16)
    if reveal == "aggregators":
        assert np.allclose(outcome.aggregate["b"], -0.5, atol=2**-16)
    else:
        assert outcome.aggregate is None
        assert refusal(here.ends["first"].result, 1, "c").code == "model_not_allowed"
    assert list(outcome.bytes) == ["second"] and 0 < outcome.bytes["second"] < 5000
    lines = read_ledger(here.folder / "first.ledger").lines
    assert [(line.fields["rows"], line.fields["epoch"]) for line in lines] == [(2, 1)]
    assert not list((here.folder / "first").glob("round-*"))
    assert here.open().round == 2


def test_who_comes_late_or_missed_a_round_gets_results_for_clients_alone(world):
    here, key = world(reveal="clients"), sealing.one_time_key()
    uploads = {}
    for number, clients in ((1, "abc"), (2, "ab"), (3, "ac")):
        card = here.open()
        uploads[number] = {client: here.upload(card, client, float(number)) for client in clients}
        here.pass_deadline()
        here.meet_well()

    def opened(number, client, private, seal=""):
        blobs = {rank: end.result(number, client, seal) for rank, end in enumerate(here.ends.values())}
        return add_results(next(iter(uploads[number].values())).card, blobs, private)["b"]

    assert opened(2, "c", uploads[1]["c"].key) == pytest.approx(2.0, abs=2**-16)  # by the key of its last round
    assert opened(3, "b", uploads[2]["b"].key) == pytest.approx(3.0, abs=2**-16)
    assert refusal(here.ends["first"].result, 2, "new").code == "model_not_allowed"
    for none in ("no key", "A" * 43):  # to the latter nothing can be sealed
        assert refusal(here.ends["first"].result, 2, "new", none).code == "model_not_allowed"
    assert opened(2, "new", key, sealing.public_of(key)) == pytest.approx(2.0, abs=2**-16)
    assert RoundCard.read(here.ends["first"].card_of(2)) == uploads[2]["a"].card


def test_below_the_minimum_nothing_is_revealed_and_the_next_round_begins(world):
    here = world(minimum=3)
    card = here.open()
    for client in "ab":
        here.upload(card, client, 1.0)
    here.upload(card, "c", 1.0, ranks=(1,))
    here.pass_deadline()
    assert set(here.meet_well().values()) == {REFUSED}
    for end in here.ends.values():
        error = refusal(end.result, 1, "a")
        assert error.code == "gone" and "minimum of 3" in error.why
        assert end.outcome(1).absent == ("c",)
        assert end.journal.spent("a") == 0
    assert here.open().round == 2


@pytest.mark.parametrize("reveal", ["aggregators", "clients"])
def test_a_round_without_any_weight_does_not_end_the_federation(world, reveal):
    here = world(reveal=reveal, aggregation=weighted_mean(), max_weight=9)
    here.task.__dict__.update(programs={}, numbers={})  # nobody has a weight out of range here
    card = here.open()
    uploads = [here.upload(card, client, 1.0, weight=0) for client in "ab"]
    here.pass_deadline()
    assert set(here.meet_well().values()) == {REFUSED if reveal == "aggregators" else RELEASED}
    if reveal == "aggregators":
        assert all("add up to zero" in end.outcome(1).revealed for end in here.ends.values())
    else:
        with pytest.raises(InputError, match="add up to zero"):
            here.result(uploads[0])
    assert here.open().round == 2


def test_late_duplicate_and_old_uploads_are_named(world):
    here = world()
    card = here.open()
    first, end = here.upload(card, "a", 1.0), here.ends["first"]
    end.receive(1, "a", first.sealed()[0])  # the answer was lost: sent again
    other = share_update(card, update(2.0), id="a").sealed()
    assert refusal(end.receive, 1, "a", other[0]).code == "id_reused"
    assert refusal(end.receive, 2, "a", first[0]).code == "not_found"
    older = share_update(replace(card, model="22" * 32), update(2.0), id="d")
    another = refusal(end.receive, 1, "d", older[0])
    assert another.code == "wrong_program" and "another card" in another.what and "model" in another.why
    here.upload(card, "b", 2.0)
    here.pass_deadline()
    late = share_update(card, update(2.0), id="d").sealed()
    assert refusal(end.receive, 1, "d", late[0]).code == "gone"
    assert refusal(end.card).retry_after is not None
    here.meet_well()
    assert np.allclose(here.result(first)["b"], 1.5, atol=2**-16)
    following = here.open()
    replayed = refusal(end.receive, 2, "a", first[0])
    assert replayed.code == "wrong_program" and "is of round 1, not 2" in replayed.what
    assert following.round == 2 and end.outcome(1).present == ("a", "b")


def test_a_name_that_is_none_does_not_end_the_agreement(world):
    """Whoever reaches the address names itself: others would refuse to hear of such a client."""
    here = world()
    card = here.open()
    for client in ("x" * 129, "a\nb"):
        made = share_elements(card, np.zeros(6, card.dtype), 1, client)
        for rank, end in enumerate(here.ends.values()):
            assert "128 characters" in refusal(end.receive, 1, client, made[rank]).what
            refusal(end.receive, 1, client, b"no part")
    for client in "ab":
        here.upload(card, client, 1.0)
    here.pass_deadline()
    assert set(here.meet_well().values()) == {RELEASED}


@pytest.mark.parametrize(
    "reveal, old, new",
    [
        ("clients", b'"commit":"', b'"commit":"z'),
        ("clients", b'"answer_key":"', b'"answer_key":"z'),
        ("aggregators", b'"answer_key":"', b'"answer_key":"z'),
        ("aggregators", b'"answer_key":"', b'"answer_key":"\\ud83d'),  # half a character, which cannot be sent on
    ],
)
def test_a_header_that_others_would_not_take_is_refused(world, reveal, old, new):
    here = world(reveal=reveal)
    card = here.open()
    made = share_update(card, update(1.0), id="liar")
    for rank, end in enumerate(here.ends.values()):
        size = int.from_bytes(made[rank][4:8], "little")
        header = made[rank][8 : 8 + size].replace(old, new)
        part = made[rank][:4] + len(header).to_bytes(4, "little") + header + made[rank][8 + size :]
        assert refusal(end.receive, 1, "liar", part).code == "shape"
    for client in "ab":
        here.upload(card, client, 1.0)
    here.pass_deadline()
    assert set(here.meet_well().values()) == {RELEASED}


def test_a_relay_cannot_relabel_mix_or_change_parts(world):
    here = world()
    card = here.open()
    sealed = {client: share_update(card, update(1.0), id=client).sealed() for client in "abc"}
    first, second = here.ends["first"], here.ends["second"]
    assert refusal(first.receive, 1, "b", sealed["a"][0]).code == "id_reused"  # another name on it
    assert refusal(first.receive, 1, "a", sealed["a"][1]).code == "id_reused"  # another aggregator's
    changed = bytearray(sealed["a"][0])
    changed[-1] ^= 1
    assert refusal(first.receive, 1, "a", bytes(changed)).code == "shape"
    assert refusal(first.receive, 1, "a", b"").code == "shape"
    again = share_update(card, update(7.0), id="c").sealed()
    for client in "ab":
        first.receive(1, client, sealed[client][0])
        second.receive(1, client, sealed[client][1])
    first.receive(1, "c", sealed["c"][0])
    second.receive(1, "c", again[1])  # both are the client's own, of two updates
    here.pass_deadline()
    here.meet_well()
    outcome = first.outcome(1)
    assert outcome.present == ("a", "b") and outcome.refused == {"c": "its parts belong to different uploads"}


CRASHES = ["agree", "attempt", "computed", "release"]


@pytest.mark.parametrize("write", CRASHES)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_aggregator_that_dies_mid_round_comes_back(world, write, after, monkeypatch):
    """It dies just before or just after it writes a state; the round is repeated without new uploads, to the same result."""
    here = world(protection=Protection(1.0, 8.0), bits=64)
    card = here.open()
    first = here.upload(card, "a", 1.0)
    here.upload(card, "b", 3.0)
    here.pass_deadline()
    journal = here.ends["second"].journal
    real = getattr(journal, write)

    def dies(*given):
        if after:
            real(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(journal, write, dies)
    found = here.meet()
    assert isinstance(found["second"], KeyboardInterrupt)
    assert write == "release" or isinstance(found["first"], PeerAborted | PeerDied)
    drawn_before = [path for name in here.ends if (path := here.folder / name / "round-1" / "noise").exists()]
    here.restart("second")
    here.restart("first")
    drawn = []
    monkeypatch.setattr("securemodel.data.noise.discrete_gaussian", lambda *given: drawn.append(given) or _draw(*given))
    while set((states := here.meet_well()).values()) == {AGREED, COMPUTED}:
        pass
    assert states["second"] in (RELEASED, OPEN)
    assert len(drawn) == (0 if write == "release" else len(here.ends) - len(drawn_before))  # once a round at each
    assert here.ends["first"].outcome(1).present == ("a", "b")
    assert [end.journal.spent("a") for end in here.ends.values()] == [1, 1]
    here.result(first)


_draw = noise.discrete_gaussian


def test_a_second_aggregate_of_other_clients_is_never_computed(world, monkeypatch):
    """One dies after who is in was fixed, and loses an upload: sums over two sets would tell the difference."""
    here = world()
    card = here.open()
    for client in "abc":
        here.upload(card, client, 1.0)
    here.pass_deadline()
    monkeypatch.setattr(here.ends["second"].journal, "attempt", lambda *given: 1 / 0)
    here.meet()
    spool = here.ends["second"]._inbox.spool
    spool._path("c").unlink()
    here.restart("second")
    found = here.meet()
    assert all(isinstance(end, Mismatch) and end.party == "second" for end in found.values())
    assert here.ends["first"].journal.last().state == AGREED


def test_an_aggregator_that_lost_its_folder_is_named(world):
    here = world()
    card = here.open()
    for client in "ab":
        here.upload(card, client, 1.0)
    here.pass_deadline()
    here.meet_well()
    here.open()
    here.ends["second"].close()
    (here.folder / "second" / "journal.db").unlink()
    here.ends["second"] = here.started("second")
    found = here.meet()
    assert all(isinstance(end, Mismatch) and end.party == "second" for end in found.values())


def test_an_aggregator_that_missed_the_opening_follows(world, monkeypatch):
    here = world()
    monkeypatch.setattr(here.ends["second"].journal, "open", lambda *given: 1 / 0)
    here.meet()
    here.restart("second")
    assert set(here.meet_well().values()) == {OPEN}
    assert here.ends["first"].card() == here.ends["second"].card()


@pytest.mark.parametrize("deadline", [1e18, float("nan")])
def test_who_missed_the_opening_takes_no_deadline_that_is_not_the_tasks(world, monkeypatch, deadline):
    here = world()
    monkeypatch.setattr(here.ends["second"].journal, "open", lambda *given: 1 / 0)
    here.meet()
    here.restart("second")
    real = here.ends["first"]._standing
    monkeypatch.setattr(here.ends["first"], "_standing", lambda: msgspec.structs.replace(real(), deadline=deadline))
    found = here.meet()["second"]
    assert isinstance(found, Mismatch) and found.party == "first"


def test_an_upload_that_was_cut_short_is_one_that_did_not_come(world):
    """As after a loss of power: the aggregator starts, and the others hear that it has no such part."""
    here = world()
    card = here.open()
    for client in "abcd":
        here.upload(card, client, 1.0)
    spool = here.ends["first"]._inbox.spool
    for client, left in (("c", 100), ("d", 0)):
        with open(spool._path(client), "r+b") as file:
            file.truncate(left)
    here.restart("first")
    assert sorted(here.ends["first"].held(1)) == ["a", "b"]
    here.pass_deadline()
    assert set(here.meet_well().values()) == {RELEASED}
    assert here.ends["second"].outcome(1).absent == ("c", "d")


def test_another_script_does_not_lose_the_uploads_of_a_round(world):
    here = world()
    here.upload(here.open(), "a", 1.0)
    here.ends["first"].close()
    before, here.task = here.task, replace(here.task, limit=4.0)
    with pytest.raises(ValueError, match="another card"):
        here.started("first")
    here.task = before
    here.ends["first"] = here.started("first")
    assert here.ends["first"].held(1) == ("a",)


def test_a_round_that_is_repeated_tosses_the_same(world):
    """With another toss, a client near its bound might be in one of two sums alone, whose difference is its update."""
    here = world()
    here.open()
    end = here.ends["first"]
    tossed = lambda: next(toss(stages.Round(here.task, end._inbox, Presence((), (), {})))).data
    first = tossed()
    here.restart("first")
    end = here.ends["first"]
    assert tossed() == first


def test_a_deadline_that_is_not_the_tasks_is_refused(world, monkeypatch):
    here = world()
    real = here.ends["first"]._standing
    monkeypatch.setattr(
        here.ends["first"], "_standing", lambda: msgspec.structs.replace(real(), proposed=here.now + 1e6)
    )
    found = here.meet()
    assert all(isinstance(end, PeerError) for end in found.values())
    assert isinstance(found["second"], Mismatch) and found["second"].party == "first"


def test_a_silent_aggregator_is_named_after_a_time_limit(world):
    here = world()
    channels = local_channels(here.task.aggregators, timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(PeerError) as caught:
        here.ends["first"].meet(channels["first"])
    assert caught.value.party == "second" and time.monotonic() - began < 60


def test_a_lying_share_of_the_round_is_a_named_error(world, monkeypatch):
    """One that says it computed in another epoch is noticed before anybody sees a result."""
    here = world()
    card = here.open()
    for client in "ab":
        here.upload(card, client, 1.0)
    here.pass_deadline()
    real = module.check_same
    lies = lambda c, d: real(c, d if c.me == "first" or d.state != COMPUTED else d.__class__(1, COMPUTED, 9))
    monkeypatch.setattr(module, "check_same", lies)
    found = here.meet()
    assert isinstance(found["first"], Mismatch) and found["first"].party == "second"
    assert refusal(here.ends["first"].result, 1, "a").retry_after is not None


def test_budgets_are_kept_by_each_aggregator(world):
    here = world(budget=Budget(rounds=1))
    card = here.open()
    for client in "ab":
        here.upload(card, client, 1.0)
    here.pass_deadline()
    here.meet_well()
    here.restart("first")
    card = here.open()
    sealed = share_update(card, update(1.0), id="a").sealed()
    assert refusal(here.ends["first"].receive, 2, "a", sealed[0]).code == "budget"
    here.ends["second"].task = replace(here.task, budget=Budget())  # one that lets everybody in
    here.ends["second"].receive(2, "a", sealed[1])
    for client in "cd":
        here.upload(card, client, 1.0)
    here.ends["second"].task = here.task
    here.pass_deadline()
    here.meet_well()
    assert here.ends["second"].outcome(2).present == ("c", "d")


def test_another_task_is_refused(world):
    here = world()
    here.ends["second"].task = replace(here.task, deadline_s=601.0)
    found = here.meet()
    assert isinstance(found["first"], Mismatch) and found["first"].party == "second"


def test_a_round_ends_early_when_all_slots_are_taken(world):
    here = world(slots=2)
    card = here.open()
    here.upload(card, "a", 1.0)
    assert [end.due for end in here.ends.values()] == [card.deadline] * 2
    here.upload(card, "b", 1.0, ranks=(0,))
    assert [end.due for end in here.ends.values()] == [0.0, card.deadline]
    assert set(here.meet_well().values()) == {OPEN}
    other = share_update(card, update(1.0), id="c")
    assert refusal(here.ends["first"].receive, 1, "c", other[0]).code == "id_reused"
    here.ends["second"].receive(1, "c", other[1])
    assert set(here.meet_well().values()) == {REFUSED}
    outcome = here.ends["first"].outcome(1)
    assert outcome.absent == ("b",) and "all 2 slots" in outcome.refused["c"]
