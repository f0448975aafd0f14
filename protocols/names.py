"""What a party may be called: one rule for every name that comes from outside, in a file, a text or a call."""

from __future__ import annotations

import re

DEALER, PUBLIC, EVERYBODY = "dealer", "public", "all"
RESERVED = frozenset({DEALER, PUBLIC, EVERYBODY})
NAME_RULE = f"a name starts with a letter, has up to 64 letters, digits, '_' and '-', and is none of {', '.join(sorted(RESERVED))}"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


def is_name(name: object) -> bool:
    """Whether a party may be called so; NAME_RULE says what is allowed. Such a name is one part of a path, never more."""
    return isinstance(name, str) and _NAME.fullmatch(name) is not None and name not in RESERVED
