"""Preprocessing made beforehand: used once, by the right party, for one program and its weights, after crashes too."""

from __future__ import annotations

import dataclasses
import json
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import securemodel
from protocols.errors import (
    ConfigError,
    InputError,
    Mismatch,
    PeerAborted,
    PreprocessingError,
    PreprocessingReused,
    PreprocessingUsedUp,
)
from securemodel.engines import clear
from securemodel.engines.masked import opening
from securemodel.engines.masked import store as store_module
from securemodel.engines.masked.party import OnlineParty
from securemodel.engines.masked.rounds import Together
from securemodel.engines.masked.store import Store, StoreSource, prepare
from securemodel.program import Program
from securemodel.sessions.session import Session

RUNS = 6
pytestmark = pytest.mark.usefixtures("no_threads_left")


@pytest.fixture(scope="module")
def master(program: Program, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("stores") / "master"
    prepare(program, RUNS, directory)
    return directory


@pytest.fixture
def stores(master: Path, program: Program, tmp_path: Path) -> dict[str, Path]:
    """A fresh copy of one store (which is what nobody may do outside tests)."""
    shutil.copytree(master, tmp_path / "store")
    return {name: tmp_path / "store" / name for name in program.parties}


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(party, epoch) of each run that was begun."""
    log: list[tuple[str, int]] = []
    run = OnlineParty.run

    def logged(self, epoch: int, *rest: Any):
        log.append((self.me, epoch))
        return run(self, epoch, *rest)

    monkeypatch.setattr(OnlineParty, "run", logged)
    return log


@pytest.fixture
def world(worlds, program: Program):
    return worlds(program, dealer=False)


def both(count: int, x: torch.Tensor) -> dict[str, Callable[[Session], list]]:
    return {
        "bank": lambda session: [session.run(None) for _ in range(count)],
        "hospital": lambda session: [session.run(x) for _ in range(count)],
    }


def next_runs(stores: dict[str, Path]) -> list[int]:
    return [json.loads((path / "cursor.json").read_text())["next"] for path in stores.values()]


def test_run_by_run_until_it_is_used_up(world, stores, used, model, tools) -> None:
    x = tools.rows(2)
    for _ in range(RUNS // 2):
        results = world.run(both(2, x), store=stores)
        for y in results["hospital"]:
            torch.testing.assert_close(y, model(x), atol=2**-10, rtol=0)
    for name in stores:
        assert [epoch for party, epoch in used if party == name] == list(range(1, RUNS + 1))
    assert sorted(p.name for p in stores["hospital"].glob("*.bin")) == ["load.bin"]
    results = world.run(both(1, x), store=stores)
    for error in results.values():
        assert type(error) is PreprocessingUsedUp
        for part in (f"all {RUNS} prepared runs are used up", "where:", "why:", "securemodel prepare"):
            assert part in str(error)


def test_used_up_in_the_middle_of_a_batch(world, stores, model, tools) -> None:
    results = world.run(both(1, tools.rows(2 * RUNS + 1)), store=stores)
    assert all(type(error) is PreprocessingUsedUp for error in results.values())


def test_the_same_weights_may_be_loaded_again(world, stores, program, model, tools) -> None:
    x = tools.rows(2)

    def twice(session, mine) -> list:
        out = [session.run(mine)]
        session.load(program, model if session.me == "bank" else None)
        return [*out, session.run(mine)]

    results = world.run({"bank": lambda s: twice(s, None), "hospital": lambda s: twice(s, x)}, store=stores)
    for y in results["hospital"]:
        torch.testing.assert_close(y, model(x), atol=2**-10, rtol=0)
    assert next_runs(stores) == [3, 3]


@pytest.mark.parametrize("when", ["same session", "next session"])
def test_other_weights_are_refused(world, stores, program, model, tools, when: str) -> None:
    x, other = tools.rows(2), tools.make_model(2)

    def bank(session) -> None:
        session.run(None)
        session.load(program, other)

    def bank_later(session) -> None:
        session.load(program, other)

    if when == "next session":
        world.run(both(1, x), store=stores)
        results = world.run({"bank": bank_later, "hospital": lambda s: s.run(x)}, store=stores)
    else:
        hospital = lambda s: (s.run(x), s.load(program, None))
        results = world.run({"bank": bank, "hospital": hospital}, store=stores)
    assert type(results["bank"]) is PreprocessingReused and "other weights" in str(results["bank"])
    assert type(results["hospital"]) is PeerAborted
    assert str(stores["bank"]) not in str(results["hospital"])  # not even where the peer keeps its files


class Scaled(torch.nn.Module):
    """A secret matrix times a public number: its owner gives the product, under a mask of the load."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.secret = torch.nn.Parameter(torch.arange(12.0).view(3, 4) / 8)
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ (self.secret * self.scale).t())


