"""The documentation is true: links lead somewhere, names exist, tables agree with the code, every command is tried.

Commands on embedded data run, on two pictures. Others need data, weights or machines that are not here: their
configuration is composed, or their own parser reads the arguments, and there they stop. Scripts for bash are read by
bash. A command of any other kind fails, so that whoever documents one says how it is tried.
"""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import commands
import pytest
import yaml
from docpages import FENCE, ROOT, anchors, blocks, links, pages, settings_of
from goca.cli.overrides import parser as override_parser
from goca.config import RULES, load_config
from goca.config import names as configs
from goca.datasets import DatasetConfig
from goca.embedded import resolve
from goca.evaluation.decision import BACKGROUND_RULES
from goca.protocol import SWITCHES, Protocol
from goca.refine.chain import REFINEMENTS
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

# bash reads a block with nothing on its path: what would be a program is told instead, its words and its place
TOLD = """PATH=/nonexistent
command_not_found_handle() { builtin printf '%s\\0' "$@"; builtin printf '\\n\\0'; }
"""
SCENE = Path(resolve("goca:scenes")) / "JPEGImages" / "test_00003.png"
OWN_TESTS = {"docs/adding-a-backbone.md", "docs/adding-a-dataset.md"}  # test_adding runs their code, in order
VERSION = re.compile(r"`((?:torch|diffusers|transformers)[=<>][^`]*)`")


def told(block):
    """The commands of a block of bash, with loops, variables and quotes resolved by bash itself."""
    done = subprocess.run(["/bin/bash", "-c", TOLD + block], capture_output=True, text=True, cwd="/", check=False)
    assert not done.stderr, done.stderr
    return [tuple(each.split("\0")[:-1]) for each in done.stdout.split("\n\0") if each]


def indented(text):
    """Commands that stand in a block by indentation."""
    return re.findall(r"^ {4}((?:python3|bash|goca|export) .*)$", FENCE.sub("", text), re.M)


def collected():
    """(page, command) of all pages, each once; a sentence's `...` says nothing."""
    found = {}
    for page, text in pages().items():
        for block in [*blocks(text, "bash"), *indented(text)]:
            for command in told(block):
                found.setdefault(tuple(word for word in command if word != "..."), page)
    return [(page, command) for command, page in found.items()]


COMMANDS = collected()


# ---- how a command is tried


class Reading(BaseException):
    """A command has read its arguments, and goes no further."""


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


def sweep(arguments, given=()):
    """Every choice of a sweep once: not their product."""
    choices = []
    for text in [*given, *arguments]:
        override = override_parser().parse_override(text)
        several = override.is_sweep_override()
        values = override.sweep_string_iterator() if several else ()
        choices.append([f"{override.key_or_group}={value}" for value in values] or [text])
    last = [each[-1] for each in choices]
    return [[one or end for one, end in zip(row, last)] for row in zip_longest(*choices)] if choices else [[]]


def composed(name, arguments, extra=()):
    """What Hydra makes of the arguments, `hydra` apart."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return OmegaConf.to_container(compose(name, overrides=[*arguments, *extra]), resolve=True)


def options(arguments):
    """Hydra's own options, and the overrides."""
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--multirun", "-m", action="store_true")
    own.add_argument("--config-name", "-cn")
    own.add_argument("--config-dir", "-cd")
    return own.parse_known_args(arguments)


def without_launcher(arguments):
    """Without what chooses and sets a launcher; its file holds each of the keys."""
    kept = []
    for each in arguments:
        if each.startswith("hydra/launcher="):
            assert (ROOT / "configs" / f"{each.replace('=', '/')}.yaml").is_file(), each
        elif key := re.match(r"hydra\.launcher\.(\w+)=", each):
            assert key[1] in yaml.safe_load((ROOT / "configs/hydra/launcher/slurm.yaml").read_text())
        else:
            kept.append(each)
    return kept


def hydra_command(script, arguments, page, place, run):
    """main.py and its like: composed and checked; on embedded data, main.py runs."""
    own, overrides = options(arguments)
    overrides = without_launcher(overrides)
    name = own.config_name or re.search(r'config_name="(\w+)"', script.read_text())[1]
    given, extra = [], []
    if own.config_dir:
        settings_of(page, place)
        extra = [f"hydra.searchpath=[file://{place / own.config_dir}]"]
    if own.config_name:
        params = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())["hydra"]["sweeper"]["params"]
        set_here = {each.split("=")[0] for each in overrides}
        given = [f"{key}={value}" for key, value in params.items() if key not in set_here]
    for row in sweep(overrides, given):
        values = composed(name, row, extra)
        dataset = DatasetConfig.of(values["dataset"])
        if "model" not in values:
            continue
        model = load_config({**values["model"], "protocol": values["protocol"]})
        if any(not str(each).startswith("goca:") for each in (model.pipeline, dataset.root)):
            run = False
    if run and script.name == "main.py":
        assert run(*arguments)


def limited(monkeypatch, capsys, place):
    def run(*arguments):
        said = commands.main(monkeypatch, capsys, place, *arguments, "limit=2", "device=cpu")
        assert said.code in (0, None), said.err
        assert list(place.glob("runs/*/results.json"))
        return True

    return run


