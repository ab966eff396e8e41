"""scripts/setup.sh, run in a clone that is called goca: scripts in the folder above it find the package.

pip itself installs, from nothing but the clone: its dependencies are left out.
"""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COPIED = ("setup.py", "pyproject.toml", "constraints.txt", "README.md", "LICENSE")
LINKED = ("configs", "install", "src-main")
INSTALLER = ("pip", "setuptools", "setuptools-*.dist-info", "_distutils_hack", "distutils-precedence.pth")
# no network: pip takes this environment's setuptools (for pip, "no build isolation = off" switches the isolation off)
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "off", "PIP_CONFIG_FILE": os.devnull}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone called goca that setup.sh has set up, and beside it a script that imports the package."""
    pytest.importorskip("pip", reason="this environment was made without pip")
    folder = tmp_path_factory.mktemp("above") / "goca"
    (folder / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts/setup.sh", folder / "scripts")
    for name in COPIED:
        shutil.copy(ROOT / name, folder)
    for name in LINKED:
        (folder / name).symlink_to(ROOT / name)
    venv.create(folder / ".venv", symlinks=True)
    packages = next((folder / ".venv/lib").glob("python3.*")) / "site-packages"
    for pattern in INSTALLER:
        found = next(place for path in sys.path for place in Path(path).glob(pattern))
        (packages / found.name).symlink_to(found)
    (folder.parent / "mine.py").write_text("from goca import GocaError\nprint(GocaError.__module__)\n")
    done = subprocess.run(
        ["bash", "-c", ". goca/scripts/setup.sh"],
        cwd=folder.parent,
        env=os.environ | OFFLINE,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return folder


def run_beside(clone):
    command = [clone / ".venv/bin/python", "mine.py"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=clone.parent, env=environment, capture_output=True, text=True)


def test_a_script_beside_the_clone_finds_the_package(clone):
    done = run_beside(clone)
    assert done.stdout == "goca.errors\n", done.stderr


def test_without_it_the_clone_hides_the_package_as_the_questions_say(clone):
    (paths,) = clone.glob(".venv/lib/python3.*/site-packages/goca-sources.pth")
    paths.rename(paths.with_suffix(".kept"))
    try:
        done = run_beside(clone)
    finally:
        paths.with_suffix(".kept").rename(paths)
    assert done.returncode and "from 'goca' (unknown location)" in done.stderr
    assert "(unknown location)" in (ROOT / "docs/faq.md").read_text()
