"""Training that can be stopped at any moment: a loop over steps, its checkpoints and its log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from goca.files.atomic import whole_file
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm


def pick_device() -> torch.device:
    return torch.device(torch.accelerator.current_accelerator() or "cpu")


def mixed_in_16_bit(device: torch.device) -> bool:
    """Whether the chip multiplies bfloat16 natively (accelerators, AMX)."""
    return device.type != "cpu" or torch.cpu._is_amx_tile_supported()


def mixed_precision(device: torch.device) -> AbstractContextManager:
    """bfloat16 where the chip multiplies it natively, float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16) if mixed_in_16_bit(device) else nullcontext()


def batch_parts(size: int, device: torch.device) -> list[slice]:
    """On a CPU a batch is shared out over threads, one per core, which meet once per step, not at every operation."""
    parts = min(os.cpu_count() or 1, size) if device.type == "cpu" else 1
    edges = [size * i // parts for i in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


@contextmanager
def one_thread_each(device: torch.device) -> Iterator[ThreadPoolExecutor]:
    """A pool with a worker per core, none of which shares out its own operations; one worker on an accelerator."""
    threads, workers = torch.get_num_threads(), (os.cpu_count() or 1) if device.type == "cpu" else 1
    if workers > 1:
        torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(workers) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def generator_of(step: int, part: slice, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(7919 * step + 31 * part.start + 1)


def cosine(fraction: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * fraction))


def late_linear(fraction: float) -> float:
    """Constant for 70 % of the training, then straight to zero: the number of steps can still be changed on the way."""
    return min(1.0, (1 - fraction) / 0.3)


DECAYS: dict[str, Callable[[float], float]] = {"cosine": cosine, "late linear": late_linear}
SAVE_SECONDS = 240  # a checkpoint at least this often


class Schedule(Protocol):
    warm_up: int  # steps
    ema: float
    save_every: int  # steps
    decay: str  # of the rate: one of DECAYS


class Trainer:
    """AdamW with warm-up and decay, moving average, and one safetensors file that holds all of it.

    validate  asked at each checkpoint, with the averaged weights in place; its answer goes to a log of its own
    marks     step -> name: there the averaged weights are kept in a file of their own, `kept(name)`
    annealed  step at which the rate has fallen to zero once and starts anew, as in WSD-S (arXiv 2410.05192); 0: none
    """

    def __init__(
        self,
        name: str,
        modules: dict[str, nn.Module],
        work: Path,
        steps: int,
        rate: float,
        recipe: Schedule,
        validate: Callable[[], float] | None = None,
        marks: Mapping[int, str] | None = None,
        annealed: int = 0,
    ):
        self.name, self.steps, self.rate, self.recipe, self.annealed = name, steps, rate, recipe, annealed
        self.validate, self.marks, self.work = validate, marks or {}, work
        self.file, self.log = work / f"{name}.safetensors", work / f"{name}.jsonl"
        self.validation_log = work / f"{name}-validation.jsonl"
        self.parameters = {f"{m}.{n}": p for m, module in modules.items() for n, p in module.named_parameters()}
        self.average = {n: p.detach().clone() for n, p in self.parameters.items()}
        weights = list(self.parameters.values())
        self.optimizer = torch.optim.AdamW(weights, rate, (0.9, 0.99), weight_decay=0.01, fused=True)
        self.step = self.resume()

    def resume(self) -> int:
        if not self.file.exists():
            return 0
        with safe_open(self.file, "pt") as saved:
            tensors = {key: saved.get_tensor(key) for key in saved.keys()}  # noqa: SIM118
            step = int(saved.metadata()["step"])
        state = {}
        for i, (name, parameter) in enumerate(self.parameters.items()):
            parameter.data.copy_(tensors[f"weight/{name}"])
            self.average[name].copy_(tensors[f"average/{name}"])
            state[i] = {key: tensors[f"{key}/{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        return step

    def kept(self, mark: str) -> Path:
        return self.work / f"{self.name}-{mark}.safetensors"

    def keep(self, mark: str) -> None:
        with whole_file(self.kept(mark)) as temporary:
            save_file({n: a.contiguous() for n, a in self.average.items()}, temporary, {"step": str(self.step)})

    def use_kept(self, mark: str) -> None:
        with safe_open(self.kept(mark), "pt") as saved:
            for name, parameter in self.parameters.items():
                parameter.data.copy_(saved.get_tensor(name))

    def write(self, log_file: Path, **entry: float) -> None:
        with log_file.open("a") as log:
            log.write(json.dumps({"step": self.step, **entry, "time": round(time.time(), 1)}) + "\n")

    def check(self) -> None:
        """The validation loss of the averaged weights, to its log."""
        if self.validate is None:
            return
        own = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}
        self.use_average()
        with torch.no_grad():
            self.write(self.validation_log, loss=round(self.validate(), 5))
        for name, parameter in self.parameters.items():
            parameter.data.copy_(own[name])

    def save(self) -> None:
        tensors = {f"weight/{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"average/{n}": a for n, a in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[parameter].items()}
        with whole_file(self.file) as temporary:
            save_file({k: t.contiguous() for k, t in tensors.items()}, temporary, metadata={"step": str(self.step)})

    def rate_now(self) -> float:
        """The learning rate of the next step."""
        end = self.annealed if self.step < self.annealed else self.steps
        warm_up = min(1, (self.step + 1) / self.recipe.warm_up)
        return self.rate * warm_up * DECAYS[self.recipe.decay](self.step / end)

    def run(self, loss_at: Callable[[int, slice], Tensor], parts: list[slice]) -> None:
        """`loss_at(step, part)` is the loss of a part of a step's batch, drawn from nothing but the step's number."""
        weights, size = list(self.parameters.values()), parts[-1].stop

        def gradients(part: slice) -> tuple[float, list[Tensor]]:
            loss = loss_at(self.step, part) * ((part.stop - part.start) / size)
            return loss.item(), list(torch.autograd.grad(loss, weights))

        pool = ThreadPoolExecutor(len(parts))
        if len(parts) > 1:
            torch.set_num_threads(1)
        saved = time.monotonic()
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, unit="step")
        while self.step < self.steps:
            self.optimizer.param_groups[0]["lr"] = self.rate_now()
            losses, shares = zip(*pool.map(gradients, parts))
            loss = sum(losses)
            for weight, *grads in zip(weights, *shares):
                weight.grad = torch.stack(grads).sum(0) if len(grads) > 1 else grads[0]
            nn.utils.clip_grad_norm_(weights, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            keep = min(self.recipe.ema, self.step / (self.step + 10))
            torch._foreach_lerp_(list(self.average.values()), [p.data for p in self.parameters.values()], 1 - keep)
            bar.update()
            if self.step % 10 == 0 or self.step == self.steps:
                bar.set_postfix(loss=f"{loss:.4f}")
                self.write(self.log, loss=round(loss, 5))
            if self.step in self.marks:
                self.keep(self.marks[self.step])
            due = time.monotonic() - saved > SAVE_SECONDS or self.step % self.recipe.save_every == 0
            if due or self.step == self.steps:
                self.save()
                self.check()
                saved = time.monotonic()
        bar.close()

    def use_average(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.average[name])
