"""Tiny random pipelines whose text encoder is a language model."""
