"""Commands as a user gives them: in this process for the sake of time, or in one of their own."""

import importlib.util
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import trees
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
MAIN, CAPTIONER = (ROOT / "src-main" / f"{name}.py" for name in ("main", "captioner"))
ALONE = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def values(*overrides):
    """The configuration that these arguments of a command come to."""
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return OmegaConf.to_container(compose("config", overrides=[str(each) for each in overrides]), resolve=True)


def main(monkeypatch, capsys, folder, *arguments):
    """main.py with these arguments in that folder, run in this process: .code, .out, .err"""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [str(MAIN), *map(str, arguments)])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # Hydra takes coverage's tracing for a debugger, and would raise its own errors instead of printing them
    monkeypatch.setattr("hydra._internal.utils.is_under_debugger", lambda: False)
    GlobalHydra.instance().clear()
    try:
        runpy.run_path(str(MAIN), run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = ended.code
    finally:
        GlobalHydra.instance().clear()
    said = capsys.readouterr()
    message = "" if isinstance(code, int) or code is None else str(code)  # sys.exit(message) prints it at the end
    return SimpleNamespace(code=code, out=said.out, err=said.err + message)


def caption(*overrides):
    """captioner.py with these arguments, in this process."""
    spec = importlib.util.spec_from_file_location("captioner", CAPTIONER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.caption(values(*overrides))


def environment():
    """That of this process, with one thread and no network, and without what a launcher may have left in it."""
    launcher = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    return {name: value for name, value in os.environ.items() if name not in launcher} | ALONE


def voc_mini(goldens, tree=None):
    """What turns a command towards a small VOC tree, by default five drawn images, and the recorded tiny model."""
    tree = tree or trees.voc_mini()
    return [
        "dataset=voc",
        f"dataset.root={tree}/VOCdevkit/VOC2012",
        f"dataset.labels={tree}/gpt_output/voc.json",
        *tiny(goldens, 256),
    ]


def tiny(goldens, side):
    """The tiny model, at pictures of that side."""
    pipeline = f"model.pipeline={goldens}/pipelines/sd15"
    return ["model=sd15", pipeline, f"model.img_size={side}", f"model.feat_size={side // 8}", "device=cpu"]
