"""JSON from outside: what is read, and that everything else ends in this project's own error."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import DecodeError
from protocols.strict import strict_fields, strict_json

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",))), inner),
    max_leaves=10,
)  # fmt: skip


@given(VALUES)
def test_reads_what_json_can_say(value):
    assert strict_json(json.dumps(value), "a value") == value
    assert strict_json(json.dumps(value, ensure_ascii=False).encode(), "a value") == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("NaN", "no number of JSON"),
        ('{"next": Infinity}', "no number of JSON"),
        ("[-Infinity]", "no number of JSON"),
        ("1e999", "too large"),
        ("9" * 5000, "more than 64 bits"),
        ("18446744073709551616", "more than 64 bits"),
        ("-9223372036854775809", "more than 64 bits"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"b": [{"a": 1, "a": 1}]}', "twice"),
        ('"\\ud800"', "surrogate"),
        ('{"\\udc00": 1}', "surrogate"),
        ("\ud800", "not UTF-8"),
        (b"\xff", "not UTF-8"),
        (b"\xef\xbb\xbf1", "not JSON"),
        ("", "not JSON"),
        ("1 2", "not JSON"),
        ("[1,]", "not JSON"),
        ('"\x1b[2J"', "not JSON"),
        ("[" * 17 + "]" * 17, "nested"),
        ('{"a":' * 17 + "1" + "}" * 17, "nested"),
        ("[" * 60000, "nested"),
        ('{"a":' * 10000, "nested"),
        (" " * 65537, "at most 65536"),
    ],
)
def test_refuses_what_is_not_strict_json(text, why):
    with pytest.raises(DecodeError, match=why) as caught:
        strict_json(text, "a statement")
    assert str(caught.value).startswith("a statement cannot be read")
    assert "\x1b" not in str(caught.value)


def test_depth_is_that_of_the_limit():
    assert strict_json("[" * 16 + "]" * 16, "a list")
    assert strict_json("7", "a number", max_depth=0) == 7
    with pytest.raises(DecodeError, match="nested more than 0 deep"):
        strict_json("[]", "a number", max_depth=0)


def test_fields_are_exactly_those_and_of_their_types():
    kinds = {"next": int, "weights": (str, type(None))}
    assert strict_fields('{"next": 1, "weights": null}', "a cursor", kinds) == {"next": 1, "weights": None}
    for text in ('{"next": true, "weights": null}', '{"next": 1.0, "weights": null}', '{"next": 1}', "[]", "null",
                 '{"next": 1, "weights": 2}', '{"next": 1, "weights": null, "more": 0}'):  # fmt: skip
        with pytest.raises(DecodeError, match="a cursor cannot be read"):
            strict_fields(text, "a cursor", kinds)


@given(st.binary(max_size=200) | st.text(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    try:
        strict_json(data, "bytes")
    except DecodeError:
        pass
