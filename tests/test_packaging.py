"""What `pip install .` gives: both packages with their data and types, and the console command."""

import configparser
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from setuptools.build_meta import build_wheel

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.py", "pyproject.toml", "requirements.txt", "configs", "install", "src-main")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources: their own folder is left as it is."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source, ignore = ROOT / name, shutil.ignore_patterns("__pycache__", "*.egg-info", "*.tmp")
        shutil.copytree(source, copy / name, ignore=ignore) if source.is_dir() else shutil.copy(source, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        patch.setattr(sys, "argv", ["setup.py"])
        return copy / "dist" / build_wheel(str(copy / "dist"))


@pytest.fixture(scope="module")
def inside(wheel):
    """The names in the wheel; and the content of those files that describe it."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) if ".dist-info/" in name else b"" for name in archive.namelist()}


def metadata(inside, file):
    (name,) = [name for name in inside if name.endswith(f".dist-info/{file}")]
    return inside[name].decode()


def test_every_module_and_every_kind_of_data_is_in_the_wheel(inside):
    for package, place in (("goca", "src-main"), ("diffusion_feature", "install")):
        folder = ROOT / place / package
        modules = {f"{package}/{path.relative_to(folder).as_posix()}" for path in folder.rglob("*.py")}
        assert modules <= set(inside), modules - set(inside)
        assert f"{package}/py.typed" in inside
    data = {path.relative_to(ROOT / "configs").as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert {f"goca/configs/{name}" for name in data} <= set(inside)
    for folder in ("cli", "embedded", "datasets", "labeling"):
        files = [path for path in (ROOT / "src-main/goca" / folder).rglob("*") if path.is_file()]
        kept = {
            f"goca/{path.relative_to(ROOT / 'src-main/goca').as_posix()}"
            for path in files
            if path.suffix in (".yaml", ".json", ".safetensors", ".xml", ".png", ".txt", ".md")
        }
        assert kept <= set(inside), sorted(kept - set(inside))[:5]
    assert {name.split("/")[0] for name in inside if ".dist-info" not in name} == {"goca", "diffusion_feature"}


def test_the_console_command_and_the_extras(inside):
    commands = configparser.ConfigParser()
    commands.read_string(metadata(inside, "entry_points.txt"))
    assert dict(commands["console_scripts"]) == {"goca": "goca.cli:main"}
    lines = metadata(inside, "METADATA").splitlines()
    extras = {line.removeprefix("Provides-Extra: ") for line in lines if line.startswith("Provides-Extra")}
    assert {"crf", "app", "eval", "dev"} <= extras
    needed = [line for line in lines if line.startswith("Requires-Dist: ") and "extra ==" not in line]
    listed = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert len(needed) == len(list(filter(None, listed)))


def test_every_range_has_both_ends():
    for line in (ROOT / "requirements.txt").read_text().splitlines():
        line = line.split("#")[0].strip()
        assert not line or "==" in line or (">=" in line and "<" in line.replace(">=", "")), line


def test_types_are_checked_of_both_packages():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert set(tools["mypy"]["packages"]) == {"goca", "diffusion_feature"}


@pytest.mark.slow
def test_the_lazy_names_have_types(tmp_path):
    (tmp_path / "use.py").write_text(
        "from goca import PromptAnnotation, Segmenter\n"
        'seg = Segmenter.from_pretrained(None, "mini-sd")\n'
        'reveal_type(seg("a.png", "cat").label_map())\n'
        'reveal_type(PromptAnnotation("a").class_ids)\n'
        "seg.no_such_method()\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", ROOT / "pyproject.toml", tmp_path / "use.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert 'no attribute "no_such_method"' in done.stdout, done.stdout + done.stderr
    revealed = done.stdout.replace("builtins.", "")
    assert 'Revealed type is "torch._tensor.Tensor"' in revealed and 'Revealed type is "list[int]"' in revealed


@pytest.mark.slow
def test_a_clean_environment_gets_the_command(wheel, tmp_path):
    """A fresh environment, the wheel and all it needs from the registry, and one picture."""
    python = environment(tmp_path / "venv")
    subprocess.run([python, "-m", "pip", "install", "-q", wheel], check=True, timeout=1500)
    command = python.parent / "goca"
    picture = ROOT / "src-main/goca/embedded/scenes/JPEGImages/test_00000.png"
    done = subprocess.run(
        [command, "segment", picture, "--prompt", "star, wall, snow"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "test_00000-labels.png").is_file()
    assert subprocess.run([command, "doctor"], cwd=tmp_path, capture_output=True, timeout=300).returncode == 0


def environment(folder):
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=300)
    return folder / "bin" / "python"
