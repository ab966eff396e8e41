"""Check the published labels in a checkout of the authors' repository, and copy them.

    python3 scripts/import_labels.py CHECKOUT                                   all six data sets
    python3 scripts/import_labels.py CHECKOUT voc --root voc=/data/VOCdevkit/VOC2012
    python3 scripts/import_labels.py CHECKOUT --check                           only check, copy nothing
    python3 scripts/import_labels.py ANSWERS voc                                a folder of IMAGE.txt, one answer each

With --root NAME=FOLDER the captions are compared with the data set's own list of images; without it, only their number
and the form of their names are. Files are copied unchanged to where configs/dataset/NAME.yaml expects them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from goca.datasets import DatasetConfig, SampleError, load_dataset
from goca.files.text import read_yaml
from goca.labeling import (
    PUBLISHED,
    Finding,
    LabelingError,
    examine,
    examine_captions,
    find_published,
    import_labels,
    read_text_answers,
    text_files,
)

ROOT = Path(__file__).resolve().parents[1]
SHOWN = 5  # names that are listed per problem


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the checkout, or its gpt_output/")
    parser.add_argument("datasets", nargs="*", metavar="dataset", help=f"default: all of {', '.join(PUBLISHED)}")
    parser.add_argument("--root", action="append", default=[], metavar="NAME=FOLDER", help="folder of a data set")
    parser.add_argument("--out", type=Path, help="write NAME.json to this folder instead of the configured one")
    parser.add_argument("--replace", action="store_true", help="overwrite existing labels")
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--strict", action="store_true", help="exit with an error if a caption is missing")
    found = parser.parse_args(given)
    found.roots = dict(each.partition("=")[::2] for each in found.root)
    if unknown := [name for name in [*found.datasets, *found.roots] if name not in PUBLISHED]:
        parser.error(f"unknown data set {unknown[0]!r}; expected one of: {', '.join(PUBLISHED)}")
    return found


def main(given: list[str] | None = None) -> int:
    """Return 1 if a file cannot be used, or with --strict if a caption is missing; else 0."""
    options = arguments(given)
    bad = 0
    for name in options.datasets or PUBLISHED:
        try:
            complete = take(name, options)
            bad += options.strict and not complete
        except (ValueError, OSError) as error:
            bad += 1
            print(f"{name}: {error}")
    return 1 if bad else 0


def take(name: str, options: argparse.Namespace) -> bool:
    """Check one data set's labels, print the result and copy them; return whether every image has a caption."""
    source = find_published(options.folder, name)
    answers = [] if source or not options.datasets else text_files(options.folder, name)
    if source is None and not answers:
        raise LabelingError(
            f"there is no {PUBLISHED[name].file} in {options.folder} or its gpt_output/, and no folder of IMAGE.txt "
            f"(for these, name the data set: {options.folder} {name})"
        )
    fields = configured(name)
    target = options.out / f"{name}.json" if options.out else ROOT / (fields.get("labels") or f"gpt_output/{name}.json")
    root = options.roots.get(name)
    listed, unreadable = (None, {}) if root is None else file_names(name, fields, root)
    if source is not None:
        finding = examine(source, name, listed)
    else:
        finding = examine_captions(*read_text_answers(answers, name), name, listed, str(answers[0].parent))
    for line in described(name, finding, unreadable):
        print(line)
    if options.check:
        return finding.complete
    if not finding.captions:
        raise LabelingError(f"{source or answers[0].parent} holds no captions; nothing was written")
    written = import_labels(source or finding.captions, target, options.replace)
    print(f"  {'written' if written else 'exists already'}: {target}")
    return finding.complete


def configured(name: str) -> dict[str, Any]:
    path = ROOT / "configs" / "dataset" / f"{name}.yaml"
    return read_yaml(path) if path.is_file() else {}


def file_names(name: str, fields: dict[str, Any], root: str) -> tuple[list[str], dict[str, str]]:
    """Return the file names of a data set's images, and the reasons for ids whose files cannot be read."""
    if not fields:
        raise LabelingError(f"configs/dataset/{name}.yaml is missing, so the list of images cannot be read")
    dataset = load_dataset(DatasetConfig.of({**fields, "root": root}))
    names, unreadable = [], {}
    for image_id in dataset.ids:
        try:
            names.append(dataset.sample(image_id).name)
        except SampleError as error:
            unreadable[image_id] = str(error)
    return names, unreadable


def described(name: str, finding: Finding, unreadable: dict[str, str]) -> list[str]:
    """Yield a line per problem."""
    compared = "not compared with the data set's list (give --root)"
    if finding.listed is not None:
        compared = f"{finding.listed} images in the data set's list"
    elif len(finding.captions) != finding.expected:
        compared = f"{finding.expected} were published; {compared}"
    kinds = {
        "no caption for": finding.missing,
        "not in the list": finding.further,
        "in the list, but not readable": [f"{image} ({reason})" for image, reason in unreadable.items()],
        "no usable entry": [f"{image!r} ({reason})" for image, reason in finding.refused.items()],
        "captions without words": finding.wordless,
        "unusual file names": finding.foreign,
        "captions with an unmatched bracket (used as they are)": finding.unclosed,
        "long captions, whose end a tokenizer may cut off": finding.long,
    }
    lines = [
        f"  {len(images)} {kind}: {', '.join(images[:SHOWN])}{', ...' * (len(images) > SHOWN)}"
        for kind, images in kinds.items()
        if images
    ]
    return [f"{name}: {len(finding.captions)} captions; {compared}", *lines]


if __name__ == "__main__":
    sys.exit(main())
