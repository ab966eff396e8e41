"""The class names that `goca segment` looks for: given ones, a list, or a server's description of each image."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from goca.errors import GocaError

if TYPE_CHECKING:
    from PIL import Image

    from goca.labeling import Describer, LabelerConfig

MOST = 255  # classes that a palette PNG can hold besides the background
LABELER = "gpt-4o"
LISTS = "coco, ade20k, voc, ..., or a file, one name per line"
SERVERS = (
    f"the server: a file of configs/labeler ({LABELER}, local), a file of your own, or a value such as model=NAME or "
    "base_url=http://localhost:8000/v1; the key is read from the environment"
)


WAYS = ("prompt", "prompts", "words", "describe", "regions")


class WordsNotGiven(GocaError, ValueError):
    """No class names were given; the message shows the ways to give some."""


class WordsNotFound(GocaError, ValueError):
    """A server named nothing in an image; the other images are still segmented."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--prompt, --prompts, --words, --describe: exactly one of them gives the class names; --regions needs none."""
    parser.add_argument("--prompt", metavar="TEXT", help='what is in the images: "cat, grass, wall"')
    parser.add_argument(
        "--prompts", metavar="FILE", help="a CSV file with an image and its prompt per line; -: standard input"
    )
    parser.add_argument("--words", metavar="LIST", help=f"look for all names of a list: {LISTS}")
    parser.add_argument("--describe", action="store_true", help="ask a vision server what is in each image")
    parser.add_argument(
        "--regions", action="store_true", help="no prompt: divide each image into regions without names"
    )
    parser.add_argument("--labeler", action="append", default=[], metavar="NAME|KEY=VALUE", help=SERVERS)


class Words(Protocol):
    """A source of class names for each image.

    fixed   the class names, if they are the same for all images
    source  where they come from, for the record
    """

    @property
    def fixed(self) -> str | list[str] | None: ...

    @property
    def source(self) -> str: ...

    def of(self, image: Image.Image, name: str, path: Path | None = None) -> str | list[str]:
        """The class names of an image, as a text or a list. Raises WordsNotFound if there are none."""
        ...

    def close(self) -> None: ...


@dataclass
class Given:
    """The same class names for every image."""

    fixed: str | list[str]
    source: str

    def of(self, image: Image.Image, name: str, path: Path | None = None) -> str | list[str]:
        return self.fixed

    def close(self) -> None:
        pass


@dataclass
class Described:
    """Class names from a server's description of each image."""

    describer: Describer
    source: str
    fixed: None = None

    def of(self, image: Image.Image, name: str, path: Path | None = None) -> str:
        from goca.labeling import NoCaption

        try:
            return without_repeats(self.describer.caption(image, name))
        except NoCaption as error:
            raise WordsNotFound(f"{name}: the server named nothing in it ({error}); use --prompt for it") from None

    def close(self) -> None:
        self.describer.close()


def way(args: argparse.Namespace) -> str:
    """The one of WAYS that the arguments use. Raises WordsNotGiven if they use none or several."""
    ways = [name for name in WAYS if getattr(args, name, None) not in (None, False)]
    if len(ways) != 1 or (args.labeler and not args.describe):
        raise WordsNotGiven(all_ways(ways, args.labeler))
    return ways[0]


def chosen(args: argparse.Namespace) -> Words:
    """The source that the arguments ask for.

    Raises WordsNotGiven, PromptsUnreadable, VocabularyError, LabelingError, KeyMissing.
    """
    if way(args) == "prompts":
        from goca.cli.prompt_list import PromptList

        return PromptList.read(args.prompts)
    if args.prompt is not None:
        from goca.prompts.grammar import names_no_class, parse_brackets

        if names_no_class(parse_brackets(args.prompt)):
            from goca.open import NoClass

            raise NoClass.of(args.prompt)
        return Given(args.prompt, "prompt")
    if args.words is not None:
        return Given(first_names(args.words), f"words {args.words}")
    from goca.labeling import Describer
    from goca.labeling.describe import LOG

    config = labeler(args.labeler)
    return Described(Describer(config, args.out / LOG), f"described by {config.model}")


