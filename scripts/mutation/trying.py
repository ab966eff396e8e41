"""Try changes: write each into a copy of the repository and run the tests there, in a fork of this process."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from mutation.changes import ROOT, Change


def copy_tree(folder: Path) -> Path:
    """Copy what the tests need of the repository into `folder`."""
    kept = ("configs", "install", "src-main", "src-additional", "scripts", "tests", "gpt_output", "docs", "examples")
    for name in kept:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "setup.py", "constraints.txt", "requirements.txt"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def prepare() -> None:
    """Import the slow packages that are never changed, once."""
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
        "GOCA_GOLDENS": "/nonexistent",
    }
    for name in ("torch", "diffusers", "transformers", "hypothesis", "scipy.optimize", "hydra", "pytest"):
        importlib.import_module(name)
    import diffusers
    import transformers

    for name in (
        "StableDiffusionPipeline",
        "StableDiffusionXLPipeline",
        "PixArtAlphaPipeline",
        "FluxPipeline",
        "HunyuanDiTPipeline",
        "UNet2DConditionModel",
        "AutoencoderKL",
    ):
        getattr(diffusers, name)
    for name in ("CLIPTextModel", "T5EncoderModel", "BertModel", "AutoTokenizer", "T5Tokenizer", "BertTokenizer"):
        getattr(transformers, name)


def attempt(folder: Path, options: list[str], tests: tuple[str, ...], limit: float, output: Path) -> tuple[str, float]:
    """Run pytest in the copy, in a fork: "killed", "alive" or "too long", and the seconds that it took."""
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _run_tests(folder, options, [f"tests/test_{name}.py" for name in tests], output)
    while time.monotonic() - began < limit:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return ("alive" if status == 0 else "killed"), time.monotonic() - began
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "too long", time.monotonic() - began


def failures(output: Path) -> list[str]:
    """The tests that failed, as pytest names them."""
    lines = output.read_text(errors="replace").splitlines()
    return [line.split()[1] for line in lines if line.startswith(("FAILED ", "ERROR "))]


def _run_tests(folder: Path, options: list[str], files: list[str], output: Path) -> None:
    """In the fork; does not return."""
    code = 3
    try:
        os.setsid()  # its own children end with it
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(folder)
        places = [str(folder / "src-main"), str(folder / "install"), str(folder / "tests")]
        os.environ["PYTHONPATH"] = os.pathsep.join(places[:2])
        sys.path[:0] = places
        import pytest
        from hypothesis import Phase, settings

        settings.register_profile("unshrunk", phases=[Phase.explicit, Phase.generate], database=None)
        own = [
            "-q",
            "-rfE",
            "-p",
            "no:cacheprovider",
            "--no-header",
            "--tb=no",
            "--basetemp",
            str(folder / "tmp"),
            "--hypothesis-seed=0",
            "--hypothesis-profile=unshrunk",
        ]
        for file in files:  # one after the other: most changes are noticed before the others are even read
            code = int(pytest.main([*own, *options, file]))
            if code:
                break
        import goca

        assert Path(goca.__file__).is_relative_to(folder), goca.__file__
    finally:
        sys.stdout.flush()
        os._exit(code)


def try_all(todo: Sequence[Change], tests_of: Mapping[str, tuple[str, ...]], log: Path, limit: float) -> None:
    """Try the changes one after the other and append each result to the log.

    tests_of   file -> names of the tests that should fail after a change in it
    limit      seconds for one change
    """
    from tqdm import tqdm

    with tempfile.TemporaryDirectory(prefix="mutate-") as place:
        folder, output = copy_tree(Path(place) / "tree"), Path(place) / "output.txt"
        without: dict[str, list[str]] = {}  # name of tests -> what is left out of them
        for change in tqdm(todo, unit="change"):
            tests, file = tests_of[change.file], folder / change.file
            for name in tests:
                if name not in without:
                    attempt(folder, [], (name,), limit, output)
                    without[name] = failures(output)
                    if without[name]:
                        tqdm.write(f"fails before any change: {' '.join(without[name])}")
            left_out = [argument for name in tests for test in without[name] for argument in ("--deselect", test)]
            source = file.read_bytes()
            file.write_bytes(source[: change.start] + change.after.encode() + source[change.end :])
            result, seconds = attempt(folder, ["-x", *left_out], tests, limit, output)
            file.write_bytes(source)
            record = asdict(change) | {"key": change.key, "result": result, "seconds": round(seconds, 1)}
            with log.open("a") as lines:
                lines.write(json.dumps(record | {"by": failures(output)[:1]}) + "\n")
            if result == "alive":
                tqdm.write(f"alive  {change}")
