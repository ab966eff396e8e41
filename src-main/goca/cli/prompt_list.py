"""`--prompts`: a CSV file with an image and its prompt in each line."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from goca.cli.images import STANDARD
from goca.cli.words import WordsNotGiven
from goca.errors import GocaError
from goca.files.names import listed
from goca.labelsets.tags import HEADS

if TYPE_CHECKING:
    from PIL import Image

FORM = (
    """expected a line per image: photo.jpg,"cat, grass"   or   photo.jpg,cat,grass   with or without a header line"""
)


class PromptsUnreadable(GocaError, ValueError):
    """A prompt file is missing, is not CSV, or has a line without an image or a prompt."""


@dataclass
class PromptList:
    """A prompt for each image.

    prompts  path -> prompt, in the file's order
    source   the file, for the record
    """

    prompts: dict[Path, str]
    source: str
    fixed: None = None

    @classmethod
    def read(cls, given: str) -> PromptList:
        """From a CSV file, or from standard input ("-"); paths are relative to the file. Raises PromptsUnreadable."""
        file = Path(given).expanduser()
        try:
            text = sys.stdin.read() if given == STANDARD else file.read_text(encoding="utf-8-sig")
            rows = [row for row in csv.reader(io.StringIO(text), strict=True) if any(cell.strip() for cell in row)]
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise PromptsUnreadable(f"--prompts {given} cannot be read: {error}; {FORM}") from None
        if rows and rows[0][0].strip().lower() in HEADS:
            rows = rows[1:]
        folder = Path() if given == STANDARD else file.parent
        prompts: dict[Path, str] = {}
        for row in rows:
            name, prompt = row[0].strip(), ", ".join(cell.strip() for cell in row[1:] if cell.strip())
            if not name or not prompt:
                raise PromptsUnreadable(
                    f"--prompts {given}: the line {','.join(row)!r} lacks an image or a prompt; {FORM}"
                )
            if (path := folder / name) in prompts:
                raise PromptsUnreadable(
                    f"--prompts {given}: {name} has two lines; write one prompt with all class names"
                )
            prompts[path] = prompt
        if not prompts:
            raise PromptsUnreadable(f"--prompts {given} contains no image; {FORM}")
        return cls(prompts, f"prompts {given}")

    def for_images(self, images: Sequence[Path]) -> PromptList:
        """The prompts of these images, looked up by path or, if it is unique, by file name.

        Raises WordsNotGiven for an image without a prompt.
        """
        by_path = {path.resolve(): prompt for path, prompt in self.prompts.items()}
        by_name: dict[str, list[str]] = {}
        for path, prompt in self.prompts.items():
            by_name.setdefault(path.name, []).append(prompt)
        found: dict[Path, str] = {}
        missing: list[str] = []
        for image in images:
            same = by_name.get(image.name, [])
            own = by_path.get(image.resolve(), same[0] if len(same) == 1 else None)
            if own is None:
                missing.append(str(image))
            else:
                found[image] = own
        if missing:
            raise WordsNotGiven(f"{self.source} has no prompt for {listed(missing)}; add a line for each; {FORM}")
        return PromptList(found, self.source)

    def of(self, image: Image.Image, name: str, path: Path | None = None) -> str:
        """The prompt of one of the images."""
        assert path is not None  # `goca segment` always passes it
        return self.prompts[path]

    def close(self) -> None:
        pass
