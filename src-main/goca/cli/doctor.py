"""Check this machine: versions, devices, memory, models, data; and say how to fix what fails.

goca doctor
goca doctor --model sd15 --pipeline FOLDER --dataset voc --root /data/VOCdevkit/VOC2012

Each line ends in ok or in the command that fixes it. Sizes of models are estimates: weights and the method's own memory
beyond one forward pass. At the end, one image is segmented with the chosen pipeline. Exit status 1: something needed is
missing.
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

CLONE = Path(__file__).resolve().parents[3]  # where this is one
PICTURE, PROMPT = "JPEGImages/test_00000.png", "star, wall, snow"  # of the embedded scenes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    parser.add_argument("--dataset", metavar="NAME", help="look through a data set's folder: voc, ade20k, ...")
    parser.add_argument("--root", metavar="FOLDER", help="that folder (default: the config's)")
    parser.add_argument("--image", type=Path, metavar="FILE", help="the picture to segment (default: an embedded one)")
    parser.add_argument("--prompt", default=PROMPT, help=f"its words (default: {PROMPT!r})")


def run(args: argparse.Namespace) -> int:
    from goca.cli.machine import MISSING, versions

    lines = show("versions", versions())
    if any(line.found == MISSING for line in lines):
        print("The rest needs these packages first.")
        return 1
    lines += examined(args, chosen_model(args.model, args.pipeline))
    return int(any(line.needed and not line.ok for line in lines))


def examined(args: argparse.Namespace, model: str) -> list[Line]:
    """What comes after the versions; it imports what those lines are about."""
    from goca.cli import machine, places
    from goca.config import load_config

    config = load_config(model)
    pipeline, second = args.pipeline or str(config.pipeline), args.denoiser or (not args.pipeline and config.denoiser)
    found = machine.memory(args.device)
    lines = show("device", [machine.device_line(found), machine.precision_line(found, args.dtype)])
    lines += show("models: weights and the method's own memory, an estimate", machine.models(found, args.dtype))
    lines += show("models whose settings no paper chose", machine.models(found, args.dtype, False))
    lines += show("programs", machine.programs())
    lines += show(
        "places", [line for folder in dict.fromkeys((Path.cwd(), CLONE.parent)) for line in places.shadows(folder)]
    )
    found_places = show("", [*places.pipeline(pipeline), *([places.denoiser(second)] if second else [])])
    lines, readable = lines + found_places, all(line.ok for line in found_places)
    lines += show("", dataset_lines(args))
    return lines + show("one picture", [trial(model, args, found) if readable else not_tried(model, "the pipeline")])


def dataset_lines(args: argparse.Namespace) -> Iterable[Line]:
    from functools import partial

    from tqdm import tqdm

    from goca.cli.machine import Line
    from goca.cli.places import dataset

    if not args.dataset:
        return [Line("dataset", "none asked for", "goca doctor --dataset NAME --root FOLDER")]
    return dataset(args.dataset, args.root, partial(tqdm, desc=args.dataset, unit="image", disable=None, leave=False))


def show(title: str, lines: Iterable[Line]) -> list[Line]:
    """Print lines as they are found, and keep them."""
    if title:
        print(title)
    kept = []
    for line in lines:
        print(line, flush=True)
        kept.append(line)
    return kept


def trial(model: str, args: argparse.Namespace, found: Memory) -> Line:
    """Segment one picture, if the model fits, and say how long it took."""
    from goca.cli.machine import GB, Line, footprints, width_of

    (width, _), base = width_of(args.dtype, found.device), base_of(model)
    wanted = next((each.bytes(width) for each in footprints() if each.model == base), 0.0)
    if wanted > found.free:
        return not_tried(model, f"memory: it needs {wanted / GB:.1f} GB")
    try:
        return Line(model, timed(model, args), needed=True)
    except Exception as error:
        if args.debug:
            raise
        found_text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Line(model, found_text, f"goca doctor --model {model} --debug", needed=True)


def timed(model: str, args: argparse.Namespace) -> str:
    """One picture: seconds for the model, and for the picture."""
    from diffusion_feature.images import read_image

    from goca.cli.work import kept_warnings
    from goca.embedded import resolve

    path = args.image or Path(resolve("goca:scenes")) / PICTURE
    start = time.perf_counter()
    segmenter = load(model, args)
    loaded = time.perf_counter()
    picture = read_image(path, frame=None).stored
    with kept_warnings(args.debug) as warned:
        segmentation = segmenter(picture, args.prompt, image_id=path.name)
    rows = segmentation.summary()
    done = time.perf_counter()
    for warning in warned:
        print(warning, file=sys.stderr)
    areas = ", ".join(f"{row['name']} {row['area']:.0%}" for row in rows)
    return f"{path.name}: {areas}; read in {loaded - start:.1f} s, segmented in {done - loaded:.2f} s"


def base_of(model: str) -> str:
    """The first config of the same pipeline that has a footprint of its own."""
    from goca.cli.machine import footprints
    from goca.config import load_config

    def places(name: str) -> tuple[str | None, str | None]:
        config = load_config(name)
        return config.pipeline, config.denoiser

    own = places(model)
    return next((each.model for each in footprints() if places(each.model) == own), model)


def not_tried(model: str, lacks: str) -> Line:
    from goca.cli.machine import Line

    return Line(model, f"not tried, for want of {lacks}", f"goca doctor --model {EMBEDDED}", needed=True)
