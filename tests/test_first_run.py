"""The first run's report: on the embedded model, on a folder as published, and of a run that failed."""

import sys
from pathlib import Path

import published
import pytest
from diffusion_feature import PipelineNotFound

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
import first_run


def report(tmp_path, *arguments):
    first_run.main([*arguments, "dataset=scenes", "limit=2", f"run_dir={tmp_path / 'run'}"])
    return (tmp_path / "run" / "report.md").read_text()


def test_the_embedded_model(tmp_path):
    text = report(tmp_path, "model=mini-sd")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith(("| vanilla", "| GoCA"))]
    assert [row[1] for row in rows] == ["mini-sd-vanilla", "mini-sd"]
    for row in rows:
        low, high = map(float, row[5].split(" to "))
        assert float(row[2]) > 0 and float(row[3]) > 0 and low <= float(row[4].split(" at ")[0]) <= high
    assert "2 of 2 images" in text and "GB in the process" in text and "torch 2" in text
    assert str(tmp_path) not in text
    assert "counted before" in report(tmp_path, "model=mini-sd")  # the second time nothing is left to do


def test_a_folder_as_published(tmp_path):
    folder = published.save("PixArt-alpha/PixArt-XL-2-512x512", tmp_path / "alpha")
    small = ["model.img_size=64", "model.feat_size=8", f"model.pipeline={folder}"]
    text = report(tmp_path, "model=pixart-alpha", *small)
    assert "the folder alpha" in text and "| GoCA | pixart-alpha |" in text and str(tmp_path) not in text


def test_what_failed_is_in_the_report(tmp_path):
    with pytest.raises(PipelineNotFound):
        report(tmp_path, "model=sd15", f"model.pipeline={tmp_path}")
    text = (tmp_path / "run" / "report.md").read_text()
    assert "**It failed**: PipelineNotFound" in text and "model_index.json" in text


def test_the_papers_figures():
    assert first_run.figure("sdxl", "voc") == 65.6
    assert first_run.figure("flux-vanilla", "ade20k") == 24.5
    assert first_run.figure("sdxl", "scenes") is None
    assert first_run.methods("fttm") == {"vanilla": "sd15-vanilla", "GoCA": "fttm"}
    assert first_run.methods("sd15-vanilla") == {"GoCA": "sd15-vanilla"}
