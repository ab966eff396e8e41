"""Benchmarks as data: images, label maps, class names. Loads without torch.

dataset = load_dataset({"name": "voc", "reader": "voc", "root": "/data/VOCdevkit/VOC2012", "split": "train"})
sample = dataset.sample(dataset.ids[0])
sample.image, sample.label, sample.present      # PIL image, [H, W] class ids, ids of the classes in the image
"""

from collections.abc import Callable, Mapping
from typing import Any

from goca.datasets.ade20k import Ade20kDataset
from goca.datasets.base import (
    VOID,
    Dataset,
    DatasetConfig,
    DatasetError,
    DatasetNotFound,
    Sample,
    SampleError,
    class_label,
    class_labels,
)
from goca.datasets.cityscapes import CityscapesDataset
from goca.datasets.coco import CocoObjectDataset, CocoStuffDataset
from goca.datasets.context import ContextDataset
from goca.datasets.voc import VocDataset
from goca.datasets.vocabulary import VocabularyError, read_vocabulary, vocabularies

__all__ = [
    "READERS",
    "VOID",
    "Dataset",
    "DatasetConfig",
    "DatasetError",
    "DatasetNotFound",
    "Sample",
    "SampleError",
    "VocabularyError",
    "class_label",
    "class_labels",
    "load_dataset",
    "read_vocabulary",
    "vocabularies",
]

# the config's `reader` -> a function of a DatasetConfig
READERS: dict[str, Callable[[DatasetConfig], Dataset]] = {
    "voc": VocDataset,
    "context": ContextDataset,
    "coco-object": CocoObjectDataset,
    "coco-stuff": CocoStuffDataset,
    "cityscapes": CityscapesDataset,
    "ade20k": Ade20kDataset,
}


def load_dataset(config: DatasetConfig | Mapping[str, Any]) -> Dataset:
    """Open the data set that a config describes (configs/dataset/*.yaml).

    Raises DatasetNotFound, with the expected tree, if something is missing in the folder; DatasetError, with the known
    ones, for unknown fields, readers and class tables.
    """
    config = config if isinstance(config, DatasetConfig) else DatasetConfig.of(config)
    if config.reader not in READERS:
        raise DatasetError(f"unknown dataset reader {config.reader!r}; expected one of: {', '.join(READERS)}")
    return READERS[config.reader](config)