class SumScaled(Scaled):
    """The same of the secrets of two: what is masked is computed together of what they give, and of the number."""

    def __init__(self, scale: float) -> None:
        super().__init__(scale)
        self.more = torch.nn.Parameter(torch.ones(3, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ ((self.secret + self.more) * self.scale).t())


OWNED = {Scaled: {"": "bank", "scale": "public"}, SumScaled: {"": "bank", "more": "hospital", "scale": "public"}}


@pytest.mark.parametrize("kind", [Scaled, SumScaled], ids=["of one", "of two"])
def test_other_public_weights_under_the_masks_of_secret_ones_are_refused(
    worlds, tools, tmp_path: Path, kind: type[Scaled]
) -> None:
    """The difference of what two such loads say is the secret times that of the public numbers."""
    x, results = tools.rows(2), []
    program = tools.make_program(kind(1.0).eval(), weights=OWNED[kind])
    stores = prepare(program, 3, tmp_path / "stores")
    for scale in (1.0, 3.0):
        other = kind(scale).eval()

        def once(session: Session, mine: torch.Tensor | None, other: torch.nn.Module = other) -> torch.Tensor | None:
            session.load(program, other)
            return session.run(mine)

        tasks = {"bank": lambda s, once=once: once(s, None), "hospital": lambda s, once=once: once(s, x)}
        results.append(worlds(program, dealer=False).run(tasks, store=stores))
    torch.testing.assert_close(results[0]["hospital"], kind(1.0)(x), atol=2**-8, rtol=0)
    refused = results[1].values()
    assert all(isinstance(error, (PreprocessingReused, PeerAborted)) for error in refused), results[1]
    assert any(isinstance(error, PreprocessingReused) and "other weights" in str(error) for error in refused)


def test_no_mask_of_a_store_hides_two_values_over_restarts(world, stores, tools, monkeypatch) -> None:
    """Masks of weights are used in each session, and hide the same weights."""
    hidden: dict[bytes, set[bytes]] = {}
    part_of, together = opening.part_of, Together.hidden

    def note(shares: Any, lams: Any) -> None:
        for share, lam in zip(shares, lams, strict=True):
            if lam is not None:
                hidden.setdefault(lam.numpy().tobytes(), set()).add(b"" if share is None else share.numpy().tobytes())

    def noted(node: Any, share: Any, lam: Any) -> Any:
        note([share], [lam])
        return part_of(node, share, lam)

    def noted_together(self: Any, env: Any, lams: Any) -> Any:
        made = together(self, env, lams)
        note(made[0], lams)
        return made

    monkeypatch.setattr(opening, "part_of", noted)
    monkeypatch.setattr(Together, "hidden", noted_together)
    sizes = []
    for seed in range(3):
        x = tools.rows(2, seed)
        results = world.run(both(2, x), store=stores)
        assert not any(isinstance(result, BaseException) for result in results.values()), results
        sizes.append(len(hidden))
    assert all(len(values) == 1 for values in hidden.values())
    assert sizes[0] > sizes[1] - sizes[0] == sizes[2] - sizes[1] > 10  # fresh ones for runs, and none for loads


class OfBoth(Scaled):
    """A public matrix times a secret sum."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu((x + y) @ (self.secret * self.scale).t())


def test_where_all_weights_are_public_a_store_takes_others(worlds, tools, tmp_path: Path) -> None:
    """No mask hides anything of them."""
    x, shapes = tools.rows(2), (torch.zeros(2, 4), torch.zeros(2, 4))
    owners = {"weights": "public", "inputs": ["bank", "hospital"], "outputs": "hospital"}
    program = securemodel.compile(OfBoth(1.0).eval(), shapes, **owners)
    stores = prepare(program, 3, tmp_path / "stores")
    for scale in (1.0, 3.0):
        other = OfBoth(scale).eval()

        def once(session: Session, mine: tuple[Any, Any], other: torch.nn.Module = other) -> torch.Tensor | None:
            session.load(program, other)
            return session.run(*mine)

        tasks = {"bank": lambda s, once=once: once(s, (x, None)), "hospital": lambda s, once=once: once(s, (None, x))}
        made = worlds(program, dealer=False).run(tasks, store=stores)
        torch.testing.assert_close(made["hospital"], other(x, x), atol=2**-8, rtol=0)


def test_weights_that_come_out_otherwise_are_other_weights(world, stores, model, tools, monkeypatch) -> None:
    """As on another machine, which rounds otherwise what a party computes of its weights before it gives them."""
    x = tools.rows(2)
    assert not any(isinstance(result, BaseException) for result in world.run(both(1, x), store=stores).values())
    encode = clear.encode
    monkeypatch.setattr(clear, "encode", lambda *args: encode(*args) + 1)
    results = world.run(both(1, x), store=stores)
    assert type(results["bank"]) is PreprocessingReused and type(results["hospital"]) is PeerAborted


class Crash(BaseException):
    """What no party can handle."""


def crash_in(monkeypatch: pytest.MonkeyPatch, where: type, name: str, at: int, who: str) -> None:
    """The `at`-th call of a method at one party ends it."""
    method, calls = getattr(where, name), []

    def crashing(self, *rest: Any, **named: Any) -> Any:
        path = getattr(self, "path", None) or getattr(getattr(self, "_store", None), "path", None)
        me = getattr(self, "me", None) or path.name
        if me == who:
            calls.append(1)
            if len(calls) == at:
                raise Crash
        return method(self, *rest, **named)

    monkeypatch.setattr(where, name, crashing)


CRASHES = [
    (Store, "consume", 2, "bank"),
    (Store, "consume", 2, "hospital"),
    (Store, "_save", 3, "bank"),
    (Store, "_save", 3, "hospital"),
    (StoreSource, "begin", 3, "hospital"),
    (StoreSource, "dealt", 3, "hospital"),
    (OnlineParty, "run", 2, "bank"),
    (OnlineParty, "_incoming", 4, "bank"),
    (OnlineParty, "_incoming", 6, "hospital"),
    (OnlineParty, "_opened", 3, "hospital"),
]


@pytest.mark.parametrize("crash", range(len(CRASHES)))
def test_no_run_is_used_twice_after_a_crash(world, stores, used, model, tools, monkeypatch, crash: int) -> None:
    x = tools.rows(2)
    with monkeypatch.context() as patch:
        crash_in(patch, *CRASHES[crash])
        results = world.run(both(3, x), store=stores)
        assert any(isinstance(error, Crash) for error in results.values())
        assert all(isinstance(error, BaseException) for error in results.values())
    before = set(used)
    assert len(before) == len(used)
    results = world.run(both(2, x), store=stores)
    for y in results["hospital"]:
        torch.testing.assert_close(y, model(x), atol=2**-10, rtol=0)
    after = used[len(before) :]
    assert len(set(used)) == len(used) and len(after) == 4
    assert min(epoch for _, epoch in after) > max((epoch for _, epoch in before), default=0)
    assert len(set(next_runs(stores))) == 1
    left = next_runs(stores)[0]
    assert sorted(p.name for p in stores["hospital"].glob("run-*")) == [f"run-{n}.bin" for n in range(left, RUNS + 1)]


@pytest.mark.parametrize("ahead_of", ["bank", "hospital"])
def test_parties_with_different_cursors_agree_on_the_larger(world, stores, used, model, tools, ahead_of: str) -> None:
    cursor = stores[ahead_of] / "cursor.json"
    cursor.write_text(json.dumps({**json.loads(cursor.read_text()), "next": 4}))
    x = tools.rows(2)
    torch.testing.assert_close(world.run(both(1, x), store=stores)["hospital"][0], model(x), atol=2**-10, rtol=0)
    assert sorted(used) == [("bank", 4), ("hospital", 4)] and next_runs(stores) == [5, 5]
    assert sorted(p.name for p in stores["hospital"].glob("run-*")) == ["run-5.bin", "run-6.bin"]


def say_next(stores: dict[str, Path], who: str, run: int) -> None:
    """This party will say that it used up all runs before that one."""
    cursor = stores[who] / "cursor.json"
    cursor.write_text(json.dumps({**json.loads(cursor.read_text()), "next": run}))


@pytest.mark.parametrize("then", ["nothing", "load"])
def test_a_handshake_gives_no_run_up(world, stores, program, then: str) -> None:
    """A peer that says a later run is next, and then runs none, costs the other nothing."""
    say_next(stores, "bank", 5)
    task = {"nothing": lambda s: None, "load": lambda s: s.load(program, program.model if s.me == "bank" else None)}[
        then
    ]
    assert world.run({"bank": task, "hospital": task}, store=stores) == {"bank": None, "hospital": None}
    assert next_runs({"hospital": stores["hospital"]}) == [1]
    assert len(list(stores["hospital"].glob("run-*.bin"))) == RUNS
    say_next(stores, "bank", 1)
    assert len(world.run(both(1, torch.zeros(2, 4)), store=stores)["hospital"]) == 1
    assert next_runs(stores) == [2, 2]


def test_a_long_jump_is_refused_with_both_numbers(world, stores, used) -> None:
    say_next(stores, "bank", 5)
    world.config = dataclasses.replace(world.config, skipped_runs=3)
    results = world.run(both(1, torch.zeros(2, 4)), store=stores)
    error = results["hospital"]
    assert type(error) is Mismatch and error.party == "bank"
    for part in ("run 5", "run 1", "give up 4", "skipped_runs = 4", "at most 3"):
        assert part in str(error)
    assert isinstance(results["bank"], PeerAborted) and not used
    assert len(list(stores["hospital"].glob("run-*.bin"))) == RUNS
    world.config = dataclasses.replace(world.config, skipped_runs=4)
    assert len(world.run(both(1, torch.zeros(2, 4)), store=stores)["hospital"]) == 1


def test_a_cursor_set_back_does_not_bring_a_run_back(world, stores, used, tools) -> None:
    world.run(both(2, tools.rows(2)), store=stores)
    for path in stores.values():
        (path / "cursor.json").write_text(json.dumps({"next": 1, "weights": None}))
    results = world.run(both(1, tools.rows(2)), store=stores)
    assert type(results["hospital"]) is PreprocessingReused and "run 1 is gone" in str(results["hospital"])
    assert isinstance(results["bank"], PeerAborted)


def test_one_session_at_a_time(world, stores, program, tools) -> None:
    held = Store.open(stores["bank"], program, "bank")
    with pytest.raises(PreprocessingError, match="in use by another session"):
        world.connect("bank", store=stores["bank"])
    held.close()
    assert len(world.run(both(1, tools.rows(2)), store=stores)["hospital"]) == 1
    with pytest.raises(PreprocessingError):
        held.consume(1)


def test_a_failed_meeting_frees_the_store(worlds, stores, program) -> None:
    alone = worlds(program, dealer=False, connect_s=0.5)
    for _ in range(2):
        with pytest.raises(Exception, match="no connection with 'hospital'"):
            alone.connect("bank", store=stores["bank"])


# What is not a store of this party.


def test_another_partys_folder(world, stores) -> None:
    with pytest.raises(PreprocessingError, match=r"(?s)party 'bank'.*this is party 'hospital'"):
        world.connect("hospital", store=stores["bank"])


def test_another_programs_store(world, stores, program, model, tools) -> None:
    other = tools.make_program(model, frac_bits=14)
    with pytest.raises(PreprocessingError, match=f"(?s){program.digest[:12]}.*{other.digest[:12]}"):
        world.connect("bank", other, store=stores["bank"])


def test_two_stores_mixed(world, stores, program, tmp_path) -> None:
    prepare(program, 1, tmp_path / "other")
    mixed = {"bank": stores["bank"], "hospital": tmp_path / "other" / "hospital"}
    results = world.run({"bank": lambda s: s.run(None), "hospital": lambda s: s.run(None)}, store=mixed)
    assert all(isinstance(error, (Mismatch, PeerAborted)) and "store" in str(error) for error in results.values())


def test_a_store_at_one_party_only(world, stores) -> None:
    one = {"bank": stores["bank"], "hospital": None}
    results = world.run({"bank": lambda s: s.run(None), "hospital": lambda s: s.run(None)}, store=one)
    assert all(isinstance(error, (Mismatch, PeerAborted)) and "store" in str(error) for error in results.values())


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "empty": lambda path: path.write_bytes(b""),
    "one bit": lambda path: path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + bytes(8)),
    "of another run": lambda path: shutil.copy(path.parent / "run-3.bin", path),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("file", ["load.bin", "run-1.bin"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_shares(world, stores, tools, damage: str, file: str) -> None:
    DAMAGE[damage](stores["hospital"] / file)
    results = world.run(both(1, tools.rows(2)), store=stores)
    assert isinstance(results["hospital"], PreprocessingError)
    for part in ("damaged" if damage != "gone" else "is gone", str(stores["hospital"]), "why:", "→"):
        assert part in str(results["hospital"])
    assert type(results["bank"]) is PeerAborted and str(stores["hospital"]) not in str(results["bank"])


@pytest.mark.parametrize(
    "file, content",
    [
        ("cursor.json", ""),
        ("cursor.json", "[]"),
        ("cursor.json", '{"next": 0, "weights": null}'),
        ("cursor.json", '{"next": -5, "weights": null}'),
        ("cursor.json", '{"next": 8, "weights": null}'),
        ("cursor.json", '{"next": "x", "weights": null}'),
        ("cursor.json", '{"next": 1, "weights": 7}'),
        ("cursor.json", "[" * 10**5),
        ("store.json", "{}"),
        ("store.json", "garbage"),
        ("key", "short"),
    ],
)
def test_damaged_texts(program, stores, file: str, content: str) -> None:
    (stores["bank"] / file).write_text(content)
    with pytest.raises(PreprocessingError, match="not a store of preprocessing") as caught:
        Store.open(stores["bank"], program, "bank")
    assert "→" in str(caught.value) and "why:" in str(caught.value)


@pytest.mark.parametrize("file", ["store.json", "cursor.json", "key"])
def test_missing_files(program, stores, file: str) -> None:
    (stores["bank"] / file).unlink()
    with pytest.raises(PreprocessingError, match="not a store of preprocessing"):
        Store.open(stores["bank"], program, "bank")


def test_no_folder(program, tmp_path) -> None:
    with pytest.raises(PreprocessingError, match="not a store"):
        Store.open(tmp_path / "nowhere", program, "bank")
    assert not (tmp_path / "nowhere").exists()


# Making them.


def test_only_their_owner_can_read_secrets(stores) -> None:
    for path in stores.values():
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        for file in (path / "key", path / "cursor.json", *path.glob("*.bin")):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    store = Store(stores["bank"], "id", 3, 1, None)
    store.consume(1)
    assert stat.S_IMODE((stores["bank"] / "cursor.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("file", ["key", "cursor.json", "run-1.bin"])
@pytest.mark.parametrize("spoil", ["file", "folder", "link"])
def test_a_store_that_others_could_read_or_change_is_refused(program, stores, file: str, spoil: str) -> None:
    path = stores[program.parties[-1]]
    if spoil == "link":
        (path / file).rename(path / "elsewhere")
        (path / file).symlink_to("elsewhere")
    else:
        (path if spoil == "folder" else path / file).chmod(0o777 if spoil == "folder" else 0o666)
    with pytest.raises(ConfigError, match="store of preprocessing (can be read|is in a folder|is a symbolic link)"):
        StoreSource(Store.open(path, program, program.parties[-1])).begin(1, "run")


def test_stores_have_keys_of_their_own(program, stores, tmp_path) -> None:
    other = prepare(program, 1, tmp_path / "other")
    keys = [(path / "key").read_bytes() for path in (*stores.values(), *other.values())]
    assert len(set(keys)) == len(keys)


def test_a_directory_that_holds_something_is_refused(program, tmp_path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("x")
    with pytest.raises(PreprocessingError, match="not empty"):
        prepare(program, 1, tmp_path / "full")
    with pytest.raises(PreprocessingError, match="not empty"):
        prepare(program, 1, tmp_path / "full" / "precious")
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "precious").read_text() == "x"


def test_an_empty_directory_is_used(program, tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    made = prepare(program, 1, tmp_path / "empty")
    assert all(path.is_dir() for path in made.values())


@pytest.mark.parametrize("count", [0, -1, 1 << 20])
def test_impossible_counts(program, tmp_path, count: int) -> None:
    with pytest.raises(InputError, match="1 to 1048575"):
        prepare(program, count, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.parametrize("at", [0, 2])
def test_interrupted_making_leaves_nothing(program, tmp_path, error: type, at: int) -> None:
    def progress(done: int) -> None:
        if done == at:
            raise error

    with pytest.raises(error):
        prepare(program, 3, tmp_path / "new", progress)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(program, tmp_path, monkeypatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        prepare(program, 1, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
