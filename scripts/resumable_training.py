"""Training that can be stopped at any moment: a loop over steps, its checkpoints and its log."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm


def pick_device() -> torch.device:
    return torch.device(torch.accelerator.current_accelerator() or "cpu")


def mixed_precision(device: torch.device) -> AbstractContextManager:
    """bfloat16 where the chip multiplies it natively (accelerators, AMX); float32 elsewhere."""
    native = device.type != "cpu" or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16) if native else nullcontext()


def batch_parts(size: int, device: torch.device) -> list[slice]:
    """On a CPU a batch is shared out over threads, one per core, which meet once per step, not at every operation."""
    parts = min(os.cpu_count() or 1, size) if device.type == "cpu" else 1
    edges = [size * i // parts for i in range(parts + 1)]
    return [slice(start, end) for start, end in pairwise(edges)]


def generator_of(step: int, part: slice, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(7919 * step + 31 * part.start + 1)


class Schedule(Protocol):
    warm_up: int  # steps
    ema: float
    save_every: int  # steps


class Trainer:
    """AdamW with warm-up and cosine decay, moving average, and one safetensors file that holds all of it."""

    def __init__(self, name: str, modules: dict[str, nn.Module], work: Path, steps: int, rate: float, recipe: Schedule):
        self.name, self.steps, self.rate, self.recipe = name, steps, rate, recipe
        self.file, self.log = work / f"{name}.safetensors", work / f"{name}.jsonl"
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

    def save(self) -> None:
        tensors = {f"weight/{n}": p.detach() for n, p in self.parameters.items()}
        tensors |= {f"average/{n}": a for n, a in self.average.items()}
        for name, parameter in self.parameters.items():
            tensors |= {f"{key}/{name}": value for key, value in self.optimizer.state[parameter].items()}
        part = self.file.with_suffix(".part")
        save_file({k: t.contiguous() for k, t in tensors.items()}, part, metadata={"step": str(self.step)})
        part.rename(self.file)

    def run(self, loss_at: Callable[[int, slice], Tensor], parts: list[slice]) -> None:
        """`loss_at(step, part)` is the loss of a part of a step's batch, drawn from nothing but the step's number."""
        weights, size = list(self.parameters.values()), parts[-1].stop

        def gradients(part: slice) -> tuple[float, list[Tensor]]:
            loss = loss_at(self.step, part) * ((part.stop - part.start) / size)
            return loss.item(), list(torch.autograd.grad(loss, weights))

        pool = ThreadPoolExecutor(len(parts))
        if len(parts) > 1:
            torch.set_num_threads(1)
        bar = tqdm(total=self.steps, initial=self.step, desc=self.name, unit="step")
        while self.step < self.steps:
            fraction = self.step / self.steps
            decay = 0.5 * (1 + math.cos(math.pi * fraction))
            self.optimizer.param_groups[0]["lr"] = self.rate * min(1, (self.step + 1) / self.recipe.warm_up) * decay
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
                entry = {"step": self.step, "loss": round(loss, 5), "time": round(time.time(), 1)}
                with self.log.open("a") as log:
                    log.write(json.dumps(entry) + "\n")
            if self.step % self.recipe.save_every == 0 or self.step == self.steps:
                self.save()
        bar.close()

    def use_average(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data.copy_(self.average[name])
