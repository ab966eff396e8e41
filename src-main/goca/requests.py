"""`Request`: one prompt for one image, with its noise, or the id that determines the noise's seed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_feature.images import is_file, read_image
from torch import Tensor

from goca.prompts import PromptAnnotation

ImageLike = Any  # accepted by `diffusion_feature.read_image`: a file, a PIL image, an array, a tensor


@dataclass(frozen=True, eq=False)
class Request:
    """One prompt for one image.

    image       in any form that `read_image` accepts
    annotation  the prompt
    noise       noise to add, in the shape of the latents [c, h, w] or [1, c, h, w]; None: drawn with the image's seed
    image_id    determines the seed; None: the file's name, or the image's content
    group       consecutive requests with the same group are several prompts for one image, which is encoded once per
                forward pass; None: no other request for this image
    """

    image: ImageLike
    annotation: PromptAnnotation
    noise: Tensor | None = None
    image_id: str | None = None
    group: int | None = None

    def __post_init__(self) -> None:
        if self.noise is not None:
            object.__setattr__(self, "noise", self.noise.reshape(1, *self.noise.shape[-3:]))


def make_requests(
    images: Sequence[ImageLike],
    annotations: Sequence[PromptAnnotation],
    noises: Sequence[Tensor | None] | None = None,
    image_ids: Sequence[str | None] | None = None,
) -> list[Request]:
    """One request per image; `noises` and `image_ids` may be None. Raises ValueError for lists of different lengths."""
    nothing = [None] * len(images)
    columns = images, annotations, nothing if noises is None else noises, nothing if image_ids is None else image_ids
    return [Request(*row) for row in zip(*columns, strict=True)]


def load_images(requests: Sequence[Request]) -> list[Request]:
    """The requests with their images in memory, each image read once, and with the ids of their file names."""
    loaded: list[Request] = []
    for request, is_new in zip(requests, starts_image(requests)):
        image = read_image(request.image).stored if is_new else loaded[-1].image
        loaded.append(dataclasses.replace(request, image=image, image_id=name_of(request.image, request.image_id)))
    return loaded


def starts_image(requests: Sequence[Request]) -> list[bool]:
    """For each request, whether its image differs from that of the previous request."""
    groups = [request.group for request in requests]
    return [group is None or number == 0 or group != groups[number - 1] for number, group in enumerate(groups)]


def name_of(image: ImageLike, image_id: str | None) -> str | None:
    """The text that determines an image's seed: its id, or its file's name; None: its content does."""
    return image_id if image_id is not None or not is_file(image) else Path(image).name


def seed_of(image: ImageLike, image_id: str | None) -> int:
    """A seed computed from the image's id, the same on any machine and in any batch   0 .. 2^56 - 1

    Without an id, it is computed from the file's name, or from the pixels.
    """
    if (name := name_of(image, image_id)) is not None:
        source = str(name).encode()
    else:
        stored = read_image(image).stored
        source = f"{stored.mode} {stored.size}".encode() + stored.tobytes()
    return int.from_bytes(hashlib.sha256(source).digest()[:7], "big")
