"""The check of values by their annotations."""

from dataclasses import dataclass
from typing import Any, Literal, TypedDict

import pytest

from llmctl.io.typed import Count, Positive, check_type


@dataclass
class Point:
    x: Positive
    tags: tuple[str, ...] = ()


class Row(TypedDict, total=False):
    count: Count
    rows: dict[str, list[tuple[int, str]]]


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int), (1, float), (1.5, float), (float("nan"), float), (True, bool), (None, int | None), ("a", str), ({}, Any),
        ([1, 2], list[int]), ([1, "a"], tuple[int, str]), ({"a": 1}, dict[str, Count]), ({}, Row), ("b", Literal["a", "b"]),
        ({"count": 3, "other": None, "rows": {"a": [[1, "x"]]}}, Row), (Point(1, ["a"]), Point), (1, int | str), ("a", int | str),
    ],
)  # fmt: skip
def test_what_fits_passes(value, hint):
    check_type(value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        (True, int, "it must be a whole number, not True"),
        (1.0, int, "it must be a whole number, not 1.0"),
        (2**63, int, "it must be a number of at most 64 bits, not 9223372036854775808"),
        (10**400, float, "at most 64 bits, not 1000.*0\\.\\.\\.$"),
        (-1, Count, "it must be at least 0, not -1"),
        (None, str, "it must be text, not None"),
        ([1, "a"], list[int], r"\[1\] must be a whole number, not 'a'"),
        ([1], tuple[int, str], "it must be a list of 2, not"),
        ({"rows": {"a": [[1, 2]]}}, Row, r"rows\.a\[0\]\[1\] must be text, not 2"),
        ({"count": -3}, Row, "count must be at least 0, not -3"),
        ([], Row, "it must be an object, not"),
        ("c", Literal["a", "b"], "it must be 'a' or 'b', not 'c'"),
        (Point(0), Point, "x must be at least 1, not 0"),
        (Point(1, (2,)), Point, r"tags\[0\] must be text, not 2"),
        (3, Point, "it must be a Point, not 3"),
        ([], int | str, "it must be text, not"),
    ],
)
def test_what_does_not_is_named_with_its_place(value, hint, message):
    with pytest.raises(ValueError, match=message):
        check_type(value, hint)


def test_a_value_that_cannot_be_shown_is_described():
    with pytest.raises(ValueError, match="not a int"):
        check_type(10**5000, str)
    deep = []
    for _ in range(10**5):
        deep = [deep]
    with pytest.raises(ValueError, match="must be text, not a list"):
        check_type(deep, str)
