"""Errors of the compiler; those of the protocols are in protocols.errors and are re-exported here.

SecureModelError
├── CompileError            a model cannot be made into a secure program
│   └── UnsupportedOperator     some operators have no secure version; lists all of them
├── OutOfRange              a value of a run left the range that the program was tuned for
├── LedgerError             the ledger of runs cannot be written or read
├── ProgramError            a program's text is damaged or of another version
├── TrainingDiverged        weights left their range, and the run is back where they were inside
└── ... (protocols.errors)
"""

from __future__ import annotations

from protocols.errors import (
    ConfigError,
    FileError,
    InputError,
    Mismatch,
    PeerError,
    PreprocessingError,
    SecureModelError,
)


class CompileError(SecureModelError):
    """A model cannot be made into a secure program."""


class UnsupportedOperator(CompileError):
    """Some operators of a model have no secure version; `.report` has the whole list."""

    def __init__(self, report) -> None:
        super().__init__(report)
        self.report = report


class ProgramError(SecureModelError):
    """A program's text is damaged or of another version."""


class TrainingDiverged(SecureModelError):
    """Weights of a training left their range; the run is back at the last step at which all were inside."""


class OutOfRange(SecureModelError):
    """A value of a run left the range that its program was tuned for, and a guard says so; the session goes on."""


class LedgerError(SecureModelError):
    """The ledger of runs cannot be written or read."""


class SmallWeightsWarning(UserWarning):
    """Weights are so small that fixed point keeps few of their digits; shown to their owner alone."""


class RangeWarning(UserWarning):
    """Values of a compiled model are not shown to fit the ring, or to keep half of their digits."""


class InsecureBackendWarning(UserWarning):
    """A program was compiled for a protocol that protects less than this project's own."""


__all__ = [
    "CompileError",
    "ConfigError",
    "FileError",
    "InputError",
    "InsecureBackendWarning",
    "LedgerError",
    "Mismatch",
    "OutOfRange",
    "PeerError",
    "PreprocessingError",
    "ProgramError",
    "RangeWarning",
    "SecureModelError",
    "SmallWeightsWarning",
    "TrainingDiverged",
    "UnsupportedOperator",
]
