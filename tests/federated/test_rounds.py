"""Aggregators over their TLS links and clients over HTTP: whole rounds, keys, and aggregators that are gone."""

import http.client
import threading
import time
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from protocols.channel.testing import loopback_parties, run_together
from protocols.errors import ConfigError, FileError, Mismatch, PeerAbsent, PeerDied, PeerStalled
from protocols.identity import DEALER, Timeouts
from securemodel.edge.errors import Disagreement, EdgeError, PartyDown, Refused, ServiceError
from securemodel.edge.federation import Federation, read_file
from securemodel.edge.rounds import RoundCard
from securemodel.edge.updates import Layout, add_results, result_part, share_update
from securemodel.engines.masked.dealer import serve
from securemodel.federated import Task, aggregator, mean, trimmed_mean
from securemodel.federated.aggregator import Aggregator
from securemodel.federated.rounds import Listening, front, meetings, place_of, public_key, run, sessions
from securemodel.service import desk as service
from securemodel.service.keys import KeyBook, digest_of, new_key
from securemodel.service.logs import Log

NAMES = ("north", "south")
LAYOUT = Layout.of({"w": np.zeros((2, 3), np.float32), "b": np.zeros(())})


def task(**more):
    return Task("t", mean(), LAYOUT, **{"slots": 4, "limit": 8.0, "aggregators": NAMES, **more})


def update(value):
    return {"w": np.full((2, 3), value, np.float32), "b": np.array(float(value))}


@pytest.fixture(scope="module")
def roster(tmp_path_factory):
    return loopback_parties(NAMES, tmp_path_factory.mktemp("parties"), timeouts=Timeouts(30, 30))


@contextmanager
def federation(roster, folder, rounds=2, keys=None, clock=time.time, **more):
    """(aggregators, federation.json) of fronts that answer; `more`: of the task."""
    config, identities = roster
    with ExitStack() as stack:
        ends, told = {}, []
        for name in NAMES:
            place = place_of(task(**more), name, config, identities[name], folder / name)
            ends[name] = Aggregator(task(**more), place, rounds=rounds, clock=clock)
            port = stack.enter_context(front(ends[name], Listening("127.0.0.1", 0, None, keys), Log(None)))
            told.append({"name": name, "url": f"http://127.0.0.1:{port}", "hpke": public_key(config, name)})
        yield ends, {"securemodel_federation": 1, "aggregators": told}


def test_two_rounds_over_links_and_http(roster, tmp_path):
    """Sites that know nothing but federation.json; aggregators in a thread each, over their TLS links."""
    config, identities = roster
    seen = {name: [] for name in NAMES}

    def site(value):
        with Federation(file, client=f"site{value}") as sites:
            for number in (1, 2):
                card = sites.card(after=number - 1)
                uploads = sites.share(card, update(value * number))
                results.append((number, sites.result(uploads)))

    def pass_deadlines():
        for number in (1, 2):
            until = time.monotonic() + 60
            while not all(len(end.held(number)) == 2 for end in ends.values()) and time.monotonic() < until:
                time.sleep(0.02)
            skipped[0] += task().deadline_s + 1

    results, skipped = [], [0.0]
    clock = lambda: time.time() + skipped[0]
    with federation(roster, tmp_path, clock=clock) as (ends, file):
        loops = {
            name: lambda name=name: run(
                ends[name],
                meetings(name, config, identities[name]),
                ended=lambda number, outcome: seen[name].append((number, outcome.present)),
                clock=clock,
                sleep=lambda seconds: time.sleep(0.02),
            )
            for name in NAMES
        }
        sites = {"a": lambda: site(1), "b": lambda: site(3)}
        found = run_together({**loops, **sites, "time": pass_deadlines}, timeout_s=120)
        with Federation(file, client="late") as late:
            known = [(card.round, aggregate["b"]) for card, aggregate in late.earlier(3)]
    assert not any(found.values()), found
    for number, aggregate in results:
        assert aggregate["w"].dtype == np.float32
        assert np.allclose(aggregate["w"], 2.0 * number, atol=2**-15)
    assert len(results) == 4 and known == [(number, pytest.approx(2.0 * number, abs=2**-15)) for number in (1, 2)]
    assert list(seen.values()) == [[(1, ("site1", "site3")), (2, ("site1", "site3"))]] * 2


