"""Checks of the machine for `goca doctor`: versions, devices, memory, programs, and which models fit."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

GB = 1e9
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONAL = {  # module -> extra, what for
    "pydensecrf": ("crf", "DenseCRF refinement"),
    "pycocotools": ("formats", "COCO files"),
    "gradio": ("app", "the web page"),
    "openai": ("label", "captions from a server"),
}
OLDEST = (3, 11)
MISSING = "not installed"
MEASURED = Path(__file__).resolve().parents[3] / "docs" / "benchmark.json"  # in a checkout


@dataclass(frozen=True)
class Line:
    """One finding.

    fix     the command that solves the problem; None if there is none
    needed  whether nothing works until the problem is solved
    """

    what: str
    found: str
    fix: str | None = None
    needed: bool = False

    @property
    def ok(self) -> bool:
        return self.fix is None

    def __str__(self) -> str:
        return f"  {self.what:<18} {self.found}   {'ok' if self.fix is None else '-> ' + self.fix}"


# --- versions ----------------------------------------------------------------------------------------------------


def versions() -> Iterator[Line]:
    """Python and every required package, compared with the version range that goca states."""
    new = sys.version_info >= OLDEST
    yield Line("python", platform.python_version(), None if new else "pyenv install 3.11", needed=True)
    for requirement in requirements(extra=None):
        yield version_line(requirement)


def requirements(extra: str | None) -> list[Any]:
    """The requirements in goca's own metadata; for an extra, only those that it adds."""
    from packaging.requirements import Requirement

    parsed = [Requirement(text) for text in metadata.requires("goca") or []]
    if extra is None:
        return [each for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]
    return [
        each
        for each in parsed
        if each.marker is not None
        and not each.marker.evaluate({"extra": ""})
        and each.marker.evaluate({"extra": extra})
    ]


def version_line(requirement: Any) -> Line:
    install = f"pip install '{requirement.name}{requirement.specifier}'"
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return Line(requirement.name, MISSING, install, needed=True)
    fits = requirement.specifier.contains(found, prereleases=True)
    return Line(requirement.name, f"{found} ({requirement.specifier})", None if fits else install, needed=True)


# --- programs ----------------------------------------------------------------------------------------------------


def find_chromium() -> str | None:
    """The path of an installed Chromium or Chrome."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


def programs() -> Iterator[Line]:
    """Optional packages and programs that only some commands need. For a key, only whether it is set."""
    for module, (extra, purpose) in OPTIONAL.items():
        yield optional_line(module, extra, purpose)
    keyed = "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    yield Line(
        "OPENAI_API_KEY", f"{keyed} (labelling with GPT)", None if keyed == "set" else "export OPENAI_API_KEY=..."
    )
    browser = find_chromium()
    yield Line("chromium", browser or "not found (browser tests)", None if browser else "apt-get install chromium")


def optional_line(module: str, extra: str, purpose: str) -> Line:
    try:
        import_module(module)
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == module
        what = MISSING if missing else f"cannot be imported: {error}"
        packages = " ".join(f"'{each.name}{each.specifier}'" for each in requirements(extra))
        return Line(module, f"{what} ({purpose})", f"pip install {packages}")
    return Line(module, f"installed ({purpose})")


# --- memory ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Memory:
    """A device with its free and total memory in bytes."""

    device: Any
    name: str
    free: int
    total: int


def memory(device: str) -> Memory:
    """The device that "auto" or a name refers to. On a CPU, `free` is limited by the system and by the container."""
    import psutil
    import torch
    from diffusion_feature.loading import pick_device

    place = pick_device(device)
    if place.type == "cuda":
        free, total = torch.cuda.mem_get_info(place)
        return Memory(place, torch.cuda.get_device_name(place), free, total)
    system = psutil.virtual_memory()
    free, total = container_limit(system.available, system.total)
    return Memory(place, f"{place.type}, {torch.get_num_threads()} threads", free, total)


def container_limit(free: int, total: int, group: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Free and total memory under the limit of a control group (cgroup v2), if there is one."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free, total
    return min(free, max(limit - used, 0)), min(total, limit)


def device_line(found: Memory) -> Line:
    return Line("device", f"{found.name}, {found.free / GB:.1f} of {found.total / GB:.1f} GB free")


BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # processor flags: two of x86, one of ARM


def processor_flags(file: Path = Path("/proc/cpuinfo")) -> set[str]:
    """The instruction sets that the system lists for the processor; empty if there is no such list."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    listed = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(listed, "").split())


