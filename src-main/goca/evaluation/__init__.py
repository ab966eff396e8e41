"""Scoring: exact counts for every background threshold, and runs that survive. Loads without torch."""

from goca.evaluation.mean_iou import MeanIoU, MetricError

__all__ = ["MeanIoU", "MetricError"]
