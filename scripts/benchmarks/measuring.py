"""Measure the time and memory of a call."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages
HOW = {
    "cpu": "peak of PyTorch's CPU allocator (torch.profiler, every allocation), beyond what was there before",
    "cuda": "torch.cuda.max_memory_allocated, beyond what was there before",
}


@dataclass(frozen=True)
class Spent:
    """Wall-clock seconds, and processor seconds on all cores."""

    wall: float
    cpu: float

    def __add__(self, other: Spent) -> Spent:
        return Spent(self.wall + other.wall, self.cpu + other.cpu)

    def __mul__(self, times: float) -> Spent:
        return Spent(self.wall * times, self.cpu * times)

    def __truediv__(self, other: Spent) -> Spent:
        return Spent(self.wall / other.wall, self.cpu / other.cpu)


def timed(work: Callable[[], object]) -> Spent:
    """Time a call. On a GPU, processor time is the host's and means little."""
    settle()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    settle()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The peak memory of tensors during a call, beyond the memory before it (see HOW)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        settle()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    highest, events = 0, list(found.profiler.kineto_results.experimental_event_tree())  # type: ignore[union-attr]
    while events:
        event = events.pop()
        events += event.children
        if event.tag == torch._C._profiler._EventType.Allocation:
            highest = max(highest, event.extra_fields.total_allocated)
    return highest
