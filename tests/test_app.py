"""`goca app`: the command, and what the page's runs come to."""

import json
import re
import threading
import urllib.error
import urllib.request
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from diffusion_feature.errors import PartMissing
from goca import Segmenter
from goca.cli import main
from goca.embedded import resolve
from goca.segmentation import Segmentation
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[app]'")

from goca.app.drawing import at_page_size, decided, word_maps
from goca.app.models import Choice, Models, known_models
from goca.app.runs import Settings, attempt, generate, segment, unknown
from goca.app.theme import legend, said

pytestmark = pytest.mark.filterwarnings("ignore:::gradio")  # what it asks of pandas is deprecated
SCENES = Path(resolve("goca:scenes")) / "JPEGImages"
SCENE, WORDS = SCENES / "test_00007.png", "house, sky, car, road"
MINI = Choice("mini-sd")
TOO_MANY = "ball, star, tree, house, car, fish, flower, mushroom, sky, wall, forest, grass, sand"


@pytest.fixture(scope="module")
def models():
    return Models("cpu")


@pytest.fixture(scope="module")
def result(models):
    return segment(models, MINI, str(SCENE), WORDS)


# --- the command


@pytest.mark.parametrize("found", [None, "5.49.1"])
def test_without_gradio_6_the_command_says_what_to_install(found, monkeypatch, capsys):
    def version(name):
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr("goca.cli.app.version", version)
    assert main(["app"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("GradioMissing: ") and "pip install goca[app]" in message and "Traceback" not in message
    assert found is None or found in message


def test_bad_arguments_end_before_a_page_is_served(capsys):
    assert main(["app", "--model", "sd99"]) == 1
    assert "there is no model config 'sd99'" in capsys.readouterr().err
    assert main(["app", "--pipeline", "some where"]) == 1
    assert "PipelineNotFound: 'some where' is neither a folder" in capsys.readouterr().err


def test_the_command_serves_this_machine_until_it_is_stopped(monkeypatch, capsys):
    answers = []

    def first_second(_):
        address = re.search(r"http://127\.0\.0\.1:\d+/", capsys.readouterr().out).group()
        answers.append((address, urllib.request.urlopen(address).read()))
        raise KeyboardInterrupt

    monkeypatch.setattr("goca.cli.app.sleep", first_second)
    assert main(["app", "--device", "cpu"]) == 130
    [(address, html)] = answers
    assert b"GoCA" in html
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(address)


# --- a run


def test_a_picture_gives_what_the_segmenter_gives(result):
    expected = Segmenter.from_pretrained(None, "mini-sd", device="cpu")(SCENE, WORDS)
    assert torch.equal(result.segmentation.scores, expected.scores)
    assert result.segmentation.names == expected.names and result.remarks == []


def test_words_that_are_lost_or_unknown_are_named_beside_the_result(models):
    assert unknown(MINI, "A (house, Dog) on the grass.") == "mini-sd does not know: dog."
    assert unknown(MINI, "(House:1.3), Background") == ""  # a weight, and what every segmentation has
    assert unknown(MINI, WORDS) == unknown(Choice("sd15"), "dog") == ""
    remarks = segment(models, MINI, str(SCENE), TOO_MANY).remarks
    assert all(each.startswith("Looked for and not found: ") for each in remarks)  # looked for in two prompts, none cut
    drawn = generate(models, MINI, TOO_MANY, "", Settings(steps=1))
    [remark] = drawn.remarks
    assert "did not fit" in remark and "sand: the prompt has 27 tokens, and the model reads 16" in remark
    assert "named by: the." in segment(models, MINI, str(SCENE), "house, the").remarks[-1]
    assert "sand" not in drawn.segmentation.names


def test_what_is_going_on_is_told():
    models, told = Models("cpu"), []
    for _ in range(2):
        segment(models, MINI, str(SCENE), "house", lambda *said: told.append(said))
    assert [said[0].split(":")[0] for said in told] == ["Reading the model mini-sd", *2 * ["Looking for the words"]]


@pytest.mark.parametrize(
    "scheduler, asked, calls",
    [
        (EulerDiscreteScheduler, 3, 3),
        (PNDMScheduler, 3, 4),  # its second step calls the denoiser twice
        (HeunDiscreteScheduler, 3, 5),  # so do all of its steps but the last
    ],
)
def test_the_steps_that_are_told_are_the_calls_of_the_denoiser(scheduler, asked, calls, tmp_path):
    folder = mini_with(scheduler, tmp_path)
    models, choice, told, seen = Models("cpu"), Choice("mini-sd", str(folder)), [], []
    with models.pipe(choice) as pipe:
        pipe.unet.register_forward_hook(lambda *_: seen.append(len(told)))
    generate(models, choice, "a house", "", Settings(steps=asked), lambda *said: told.append(said))
    assert len(seen) == calls
    assert told == [("Generating the image",), *(("Generating the image", (n + 1, calls)) for n in range(calls))]


def mini_with(scheduler, folder):
    """The embedded model's files with another scheduler."""
    for path in Path(resolve("goca:mini-sd")).iterdir():
        if path.name not in ("scheduler", "model_index.json"):
            (folder / path.name).symlink_to(path)
    index = json.loads(Path(resolve("goca:mini-sd"), "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", scheduler.__name__]}))
    scheduler.from_pretrained(resolve("goca:mini-sd"), subfolder="scheduler").save_pretrained(folder / "scheduler")
    return folder


