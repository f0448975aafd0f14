"""Alignment with a dealer: right for every pair of sets, no row lost, costs as declared, liars named."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tampered import COMMITMENT, Change, Tampered

from protocols import kernels
from protocols.channel import HEADER_BYTES, local_channels
from protocols.channel.testing import run_together
from protocols.errors import BadFrame, InputError, Mismatch, PeerAborted, PeerError, ProtocolError
from protocols.names import DEALER
from protocols.prg import Stream, insecure_test_key
from protocols.psi import cuckoo, dealing, evaluating
from protocols.psi.aligning import align
from protocols.psi.dealing import PeerLine, Request, parse_request
from protocols.psi.sets import own_set
from protocols.psi.terms import Terms
from protocols.psi.with_dealer import align_with_dealer, asker_of, cost_with_dealer, dealt_bytes

TWO = ("bank", "shop")
LEARNS = ("all", "bank", "shop")


def ids(*numbers: int) -> list[bytes]:
    return [f"person {number}".encode() for number in numbers]


class Run:
    """All parties and the dealer of one alignment in threads; `stats` has what each counted."""

    def __init__(self) -> None:
        self.stats: dict[str, Any] = {}
        self.dealt: dict[str, Any] = {}

    def results(
        self,
        sets: Mapping[str, Sequence[bytes]],
        terms: Terms | Mapping[str, Terms],
        change: Mapping[str, Change] | None = None,
        serve: Callable[[dict], Any] = dealing.serve,
        timeout_s: float = 10.0,
    ) -> dict[str, Any]:
        """What each party and the dealer got, or the error that ended it."""
        channels: dict[str, Any] = dict(local_channels(list(sets), timeout_s))
        ends = {name: local_channels([name, DEALER], timeout_s) for name in sets}
        for name, tamper in (change or {}).items():
            channels[name] = Tampered(channels[name], tamper)

        def task(name: str) -> Any:
            own_terms = terms if isinstance(terms, Terms) else terms[name]
            line = PeerLine(ends[name][name], DEALER)
            return align_with_dealer(channels[name], line, own_set(sets[name]), own_terms, COMMITMENT)

        lines = {name: PeerLine(ends[name][DEALER], name) for name in sets}
        tasks: dict[str, Callable[[], Any]] = {name: lambda name=name: task(name) for name in sets}
        out = run_together({**tasks, DEALER: lambda: serve(lines)}, 30.0)
        self.stats = {name: channel.stats for name, channel in channels.items()}
        self.dealt = {name: ends[name][DEALER].stats for name in sets}
        return out

    def __call__(self, sets: Mapping[str, Sequence[bytes]], terms: Terms) -> dict[str, Any]:
        """Each party's outcome, where all went well."""
        found = self.results(sets, terms)
        for result in found.values():
            if isinstance(result, BaseException):
                raise result
        return {name: found[name].outcome for name in sets}


def check(sets: Mapping[str, Sequence[bytes]], terms: Terms, made: Mapping[str, Any]) -> None:
    """Compares with a plain join."""
    common = set(sets["bank"]) & set(sets["shop"])
    if terms.learns == "all":
        rows = {name: [sets[name][at] for at in made[name].positions] for name in TWO}
        assert rows["bank"] == rows["shop"] and len(rows["bank"]) == len(common) and set(rows["bank"]) == common
        assert all(made[name].rows == made[name].common == len(common) for name in TWO)
        return
    learner, other = terms.learns, ({*TWO} - {terms.learns}).pop()
    mine, theirs = made[learner], made[other]
    assert mine.common == len(common) and mine.rows == theirs.rows == len(mine.positions)
    kept = [item for item in sets[learner] if terms.unmatched == "keep" or item in common]
    assert [sets[learner][at] for at in mine.positions] == kept
    linked = [None if at < 0 else sets[other][theirs.order[at]] for at in mine.links[other]]
    assert linked == [item if item in common else None for item in kept]
    assert sorted(theirs.order) == list(range(len(sets[other])))
    assert theirs.positions is None and not theirs.links
    assert theirs.common == (len(common) if terms.unmatched == "drop" else None)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


some_ids = st.lists(st.integers(0, 60), min_size=1, max_size=40, unique=True).map(lambda numbers: ids(*numbers))


