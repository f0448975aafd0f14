"""Items that a thread makes ahead: the same, in their order, and no thread for few."""

import threading
from collections.abc import Iterator

import pytest

from securemodel.engines.masked import pipeline
from securemodel.engines.masked.pipeline import pipelined


@pytest.fixture
def makers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which threads made the items; what is made without a thread has 30 bytes."""
    monkeypatch.setattr(pipeline, "_ALONE_BYTES", 30)
    return []


def noting(makers: list[str], count: int) -> Iterator[int]:
    for item in range(count):
        makers.append(threading.current_thread().name)
        yield item


def test_few_items_are_made_where_they_are_used(makers: list[str]) -> None:
    assert list(pipelined(noting(makers, 2), lambda item: 10, 100)) == [0, 1]
    assert makers == [threading.current_thread().name] * 2


def test_a_thread_makes_those_behind_the_first(makers: list[str]) -> None:
    assert list(pipelined(noting(makers, 9), lambda item: 10, 20)) == list(range(9))
    assert makers == [threading.current_thread().name] * 3 + ["pipelined"] * 6


@pytest.mark.parametrize("count", [1, 7])
def test_what_an_item_raises_is_raised_behind_those_before_it(makers: list[str], count: int) -> None:
    def failing() -> Iterator[int]:
        yield from noting(makers, count)
        raise ValueError("no more")

    found: list[int] = []
    with pytest.raises(ValueError, match="no more"):
        found.extend(pipelined(failing(), lambda item: 10, 100))
    assert found == list(range(count))
