"""The schema of settings: what a type takes is said in words, and what fits is what its rules say."""

import dataclasses
from typing import Annotated

import pytest
from goca.schema import ConfigError, Different, Filled, OneOf, Pair, Range, check, expected, fits
from hypothesis import given
from hypothesis import strategies as st


@dataclasses.dataclass
class Sample:
    number: Annotated[float, Range(0, 1)] = 0
    word: Annotated[str, OneOf(["a", "b"])] | None = None
    items: Annotated[tuple[int, ...], Filled(), Different()] = (1,)
    size: Annotated[int | tuple[int, int], Pair(1, 9)] = 1


def test_what_a_type_takes_is_said_in_words():
    for wrong, message in [
        ({"number": 2}, "number is 2; it must be a finite number of at least 0 and at most 1"),
        ({"word": "c"}, "unknown thing.word 'c'; expected one of: a, b"),
        ({"word": 3}, "word is 3; it must be one of: a, b, or null"),
        ({"items": []}, "items is []; it must be a list of whole numbers that is not empty, all different"),
        ({"items": [1, True]}, "items holds True; each must be a whole number"),
        ({"size": (1, 10)}, "size is (1, 10); it must be a whole number of at least 1, or two of them"),
        ({"wrod": 1}, "thing has no field wrod; fields: number, word, items, size; nearest: word"),
        (3, "thing is 3; expected a mapping of number, word, items, size"),
    ]:
        with pytest.raises(ConfigError) as caught:
            check(Sample, wrong, ConfigError, "thing")
        assert message in str(caught.value)


ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(ANY)
def test_what_fits_is_what_the_rules_say(value):
    whole = isinstance(value, int) and not isinstance(value, bool)
    number = whole or isinstance(value, float)
    assert fits(Annotated[float, Range(0, 1)], value) == (number and 0 <= value <= 1)
    assert fits(bool | None, value) == (value is None or isinstance(value, bool))
    numbers = isinstance(value, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in value)
    assert fits(Annotated[tuple[int, ...], Different()], value) == (numbers and len(set(value)) == len(value))
    assert expected(bool | None) == "true or false, or null"
