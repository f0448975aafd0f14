"""Opens the sessions of the masked engine's programs: in this process, or one party's end of one between processes."""

from __future__ import annotations

from pathlib import Path

from protocols import kernels
from protocols.errors import explain
from protocols.identity import PartiesConfig
from securemodel.engines.masked.store import Store
from securemodel.errors import ConfigError
from securemodel.invocation import current
from securemodel.program import Program
from securemodel.sessions.remote import RemoteSession, meet, place
from securemodel.sessions.session import LocalSession


def open_local(program: Program) -> LocalSession:
    """What `local` opens for programs of the masked engine."""
    kernels.keep_freed_memory()
    return LocalSession(program)


def open_connection(
    program: Program,
    me: str | None,
    config: str | Path | PartiesConfig | None,
    *,
    store: str | Path | None = None,
    ahead: bool = True,
    insecure_plain: bool = False,
    paillier_key: str | Path | None = None,
) -> RemoteSession:
    """What `connect` opens for programs of the masked engine."""
    kernels.keep_freed_memory()
    store = store or current().store
    if paillier_key:
        raise ConfigError(
            explain(
                "the masked engine uses no Paillier key",
                fix='leave out paillier_key, or compile with protocol="paillier"',
            )
        )
    me, config, own = place(program, me, config, insecure_plain)
    opened = Store.open(Path(store), program, me) if store else None
    try:
        return meet(program, me, config, own, opened, ahead, insecure_plain)
    except BaseException:
        if opened:
            opened.close()
        raise
