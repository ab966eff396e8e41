"""What `goca doctor` says of the machine: versions, devices, memory, programs, and which models fit."""

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
    "gradio": ("app", "the page"),
    "openai": ("label", "captions from a server"),
}
OLDEST = (3, 11)
MISSING = "not installed"
MEASURED = Path(__file__).resolve().parents[3] / "docs" / "benchmark.json"  # in a checkout


@dataclass(frozen=True)
class Line:
    """One finding. `mend`: the command that helps, None if all is well; `needed`: without it nothing works."""

    what: str
    found: str
    mend: str | None = None
    needed: bool = False

    @property
    def ok(self) -> bool:
        return self.mend is None

    def __str__(self) -> str:
        return f"  {self.what:<18} {self.found}   {'ok' if self.mend is None else '-> ' + self.mend}"


# --- versions ----------------------------------------------------------------------------------------------------


def versions() -> Iterator[Line]:
    """Python, and every package that goca needs, against the range it names."""
    new = sys.version_info >= OLDEST
    yield Line("python", platform.python_version(), None if new else "pyenv install 3.11", needed=True)
    for requirement in requirements(extra=None):
        yield version_line(requirement)


def requirements(extra: str | None) -> list[Any]:
    """What goca's own metadata names as needed; for an extra, what that adds."""
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


def programs() -> Iterator[Line]:
    """What some commands need and others do without. Of a key only whether it is set."""
    for module, (extra, purpose) in OPTIONAL.items():
        yield optional_line(module, extra, purpose)
    keyed = "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    yield Line("OPENAI_API_KEY", f"{keyed} (labelling by GPT)", None if keyed == "set" else "export OPENAI_API_KEY=...")
    browser = next(filter(None, map(shutil.which, CHROMIUM)), None)
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
    """A device, its free and its whole memory in bytes."""

    device: Any
    name: str
    free: int
    total: int


def memory(device: str) -> Memory:
    """The device that "auto" or a name stands for. On a CPU, free is what the system, and a container, still give."""
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
    """Free and whole memory under a control group's limit, where there is one (cgroup v2)."""
    try:
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):
        return free, total
    return min(free, max(limit - used, 0)), min(total, limit)


def device_line(found: Memory) -> Line:
    return Line("device", f"{found.name}, {found.free / GB:.1f} of {found.total / GB:.1f} GB free")


BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16")  # of x86, the last one of ARM


def processor_flags(file: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the processor can do, as the system names it; empty where it does not say."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    said = (line.partition(":")[2] for line in lines if line.lower().startswith(("flags", "features")))
    return set(next(said, "").split())


def multiplies_bfloat16(device: Any, flags: set[str] | None = None) -> bool:
    """Whether bfloat16 is fast there. A CPU without instructions for it is dozens of times slower than in float32."""
    if device.type != "cpu":
        return True
    return bool((processor_flags() if flags is None else flags).intersection(BFLOAT16))


def precision_line(found: Memory, dtype: str) -> Line:
    """Whether the CPU has instructions for bfloat16; asked for without them, the command that does not use it."""
    if multiplies_bfloat16(found.device):
        return Line("bfloat16", "fast on this device")
    slow = "the processor has no instructions for it (AMX, AVX512-BF16): dozens of times slower than float32"
    return Line("bfloat16", slow, "goca doctor --dtype float32" if dtype in ("bfloat16", "float16") else None)


# --- what fits ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """What one pipeline takes: billions of parameters, bytes of the method, and whether those are measured.

    published  whether its settings are the paper's, or an embedded model's own
    """

    model: str
    parameters: float
    method: float
    measured: bool
    published: bool = False

    def bytes(self, width: int) -> float:
        """Weights of `width` bytes each and the method's own."""
        return self.parameters * 1e9 * width + self.method


def footprints() -> list[Footprint]:
    """One per entry of footprint.yaml, smallest first; the method's own as docs/benchmark.json has it, if it does."""
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
    """The method's peak beyond the forward, in bytes, from the benchmark's figures."""
    from goca.files.bounded_json import read_json

    try:
        value = read_json(file)["models"][model]["held bytes"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return float(value) if isinstance(value, int | float) else None


def models(found: Memory, dtype: str, published: bool = True) -> Iterator[Line]:
    """Which models fit into the free memory: an estimate from sizes of weights and the method's own memory.

    published  those whose settings the paper chose, and the embedded ones; False: the others. Only the former are
               proposed in place of what does not fit
    """
    width, name = width_of(dtype, found.device)
    fits = [each for each in footprints() if each.bytes(width) <= found.free and each.published]
    for each in (each for each in footprints() if each.published == published):
        what = f"{each.bytes(width) / GB:5.1f} GB in {name}, of it {each.method / GB:.2f} the method's" + (
            "" if each.measured else " at most"
        )
        yield Line(each.model, what, None if each.bytes(width) <= found.free else remedy(each, found, fits))


def width_of(dtype: str, device: Any) -> tuple[int, str]:
    """Bytes of a weight, and the type's name."""
    from diffusion_feature.loading import pick_dtype

    kind = pick_dtype(dtype, device)
    return kind.itemsize, str(kind).removeprefix("torch.")


def remedy(model: Footprint, found: Memory, fits: list[Footprint]) -> str:
    if model.bytes(2) <= found.free and multiplies_bfloat16(found.device):
        return f"goca segment IMAGE --model {model.model} --dtype bfloat16"
    if not fits:
        return "close other programs"
    return f"goca segment IMAGE --model {fits[-1].model}"
