"""Write features of images to files: attention maps and activations of one forward pass per image, by layer id.

    python3 src-additional/extract_features.py photos/ --layer mid-vit-block0-cross-q --prompt "a photo" --out features
    python3 src-additional/extract_features.py photos/ --model sd15 --pipeline P --layer up-level1-repeat0-res-out --pca
    python3 src-additional/extract_features.py --model sd15 --pipeline P --list

Each image gives OUT/NAME.npz, an array per layer id: dense features [C, h, w], attention maps [H, S, S or N], float32
where the model runs in bfloat16. With --pca also OUT/NAME.LAYER.png for each dense feature: its first three principal
components as red, green and blue. Images whose file exists are skipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from goca.errors import GocaError, explained


class OutputError(GocaError, ValueError):
    """Two images would share one output file."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("images", nargs="*", help="files, folders, patterns")
    add("--layer", action="append", default=[], metavar="ID", help="a layer id or a pattern {0..2}, repeatable")
    add("--list", action="store_true", help="print every layer id of the model, and stop")
    add("--prompt", default="", help="the prompt, the same for all images")
    add("--model", default="mini-sd", help="a name in configs/model: its family, image size and timestep")
    add("--pipeline", help="folder or hub id; default: the config's")
    add("--t", type=int, help="timestep 0..999; default: the config's")
    add("--seed", type=int, default=0, help="seed of the noise, the same for every image")
    add("--batch", type=int, default=1, help="images per forward pass")
    add("--pca", action="store_true", help="also draw each dense feature as an image")
    add("--out", default="features", help="folder")
    add("--device", default="auto")
    add("--dtype", default="auto")
    add("--debug", action="store_true", help="show where an error came from")
    options = parser.parse_args(arguments)
    if not options.list and not (options.images and options.layer):
        parser.error("give images and at least one --layer (--list prints all layer ids)")
    if options.batch < 1:
        parser.error("--batch must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        run(options)
    except (ValueError, OSError, KeyError) as error:
        if options.debug or not explained(error):
            raise
        sys.exit(f"{type(error).__name__}: {error}")


def run(options: argparse.Namespace) -> None:
    from goca.cli.images import find

    out = Path(options.out)
    missing = [] if options.list else [file for file in find(options.images) if not target(out, file).is_file()]
    if twice := repeated(target(out, file) for file in missing):
        raise OutputError(f"two images would be written to {twice}; rename one, or use two output folders")

    from diffusion_feature import FeatureExtractor
    from goca.config import load_config
    from goca.embedded import resolve
    from goca.files.atomic import write_arrays
    from tqdm import tqdm

    config = load_config(options.model)
    location = options.pipeline or config.pipeline
    extractor = FeatureExtractor(
        options.layer,
        config.version,
        options.device,
        options.dtype,
        config.img_size,
        resolve(location) if location else None,
    )
    if options.list:
        print("\n".join(extractor.layer_ids()))
        return
    t = config.t if options.t is None else options.t
    rules = {"noise_rule": config.protocol.noise, "posterior": "mean"}
    bar = tqdm(total=len(missing), desc=f"features of {options.model}", unit="image")
    for files in parts(missing, options.batch):
        images = [read(file) for file in files]
        found = extractor.extract(options.prompt, images, t, seed=options.seed, batch_size=options.batch, **rules)
        arrays = {name: feature.cpu().numpy() for name, feature in found.items()}
        for place, (file, image) in enumerate(zip(files, images)):
            own = {name: array[place] for name, array in arrays.items()}
            if options.pca:
                draw(out, file, own, image.size)
            write_arrays(target(out, file), own)
        bar.update(len(files))
    bar.close()
    print(f"{len(missing)} images, {len(extractor.wanted)} layers each: {out}")


def target(out: Path, file: Path) -> Path:
    """Return the path of an image's features."""
    return out / f"{file.stem}.npz"


def repeated(paths: Iterator[Path]) -> Path | None:
    seen: set[Path] = set()
    return next((path for path in paths if path in seen or seen.add(path)), None)


def parts(files: list[Path], size: int) -> Iterator[list[Path]]:
    return (files[start : start + size] for start in range(0, len(files), size))


def read(file: Path) -> Any:
    from diffusion_feature import read_image

    return read_image(file).image


def draw(out: Path, file: Path, features: dict[str, Any], size: tuple[int, int]) -> None:
    from goca.drawing.figures import pca_image
    from goca.files.atomic import write_png

    for name, feature in features.items():
        if feature.ndim == 3 and not name.endswith("-map"):
            write_png(out / f"{file.stem}.{name}.png", pca_image(feature).resize(size, 0))


if __name__ == "__main__":
    main()
