"""The tables: which runs they are made of, what is written where nothing was run, and the command itself."""

import csv
import json
import subprocess
import sys

import pytest
import quick_runs
from commands import ROOT, environment

sys.path.insert(0, str(ROOT / "scripts"))
import reproduce
from goca.benchmark.checks import NothingCounted
from goca.cli.overrides import configured
from goca.config import HEAD_RULES, LAYER_RULES, RESCALE_RULES, names
from goca.protocol import SWITCHES
from papertables import tables


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        reproduce.main(list(arguments))
        return capsys.readouterr().out

    return run


def table(name, *given, grid="default"):
    return tables.Table.of(reproduce.definition(name), list(given), grid)


def row(table, *labels):
    return next(each for each in table.rows if each.labels == labels)


def test_the_ablation_has_the_paper_s_grid_and_every_rule_alone():
    ours = table("ablation", "model=sd15", "dataset=voc")
    labels = [each.labels for each in ours.rows]
    assert len(set(labels[:9])) == 9 and ("vanilla", "manual", "vanilla") in labels[:9]
    for place, rules in enumerate((HEAD_RULES, LAYER_RULES, RESCALE_RULES)):
        assert {each[place] for each in labels} >= set(rules)
    assert len(labels) == len(set(labels)) == 9 + 7 + 3 + 10 + 5  # the layer rule alone that is off is in the grid
    assert row(ours, "ours", "ours", "ours").figure == 60.7 and row(ours, "vanilla", "manual", "vanilla").figure == 51.1
    assert row(ours, "ours", "ours", "vanilla").figure is None
    assert not any(each.figure for each in table("ablation", "model=mini-sd", "dataset=scenes").rows)
    assert len(table("ablation", grid="full").rows) == 7 * 4 * 10


def test_every_switch_is_turned_from_both_sides():
    ours = table("switches")
    assert len(ours.rows) == 2 * (1 + len(SWITCHES))
    for (_, column), overrides in ours.runs():
        assert column in ("vanilla", "GoCA") and configured(["model=mini-sd", *overrides])
    protocols = [tuple(configured(list(each.overrides))["protocol"].items()) for each in ours.rows]
    assert len(set(protocols)) == len(protocols)


def test_every_run_of_every_table_is_a_configuration():
    for name in ("main", "open", "ablation", "switches", "timesteps"):
        assert all(isinstance(note, str) for note in table(name).definition["notes"])
        tried: set[str] = set()
        for _, overrides in table(name).runs():
            if not tried.issuperset(overrides):  # groups are composed one by one, so each choice is tried once
                tried.update(overrides)
                assert configured(overrides)["run_dir"].startswith("runs/")


def test_the_main_table_is_the_paper_s_and_says_what_was_not_run(command):
    out = command("table=main", "run=false")
    assert "| GoCA | flux | voc | 70.7 |  | not run | not run |" in out
    assert "| GoCA | sd15 | voc | 60.7 | 54.97 | not run | not run |" in out
    assert f'{2 * len(table("main").rows)} of the runs are "not run"' in out and "read from a published note" in out
    part = command("table=main", "run=false", "model=flux", "dataset=voc,ade20k")
    assert "| GoCA | hunyuan | coco-stuff | not run | not run |" not in part
    assert part.count("| flux |") == 4 and "sd15" not in part


def test_every_vanilla_config_has_rows_beside_its_method():
    pairs = {each.labels for each in table("main").rows}
    for name in (each.removesuffix("-vanilla") for each in names() if each.endswith("-vanilla")):
        for dataset in ["scenes"] if name.startswith("mini-") else ["voc", "coco-stuff", "ade20k"]:
            assert {("vanilla", name, dataset), ("GoCA", name, dataset)} <= pairs


def test_a_timestep_study_has_a_row_for_each(command):
    out = command("table=timesteps", "dataset=scenes", "timesteps=30,700", "limit=2", "device=cpu")
    lines = [each.split(" | ") for each in out.splitlines() if each.startswith(("| 30 |", "| 700 |"))]
    assert len(lines) == 2 and "not run" not in out
    assert lines[0][1:] != lines[1][1:]
    assert [each.labels for each in table("timesteps").rows][:3] == [("20",), ("50",), ("100",)]


def test_the_generation_table_collects_scores(command, tmp_path):
    made = {"model": "sd15", "guidance_scale": 5.0, "method": "goca"}
    for folder, images, fid, extra in (
        ("few", 10, 40.0, {}),
        ("goca-5", 30000, 18.876, {}),
        ("own", 20, 3.0, {"model": "mini-sd"}),
    ):
        (tmp_path / "runs" / folder).mkdir(parents=True)
        scores = {
            "images": images,
            "scores": {"fid": fid, "clip_score": 31.4},
            "generated": {**made, **extra},
            "distance": {"network": "inception"},
        }
        (tmp_path / "runs" / folder / "scores.json").write_text(json.dumps(scores))
    (tmp_path / "runs/foreign").mkdir()
    (tmp_path / "runs/foreign/scores.json").write_text('{"images": 3, "scores": {}, "generated": null}')
    out = command("table=generation")
    assert "| sd15 | 5 | GoCA + S-CFG | 18.82 |  | 31.42 | 18.88 |  | 31.40 | 30000 |" in out
    assert "| sd15 | 5 | CFG | 19.27 |  | 31.34 | not run | not run | not run |  |" in out
    assert "| mini-sd | 5 | GoCA + S-CFG |  |  |  | 3.00 |  | 31.40 | 20 |" in out
    assert '29 of the runs are "not run"' in out and 'distance: {"network": "inception"}' in out
    written = list(csv.DictReader((tmp_path / "runs/tables/generation.csv").open()))
    assert len(written) == 31 and written[8]["FID"] == "18.88"


