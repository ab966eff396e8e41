"""One call of `goca segment`: segments the images one by one and reports about them."""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from goca.cli.models import embedded_model, embedded_words, strange_words
from goca.cli.words import WordsNotFound
from goca.files.names import listed

if TYPE_CHECKING:
    from PIL import Image

    from goca.cli.outputs import Output
    from goca.cli.results import Places
    from goca.cli.words import Words
    from goca.segmentation import Segmentation
    from goca.segmentation_model import SegmentationModel

OURS = ("goca", "diffusion_feature")
SHOWN = 20  # words listed in a note


@dataclass
class Work:
    """A loaded model, the class names to look for, and the outputs.

    words    the source of class names; None: regions without names
    outputs  where results are written
    stream   where lines about the results are printed
    """

    segmenter: SegmentationModel
    args: argparse.Namespace
    model: str
    words: Words | None
    outputs: Sequence[Output]
    stream: TextIO
    said: set[str] = field(default_factory=set)  # lines that were printed; none is printed twice
    noted: dict[str, list[str]] = field(default_factory=dict)  # prompt -> notes on it
    lost: bool = False  # class names were cut, or an image could not be used

    @property
    def pipeline(self) -> str:
        return self.args.pipeline or str(self.segmenter.config.pipeline)

    @property
    def embedded(self) -> str | None:
        """The name of the embedded model, if it is one."""
        return embedded_model(self.pipeline)

    def introduce(self) -> None:
        """Print what the embedded model knows, and the notes on class names that are the same for all images."""
        if self.embedded and self.words is not None:
            known = ", ".join(embedded_words(self.embedded))
            self.say(f"{self.embedded}, the embedded model, knows only its own drawn scenes: {known}.")
        if self.words is not None and self.words.fixed is not None:
            self.notes_on(as_text(self.words.fixed))

    def notes_on(self, text: str) -> list[str]:
        """Print, once, which words of a prompt the embedded model does not know and which names do not fit."""
        from goca.prompts.grammar import names_nothing

        if text in self.noted:
            return self.noted[text]
        notes = self.noted[text] = []
        _, cut = self.segmenter.fitted(text, self.args.ask)
        if self.embedded and (strange := strange_words(self.embedded, text)):
            notes.append(f"{self.embedded} does not know: {listed(strange, SHOWN)}; choose another --model")
        empty = [name for name in cut if names_nothing(name)]
        cut = [name for name in cut if name not in empty]
        self.lost |= bool(empty or cut)
        if empty:
            notes.append(f"not the name of anything visible, and without area: {listed(empty, SHOWN)}; leave it out")
        if cut:
            notes.append(f"cut, because the prompt is too long, and without area: {listed(cut, SHOWN)}; name fewer")
        for note in notes:
            self.say(note)
        return notes

    def run(self, images: Sequence[Path], places: Sequence[Places]) -> int:
        """Segment one image after the other; unusable ones are reported and skipped. Returns the exit status."""
        from diffusion_feature.images import ImageUnreadable
        from tqdm import tqdm

        left_out = 0
        for path, place in zip(tqdm(images, unit="image", disable=None), places):
            try:
                self.segment(path, place)
            except (ImageUnreadable, WordsNotFound) as error:
                left_out += 1
                self.say(f"{type(error).__name__}: {error}")
        for line in (line for output in self.outputs for line in output.finish()):
            tqdm.write(line, file=self.stream)
        if left_out and len(images) > 1:
            self.say(f"{left_out} of {len(images)} images could not be used")
        return int(self.lost or left_out > 0)

    def segment(self, path: Path, place: Places) -> None:
        from diffusion_feature.images import read_image

        from goca.cli.outputs import Done

        start = time.perf_counter()
        image, notes, stored = read_image(path, self.args.frame)
        text = None if self.words is None else as_text(self.words.of(image, path.name, path))
        of_prompt = [] if text is None else self.notes_on(text)
        with kept_warnings(self.args.debug) as warned:
            segmentation = self.segmentation(stored, text, path.name)
        label = segmentation.label_map(threshold=self.args.threshold)
        self.tell(path, notes, warned)
        record = self.record(path, image, text, of_prompt + notes + warned, time.perf_counter() - start)
        done = Done(path, place, image, segmentation, label, record, self.args.frame is None)
        written = [where for output in self.outputs if (where := output.add(done))]
        self.report(path, ", ".join(written), segmentation, label)

    def segmentation(self, image: Any, text: str | None, image_id: str) -> Segmentation:
        """Segment by class names or, without a text, into regions."""
        from goca.variants.regions import RegionFinder

        if text is not None:
            return self.segmenter(image, text, image_id=image_id, ask=self.args.ask)
        assert isinstance(self.segmenter, RegionFinder)
        return self.segmenter.segment(image, image_id=image_id)

    def record(
        self, path: Path, image: Image.Image, text: str | None, notes: list[str], seconds: float
    ) -> dict[str, Any]:
        """The content of NAME.json besides the classes."""
        args = self.args
        asked: dict[str, Any] = {"words_from": "regions"}
        if text is not None and self.words is not None:
            asked = {
                "prompt": text,
                "words_from": self.words.source,
                "ask": self.segmenter.asked(args.ask, [text]),
                **({"presence_rule": args.presence} if args.presence else {}),
            }
        return {
            "image": path.name,
            "size": {"width": image.width, "height": image.height},
            **asked,
            "model": self.model,
            "pipeline": self.pipeline,
            **({"refine": args.refine} if args.refine else {}),
            **({"set": args.set} if args.set else {}),
            "protocol": self.segmenter.protocol.to_dict(),
            "threshold": args.threshold,
            "device": str(self.segmenter.extractor.device),
            "notes": notes,
            "seconds": round(seconds, 3),
        }

    def tell(self, path: Path, notes: Sequence[str], warned: Sequence[str]) -> None:
        for note in notes:
            self.say(f"{path.name}: {note}")
        self.lost |= bool(warned)
        for warning in warned:
            self.say(warning)

    def report(self, path: Path, written: str, segmentation: Segmentation, label: Any) -> None:
        from tqdm import tqdm

        from goca.cli.results import table

        lines = [f"{path.name}: {written}" if written else path.name, *table(segmentation, label, self.stream)]
        tqdm.write("\n".join(lines), file=self.stream)

    def say(self, line: str) -> None:
        """Print a line on standard error, once."""
        from tqdm import tqdm

        if line not in self.said:
            self.said.add(line)
            tqdm.write(line, file=sys.stderr)


@contextmanager
def kept_warnings(debug: bool) -> Iterator[list[str]]:
    """Collect GoCA's own warnings as lines; those of other libraries are shown only with --debug."""
    from goca.segmenter import EmptyClass

    kept: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", EmptyClass)  # the note on the prompt already names the classes
        yield kept
    for warning in caught:
        if warning.category.__module__.split(".")[0] in OURS:
            kept.append(f"{warning.category.__name__}: {warning.message}")
        elif debug:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def as_text(given: str | Sequence[str]) -> str:
    """Class names as one text."""
    return given if isinstance(given, str) else ", ".join(given)
