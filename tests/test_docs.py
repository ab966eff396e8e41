"""The documentation is true: links lead somewhere, names exist, tables agree with the code, every command is tried.

`doc_commands` says how a command is tried.
"""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from doc_commands import collected, told, try_command
from docpages import FENCE, ROOT, anchors, blocks, links, pages
from goca.config import RULES
from goca.config import names as configs
from goca.embedded import resolve
from goca.evaluation.decision import BACKGROUND_RULES
from goca.protocol import SWITCHES, Protocol
from goca.refine.chain import REFINEMENTS
from hydra.core.global_hydra import GlobalHydra

SCENE = Path(resolve("goca:scenes")) / "JPEGImages" / "test_00003.png"
OWN_TESTS = {"docs/adding-a-backbone.md", "docs/adding-a-dataset.md"}  # test_adding runs their code, in order
VERSION = re.compile(r"`((?:torch|diffusers|transformers)[=<>][^`]*)`")


COMMANDS = collected()


@pytest.fixture
def place(tmp_path, monkeypatch, request):
    """A folder with what a reader would have: a picture, and the settings that the command's page shows."""
    for name in ("photo.jpg", "photos/one.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(SCENE, tmp_path / name)
    (tmp_path / "src-main").symlink_to(ROOT / "src-main")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield tmp_path
    GlobalHydra.instance().clear()


@pytest.mark.parametrize(("page", "command"), COMMANDS, ids=[shlex.join(command)[:90] for _, command in COMMANDS])
def test_a_command_of_the_documentation(page, command, place, monkeypatch, capsys):
    try_command(command, page, place, monkeypatch, capsys)


def test_commands_are_found():
    assert {command[0] for _, command in COMMANDS} >= {"python3", "bash", "accelerate", "srun"}
    assert told("for n in 1 2; do a 'b c' \\\n --n=$n; done   # why") == [("a", "b c", "--n=1"), ("a", "b c", "--n=2")]
    for name in ("gpt_labeling.py", "captioner.py", "import_labels.py"):
        assert any(name in " ".join(command) for _, command in COMMANDS), name


@pytest.mark.parametrize(
    ("command", "error"),
    {
        "wget http://example.org": "no way to try 'wget'",
        "python3 src-main/nothing.py": "there is no src-main/nothing.py",
        "bash scripts/nothing.sh": "there is no scripts/nothing.sh",
        "pip install '.[nothing]'": "nothing",
        "python3 src-main/main.py model=nothing": "Could not find 'model/nothing'",
        "python3 src-main/main.py modle.t=1": "modle",
        "python3 src-main/main.py model.head_method=nothing": "unknown head_method 'nothing'",
        "python3 src-main/main.py dataset=voc dataset.rot=/data": "rot",
        "accelerate launch src-main/main.py dataset=nothing": "Could not find 'dataset/nothing'",
        "accelerate launch --nothing src-main/main.py": "2",
        "srun --ntasks 2 bash -c 'python3 src-main/main.py protocol.noise=loud'": "protocol.noise is 'loud'",
        "python3 scripts/train_mini.py --nothing": "train_mini.py: 2",
        "python3 src-additional/generation_experiment/generate.py nothing=1": "generate.py: SettingsError: .*nothing",
        "goca segment photo.jpg": "goca ended with 1",
    }.items(),
)
def test_a_wrong_command_is_not_let_through(command, error, place, monkeypatch, capsys):
    with pytest.raises((Exception, SystemExit), match=error):
        try_command(told(command)[0], "README.md", place, monkeypatch, capsys)


# ---- code


PYTHON = [(page, n, block) for page, text in pages().items() for n, block in enumerate(blocks(text, "python"))]


@pytest.mark.parametrize(("page", "number", "block"), PYTHON, ids=[f"{page}-{n}" for page, n, _ in PYTHON])
def test_a_python_block(page, number, block, place):
    """Compiles and imports what there is; with the embedded model, it runs."""
    tree = compile(block, f"{page}, python block {number}", "exec", ast.PyCF_ONLY_AST)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("goca", "diffusion_feature"):
            module = importlib.import_module(node.module)
            assert not [each.name for each in node.names if not hasattr(module, each.name)]
    if "mini-sd" in block and page not in OWN_TESTS and "pipe(" not in block:
        exec(compile(block, f"{page}, python block {number}", "exec"), {})
    imports, *others = block.split("\n\n")
    for part in others:
        if "embedded_pipeline()" in part:
            quick = re.sub("num_inference_steps=[0-9]+", "num_inference_steps=2", f"{imports}\n{part}")
            exec(compile(quick, f"{page}, python block {number}", "exec"), {})


@pytest.mark.parametrize("page", pages())
def test_names_exist(page):
    """Every `goca....` and `diffusion_feature....` in backticks can be imported."""
    for name in set(re.findall(r"`((?:goca|diffusion_feature)(?:\.\w+)+)", pages()[page])):
        parts = name.split(".")
        found = next((depth for depth in range(len(parts), 0, -1) if importable(".".join(parts[:depth]))), None)
        assert found, name
        value = importlib.import_module(".".join(parts[:found]))
        for part in parts[found:]:
            assert hasattr(value, part), f"{page}: there is no {name}"
            value = getattr(value, part)


def importable(name):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


def test_the_architecture_page_names_every_module():
    """Each file once, by its path below its package; __init__.py files only where they hold something to find."""
    packages = re.split(r"^## Files: `(.*)`$", pages()["docs/architecture.md"], flags=re.M)[1:]
    listed = dict(zip(packages[::2], (re.findall(r"`([\w/]+\.py)`", text) for text in packages[1::2])))
    for folder, names in listed.items():
        modules = {path.relative_to(ROOT / folder).as_posix() for path in (ROOT / folder).rglob("*.py")}
        assert not set(names) - modules, "docs/architecture.md names files that do not exist"
        missing = {name for name in modules - set(names) if not name.endswith("__init__.py")}
        assert not missing, f"add a line to docs/architecture.md for: {sorted(missing)}"
        assert len(names) == len(set(names))
    assert len(listed) == 2


# ---- links and tables


@pytest.mark.parametrize("page", pages())
def test_blocks_are_of_a_kind_that_is_tried(page):
    text = pages()[page]
    assert {language for language, _ in FENCE.findall(text)} <= {"bash", "python", "yaml", "json", "bibtex", ""}
    assert "```" not in FENCE.sub("", text)


@pytest.mark.parametrize("page", pages())
def test_links_lead_somewhere(page):
    for link in links(pages()[page]):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, fragment = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page}: {link}"
        if fragment:
            assert fragment in anchors(target.read_text(encoding="utf-8")), f"{page}: {link}"


