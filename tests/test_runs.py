"""Runs of real processes: killed, dealt out among several, swept, and sent to a cluster."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import numpy as np
import pytest
import quick_runs
from commands import MAIN, ROOT
from goca.benchmark import Benchmark
from goca.report.results import evaluation_text
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--main_process_port=0"],
}


@pytest.fixture(scope="module")
def alone(goldens, tmp_path_factory):
    """The same images in this process, undisturbed."""
    folder = tmp_path_factory.mktemp("alone")
    return Benchmark.of(commands.values(*given(goldens), f"run_dir={folder}")).run()


def given(goldens):
    return [*commands.voc_mini(goldens), "model.img_size=64", "model.feat_size=8"]


def start(folder, *arguments):
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env=commands.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def counted(folder):
    """How often each image was counted."""
    lines = [line for path in folder.glob("counts*.jsonl") for line in path.read_text().splitlines()]
    return sorted(json.loads(line)["image"] for line in lines if '"cells"' in line)


def test_killed_in_mid_run_it_goes_on_where_it_stopped(goldens, alone, tmp_path):
    process = start(tmp_path, MAIN, *given(goldens), "run_dir=run")
    while (process.poll() is None and not (tmp_path / "run").is_dir()) or not counted(tmp_path / "run"):
        assert process.poll() is None, process.stdout.read()
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = counted(tmp_path / "run")
    assert not (tmp_path / "run" / "results.json").exists() and 1 <= len(before) < 5
    results = Benchmark.of(commands.values(*given(goldens), f"run_dir={tmp_path / 'run'}")).run()
    assert results["counts"] == alone["counts"] and len(counted(tmp_path / "run")) == 5
    assert set(before) <= set(counted(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 4])
def test_killed_many_times_at_random_moments(tmp_path, batch_size):
    given = ["model=mini-sd", "dataset=scenes", "limit=120", "device=cpu"]
    chance, kills = random.Random(batch_size), 0
    while kills < 8:
        process = start(tmp_path, MAIN, *given, f"batch_size={batch_size}", "run_dir=run")
        try:
            process.communicate(timeout=chance.uniform(1, 12))
            break  # it came to its end
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
            kills += 1
    assert kills > 1
    killed, alone = (
        Benchmark.of(commands.values(*given, f"run_dir={tmp_path / name}")).run() for name in ("run", "alone")
    )
    assert counted(tmp_path / "run") == counted(tmp_path / "alone")
    if batch_size == 1:
        assert killed["counts"] == alone["counts"]
    for counts in ("intersection", "union"):  # a batch may round otherwise than a picture alone: pixels at a tie
        assert np.abs(np.subtract(killed["counts"][counts], alone["counts"][counts])).sum(axis=1).max() <= 4


@pytest.mark.parametrize("launcher", ["torchrun", pytest.param("accelerate", marks=pytest.mark.slow)])
def test_two_processes_count_what_one_counts(goldens, alone, tmp_path, launcher):
    process = start(tmp_path, *LAUNCHERS[launcher], MAIN, *given(goldens), "run_dir=run")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert len(counted(tmp_path / "run")) == 5
    per_process = [path.read_text().count('"cells"') for path in sorted((tmp_path / "run").glob("counts*.jsonl"))]
    assert sorted(per_process) == [2, 3]
    assert json.loads((tmp_path / "run/results.json").read_text())["counts"] == alone["counts"]
    assert (tmp_path / "run/evaluation.txt").read_text() == evaluation_text(alone)
    assert "5 of 5 images" in said


@pytest.fixture
def swept(monkeypatch, capsys, tmp_path):
    """main.py with every run recorded instead of computed: the results, and what was to be run."""
    runs = []
    monkeypatch.setattr(Benchmark, "run", lambda self, **_: runs.append(self))

    def sweep(*arguments):
        done = commands.main(monkeypatch, capsys, tmp_path, *arguments)
        assert not done.code, done.err
        return runs

    return sweep


def test_a_sweep_leaves_a_record_of_itself_and_no_empty_folders(swept, tmp_path):
    runs = swept("-m", "model=mini-sd,mini-sd-vanilla", "dataset=scenes", "protocol=paper,released", "limit=3")
    assert [run.run_dir.name for run in runs] == [
        f"{model}-scenes-{protocol}" for model in ("mini-sd", "mini-sd-vanilla") for protocol in ("paper", "released")
    ]
    assert [path.name for path in (tmp_path / "runs").rglob("*") if path.is_file()] == ["multirun.yaml"]
    assert not [path for path in tmp_path.rglob("*") if path.is_dir() and not any(path.iterdir())]


def test_each_table_of_a_sweep_stands_under_its_run_s_name(monkeypatch, capsys, tmp_path):
    scenes = quick_runs.copy_scenes(tmp_path)
    monkeypatch.setattr(Benchmark, "predictor", quick_runs.Quick.predictor)
    labels = f"dataset.labels={tmp_path / 'labels.json'}"
    own = ["dataset=scenes", f"dataset.root={scenes}", labels, "protocol=paper,released", "device=cpu"]
    done = commands.main(monkeypatch, capsys, tmp_path, "-m", "model=mini-sd", *own)
    assert not done.code, done.err
    tables = [part.splitlines() for part in done.out.strip().split("\n\n")]
    names = [f"mini-sd-scenes-{protocol},device=cpu" for protocol in ("paper", "released")]
    assert [(table[0], table[-1]) for table in tables] == [(name, f"results: runs/{name}") for name in names]
    for table, protocol in zip(tables, ("paper", "released")):
        assert any(line.startswith("mIoU") for line in table) and f"3 of 3 images, protocol {protocol}" in table[-2]


def test_the_sweep_over_models_and_datasets(swept):
    runs = swept("--config-name", "sweep", "model=sd15", "roots.voc=/a", "roots.coco-object=/b", "seed=3")
    roots = {run.dataset.name: run.dataset.root for run in runs}
    others = ["context", "coco-stuff", "cityscapes", "ade20k"]
    assert len(runs) == 6 and roots == {"voc": "/a", "coco-object": "/b"} | dict.fromkeys(others)
    assert runs[0].run_dir == Path("runs/sd15-voc-paper,seed=3")  # where the data lie does not count
    params = OmegaConf.load(ROOT / "configs/sweep.yaml").hydra.sweeper.params
    for group in ("model", "dataset"):
        assert set(params[group].split(",")) <= {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")}


def test_fewer_of_them_may_be_named(swept):
    runs = swept("--config-name", "sweep", "model=sd15,flux", "dataset=voc,scenes", "roots.voc=/a")
    assert [run.dataset.root for run in runs] == ["/a", "goca:scenes"] * 2


def test_slurm_jobs_are_as_configured():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install '.[slurm]'")
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("sweep", ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"], return_hydra_config=True)
    launcher = config.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher") and launcher.max_num_timeout == 10
    assert launcher.partition == "gpu" and launcher.gpus_per_node == 1


@pytest.mark.slow
def test_a_sweep_through_the_cluster_launcher(goldens, alone, tmp_path):
    """submitit runs the jobs on this machine: each is pickled, started anew and writes its own run folder."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="pip install '.[slurm]'")
    own = [each for each in given(goldens) if not each.startswith(("model=", "dataset=", "dataset.root="))]
    (root,) = (each.removeprefix("dataset.root=") for each in given(goldens) if each.startswith("dataset.root="))
    local = ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=5"]
    sweep = ["--config-name", "sweep", "model=sd15,sd15-vanilla", "dataset=voc", f"roots.voc={root}"]
    process = start(tmp_path, MAIN, *sweep, *own, *local)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    found = {
        path.parent.name.split(",")[0]: json.loads(path.read_text())["counts"]
        for path in (tmp_path / "runs").glob("*/results.json")
    }
    assert set(found) == {"sd15-voc-paper", "sd15-vanilla-voc-paper"}
    assert found["sd15-voc-paper"] == alone["counts"]
    assert OmegaConf.load(next((tmp_path / "runs/sweeps").glob("*/multirun.yaml"))).hydra.mode is not None
