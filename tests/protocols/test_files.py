"""Secret files: whole or absent, their owner's alone, and every way in which others could read or change them refused."""

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols import files
from protocols.errors import ConfigError
from protocols.files import create_secret, open_secret, read_secret, write_atomically, write_secret

WHAT = "a secret"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    write_secret(tmp_path / "own" / "key", b"secret", WHAT)
    return tmp_path / "own" / "key"


def test_a_secret_is_read_as_written_and_by_its_owner_only(secret: Path) -> None:
    assert read_secret(secret, WHAT) == b"secret"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600 and [p.name for p in secret.parent.iterdir()] == ["key"]
    with open_secret(secret, WHAT, write=True) as file:
        file.seek(0, os.SEEK_END)
        file.write(b"s")
    assert read_secret(secret, WHAT) == b"secrets"


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def made_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.chmod(0o666), "can be read by other users"),
        (lambda path: path.chmod(0o604), "can be read by other users"),
        (lambda path: path.chmod(0o620), "can be read by other users"),
        (lambda path: path.parent.chmod(0o777), "in a folder that other users of this machine can change"),
        (lambda path: path.parent.chmod(0o702), "in a folder that other users of this machine can change"),
        (linked, "is a symbolic link"),
        (made_a_pipe, "is not a regular file"),
    ],
)
@pytest.mark.parametrize("write", [False, True])
def test_a_secret_that_others_could_read_or_change_is_refused(
    secret: Path, spoil: Callable[[Path], None], says: str, write: bool
) -> None:
    spoil(secret)
    with pytest.raises(ConfigError, match=says):
        open_secret(secret, WHAT, write=write)


def test_a_secret_of_another_user_is_refused(secret: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files.os, "geteuid", lambda: secret.stat().st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to another user|in a folder of another user"):
        read_secret(secret, WHAT)


def test_a_folder_whose_files_only_their_owners_remove_will_do(secret: Path) -> None:
    secret.parent.chmod(0o1777)
    assert read_secret(secret, WHAT) == b"secret"


@pytest.mark.parametrize("alone", [False, True])
def test_a_group_may_change_the_folder_if_nobody_else_is_in_it(
    secret: Path, monkeypatch: pytest.MonkeyPatch, alone: bool
) -> None:
    secret.parent.chmod(0o770)
    monkeypatch.setattr(files, "_own_group", lambda gid: alone)
    if alone:
        assert read_secret(secret, WHAT) == b"secret"
    else:
        with pytest.raises(ConfigError, match="other users of this machine can change"):
            read_secret(secret, WHAT)


@pytest.mark.parametrize("there", ["file", "link", "dangling link"])
def test_nothing_new_is_written_through_or_over_what_is_there(tmp_path: Path, there: str) -> None:
    target, path = tmp_path / "target", tmp_path / "new"
    if there != "dangling link":
        target.write_bytes(b"old")
    path.write_bytes(b"old") if there == "file" else path.symlink_to(target)
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(FileExistsError):
        create_secret(path, WHAT)
    with pytest.raises(FileExistsError):
        write_secret(path, b"new", WHAT, new=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert not target.exists() or target.read_bytes() == b"old"


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_bytes(b"old")
    (tmp_path / "file").symlink_to("target")
    write_secret(tmp_path / "file", b"new", WHAT)
    assert (tmp_path / "target").read_bytes() == b"old" and read_secret(tmp_path / "file", WHAT) == b"new"


def test_nothing_secret_is_written_where_others_can_replace_it(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for write in (lambda: write_secret(tmp_path / "a", b"", WHAT), lambda: create_secret(tmp_path / "b", WHAT)):
        with pytest.raises(ConfigError, match="other users of this machine can change"):
            write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["fsync", "chmod", "replace", "link"])
def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    write_atomically(tmp_path / "file", b"old")
    monkeypatch.setattr(files.os, name, full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(tmp_path / ("file" if name == "replace" else "new"), b"new", new=name == "link")
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_bytes() == b"old"
