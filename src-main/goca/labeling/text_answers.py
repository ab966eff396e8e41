"""Answers that were collected one file per image: a folder of IMAGE.txt, each with what a model said."""

from __future__ import annotations

from pathlib import Path

from goca.files.text import read_text
from goca.labeling.errors import LabelingError, NoCaption
from goca.labeling.published import PUBLISHED
from goca.labeling.replies import Reply, read_caption

MOST_WORDS = 200  # of a caption; what is longer is no list of things
MOST_BYTES = 100_000  # of a file; no answer is longer
ENDINGS = (".jpg", ".jpeg", ".png")


def text_files(folder: Path, name: str) -> list[Path]:
    """The answers of the data set called `name`: in a folder of that name inside, else in the folder itself."""
    return next((found for place in (folder / name, folder) if (found := sorted(place.glob("*.txt")))), [])


def read_text_answers(files: list[Path], name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Captions by image file name, and the images whose file holds none, with the reason.

    files   IMAGE.txt or IMAGE.jpg.txt; an image name without an ending gets the data set's
    errors  LabelingError where two files are about the same image
    """
    captions: dict[str, str] = {}
    refused: dict[str, str] = {}
    for file in files:
        image = file.stem if file.stem.lower().endswith(ENDINGS) else file.stem + ending_of(name)
        if image in captions or image in refused:
            raise LabelingError(f"two files are about {image}: {file} is one of them; keep one")
        try:
            captions[image] = caption_in(file)
        except NoCaption as error:
            refused[image] = str(error)
    return captions, refused


def caption_in(file: Path) -> str:
    """The caption that a file holds, cleaned as the labeller cleans a reply. Raises NoCaption."""
    if (size := file.stat().st_size) > MOST_BYTES:
        raise NoCaption("oversized", f"{size:,} bytes; an answer has at most {MOST_BYTES:,}")
    try:
        text = read_text(file)
    except UnicodeDecodeError as error:
        raise NoCaption("malformed", f"no UTF-8 text ({error})") from None
    return read_caption(Reply(text, "stop", None, None, None), MOST_WORDS)


def ending_of(name: str) -> str:
    """The ending of a data set's image files."""
    return ".png" if name in PUBLISHED and PUBLISHED[name].pattern.endswith("png") else ".jpg"
