"""The captioner command: the published file byte for byte, and what it says of images it cannot use."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from families import FAMILIES
from goca.prompts import CaptionError, annotate, load_tokenizers, read_annotations
from goca.segmenter import Segmenter
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from trees import voc_mini

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "src-main" / "captioner.py"


def run(*overrides):
    """The command as a process of its own."""
    return subprocess.run([sys.executable, SCRIPT, *overrides], capture_output=True, text=True, cwd=ROOT)


def caption(*overrides):
    """The command's work in this process, for the sake of time."""
    spec = importlib.util.spec_from_file_location("captioner", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        config = compose("config", overrides=list(overrides))
    module.caption(OmegaConf.to_container(config, resolve=True))


@pytest.fixture
def command(goldens, tmp_path):
    tree = voc_mini()
    shutil.copy(tree / "gpt_output" / "voc.json", tmp_path / "labels.json")
    return [
        "model=sd15",
        f"model.pipeline={goldens / 'pipelines' / 'sd15'}",
        "dataset=voc",
        f"dataset.root={tree / 'VOCdevkit' / 'VOC2012'}",
        f"dataset.labels={tmp_path / 'labels.json'}",
        f"annotations={tmp_path / 'out.json'}",
    ]


def replaced(command, override):
    return [override if each.split("=")[0] == override.split("=")[0] else each for each in command]


def test_the_published_file_is_written_in_the_order_of_the_split(command, tmp_path):
    done = run(*command, "protocol=released")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out.json").read_text())
    assert list(written) == [f"2007_00000{i}.jpg" for i in (5, 4, 3, 2, 1)]
    assert written["2007_000001.jpg"] == {
        "caption": "cat, grass, wall, sky, background",
        "rescaling_token_id": [1, 3, 4, 6, 8, 10, 11],
        "existent_objects": {"8": [1]},
        "global_token_id": [0],
        "background_objects": [[3, 4], [6], [8], [10, 11]],
    }
    assert "5 annotations" in done.stdout and "skipped" not in done.stdout


def test_wrong_settings_end_with_one_line(command):
    done = run(*replaced(command, "model.pipeline=nowhere/at_all/there"))
    assert done.returncode != 0 and "PipelineNotFound" in done.stderr and "Traceback" not in done.stderr


def test_what_cannot_be_used_is_listed_and_the_rest_is_written(command, tmp_path, capsys):
    labels = json.loads((tmp_path / "labels.json").read_text())
    labels["2007_000001.jpg"] = {"caption": None}
    labels["2007_000003.jpg"] = {"caption": ", ".join(f"thing{i}" for i in range(60)) + ", car"}
    del labels["2007_000002.jpg"]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    caption(*command)
    said = capsys.readouterr().out
    assert list(read_annotations(tmp_path / "out.json")) == [f"2007_00000{i}.jpg" for i in (5, 4, 3)]
    assert "2007_000001: expected" in said and "no caption for 2007_000002.jpg" in said
    assert "2007_000003.jpg: car, bus" in said
    with pytest.raises(SystemExit, match="images were skipped"):
        caption(*command, "strict=true")


def test_nothing_is_written_where_no_image_can_be_used(command, tmp_path):
    (tmp_path / "labels.json").write_text("{}")
    (tmp_path / "out.json").write_text("from before")
    with pytest.raises(SystemExit, match="no image could be annotated"):
        caption(*command)
    assert (tmp_path / "out.json").read_text() == "from before"


@pytest.mark.parametrize(
    "override, message",
    [
        ("annotations=null", "give the file to write"),
        ("annotations=${dataset.labels}", "is the labels file itself"),
        ("model.pipeline=null", "model.pipeline is not set"),
        ("dataset.labels=nowhere.json", "nowhere.json is not a file"),
    ],
)
def test_wrong_settings(command, override, message):
    with pytest.raises(ValueError, match=message):
        caption(*replaced(command, override))


@pytest.mark.parametrize("given", ["ask=open", "words=caption"])
def test_annotations_are_told_what_is_there(command, given):
    with pytest.raises(CaptionError, match=r"ask and words must keep their defaults here; main\.py itself supports"):
        caption(*command, given)


def test_tokenizers_come_with_the_length_of_their_pipeline(goldens):
    expected = {
        "sd15": {"tokenizer": 77},
        "pixart_alpha": {"tokenizer": 120},
        "flux": {"tokenizer": 77, "tokenizer_2": 512},
    }
    for name, lengths in expected.items():
        tokenizers = load_tokenizers(goldens / "pipelines" / name)
        assert {part: tokenizer.model_max_length for part, tokenizer in tokenizers.items()} == lengths


@pytest.mark.parametrize(
    "index, message",
    [
        ({"_class_name": "WavePipeline"}, "expected a pipeline named StableDiffusion3,"),
        ({"_class_name": "StableDiffusionPipeline"}, "has no tokenizer"),
        ({"_class_name": "StableDiffusionPipeline", "tokenizer": ["os", "system"]}, "os.system"),
    ],
)
def test_other_pipelines(tmp_path, index, message):
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CaptionError, match=message):
        load_tokenizers(tmp_path)


@pytest.mark.parametrize("name", FAMILIES)
def test_tokenizers_alone_make_the_annotation_that_the_whole_pipeline_makes(name, tmp_path):
    family = FAMILIES[name]
    folder = str(family.save(tmp_path / "pipeline"))
    seg = Segmenter.from_pretrained(folder, family.config, device="cpu")
    alone = seg.extractor.backbone.tokenizers(load_tokenizers(folder))
    names = [[], ["cat"], ["grass"], ["sky"]]
    found = annotate("cat, grass, sky", names, [1, 2, 3], **alone, add_background=False, add_missing=False)
    assert found.to_json() == seg.read_prompt("cat, grass, sky")[0].to_json()
    assert sorted(found.rescaling_token_id) == sorted(family.prompt[0])
