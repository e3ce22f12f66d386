"""Limits as they are written on the command line, and those that are refused."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xdeploy.errors import UsageError
from xdeploy.gate import FIGURES, RULES, Limits
from xdeploy.gate import limits as read


@pytest.mark.parametrize(
    ("text", "value"),
    [("20M", 20_000_000), ("350k", 350_000), ("350K", 350_000), ("1.5M", 1_500_000), ("2G", 2 * 10**9), ("7", 7),
     ("0", 0), ("1e6", 10**6), (" 3 M ", 3 * 10**6)],
)  # fmt: skip
def test_counts_are_decimal(text: str, value: int) -> None:
    assert read.count(text) == value


@pytest.mark.parametrize(
    ("text", "value"), [("50ms", 0.05), ("800us", 0.0008), ("800µs", 0.0008), ("1.5s", 1.5), ("30 ns", 3e-8)]
)
def test_times(text: str, value: float) -> None:
    assert read.seconds(text) == value


@pytest.mark.parametrize(("text", "value"), [("5mJ", 0.005), ("300uJ", 0.0003), ("1J", 1.0), ("5.1mJ", 0.0051)])
def test_energies(text: str, value: float) -> None:
    assert read.joules(text) == value


@given(st.integers(1, 10**6), st.sampled_from([("ms", 3), ("us", 6), ("ns", 9), ("s", 0)]))
@settings(max_examples=60, deadline=None)
def test_units_round_once(number: int, unit: tuple[str, int]) -> None:
    """The float is the one nearest to the number as written, as Python itself reads 123e-6."""
    assert read.seconds(f"{number}{unit[0]}") == float(f"{number}e-{unit[1]}")


@pytest.mark.parametrize(
    ("text", "percent"), [("0.9", 90), ("1", 100), ("90", 90), ("90%", 90), ("99.5 %", Fraction(199, 2)), ("0", 0)]
)
def test_accuracies_are_shares_up_to_one(text: str, percent: Fraction) -> None:
    assert Limits(accuracy=read.accuracy(text)).percent == percent


@pytest.mark.parametrize(("text", "value"), [("2%", 2.0), ("0.5", 0.5), ("0", 0.0)])
def test_points(text: str, value: float) -> None:
    assert read.points(text) == value


@pytest.mark.parametrize("parse", [read.count, read.seconds, read.joules, read.accuracy, read.points])
@pytest.mark.parametrize(
    "text", ["", "nan", "NaN", "inf", "-1", "-5ms", "-2%", "many", "5 apples", "1e999999", "M", "0x5"]
)
def test_what_is_no_amount_is_refused(parse: object, text: str) -> None:
    with pytest.raises(UsageError, match=r"examples|shares"):
        parse(text)  # type: ignore[operator]


@pytest.mark.parametrize(
    ("parse", "text"),
    [(read.seconds, "50"), (read.seconds, "5mJ"), (read.joules, "5"), (read.joules, "5ms"), (read.count, "20ms"),
     (read.accuracy, "1%"), (read.accuracy, "0.9%")],
)  # fmt: skip
def test_units_are_needed_and_must_fit(parse: object, text: str) -> None:
    with pytest.raises(UsageError):
        parse(text)  # type: ignore[operator]


@pytest.mark.parametrize("key", [*(f.key for f in FIGURES), "accuracy", "drop", "growth"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1, -0.001, "5", True])
def test_limits_are_finite_and_not_negative(key: str, value: object) -> None:
    with pytest.raises(UsageError, match=key):
        Limits(**{key: value})  # type: ignore[arg-type]


def test_accuracy_and_drop_end_at_100() -> None:
    assert Limits(accuracy=100, drop=100).percent == 100
    for key in ("accuracy", "drop"):
        with pytest.raises(UsageError, match="100"):
            Limits(**{key: 100.1})  # type: ignore[arg-type]


def test_every_limit_has_its_rule() -> None:
    for figure in FIGURES:
        assert f"max-{figure.key}" in RULES
        assert f"max-growth-{figure.key}" in RULES
    assert all(text.endswith(".") for text in RULES.values())
