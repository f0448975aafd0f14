"""An attack on a program in this process: do the views of corrupted parties look random, and what do wrong messages do?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from protocols.errors import explain
from securemodel.errors import InputError
from securemodel.inspect.tables import table_text
from securemodel.inspect.tampering import FOREIGN, HANG, OUTCOMES, Tampered, tamper
from securemodel.inspect.uniform import ALARM, Examination, examine
from securemodel.inspect.views import views
from securemodel.program import Program

TAMPERED_EACH = 3
LEAST_SESSIONS = 8


@dataclass(frozen=True)
class Examined:
    """The view of one party: how many of the received words of a session were looked at, by how many tests."""

    party: str
    words: int
    all_words: int
    tests: int
    smallest_chance: float


@dataclass(frozen=True)
class Attacked:
    """What an attack found; print it. `findings` are tests that an honest engine fails with a chance below `alarm`."""

    program: str
    sessions: int
    alarm: float
    views: tuple[Examined, ...]
    findings: tuple[Examination, ...]
    tampered: tuple[Tampered, ...]

    @property
    def passed(self) -> bool:
        """Whether no test of a view failed, nothing hung and every error was one of this project's."""
        return not self.findings and not any(made.outcomes[bad] for made in self.tampered for bad in (HANG, FOREIGN))

    def json(self) -> dict[str, Any]:
        """Plain values, as docs/audit.md describes them."""
        return {**asdict(self), "passed": self.passed}

    def __str__(self) -> str:
        rows = [(v.party, f"{v.words} of {v.all_words}", str(v.tests), f"{v.smallest_chance:.1e}") for v in self.views]
        lines = [
            f"attack on program {self.program[:12]}: {self.sessions} sessions with each of two sets of inputs and weights",
            "",
            table_text(("view of", "words of a session", "tests", "smallest chance"), rows, _NUMBERS),
            "",
            *(
                f"NOT RANDOM: {found.party}: {found.question}? no: {found.about} (chance {found.chance:.1e})"
                for found in self.findings
            ),
            f"{len(self.findings)} findings; an honest engine gives one with a chance below {self.alarm:g}",
            "",
            table_text(("one message is", *OUTCOMES), [_row(made) for made in self.tampered], OUTCOMES),
            "",
            "passed" if self.passed else "FAILED",
        ]
        return "\n".join(lines)


_NUMBERS = ("words of a session", "tests", "smallest chance")


def _row(made: Tampered) -> tuple[str, ...]:
    return (made.attack, *(str(made.outcomes[outcome]) for outcome in OUTCOMES))


def attack(program: Program, sessions: int = 24, say: Callable[[str], None] = lambda text: None) -> Attacked:
    """Runs a program of the masked engine many times on made-up inputs and weights, and as often with wrong messages.

    Raises InputError for programs of other protocols, programs read from a file, and too few sessions.
    """
    if program.protocol != "masked" or program.model is None or program.maker != Program.maker:
        why = "what is seen of other protocols is no masked words" if program.model else "a text cannot be run"
        fix = 'give the script that compiles it, with protocol="masked"'
        if program.maker != Program.maker:
            why = "it is a step of a training, for which no inputs are made up"
            fix = "attack the model in inference: the same engine runs both"
        raise InputError(explain("this program cannot be attacked", where="audit --attack", why=why, fix=fix))
    if program.header.serves:
        why, fix = "wrong messages are tried in sessions whose inputs are a party's", "attack the model in compile()"
        raise InputError(explain("this program is for clients", where="audit --attack", why=why, fix=fix))
    if sessions < LEAST_SESSIONS:
        raise InputError(f"{sessions} sessions tell too little: give {LEAST_SESSIONS} or more")
    seen = views(program, sessions, lambda count: say(f"views: session {count} of {2 * sessions}"))
    tested = {view.party: list(examine(view)) for view in seen}
    count = sum(map(len, tested.values()))
    findings = tuple(test for tests in tested.values() for test in tests if test.chance * count < ALARM)
    examined = tuple(
        Examined(v.party, v.words, v.all_words, len(tested[v.party]), min(test.chance for test in tested[v.party]))
        for v in seen
    )
    tampered = tamper(program, TAMPERED_EACH, lambda count: say(f"wrong messages: session {count}"))
    return Attacked(program.digest, sessions, ALARM, examined, findings, tuple(tampered))