def meet(roster, ends):
    """A meeting of all over their links."""
    config, identities = roster

    def met(name):
        with meetings(name, config, identities[name])() as channel:
            ends[name].meet(channel)

    assert not any(run_together({name: lambda name=name: met(name) for name in NAMES}).values())


@contextmanager
def opened(roster, folder, **more):
    """(aggregators, federation.json, keys of the clients a and late, and of a relay) where a round is open."""
    book, keys = KeyBook(folder / "keys.json"), {name: new_key() for name in ("a", "late", "relay")}
    for name, key in keys.items():
        book.add(digest_of(key), name, [] if name == "relay" else [name])
    with federation(roster, folder, keys=book, **more) as (ends, file):
        meet(roster, ends)
        yield ends, file, keys


@pytest.fixture
def open_round(roster, tmp_path):
    with opened(roster, tmp_path) as found:
        yield found


def test_sites_alone_get_the_result_over_http_late_ones_too(roster, tmp_path):
    with (
        opened(roster, tmp_path, reveal="clients", slots=2) as (ends, file, keys),
        Federation(file, client="a", key=keys["a"]) as mine,
        Federation(file, client="late", key=keys["late"]) as late,
        Federation(file, client="late", key=keys["relay"]) as relay,
    ):
        card = mine.card()
        uploads, passed = mine.share(card, update(1.0)), share_update(card, update(4.0), id="c")
        relay.upload(passed)
        meet(roster, ends)
        assert mine.result(uploads)["b"] == pytest.approx(2.5, abs=2**-15)
        blobs = relay.sealed_result(1, "c")
        assert add_results(card, blobs, passed.key)["b"] == pytest.approx(2.5, abs=2**-15)
        assert relay.sealed_result(1, "late") is None
        assert [aggregate["b"] for _, aggregate in late.earlier(2)] == [pytest.approx(2.5, abs=2**-15)]
        with pytest.raises(Refused, match="from the client itself"):
            list(relay.earlier(2))


def test_a_late_site_passes_over_a_round_without_any_weight(open_round, monkeypatch):
    _, file, keys = open_round
    with Federation(file, client="late", key=keys["late"]) as late:
        cards = {number: replace(late.card(), round=number) for number in (1, 2, 3)}
        share = lambda card, rank: result_part(
            card, rank, np.zeros(7, np.uint32), 2 * (card.round % 2) - 1 if rank else 1, 1.0
        )
        monkeypatch.setattr(late, "_card_of", lambda number, end: cards[number])
        monkeypatch.setattr(late, "_parts", lambda number, *_: {rank: share(cards[number], rank) for rank in (0, 1)})
        assert [card.round for card, _ in late.earlier(4)] == [1, 3]


def test_keys_are_for_clients(open_round):
    ends, file, keys = open_round
    with Federation(file, client="a", key=keys["a"]) as mine, Federation(file, client="b", key=keys["a"]) as other:
        card = mine.card()
        mine.share(card, update(1.0))
        with pytest.raises(Refused, match="model_not_allowed"):
            other.share(card, update(1.0))
    with Federation(file, client="a") as nobody, pytest.raises(Refused) as caught:
        nobody.share(card, update(1.0))
    assert caught.value.code == "key" and caught.value.party == "north"
    with Federation(file, client="c", key=keys["relay"]) as relay:
        for client in ("c", "ward/7 é?#%2F", ".."):  # whatever prints is a name
            relay.upload(share_update(card, update(2.0), id=client))
    assert [list(end.held(1)) for end in ends.values()] == [["a", "c", "ward/7 é?#%2F", ".."]] * 2


def test_what_an_aggregator_refuses_is_told(open_round):
    _, file, keys = open_round
    with Federation(file, client="a", key=keys["a"]) as mine:
        card = mine.card()
        uploads = mine.share(card, update(1.0))
        mine.upload(uploads)
        with pytest.raises(Refused, match="a second upload in round 1") as caught:
            mine.upload(share_update(card, update(2.0), id="a"))
        assert (caught.value.status, caught.value.fix) == (409, "share one update a round")
        with pytest.raises(Refused, match="has no result yet"):
            mine.result(uploads, timeout=0.1)
        with pytest.raises(EdgeError):
            mine.card(after=1, timeout=0.1)


