"""Ask a vision-language model for the captions of a benchmark.

    python3 src-main/gpt_labeling.py dataset=voc dataset.root=/data/VOCdevkit/VOC2012 dry_run=true
    python3 src-main/gpt_labeling.py dataset=voc dataset.root=/data/VOCdevkit/VOC2012 labels=gpt_output/voc-mine.json
    python3 src-main/gpt_labeling.py dataset=voc ... labeler=local labeler.model=NAME labeler.base_url=http://host:8000/v1

Run the same command again to resume; images with an answer are not sent again (again=failed repeats failed ones). The
key is read from the environment (OPENAI_API_KEY). configs/labeling.yaml and configs/labeler list every key.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from goca.cli.hydra_command import check_arguments, fields_of, plain_errors, resolved
from goca.datasets import DatasetConfig, load_dataset
from goca.labeling import (
    AnswerLog,
    Answers,
    Labeler,
    LabelerConfig,
    LabelingError,
    LabelingSettings,
    check_libraries,
    check_own,
    dollars,
    vocabulary,
    write_labels,
)
from goca.schema import check
from omegaconf import DictConfig
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
KEPT = "answers are kept; run the same command again to resume"
KEYS = {
    **dict.fromkeys(fields_of("goca.labeling", "LabelingSettings")()),
    "dataset": fields_of("goca.datasets", "DatasetConfig"),
    "labeler": fields_of("goca.labeling", "LabelerConfig"),
}
SHOWN = 10  # skipped images and failures that are listed one by one


@hydra.main(version_base="1.3", config_path="../configs", config_name="labeling")
def main(config: DictConfig) -> None:
    with plain_errors(KEPT):
        label(resolved(config))


def label(values: dict[str, Any]) -> None:
    """Price the job, or do what is left of it; what has no caption is listed at the end."""
    labeler, path = prepared(values)
    if values["dry_run"]:
        price(labeler, Answers(log_beside(path)).to_ask(labeler.names, values["again"]))
        report_skipped(labeler)
        return
    check_libraries()
    key = labeler.config.key()
    check_own(path, Answers(log_beside(path)))
    with AnswerLog(log_beside(path), labeler.asked(), mix=values["mix"]) as log:
        if log.damaged:
            print(f"{log.damaged} damaged lines in {log.path}: those images count as not asked")
        names = log.to_ask(labeler.names, values["again"])
        if unanswered := set(log.in_flight()).intersection(names):
            print(
                f"{len(unanswered)} images were being asked about when an earlier run was killed; they come last, and"
                f" after {labeler.config.timeout:g} s (labeler.timeout). What the server answered then is paid twice."
            )
        try:
            ask(labeler, log, names, key)
        finally:
            if log.captions():
                write_labels(path, log, labeler.names)
            report(labeler, log, path)
        without = len({*labeler.names, *labeler.skipped} - set(log.captions()))
    if values["strict"] and without:
        sys.exit(f"strict=true, and {without} images have no caption")


def prepared(values: dict[str, Any]) -> tuple[Labeler, Path]:
    """The job and the labels file that it writes."""
    check(LabelingSettings, values, LabelingError, beside=["dataset", "labeler"])
    config = DatasetConfig.of(values["dataset"])
    dataset = load_dataset(config)
    words = vocabulary(config.classes, dataset.class_names)
    labeler = Labeler(
        LabelerConfig.of(values["labeler"]), dataset, words, caption_len=values["caption_len"], limit=values["limit"]
    )
    if not (given := values["labels"] or config.labels):
        raise LabelingError("labels is not set; give the file to write: labels=gpt_output/NAME.json")
    path = Path(given).expanduser()
    return labeler, path if values["labels"] or path.parent.is_dir() else ROOT / path


def log_beside(labels: Path) -> Path:
    return labels.with_name(f"{labels.stem}.answers.jsonl")


def ask(labeler: Labeler, log: AnswerLog, names: list[str], key: str) -> None:
    """The run itself, with failures and money spent so far in the bar."""
    failed, spent = 0, labeler.prices.spent([])
    with tqdm(total=len(names), desc=f"captions of {labeler.dataset.name}", unit="image") as bar:

        def show(record: dict[str, Any]) -> None:
            nonlocal failed, spent
            failed += "failed" in record
            spent = None if spent is None else spent + (labeler.prices.spent([record]) or 0)
            bar.set_postfix_str(f"failed={failed}, {dollars(spent)}", refresh=False)
            bar.update()

        labeler.run(names, log, key, show)


def price(labeler: Labeler, names: list[str]) -> None:
    """What is left to be asked and what it costs, about."""
    found, config = labeler.estimate(names), labeler.config
    print(
        f"{found.images} images of {labeler.dataset.name} to ask {config.model} about:"
        f" about {found.tokens_in:,} tokens in, {found.tokens_out:,} out, {dollars(found.cost)}"
    )
    if found.cost is not None:
        print(f"at ${config.price_in:g} and ${config.price_out:g} per million tokens (labeler.price_in, price_out)")
    print("dry_run=true: nothing was asked, nothing was written")


def report(labeler: Labeler, log: AnswerLog, path: Path) -> None:
    """What there is, what it cost in all, what has no caption and why."""
    captions, failures = log.captions(), log.failures()
    print(f"{len(captions)} captions: {path}" if captions else f"no caption yet; nothing was written to {path}")
    uncounted = sum("reply" in record and not record.get("tokens") for record in log.answers())
    note = f", without {uncounted} answers whose tokens the server did not count" if uncounted else ""
    print(f"answers: {log.path}, {dollars(labeler.prices.spent(log.answers()))} in all{note}")
    lines = [f"{name}: {record['failed']}: {record['reason']}" for name, record in failures.items()]
    listed(f"{len(lines)} without a caption (asked again by again=failed; unreachable ones by any run)", lines)
    report_skipped(labeler)


def report_skipped(labeler: Labeler) -> None:
    listed(f"{len(labeler.skipped)} skipped", [f"{name}: {reason}" for name, reason in labeler.skipped.items()])


def listed(title: str, lines: list[str]) -> None:
    if lines:
        print(f"{title}:")
        print("\n".join(f"  {line}" for line in lines[:SHOWN]))
    if len(lines) > SHOWN:
        print(f"  and {len(lines) - SHOWN} more")


if __name__ == "__main__":
    with plain_errors(KEPT):
        check_arguments(sys.argv[1:], KEYS)
        main()
