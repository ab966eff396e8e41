"""Segment pictures by a list of words.

goca segment photo.jpg --prompt "cat, grass, wall"
goca segment photos/ --prompt "cat, grass, wall" --model sd15 --pipeline FOLDER --out results
goca segment photo.jpg --words coco --model sd15 --pipeline FOLDER         all names of a list, or of a file
goca segment photo.jpg --describe --model sd15 --pipeline FOLDER           a vision server says what is in the picture

The key of the server comes from the environment (OPENAI_API_KEY); what it answered is kept in descriptions.jsonl, and
not asked again. --labeler local --labeler model=NAME asks a server of your own.

Per image: NAME-overlay.png (with a legend), NAME-labels.png (a palette of class ids), NAME-masks/ (a PNG per class) and
NAME.json (areas, scores, colours, settings). Parts stand in brackets behind what they belong to: "(cat, tail), grass".
Images are turned upright as EXIF says, of 16 bits the high 8 are kept, transparent pixels are laid on white. Images of
the same name from several folders get -2, -3, ... in the order given. Exit status 1: words were cut, or an image could
not be used.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from goca.cli import words
from goca.errors import GocaError
from goca.files.names import listed
from goca.protocol import ASK, PRESETS

if TYPE_CHECKING:
    from goca.cli.results import Places
    from goca.cli.words import Words
    from goca.segmentation import Segmentation
    from goca.segmentation_model import SegmentationModel

EMBEDDED = "mini-sd"
OURS = ("goca", "diffusion_feature")
SHOWN = 20  # words that a note names


class ModelNotChosen(GocaError, ValueError):
    """A pipeline without the config of its family."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, patterns such as 'photos/*.jpg'")
    words.add_arguments(parser)
    parser.add_argument(
        "--ask",
        choices=ASK,
        help="open (default): the words are what is looked for, the rest is "
        "background; complete: they name everything in the pictures",
    )
    parser.add_argument(
        "--presence", metavar="NAME", help="how open tells that a word is there; 'denoising gain' is surer and slower"
    )
    add_model_arguments(parser)
    parser.add_argument("--protocol", default="paper", choices=PRESETS, help="which formulas (default: paper)")
    parser.add_argument(
        "--threshold",
        type=float,
        default=0.0,
        metavar="T",
        help="pixels where no class scores T (0 to 1) are background, label 0; default 0",
    )
    parser.add_argument("--frame", type=int, metavar="N", help="which frame of animated pictures, from 0")
    parser.add_argument("--out", type=Path, default=Path(), metavar="FOLDER", help="default: the current folder")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --pipeline, --denoiser, --variant, --device, --dtype: what every subcommand that loads a model takes."""
    parser.add_argument("--model", metavar="CONFIG", help=f"a config, such as sd15, sdxl, flux (default: {EMBEDDED})")
    parser.add_argument("--pipeline", metavar="PLACE", help="a pipeline folder or hub id (default: the config's own)")
    parser.add_argument("--denoiser", metavar="PLACE", help="another one, whose denoiser is to be taken")
    parser.add_argument("--variant", default="auto", metavar="NAME", help="of weights: auto, fp16, bf16, plain")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--dtype", default="auto", help="auto, float32, float16, bfloat16")


def run(args: argparse.Namespace) -> int:
    from goca.cli.images import find
    from goca.cli.results import places_of
    from goca.files.atomic import sweep

    pictures = find(args.images)
    places = places_of(pictures, args.out)
    args.out.mkdir(parents=True, exist_ok=True)
    sweep(args.out)
    given = words.chosen(args)
    try:
        model = chosen_model(args.model, args.pipeline)
        work = Work(load(model, args), args, model, given)
        work.introduce()
        return work.run(pictures, places)
    finally:
        given.close()


def chosen_model(model: str | None, pipeline: str | None) -> str:
    """The config's name; only the embedded model needs none. Raises ModelNotChosen."""
    from goca.embedded import PREFIX

    if model is None and pipeline not in (None, PREFIX + EMBEDDED):
        raise ModelNotChosen(f"--pipeline {pipeline} needs the config of its family, e.g. --model sd15 or --model sdxl")
    return model or EMBEDDED


def load(model: str, args: argparse.Namespace) -> SegmentationModel:
    from goca.benchmark.predictor import SEGMENTERS
    from goca.config import load_config

    presence = {"presence": given} if (given := getattr(args, "presence", None)) else {}
    config = load_config(model, protocol=getattr(args, "protocol", "paper"), **presence)
    files = {"variant": None if args.variant == "plain" else args.variant, "denoiser": args.denoiser}
    return SEGMENTERS[config.method].from_pretrained(args.pipeline, config, args.device, args.dtype, **files)


