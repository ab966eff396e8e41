"""What `pip install .` gives: both packages with their data and types, and the console command."""

import configparser
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from goca.versions import TRIED
from packaging.requirements import Requirement
from setuptools.build_meta import build_wheel

ROOT = Path(__file__).parents[1]
SOURCES = ("setup.py", "pyproject.toml", "LICENSE", "configs", "install", "src-main")
UNCAPPED = {"torch", "diffusers", "transformers"}  # a cap would make pip replace a CUDA build that works


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
    assert {"crf", "app", "label", "eval", "dev", "docs", "test"} <= extras
    assert not {"openai", "httpx2"} & {each.name for each in requirements(inside)}  # 28 MB that few need


def requirements(inside, extras=False):
    """The requirements in the wheel's metadata: what is always needed, and with `extras` every extra's as well."""
    lines = [line for line in metadata(inside, "METADATA").splitlines() if line.startswith("Requires-Dist: ")]
    parsed = [Requirement(line.removeprefix("Requires-Dist: ")) for line in lines]
    return [each for each in parsed if extras or each.marker is None]


def pins(file):
    """Name -> version or "" of each line of requirements.txt or constraints.txt."""
    lines = [line.split("#")[0].strip() for line in (ROOT / file).read_text().splitlines()]
    return {line.partition("==")[0]: line.partition("==")[2] for line in lines if line and not line.startswith("-")}


def test_the_packages_that_bring_torch_have_no_upper_end(inside):
    needed = requirements(inside)
    assert {each.name for each in needed} >= UNCAPPED
    for each in needed:
        operators = {specifier.operator for specifier in each.specifier}
        assert ">=" in operators and "==" not in operators, each
        assert each.name not in UNCAPPED or operators == {">="}, each


def test_the_tried_versions_lie_in_the_ranges(inside):
    pinned = pins("constraints.txt")
    for each in requirements(inside, extras=True):
        if each.name != "hydra-submitit-launcher":  # SLURM's; not part of the tried environment
            assert pinned[each.name] in each.specifier, each
    assert list(pins("requirements.txt")) == [each.name for each in requirements(inside)]
    assert all(pinned.values()) and not any(pins("requirements.txt").values())


def test_the_two_set_up_commands_use_the_tried_versions():
    assert "--constraint constraints.txt" in (ROOT / "scripts/setup.sh").read_text()
    for script in ("demo.sh", "test.sh"):
        assert "setup.sh" in (ROOT / "scripts" / script).read_text()


@pytest.mark.parametrize(
    ("version", "warned"), {"9.1.0": True, "0.43.0.dev0": True, "0.42.9": False, "0.30.0": False}.items()
)
def test_a_newer_diffusers_is_warned_of_once(version, warned, tmp_path):
    """In a process of its own, with another version's metadata in front of the installed one's."""
    folder = tmp_path / f"diffusers-{version}.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: diffusers\nVersion: {version}\n")
    command = "import goca, goca.datasets; from goca import Protocol; print(Protocol.of('paper').noise)"
    places = os.pathsep.join(map(str, (tmp_path, ROOT / "src-main", ROOT / "install")))
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", command],
        env=os.environ | {"PYTHONPATH": places},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.strip() == "nominal", done.stderr
    assert done.stderr.count("NewerThanTried") == int(warned), done.stderr


def test_the_newest_tried_version_is_the_pinned_one():
    for package, newest in TRIED.items():
        assert pins("constraints.txt")[package].split(".")[:2] == [str(number) for number in newest]


def test_the_citation_names_this_version(inside):
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["authors"] and citation["message"]
    assert f"Version: {citation['version']}" in metadata(inside, "METADATA").splitlines()
    (paper,) = citation["references"]
    assert paper["title"] in (ROOT / "README.md").read_text()
    assert f"## [{citation['version']}]" in (ROOT / "CHANGELOG.md").read_text()


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