def script_command(script, arguments, monkeypatch, through):
    """A script of this repository in this process, to its end or until its arguments are read."""
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    monkeypatch.syspath_prepend(str(script.parent))
    if not through:
        stop_after(monkeypatch, argparse.ArgumentParser, "parse_args")
        stop_after(monkeypatch, OmegaConf, "to_object")
    try:
        runpy.run_path(str(script), run_name="__main__")
    except Reading:
        return
    except SystemExit as ended:
        assert through and ended.code in (0, None), f"{script.name}: {ended.code}"
    assert through, f"{script.name} has not read its arguments"


def stop_after(monkeypatch, owner, name):
    whole = getattr(owner, name)

    def read(*args, **given):
        whole(*args, **given)
        raise Reading

    monkeypatch.setattr(owner, name, read if name == "parse_args" else staticmethod(read))


def try_python(arguments, page, place, monkeypatch, capsys, run):
    script, rest = ROOT / arguments[0], list(arguments[1:])
    assert script.is_file() and ROOT in script.resolve().parents, f"there is no {arguments[0]}"
    if "hydra.main" in script.read_text():
        hydra_command(script, rest, page, place, run and limited(monkeypatch, capsys, place))
    elif script.name == "reproduce.py":
        read_reproduce(script, rest, monkeypatch)
    else:
        embedded = script.name == "attention_observation.py" and "--pipeline" not in rest
        script_command(script, rest, monkeypatch, through=run and embedded)


def read_reproduce(script, arguments, monkeypatch):
    """Its own arguments by its own reader, the others as main.py's."""
    monkeypatch.syspath_prepend(str(script.parent))
    names = runpy.run_path(str(script))
    own, given = names["read_arguments"](arguments)
    assert (ROOT / "configs" / "tables" / f"{own['table']}.yaml").is_file(), own
    for row in sweep([each for each in given if each.split(".")[0] not in names["PLACES"]]):
        composed("config", row)


def try_bash(arguments, *rest):
    if arguments[0] == "-c":
        for command in told(arguments[1]):
            try_command(command, *rest[:-1], run=False)
        return
    script = ROOT / arguments[0]
    assert script.is_file(), f"there is no {arguments[0]}"
    assert subprocess.run(["/bin/bash", "-n", script], check=False).returncode == 0


def try_accelerate(arguments, page, place, monkeypatch, capsys, run):
    from accelerate.commands.launch import launch_command_parser

    assert arguments[0] == "launch"
    read = launch_command_parser().parse_args(list(arguments[1:]))
    try_python([read.training_script, *read.training_script_args], page, place, monkeypatch, capsys, run=False)


def try_torchrun(arguments, page, place, monkeypatch, capsys, run):
    from torch.distributed.run import get_args_parser

    read = get_args_parser().parse_args(list(arguments))
    try_python([read.training_script, *read.training_script_args], page, place, monkeypatch, capsys, run=False)


def try_srun(arguments, *rest):
    """SLURM is not here; what it is to start is read."""
    start = arguments.index("bash")
    try_bash(arguments[start + 1 :], *rest)


def try_pip(arguments, *rest):
    """Only this project, with extras that it has."""
    assert arguments[0] == "install"
    extras = set(re.findall(r"^    \"(\w+)\": \[|EXTRAS\[\"(\w+)\"\]", (ROOT / "setup.py").read_text(), re.M))
    known = {name for pair in extras for name in pair if name} | {"dev", "test"}
    for each in (word for word in arguments[1:] if not word.startswith("-")):
        named = re.fullmatch(r"(?:\.|goca)(?:\[([\w,]+)\])?", each)
        assert named and set((named[1] or "test").split(",")) <= known, each


def try_goca(arguments, page, place, monkeypatch, capsys, run):
    """On a picture with the embedded model it runs; otherwise its parser reads."""
    from goca.cli import main, make_parser

    read = make_parser().parse_args(list(arguments))
    if run and arguments[0] == "segment" and read.model in (None, "mini-sd") and read.pipeline is None:
        assert main(list(arguments)) == 0


TRIED = {
    "python3": try_python,
    "bash": try_bash,
    "accelerate": try_accelerate,
    "torchrun": try_torchrun,
    "srun": try_srun,
    "pip": try_pip,
    "goca": try_goca,
}


def try_command(command, page, place, monkeypatch, capsys, run=True):
    assert command[0] in TRIED, f"{page}: no way to try {command[0]!r} is known here; add one to TRIED"
    TRIED[command[0]](command[1:], page, place, monkeypatch, capsys, run)


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
        "python3 src-main/main.py model.head_method=nothing": "head_method 'nothing' is not known",
        "python3 src-main/main.py dataset=voc dataset.rot=/data": "rot",
        "accelerate launch src-main/main.py dataset=nothing": "Could not find 'dataset/nothing'",
        "accelerate launch --nothing src-main/main.py": "2",
        "srun --ntasks 2 bash -c 'python3 src-main/main.py protocol.noise=loud'": "protocol.noise is 'loud'",
        "python3 scripts/train_mini.py --nothing": "train_mini.py: 2",
        "python3 src-additional/generation_experiment/generate.py nothing=1": "generate.py: SettingsError: .*nothing",
        "goca segment photo.jpg": "assert 1 == 0",
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
    footprint.pop("mini-sd")
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
    required = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert VERSION.findall(text) and set(VERSION.findall(text)) <= set(required)
    assert REMEDY in " ".join(re.sub(r"^> ", "", text, flags=re.M).split())
