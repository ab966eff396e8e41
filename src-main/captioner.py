"""Turn a labels file into prompt annotations: which tokens of each caption name which class.

    python3 src-main/captioner.py model=sd15 dataset=voc dataset.labels=gpt_output/voc.json annotations=out.json
    python3 src-main/captioner.py model=sd15 dataset=voc dataset.root=... protocol=released annotations=out.json

Only the tokenizers of the model's pipeline are loaded. Without an annotation file, main.py creates the same annotations
during the run, so this step is optional. configs/config.yaml lists every key.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from goca.benchmark import Benchmark
from goca.cli.hydra_command import check_arguments, plain_errors, resolved
from goca.datasets import Dataset, SampleError, class_label, load_dataset
from goca.files.atomic import sweep
from goca.prompts import CaptionError, PromptAnnotation, load_tokenizers, write_annotations
from omegaconf import DictConfig
from tqdm import tqdm

SHOWN = 10  # skipped images and lost classes that are listed one by one


@hydra.main(version_base="1.3", config_path="../configs", config_name="config")
def main(config: DictConfig) -> None:
    with plain_errors():
        caption(resolved(config))


def caption(values: dict[str, Any]) -> None:
    """Write the annotations of a whole split, in its order; images that cannot be used are listed at the end."""
    if not values["annotations"]:
        raise CaptionError("annotations is not set; give the file to write: annotations=out.json")
    path = Path(values["annotations"])
    benchmark = Benchmark.of({**values, "annotations": None, "run_dir": values["run_dir"] or "."})
    if not benchmark.published:
        raise CaptionError(
            "annotations use the ground truth's classes, so ask and words must keep their defaults here; main.py"
            f" itself supports ask={benchmark.ask} words={benchmark.words}"
        )
    if benchmark.labels().resolve() == path.resolve():
        raise CaptionError(f"annotations={path} is the labels file itself; choose another name")
    if not benchmark.model.pipeline:
        raise CaptionError("model.pipeline is not set; give the folder or hub id with the tokenizers")
    sweep(path.parent)
    dataset = load_dataset(benchmark.dataset)
    if (source := benchmark.prompts(dataset)) is None:
        raise CaptionError(f"task={benchmark.task} uses no prompts, so there is nothing to annotate; leave task unset")
    prompts = source.annotated(benchmark.annotator(dataset, load_tokenizers(benchmark.model.pipeline)))
    annotations: dict[str, PromptAnnotation] = {}
    skipped: list[str] = []
    for image_id in tqdm(dataset.ids[: benchmark.limit], desc=f"captions of {dataset.name}", unit="image"):
        try:
            sample = dataset.sample(image_id)
            annotations[sample.name] = prompts(sample)
        except SampleError as error:
            skipped.append(f"{image_id}: {error}")
    if annotations:
        write_annotations(path, annotations)
    report(annotations, skipped, dataset, path)
    if skipped and (values["strict"] or not annotations):
        sys.exit("strict=true, and images were skipped" if annotations else "no image could be annotated")


def report(annotations: dict[str, PromptAnnotation], skipped: list[str], dataset: Dataset, path: Path) -> None:
    """Print what was written, which classes lost all tokens, and what was skipped and why."""
    lost = [
        f"{image}: {', '.join(class_label(dataset.class_names, class_id) for class_id in annotation.lost_classes())}"
        for image, annotation in annotations.items()
        if annotation.lost_classes()
    ]
    without = sum(not annotation.class_ids for annotation in annotations.values())
    print(f"{len(annotations)} annotations: {path}" if annotations else f"nothing was written to {path}")
    if without:
        print(f"{without} of them contain no class name")
    for title, lines in (("with a class without tokens", lost), ("skipped", skipped)):
        if lines:
            print(f"{len(lines)} {title}:")
            print("\n".join(f"  {line}" for line in lines[:SHOWN]))
        if len(lines) > SHOWN:
            print(f"  and {len(lines) - SHOWN} more")


if __name__ == "__main__":
    with plain_errors():
        check_arguments(sys.argv[1:])
        main()
