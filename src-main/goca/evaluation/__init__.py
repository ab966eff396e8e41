"""Scoring: exact counts for every background threshold, and runs that survive. Loads without torch."""

from goca.evaluation.fingerprints import MadeFrom
from goca.evaluation.inputs import AnnotationFile, Captions, InputError, NoiseFile
from goca.evaluation.mean_iou import LabelError, MeanIoU, MetricError
from goca.evaluation.presence import Presence, Word
from goca.evaluation.report import write_report
from goca.evaluation.results import evaluation_text, summarise, table, write_results
from goca.evaluation.run import Prediction, Segmentor, collect, count_images, metric_for
from goca.evaluation.store import RunError, RunMismatch, RunStore

__all__ = [
    "AnnotationFile",
    "Captions",
    "InputError",
    "LabelError",
    "MadeFrom",
    "MeanIoU",
    "MetricError",
    "NoiseFile",
    "Prediction",
    "Presence",
    "RunError",
    "RunMismatch",
    "RunStore",
    "Segmentor",
    "Word",
    "collect",
    "count_images",
    "evaluation_text",
    "metric_for",
    "summarise",
    "table",
    "write_report",
    "write_results",
]