@pytest.mark.parametrize("learns", LEARNS)
@settings(deadline=None, max_examples=25)
@given(bank=some_ids, shop=some_ids, unmatched=st.sampled_from(["keep", "drop"]))
def test_it_is_a_join(run, learns, bank, shop, unmatched):
    sets, terms = {"bank": bank, "shop": shop}, Terms(learns, unmatched=unmatched)
    check(sets, terms, run(sets, terms))


def lost_rows(run: Run, first: int, trials: int) -> None:
    """Small sets, alternately of all sizes; raises AssertionError where a row is lost or too many are found."""
    for trial in range(first, first + trials):
        draw = random.Random(trial)
        sizes = {name: draw.choice((1, 2, 3, 5, 8, 13, 30, 64, 100)) for name in TWO}
        pool = ids(*draw.sample(range(10_000), draw.randint(max(sizes.values()), sum(sizes.values()))))
        sets = {name: draw.sample(pool, size) for name, size in sizes.items()}
        terms = Terms(LEARNS[trial % 3])
        check(sets, terms, run(sets, terms))


def test_no_row_is_lost(run):
    lost_rows(run, 0, 300)


@pytest.mark.slow
def test_no_row_is_lost_in_ten_thousand_runs():
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(lost_rows, Run(), 1000 * part, 1000) for part in range(10)]:
            done.result()


def test_what_both_have_in_full_and_not_at_all(run):
    same = ids(*range(500))
    for other in (same[::-1], ids(*range(500, 900))):
        for learns in LEARNS:
            sets = {"bank": same, "shop": other}
            check(sets, Terms(learns), run(sets, Terms(learns)))


@pytest.mark.parametrize("variant", kernels.info()["available"])
def test_every_build_and_the_twins_find_the_same(run, variant):
    sets = {"bank": ids(*range(70)), "shop": ids(*range(50, 110))}
    with kernels.use(variant):
        check(sets, Terms("all"), run(sets, Terms("all")))