def text_file(folder):
    (folder / "notes.png").write_text("no picture")
    return str(folder / "notes.png")


@pytest.mark.parametrize(
    "file, words, choice, message",
    [
        (None, WORDS, MINI, "There is no image yet"),
        (str(SCENE), " , ", MINI, "No words yet"),
        (text_file, WORDS, MINI, "notes.png is not an image"),
        (str(SCENE), WORDS, Choice("sd15", "nobody/nothing"), "'nobody/nothing' is neither a folder nor a hub id"),
        (str(SCENE), WORDS, Choice("sdxl", "goca:mini-sd"), "choose the config of the pipeline's own family"),
    ],
)
def test_what_cannot_be_segmented_is_said_in_words(file, words, choice, message, models, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    file = file(tmp_path) if callable(file) else file
    failed = attempt(lambda: segment(models, choice, file, words))
    assert failed.segmentation is None and message in failed.error
    assert "Traceback" not in failed.error and str(tmp_path) not in failed.error


@pytest.mark.parametrize(
    "prompt, words, given_settings, message",
    [
        ("  ", "", {}, "No prompt yet"),
        ("of the", "", {"steps": 1}, "names nothing that could be seen"),
        ("house, sky", "dog", {"steps": 1}, "'dog' is not in the prompt"),
        ("house, sky", "", {"steps": 0}, "steps is 0; it goes from 1 to 200"),
        ("house, sky", "", {"seed": None}, "seed is empty"),
    ],
)
def test_what_cannot_be_generated_is_said_in_words(prompt, words, given_settings, message, models):
    failed = attempt(lambda: generate(models, MINI, prompt, words, Settings(**given_settings)))
    assert failed.segmentation is None and message in failed.error


def test_an_error_that_is_not_ours_is_logged_and_named(caplog):
    failed = attempt(lambda: {}["nothing"])
    assert failed.error.startswith("KeyError: 'nothing'") and "Traceback" in caplog.text


def test_a_generation_depends_on_its_seed_alone(models):
    one, again, other = (generate(models, MINI, "a house on grass", "", Settings(seed, 2)) for seed in (1, 1, 2))
    assert np.array_equal(one.segmentation.image, again.segmentation.image)
    assert torch.equal(one.segmentation.scores, again.segmentation.scores)
    assert not np.array_equal(one.segmentation.image, other.segmentation.image)
    assert one.segmentation.names == ["house", "grass", "background"]
    some = generate(models, MINI, "a house on grass", "House", Settings(1, 2)).segmentation
    assert some.names == ["house", "background"] and some.scores[1].max() > 0  # grass competes as background


# --- the models


def test_one_model_is_held_and_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(Models, "_read_segmenter", lambda self, choice: made.append(choice) or object())
    models, other = Models("cpu"), Choice("sd15", "somewhere")
    for choice in (MINI, MINI, other, MINI):
        with models.segmenter(choice):
            pass
    assert made == [MINI, other, MINI]


def test_a_model_that_failed_to_load_is_tried_again(tmp_path, models):
    choice = Choice("mini-sd", str(tmp_path / "pipe"))
    for _ in range(2):
        assert "nor a hub id" in attempt(lambda: segment(models, choice, str(SCENE), WORDS)).error
    (tmp_path / "pipe").symlink_to(resolve("goca:mini-sd"))
    assert segment(models, choice, str(SCENE), WORDS).segmentation is not None


def test_whoever_holds_a_model_keeps_others_waiting(monkeypatch):
    monkeypatch.setattr(Models, "_read_segmenter", lambda self, choice: object())
    models, entered = Models("cpu"), threading.Event()

    def second():
        with models.segmenter(MINI):
            entered.set()

    with models.segmenter(MINI):
        thread = threading.Thread(target=second)
        thread.start()
        assert not entered.wait(0.2)
    thread.join(5)
    assert entered.is_set()


def test_pipelines_of_other_libraries_are_not_imported(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["os", "system"]}')
    choice = Choice("sd15", str(tmp_path))
    with pytest.raises(PartMissing, match="'unet' is from library 'os'"), Models("cpu").pipe(choice):
        pass


def test_another_method_segments_a_picture_and_generates_none(models):
    other = Choice("mini-sd-diffsegmentor")
    assert {"mini-sd", "sd15", "flux", other.model} <= set(known_models())
    assert segment(models, other, str(SCENE), WORDS).segmentation.names[:4] == WORDS.split(", ")
    failed = attempt(lambda: generate(models, other, WORDS, "", Settings(steps=1)))
    assert "mini-sd-diffsegmentor is another method's" in failed.error


# --- what is shown


def flat(*levels, size=(40, 60)):
    """A segmentation whose words score the given constants; the last is the background's."""
    scores = torch.tensor(levels)[:, None, None].expand(-1, 8, 8).clone()
    names = [f"word {number}" for number in range(1, len(levels))]
    picture = Image.new("RGB", size[::-1], (200, 30, 30))
    return Segmentation(scores, [*range(1, len(levels)), 0], [*names, "background"], size, picture)


def test_at_the_page_size_shape_and_bounds_are_kept():
    for size in [(8, 8), (40, 60), (700, 600), (1500, 3000), (1, 3000)]:
        shown = at_page_size(flat(0.5, 0.0, size=size))
        assert shown.image.size == shown.image_size[::-1] and 512 <= max(shown.image.size) <= 1024
        assert max(shown.image.size) * min(size) / max(size) == pytest.approx(min(shown.image.size), abs=1)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_a_word_below_the_threshold_is_background(score, threshold):
    assume(abs(score - threshold) > 1e-5)  # upsampling rounds
    picture, entries = decided(flat(score, 0.0), threshold)
    shares = {entry.name: entry.share for entry in entries}
    below = score < threshold
    assert shares["word 1"] == (0 if below else 1) and shares.get("background", 0) == (1 if below else 0)
    untouched = picture.getpixel((3, 3)) == (200, 30, 30)
    assert untouched == below


def test_shares_sum_to_one_and_each_word_has_a_map(result):
    kept = at_page_size(result.segmentation)
    for threshold in (0.0, 0.3, 0.6, 1.0):
        _, entries = decided(kept, threshold)
        assert sum(entry.share for entry in entries) == pytest.approx(1)
        assert [entry.name for entry in entries][:4] == ["house", "sky", "car", "road"]
        assert len({entry.colour for entry in entries}) == len(entries)
    maps = word_maps(kept)
    assert [word for _, word in maps] == ["house", "sky", "car", "road"]
    assert all(picture.size == kept.image.size for picture, _ in maps)


def test_words_are_shown_as_text_not_as_markup():
    nasty = "<img src=x onerror=alert(1)>"
    _, (entry, *_) = decided(flat(0.5, 0.0), 0)
    shown = legend([type(entry)(nasty, (17, 34, 51), 0.25)]) + said([nasty]) + said([], nasty)
    assert "<img" not in shown and shown.count("&lt;img") == 3
