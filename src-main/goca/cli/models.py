"""Arguments, shared by subcommands, for the model to load and its settings."""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goca.benchmark.settings import OFFLOADS
from goca.errors import GocaError
from goca.protocol import Protocol

if TYPE_CHECKING:
    from goca.config import SegmenterConfig
    from goca.segmentation_model import SegmentationModel

EMBEDDED = "mini-sd"  # the default model
NO_STEPS = "none"  # of --refine


class ModelNotChosen(GocaError, ValueError):
    """No config is known for the pipeline, and none was given."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --pipeline, --denoiser, --variant, --device, --dtype: for every subcommand that loads a model."""
    parser.add_argument(
        "--model",
        metavar="CONFIG",
        help=f"a config, such as sd15, sdxl, flux (default: the one that fits --pipeline; without that, {EMBEDDED})",
    )
    parser.add_argument("--pipeline", metavar="PLACE", help="a pipeline folder or hub id (default: the config's own)")
    parser.add_argument(
        "--denoiser", metavar="PLACE", help="another folder or hub id, whose denoiser replaces the pipeline's"
    )
    parser.add_argument(
        "--variant", default="auto", metavar="NAME", help="variant of the weight files: auto, fp16, bf16, plain"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16")


def add_setting_arguments(parser: argparse.ArgumentParser) -> None:
    """--refine, --set, --offload, --int8-text: settings of the method and of memory use."""
    parser.add_argument(
        "--refine", metavar="STEPS", help=f'a chain such as "dense_crf" or "affinity,pamr"; {NO_STEPS}: no refinement'
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any field of the model's config, such as t=50 or protocol.noise=nominal; may be repeated",
    )
    parser.add_argument(
        "--offload",
        choices=OFFLOADS,
        help="keep weights on the CPU, and move each component, or each layer, to the device when it runs",
    )
    parser.add_argument("--int8-text", action="store_true", help="load a T5 text encoder in 8 bit (bitsandbytes)")


def chosen_model(model: str | None, pipeline: str | None, denoiser: str | None = None) -> str:
    """The config's name: the given one, else the one that fits the pipeline. Raises ModelNotChosen."""
    if model is not None or pipeline is None:
        return model or EMBEDDED
    from goca.generation.adapters import ConfigNotKnown
    from goca.generation.stored import config_of_place

    try:
        return config_of_place(pipeline, denoiser)
    except ConfigNotKnown as error:
        raise ModelNotChosen(f"{error}; give the config of its family, e.g. --model sd15 or --model sdxl") from None


def load(model: str, args: argparse.Namespace, kind: type[SegmentationModel] | None = None) -> SegmentationModel:
    """The segmenter that the arguments ask for. kind: its class; None: the class of the config's method."""
    from goca.benchmark.predictor import SEGMENTERS

    config = configured(model, args)
    files = {"variant": None if args.variant == "plain" else args.variant, "denoiser": args.denoiser}
    memory = {name: given for name in ("offload", "int8_text") if (given := getattr(args, name, None))}
    kind = kind or SEGMENTERS[config.method]
    return kind.from_pretrained(args.pipeline, config, args.device, args.dtype, **files, **memory)


def configured(model: str, args: argparse.Namespace) -> SegmenterConfig:
    """The model's config with the arguments' settings. Raises ConfigError."""
    from goca.config import load_config

    config = load_config(model, protocol=getattr(args, "protocol", "paper"))
    fields = set_fields(getattr(args, "set", []), config)
    if refine := getattr(args, "refine", None):
        fields["refine"] = steps_of(refine)
    if presence := getattr(args, "presence", None):
        fields["presence"] = presence
    return load_config(config, **fields) if fields else config


def steps_of(refine: str) -> list[str]:
    """The steps in the value of --refine."""
    return [] if refine == NO_STEPS else [step.strip() for step in refine.split(",")]


def set_fields(given: Sequence[str], config: SegmenterConfig) -> dict[str, Any]:
    """The fields set by KEY=VALUE texts, with values in YAML; KEY.PART=VALUE keeps the other parts of the field.

    >>> from goca.config import load_config
    >>> set_fields(["t=50", "calibration.slope=3", "timesteps=[10, 20]"], load_config("mini-sd"))
    {'t': 50, 'calibration': {'slope': 3, 'midpoint': 0.092}, 'timesteps': [10, 20]}
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from goca.config import FIELDS
    from goca.schema import ConfigError, nearest, shown

    texts = [text.removeprefix("model.") for text in given]
    if bare := [text for text in texts if not text.partition("=")[0].strip() or "=" not in text]:
        raise ConfigError(f"--set {bare[0]}: expected KEY=VALUE, such as t=50; keys: {', '.join(FIELDS)}")
    try:
        fields: Any = OmegaConf.to_container(OmegaConf.from_dotlist(texts))
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(f"--set {' '.join(texts)} cannot be read: {error}") from None
    for name, value in fields.items():
        if name not in FIELDS:
            near = nearest(name, FIELDS)
            raise ConfigError(
                f"--set: a model config has no {shown(name)} (nearest: {near}); keys: {', '.join(FIELDS)}"
            )
        if isinstance(value, Mapping):
            fields[name] = parts_of(getattr(config, name)) | dict(value)
    return fields


def parts_of(value: Any) -> dict[str, Any]:
    """A field that is a mapping, such as calibration, or the protocol, as a mapping."""
    return (
        dataclasses.asdict(value) if isinstance(value, Protocol) else dict(value) if isinstance(value, Mapping) else {}
    )


def embedded_model(pipeline: str) -> str | None:
    """The name of the embedded model at a pipeline's location; None for any other pipeline."""
    from goca.embedded import PREFIX, names

    name = pipeline.removeprefix(PREFIX)
    return name if pipeline.startswith(PREFIX) and name in names() else None


def embedded_words(name: str = EMBEDDED) -> list[str]:
    """The names that an embedded model was trained on, from its card; empty if the card lists none."""
    from goca.embedded import PREFIX, resolve

    card = Path(resolve(PREFIX + name)) / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    return [word.strip() for word in text.partition("\nWords: ")[2].partition(".")[0].split(",") if word.strip()]


def strange_words(name: str, text: str) -> list[str]:
    """The words of a prompt that an embedded model was not trained on, in order, each once.

    Not among them: words that name nothing, such as "the", and "background". Empty where the card does not say.
    """
    from goca.prompts.grammar import is_background
    from goca.prompts.words import FUNCTION_WORDS

    known = {word for phrase in embedded_words(name) for word in phrase.split()}
    words = dict.fromkeys(re.findall(r"[^\W\d_]+", text.lower())) if known else {}
    return [word for word in words if word not in known | FUNCTION_WORDS and not is_background(word)]
