"""Run one function in several processes."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from goca.labelsets.errors import LabelSetError

Work = Callable[[Any, int], None]


def spread(work: Work, given: Any, processes: int) -> None:
    """Call work(given, rank), for rank 0 here and for 1, 2, ... in other processes; returns when all are done.

    work   a module-level function; `given` must be picklable

    Raises LabelSetError if a process failed; the results of the others are kept.
    """
    others = [
        multiprocessing.get_context("spawn").Process(target=work, args=(given, rank)) for rank in range(1, processes)
    ]
    for other in others:
        other.start()
    try:
        work(given, 0)
    except BaseException:
        for other in others:
            other.terminate()
        raise
    finally:
        for other in others:
            other.join()
    if failed := [other for other in others if other.exitcode]:
        raise LabelSetError(f"{len(failed)} of {processes} processes failed; run the command again, and it goes on")


def device_of(device: str, rank: int) -> str:
    """One GPU per process, if the device is "auto" and there are several."""
    import torch

    count = torch.cuda.device_count() if device == "auto" else 0
    return f"cuda:{rank % count}" if count > 1 else device
