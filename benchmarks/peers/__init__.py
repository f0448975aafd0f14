"""Runs other secure-computation systems on this machine, so that a benchmark can put them beside this one.

Each system lives in a virtual environment of its own in the root of the repository, which `setup.sh` in this folder
builds, and is timed by a script that runs there. `common.py` says what a case and a row are.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peers.common import CASES
from protocols.errors import ConfigError, InputError, explain

__all__ = ["CASES", "PEERS", "PSI", "Peer", "missing_peers", "run_he", "run_peers", "run_secagg"]

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
STDERR = 2  # the file descriptor, which also works where sys.stderr has been replaced


@dataclass(frozen=True)
class Peer:
    """A system to compare with: its name for setup.sh, and the script that times it."""

    name: str
    runner: Path

    @property
    def python(self) -> Path:
        return ROOT / f".venv-{self.name}" / "bin" / "python"

    @property
    def is_built(self) -> bool:
        """Whether setup.sh has built the environment to its end."""
        return (ROOT / f".venv-{self.name}" / "complete").exists()


PEERS = {name: Peer(name, HERE / f"{name}_runner.py") for name in ("spu", "crypten")}
PSI = Peer("psi", HERE / "psi_runner.py")  # OpenMined's PSI, which has no cases but alignments
FLOWER = Peer("flower", HERE / "secagg_runner.py")  # Flower's SecAgg+, which has no cases but one round
HE = Peer("he", HERE / "he_runner.py")  # libraries of homomorphic encryption, which have no cases but operations


def missing_peers() -> list[str]:
    """The names of the peers whose environments are not built."""
    return [peer.name for peer in PEERS.values() if not peer.is_built]


def run_peers(cases: list[str], *, peers: Sequence[str] = tuple(PEERS), repeat: int = 3) -> list[dict[str, Any]]:
    """Times the cases on each peer, one after the other, and gives one row for each case and system.

    A case that a peer cannot do is a row whose `problem` says why. Progress goes to standard error.

    Raises InputError for an unknown case or peer, and ConfigError where an environment is missing (before anything
    runs) or does not work.
    """
    for kind, given, known in (("case", cases, CASES), ("peer", peers, tuple(PEERS))):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(explain(f"unknown {kind}: {', '.join(unknown)}", fix=f"choose from {', '.join(known)}"))
    missing = [name for name in peers if not PEERS[name].is_built]
    if missing:
        raise ConfigError(
            explain(
                f"the environments of these peers are not built: {', '.join(missing)}",
                where=", ".join(f".venv-{name}" for name in missing),
                why="each peer needs packages that do not go together with this project's",
                fix="build them with: " + " && ".join(f"benchmarks/peers/setup.sh {name}" for name in missing),
            )
        )
    if not cases:
        return []
    options = ["--cases", ",".join(cases), "--repeat", str(repeat)]
    return [row for name in peers for row in _rows(PEERS[name], options)]


def run_he(bits: Sequence[int], *, repeat: int = 3, rows: int = 8, threads: int = 0) -> list[dict[str, Any]]:
    """Times the operations of HEU and TenSEAL; `he_runner.py` says what a row holds.

    The list is empty where setup.sh has not built their environment.
    Raises ConfigError where the environment does not work.
    """
    if not HE.is_built:
        return []
    sizes = ",".join(map(str, bits))
    return _rows(HE, ["--bits", sizes, "--repeat", str(repeat), "--rows", str(rows), "--threads", str(threads)])


def run_secagg(clients: int, size: int, dropouts: float, neighbors: int) -> list[dict[str, Any]]:
    """Times a round of Flower's SecAgg+; `secagg_runner.py` says what a row holds. Raises ConfigError without its environment."""
    if not FLOWER.is_built:
        fix = "build it with: benchmarks/peers/setup.sh flower"
        raise ConfigError(explain("the environment of Flower is not built", where=".venv-flower", fix=fix))
    sizes = ["--clients", str(clients), "--size", str(size), "--dropouts", str(dropouts)]
    return _rows(FLOWER, [*sizes, "--neighbors", str(neighbors)])


def _rows(peer: Peer, options: list[str]) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "rows.json")
        command = [str(peer.python), str(peer.runner), *options, "--out", str(out)]
        ended = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=STDERR, check=False)
        if ended.returncode != 0 or not out.exists():
            raise ConfigError(
                explain(
                    f"the runner of peer {peer.name!r} ended with status {ended.returncode}",
                    where=str(peer.runner.relative_to(ROOT)),
                    why="its own message is above",
                    fix=f"to build it anew, delete .venv-{peer.name} and run benchmarks/peers/setup.sh {peer.name}",
                )
            )
        return json.loads(out.read_text())
