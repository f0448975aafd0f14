"""Files that are whole or absent, and files with secrets: their owner's alone, or refused.

A secret file is a regular file, no symbolic link, of this user, that no other user can read or write; and nobody else
can put another one in its place, because its folder is writable by this user only (or is one, like /tmp, whose files
only their owners can remove). Folders above it may be links, and are not looked at.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NoReturn

from protocols.errors import ConfigError, FileError, explain

_POSIX = os.name == "posix"
_SAFELY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_SECRET = 0o600
_FIXES = {
    errno.ENOSPC: "make room and start again",
    errno.EDQUOT: "make room among this user's files and start again",
    errno.EFBIG: "allow larger files (ulimit -f) and start again",
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EPERM: "give this user the right to it, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENAMETOOLONG: "choose a shorter name",
}


@contextmanager
def file_errors(path: Path, fix: str = "") -> Iterator[None]:
    """What the system says about a file becomes a FileError, which names it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:  # not of the system, but of who decodes the file
            raise
        why = f"{error.strerror} ({errno.errorcode.get(error.errno, error.errno)})"
        fix = fix or _FIXES.get(error.errno, "make it a file that this program can use, or name another")
        raise FileError(explain("a file cannot be used", where=str(path), why=why, fix=fix)) from error


def read_secret(path: Path, what: str) -> bytes:
    """The bytes of a secret file. Raises what `open_secret` raises."""
    with open_secret(path, what) as file:
        return file.read()


def open_secret(path: Path, what: str, *, write: bool = False, append: bool = False) -> BinaryIO:
    """Opens a secret file that is there, to read or also to change it, or to append to it only.

    Raises ConfigError, which names `what`, where others could read, change or replace it; OSError where it cannot be
    opened.
    """
    check_folder(path.parent, what)
    how = os.O_RDWR | os.O_APPEND if append else os.O_RDWR if write else os.O_RDONLY
    try:
        handle = os.open(path, how | _SAFELY)
    except OSError as error:
        if error.errno == errno.ELOOP:
            _refuse(what, path, "is a symbolic link", "name the file itself, or put a copy in its place")
        raise
    try:
        _check_file(os.fstat(handle), path, what)
        return os.fdopen(handle, "r+b" if write or append else "rb")
    except BaseException:
        os.close(handle)
        raise


def create_secret(path: Path, what: str) -> BinaryIO:
    """A new secret file, to be written. FileExistsError where there is a file or link; else as `open_secret`."""
    check_folder(path.parent, what)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | _SAFELY, _SECRET), "w+b")


def write_secret(path: Path, data: bytes, what: str, *, new: bool = False) -> None:
    """Writes a secret file whole or not at all, in place of what is there; with `new` as `create_secret`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    check_folder(path.parent, what)
    write_atomically(path, data, _SECRET, new=new)


def write_atomically(path: Path, data: bytes, mode: int = 0o644, *, new: bool = False) -> None:
    """Writes a file so that a crash leaves the old content or the new, never half of it; links are not followed.

    new: only where there is nothing yet, FileExistsError otherwise.
    """
    with open_atomically(path, mode, new=new) as file:
        file.write(data)


@contextmanager
def open_atomically(path: Path, mode: int = 0o644, *, new: bool = False, durable: bool = True) -> Iterator[BinaryIO]:
    """The same for a file that is written in parts: it gets its name at the end, after an error there is nothing new.

    Not `durable`: the file may be gone or damaged where the machine, and not the process alone, ends at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.chmod(temporary, mode)
        if new:
            os.link(temporary, path)  # unlike a rename, fails if the name is taken
        else:
            os.replace(temporary, path)
        if durable:
            sync_directory(path.parent)
    finally:
        Path(temporary).unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Writes the names in a folder to disk: files just made or renamed there survive a crash."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def check_folder(path: Path, what: str) -> None:
    """ConfigError where another user could replace the files of a folder; OSError where there is none."""
    found = path.stat()
    if not _POSIX:
        return
    if found.st_uid not in (os.geteuid(), 0):
        _refuse(what, path, "is in a folder of another user", "use a folder of your own")
    others = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _own_group(found.st_gid))
    if others and not found.st_mode & stat.S_ISVTX:
        fix = f"chmod go-w {path}; if others may have changed what is in it, make it anew"
        _refuse(what, path, "is in a folder that other users of this machine can change", fix)


def _check_file(found: os.stat_result, path: Path, what: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        _refuse(what, path, "is not a regular file", "name another file")
    if not _POSIX:
        return
    if found.st_uid != os.geteuid():
        _refuse(what, path, "belongs to another user", "run this as the user it belongs to, or make a copy of your own")
    if found.st_mode & 0o077:
        fix = f"chmod 600 {path}; if others may have read it, make a new one"
        _refuse(what, path, "can be read by other users of this machine", fix)


def _own_group(gid: int) -> bool:
    """Whether a group is the one that many systems make for each user, with nobody else in it."""
    import grp
    import pwd

    try:
        user, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return (gid, group.gr_name) == (user.pw_gid, user.pw_name) and set(group.gr_mem) <= {user.pw_name}


def _refuse(what: str, path: Path, how: str, fix: str) -> NoReturn:
    raise ConfigError(explain(f"{what} {how}", where=str(path), fix=fix))
