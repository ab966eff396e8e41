"""Fields of a model config whose values need more than a type: each reader returns the value to store.

Readers raise ConfigError; `goca.config.SegmenterConfig` calls them after the types have been checked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from goca.open.denoising import Denoising
from goca.open.vocabulary import VocabularyError, background_words
from goca.refine.chain import ChainError, Step, read_chain
from goca.schema import ConfigError, check, is_list, is_number, shown

CURVE = ("slope", "midpoint")


def steps_of(chain: Any) -> tuple[Step, ...]:
    """The steps of a chain."""
    try:
        return read_chain(chain)
    except ChainError as error:
        raise ConfigError(str(error)) from None


def tuple_of(value: Any) -> Any:
    """A list, such as YAML has, as a tuple; any other value as it is."""
    return tuple(value) if is_list(value) else value


def curve_of(calibration: Any) -> dict[str, float]:
    """slope and midpoint of the calibration curve."""
    curve = dict(calibration) if isinstance(calibration, Mapping) else {}
    if set(curve) != set(CURVE) or not all(is_number(value) for value in curve.values()):
        raise ConfigError(f"calibration is {shown(calibration)}; expected numbers: {', '.join(CURVE)}")
    return curve


def denoising_of(options: Any) -> dict[str, Any]:
    """The options of the probe, those that are not given at their defaults."""
    check(Denoising, options, ConfigError, "denoising")
    complete = Denoising(**options)
    return dataclasses.asdict(complete) | {"t": tuple(complete.t)}


def prompt_of_class(prompt: str) -> str:
    """A template with {name} in it."""
    if prompt.count("{name}") != 1:
        raise ConfigError(f"class_prompt is {shown(prompt)}; expected a text that contains {{name}} once")
    return prompt


def separator_of(separator: str) -> str:
    """Punctuation or spaces."""
    if any(map(str.isalnum, separator)):
        raise ConfigError(f"separator is {shown(separator)}; expected punctuation or spaces, such as ', '")
    return separator


def background_of(words: Any) -> Any:
    """The name of a list as it is; words as a tuple."""
    try:
        read = background_words(words)
    except VocabularyError as error:
        raise ConfigError(f"background_words: {error}") from None
    return words if isinstance(words, str) else read


def call_of(arguments: Any) -> dict[str, Any]:
    """Arguments of a pipeline, by their Python names."""
    given = dict(arguments)
    if strange := [name for name in given if not (isinstance(name, str) and name.isidentifier())]:
        raise ConfigError(f"call: {shown(strange[0])} is not an argument name; expected e.g. max_sequence_length: 512")
    return given


FIELD_READERS: dict[str, Callable[[Any], Any]] = {
    "calibration": curve_of,
    "denoising": denoising_of,
    "separator": separator_of,
    "background_words": background_of,
    "img_size": tuple_of,
    "feat_size": tuple_of,
    "cross_layers": tuple_of,
    "self_layers": tuple_of,
    "timesteps": tuple_of,
    "class_prompt": prompt_of_class,
    "call": call_of,
}
