"""The paper's method: auto aggregation over heads and layers, and per-pixel rescaling. Needs torch alone."""
