"""A data set made up from ids, and runs of it without a model."""

import numpy as np
from goca.benchmark.counting import CountedRun, collect, count_images
from goca.benchmark.prediction import Prediction
from goca.benchmark.run_store import RunStore
from goca.benchmark.tasks import metric_for
from goca.datasets import DatasetConfig, Sample, SampleError
from goca.protocol import Protocol
from goca.report.results import summarise, write_results
from PIL import Image

CONFIG = DatasetConfig("toy", "toy", thresholds=[-0.1, 0, 0.1])
IDS = [f"i{number}" for number in range(12)]


class Toy:
    """Images that are made up from their id; i3 has no readable label, i5 holds an unknown value."""

    name, ids, class_names = "toy", IDS, [[], ["cat"], ["dog", "puppy"], ["fish"]]

    def sample(self, image_id):
        if image_id == "i3":
            raise SampleError("label i3.png cannot be read")
        sample = Sample(image_id, None, None, [1, 2])
        sample.image = Image.new("RGB", (9, 7))
        rng = np.random.default_rng(int(image_id[1:]))
        sample.label = rng.choice(np.array([0, 1, 2, 255], np.uint8), (7, 9))
        if image_id == "i5":
            sample.label[0, 0] = 77
        return sample


def each(segment):
    return lambda cases: [segment(case.sample) for case in cases]


@each
def segment(sample):
    scores = np.random.default_rng(len(sample.id) + int(sample.id[1:])).random((3, 4, 4))
    return Prediction(scores, [2, 1], lost=[1] if sample.id == "i1" else ())


def run(folder, ids=IDS, segment=segment, protocol="paper", settings=None, rank=0, world=1, behind=0):
    protocol = Protocol.of(protocol)
    metric = metric_for(Toy(), CONFIG, protocol, extra=[0.05])
    with RunStore(folder, settings or {"t": 100}, rank) as store:
        count_images(Toy(), ids[rank::world], [CountedRun(store, metric, ids)], lambda: segment, behind=behind)
        metric = metric.empty_copy()
        if (records := collect(ids, metric, store)) is None:
            return None
        results = summarise(
            Toy(), CONFIG, protocol, metric, records, fixed=0.05, settings={"seed": 0}, origins=store.origins()
        )
        write_results(store, results)
    return results
