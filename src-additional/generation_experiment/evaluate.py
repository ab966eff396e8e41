"""FID, KID and CLIP score of a folder of generated images.

    python3 src-additional/generation_experiment/evaluate.py images=runs/generation/sd15/goca-5 \\
        reference=/data/coco/val2014 captions=coco_val2014_30k_captions.csv clip=openai/clip-vit-base-patch32

Writes scores.json next to the images: the scores, with their model, resizing, reference and number of images.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captions import read_captions
from diffusion_feature.loading import pick_device
from distances import frechet_distance, kernel_distance, statistics
from features import FILTERS, NETWORKS, clip_scores, features_of, images_of, read_statistics
from generate import SettingsError, parse, run
from goca.files.atomic import write_text
from goca.files.bounded_json import read_json
from omegaconf import MISSING


@dataclass
class Settings:
    """Settings on the command line, as key=value.

    images      folder;  n: the first n by name
    reference   folder of real images, or .npz with mu and sigma (then without KID)
    features    inception (the network of FID) or scenes;  weights: its file
    resize      bicubic or bilinear, to the network's side
    captions    with clip=..., a CLIP of transformers: the CLIP score;  clip=none: without
    """

    images: str = MISSING
    reference: str | None = None
    n: int | None = None
    features: str = "inception"
    weights: str | None = None
    resize: str = "bicubic"
    captions: str | None = None
    clip: str = "openai/clip-vit-base-patch32"
    batch: int = 32
    device: str = "auto"


def main(arguments: Sequence[str]) -> None:
    settings = parse(Settings, arguments)
    scores = evaluate(settings)
    print(json.dumps(scores["scores"], indent=1))
    print(f"scores: {Path(settings.images) / 'scores.json'}")


def evaluate(settings: Settings) -> dict[str, Any]:
    """Compute the requested scores, and write them to scores.json with their settings."""
    if settings.resize not in FILTERS or settings.features not in NETWORKS:
        raise SettingsError(f"expected resize to be one of {', '.join(FILTERS)}, features one of {', '.join(NETWORKS)}")
    if settings.reference is None and settings.captions is None:
        raise SettingsError("nothing to score: give reference=... for FID, captions=... for the CLIP score")
    files, folder = images_of(settings.images, settings.n), Path(settings.images)
    made_by = folder / "settings.json"
    result: dict[str, Any] = {"images": len(files), "scores": {}}
    result["generated"] = read_json(made_by) if made_by.exists() else None
    if settings.reference is not None:
        scores, origin = distances(settings, files)
        result["scores"] |= scores
        result["distance"] = origin
    if settings.captions is not None and settings.clip != "none":
        captions = read_captions(settings.captions)
        if absent := [file.name for file in files if file.stem not in captions]:
            raise SettingsError(f"{settings.captions} has no caption for {absent[0]}")
        texts = [captions[file.stem] for file in files]
        found = clip_scores(files, texts, settings.clip, settings.batch, pick_device(settings.device))
        result["scores"]["clip_score"] = float(found.mean())
        result["clip"] = {"model": settings.clip, "score": "100 * cosine, mean over images"}
    write_text(folder / "scores.json", json.dumps(result, indent=1) + "\n")
    return result


def distances(settings: Settings, files: Sequence[Path]) -> tuple[dict[str, float], dict[str, Any]]:
    """FID and KID against the reference, with their settings."""
    read, side = NETWORKS[settings.features]
    network, reference = read(settings.weights), Path(str(settings.reference))
    device = pick_device(settings.device)
    ours = features_of(files, network, side, settings.resize, settings.batch, device)
    origin = {
        "network": settings.features,
        "side": side,
        "resize": settings.resize,
        "reference": str(reference),
        "width": ours.shape[1],
    }
    if reference.suffix == ".npz":
        return {"fid": frechet_distance(statistics(ours), read_statistics(reference))}, origin
    real = images_of(reference)
    theirs = features_of(real, network, side, settings.resize, settings.batch, device)
    kid, deviation = kernel_distance(ours, theirs)
    scores = {"fid": frechet_distance(statistics(ours), statistics(theirs)), "kid": kid, "kid_deviation": deviation}
    return scores, origin | {"reference_images": len(real)}


if __name__ == "__main__":
    run(main)