def test_lists_travel_in_pieces(run, monkeypatch):
    monkeypatch.setattr(dealing, "PIECE", 50)
    monkeypatch.setattr(evaluating, "_PIECE", 7)
    sets = {"bank": ids(*range(40)), "shop": ids(*range(20, 70))}
    check(sets, Terms("shop"), run(sets, Terms("shop")))
    messages = 1 + -(-cuckoo.bins_for(50) // 50)
    assert run.dealt["bank"].links["bank"].sent_messages == messages


def test_another_attempt_is_told(run, monkeypatch):
    """Where the first hashes do not fit, the other party takes those that do."""
    real = cuckoo.place_in_bins
    seen = []

    def only_later(choices, bins):
        seen.append(bins)
        return None if len(seen) < 3 else real(choices, bins)

    monkeypatch.setattr(cuckoo, "place_in_bins", only_later)
    sets = {"bank": ids(*range(30)), "shop": ids(*range(10, 50))}
    check(sets, Terms("all"), run(sets, Terms("all")))
    assert len(seen) == 3


@pytest.mark.parametrize("learns", LEARNS)
@pytest.mark.parametrize("unmatched", ["keep", "drop"])
def test_costs_are_those_declared(run, learns, unmatched):
    sets, terms = {"bank": ids(*range(30)), "shop": ids(*range(20, 70))}, Terms(learns, unmatched=unmatched)
    made = run(sets, terms)
    rows = {name: len(items) for name, items in sets.items()}
    for name in TWO:
        said = cost_with_dealer(rows, terms, name, made[name].rows)
        assert (said.rounds, said.sent_bytes) == (run.stats[name].rounds, run.stats[name].sent_bytes)
    (answerer,) = {*TWO} - {asker_of(rows, terms)}
    key = HEADER_BYTES + 32
    assert run.dealt[answerer].sent_bytes == dealt_bytes(rows, terms) + key
    assert run.dealt[asker_of(rows, terms)].sent_bytes == key


def test_both_learn_and_the_smaller_set_is_put_into_bins():
    assert asker_of({"bank": 5, "shop": 4}, Terms("all")) == "shop"
    assert asker_of({"bank": 4, "shop": 4}, Terms("all")) == "bank"
    assert asker_of({"bank": 5, "shop": 4}, Terms("bank")) == "bank"


# ---- what is seen
def words(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8).reshape(-1, 16)


def seen_by_the_answerer(run: Run, own: Sequence[bytes], sessions: int) -> np.ndarray:
    """What the asker sends, in several sessions, as bytes [sessions, bins, 16]."""
    found: list[bytes] = []

    def watch(step: int, turn: int, message: bytes, peer: str) -> bytes:
        if step == evaluating.SHIFTS:
            found.append(message[evaluating.ATTEMPT_BYTES :])
        return message

    for _ in range(sessions):
        out = run.results({"bank": own, "shop": ids(1)}, Terms("bank"), {"bank": watch})
        assert not any(isinstance(result, BaseException) for result in out.values())
    return np.stack([words(data) for data in found])


def test_what_is_sent_for_ids_looks_random_whatever_they_are(run):
    for own in (ids(*range(100)), ids(*range(50, 52))):
        sent = seen_by_the_answerer(run, own, 6)
        bits = np.unpackbits(sent, axis=2, bitorder="little")[:, :, :127]
        count = bits.shape[0] * bits.shape[1]
        assert abs(bits.mean((0, 1)) - 0.5).max() < 6 * 0.5 / count**0.5
        assert not np.unpackbits(sent, axis=2, bitorder="little")[:, :, 127].any(), "numbers are below 2^127"
        assert len(np.unique(sent.reshape(-1, 16), axis=0)) == count


def test_tags_of_other_ids_look_random_and_differ_from_run_to_run(run):
    found: list[bytes] = []

    def watch(step: int, turn: int, message: bytes, peer: str) -> bytes:
        if step == evaluating.TAGS:
            found.append(message)
        return message

    for _ in range(4):
        run.results({"bank": ids(*range(3)), "shop": ids(*range(100, 180))}, Terms("bank"), {"shop": watch})
    tags = np.frombuffer(b"".join(found), np.uint8).reshape(-1, 12)
    bits = np.unpackbits(tags, axis=1)
    assert abs(bits.mean(0) - 0.5).max() < 6 * 0.5 / len(bits) ** 0.5
    assert len(np.unique(tags, axis=0)) == 4 * 3 * 80


def test_a_line_is_used_once():
    """The dealer's numbers follow from keys that are new in each alignment, and no two pieces have the same."""
    stream = Stream(insecure_test_key(1, "asker"))
    drawn = [dealing.drawn(stream, piece, 50, index).tobytes() for piece in (0, 1) for index in (0, 1)]
    assert len(set(drawn)) == 4


# ---- bad input, and parties that lie
def test_terms_that_need_curves_are_refused():
    channel = local_channels(["a", "b", "c"])["a"]
    with pytest.raises(InputError, match="between two parties, not a, b, c; one party at least learns"):
        align_with_dealer(channel, PeerLine(channel, "b"), own_set(ids(1)), Terms("nobody"), COMMITMENT)
    two = local_channels(["a", "b"])["a"]
    with pytest.raises(InputError, match="learns='count' says that none does"):
        align_with_dealer(two, PeerLine(two, "b"), own_set(ids(1)), Terms("count"), COMMITMENT)


def test_parties_that_want_different_things(run):
    out = run.results({"bank": ids(1), "shop": ids(1)}, {"bank": Terms("all"), "shop": Terms("bank")})
    assert all(isinstance(out[name], (Mismatch, PeerAborted)) for name in TWO)
    assert any("different learns" in str(out[name]) for name in TWO)
    assert isinstance(out[DEALER], PeerAborted), "the dealer is told"


def test_a_party_that_aligns_on_curves_is_told(run):
    channels = local_channels(TWO, 10.0)
    line = local_channels(["bank", DEALER], 10.0)["bank"]
    own, terms = own_set(ids(1)), Terms("all")
    out = run_together(
        {
            "bank": lambda: align_with_dealer(channels["bank"], PeerLine(line, DEALER), own, terms, COMMITMENT),
            "shop": lambda: align(channels["shop"], own, terms, COMMITMENT, 0),
        }
    )
    assert any("answers to whether there is a dealer" in str(result) for result in out.values())


def changing(at: int, change: Callable[[bytearray], Any]) -> Change:
    def tamper(step: int, turn: int, message: bytes, peer: str) -> bytes:
        if step != at:
            return message
        data = bytearray(message)
        change(data)
        return bytes(data)

    return tamper


def _set(data: bytearray, start: int, value: bytes) -> None:
    data[start : start + len(value)] = value


LIES = {
    "tags twice": ("shop", evaluating.TAGS, lambda data: _set(data, 36, bytes(data[:36])), "all", None),
    "an attempt that is none": ("bank", evaluating.SHIFTS, lambda data: _set(data, 0, b"\xff" * 8), "all", "attempt"),
    "too many joint rows": ("bank", 3, lambda data: _set(data, 0, b"\xff"), "all", "255 joint rows"),
    "a row less than there are": ("bank", 3, lambda data: _set(data, 0, b"\x01"), "bank", "1 joint rows"),
    "places out of order": ("bank", 4, lambda data: data.reverse(), "all", "none, or not in order"),
    "a place that is none": ("bank", 4, lambda data: _set(data, 0, b"\xff\xff\xff\xff"), "all", "none, or not"),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_named_errors(run, name):
    liar, step, change, learns, says = LIES[name]
    sets = {"bank": ids(*range(10)), "shop": ids(*range(5, 20))}
    out = run.results(sets, Terms(learns), {liar: changing(step, change)}, timeout_s=3.0)
    other = ({*TWO} - {liar}).pop()
    if says:
        assert isinstance(out[other], BadFrame) and out[other].party == liar and says in str(out[other])
    assert all(not isinstance(result, BaseException) or isinstance(result, ProtocolError) for result in out.values())


def test_rows_that_are_not_the_same_are_found_out(run):
    """A place for another one: the ids of the joint rows are compared in the end."""
    sets = {"bank": ids(*range(10)), "shop": ids(*range(5, 60))}

    def another(data: bytearray) -> None:
        places = np.frombuffer(bytes(data), "<u4").tolist()
        free = next(at for at in range(55) if at not in places)
        data[:] = np.array(sorted([free, *places[1:]]), "<u4").tobytes()

    out = run.results(sets, Terms("all"), {"bank": changing(4, another)}, timeout_s=3.0)
    assert any(isinstance(out[name], Mismatch) for name in TWO)
    assert all(isinstance(out[name], ProtocolError) for name in TWO)


def test_a_dealer_that_is_gone_is_named(run):
    def leave(lines):
        for line in lines.values():
            line.close()

    out = run.results({"bank": ids(1), "shop": ids(1)}, Terms("all"), serve=leave, timeout_s=3.0)
    errors = [out[name] for name in TWO]
    assert all(isinstance(error, PeerError) for error in errors)
    assert any(error.party == DEALER for error in errors)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"alignment {", "cannot be read"),
        (b'alignment {"asker":"a","answerer":"b","bins":2,"session":"","version":1}', "about 2 bins"),
        (b'alignment {"asker":"a","answerer":"b","bins":99999999999,"session":"","version":1}', "about 99999999999"),
        (b'alignment {"asker":"a","answerer":"b","bins":500,"session":"","version":2}', "another version"),
        (b'alignment {"asker":"a","answerer":"b","session":"","version":1}', "cannot be read"),
    ],
)
def test_requests_are_checked(text, says):
    assert dealing.is_request(text)
    with pytest.raises(ProtocolError, match=says):
        parse_request(text)


