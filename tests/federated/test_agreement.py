"""Aggregators agree on who is in a round: together or not at all, once and for all, whatever crashed or lied."""

from dataclasses import replace
from hashlib import sha256

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.channel import local_channels
from protocols.channel.testing import run_together
from protocols.errors import BadFrame, Mismatch, PeerError
from securemodel.edge.updates import commitment
from securemodel.engines.labels import STANDING, STANDING_SIZE
from securemodel.federated import agreement
from securemodel.federated.agreement import Standing, decide
from securemodel.federated.journal import AGREED, COMPUTED, OPEN, REFUSED, RELEASED
from securemodel.federated.uploads import Receipt

TASK = bytes(32)
RANKS = "xyz"
UPLOADS = st.dictionaries(st.sampled_from("abcdefgh"), st.sampled_from("ab"))


def receipt(upload, rank, parties=3):
    """What the aggregator of a rank has of an upload."""
    digests = [sha256(f"{upload}{rank}".encode()).hexdigest() for rank in range(parties)]
    return Receipt(upload, commitment(digests), digests[rank], "")


def standing(held=(), state=OPEN, name="x", parties=2, **more):
    """One of `parties`, by name, which holds uploads of clients: of one each, or as the dict says."""
    held = held if isinstance(held, dict) else dict.fromkeys(held, "a")
    parts = {client: receipt(upload, RANKS.index(name), parties) for client, upload in held.items()}
    return Standing(TASK, 3, state, more.pop("epoch", 0), 0.0, parts, **more)


@given(UPLOADS, UPLOADS, UPLOADS)
def test_in_is_who_has_the_same_upload_everywhere(one, two, three):
    said = {name: standing(held, name=name, parties=3) for name, held in zip(RANKS, (one, two, three), strict=True)}
    decision = decide(said, minimum=0)
    assert decision.members == tuple(sorted(c for c in one if two.get(c) == three.get(c) == one[c]))
    assert set(decision.refused) == {*one, *two, *three} - set(decision.members)


def test_why_a_client_is_not_in():
    said = {
        "x": standing("abcd"),
        "y": standing({"a": "a", "b": "b", "d": "a"}, name="y", refused={"d": "its budget"}),
    }
    refused = dict(decide(said, 0).refused)
    assert refused == {"b": "its parts belong to different uploads", "c": agreement.OTHERS_LACK, "d": "its budget"}


def test_slots_are_given_in_order():
    decision = decide({"x": standing("cab"), "y": standing("abc", name="y")}, 1, slots=2)
    assert decision.members == ("a", "b") and list(decision.refused) == ["c"]


def test_below_the_minimum_nothing_is_computed():
    said = {"x": standing("abc"), "y": standing("ab", name="y")}
    assert decide(said, 2).state == AGREED
    decision = decide(said, 3)
    assert (decision.state, decision.members) == (REFUSED, ()) and "minimum of 3" in decision.reason


def test_what_is_fixed_stays_in_a_new_epoch():
    before = standing("ab", AGREED, epoch=1, members=["a", "b"], refused={"c": agreement.OTHERS_LACK})
    decision = decide({"x": before, "y": standing("abc", name="y")}, 2)
    assert (decision.epoch, decision.members, list(decision.refused)) == (2, ("a", "b"), ["c"])


@pytest.mark.parametrize(
    "said, named",
    [
        ({"x": standing("ab", AGREED, members=["a"]), "y": standing("ab", AGREED, name="y", members=["a", "b"])}, "y"),
        ({"x": standing("ab", AGREED, members=["a", "b"]), "y": standing("a", name="y")}, "y"),
        (
            {
                "x": standing("ab", AGREED, members=["a", "b"]),
                "y": standing("ab", name="y", refused={"b": "its budget"}),
            },
            "x",
        ),
    ],
    ids=["two sets", "uploads lost", "one that another refuses"],
)
def test_a_second_set_of_clients_is_refused_by_name(said, named):
    with pytest.raises(Mismatch) as caught:
        decide(said, 1)
    assert caught.value.party == named


def test_a_result_is_released_when_all_have_it():
    done, theirs = (standing("ab", COMPUTED, name, epoch=2, members=["a", "b"]) for name in "xy")
    assert decide({"x": done, "y": msgspec.structs.replace(theirs, state=RELEASED)}, 2).state == RELEASED
    again = decide({"x": done, "y": msgspec.structs.replace(theirs, state=AGREED)}, 2)
    assert (again.state, again.epoch) == (AGREED, 3)
    other = decide({"x": done, "y": msgspec.structs.replace(theirs, epoch=1)}, 2)
    assert (other.state, other.epoch) == (AGREED, 3)


