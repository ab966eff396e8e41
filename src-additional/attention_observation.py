"""Show how a score is computed: one image, one prompt, every stage from a single head to the segmentation.

    python3 src-additional/attention_observation.py photo.png --prompt "tree, sky, grass" --token tree --pixel 40,60
    python3 src-additional/attention_observation.py photo.png --prompt "tree, sky" --compare vanilla --out tree.pdf

Writes one figure (PNG, PDF or SVG, by its extension), and next to it an .npz file with all its numbers.
docs/observation.md says how to read both.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from goca.errors import GocaError, explained

KINDS = (".png", ".pdf", ".svg")
PLAIN = {"head_method": "average", "layer_method": "vanilla", "rescale_method": "per-token renorm+"}


class OutputError(GocaError, ValueError):
    """The figure's file name has an unknown extension."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("image", help="the image")
    add("--prompt", required=True, help='what the image shows: "tree, sky, grass"; every item becomes a class')
    add("--token", action="append", default=[], metavar="WORD", help="a word to show, repeatable; default: all classes")
    add(
        "--pixel",
        action="append",
        default=[],
        type=pixel,
        metavar="X,Y",
        help="a pixel to show, repeatable; default: the maximum of each word's score",
    )
    add("--model", default="mini-sd", help="a name in configs/model")
    add("--pipeline", help="folder or hub id; default: the config's")
    add("--layer", help="block or cross map whose heads are shown; default: the one with the largest weight")
    add("--head", type=int, help="head of that layer, from 0; default: the one with the largest mean weight")
    add(
        "--content",
        action="append",
        default=[],
        metavar="WORD",
        help="a word or token position to rescale by, repeatable; default: all content words",
    )
    add("--ranking", action="store_true", help="show each word's rank among the words at every pixel")
    add("--compare", metavar="SETTING", help='below it, show "vanilla", or another name in configs/model')
    add("--protocol", choices=("paper", "released"), help="default: the config's")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="any other field of the model's config")
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--out", default="observation.png", help="the figure; its numbers are written next to it as .npz")
    add("--dpi", type=int, default=200, help="of a PNG")
    add("--debug", action="store_true", help="show where an error came from")
    return parser.parse_args(arguments)


def pixel(text: str) -> tuple[int, int]:
    try:
        x, y = (int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a pixel; expected X,Y such as 40,60") from None
    return x, y


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        run(options)
    except (ValueError, OSError, KeyError) as error:
        if options.debug or not explained(error):
            raise
        sys.exit(f"{type(error).__name__}: {error}")


def run(options: argparse.Namespace) -> None:
    out = Path(options.out)
    if out.suffix.lower() not in KINDS:
        raise OutputError(f"--out {out}: unknown extension; expected one of: {', '.join(KINDS)}")

    from diffusion_feature import read_image
    from goca.config import load_config
    from goca.drawing.figures import save_figure
    from observation.comparison import compare
    from observation.figure import draw
    from observation.numbers import save_numbers

    image, notes, _ = read_image(options.image)
    if notes:
        print(f"{Path(options.image).name}: {'; '.join(notes)}", file=sys.stderr)
    given = overrides(options)
    configs = {options.model: load_config(options.model, **seeded(given, options.model))}
    if options.compare:
        configs[options.compare] = compared(options, given)
    settings, title = observed(options, image, configs), Path(options.image).name
    if len(settings) > 1:
        drawn = compare(settings, title, options.ranking)
    else:
        drawn = draw(options.model, settings[options.model], title, options.ranking)
    figure = save_figure(drawn, out, options.dpi)
    numbers = save_numbers(out.with_suffix(".npz"), settings)
    print(f"figure: {figure}\nnumbers: {numbers}")


def observed(options: argparse.Namespace, image: Any, configs: dict[str, Any]) -> dict[str, Any]:
    """The numbers of each setting; a second one shows the layer, head and pixels of the first."""
    from diffusion_feature import FeatureExtractor
    from goca.segmenter import Segmenter
    from observation.numbers import observe
    from tqdm import tqdm

    settings: dict[str, Any] = {}
    extractor: FeatureExtractor | None = None
    layer, head, pixels = options.layer, options.head, options.pixel
    for name, config in tqdm(configs.items(), desc="settings", disable=len(configs) == 1):
        if extractor is None or (config.version, config.img_size) != (extractor.version, extractor.img_size):
            segmenter = Segmenter.from_pretrained(options.pipeline, config, options.device, options.dtype)
            extractor = segmenter.extractor
        else:
            segmenter = Segmenter(extractor, config)
        image_id = Path(options.image).name
        found = observe(segmenter, image, options.prompt, options.token, pixels, layer, head, image_id, options.content)
        pixels = pixels or [tuple(map(int, each)) for each in found["pixels"]]
        if str(found["layer"]) in segmenter.blocks:
            layer, head = str(found["layer"]), int(found["head"])
        settings[name] = found
    return settings


def overrides(options: argparse.Namespace) -> dict[str, Any]:
    """Parse the settings from the command line as YAML."""
    from goca.config import ConfigError
    from omegaconf import OmegaConf

    if unset := [each for each in options.set if "=" not in each]:
        raise ConfigError(f"--set {unset[0]}: expected KEY=VALUE, such as img_size=256")
    found: dict[str, Any] = OmegaConf.to_container(OmegaConf.from_dotlist(options.set))  # type: ignore[assignment]
    return found | ({"protocol": options.protocol} if options.protocol else {})


def seeded(given: dict[str, Any], model: str) -> dict[str, Any]:
    """Return the overrides, with noise seeded by the image's name, so that it is the same in every run and setting."""
    from goca.config import load_config
    from goca.protocol import Protocol

    protocol = Protocol.of(given.get("protocol") or load_config(model).protocol)
    return {**given, "protocol": {**protocol.to_dict(), "seed": "image"}}


def compared(options: argparse.Namespace, given: dict[str, Any]) -> Any:
    """Return the second setting's config; "vanilla" is the model's vanilla config, or its config with vanilla rules."""
    from goca.config import load_config, names

    own = f"{options.model}-vanilla"
    if options.compare != "vanilla":
        return load_config(options.compare, **seeded(given, options.compare))
    if own in names():
        return load_config(own, **seeded(given, own))
    return load_config(options.model, **seeded(given, options.model) | PLAIN)


if __name__ == "__main__":
    main()
