"""Answers collected as one file per image: a folder of IMAGE.txt files with a model's replies."""

from __future__ import annotations

from pathlib import Path

from goca.files.text import read_text
from goca.labeling.errors import LabelingError, NoCaption
from goca.labeling.published import PUBLISHED
from goca.labeling.replies import Reply, read_caption

MOST_WORDS = 200  # of a caption; longer texts are not lists of things
MOST_BYTES = 100_000  # of a file; longer files are not answers
ENDINGS = (".jpg", ".jpeg", ".png")


def text_files(folder: Path, name: str) -> list[Path]:
    """Find the answers of the data set called `name`: in its subfolder of that name, else in the folder itself."""
    return next((found for place in (folder / name, folder) if (found := sorted(place.glob("*.txt")))), [])


def read_text_answers(files: list[Path], name: str) -> tuple[dict[str, str], dict[str, str]]:
    """Read captions by image file name, and the reason for each image whose file holds none.

    files   IMAGE.txt or IMAGE.jpg.txt; an image name without an extension gets the data set's
    errors  LabelingError if two files belong to the same image
    """
    captions: dict[str, str] = {}
    refused: dict[str, str] = {}
    for file in files:
        image = file.stem if file.stem.lower().endswith(ENDINGS) else file.stem + ending_of(name)
        if image in captions or image in refused:
            raise LabelingError(f"two files belong to {image}, one of them {file}; remove one")
        try:
            captions[image] = caption_in(file)
        except NoCaption as error:
            refused[image] = str(error)
    return captions, refused


def caption_in(file: Path) -> str:
    """Read the caption from a file, cleaned like a labeller's reply. Raises NoCaption."""
    if (size := file.stat().st_size) > MOST_BYTES:
        raise NoCaption("oversized", f"{size:,} bytes; an answer has at most {MOST_BYTES:,}")
    try:
        text = read_text(file)
    except UnicodeDecodeError as error:
        raise NoCaption("malformed", f"not UTF-8 text ({error})") from None
    return read_caption(Reply(text, "stop", None, None, None), MOST_WORDS)


def ending_of(name: str) -> str:
    """The file extension of a data set's images."""
    return ".png" if name in PUBLISHED and PUBLISHED[name].pattern.endswith("png") else ".jpg"
