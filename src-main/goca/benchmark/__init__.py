"""Benchmark runs: inputs, predictions, counting, resume and sweeps.

from goca.benchmark import Benchmark
results = Benchmark.of(config).run()
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # for type checkers, which do not run __getattr__
    from goca.benchmark.benchmark import Benchmark

__all__ = ["Benchmark"]


def __getattr__(name: str) -> Any:  # looked up late: the settings of a run load without it
    if name == "Benchmark":
        from goca.benchmark.benchmark import Benchmark

        return Benchmark
    raise AttributeError(f"goca.benchmark has no {name!r}; it has: {', '.join(__all__)}")
