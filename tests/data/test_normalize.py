"""Ids: what is the same person's becomes the same bytes, and nothing else does."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from securemodel.data.normalize import NORMALIZE, BadId, joined, normal, rules_digest

SAME = {
    "text": [
        ["Ann@Example.org", " ann@example.ORG ", "ann@example.org\t", "\uff21nn@example.org", "a\u200bnn@example.org"],
        ["stra\u00dfe", "STRASSE", "Strasse"],
        ["\u00e9", "e\u0301", "\u00c9", "E\u0301"],
        ["\ufb01n", "fin", "FIN"],
        ["\u3392", "MHz", "mhz"],
        ["00123", "\u2460\uff10\uff10\uff11\uff12\uff13"[1:]],
        ["\u0130", "i\u0307"],
    ],
    "digits": [["+32 470/12.34.56", "32470123456", "(32) 470-12-34-56", "\uff13\u0662470123456"]],
    "date": [["2001-02-03", " 2001-02-03 "]],
    "exact": [["aB "]],
}  # fmt: skip
DIFFERENT = {
    "text": ["007", "7", "7.0", "NA", "null", "a b", "a  b", "e", "\u00e9"],
    "digits": ["007", "7"],
    "date": ["2001-02-03", "2001-03-02"],
    "exact": ["ab", "aB", "aB ", "e\u0301", "\u00e9"],
}


@pytest.mark.parametrize("rule", NORMALIZE)
def test_what_is_the_same_and_what_is_not(rule: str) -> None:
    for same in SAME[rule]:
        assert len({normal(text, rule) for text in same}) == 1, same
    assert len({normal(text, rule) for text in DIFFERENT[rule]}) == len(DIFFERENT[rule])


@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), max_size=12))
def test_text_in_its_form_stays_so(text: str) -> None:
    made = normal(text, "text")
    assert normal(made, "text") == made
    assert normal(f" {text}\n", "text") == made
    assert normal(unicodedata.normalize("NFD", text), "text") == made == normal(unicodedata.normalize("NFC", text), "text")  # fmt: skip


@given(st.text(st.characters(max_codepoint=127), max_size=12))
def test_the_short_way_is_the_long_one(text: str) -> None:
    assert normal(text, "text") == normal(text + "\u200b", "text")


REFUSED = [("abc", "digits"), ("2001-02-30", "date"), ("3/2/2001", "date"), ("2024-W01-1", "date"), ("20010203", "date"),
           ("\ud800", "text"), ("\ud800", "exact"), ("\u0378", "text"), ("\u0378", "exact")]  # fmt: skip


@pytest.mark.parametrize(("text", "rule"), REFUSED)
def test_what_has_no_form_is_refused_without_its_value(text: str, rule: str) -> None:
    with pytest.raises(BadId) as caught:
        normal(text, rule)
    assert text not in str(caught.value)


def test_nothing_is_left() -> None:
    assert normal(" \t\u200b", "text") == normal("", "digits") == normal("  ", "digits") == normal(" ", "date") == ""


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=4),
       st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=4), max_size=4))  # fmt: skip
def test_joined_parts_can_be_told_apart(one: list[str], other: list[str]) -> None:
    assert (joined(one) == joined(other)) == (one == other)


def test_parts_have_lengths() -> None:
    assert joined(["ab", "c"]) != joined(["a", "bc"]) != joined(["abc"])
    assert joined(["\u00e9"]) == b"\x00\x00\x00\x02\xc3\xa9"


def test_rules_are_compared_by_their_order_not_their_names() -> None:
    rules = {"email": "text", "born": "date", "mail": "text", "birth": "date"}
    assert rules_digest(["email", "born"], rules) == rules_digest(["mail", "birth"], rules)
    assert rules_digest(["born", "email"], rules) != rules_digest(["email", "born"], rules)
    assert rules_digest(["email"], {"email": "exact"}) != rules_digest(["email"], {"email": "text"})
