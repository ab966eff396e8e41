"""Time and memory of capture, aggregation and refinement on full-size denoisers with random weights and inputs.

    python3 scripts/benchmark.py denoisers                        prints a table, writes docs/benchmark.json
    python3 scripts/benchmark.py denoisers --models sd15 --repeats 7 --json FILE
    python3 scripts/benchmark.py denoisers --models pixart-sigma --quick --rows 512

bare      the denoiser's forward pass alone
method    the forward pass with attention read, aggregated over heads and layers, rescaled and refined
eager     the same formulas as plain code that keeps every map (benchmarks/eager.py)
held      the method's peak memory beyond the bare pass's; method and bare alternate, ratios are medians over the turns

Whole models run if they fit: all of them on a GPU, Stable Diffusion 1.5 on a CPU. The others run layer by layer on a
CPU: every attention module of the model in the order of its forward pass, at full size, with random weights; for eager,
one layer of each kind, times their number. With --quick, bare and method are also measured on one block of each sort,
in processor time, and each ratio is printed next to its goal (see benchmarks/by_block.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusion_feature.tap import AttentionTap
from goca.files.atomic import write_text
from goca.method.aggregation import Aggregator
from goca.method.rescaling import rescale
from goca.refine import affinity
from make_scenes import REPOSITORY
from torch import Tensor
from tqdm import tqdm

from benchmarks.by_block import measure
from benchmarks.denoisers import MODELS, Denoiser, Model
from benchmarks.eager import EverythingKept
from benchmarks.measuring import HOW, Spent, peak_bytes, timed
from benchmarks.of_layers import Replay

ENTITIES, CONTENT = [[1], [3], [5], [7, 8]], [1, 3, 5, 7, 8]  # text tokens
WHOLE_ON_CPU = ("sd15",)
Run = Callable[[Any], None]  # a forward that feeds a consumer; None: bare


def refined(denoiser: Denoiser, attention: Tensor, space: Tensor) -> Tensor:
    settings = denoiser.settings
    return affinity(rescale(attention, ENTITIES, CONTENT, settings.rescale_method), space, settings.affinity_order)


def method(denoiser: Denoiser, run: Run) -> tuple[Tensor, Aggregator]:
    aggregator = Aggregator(denoiser.plan())
    run(aggregator)
    return refined(denoiser, aggregator.attention_map()[0], aggregator.space_map()[0]), aggregator


def eager(denoiser: Denoiser, run: Run) -> tuple[Tensor, EverythingKept]:
    kept = EverythingKept(denoiser.plan())
    run(kept)
    return refined(denoiser, *kept.aggregate()), kept


def forward(denoiser: Denoiser) -> Run:
    inputs = denoiser.inputs()

    def run(consumer: Any) -> None:
        if consumer is None:
            return denoiser.forward(inputs)
        with AttentionTap(denoiser.layers, denoiser.features, consumer, denoiser.latents, denoiser.patch):
            denoiser.forward(inputs)

    return run


def turns(denoiser: Denoiser, run: Run, repeats: int) -> dict[str, Any]:
    """Medians of bare and method, which alternate, and of their ratio; the bytes held."""
    bare, whole = (lambda: run(None)), (lambda: method(denoiser, run))
    pairs: list[tuple[Spent, Spent]] = []
    for number in tqdm(range(repeats + 1), desc=denoiser.model.title):
        pair = timed(bare), timed(whole)
        if number > 0 or repeats == 0:  # the first warms up
            pairs.append(pair)
    counted: list[int] = []
    peak = peak_bytes(lambda: counted.append(method(denoiser, run)[1].peak_bytes), denoiser.device)
    held = peak - peak_bytes(bare, denoiser.device)
    return {
        "bare seconds": middle([bare for bare, _ in pairs]),
        "method seconds": middle([whole for _, whole in pairs]),
        "method / bare": middle([whole / bare for bare, whole in pairs]),
        "held bytes": held,
        "counted bytes": counted[0],
        "target bytes": denoiser.model.target,
    }


def middle(spent: Sequence[Spent]) -> dict[str, float]:
    return {clock: statistics.median(getattr(each, clock) for each in spent) for clock in ("wall", "cpu")}


def whole(model: Model, device: torch.device, repeats: int, with_eager: bool) -> dict[str, Any]:
    denoiser = model.build(device)
    run = forward(denoiser)
    found = {"scope": "whole model"} | turns(denoiser, run, repeats)
    if with_eager:
        results: list[EverythingKept] = []
        spent = timed(lambda: results.append(eager(denoiser, run)[1]))
        plain = results.pop().aggregate()[0]
        held = peak_bytes(lambda: eager(denoiser, run), device) - peak_bytes(lambda: run(None), device)
        found |= {"eager seconds": vars(spent), "eager bytes": held}
        found["largest difference from eager, attention maps"] = float(
            (method(denoiser, run)[1].attention_map()[0] - plain).abs().max()
        )
    return found


def layers(model: Model, device: torch.device, repeats: int, with_eager: bool) -> dict[str, Any]:
    """Every attention layer in turn."""
    denoiser = model.build("meta")
    replay = Replay(denoiser, device)
    found = {"scope": "all attention layers"} | turns(denoiser, replay, repeats)
    if with_eager:
        total, held, kinds = Spent(0, 0), 0, Counter(replay.kinds())
        for kind, count in tqdm(kinds.items(), desc=f"{model.title}, eager"):
            kept = EverythingKept(denoiser.plan(), reference=replay.reference[0].float())
            spent = timed(lambda: replay.one(kind, kept))  # noqa: B023
            for block in kept.selves:
                spent += timed(lambda: kept.similarity(block))  # noqa: B023
            for block in kept.cross:
                spent += timed(lambda: kept.on_grid(block))  # noqa: B023
            total, held = total + spent * count, held + kept.bytes * count
        found |= {"eager seconds": vars(total), "eager bytes": held}
    return found


def line(title: str, found: dict[str, Any]) -> str:
    def seconds(name: str) -> str:
        return f"{found[name]['wall']:.2f} ({found[name]['cpu']:.2f})" if name in found else ""

    ratio, eager_bytes = found["method / bare"], found.get("eager bytes")
    return " | ".join(
        [
            f"| {title}, {found['scope']}",
            found["dtype"],
            seconds("bare seconds"),
            seconds("method seconds"),
            f"{ratio['wall']:.2f} ({ratio['cpu']:.2f})",
            f"{found['goal']:.2f}",
            f"{found['held bytes'] / 1e9:.2f} GB",
            f"{found['target bytes'] / 1e9:.1f} GB",
            seconds("eager seconds"),
            f"{eager_bytes / 1e9:.1f} GB |" if eager_bytes else " |",
        ]
    )


HEAD = (
    "| model | precision | bare, s | method, s | method / bare | goal | held | target | eager, s | eager holds |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)
QUICK_HEAD = (
    "| model | precision | rows | bare, CPU s | method, CPU s | method / bare | goal |\n|---|---|---|---|---|---|---|"
)
ROWS_GOAL = 1.3  # with approximate layer weights


def quick(
    names: Sequence[str], device: torch.device, repeats: int, rows: int | None, dtype: torch.dtype | None
) -> None:
    """Measure one block of each sort, and print the ratios next to their goals."""
    print(QUICK_HEAD)
    for name in names:
        model = MODELS[name] if dtype is None else dataclasses.replace(MODELS[name], dtype=dtype)
        found = measure(Replay(model.build("meta"), device), repeats, rows)
        goal = model.goal if rows is None else ROWS_GOAL
        times = f"{found['bare cpu seconds']:.1f} | {found['method cpu seconds']:.1f} | {found['method / bare']:.2f}"
        kind = str(model.dtype).removeprefix("torch.")
        print(f"| {model.title}, attention alone | {kind} | {rows or 'all'} | {times} | {goal:.2f} |", flush=True)


def measured_before(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Rows of other models in a file that was written on the same device, with the same threads and torch."""
    before = json.loads(path.read_text()) if path.is_file() else {}
    same = all(before.get(name) == found[name] for name in ("device", "threads", "torch"))
    return before["models"] if same else {}


