"""Files that a run reads besides its data set: prompt annotations, captions, noise."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from goca.datasets import Sample, SampleError
from goca.errors import GocaError
from goca.prompts import PromptAnnotation, read_captions, read_usable_annotations
from goca.schema import shown

SHARED_NOISE = "noise"  # the array that serves every image


class InputError(GocaError, ValueError):
    """A noise file cannot be used; the message says what it must contain."""


class AnnotationFile:
    """A file of annotations: image file name -> PromptAnnotation. Raises AnnotationError for other files."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.annotations, self.refused = read_usable_annotations(path)

    def __call__(self, sample: Sample) -> PromptAnnotation:
        """Raises SampleError for an image that is not in the file, or whose annotation cannot be used."""
        if sample.name in self.refused:
            raise SampleError(f"annotation of {sample.name}: {self.refused[sample.name]}")
        if sample.name not in self.annotations:
            raise SampleError(f"no annotation for {sample.name} in {self.path.name}")
        annotation = self.annotations[sample.name]
        if reason := unusable(annotation):
            raise SampleError(f"annotation of {sample.name}: {reason}")
        _remark(sample, f"annotation of {sample.name}", annotation.caption)
        return annotation

    def annotated(self, annotate: object = None) -> AnnotationFile:
        """Itself, since its prompts already have annotations. See `WordPrompts.annotated`."""
        return self

    def text(self, name: str) -> str | None:
        """The text from which an image's prompt is made; None if there is none."""
        annotation = self.annotations.get(name)
        return None if annotation is None else json.dumps(annotation.to_json(), sort_keys=True)


class Captions:
    """A labels file: image file name -> {"caption": ...}. Raises AnnotationError if it cannot be read."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.captions, self.refused = read_captions(path)

    def caption(self, sample: Sample) -> str:
        """Raises SampleError for an image without a caption."""
        if (caption := self.captions.get(sample.name)) is None:
            raise SampleError(self.refused.get(sample.name, f"no caption for {sample.name} in {self.path.name}"))
        _remark(sample, f"caption of {sample.name}", caption)
        return caption

    def text(self, name: str) -> str | None:
        """The caption of an image; None if there is none."""
        return self.captions.get(name)


def unusable(annotation: PromptAnnotation) -> str:
    """The reason why an annotation whose classes have tokens cannot be used; "" if it can."""
    if not any(annotation.existent_objects.values()):
        return ""
    if not annotation.caption.strip():
        return "its caption is empty, although its classes have token positions"
    if not annotation.rescaling_token_id:
        return "rescaling_token_id is empty, although its classes have token positions; it lists all entities' tokens"
    return ""


def oddities(caption: str) -> list[str]:
    """Descriptions of what is odd about a caption."""
    found = []
    if not any(character.isalnum() for character in caption):
        found.append("holds no word")
    if "\0" in caption:
        found.append("holds a NUL character")
    if any("\ud800" <= character <= "\udfff" for character in caption):
        found.append("holds half a surrogate pair, which is read as '?'")
    return found


def _remark(sample: Sample, what: str, caption: str) -> None:
    """Add remarks about a caption to the sample; they are recorded with its counts."""
    for oddity in oddities(caption):
        if (remark := f"{what} {oddity}: {shown(caption)}") not in sample.remarks:
            sample.remarks.append(remark)


class NoiseFile:
    """Noise from an .npz: one array `noise` for every image, or one per image under its id or file name."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            with np.load(path, allow_pickle=False) as file:
                self.noise: Mapping[str, NDArray] = {name: file[name] for name in file.files}
        except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"noise_file={path} cannot be read: {error}; expected an .npz with one array"
                f" {SHARED_NOISE!r}, or one per image id"
            ) from error

    def __call__(self, sample: Sample) -> NDArray:
        """Raises SampleError for an image that has no noise."""
        for key in (sample.id, sample.name, SHARED_NOISE):
            if key in self.noise:
                return self.noise[key]
        raise SampleError(f"no noise for {sample.id} in {self.path.name}")