def rows(text):
    """The cells of every table's rows."""
    return [
        [cell.strip(" `") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
        for line in text.splitlines()
        if line.startswith("|")
    ]


def test_the_method_names_every_rule():
    first = [row[0] for row in rows(pages()["docs/method.md"])]
    for known in (*RULES.values(), BACKGROUND_RULES, REFINEMENTS):
        assert not set(known) - set(first)


def test_the_rescaling_table_is_the_code_s():
    rules = RULES["rescale_method"]
    found = {row[0]: row[1].split(":")[0] for row in rows(pages()["docs/method.md"]) if row[0] in rules}
    assert found == {rule: ", ".join(step.__name__ for step in steps) for rule, steps in rules.items()}


def test_the_switches_are_the_code_s():
    text = pages()["docs/protocols.md"]
    assert {row[0]: tuple(row[1:]) for row in rows(text) if row[0] in SWITCHES} == SWITCHES
    assert all(f"**`{switch}`**" in text for switch in SWITCHES)
    assert set(vars(Protocol.of("paper"))) == set(SWITCHES)


def test_the_memory_table_is_the_footprint_s():
    footprint = yaml.safe_load((ROOT / "src-main/goca/cli/footprint.yaml").read_text())
    footprint = {model: entry for model, entry in footprint.items() if not model.startswith("mini-")}  # they ship
    told_here = {row[0]: row[1:] for row in rows(pages()["docs/faq.md"]) if row[0] in footprint}
    sums = {
        model: [f"{2 * part(entry['parameters'].values()) + entry['method']:.1f}" for part in (sum, max)]
        for model, entry in footprint.items()
    }
    assert told_here == sums
    assert set(footprint) <= set(configs())


def test_every_row_of_the_compatibility_table_names_a_test():
    rows = [line for line in pages()["docs/compatibility.md"].splitlines() if line.startswith("| ")]
    rows = [row for row in rows if not row.startswith(("| what |", "|---"))]
    assert len(rows) > 50
    for row in rows:
        _, what, how, shown, _ = row.split("|")
        named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", shown)
        assert what.strip() and how.strip() and named, row
        for file, test in named:
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"


def test_the_versions_and_the_remedy_are_the_code_s():
    from diffusion_feature.tap import REMEDY

    text = pages()["docs/faq.md"]
    setup = (ROOT / "setup.py").read_text()
    assert VERSION.findall(text) and all(f'"{requirement}"' in setup for requirement in VERSION.findall(text))
    assert REMEDY in " ".join(re.sub(r"^> ", "", text, flags=re.M).split())


# ---- the site


def test_the_site_builds_without_a_broken_link(tmp_path):
    """mkdocs --strict: pages, anchors and names of the API reference; needs the extra `docs`."""
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site/api/refine/index.html").read_text(encoding="utf-8")
    assert "goca.refine.affinity.affinity" in page and "space_map" in page
