"""What is shown as its text: in a Python prompt, and as the last line of a notebook's cell."""

from __future__ import annotations

import html


class Shown:
    """A table whose text says it all. Dataclasses with it are made with repr=False."""

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"