@dataclass
class Work:
    """One call of the command: a segmenter, and what is said while it goes through the pictures."""

    segmenter: SegmentationModel
    args: argparse.Namespace
    model: str
    words: Words
    said: set[str] = field(default_factory=set)  # what is true of many pictures is said once
    noted: dict[str, list[str]] = field(default_factory=dict)  # text -> what is to be said of it
    lost: bool = False  # words were cut, or a picture could not be used

    @property
    def pipeline(self) -> str:
        return self.args.pipeline or str(self.segmenter.config.pipeline)

    def introduce(self) -> None:
        """What the embedded model knows, and what is to be said of words that are the same in all pictures."""
        if self.embedded:
            known = ", ".join(embedded_words())
            self.say(f"{EMBEDDED}, the embedded model, knows only its own drawn scenes: {known}.")
        if self.words.fixed is not None:
            self.notes_on(as_text(self.words.fixed))

    @property
    def embedded(self) -> bool:
        from goca.embedded import PREFIX

        return self.pipeline == PREFIX + EMBEDDED

    def notes_on(self, text: str) -> list[str]:
        """Which words of a text the embedded model does not know, and which do not fit into the prompt; said once."""
        from goca.prompts.grammar import names_nothing

        if text not in self.noted:
            notes = self.noted[text] = []
            _, cut = self.segmenter.fitted(text, self.args.ask)
            known = embedded_words() if self.embedded else []
            if self.embedded and (strange := [word for word in words_of(text.lower()) if word not in known]):
                notes.append(f"{EMBEDDED} does not know: {listed(strange, SHOWN)}; choose another --model")
            empty = [name for name in cut if names_nothing(name)]
            cut = [name for name in cut if name not in empty]
            if empty:
                self.lost = True
                notes.append(
                    f"names nothing that could be seen, and without area: {listed(empty, SHOWN)}; leave it out"
                )
            if cut:
                self.lost = True
                notes.append(f"cut, since the prompt is too long, and without area: {listed(cut, SHOWN)}; name fewer")
            for note in notes:
                self.say(note)
        return self.noted[text]

    def run(self, pictures: Sequence[Path], places: Sequence[Places]) -> int:
        """Segment one picture after the other; one that cannot be used is named and left out."""
        from diffusion_feature.images import PictureUnreadable
        from tqdm import tqdm

        left_out = 0
        for path, place in zip(tqdm(pictures, unit="picture", disable=None), places):
            try:
                self.segment(path, place)
            except (PictureUnreadable, words.WordsNotFound) as error:
                left_out += 1
                self.say(f"{type(error).__name__}: {error}")
        if left_out and len(pictures) > 1:
            self.say(f"{left_out} of {len(pictures)} pictures could not be used")
        return int(self.lost or left_out > 0)

    def segment(self, path: Path, place: Places) -> None:
        from diffusion_feature.images import read_image

        from goca.cli.results import write

        start = time.perf_counter()
        picture, notes, stored = read_image(path, self.args.frame)
        text = as_text(self.words.of(picture, path.name))
        of_prompt = self.notes_on(text)
        with kept_warnings(self.args.debug) as warned:
            segmentation = self.segmenter(stored, text, image_id=path.name, ask=self.args.ask)
        label = segmentation.label_map(threshold=self.args.threshold)
        self.tell(path, notes, warned)
        record = {
            "image": path.name,
            "size": {"width": picture.width, "height": picture.height},
            "prompt": text,
            "words_from": self.words.source,
            "ask": self.segmenter.asked(self.args.ask, [text]),
            **({"presence_rule": self.args.presence} if self.args.presence else {}),
            "model": self.model,
            "pipeline": self.pipeline,
            "protocol": self.segmenter.protocol.to_dict(),
            "threshold": self.args.threshold,
            "device": str(self.segmenter.extractor.device),
            "notes": of_prompt + notes + warned,
            "seconds": round(time.perf_counter() - start, 3),
        }
        self.report(path, place, segmentation, write(place, picture, segmentation, label, record))

    def tell(self, path: Path, notes: Sequence[str], warned: Sequence[str]) -> None:
        for note in notes:
            self.say(f"{path.name}: {note}")
        self.lost |= bool(warned)
        for warning in warned:
            self.say(warning)

    def report(self, path: Path, place: Places, segmentation: Segmentation, record: dict[str, Any]) -> None:
        from tqdm import tqdm

        from goca.cli.results import table

        lines = [f"{path.name}: {place.overlay}, {place.labels.name}, {place.record.name}, {place.masks.name}/"]
        lines += (rows := table(segmentation, record, sys.stdout))
        if rest := len(record["classes"]) - len(rows):
            lines.append(f"  and {rest} words without a pixel, in {place.record.name}")
        tqdm.write("\n".join(lines), file=sys.stdout)

    def say(self, line: str) -> None:
        """A line beside the results, once."""
        from tqdm import tqdm

        if line not in self.said:
            self.said.add(line)
            tqdm.write(line, file=sys.stderr)


@contextmanager
def kept_warnings(debug: bool) -> Iterator[list[str]]:
    """GoCA's own warnings as lines; those of other libraries are shown only with --debug."""
    from goca.segmenter import EmptyClass

    kept: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", EmptyClass)  # said of the prompt already, by the words' names
        yield kept
    for warning in caught:
        if warning.category.__module__.split(".")[0] in OURS:
            kept.append(f"{warning.category.__name__}: {warning.message}")
        elif debug:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def embedded_words() -> list[str]:
    """What the embedded model was trained to know, from its card."""
    from goca.embedded import PREFIX, resolve

    card = (Path(resolve(PREFIX + EMBEDDED)) / "README.md").read_text(encoding="utf-8")
    listed = card.partition("\nWords: ")[2].partition(".")[0]
    return [word.strip() for word in listed.split(",")]


def as_text(given: str | Sequence[str]) -> str:
    """Words as one text."""
    return given if isinstance(given, str) else ", ".join(given)


def words_of(caption: str) -> list[str]:
    """The words of a caption, each once, without brackets and commas."""
    return list(dict.fromkeys(caption.translate(str.maketrans("(),", "   ")).split()))
