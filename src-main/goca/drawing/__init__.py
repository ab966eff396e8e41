"""Figures and palettes."""
