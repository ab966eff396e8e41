"""Damaged pipeline folders: read as they are, or refused by name; nothing ends in a raw traceback."""

import json
import random
import shutil
import warnings

import pytest
from diffusion_feature import ExtractorError, FeatureExtractor, ModelFailed, PartMissing, PipelineNotFound
from goca.app.models import Choice, Models
from goca.app.runs import Settings, attempt, generate
from goca.prompts.grammar import CaptionError
from goca.prompts.loading import load_tokenizers
from PIL import Image

ODD = [None, -1, 0, 3, "x", [], {}, [1, 2, 3], True, [[]], "null"]
IMAGE = Image.new("RGB", (32, 32), (200, 30, 30))


@pytest.fixture
def folder(tiny_sd, tmp_path):
    return shutil.copytree(tiny_sd, tmp_path / "pipe")


def tried(folder):
    """Loaded and run once."""
    FeatureExtractor((), "1-5", "cpu", img_size=32, pipeline=str(folder)).extract("star", IMAGE)


def edit(file, **values):
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize("content", ["[]", "null", "3", '"text"', "[[1]]", "{", "[" * 100_000, "\x00", ""])
def test_an_index_that_is_none(folder, content):
    (folder / "model_index.json").write_text(content)
    for call in (lambda: tried(folder), lambda: load_tokenizers(str(folder))):
        with pytest.raises(PipelineNotFound, match=r"model_index\.json (is not JSON|holds a \w+ instead of an object)"):
            call()


@pytest.mark.parametrize(
    "entry, message",
    [
        (3, "has no 'tokenizer'"),
        (None, "has no 'tokenizer'"),
        ([], r"says \[\] of 'tokenizer'; expected \[library, class\]"),
        (["x", "y", "z"], r"says \['x', 'y', 'z'\] of 'tokenizer'"),
        ([1, 2], r"says \[1, 2\] of 'tokenizer'"),
        (["transformers", "pipeline"], "is a pipeline, which the installed transformers does not have"),
        (["transformers", "Nothing"], "is a Nothing, which the installed transformers does not have"),
        (["transformers", "CLIPTextModel"], "is a CLIPTextModel, which is something else"),
        (["os", "system"], "is of library 'os'"),
    ],
)
def test_an_entry_that_names_no_part(folder, entry, message):
    edit(folder / "model_index.json", tokenizer=entry)
    with pytest.raises((PartMissing, PipelineNotFound), match=message):
        tried(folder)
    with pytest.raises((PartMissing, PipelineNotFound, CaptionError)):
        load_tokenizers(str(folder))


def test_what_breaks_down_only_when_it_runs_is_named(folder):
    edit(folder / "unet" / "config.json", norm_eps="x")
    with pytest.raises(ModelFailed, match=r"the pipeline's UNet2DConditionModel failed \(TypeError: .*fetch the pipe"):
        tried(folder)


def test_the_page_names_a_pipeline_that_cannot_be_read(folder):
    (folder / "tokenizer" / "vocab.json").write_text("[]")
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    choice = Choice("sd15", str(folder))
    failed = attempt(lambda: generate(Models("cpu"), choice, "a star", "", Settings(steps=1)))
    assert "the pipeline cannot be read" in failed.error and "terminal" not in failed.error


def flip(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)


def damages(folder):
    """(what, how): values changed in each JSON file, bits flipped, files cut and removed."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = file.relative_to(folder), file.read_bytes()
        if file.suffix == ".json" and file.name != "tokenizer.json":
            for key in json.loads(content) if content[:1] == b"{" else ():
                for value in ODD:
                    yield f"{name}: {key}={value!r}", lambda file=file, key=key, value=value: edit(file, **{key: value})
        for position in range(0, min(len(content), 2000), 40):
            yield f"{name}: a bit at {position}", lambda file=file, position=position: flip(file, position)
        yield f"{name}: cut", lambda file=file, content=content: file.write_bytes(content[: len(content) // 2])
        yield f"{name}: gone", lambda file=file: file.unlink()


def test_random_damage_is_named_or_harmless(tiny_sd, tmp_path):
    folder = tmp_path / "pipe"
    cases = random.Random(0).sample(range(len(list(damages(tiny_sd)))), 40)
    named = 0
    for number in cases:
        shutil.copytree(tiny_sd, folder)
        what, damage = list(damages(folder))[number]
        damage()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tried(folder)
        except ExtractorError:
            named += 1
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        shutil.rmtree(folder)
    assert named > len(cases) / 5
