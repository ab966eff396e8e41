"""Commands that documentation shows, read by bash and tried.

Commands on embedded data run, on two images. Others need data, weights or machines that are not here: their
configuration is composed, or their own parser reads the arguments, and there they stop. Scripts for bash are checked by
bash. A command of any other kind fails, so that whoever documents one adds to TRIED how it is tried.
"""

import argparse
import re
import runpy
import subprocess
import sys
from itertools import zip_longest

import commands
import yaml
from docpages import FENCE, ROOT, blocks, pages, settings_of
from goca.cli.overrides import parser as override_parser
from goca.config import load_config
from goca.datasets import DatasetConfig
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

# bash reads a block with nothing on its path: what would be a program is told instead, its words and its place
TOLD = """PATH=/nonexistent
command_not_found_handle() { builtin printf '%s\\0' "$@"; builtin printf '\\n\\0'; }
"""


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


# ---- how a command is tried


class Reading(BaseException):
    """A command has read its arguments, and goes no further."""


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
        code = main(list(arguments))
        assert code == 0, f"goca ended with {code}"


def try_check(arguments, page, place, monkeypatch, capsys, run):
    """A linter: CI calls it with the same arguments."""
    lines = [line.removeprefix(".venv/bin/").split() for line in (ROOT / ".ci/run").read_text().splitlines()]
    assert any(line[:1] in (["ruff"], ["mypy"]) and line[1:] == list(arguments) for line in lines), arguments


def try_pre_commit(arguments, *rest):
    assert list(arguments) == ["install"]
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "mypy"}


TRIED = {
    "python3": try_python,
    "bash": try_bash,
    "accelerate": try_accelerate,
    "torchrun": try_torchrun,
    "srun": try_srun,
    "pip": try_pip,
    "goca": try_goca,
    "ruff": try_check,
    "mypy": try_check,
    "pre-commit": try_pre_commit,
}


def try_command(command, page, place, monkeypatch, capsys, run=True):
    assert command[0] in TRIED, f"{page}: no way to try {command[0]!r} is known here; add one to TRIED"
    TRIED[command[0]](command[1:], page, place, monkeypatch, capsys, run)
