"""One piece of work on several processes of a machine."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from goca.labelsets.errors import LabelSetError

Work = Callable[[Any, int], None]


def spread(work: Work, given: Any, processes: int) -> None:
    """work(given, rank) for rank 0 here and for 1, 2, ... in processes of their own; returns when all are done.

    work   a function of a module; `given` can be pickled
    Raises LabelSetError where a process failed: what the others finished stays.
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
    """A GPU per process where "auto" leaves the choice and the machine has several."""
    import torch

    count = torch.cuda.device_count() if device == "auto" else 0
    return f"cuda:{rank % count}" if count > 1 else device
