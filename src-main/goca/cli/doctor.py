"""Check this machine: versions, devices, memory, models, data; and print the fix for anything that fails.

goca doctor
goca doctor --model sd15 --pipeline FOLDER --dataset voc --root /data/VOCdevkit/VOC2012

Each line ends with ok or with the command that fixes the problem. Sizes of models are estimates: the weights and the
memory of the method beyond one forward pass. At the end, one image is segmented with the chosen pipeline. Exit status
1: something required is missing.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from goca.cli.models import EMBEDDED, add_model_arguments, chosen_model, load

if TYPE_CHECKING:
    from goca.cli.machine import Line, Memory

CLONE = Path(__file__).resolve().parents[3]  # the repository, in a checkout
IMAGE, PROMPT = "JPEGImages/test_00000.png", "star, wall, snow"  # of the embedded scenes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--dataset", metavar="NAME", help="check a data set's folder: voc, ade20k, ...")
    parser.add_argument("--root", metavar="FOLDER", help="the data set's folder (default: the config's)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the image to segment (default: an embedded one)")
    parser.add_argument("--prompt", default=PROMPT, help=f"its prompt (default: {PROMPT!r})")


def run(args: argparse.Namespace) -> int:
    from goca.cli.machine import MISSING, versions

    lines = show("versions", versions())
    if any(line.found == MISSING for line in lines):
        print("Install these packages first; the other checks need them.")
        return 1
    lines += examined(args, chosen_model(args.model, args.pipeline))
    return int(any(line.needed and not line.ok for line in lines))


def examined(args: argparse.Namespace, model: str) -> list[Line]:
    """All checks after the versions; they import the packages that the versions are about."""
    from goca.cli import machine, places
    from goca.config import load_config

    config = load_config(model)
    pipeline, second = args.pipeline or str(config.pipeline), args.denoiser or (not args.pipeline and config.denoiser)
    found = machine.memory(args.device)
    lines = show("device", [machine.device_line(found), machine.precision_line(found, args.dtype)])
    lines += show("models, estimated memory of the weights and the method", machine.models(found, args.dtype))
    lines += show("models without published settings", machine.models(found, args.dtype, False))
    lines += show("programs", machine.programs())
    lines += show(
        "places", [line for folder in dict.fromkeys((Path.cwd(), CLONE.parent)) for line in places.shadows(folder)]
    )
    found_places = show("", [*places.pipeline(pipeline), *([places.denoiser(second)] if second else [])])
    lines, readable = lines + found_places, all(line.ok for line in found_places)
    lines += show("", dataset_lines(args))
    return lines + show(
        "one image", [trial(model, args, found) if readable else not_tried(model, "the pipeline cannot be read")]
    )


def dataset_lines(args: argparse.Namespace) -> Iterable[Line]:
    from functools import partial

    from tqdm import tqdm

    from goca.cli.machine import Line
    from goca.cli.places import dataset

    if not args.dataset:
        return [Line("dataset", "not checked", "goca doctor --dataset NAME --root FOLDER")]
    return dataset(args.dataset, args.root, partial(tqdm, desc=args.dataset, unit="image", disable=None, leave=False))


def show(title: str, lines: Iterable[Line]) -> list[Line]:
    """Print each line as soon as it is known; returns all of them."""
    if title:
        print(title)
    kept = []
    for line in lines:
        print(line, flush=True)
        kept.append(line)
    return kept


def trial(model: str, args: argparse.Namespace, found: Memory) -> Line:
    """Segment one image, if the model fits, and measure the time."""
    from goca.cli.machine import GB, Line, footprints, width_of

    (width, _), base = width_of(args.dtype, found.device), base_of(model)
    wanted = next((each.bytes(width) for each in footprints() if each.model == base), 0.0)
    if wanted > found.free:
        return not_tried(model, f"it needs {wanted / GB:.1f} GB, more than is free")
    try:
        return Line(model, timed(model, args), needed=True)
    except Exception as error:
        if args.debug:
            raise
        found_text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Line(model, found_text, f"goca doctor --model {model} --debug", needed=True)


def timed(model: str, args: argparse.Namespace) -> str:
    """Segment one image; returns its areas, the seconds for loading the model and those for the image."""
    from diffusion_feature.images import read_image

    from goca.cli.work import kept_warnings
    from goca.embedded import resolve

    path = args.image or Path(resolve("goca:scenes")) / IMAGE
    start = time.perf_counter()
    segmenter = load(model, args)
    loaded = time.perf_counter()
    image = read_image(path, frame=None).stored
    with kept_warnings(args.debug) as warned:
        segmentation = segmenter(image, args.prompt, image_id=path.name)
    rows = segmentation.summary()
    done = time.perf_counter()
    for warning in warned:
        print(warning, file=sys.stderr)
    areas = ", ".join(f"{row['name']} {row['area']:.0%}" for row in rows)
    return f"{path.name}: {areas}; read in {loaded - start:.1f} s, segmented in {done - loaded:.2f} s"


def base_of(model: str) -> str:
    """The first config with the same pipeline that is listed in footprint.yaml."""
    from goca.cli.machine import footprints
    from goca.config import load_config

    def places(name: str) -> tuple[str | None, str | None]:
        config = load_config(name)
        return config.pipeline, config.denoiser

    own = places(model)
    return next((each.model for each in footprints() if places(each.model) == own), model)


def not_tried(model: str, why: str) -> Line:
    from goca.cli.machine import Line

    return Line(model, f"not tried: {why}", f"goca doctor --model {EMBEDDED}", needed=True)
