"""Measure one block of each sort, times their number, in minutes instead of an hour for all attention layers.

A sort is defined by a block's cost: the sizes of its attentions, whether it runs before or after the reference feature,
and whether its self map is part of the space map. Bare and method alternate block by block and are measured in
processor time, so other load on the machine affects both.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from diffusion_feature.backbone import AttentionLayer
from goca.method.aggregation import Aggregator, Plan
from tqdm import tqdm

from benchmarks.of_layers import Replay, kind_of

Step = tuple[AttentionLayer, int, int]
Sort = tuple[Any, ...]


class TimedAggregator(Aggregator):
    """An aggregator that measures the comparison of each deferred block."""

    def __init__(self, plan: Plan):
        super().__init__(plan)
        self.compared_in: dict[str, float] = {}

    def _compare_deferred(self, block: str, reference: Any) -> None:
        self.compared_in[block] = seconds(lambda: super(TimedAggregator, self)._compare_deferred(block, reference))


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def sorts(replay: Replay, plan: Plan) -> dict[Sort, list[list[Step]]]:
    """The blocks of each sort, each as its steps in the order of the forward pass."""
    steps: dict[str, list[Step]] = defaultdict(list)
    before = True
    starts: dict[str, bool] = {}
    for step in replay.passed:
        if isinstance(step[0], AttentionLayer):
            steps[step[0].block].append(step)  # type: ignore[arg-type]
            starts.setdefault(step[0].block, before)
        else:
            before = False
    found: dict[Sort, list[list[Step]]] = defaultdict(list)
    for block, own in steps.items():
        found[(*(kind_of(*step) for step in own), starts[block], block in plan.space_blocks)].append(own)
    return found


@torch.no_grad()
def measure(replay: Replay, repeats: int, rows: int | None) -> dict[str, Any]:
    """Processor seconds of all attention layers, bare and with the method, and the medians' ratio."""
    plan = dataclasses.replace(replay.denoiser.plan(), rows=rows)
    found = sorts(replay, plan)
    chosen, counts = {own[0][0][0].block: own[0] for own in found.values()}, Counter[str]()
    for own in found.values():
        counts[own[0][0][0].block] = len(own)
    kept = {name: tuple(each for each in getattr(plan, name) if each in chosen) for name in ("blocks", "space_blocks")}
    plan = dataclasses.replace(plan, **kept)
    spent: dict[str, dict[str, list[float]]] = {"bare": defaultdict(list), "method": defaultdict(list)}
    for _ in tqdm(range(repeats), desc=replay.denoiser.model.title):
        aggregator, turn = TimedAggregator(plan), defaultdict[str, float](float)
        for step in replay.passed:
            if not isinstance(step[0], AttentionLayer):
                once = seconds(lambda: aggregator.feature(plan.reference, replay.reference))  # noqa: B023
                turn["reference"] = once - sum(aggregator.compared_in.values())
            elif step[0].block in chosen:
                bare = seconds(lambda: replay.run(*step, None))  # noqa: B023
                with_method = seconds(lambda: replay.run(*step, aggregator))  # noqa: B023
                spent["bare"][f"{step[0].block} {step[0].layout}"].append(bare)
                turn[f"{step[0].block} {step[0].layout}"] = with_method
        for block, value in aggregator.compared_in.items():
            turn[f"{block} compared"] = value
        turn["maps"] = seconds(aggregator.attention_map)
        for name, value in turn.items():
            spent["method"][name].append(value)
    total = {
        way: sum(weight(name, counts) * statistics.median(each) for name, each in parts.items())
        for way, parts in spent.items()
    }
    return {
        "scope": "all attention layers, one block of each sort",
        "rows": rows,
        "bare cpu seconds": total["bare"],
        "method cpu seconds": total["method"],
        "method / bare": total["method"] / total["bare"],
        "sorts": {block: counts[block] for block in chosen},
        "parts": {way: {name: statistics.median(each) for name, each in parts.items()} for way, parts in spent.items()},
    }


def weight(name: str, counts: Counter[str]) -> int:
    """The number of times that a part occurs in the model."""
    return counts.get(name.split(" ")[0], 1)
