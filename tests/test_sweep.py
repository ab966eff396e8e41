"""Runs that share forwards count what they would have counted alone, go on from each other, and share what they can."""

import json

import pytest
import quick_runs
from commands import ROOT
from commands import values as composed
from goca.benchmark import Benchmark
from goca.benchmark.checks import NothingCounted
from goca.benchmark.run_store import RunMismatch
from goca.benchmark.shared_forward import merge_plans
from goca.benchmark.sweep import groups, run_together
from goca.cli.overrides import configured, default_run_dir, latest
from goca.segmenter import Segmenter
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

SETTINGS = {
    "GoCA": ["model=mini-sd"],
    "vanilla": ["model=mini-sd-vanilla"],
    "rules": ["model=mini-sd", "model.head_method=l2-norm", "model.layer_method=mse", "model.rescale_method=raw"],
    "first channel": ["model=mini-sd", "protocol.reference_channels=first"],
    "rows": ["model=mini-sd", "protocol.self_map_rows=as_resized", "protocol.void=background"],
    "words": ["model=mini-sd", "protocol.caption_grammar=first_group", "protocol.token_spans=search"],
    "background": ["model=mini-sd", "dataset.background=max", "dataset.add_background=true"],
    "released": ["model=mini-sd", "protocol=released", "protocol.seed=image"],
    "plus": ["model=mini-sd-plus"],
    "diffsegmentor": ["model=mini-sd-diffsegmentor"],
}


def benchmark(folder, name, *more):
    given = [*SETTINGS[name], "dataset=scenes", "device=cpu", "limit=4", *more, f"run_dir={folder / name}"]
    return Benchmark.of(configured(given))


def records(folder):
    found = (json.loads(line) for line in (folder / "counts.jsonl").read_text().splitlines())
    kept = ("image", "cells", "classes", "lost", "notes")
    return [{key: record[key] for key in kept} for record in found if "cells" in record]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    results = run_together([benchmark(folder, name) for name in SETTINGS])
    return folder, dict(zip(SETTINGS, results))


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_among_others_is_the_run_alone(together, tmp_path, name):
    folder, results = together
    alone = benchmark(tmp_path, name).run()
    assert records(folder / name) == records(tmp_path / name)
    assert (folder / name / "settings.json").read_text() == (tmp_path / name / "settings.json").read_text()
    assert (folder / name / "evaluation.txt").read_text() == (tmp_path / name / "evaluation.txt").read_text()
    same = ("mIoU", "per_class", "images", "protocol", "warnings")
    assert {key: results[name][key] for key in same} == {key: alone[key] for key in same}


def test_settings_that_differ_give_counts_that_differ(together):
    folder, _ = together
    names = ("GoCA", "vanilla", "rules", "first channel", "rows")
    assert len({json.dumps(records(folder / name)) for name in names}) == len(names)


def test_one_goes_on_from_the_other(tmp_path):
    benchmark(tmp_path, "GoCA", "limit=2").run()
    begun = (tmp_path / "GoCA/counts.jsonl").read_bytes()
    seen = []
    runs = [benchmark(tmp_path, name) for name in ("GoCA", "vanilla")]
    results = run_together(runs, progress=lambda name, ids: seen.append((name, len(ids))) or ids)
    assert seen == [("2 runs", 4)] and (tmp_path / "GoCA/counts.jsonl").read_bytes().startswith(begun)
    assert [each["images"]["counted"] for each in results] == [4, 4]
    again = run_together(runs, progress=lambda name, ids: seen.append((name, len(ids))) or ids)
    assert seen[1:] == [("2 runs", 0)] and [each["mIoU"] for each in again] == [each["mIoU"] for each in results]
    assert benchmark(tmp_path, "vanilla").run()["counts"] == results[1]["counts"]


def test_images_are_dealt_out_among_processes(together, tmp_path):
    names = ("GoCA", "words")
    first = run_together([benchmark(tmp_path, name) for name in names], rank=1, world=2)
    assert first == [None, None]
    second = run_together([benchmark(tmp_path, name) for name in names], rank=0, world=2)
    assert [each["counts"] for each in second] == [together[1][name]["counts"] for name in names]


def test_a_forward_serves_all_that_differ_after_it(tmp_path, monkeypatch):
    forwards, forward = [], Segmenter.forward

    def counted(self, requests, *more, **named):
        forwards.append(requests[0])
        return forward(self, requests, *more, **named)

    monkeypatch.setattr(Segmenter, "forward", counted)
    names = ("GoCA", "vanilla", "rules", "first channel", "rows")
    run_together([benchmark(tmp_path, name, "limit=2") for name in names])
    assert len(forwards) == 2
    forwards.clear()
    run_together([benchmark(tmp_path / "b", name, "limit=1") for name in ("GoCA", "background")])
    assert (
        len({request.annotation.caption for request in forwards}) == len(forwards) == 2
    )  # another caption, another forward