def test_a_request_is_read_back():
    request = Request("bank", "shop", 500, "00" * 32)
    assert parse_request(request.text()) == request and not dealing.is_request(b"secure-program 2 {}")


def test_the_dealer_serves_who_is_named(run):
    request = Request("bank", "other", 500, "")
    with pytest.raises(ProtocolError, match="between 'bank' and 'other', not bank and shop"):
        dealing.deal({"bank": None, "shop": None}, {"bank": request.text(), "shop": request.text()})
    with pytest.raises(Mismatch, match="ask for different alignments"):
        dealing.deal({}, {"bank": request.text(), "shop": Request("bank", "shop", 500, "").text()})


@pytest.mark.parametrize("same", [0, 3])
def test_tags_that_begin_alike_are_told_apart(same):
    """`same` of the list's tags share their first eight bytes, by which it is sorted."""
    rng = np.random.default_rng(5)
    listed = rng.integers(0, 256, (9, 12), dtype=np.uint8)
    listed[:same, :8] = 7
    wanted = np.concatenate([listed[[2, 8, 0]], rng.integers(0, 256, (2, 12), dtype=np.uint8)])
    assert evaluating._places(listed, wanted).tolist() == [2, 8, 0, -1, -1]


def test_tags_are_long_enough():
    sizes = [evaluating.tag_size(a, b) for a, b in ((1, 1), (1_000_000, 1_000_000), (1 << 30, 1 << 30))]
    assert sizes == [12, 12, 16]
