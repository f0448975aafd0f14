"""Ids in one form: two parties write the same person's id in the same bytes, whatever their files look like.

A rule for each column of the key: "text" is compared without regard to case, width and characters that nobody sees;
"digits" by its digits alone; "date" as a date; "exact" as it is. Columns are joined with their lengths, so that
("ab", "c") is another id than ("a", "bc").

Text follows the compatibility caseless match of The Unicode Standard, section 3.13, D146. Characters that this Python's
version of Unicode does not know are refused: another version might fold them, and the id would be lost without a word.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import date

RULES = "1"
"""The version of these rules; part of what parties compare."""

NORMALIZE = ("text", "digits", "exact", "date")
_LENGTH_BYTES = 4
_ISO = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class BadId(ValueError):
    """A part of an id cannot be brought into the form of its rule; `kind` says why, without the value."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


def rules_digest(keys: Sequence[str], normalize: Mapping[str, str]) -> str:
    """SHA-256 of the rules for these columns, in hexadecimal: equal where the same ids become the same bytes.

    Names of columns do not matter, as files of parties may call them differently; their order does.
    """
    said = json.dumps(["securemodel ids", RULES, [normalize[key] for key in keys]])
    return hashlib.sha256(said.encode()).hexdigest()


def normal(text: str, rule: str) -> str:
    """A part of an id in the form of its rule, "" where nothing is left of it. Raises BadId."""
    if rule == "exact":
        made = text
    elif rule == "digits":
        made = _digits(text)
    elif rule == "date":
        made = _date(text.strip())
    elif text.isascii():
        return text.strip().lower()  # what the long way gives for these characters
    else:
        made = _folded(text)
    if not made.isascii():
        _refuse_unknown(made)
    return made


def framed(part: str) -> bytes:
    """A part of an id in UTF-8 behind its length."""
    encoded = part.encode()
    return len(encoded).to_bytes(_LENGTH_BYTES, "big") + encoded


def joined(parts: Sequence[str]) -> bytes:
    """The parts of an id as bytes, each behind its length."""
    return b"".join(map(framed, parts))


def _folded(text: str) -> str:
    _refuse_unknown(text)
    nfkc, visible = unicodedata.normalize, [c for c in text if unicodedata.category(c) != "Cf"]
    folded = nfkc("NFKC", unicodedata.normalize("NFD", "".join(visible)).casefold())
    return nfkc("NFKC", folded.casefold()).strip()


def _digits(text: str) -> str:
    made = "".join(str(unicodedata.decimal(c)) for c in unicodedata.normalize("NFKC", text) if c.isdecimal())
    if not made and text.strip():
        raise BadId("an id without a digit, where ids are compared by their digits")
    return made


def _date(text: str) -> str:
    if not text:
        return ""
    try:
        if _ISO.fullmatch(text):
            return date.fromisoformat(text).isoformat()
    except ValueError:  # 30 February
        pass
    raise BadId("an id with something else than a date, where dates are compared")


def _refuse_unknown(text: str) -> None:
    if any(unicodedata.category(c) in ("Cn", "Cs") for c in text):
        raise BadId("an id with a character that Unicode does not know")