def test_who_refused_a_round_is_followed():
    said = {"x": standing("ab"), "y": standing("ab", REFUSED, name="y", reason="too few")}
    assert (decide(said, 1).state, decide(said, 1).reason) == (REFUSED, "too few")


def talk(**steps):
    """What each aggregator's step returned or raised, each with its own end of a channel."""
    ends = local_channels(tuple(steps), timeout_s=60)
    return run_together({name: lambda name=name: steps[name](ends[name]) for name in steps})


def test_standings_are_told_in_one_order():
    ends = talk(
        **{
            name: lambda c, name=name: list(agreement.exchange_standings(c, standing(name=name), "zxy"))
            for name in RANKS
        }
    )
    assert all(names == ["z", "x", "y"] for names in ends.values())


def test_another_task_is_refused():
    other = msgspec.structs.replace(standing("a"), task=b"1" * 32)
    ends = talk(
        x=lambda c: agreement.exchange_standings(c, standing("a"), "xy"),
        y=lambda c: agreement.exchange_standings(c, other, "xy"),
    )
    assert isinstance(ends["x"], Mismatch) and ends["x"].party == "y"


def test_who_tells_others_different_things_is_noticed():
    """y shows x one list and z another; x and z then decide otherwise, and say so."""
    own = lambda name, held="abc": standing(held, name=name, parties=3)

    def honest(channel):
        said = agreement.exchange_standings(channel, own(channel.me), RANKS)
        agreement.check_same(channel, decide(said, 1))

    def liar(channel):
        texts = {"x": msgspec.msgpack.encode(own("y")), "z": msgspec.msgpack.encode(own("y", "ab"))}
        sizes = {peer: [len(text).to_bytes(8, "little")] for peer, text in texts.items()}
        told = channel.exchange(STANDING_SIZE, sizes, dict.fromkeys(texts, 8))
        counts = {peer: int.from_bytes(part.numpy().tobytes(), "little") for peer, part in told.items()}
        channel.exchange(STANDING, {peer: [text] for peer, text in texts.items()}, counts)
        agreement.check_same(channel, decide({name: own(name) for name in RANKS}, 1))

    ends = talk(x=honest, y=liar, z=honest)
    assert isinstance(ends["z"], PeerError) and any(isinstance(end, Mismatch) for end in ends.values())


def test_digests_that_are_none_are_refused_by_name():
    bad = msgspec.structs.replace(standing(), held={"a": Receipt("", "zz", "0" * 64, "")})
    ends = talk(
        x=lambda c: agreement.exchange_standings(c, standing(), "xy"),
        y=lambda c: agreement.exchange_standings(c, bad, "xy"),
    )
    assert isinstance(ends["x"], BadFrame) and ends["x"].party == "y"


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_a_standing_or_a_named_error(data):
    try:
        assert isinstance(agreement.read(data, Standing, "y"), Standing)
    except BadFrame as error:
        assert error.party == "y"


def test_a_decision_is_all_that_is_compared():
    decision = decide({"x": standing("ab"), "y": standing("ab", name="y")}, 1)
    changes = {"number": 4, "state": REFUSED, "epoch": 9, "members": ("a",), "refused": {"z": "w"}, "reason": "r"}
    digests = {replace(decision, **{name: value}).digest() for name, value in changes.items()}
    assert len(digests | {decision.digest()}) == len(changes) + 1


@pytest.mark.parametrize(
    "members, held",
    [(["a", "a"], "ab"), (["b", "a"], "ab"), (["a", "b"], {"a": "a", "b": "other"}), (["a", "b", "c"], "abc")],
    ids=["one twice", "in another order", "parts of two uploads", "more than slots"],
)
def test_clients_that_cannot_be_in_are_not_let_in_by_who_says_so(members, held):
    """One aggregator that says it was agreed on: with a client twice, it would get what the minimum is there to prevent."""
    said = {"x": standing("abc"), "y": standing(held, AGREED, name="y", members=members)}
    with pytest.raises(Mismatch) as caught:
        decide(said, 2, slots=2)
    assert caught.value.party == "y"


@pytest.mark.parametrize("deadline", [1e18, float("nan"), -1.0])
def test_who_puts_off_the_end_of_a_round_is_named(deadline):
    """All would meet again and again, without an end and without an error."""
    other = msgspec.structs.replace(standing("a", name="y"), deadline=deadline)
    ends = talk(
        x=lambda c: agreement.exchange_standings(c, standing("a"), "xy"),
        y=lambda c: agreement.exchange_standings(c, other, "xy"),
    )
    assert isinstance(ends["x"], BadFrame) and ends["x"].party == "y"