def test_an_aggregator_that_cannot_be_reached_is_named_in_time(open_round):
    _, file, keys = open_round
    away = {**file["aggregators"][1], "url": "http://127.0.0.1:9"}
    apart = {**file, "aggregators": [file["aggregators"][0], away]}
    with Federation(apart, key=keys["a"]) as mine, pytest.raises(PartyDown) as caught:
        mine.card(timeout=0.5)
    assert caught.value.party == "south"


@pytest.mark.parametrize(
    "error",
    [service.Refused("queue_full", "too many bodies are being read", retry_after=1.0), FileError("the disk is full")],
    ids=["busy", "disk"],
)
def test_an_upload_that_is_refused_for_a_moment_is_sent_again(open_round, monkeypatch, error):
    ends, file, keys = open_round
    real, refused = ends["north"].receive, []

    def busy(*given):
        if not refused:
            refused.append(given)
            raise error
        real(*given)

    monkeypatch.setattr(ends["north"], "receive", busy)
    with Federation(file, client="a", key=keys["a"]) as mine:
        mine.share(mine.card(), update(1.0))
    assert refused and [end.held(1) for end in ends.values()] == [("a",)] * 2


def asked(file, method, path, body=b"", **headers):
    connection = http.client.HTTPConnection(file["aggregators"][0]["url"].removeprefix("http://"), timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_hostile_requests_get_problems(open_round):
    _, file, keys = open_round
    bearer = {"Authorization": f"Bearer {keys['relay']}"}
    path = "/v2/federation/rounds/1/uploads/x"
    assert asked(file, "POST", path, b"x" * 200_000, **bearer)[0] == 413
    assert asked(file, "POST", path, b"x", **bearer)[0] == 422
    assert asked(file, "POST", path, iter([b"x"]), **bearer)[0] == 400  # chunked: its length is not told
    assert asked(file, "GET", path, **bearer)[0] == 405
    assert asked(file, "POST", "/v2/federation/rounds/-1/uploads/x", b"x", **bearer)[0] == 404
    assert asked(file, "POST", "/v2/federation/rounds/7/uploads/x", b"x", **bearer)[0] == 404
    assert asked(file, "GET", "/v2/federation/rounds/1/result")[0] == 401
    for number in (2**70, "9" * 5000):
        assert asked(file, "GET", f"/v2/federation/rounds/{number}/result", **bearer)[0] == 404
        assert asked(file, "GET", f"/v2/federation/rounds/{number}/card")[0] == 404
        assert asked(file, "POST", f"/v2/federation/rounds/{number}/uploads/x", b"x", **bearer)[0] == 404
    status, body = asked(file, "GET", "/nothing")
    assert status == 404 and b'"code":"not_found"' in body and b"securemodel.edge.federation" in body


def test_a_card_with_other_keys_is_refused(open_round):
    _, file, keys = open_round
    swapped = [{**part, "hpke": file["aggregators"][1 - at]["hpke"]} for at, part in enumerate(file["aggregators"])]
    with Federation({**file, "aggregators": swapped}, key=keys["a"]) as mine, pytest.raises(Disagreement, match="keys"):
        mine.card()


@pytest.mark.parametrize(
    "wrong",
    [
        {"securemodel_federation": 2},
        {"aggregators": []},
        {"aggregators": [{"name": "n", "url": "https://n.example"}] * 2},
        {"aggregators": [{"name": "n", "url": "nowhere", "hpke": "A" * 43}]},
    ],
)
def test_a_wrong_file_is_refused(wrong):
    good = [{"name": name, "url": f"https://{name}.example", "hpke": "A" * 43} for name in NAMES]
    file = {"securemodel_federation": 1, "aggregators": good}
    assert [party.name for party in read_file(file)] == list(NAMES)
    with pytest.raises(ServiceError):
        read_file({**file, **wrong})


def loop(aggregator, meet, patience_s):
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds

    run(aggregator, meet, patience_s=patience_s, clock=lambda: now[0], sleep=sleep)


@pytest.mark.parametrize("error", [PeerAbsent, PeerDied])
def test_an_aggregator_that_stays_away_is_named_when_its_time_is_over(roster, tmp_path, error):
    config, identities = roster
    tries = []

    def meet():
        tries.append(1)
        raise error("south", "it is not there")

    mine = Aggregator(task(), place_of(task(), "north", config, identities["north"], tmp_path), rounds=1)
    with pytest.raises(error) as caught:
        loop(mine, meet, 5.0)
    assert caught.value.party == "south" and 3 <= len(tries) <= 7


@pytest.mark.parametrize("behind", [True, False], ids=["has not begun", "takes uploads yet"])
def test_an_aggregator_that_comes_and_never_goes_on_is_named(roster, tmp_path, monkeypatch, behind):
    """The meetings go well, one after the other, and nothing changes."""
    config, identities = roster
    place = place_of(task(), "north", config, identities["north"], tmp_path)
    mine = Aggregator(task(), place, clock=lambda: 4.0 if behind else 2.0)
    mine._begin(1, 3.0)
    own = msgspec.structs.replace(mine._standing(), held=dict.fromkeys("abcd"))
    other = msgspec.structs.replace(own, held={}, **({"number": 0, "state": ""} if behind else {}))
    monkeypatch.setattr(aggregator, "exchange_standings", lambda *_: {"north": own, "south": other})
    monkeypatch.setattr(Aggregator, "due", 0.0)
    with pytest.raises(PeerStalled, match="does not go on") as caught:
        loop(mine, nullcontext, 5.0)
    assert caught.value.party == "south"


def test_a_disagreement_is_not_tried_again(roster, tmp_path):
    config, identities = roster
    tries = []

    def meet():
        tries.append(1)
        raise Mismatch("south", "it is another task")

    mine = Aggregator(task(), place_of(task(), "north", config, identities["north"], tmp_path), rounds=1)
    with pytest.raises(Mismatch):
        loop(mine, meet, 100.0)
    assert len(tries) == 1


def test_an_address_in_use_is_named(roster, tmp_path):
    with federation(roster, tmp_path) as (ends, file):
        port = int(file["aggregators"][0]["url"].rpartition(":")[2])
        with pytest.raises(ConfigError, match=str(port)), front(ends["north"], Listening("127.0.0.1", port), Log(None)):
            pass


def test_aggregators_run_a_program_with_a_dealer(tmp_path):
    """A trimmed mean, whose programs run in a session of their own beside the meeting."""
    config, identities = loopback_parties(NAMES, tmp_path, dealer=True, timeouts=Timeouts(60, 60), lanes=2)
    made = Task("t", trimmed_mean(0.25), LAYOUT, slots=4, limit=8.0, aggregators=NAMES)
    threading.Thread(target=serve, args=(config, identities[DEALER]), daemon=True).start()
    ends = {
        name: Aggregator(
            made,
            place_of(made, name, config, identities[name], tmp_path / f"data-{name}"),
            rounds=1,
            sessions=sessions(made, name, replace(config, identity=tmp_path / name)),
        )
        for name in NAMES
    }

    def go(name):
        run(ends[name], meetings(name, config, identities[name]), sleep=lambda seconds: time.sleep(0.02))

    def clients():
        while any(not end.held(1) and end.journal.last() is None for end in ends.values()):
            time.sleep(0.02)
        card = RoundCard.read(ends["north"].card())
        for client, value in {"a": 1.0, "b": 2.0, "c": 4.0, "d": -7.5}.items():
            sealed = share_update(card, update(value), id=client).sealed()
            for rank, name in enumerate(NAMES):
                ends[name].receive(1, client, sealed[rank])

    found = run_together({"clients": clients, **{name: lambda name=name: go(name) for name in NAMES}}, timeout_s=180)
    assert not any(found.values()), found
    for end in ends.values():
        aggregate = end.outcome(1).aggregate
        assert aggregate is not None and np.allclose(aggregate["w"], 1.5, atol=2**-16)
