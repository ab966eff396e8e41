"""Segmentation metrics from exact counts, for every background threshold at once. Loads without torch."""

from goca.evaluation.counts import ConfusionCounts, LabelError
from goca.evaluation.mean_iou import MeanIoU
from goca.evaluation.metrics import MetricError
from goca.evaluation.presence import Presence, Word

__all__ = ["ConfusionCounts", "LabelError", "MeanIoU", "MetricError", "Presence", "Word"]
