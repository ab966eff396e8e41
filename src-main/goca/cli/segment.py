"""Segment images by class names.

goca segment photo.jpg --prompt "cat, grass, wall"
goca segment photos/ --prompt "cat, grass, wall" --model sd15 --pipeline FOLDER --out results
goca segment --prompts prompts.csv --model sd15        a prompt per image, in lines such as photo.jpg,cat,grass
goca segment photo.jpg --words coco --model sd15       all names of a list, or of a file
goca segment photo.jpg --describe --model sd15         a vision server names what is in the image
goca segment photo.jpg --regions                       no class names: regions without names
goca segment - --prompt "cat" --out - < photo.jpg > labels.png

The server's key is read from the environment (OPENAI_API_KEY); its answers are stored in descriptions.jsonl and
reused. --labeler local --labeler model=NAME uses your own server.

Files per image: NAME-overlay.png (with a legend), NAME-labels.png (class ids with a palette), NAME-masks/ (a PNG per
class) and NAME.json (areas, scores, colours, settings); with --scores also NAME-scores.npy. --format writes a set for
another tool instead, such as --format coco into OUT/coco; --format plain,coco writes both. --out - writes the label
map, or with --scores the array, to standard output.

Brackets enclose an object and its parts: "(cat, tail), grass". EXIF orientation is applied, 16-bit images are reduced
to their high 8 bits, and transparent pixels become white. Images with the same name in several folders get -2, -3, ...
in the order given. Exit status 1: class names were cut, or an image could not be used.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from goca.cli import words
from goca.cli.images import STANDARD
from goca.cli.models import add_model_arguments, add_setting_arguments, chosen_model, configured, load
from goca.cli.work import Work
from goca.errors import GocaError
from goca.protocol import ASK, PRESETS


class InputRefused(GocaError, ValueError):
    """Arguments without an image, that read standard input twice, or that contradict each other."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="*", metavar="IMAGE", help="files, folders, patterns such as 'photos/*.jpg'; -: standard input"
    )
    words.add_arguments(parser)
    parser.add_argument(
        "--ask",
        choices=ASK,
        help="open (default): look for the class names, the rest is background; "
        "complete: they name everything in the images",
    )
    parser.add_argument(
        "--presence",
        metavar="NAME",
        help="the rule by which open judges that a class is present; 'denoising gain' is more reliable and slower",
    )
    add_model_arguments(parser)
    parser.add_argument(
        "--protocol",
        default="paper",
        choices=PRESETS,
        help="the paper's equations or the released evaluation (default: paper)",
    )
    add_setting_arguments(parser)
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="T",
        help="added to the background's score: a higher T (0 to 1) leaves more background, label 0; default 0",
    )
    parser.add_argument("--frame", type=int, metavar="N", help="the frame to use of animated images, from 0")
    parser.add_argument(
        "--format",
        default="plain",
        metavar="NAMES",
        help='some of plain, coco, coco-polygons, labelme, yolo, voc, masks, cutout: "coco,yolo" (default: plain)',
    )
    parser.add_argument("--scores", action="store_true", help="also write the score maps, NAME-scores.npy")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="FOLDER", help="default: the current folder; -: standard output"
    )


def run(args: argparse.Namespace) -> int:
    from goca.cli.images import with_standard_input
    from goca.cli.outputs import chosen_output_formats

    if args.images.count(STANDARD) + (args.prompts == STANDARD) > 1:
        raise InputRefused("standard input (-) can be read only once: as an image, or as --prompts")
    if not args.images and not args.prompts:
        raise InputRefused("no image was given; name files, folders or patterns, - or --prompts FILE")
    if args.regions and (args.ask or args.presence):
        raise InputRefused("--regions uses no class names; leave out --ask and --presence")
    formats = chosen_output_formats(args.format)
    with with_standard_input(args.images) as given:
        return segmented(args, given, formats)


def segmented(args: argparse.Namespace, given: list[str], formats: list[str]) -> int:
    """Everything is checked before the model is loaded. Returns the exit status."""
    from goca.cli.images import find
    from goca.cli.outputs import outputs
    from goca.cli.prompt_list import PromptList
    from goca.cli.results import places_of
    from goca.files.atomic import sweep

    stream = str(args.out) == STANDARD
    folder = args.out = Path() if stream else args.out
    wanted = None if words.way(args) == "regions" else words.chosen(args)
    try:
        if isinstance(wanted, PromptList):
            images = find(given or [str(path) for path in wanted.prompts])
            wanted = wanted.for_images(images)
        else:
            images = find(given)
        places = places_of(images, folder)
        results = outputs(formats, folder, args.scores, len(images), stream)
        model = chosen_model(args.model, args.pipeline, args.denoiser)
        configured(model, args)  # raises its errors before anything is written
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        from goca.variants.regions import RegionFinder  # only now: it loads torch

        shown = sys.stderr if stream else sys.stdout
        work = Work(load(model, args, RegionFinder if wanted is None else None), args, model, wanted, results, shown)
        work.introduce()
        return work.run(images, places)
    finally:
        if wanted is not None:
            wanted.close()
