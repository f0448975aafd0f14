"""No two messages about a session have one label."""

from __future__ import annotations

import re
from pathlib import Path

import securemodel
from protocols.channel import Label
from securemodel.engines import labels


def test_no_two_control_messages_share_a_label() -> None:
    named = {name: value for name, value in vars(labels).items() if isinstance(value, Label)}
    assert len(named) >= 5
    assert len(set(named.values())) == len(named)


def test_labels_of_a_session_are_made_in_one_place() -> None:
    made = re.compile(r"Label\(0,|Purpose\.(CONTROL|SEED)\b")
    places = {path.name for path in Path(securemodel.__file__).parent.rglob("*.py") if made.search(path.read_text())}
    assert places == {"labels.py"}