def test_what_changes_the_forward_is_a_group_of_its_own(tmp_path):
    runs = [benchmark(tmp_path, name) for name in SETTINGS]
    found = [{run.run_dir.name for run in group} for group in groups(runs)]
    assert sorted(map(len, found)) == [1, 1, 1, 7] and {"released"} in found and {"plus"} in found
    other = [
        Benchmark.of({**runs[0].values, "seed": 1, "run_dir": tmp_path / "seed"}),
        Benchmark.of({**runs[0].values, "limit": 3, "run_dir": tmp_path / "limit"}),
    ]
    assert len(groups([runs[0], *other])) == 3
    assert groups([runs[0], runs[0]]) == [[runs[0]]]


def test_plans_that_differ_in_rules_alone_are_one():
    segmenter = Segmenter.from_pretrained(None, "mini-sd", device="cpu")
    plans = [segmenter.plan(["average"], ["mse"]), segmenter.plan(["cosine"]), segmenter.plan(["average"])]
    (plan,) = merge_plans(plans)
    assert plan.head_rules == ("average", "cosine") and plan.layer_rules == ("mse", "dot-product similarity")


def test_images_that_cannot_be_used_are_skipped_by_all(tmp_path):
    labels = json.loads((ROOT / "gpt_output/scenes.json").read_text())
    names = sorted(labels)[:4]
    (tmp_path / "labels.json").write_text(json.dumps({name: labels[name] for name in names[1:]}))
    given = f"dataset.labels={tmp_path / 'labels.json'}"
    results = run_together([benchmark(tmp_path, name, given) for name in ("GoCA", "vanilla")])
    assert [len(each["images"]["skipped"]) for each in results] == [1, 1]
    assert "no caption" in results[0]["images"]["skipped"][0]["reason"]


def test_runs_in_which_nothing_was_counted_are_named_when_the_others_are_finished(tmp_path):
    """One that shares forward passes and one that is run alone fail alike, as each does by itself."""
    labelled = (quick_runs.copy_scenes(tmp_path) / "SegmentationClass").glob("*.png")
    for path in labelled:
        Image.new("RGB", (64, 64), (1, 2, 3)).save(path)
    broken = [f"dataset.root={tmp_path / 'scenes'}", f"dataset.labels={tmp_path / 'labels.json'}"]
    empty = [benchmark(tmp_path, name, *broken) for name in ("vanilla", "diffsegmentor")]
    whole = benchmark(tmp_path, "GoCA", "limit=1")
    with pytest.raises(NothingCounted) as error:
        run_together([empty[0], whole, empty[1]])
    said = str(error.value).splitlines()
    assert sorted(error.value.runs) == sorted(each.run_dir for each in empty)
    for each in empty:
        (line,) = [line for line in said if line.startswith(f"no image was counted in {each.run_dir}: all 3 were")]
        with pytest.raises(NothingCounted) as own:
            each.run()
        assert str(own.value) == line and (each.run_dir / "results.json").is_file()
    assert json.loads((whole.run_dir / "results.json").read_text())["images"]["counted"] == 1


def test_a_folder_of_other_settings_is_refused(tmp_path):
    benchmark(tmp_path, "GoCA", "limit=1").run()
    other = Benchmark.of({**benchmark(tmp_path, "vanilla").values, "run_dir": tmp_path / "GoCA"})
    with pytest.raises(RunMismatch, match="head_method"):
        run_together([other])


@pytest.mark.parametrize(
    "given",
    [
        ["model=sd15", "dataset=voc", "dataset.root=/a", "model.rescale_method=sum-1 rescaling + per-token renorm"],
        ["protocol=released", "protocol.seed=image", "dataset.thresholds=[0.1,0.2]", "+model.timesteps=[50]"],
    ],
)
def test_the_configuration_is_hydra_s(given):
    found = configured(given)
    expected = composed(*given)
    assert found | {"run_dir": None} == expected | {"choices": found["choices"]}
    assert found["run_dir"] == default_run_dir(found["choices"], given)


def test_a_key_that_is_not_there_is_refused_and_the_last_value_counts():
    with pytest.raises(OmegaConfBaseException, match="nothing"):
        configured(["model.nothing=3"])
    assert latest(["seed=1", "model=sd15", "seed=2"]) == ["seed=2", "model=sd15"]
    assert configured(["seed=1", "model=sd15", "seed=2", "model=mini-sd"])["seed"] == 2
