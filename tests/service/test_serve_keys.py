"""API keys, weights at rest, frames between front and engine, commands over the socket: what is kept and what is refused."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import ConfigError, DecodeError
from securemodel.service import admin, frames, rest, serving
from securemodel.service import config as configs
from securemodel.service.frames import Computed, Down, Ready, Run, Stage
from securemodel.service.journal import Journal
from securemodel.service.keys import KeyBook, digest_of, new_key
from securemodel.service.local import write_roles

EDGES = np.array([0, 1, -1, 2**16 - 1, 2**62, -(2**62), 2**63 - 1, -(2**63)], np.int64)
PROGRAM, SHARING = "ab" * 32, bytes(range(32))


# ---- keys
def test_a_key_is_known_until_it_is_revoked(tmp_path: Path) -> None:
    front, command = KeyBook(tmp_path / "keys.json"), KeyBook(tmp_path / "keys.json")
    secret = new_key()
    assert front.lookup(secret) is None
    added = command.add(digest_of(secret), "tablet", ["lenet5"], 100)
    found = front.lookup(secret)
    assert found == added and found.allows("lenet5") and not found.allows("other") and found.rows_per_day == 100
    assert front.lookup(new_key()) is None and front.lookup(secret[:-1]) is None and front.lookup("") is None
    command.revoke(added.id)
    assert front.lookup(secret) is None
    with pytest.raises(ConfigError, match="added before"):
        command.add(digest_of(secret), "again")
    assert [key.revoked for key in front.keys] == [True]


def test_keys_that_are_added_and_revoked_at_once_are_all_kept(tmp_path: Path) -> None:
    path, begin = tmp_path / "keys.json", threading.Barrier(6)

    def add(number: int) -> str:
        book = KeyBook(path)
        begin.wait(60)
        keys = [book.add(digest_of(new_key()), f"{number} {turn}") for turn in range(3)]
        return book.revoke(keys[0].id).id

    with ThreadPoolExecutor(6) as others:
        revoked = set(others.map(add, range(6)))
    kept = KeyBook(path).keys
    assert len(kept) == 18 and {key.id for key in kept if key.revoked} == revoked and len(revoked) == 6


def test_the_file_of_keys_holds_no_key(tmp_path: Path) -> None:
    path, secret = tmp_path / "keys.json", new_key()
    KeyBook(path).add(digest_of(secret), "tablet")
    assert secret not in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="can be read by other users"):
        KeyBook(path).lookup(secret)


@pytest.mark.parametrize("sha256", ["", "ab", "zz" * 32, "AB" * 32, "ab" * 33, "ab" * 32 + "\n"])
def test_what_is_no_digest_is_no_key(tmp_path: Path, sha256: str) -> None:
    with pytest.raises(ConfigError, match="not the SHA-256 of a key"):
        KeyBook(tmp_path / "keys.json").add(sha256, "tablet")
    with pytest.raises(ConfigError, match="at most 100 characters"):
        KeyBook(tmp_path / "keys.json").add("ab" * 32, "tablet" * 20)


def test_a_damaged_list_lets_nobody_in(tmp_path: Path) -> None:
    path, secret = tmp_path / "keys.json", new_key()
    KeyBook(path).add(digest_of(secret), "tablet")
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ConfigError, match="damaged"):
        KeyBook(path).lookup(secret)


# ---- weights at rest
def stored(tmp_path: Path, key: bytes, shares: dict[str, np.ndarray]) -> Path:
    path = tmp_path / "model" / "3-0.shares"
    rest.save(path, key, shares, PROGRAM, "model", 3, SHARING)
    return path


def test_shares_come_back_and_are_not_readable(tmp_path: Path) -> None:
    key, shares = os.urandom(32), {"5": EDGES.reshape(2, 4), "7": EDGES[:0], "9": np.array(3, np.int64)}
    path = stored(tmp_path, key, shares)
    found, sharing = rest.read(path, key, PROGRAM, 3)
    assert sharing == SHARING and found.keys() == shares.keys()
    assert all((found[name] == share).all() and found[name].shape == share.shape for name, share in shares.items())
    assert EDGES.tobytes() not in path.read_bytes() and EDGES[4:6].tobytes() not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_two_files_of_the_same_shares_differ(tmp_path: Path) -> None:
    key = os.urandom(32)
    assert stored(tmp_path, key, {"5": EDGES}).read_bytes() != stored(tmp_path, key, {"5": EDGES}).read_bytes()


def test_every_changed_byte_of_stored_weights_is_noticed(tmp_path: Path) -> None:
    key = os.urandom(32)
    path = stored(tmp_path, key, {"5": EDGES})
    whole = path.read_bytes()
    for at in range(0, len(whole), 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(DecodeError):
            rest.read(path, key, PROGRAM, 3)
    for length in (0, 5, 30, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DecodeError):
            rest.read(path, key, PROGRAM, 3)


def test_other_keys_programs_and_versions_are_refused(tmp_path: Path) -> None:
    key = os.urandom(32)
    path = stored(tmp_path, key, {"5": EDGES})
    for wrong in ((os.urandom(32), PROGRAM, 3), (key, "cd" * 32, 3), (key, PROGRAM, 4)):
        with pytest.raises(DecodeError, match="weights"):
            rest.read(path, *wrong)


def test_the_key_comes_from_a_file_a_credential_or_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rest.new_key_file(tmp_path / "rest.key")
    key = (tmp_path / "rest.key").read_bytes()
    assert rest.read_key(str(tmp_path / "rest.key")) == key and len(key) == 32
    assert rest.read_key(None, ("cat", str(tmp_path / "rest.key"))) == key
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert rest.read_key("credential:rest.key") == key
    with pytest.raises(ConfigError, match="cannot be read"):
        rest.read_key("credential:gone")
    with pytest.raises(ConfigError, match="cannot be read"):
        rest.read_key(None, ("false",))
    with pytest.raises(ConfigError, match="it has 5 bytes"):
        rest.read_key(None, ("printf", "12345"))
    (tmp_path / "rest.key").chmod(0o640)
    with pytest.raises(ConfigError, match="other users"):
        rest.read_key(str(tmp_path / "rest.key"))


# ---- frames
MESSAGES = [
    (Run(1, 7, 8, 2, bytes(32), ((2, 4), (0, 3))), [EDGES.reshape(2, 4), np.zeros((0, 3), np.int64)]),
    (Computed(7, "ab:3", 0.5, 39, {"bank": 3}, ((8,),)), [EDGES]),
    (Ready(1, "a" * 16, b"{}", {1: 0.01, 128: 0.1}, "the owner's file"), []),
    (Down("gone", "bank"), []),
    (Stage("compile"), []),
]


@pytest.mark.parametrize(("message", "arrays"), MESSAGES, ids=lambda x: type(x).__name__)
def test_frames_come_as_they_were_sent(message: frames.Message, arrays: list[np.ndarray]) -> None:
    here, there = socket.socketpair()
    with here, there:
        frames.send(here, message, arrays)
        found, made = frames.receive(there)
        assert found == message
        assert [a.tolist() for a in made] == [a.tolist() for a in arrays]
        here.close()
        with pytest.raises(EOFError):
            frames.receive(there)


def test_the_front_reads_frames_too() -> None:
    async def read(sock: socket.socket) -> frames.Message:
        reader, writer = await asyncio.open_connection(sock=sock)
        try:
            return (await frames.receive_async(reader))[0]
        finally:
            writer.close()

    for message, arrays in MESSAGES:
        here, there = socket.socketpair()
        with there:
            frames.send(there, message, arrays)
            assert asyncio.run(read(here)) == message


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=60), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
def test_what_is_no_frame_is_refused(data: bytes, head: int, size: int) -> None:
    with pytest.raises(DecodeError):
        frames.decode(data, b"")
    here, there = socket.socketpair()
    with here, there:
        here.sendall(head.to_bytes(4, "little") + size.to_bytes(8, "little") + data)
        here.close()
        with pytest.raises((DecodeError, EOFError, MemoryError)):
            frames.receive(there)


# ---- commands
def test_commands_are_answered_and_mistakes_are_told(tmp_path: Path) -> None:
    async def do(name: str, given: dict, say: admin.Say) -> dict:
        say("at work")
        if name != "double":
            raise ConfigError("no such command")
        return {"value": 2 * given["value"]}

    async def serve() -> list:
        async with admin.listening(tmp_path, do):
            assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600
            with pytest.raises(ConfigError, match="serves this party already"):
                async with admin.listening(tmp_path, do):
                    pass
            return await asyncio.to_thread(lambda: list(admin.ask(tmp_path, "double", value=4)))

    assert asyncio.run(serve()) == [{"say": "at work"}, {"done": {"value": 8}}]
    with pytest.raises(ConfigError, match="not being served"):
        list(admin.ask(tmp_path, "double"))

    async def wrong() -> None:
        async with admin.listening(tmp_path, do):
            await asyncio.to_thread(lambda: list(admin.ask(tmp_path, "other")))

    with pytest.raises(admin.Failed, match="no such command"):
        asyncio.run(wrong())


def test_a_party_is_served_once(tmp_path: Path) -> None:
    """Whoever starts it twice is told so, and not to move the journal that the first one has open."""
    script, file, folder = tmp_path / "infer.py", tmp_path / "service.toml", tmp_path / "roles"
    script.write_text("")
    folder.mkdir()
    file.write_text(
        '[service]\nname = "s"\nleader = "bank"\n[[model]]\nname = "one"\nscript = "infer.py"\n'
        + "".join(f'[fronts.{name}]\nurl = "https://{name}"\ncontrol = "{name}:1"\n' for name in ("bank", "shop"))
    )
    config = configs.load(write_roles(file, folder, 0).services["bank"])
    config.data.mkdir(mode=0o700)

    async def serve() -> None:
        journal = Journal(config.data / "journal.db")
        async with admin.listening(config.data, lambda name, given, say: asyncio.sleep(0, {})):
            with pytest.raises(ConfigError, match="serves this party already"):
                await serving.serve(config, "bank", print)
        journal.close()

    asyncio.run(serve())


def test_a_front_that_ends_in_between_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "admin.sock"))
        sock.listen()
        threading.Thread(target=lambda: sock.accept()[0].close()).start()
        with pytest.raises(admin.Failed, match="ended before it answered"):
            list(admin.ask(tmp_path, "status"))
