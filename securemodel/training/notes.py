"""Where in the user's code an operator comes from: a note that travels from the call to the traced node."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass, replace
from types import FrameType

from securemodel.compiler.explaining import NOT_THE_USERS, file_name

KEY = "securemodel"


@dataclass(frozen=True)
class Note:
    """A module (its path, which call of it, its class) and a line of the user's code."""

    path: str = ""
    call: int = 0
    kind: str = ""
    file: str = ""
    line: int = 0
    function: str = ""
    backward: bool = False

    def reversed(self) -> Note:
        """The note of what backward makes of this."""
        return replace(self, backward=True)

    def place(self) -> str:
        """`train.py:12, in step: code`, for errors."""
        code = linecache.getline(self.file, self.line).strip()
        return f"{file_name(self.file)}:{self.line}, in {self.function}: {code}" if self.file else ""

    def write(self, meta: dict) -> None:
        """Writes it into a node's meta as torch.export does: securemodel.compiler.capture.source_line reads that."""
        prefix = "backward of " if self.backward else ""
        code = linecache.getline(self.file, self.line).strip()
        meta.pop("nn_module_stack", None)
        if self.path:
            key = f"{self.path}@{self.call}" if self.call else self.path
            meta["nn_module_stack"] = {key: (prefix + self.path, self.kind)}
            prefix = ""
        meta["stack_trace"] = f'  File "{self.file}", line {self.line}, in {self.function}\n    {prefix}{code}\n'


def user_line(note: Note) -> Note:
    """A note with the innermost line on the stack that is neither torch's nor this project's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(NOT_THE_USERS):
        frame = frame.f_back
    if frame is None:
        return note
    return replace(note, file=frame.f_code.co_filename, line=frame.f_lineno, function=frame.f_code.co_name)
