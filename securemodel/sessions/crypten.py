"""Opens the sessions of CrypTen programs: all parties on this machine, a process each."""

from __future__ import annotations

from typing import Any, NoReturn

from protocols.errors import ProtocolError, explain
from securemodel.engines.crypten import adapter
from securemodel.engines.crypten.processes import Limits, ProcessChannel, Processes
from securemodel.engines.crypten.program import CryptenProgram, trust
from securemodel.engines.crypten.walk import CryptenWalk
from securemodel.program import Program
from securemodel.sessions.session import Session


class CryptenSession(Session):
    """A session whose parties are processes, with longest waits of choice."""

    def __init__(self, program: CryptenProgram, limits: Limits | None = None) -> None:
        adapter.require()
        self._processes = processes = Processes(program, limits or Limits())
        walks = {name: CryptenWalk(program, name) for name in program.parties}
        super().__init__(program, walks, {name: ProcessChannel(processes, name) for name in program.parties})

    def processes(self) -> dict[str, int]:
        """The process id of each party."""
        return self._processes.ids()


def open_local(program: CryptenProgram) -> CryptenSession:
    """What `local` opens for programs of CrypTen."""
    return CryptenSession(program)


def open_connection(program: Program, *args: Any, **options: Any) -> NoReturn:
    """What `connect` does with programs of CrypTen: it refuses."""
    raise ProtocolError(
        explain(
            "programs for CrypTen do not run between machines",
            why=f"with CrypTen {trust(program.parties[0])}",
            fix="compile without protocol=; or run all parties on this machine with securemodel.local(program)",
        )
    )
