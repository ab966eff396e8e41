"""Generate a labelled set: images from a text-to-image pipeline, with label maps from its attention.

goca synth --classes "star, fish" --count 20 --format voc,coco --out synthetic
goca synth --model sd15 --pipeline FOLDER --classes names.txt --count 2000 --backgrounds "on grass; in a room" \\
    --template "a photo of {objects} {background}" --val 0.1 --out synthetic

Every class is requested equally often. The label map is the trace of the class names over --trace-steps; pixels whose
two best scores differ by less than --doubt are 255 (ignore). An image that lacks a requested class is generated again
with another seed, up to --tries times, and then dropped, or marked in metadata.json (--absent mark). The output folder
contains images/, labels/ (palette PNGs of class ids), classes.json, metadata.json (prompt, seed, ... per image),
review.html, and a folder per format. To resume an interrupted run, or to enlarge the set (--count), run the command
again. Exit status 1: a class never appeared in an image.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from goca.cli import label
from goca.cli.models import EMBEDDED, chosen_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--classes", required=True, metavar="LIST", help='"star, fish", a vocabulary such as voc, or a file'
    )
    parser.add_argument("--count", type=int, required=True, metavar="N", help="images to generate")
    parser.add_argument("--together", default="1-2", metavar="A-B", help="classes per image (default: 1-2)")
    parser.add_argument(
        "--backgrounds", metavar="LIST", help='separated by semicolons: "sky, grass; wall, road"; or a file'
    )
    parser.add_argument("--template", metavar="TEXT", help='default: "{objects}, {background}"')
    parser.add_argument("--captions", type=Path, metavar="FILE", help="one caption per line, instead of a template")
    parser.add_argument("--steps", type=int, default=20, metavar="N", help="denoising steps (default: 20)")
    parser.add_argument("--guidance", type=float, default=4.0, metavar="G", help="guidance scale (default: 4)")
    parser.add_argument(
        "--trace-steps",
        default="second half",
        metavar="RULE",
        help="all, first half, second half, last quarter (default: second half)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the set (default: 0)")
    parser.add_argument("--tries", type=int, default=3, metavar="N", help="generations per image (default: 3)")
    parser.add_argument(
        "--absent", default="drop", metavar="WHAT", help="drop (default) or mark images that lack a class"
    )
    parser.add_argument(
        "--presence",
        type=float,
        default=0.5,
        metavar="P",
        help="a class with a lower presence is absent (default: 0.5); 0: no check",
    )
    parser.add_argument(
        "--doubt", type=float, default=0.1, metavar="D", help="0 to 1 (default: 0.1); 0: no pixel is 255"
    )
    label.add_set_arguments(parser, 8)
    parser.add_argument("--model", metavar="CONFIG", help=f"a config, such as sd15, sdxl (default: {EMBEDDED})")
    parser.add_argument("--pipeline", metavar="PLACE", help="a pipeline folder or hub id (default: the config's own)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16")


def run(args: argparse.Namespace) -> int:
    from goca.config import load_config
    from goca.labelsets.export import export, labelled
    from goca.labelsets.processes import spread
    from goca.labelsets.store import Store
    from goca.labelsets.synthetic import name_of

    formats = label.check_set_arguments(args)
    args.model = chosen_model(args.model, args.pipeline)
    load_config(args.model)  # raises for an unknown name before the folder is created
    args.how = generation(args)
    args.table = class_names(args.classes)
    args.plan = plan(args)
    spread(work, args, args.processes)
    settings = settings_of(args)
    store = Store(args.out, settings)
    try:
        names = [name_of(each.number) for each in args.plan]
        items = labelled(store, names, lambda name: args.out / "images" / f"{name}.png", args.val)
        export(store, items, names, args.table, formats, settings, args.review)
        return report(args, [record for name, record in store.records().items() if name in set(names)], len(items))
    finally:
        store.close()


def work(args: argparse.Namespace, rank: int) -> None:
    """One process's share of the images."""
    from tqdm import tqdm

    from goca.config import load_config
    from goca.generation.loading import load_pipeline
    from goca.labelsets.processes import device_of
    from goca.labelsets.store import Store
    from goca.labelsets.synthetic import Generator, generate

    store = Store(args.out, settings_of(args), rank)
    try:
        config = load_config(args.model)
        pipe = load_pipeline(str(args.pipeline or config.pipeline), config, device_of(args.device, rank), args.dtype)
        generator = Generator(pipe, config, args.table, args.how)
        made = generate(generator, args.plan, store, rank, args.processes)
        for _ in tqdm(made, total=len(args.plan) // args.processes, unit="image", disable=None if not rank else True):
            pass
    finally:
        store.close()


def generation(args: argparse.Namespace) -> Any:
    from goca.labelsets.synthetic import Generation

    return Generation(
        steps=args.steps,
        guidance=args.guidance,
        traced=args.trace_steps,
        seed=args.seed,
        tries=args.tries,
        absent=args.absent,
        least_presence=args.presence,
        doubt=args.doubt,
        batch=args.batch,
    )


def class_names(given: str) -> dict[int, str]:
    """Class id -> name, from a list, a packaged vocabulary or a file. Raises VocabularyError, LabelSetError."""
    from goca.cli.words import first_names
    from goca.datasets import vocabularies
    from goca.labelsets.classtable import checked
    from goca.open.query import clean

    if given in vocabularies() or Path(given).expanduser().is_file():
        names = first_names(given)
    else:
        names = [name for part in given.split(",") if (name := clean(part))]
    return checked(dict(enumerate(dict.fromkeys(names), start=1)))


def plan(args: argparse.Namespace) -> list[Any]:
    from goca.files.text import read_lines
    from goca.labelsets.errors import PlanError
    from goca.labelsets.plan import balanced, from_captions

    if args.captions:
        if args.template or args.backgrounds:
            raise PlanError("--captions replaces --template and --backgrounds; give one or the other")
        return from_captions(args.table, read_lines(args.captions), args.count)
    backgrounds: list[str] = []
    if args.backgrounds:
        is_file = Path(args.backgrounds).expanduser().is_file()
        parts = read_lines(Path(args.backgrounds).expanduser()) if is_file else args.backgrounds.split(";")
        backgrounds = [part.strip() for part in parts if part.strip()]
    return balanced(args.table, args.count, args.seed, together(args), backgrounds, args.template)


def together(args: argparse.Namespace) -> tuple[int, int]:
    from goca.labelsets.errors import PlanError

    low, _, high = args.together.partition("-")
    try:
        fewest, most = int(low), int(high or low)
    except ValueError:
        raise PlanError(f"--together is {args.together!r}; expected e.g. 1-2 or 2") from None
    return fewest, min(most, len(args.table)) if fewest <= len(args.table) else most


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that affect the files. --count is not among them: a larger set begins with the smaller one."""
    names = ("model", "pipeline", "dtype", "together", "backgrounds", "template")
    captions = str(args.captions) if args.captions else None
    own = {name: getattr(args, name) for name in names}
    return {
        "command": "synth",
        **own,
        "captions": captions,
        "classes": list(args.table.values()),
        **args.how.settings(),
    }


def report(args: argparse.Namespace, records: list[Any], count: int) -> int:
    """Print a summary, with the classes that never appeared; returns the exit status."""
    from goca.labelsets.synthetic import never_there

    absent = never_there(records, args.table)
    for name, tries in absent.items():
        print(f"{name!r} never appeared, in {tries} generations; the model may not know it", file=sys.stderr)
    dropped = sum(record["dropped"] for record in records)
    if withheld := sum(record.get("withheld", False) for record in records):
        print(f"{withheld} images were blacked out by the pipeline's safety checker in every try", file=sys.stderr)
    print(f"{count} pairs in {args.out}, {dropped} images dropped; review them in {args.out / 'review.html'}")
    return int(bool(absent))
