"""`goca doctor`: each line ends in ok or in a command; what is needed and missing makes the exit status 1."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from goca.cli import machine, main, places
from goca.config import load_config, names
from goca.embedded import resolve
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]


def doctor(capsys, *arguments):
    code = main(["doctor", "--device", "cpu", *map(str, arguments)])
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    return code, [line for line in said.out.splitlines() if line.startswith("  ")]


def line_of(lines, what):
    (line,) = [line for line in lines if line.split()[0] == what]
    return line


def test_the_whole_page(capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    code, lines = doctor(capsys)
    assert code == 0
    assert all(line.endswith("   ok") or "   -> " in line for line in lines)
    assert lines[-1].split()[0] == "mini-sd" and "segmented in" in lines[-1] and lines[-1].endswith("ok")
    assert torch.__version__ in line_of(lines, "torch") and "GB free" in line_of(lines, "device")
    assert "set" in line_of(lines, "OPENAI_API_KEY") and "sk-secret" not in "".join(lines)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "not set" in next(str(line) for line in machine.programs() if line.what == "OPENAI_API_KEY")


def test_a_broken_pipeline_is_named_and_nothing_is_tried(capsys, tmp_path):
    folder = tmp_path / "pipe"
    shutil.copytree(resolve("goca:mini-sd"), folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    code, lines = doctor(capsys, "--model", "mini-sd", "--pipeline", folder)
    assert code == 1 and "lacks unet" in line_of(lines, "pipeline") and "not tried" in lines[-1]


def test_a_part_is_complete_only_with_all_of_its_split_weights(tmp_path):
    part = tmp_path / "transformer"
    part.mkdir()
    (part / "model-1-of-2.safetensors").touch()
    weights = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    (part / "model.safetensors.index.json").write_text(json.dumps(weights))
    assert not places.complete(part)
    (part / "model-2-of-2.safetensors").touch()
    assert places.complete(part) and not places.complete(tmp_path / "vae")


def test_the_hub_is_asked_with_patience_and_its_silence_is_said(monkeypatch):
    asked = []

    def silent(url, timeout, **_):
        asked.append((url, timeout))
        raise OSError("no net")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", silent)
    (line,) = places.pipeline("somebody/no-such-model-here")
    assert line.needed and "cannot be reached" in line.found and "--pipeline FOLDER" in line.fix
    assert asked == [(asked[0][0], 5)] and "somebody/no-such-model-here" in asked[0][0]
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda *_, **__: None)
    (line,) = places.pipeline("somebody/no-such-model-here")
    assert line.ok
    (line,) = places.pipeline("no such:id")
    assert "neither a folder nor a hub id" in line.found


def test_a_folder_that_hides_the_package_is_named(tmp_path, monkeypatch):
    """A clone called goca, where the package is installed with --editable: no folder of sys.path has it."""
    (tmp_path / "goca").mkdir()
    monkeypatch.setattr("sys.path", [str(tmp_path / "elsewhere")])
    (line,) = places.shadows(tmp_path)
    assert not line.ok and not line.needed and f"{tmp_path / 'goca'} hides the package" in line.found
    monkeypatch.setattr("sys.path", [str(ROOT / "src-main")])
    assert not list(places.shadows(tmp_path))
    monkeypatch.setattr("sys.path", [])
    (tmp_path / "goca" / "__init__.py").touch()
    assert not list(places.shadows(tmp_path)) and not list(places.shadows(tmp_path / "goca"))


def test_the_path_that_the_set_up_writes_finds_the_package_beside_such_a_folder(tmp_path):
    (tmp_path / "goca").mkdir()
    written = re.search(r"printf '%s\\n' (.*) >", (ROOT / "scripts/setup.sh").read_text())[1]
    folders = [str(ROOT / Path(each.strip('"')).name) for each in written.split()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    code = "import goca, diffusion_feature; print(goca.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == str(ROOT / "src-main/goca/__init__.py"), done.stderr


def test_a_data_set_is_looked_through(tmp_path):
    (line,) = places.dataset("scenes", None)
    assert line.ok and "200 images" in line.found
    root = tmp_path / "scenes"
    shutil.copytree(resolve("goca:scenes"), root)
    (root / "SegmentationClass" / "test_00007.png").unlink()
    (line,) = places.dataset("scenes", str(root))
    assert line.needed and "1 with no label" in line.found and "--root" in line.fix
    (line,) = places.dataset("voc", None)
    assert "root is not set" in line.found and not line.ok
    (line,) = places.dataset("vox", None)
    assert "voc" in line.found and not line.ok


@pytest.mark.parametrize(
    "text, ok", [("torch>=1", True), ("torch<1", False), ("no-such-package-goca>=2", False), ("torch==2.13.0", True)]
)
def test_versions_are_held_against_their_ranges(text, ok, monkeypatch):
    monkeypatch.setattr(machine.metadata, "version", installed(torch="2.13.0+cpu"))
    line = machine.version_line(Requirement(text))
    assert line.ok == ok and (ok or line.fix == f"pip install '{text}'")


def installed(**versions):
    def version(name):
        if name not in versions:
            raise machine.metadata.PackageNotFoundError(name)
        return versions[name]

    return version


def test_a_missing_package_is_said_before_anything_is_imported(capsys, monkeypatch):
    versions = {each.name: "1" for each in machine.requirements(None) if each.name != "diffusers"}
    monkeypatch.setattr(machine.metadata, "version", installed(**versions))
    monkeypatch.setattr(machine, "memory", lambda _: pytest.fail("went on"))
    code, lines = doctor(capsys)
    assert code == 1 and "pip install 'diffusers" in line_of(lines, "diffusers")


def memory(gigabytes):
    return machine.Memory(torch.device("cpu"), "cpu", int(gigabytes * 1e9), int(gigabytes * 1e9))


def test_what_fits_follows_the_memory():
    def fits(gigabytes, dtype="auto"):
        lines = [line for kind in (True, False) for line in machine.models(memory(gigabytes), dtype, kind)]
        return {line.what for line in lines if line.ok}

    assert fits(0.001) == set() and fits(10_000) == {each.model for each in machine.footprints()}
    assert fits(5) == {"mini-sd", "mini-sd-small", "mini-pixart", "mini-flux", "sd15"} and "sd21" in fits(5, "bfloat16")
    for smaller, larger in ((1, 5), (5, 20), (20, 40)):
        assert fits(smaller) <= fits(larger)


def test_the_fix_names_a_model_that_fits(monkeypatch):
    monkeypatch.setattr(machine, "processor_flags", lambda: {"avx2", "amx_bf16"})
    fixes = {line.what: line.fix for line in machine.models(memory(15), "auto")}
    assert "--model pixart-sigma --dtype bfloat16" in fixes["pixart-sigma"]
    assert fixes["flux"].endswith(("--model hunyuan", "--model sdxl"))


def test_only_models_with_published_settings_are_proposed():
    """Lumina 2 is the largest that fits 25 GB in float32, and no paper chose its settings."""
    published = {line.what: line for line in machine.models(memory(25), "auto")}
    others = {line.what: line for line in machine.models(memory(25), "auto", published=False)}
    assert {"sd15", "sdxl", "pixart-alpha", "hunyuan", "flux"} <= set(published)
    assert {"sd21", "playground-v2", "sd3", "kolors", "lumina2"} <= set(others)
    assert others["lumina2"].ok and not published["flux"].ok
    for line in [*published.values(), *others.values()]:
        proposed = (line.fix or "").partition("--model ")[2].split()
        assert line.ok or proposed[0] in published or proposed[0] == line.what


@pytest.mark.parametrize(
    ("flags", "fast"),
    [
        ({"avx2", "avx512f"}, False),
        ({"avx512_bf16"}, True),
        ({"amx_bf16", "amx_tile"}, True),
        ({"asimd", "bf16"}, True),
        (set(), False),
    ],
)
def test_bfloat16_is_recommended_where_it_is_fast(monkeypatch, flags, fast):
    monkeypatch.setattr(machine, "processor_flags", lambda: flags)
    fixes = [line.fix for line in machine.models(memory(15), "auto") if not line.ok]
    assert any("bfloat16" in fix for fix in fixes) == fast
    assert machine.precision_line(memory(15), "auto").ok
    assert machine.precision_line(memory(15), "bfloat16").ok == fast
    assert machine.multiplies_bfloat16(torch.device("cuda"))


def test_the_processor_is_asked_what_it_can(tmp_path):
    (tmp_path / "x86").write_text("processor\t: 0\nflags\t\t: fpu avx2 amx_bf16\n\nprocessor\t: 1\nflags\t\t: fpu\n")
    (tmp_path / "arm").write_text("processor : 0\nFeatures : fp asimd bf16\n")
    assert machine.processor_flags(tmp_path / "x86") == {"fpu", "avx2", "amx_bf16"}
    assert machine.processor_flags(tmp_path / "arm") == {"fp", "asimd", "bf16"}
    assert machine.processor_flags(tmp_path / "none") == set()


def test_weights_by_hand():
    flux = next(each for each in machine.footprints() if each.model == "flux")
    assert flux.bytes(2) - flux.bytes(0) == pytest.approx(2 * 16.87e9, rel=1e-3)


def test_every_model_config_has_a_footprint():
    entries = {load_config(each.model).pipeline for each in machine.footprints()}
    assert {load_config(name).pipeline for name in names()} <= entries


def test_the_embedded_models_footprint_is_its_own():
    from safetensors import safe_open

    counted = 0
    for file in Path(resolve("goca:mini-sd")).glob("*/*.safetensors"):
        with safe_open(file, "pt") as weights:
            counted += sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118
    mini = next(each for each in machine.footprints() if each.model == "mini-sd")
    assert mini.parameters * 1e9 == pytest.approx(counted, rel=0.01)


def test_a_container_may_use_no_more_than_its_limit(tmp_path):
    assert machine.container_limit(7, 9, tmp_path) == (7, 9)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3\n")
    assert machine.container_limit(7, 9, tmp_path) == (7, 9)
    (tmp_path / "memory.max").write_text("5\n")
    assert machine.container_limit(7, 9, tmp_path) == (2, 5)


def test_a_model_that_does_not_fit_is_not_tried(capsys, monkeypatch):
    monkeypatch.setattr(machine, "memory", lambda _: memory(0.0001))
    monkeypatch.setattr(places, "pipeline", lambda place: [machine.Line("pipeline", place)])
    code, lines = doctor(capsys, "--model", "flux-vanilla")
    needed = next(each for each in machine.footprints() if each.model == "flux").bytes(4) / 1e9
    assert code == 1 and f"not tried: it needs {needed:.1f} GB, more than is free" in lines[-1]


def test_a_module_that_cannot_be_imported_says_why(monkeypatch):
    def broken(name):
        raise ImportError("libGL.so.1: cannot open shared object file")

    monkeypatch.setattr(machine, "import_module", broken)
    line = machine.optional_line("pydensecrf", "crf", "DenseCRF")
    assert "libGL" in line.found and "pydensecrf2" in line.fix
    assert not line.needed