def without_repeats(caption: str) -> str:
    """The caption with only the first occurrence of every name: a server may answer "cat, grass, cat"."""
    from goca.prompts import parse_brackets

    seen: set[str] = set()
    kept = []
    for group in parse_brackets(caption.lower()):
        if names := [name for name in dict.fromkeys(group) if name not in seen]:
            kept.append(names)
            seen |= set(names)
    return ", ".join(names[0] if len(names) == 1 else f"({', '.join(names)})" for names in kept)


def all_ways(ways: list[str], labeler: list[str]) -> str:
    """The message of WordsNotGiven: what is wrong with the arguments, and the valid ways."""
    problem = (
        f"--{' and --'.join(ways)} were given; give only one of them"
        if len(ways) > 1
        else "--labeler selects the server for --describe; give --describe too"
        if labeler
        else "there is nothing to look for"
    )
    return (
        f"{problem}. There are five ways:\n"
        '  --prompt "cat, grass, wall"   your own class names\n'
        "  --prompts prompts.csv         a prompt for each image, in lines such as photo.jpg,cat,grass\n"
        f"  --words coco                  all names of a list: {LISTS}\n"
        "  --describe                    a vision server names what is in each image (key in OPENAI_API_KEY, or\n"
        "                                --labeler local --labeler model=NAME for your own server)\n"
        "  --regions                     no class names: each image is divided into regions without names"
    )


def first_names(given: str) -> list[str]:
    """The first name of each class in a vocabulary, without repetitions. Raises VocabularyError."""
    from goca.datasets import VocabularyError, read_vocabulary

    names = list(dict.fromkeys(names[0] for names in read_vocabulary(given) if names))
    if len(names) > MOST:
        raise VocabularyError(f"{given} has {len(names)} names, but a label map can hold {MOST}; give fewer at once")
    return names


def labeler(given: Iterable[str]) -> LabelerConfig:
    """The labeller from names of files and KEY=VALUE; later ones override earlier ones. Raises LabelingError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from goca.labeling import LabelerConfig, LabelingError

    texts = list(given)
    files = [text for text in texts if "=" not in text] or [LABELER]
    fields: dict[str, Any] = {}
    for name in files:
        fields |= labeler_file(name)
    values = [text.removeprefix("labeler.") for text in texts if "=" in text]
    try:
        set_here: Any = OmegaConf.to_container(OmegaConf.from_dotlist(values))
    except (OmegaConfBaseException, ValueError) as error:
        raise LabelingError(f"--labeler {' '.join(values)} cannot be read: {error}") from None
    return LabelerConfig.of(fields | set_here)


def labeler_file(name: str) -> dict[str, Any]:
    """The fields of configs/labeler/NAME.yaml or of a file, on top of those of its bases. Raises LabelingError."""
    from goca.config_folder import config_folder
    from goca.files.text import FileUnreadable, read_yaml
    from goca.labeling import LabelingError

    known = {file.stem: file for file in (config_folder() / "labeler").glob("*.yaml")}
    path = known.get(name, Path(name).expanduser())
    if not path.is_file():
        raise LabelingError(f"unknown labeler {name!r}; expected a YAML file or one of: {', '.join(sorted(known))}")
    try:
        own: Any = read_yaml(path)
    except (FileUnreadable, OSError) as error:
        raise LabelingError(f"labeler {name!r} cannot be read: {error}") from None
    if not isinstance(own, dict):
        raise LabelingError(f"{path} contains no fields; expected e.g. model: NAME")
    fields: dict[str, Any] = {}
    bases = own.pop("defaults", ["_self_"])
    if not isinstance(bases, list) or not all(base in ("_self_", *known) and base != name for base in bases):
        raise LabelingError(f"{path}: defaults is {bases!r}; expected _self_ and some of: {', '.join(sorted(known))}")
    for base in bases:
        fields |= own if base == "_self_" else labeler_file(base)
    return fields
