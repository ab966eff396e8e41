"""Segmentation during generation: `goca.trace`, and the adapter of a pipeline that is in use."""