@torch.no_grad()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmark.py denoisers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=5, help="turns of bare and method (layer by layer: one)")
    parser.add_argument("--no-eager", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, default=REPOSITORY / "docs/benchmark.json")
    parser.add_argument("--quick", action="store_true", help="attention alone, one block of each sort")
    parser.add_argument("--rows", type=int, help="approximate layer weights (with --quick)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="another precision (with --quick)")
    arguments = parser.parse_args(argv)
    device = torch.device(arguments.device)
    if arguments.quick:
        dtype = arguments.dtype and getattr(torch, arguments.dtype)
        return quick(arguments.models, device, arguments.repeats, arguments.rows, dtype)
    results: dict[str, Any] = {}
    for name in arguments.models:
        fits = device.type != "cpu" or name in WHOLE_ON_CPU
        work, repeats = (whole, arguments.repeats) if fits else (layers, 0)
        model = MODELS[name]
        results[name] = work(model, device, repeats, not arguments.no_eager)
        results[name] |= {"dtype": str(model.dtype).removeprefix("torch."), "goal": model.goal}
    found = {
        "device": device.type,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "memory": HOW[device.type],
        "seconds": "wall clock, and in parentheses processor time on all cores",
        "models": results,
    }
    print(HEAD, *(line(MODELS[name].title, row) for name, row in results.items()), sep="\n")
    print(f"\nSeconds: {found['seconds']}; {found['threads']} threads. Held: {found['memory']}.")
    found["models"] = {**measured_before(arguments.json, found), **results}
    write_text(arguments.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
