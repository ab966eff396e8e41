"""Observation of a score: recording one forward pass, the numbers, and their figure."""