def test_others_figures_stand_beside_what_is_told_as_little(command):
    out = command("table=open", "run=false")
    assert "| system | told | data set | published by its authors | ours: vanilla | ours: GoCA |" in out
    published = {
        "DiffSegmenter": (60.1, 27.5, 37.9),
        "OVDiff": (67.1, 30.1, 34.8),
        "iSeg": (68.6, 30.9, 38.4),
        "CLIPer": (72.2, 39.5, 44.7),
    }
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"]
    for system, figures in published.items():
        own = {line[2]: line[3:] for line in lines if line[0] == system}
        sets = ("voc", "context", "coco-object")
        assert own == {name: [f"{figure:g}", "", ""] for name, figure in zip(sets, figures)}
    ours = [line for line in lines if line[0] == "ours"]
    assert len(ours) == 4 * 7 and all(line[3:] == ["", "not run", "not run"] for line in ours)
    assert len({line[1] for line in ours}) == 4 and sum("from the ground truth" in line[1] for line in ours) == 7
    assert f'{2 * len(ours)} of the runs are "not run"' in out
    for (each, column), overrides in table("open").runs():
        values = configured(overrides)
        assert values["ask"] == "open" and values["dataset"]["name"] == each.labels[2]
        assert (values["model"]["head_method"] == "average") == (column == "vanilla")


def test_open_runs_are_run_and_collected(command, tmp_path):
    out = command("table=open", "dataset=scenes", "words=vocabulary,caption", "limit=2", "device=cpu")
    results = json.loads(next((tmp_path / "runs").glob("*words=vocabulary*/results.json")).read_text())
    assert results["words"] == "vocabulary" and "not run" not in out
    assert out.count("; AUC ") == 2 and f"AUC {100 * results['presence']['auc']['value']:.1f}" in out
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    again = command(
        "table=open",
        "dataset=scenes",
        "words=vocabulary,caption",
        "limit=2",
        "device=cpu",
        "run=false",
        "runs=elsewhere",
    )
    assert again.splitlines()[:4] == out.splitlines()[:4]


def test_places_are_given_by_name():
    given = ["roots.voc=/data", "pipelines.sd15=/sd", "pipelines.flux=/flux"]
    found = reproduce.located(["dataset=voc", "model=sd15-vanilla"], given)
    assert found[2:] == ["dataset.root=/data", "model.pipeline=/sd"]
    assert reproduce.located(["dataset=ade20k", "model=fttm"], given)[2:] == ["model.pipeline=/sd"]


def test_a_table_is_run_written_and_collected(command, tmp_path, monkeypatch):
    few = lambda *_: [tables.Row(("vanilla",) * 3, ("model.head_method=average",)), tables.Row(("ours",) * 3, ())]  # noqa: E731
    monkeypatch.setitem(tables.BUILDERS, "ablation", few)
    given = ("table=ablation", "dataset=scenes", "limit=3", "device=cpu")
    out = command(*given)
    assert "not run" not in out and "3 of 3" in out and "goca:mini-sd" in out
    results = json.loads((tmp_path / "runs/mini-sd-scenes-paper,device=cpu/results.json").read_text())
    low, high = results["metrics"]["best"]["mIoU"]["interval"]
    best = results["mIoU"]["best"]
    assert f"{100 * best['mIoU']:.1f} [{100 * low:.1f}, {100 * high:.1f}] at {best['threshold']:g}" in out
    written = tmp_path / "runs/tables/ablation-scenes"
    rows = list(csv.DictReader(written.with_suffix(".csv").open()))
    assert len(rows) == 4 and all(float(each["mIoU_best"]) > 30 and each["images"] == "3" for each in rows)
    latex = written.with_suffix(".tex").read_text()
    assert latex.count(r"\\") == 3 and r"\begin{tabular}" in latex
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert command(*given, "run=false", "runs=elsewhere").splitlines()[:4] == out.splitlines()[:4]
    assert "not run" in command(*given, "run=false", "runs=elsewhere", "seed=1")


def test_a_table_is_written_though_nothing_was_counted(command, tmp_path, monkeypatch):
    for path in (quick_runs.copy_scenes(tmp_path) / "SegmentationClass").glob("*.png"):
        path.write_bytes(b"no label")
    monkeypatch.setitem(tables.BUILDERS, "ablation", lambda *_: [tables.Row(("ours",) * 3, ())])
    own = (f"dataset.root={tmp_path / 'scenes'}", f"dataset.labels={tmp_path / 'labels.json'}", "device=cpu")
    with pytest.raises(NothingCounted, match="no image was counted in runs/mini-sd-scenes-paper"):
        command("table=ablation", "dataset=scenes", *own)
    (written,) = (tmp_path / "runs/tables").glob("ablation-*.md")
    assert "no image counted" in written.read_text() and "0 of 3" in written.read_text()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["table=miau"], "expected one of: ablation, generation, main, open, switches, timesteps"),
        ([], "expected one of: ablation, generation, main, open, switches, timesteps"),
        (["table=main", "format=word"], "markdown, csv, latex"),
        (["table=main", "scenes"], "expected key=value"),
        (["table=ablation", "run_dir=x"], "its own folder"),
        (["table=ablation", "model=sd51"], "sd15"),
        (["table=ablation", "model.nothing=1"], "nothing"),
    ],
)
def test_what_is_refused_is_said_without_a_traceback(tmp_path, given, message):
    script = [sys.executable, str(ROOT / "scripts/reproduce.py"), *given]
    if given[:1] == ["table=ablation"]:
        done = subprocess.run(script, cwd=tmp_path, env=environment(), capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    else:
        with pytest.raises(reproduce.ArgumentError, match=message):
            reproduce.main(given)
