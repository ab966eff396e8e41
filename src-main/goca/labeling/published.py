"""Labels made elsewhere: find them in a checkout, check them against the data set's list, copy them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from goca.files.atomic import write_text
from goca.labeling.errors import LabelingError
from goca.prompts import parse_brackets, read_captions

LONG = 60  # words; tokenizers keep 77 tokens, so the end of a longer caption may be cut off
_VOC, _COCO = r"\d{4}_\d{6}\.jpg", r"\d{12}\.jpg"


@dataclass(frozen=True)
class Published:
    """A published labels file: its name, its number of captions, and the pattern of its image names."""

    file: str
    captions: int
    pattern: str


PUBLISHED = {
    "voc": Published("voc.json", 1464, _VOC),
    "context": Published("context.json", 964, _VOC),
    "coco-object": Published("coco-object.json", 5000, _COCO),
    "coco-stuff": Published("coco-stuff.json", 5000, _COCO),
    "cityscapes": Published("city.json", 500, r"[a-z-]+_\d{6}_\d{6}_leftImg8bit\.png"),
    "ade20k": Published("ade.json", 2000, r"ADE_val_\d{8}\.jpg"),
}


@dataclass
class Finding:
    """The content of a labels file: usable captions, and lists of images with problems.

    listed    images in the data set's list; None: not compared
    refused   image -> why its entry is not a caption (another form, a name with folders in it)
    wordless  captions without a single word
    missing   images of the data set's list without a caption
    further   captions for images that are not in the list
    """

    captions: dict[str, str]
    expected: int | None
    listed: int | None
    refused: dict[str, str] = field(default_factory=dict)
    wordless: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)  # image names that do not have this data set's pattern
    unclosed: list[str] = field(default_factory=list)  # captions with an unmatched bracket; they can be used
    long: list[str] = field(default_factory=list)  # captions of more than LONG words; they can be used
    missing: list[str] = field(default_factory=list)
    further: list[str] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether every image that should have a caption has a usable one."""
        short = self.listed is None and self.expected is not None and len(self.captions) < self.expected
        return not (self.refused or self.wordless or self.missing or short)


def find_published(folder: Path, name: str) -> Path | None:
    """Find the data set's published file: in the folder, its gpt_output/, or that of a subfolder.

    Raises LabelingError if `folder` is not a folder.
    """
    if not folder.is_dir():
        raise LabelingError(f"{folder} is not a folder; give a checkout of the authors' repository, or its gpt_output/")
    file = PUBLISHED[name].file
    places = [folder / file, folder / "gpt_output" / file, *sorted(folder.glob(f"*/gpt_output/{file}"))]
    return next((path for path in places if path.is_file()), None)


def examine(path: Path, name: str, listed: Iterable[str] | None = None) -> Finding:
    """Check a labels file of the data set called `name`.

    listed  file names of the data set's images; None: only the number of captions is compared with the published number
    Raises AnnotationError if the file is incomplete, not a JSON object, or has duplicate names; LabelingError
    if its image names belong to another data set.
    """
    return examine_captions(*read_captions(path), name, listed, str(path))


def examine_captions(
    captions: dict[str, str], refused: dict[str, str], name: str, listed: Iterable[str] | None, source: str
) -> Finding:
    """Like `examine`, for captions that are already read; `source` names them in errors."""
    published, images = PUBLISHED.get(name), None if listed is None else set(listed)
    wordless = [image for image, caption in captions.items() if not any(map(str.isalpha, _words(caption)))]
    form = re.compile(published.pattern if published else ".*")
    foreign = [image for image in captions if not form.fullmatch(image)]
    usable = {image: caption for image, caption in captions.items() if image not in set(wordless)}
    strangers = foreign if images is None else [image for image in captions if image not in images]
    if captions and len(strangers) == len(captions):
        first = strangers[0]
        raise LabelingError(f"{source} holds no image of {name}; its first is {first!r}. Is it for another data set?")
    return Finding(
        captions=usable,
        expected=published.captions if published else None,
        listed=None if images is None else len(images),
        refused=refused,
        wordless=wordless,
        foreign=foreign,
        unclosed=[image for image, caption in usable.items() if caption.count("(") != caption.count(")")],
        long=[image for image, caption in usable.items() if len(caption.split()) > LONG],
        missing=[] if images is None else sorted(images - set(usable)),
        further=[] if images is None else strangers,
    )


def import_labels(source: Path | dict[str, str], target: Path, replace: bool = False) -> bool:
    """Copy a labels file, or write one from captions; return False if the target already has the same content.

    Raises LabelingError if the target has other content and `replace` is false, RunError if it cannot be written.
    """
    if isinstance(source, Path):
        text = source.read_bytes().decode("utf-8")
    else:
        entries = {image: {"caption": caption} for image, caption in source.items()}
        text = json.dumps(entries, indent=1, ensure_ascii=False) + "\n"
    if target.exists():
        if target.read_bytes() == text.encode("utf-8"):
            return False
        if not replace:
            raise LabelingError(f"{target} exists with other content; move it away, or give --replace")
    try:
        os.makedirs(target.parent, exist_ok=True)
    except OSError as error:
        raise LabelingError(f"{target.parent} cannot be created: {error}") from None
    write_text(target, text)
    return True


def _words(caption: str) -> str:
    return "".join(item for group in parse_brackets(caption) for item in group)
