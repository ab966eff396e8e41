"""`Benchmark`: runs a configuration on a data set, resumes it, and summarises its results."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from diffusion_feature.loading import pick_device

from goca.benchmark import fingerprints
from goca.benchmark.checks import checked, refuse_empty
from goca.benchmark.counting import BEHIND, CountedRun, collect, count_images
from goca.benchmark.fingerprints import MadeFrom
from goca.benchmark.inputs import AnnotationFile, Captions, NoiseFile
from goca.benchmark.label_maps import LabelMaps
from goca.benchmark.origin import origin, own_device
from goca.benchmark.prediction import Predictor
from goca.benchmark.run_store import RunStore
from goca.benchmark.settings import Merging, RunSettings
from goca.benchmark.tasks import TASKS, Task
from goca.benchmark.word_prompts import WordPrompts
from goca.benchmark.word_sources import DEFAULT, WORD_SOURCES, Asked, Offer, TaggerConfig
from goca.config import OPEN_FIELDS, SegmenterConfig
from goca.datasets import Dataset, DatasetConfig, DatasetError, class_labels, load_dataset
from goca.evaluation import ConfusionCounts
from goca.open.vocabulary import background_words
from goca.prompts import PromptAnnotation, annotate
from goca.protocol import ASK, Protocol
from goca.report.results import write_results
from goca.schema import defaults

if TYPE_CHECKING:
    from goca.open.tagging import Tagger
    from goca.segmentation_model import SegmentationModel

Kind = TypeVar("Kind", bound="SegmentationModel")
Source = AnnotationFile | WordPrompts
# later fields of a model and switches of its protocol -> the value that equals the earlier behaviour
LATER = {"token_method": "mean", "palette_resize": "rgb", "denoiser": None, "rows": None}
# values of fields that earlier folders do not contain: their defaults
ASSUMED = {"model": defaults(SegmenterConfig), "dataset": defaults(DatasetConfig)}
PROJECT = Path(__file__).resolve().parents[3]  # base of relative paths of labels in configs


@dataclass(frozen=True, kw_only=True)
class Benchmark(RunSettings):
    """The checked configuration of one run. `Benchmark.of(config).run()`.

    values  every value of the configuration, for results.json; the other fields are read from them
    """

    run_dir: Path
    model: SegmenterConfig
    dataset: DatasetConfig
    values: Mapping[str, Any]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Benchmark:
        """From the fields of configs/config.yaml. Raises ConfigError, DatasetError or ProtocolError."""
        own, model, dataset = checked(config)
        return cls(
            **own
            | {
                "run_dir": Path(own["run_dir"]),
                "merging": Merging.of(own.get("merging")),
                "tagger": TaggerConfig.of(own.get("tagger")),
                "ask": model.ask or ASK[0],
            },
            model=model,
            dataset=dataset,
            values={**config, "protocol": Protocol.plain(config.get("protocol", "paper"))},
        )

    def run(
        self, *, rank: int = 0, world: int = 1, progress: Callable[[list[str]], Iterable[str]] = iter
    ) -> dict[str, Any] | None:
        """Count the remaining images and write the results; None while other processes still have images to count.

        rank, world  this process's number, and the number of processes, among which images are distributed in turn
        progress     wraps the remaining ids
        raises       NothingCounted if every image was skipped; DeviceNotFound before anything is written
        """
        pick_device(self.device)
        dataset = load_dataset(self.dataset)
        ids = dataset.ids[: self.limit]
        source, noise, metric = self.prompts(dataset), self.noise(), self.strategy.metric(dataset)
        made_from = self.made_from(dataset, source)
        with self.store(dataset, rank) as store:
            own, label_maps = ids[rank::world], self.drawn_label_maps(metric)
            counted = CountedRun(store, metric, own, made_from=made_from, label_maps=label_maps)
            counted.keep_thumbnails(self.strategy.ranking_threshold, class_labels(dataset.class_names))
            load = partial(self.predictor, dataset, source, noise, store)
            count_images(
                dataset, own, [counted], load, batch_size=self.batch_size, progress=progress, behind=self.behind
            )
            results = self.sum_up(dataset, ids, metric.empty_copy(), store, made_from if world > 1 else None)
        refuse_empty({self.run_dir: results})
        return results

    @property
    def behind(self) -> int:
        """Batches that are counted while the next ones are segmented: none on a CPU, which is busy anyway."""
        return 0 if pick_device(self.device).type == "cpu" else BEHIND

    def store(self, dataset: Dataset, rank: int = 0) -> RunStore:
        """The run's folder, opened. Raises RunMismatch for counts of other settings or another class table."""
        names = {str(class_id): names for class_id, names in enumerate(dataset.class_names)}
        return RunStore(self.run_dir, {**self.settings(), "class_names": names}, rank, assumed=ASSUMED)

    def made_from(self, dataset: Dataset, source: Source | None) -> MadeFrom:
        """The check whether an image's files or prompt have changed since it was counted."""
        root = getattr(dataset, "folder", None)
        return MadeFrom(root) if source is None else MadeFrom(root, source.text)

    def sum_up(
        self,
        dataset: Dataset,
        ids: Sequence[str],
        metric: ConfusionCounts,
        store: RunStore,
        made_from: MadeFrom | None = None,
    ) -> dict[str, Any] | None:
        """Compute the results and write them to the store; None while other processes still have images to count."""
        if (records := collect(ids, metric, store, made_from)) is None:
            return None
        results = self.strategy.results(dataset, metric, records, self.values, store.origins())
        write_results(store, results)
        return results

    def noise(self) -> NoiseFile | None:
        """The noise file. Raises InputError."""
        return NoiseFile(self.noise_file) if self.noise_file else None

    def drawn_label_maps(self, metric: ConfusionCounts) -> LabelMaps | None:
        """The folder of predicted label maps, if `label_maps` is set."""
        if self.label_maps is None:
            return None
        thresholds = metric.thresholds if self.label_maps == "all" else (self.fixed_threshold,)
        return LabelMaps(self.run_dir, metric, thresholds)

    @property
    def strategy(self) -> Task:
        """The run's `task`: what is counted, and how."""
        return TASKS[self.task](self, self.dataset, self.protocol)

    @property
    def protocol(self) -> Protocol:
        return self.model.protocol

    @property
    def published(self) -> bool:
        """Whether prompts are as published: they name the present classes of the ground truth."""
        return self.ask == "complete" and self.words == DEFAULT

    def prompts(self, dataset: Dataset) -> Source | None:
        """The source of prompts: a file of annotations or a source of class names; None for a task without prompts."""
        if not self.strategy.prompted:
            return None
        if self.annotations:
            return AnnotationFile(self.annotations)
        source = WORD_SOURCES[self.words]
        captions = Captions(self.labels()) if source.captions else None
        asked = Asked(dataset.class_names, self.dataset.add_missing, self._tagger(dataset))
        return WordPrompts(source, asked, captions, self.protocol)

    def _tagger(self, dataset: Dataset) -> Tagger | None:
        if self.words != "tags":
            return None
        from goca.open.tagging import Tagger

        return Tagger(self.tagger, dataset.class_names, own_device(self.device))

    def labels(self) -> Path:
        """The labels file: relative to the current folder, else to the project's. Raises DatasetError."""
        if not self.dataset.labels:
            raise DatasetError("dataset.labels is not set; give a file of captions, or annotations=FILE")
        given = Path(self.dataset.labels).expanduser()
        found = next((path for path in (given, PROJECT / given) if path.is_file()), None)
        if found is None:
            raise DatasetError(
                f"dataset.labels={given} is not a file; expected JSON, image file name -> {{'caption': ...}}"
                " (gpt_output/README.md says how to obtain it), or annotations=FILE"
            )
        return found

    def settings(self) -> dict[str, Any]:
        """Everything that affects the counts: files by their content, folders by their location."""
        dataset = dataclasses.asdict(self.dataset)
        reads = self.strategy.prompted and WORD_SOURCES[self.words].captions and not self.annotations
        labels = self.labels() if reads else None
        inputs = {"annotations": self.annotations, "noise_file": self.noise_file, "labels": labels}
        places = without_later({name: _placed(getattr(self.model, name)) for name in ("pipeline", "denoiser")})
        return {
            "model": self.counted_fields() | places,
            "dataset": dataset | {"root": _placed(self.dataset.root), "labels": None},
            **{name: fingerprints.of_file(path) if path else None for name, path in inputs.items()},
            "weights": fingerprints.of_pipeline(self.model.pipeline),
            **({"denoiser weights": fingerprints.of_pipeline(self.model.denoiser)} if self.model.denoiser else {}),
            **{name: getattr(self, name) for name in ("seed", "fixed_threshold", "device", "dtype", "int8_text")},
            **{name: value for name in ("variant", "vae_dtype") if (value := getattr(self, name)) != "auto"},
            **({} if self.published else {"ask": self.ask, "words": self.words}),
            **({"tagger": self.tagger_fields()} if self.words == "tags" else {}),
            **self.strategy.settings(),
        }

    def counted_fields(self) -> dict[str, Any]:
        """The model's fields that affect the counts.

        Later fields are left out if they change nothing, so that earlier folders can be resumed.
        """
        fields = self.model.to_dict()
        del fields["call"]  # of generated images alone
        if self.ask != "open":
            fields = {name: value for name, value in fields.items() if name not in OPEN_FIELDS}
        else:
            fields |= {"ask": "open", "background_words": background_words(self.model.background_words)}
        fields["protocol"] = without_later(fields["protocol"])
        return without_later(fields)

    def tagger_fields(self) -> dict[str, Any]:
        return dataclasses.asdict(self.tagger) | {"model": _placed(self.tagger.model)}

    def predictor(self, dataset: Dataset, source: Source | None, noise: NoiseFile | None, store: RunStore) -> Predictor:
        """Load the model; the store records the device and precision that it runs with."""
        from goca.benchmark.loading import PREDICTORS
        from goca.benchmark.predictor import Noise

        load = PREDICTORS[self.ask if self.strategy.prompted else None]
        return load(self, dataset, source, Noise(noise, self.seed), store)

    def load(self, kind: type[Kind], store: RunStore | None = None) -> Kind:
        """Load the model; the store records the device and precision that it runs with."""
        given = {name: getattr(self, name) for name in ("max_bytes", "offload", "int8_text", "variant", "vae_dtype")}
        segmenter = kind.from_pretrained(None, self.model, own_device(self.device), self.dtype, **given)
        if store is not None:
            store.declare(origin(segmenter))
        return segmenter

    def annotator(self, dataset: Dataset, parts: Mapping[str, Any]) -> Callable[[Offer], PromptAnnotation]:
        """Offer -> annotation, with the model's own tokenizers."""
        from diffusion_feature.families import backbone

        tokenizers = backbone(self.model.version).tokenizers(parts)
        return lambda offer: annotate(
            offer.caption,
            dataset.class_names,
            offer.class_ids,
            **tokenizers,
            add_background=self.dataset.add_background,
            add_missing=offer.add_missing,
            protocol=self.protocol,
        )


def without_later(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if LATER.get(name, ...) != value}


def _placed(location: str | None) -> str | None:
    """A folder by its full path, so that the same relative path from elsewhere is not mistaken for it."""
    return str(Path(location).resolve()) if location and Path(location).is_dir() else location
