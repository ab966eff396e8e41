"""Segmentation metrics from exact counts, for every background threshold at once. Loads without torch."""

from goca.evaluation.mean_iou import LabelError, MeanIoU, MetricError
from goca.evaluation.presence import Presence, Word

__all__ = ["LabelError", "MeanIoU", "MetricError", "Presence", "Word"]
