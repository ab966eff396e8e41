"""Label tagged photos: label maps from class names, for training and for correction in a labelling tool.

goca label photos/ --tags tags.csv --model sd15 --pipeline FOLDER --format voc,coco,yolo,labelme --out masks
goca label photos/ --tags folders --out masks              photos/cat/1.jpg has the tag cat
goca label photos/ --vocabulary coco --out masks           look for every name of a list, or of a file
goca label photos/ --describe --out masks                  a vision server names what is in each photo

Tags: a CSV (photo.jpg,cat,grass), a JSON ({"photo.jpg": ["cat", "grass"]}) or the names of folders. A pixel is set to
255 (ignore) if its two best scores differ by less than --doubt, or if its class has a presence below --presence. The
output folder contains labels/ (palette PNGs of class ids), classes.json, metadata.json, review.html (the most doubtful
images first), and a folder per format. To resume an interrupted run, run the same command again. Exit status 1: a photo
could not be read, or a class name was cut.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from goca.cli import words
from goca.cli.models import NO_STEPS, add_model_arguments, chosen_model, steps_of

TOGETHER = 8  # photos per batch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", type=Path, metavar="FOLDER", help="the folder of photos; subfolders are searched too")
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--tags", metavar="FILE", help='a CSV or JSON file of tags, or "folders"')
    ways.add_argument("--vocabulary", metavar="LIST", help=f"look for all names of a list: {words.LISTS}")
    ways.add_argument("--describe", action="store_true", help="ask a vision server what is in each photo")
    parser.add_argument("--labeler", action="append", default=[], metavar="NAME|KEY=VALUE", help=words.SERVERS)
    parser.add_argument(
        "--allow-missing", action="store_true", help="skip photos without tags, and tags without a photo"
    )
    parser.add_argument(
        "--doubt", type=float, default=0.1, metavar="D", help="0 to 1 (default: 0.1); 0: no pixel is 255"
    )
    parser.add_argument("--presence", type=float, metavar="P", help="0 to 1 (default: the config's least_presence)")
    parser.add_argument(
        "--refine", metavar="STEPS", help=f'a chain such as "dense_crf" or "affinity,pamr"; {NO_STEPS}: no refinement'
    )
    add_set_arguments(parser, TOGETHER)
    add_model_arguments(parser)


def add_set_arguments(parser: argparse.ArgumentParser, batch: int) -> None:
    """Arguments shared by the two commands that write a labelled set."""
    parser.add_argument("--format", default="voc", metavar="NAMES", help='such as "voc,coco" (default: voc)')
    parser.add_argument(
        "--val", type=float, default=0.0, metavar="SHARE", help="share of the images for the split val, 0 to 1"
    )
    parser.add_argument("--batch", type=int, default=batch, metavar="N", help=f"images per batch (default: {batch})")
    parser.add_argument(
        "--processes", type=int, default=1, metavar="N", help="processes among which the work is divided (default: 1)"
    )
    parser.add_argument("--review", type=int, default=500, metavar="N", help="images on the review page (default: 500)")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="output folder")


def check_set_arguments(args: argparse.Namespace) -> list[str]:
    """The chosen formats. Raises FormatError or LabelSetError before anything is loaded."""
    from goca.formats import FormatError, chosen_formats
    from goca.formats.coco import library
    from goca.labelsets.errors import LabelSetError

    for name in ("batch", "processes"):
        if getattr(args, name) < 1:
            raise LabelSetError(f"--{name} is {getattr(args, name)}; expected 1 or more")
    for name in ("val", "doubt", "presence"):
        if (value := getattr(args, name)) is not None and not 0 <= value <= 1:
            raise LabelSetError(f"--{name} is {value}; expected 0 to 1")
    formats = list(chosen_formats(args.format))
    if not formats:
        raise FormatError("--format names no format; expected e.g. voc,coco")
    if any(name.startswith("coco") for name in formats):
        library()
    return formats


def run(args: argparse.Namespace) -> int:
    from goca.labelsets.export import export, labelled
    from goca.labelsets.processes import spread
    from goca.labelsets.store import Store

    formats = check_set_arguments(args)
    args.model = chosen_model(args.model, args.pipeline)
    config_of(args)  # raises its errors before the folder is created
    photos, args.classes, args.known = asked_for(args)
    args.asked = photos
    spread(work, args, args.processes)
    settings, store = settings_of(args), Store(args.out, settings_of(args))
    try:
        paths, names = {photo.name: photo.path for photo in photos}, [photo.name for photo in photos]
        items = labelled(store, names, paths.__getitem__, args.val)
        export(store, items, names, args.classes, formats, settings, args.review)
        return report(args.out, [record for name, record in store.records().items() if name in paths], len(items))
    finally:
        store.close()


def work(args: argparse.Namespace, rank: int) -> None:
    """One process's share of the photos."""
    from tqdm import tqdm

    from goca.labelsets.processes import device_of
    from goca.labelsets.pseudo import Labelling, label_photos
    from goca.labelsets.store import Store

    store = Store(args.out, settings_of(args), rank)
    try:
        segmenter = load(args, device_of(args.device, rank))
        how = Labelling(segmenter, args.classes, args.doubt, least_presence(args), args.known)
        share = label_photos(how, args.asked, store, args.batch, rank, args.processes)
        for _ in tqdm(share, total=len(args.asked) // args.processes, unit="photo", disable=None if not rank else True):
            pass
    finally:
        store.close()


def load(args: argparse.Namespace, device: str) -> Any:
    """The segmenter. If the classes are known to be present, none is dropped because of a low presence."""
    from goca.segmenter import Segmenter

    config = config_of(args, least_presence=0.0 if args.known else least_presence(args))
    files = {"variant": None if args.variant == "plain" else args.variant, "denoiser": args.denoiser}
    return Segmenter.from_pretrained(args.pipeline, config, device, args.dtype, **files)


def config_of(args: argparse.Namespace, **fields: Any) -> Any:
    """The model's config, with the chain of --refine. Raises ConfigError, ChainError."""
    from goca.config import load_config

    if args.refine:
        fields["refine"] = steps_of(args.refine)
    return load_config(args.model, **fields)


def least_presence(args: argparse.Namespace) -> float:
    from goca.config import load_config

    return load_config(args.model).least_presence if args.presence is None else args.presence


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that affect the label maps, besides the photos and their tags."""
    names = ("model", "pipeline", "denoiser", "variant", "dtype", "refine", "doubt", "batch")
    return {
        "command": "label",
        **{name: getattr(args, name) for name in names},
        "presence": least_presence(args),
        "words": "vocabulary " + args.vocabulary if args.vocabulary else "describe" if args.describe else "tags",
    }


def asked_for(args: argparse.Namespace) -> tuple[list[Any], dict[int, str], bool]:
    """The photos with the classes to look for, the class table, and whether these classes are known to be present."""
    from goca.files.names import distinct
    from goca.labelsets.classtable import checked, class_table
    from goca.labelsets.pseudo import Photo
    from goca.labelsets.tags import read_tags

    paths = photos_in(args.photos, args.out)
    if args.vocabulary:
        classes = checked(dict(enumerate(words.first_names(args.vocabulary), start=1)))
        wanted = {path: tuple(classes.values()) for path in paths}
    else:
        wanted = described(args, paths) if args.describe else read_tags(args.tags, paths, args.allow_missing)
        classes = class_table(args.out, {name for names in wanted.values() for name in names})
    ids = {name: class_id for class_id, name in classes.items()}
    stems = distinct(str(Path(path).with_suffix("")) for path in wanted)
    photos = [
        Photo(args.photos / path, stem, tuple(sorted(ids[name] for name in wanted[path])))
        for path, stem in zip(wanted, stems)
    ]
    return photos, classes, not args.vocabulary


def photos_in(folder: Path, out: Path) -> list[str]:
    """Paths of the photos in a folder and its subfolders, sorted, without those of the results."""
    from goca.cli.images import ENDINGS
    from goca.labelsets.errors import LabelSetError

    if not folder.is_dir():
        raise LabelSetError(f"{folder} is not a folder; expected a folder with photos")
    results = out.resolve()
    found = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in ENDINGS and path.is_file() and not path.resolve().is_relative_to(results)
    )
    if not found:
        raise LabelSetError(f"{folder} contains no photo ({', '.join(ENDINGS)})")
    return found


def described(args: argparse.Namespace, paths: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Photo -> the names that a vision server gives; its answers are stored in OUT/descriptions.jsonl."""
    from diffusion_feature.images import ImageUnreadable, read_image
    from tqdm import tqdm

    from goca.labelsets.errors import TagsMismatch
    from goca.labelsets.tags import joined
    from goca.prompts import parse_brackets

    given = argparse.Namespace(prompt=None, words=None, describe=True, labeler=args.labeler, out=args.out)
    describer, found = words.chosen(given), []
    try:
        for path in tqdm(paths, unit="photo", disable=None):
            try:
                caption = describer.of(read_image(args.photos / path).image, path)
            except (ImageUnreadable, words.WordsNotFound) as error:
                tqdm.write(f"{type(error).__name__}: {error}", file=sys.stderr)
                continue
            texts = [caption] if isinstance(caption, str) else caption
            found.append((path, [group[0] for text in texts for group in parse_brackets(text)]))
    finally:
        describer.close()
    if not found:
        raise TagsMismatch("the server named nothing in any photo; give --tags or --vocabulary")
    return joined(found)


def report(out: Path, records: Sequence[Mapping[str, Any]], count: int) -> int:
    """Print a summary of labelled and skipped photos; returns the exit status."""
    skipped = [record for record in records if "skipped" in record]
    cut = sorted({name for record in records for name in record.get("cut", [])})
    for record in skipped:
        print(f"{record['name']}: skipped: {record['skipped']}", file=sys.stderr)
    if cut:
        fix = "their masks are based on the rest of the name, or empty; choose shorter names"
        print(f"cut by the text encoder: {', '.join(cut)}; {fix}", file=sys.stderr)
    doubt = sum(record["doubt"] for record in records if "doubt" in record) / max(count, 1)
    print(f"{count} photos labelled in {out}; {doubt:.1%} of the pixels are doubtful (255): see {out / 'review.html'}")
    return int(bool(skipped or cut))
