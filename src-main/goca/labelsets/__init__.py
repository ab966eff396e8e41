"""Labelled sets: pseudo-labels for tagged photos, image-mask pairs from a generator; the engine of both commands."""
