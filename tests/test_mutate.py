"""scripts/mutate.py: its table names files and tests that exist, and its changes are valid Python."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from mutate import CORE, main, sample  # noqa: E402
from mutation.changes import changes  # noqa: E402


def test_every_file_and_test_of_the_table_exists():
    missing = [file for file in CORE if not (ROOT / file).is_file()]
    missing += [name for tests in CORE.values() for name in tests if not (ROOT / f"tests/test_{name}.py").is_file()]
    assert not missing


@pytest.mark.parametrize("file", ["src-main/goca/method/heads.py", "install/diffusion_feature/noise.py"])
def test_each_change_is_valid_and_differs(file):
    source = (ROOT / file).read_bytes()
    found = changes(file)
    assert len(found) > 10
    for change in found:
        text = source[: change.start] + change.after.encode() + source[change.end :]
        assert ast.dump(ast.parse(text)) != ast.dump(ast.parse(source)), change


def test_a_larger_count_only_adds_lines():
    few, many = sample(5, 0, ["rescaling"]), sample(9, 0, ["rescaling"])
    assert len(few) == 5 and many[:5] == few


def test_the_list_runs_nothing(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mutate.py", "--count", "3", "--list"])
    assert main() == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
