"""The ground floor: what is said of a wrong option."""

import math

import pytest

from resnest_d2.errors import OptionError, check_number, nearest


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, 3.5])
def test_numbers_out_of_bounds_are_refused_with_the_bounds(value):
    with pytest.raises(OptionError, match=r"--x must be > 0 and <= 3, got"):
        check_number("--x", value, above=0, at_most=3)


def test_numbers_within_their_bounds_pass():
    check_number("--x", 3, at_least=3, at_most=3)
    check_number("--x", -5.0)
    with pytest.raises(OptionError, match="--x must be <= 3, got 1000"):
        check_number("--x", 10**400, at_most=3)
    with pytest.raises(OptionError, match="--x must be finite, got nan"):
        check_number("--x", math.nan)


def test_a_hint_names_what_was_meant_or_what_there_is():
    assert nearest("resnest51", ["resnest50", "timm"]) == "did you mean resnest50?"
    assert nearest("RESNEST50", ["resnest50", "RESNEST50"]) == "did you mean resnest50?"  # not itself
    assert nearest(3, ["a", ""]) == "there are a, ''"
    assert nearest("x", map(str, range(99)), limit=2) == "there are 0, 1, ..."
    assert nearest("x", []) == "there are none"