def multiplies_bfloat16(device: Any, flags: set[str] | None = None) -> bool:
    """Whether bfloat16 is fast on the device; on a CPU without instructions for it, it is dozens of times slower."""
    if device.type != "cpu":
        return True
    return bool((processor_flags() if flags is None else flags).intersection(BFLOAT16))


def precision_line(found: Memory, dtype: str) -> Line:
    """Whether bfloat16 is fast here; if it is slow and `dtype` asks for 16 bit, the fix is float32."""
    if multiplies_bfloat16(found.device):
        return Line("bfloat16", "fast on this device")
    slow = "the processor has no instructions for it (AMX, AVX512-BF16): dozens of times slower than float32"
    return Line("bfloat16", slow, "goca doctor --dtype float32" if dtype in ("bfloat16", "float16") else None)


# --- what fits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """The memory that one pipeline needs.

    parameters  of all components, in billions
    method      bytes that the method holds beyond the forward pass;  measured  whether they were measured
    published   whether its settings are the paper's, or those of an embedded model
    """

    model: str
    parameters: float
    method: float
    measured: bool
    published: bool = False

    def bytes(self, width: int) -> float:
        """Weights of `width` bytes each, plus the memory of the method."""
        return self.parameters * 1e9 * width + self.method


def footprints() -> list[Footprint]:
    """One per entry of footprint.yaml, smallest first; the method's memory as in docs/benchmark.json, if measured."""
    from goca.files.text import read_yaml

    entries: Any = read_yaml(Path(__file__).with_name("footprint.yaml"))
    found = []
    for model, entry in entries.items():
        measured = measured_bytes(model)
        method = entry["method"] * GB if measured is None else measured
        found.append(
            Footprint(
                model, sum(entry["parameters"].values()), method, measured is not None, entry.get("published", False)
            )
        )
    return sorted(found, key=lambda each: each.bytes(4))


def measured_bytes(model: str, file: Path = MEASURED) -> float | None:
    """Peak memory of the method beyond the forward pass, in bytes, as measured by the benchmark; None if it was not."""
    from goca.files.bounded_json import read_json

    try:
        value = read_json(file)["models"][model]["held bytes"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def models(found: Memory, dtype: str, published: bool = True) -> Iterator[Line]:
    """Which models fit into the free memory, estimated from the sizes of weights and the memory of the method.

    published  True: models with settings from the paper, and the embedded ones; False: the others. Only the former
               are recommended as alternatives
    """
    width, name = width_of(dtype, found.device)
    fits = [each for each in footprints() if each.bytes(width) <= found.free and each.published]
    for each in (each for each in footprints() if each.published == published):
        what = f"{each.bytes(width) / GB:5.1f} GB in {name}, of which the method takes {each.method / GB:.2f}" + (
            "" if each.measured else " at most"
        )
        yield Line(each.model, what, None if each.bytes(width) <= found.free else remedy(each, found, fits))


def width_of(dtype: str, device: Any) -> tuple[int, str]:
    """Bytes per weight, and the dtype's name."""
    from diffusion_feature.loading import pick_dtype

    kind = pick_dtype(dtype, device)
    return kind.itemsize, str(kind).removeprefix("torch.")


def remedy(model: Footprint, found: Memory, fits: list[Footprint]) -> str:
    if model.bytes(2) <= found.free and multiplies_bfloat16(found.device):
        return f"goca segment IMAGE --model {model.model} --dtype bfloat16"
    if not fits:
        return "close other programs"
    return f"goca segment IMAGE --model {fits[-1].model}"
