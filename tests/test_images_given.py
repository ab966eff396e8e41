"""Images and prompts in every form that people pass in, and the images of benchmarks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_feature import ImageError, read_image
from diffusion_feature.latents import preprocess
from goca import Segmenter
from goca.datasets import Sample, SampleError
from goca.segmenter import PromptError
from image_files import SIZE, cut_scene, flipped, pixels_of_the_vae, turned
from PIL import Image

PROMPT = "star, wall, snow"


@pytest.fixture(scope="module")
def scene():
    return cut_scene()


# --- what people pass in -----------------------------------------------------------------------------------------


def test_images_in_every_form_are_segmented_alike(scene, embedded, tmp_path):
    scene.save(tmp_path / "a.png")
    pixels = np.asarray(scene)
    chw = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    fractions = np.float32(pixels / 255)
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        scene,
        pixels,
        chw / 255,
        chw.double() / 255,
        chw,
        chw.permute(1, 2, 0) / 255,
        fractions,
        fractions.transpose(2, 0, 1),
    ]
    results = embedded(forms, PROMPT, image_id=["same"] * len(forms))
    for result in results:
        assert torch.allclose(result.scores, results[0].scores, atol=1e-5)
        assert np.array_equal(np.asarray(result.image), pixels) and result.image_size == (32, 48)
    assert torch.equal(embedded(pixels, PROMPT).scores, embedded(scene, PROMPT).scores)  # seeded by the content
    grey = np.asarray(scene.convert("L"))
    alone = embedded(grey, PROMPT)
    assert np.array_equal(np.asarray(alone.image), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize(
    "image, found",
    [
        (np.zeros((2, 3, 8, 8), np.float32), "as a list of its images"),
        (np.zeros((8, 8, 4), np.uint8), r"found uint8 \[8, 8, 4\]"),
        (np.zeros((8, 8), np.int64), "convert it to uint8"),
        (np.full((8, 8, 3), 255.0), "found 255..255: scale the image"),
        (np.full((3, 8, 8), np.nan), "in 0..1; found nan"),
        (torch.full((3, 8, 8), -1.0), "in 0..1; found -1"),
        (np.zeros((0, 8, 3), np.uint8), r"found uint8 \[0, 8, 3\]"),
        (Image.new("RGB", (0, 8)), "expected at least one pixel"),
        (Image.new("F", (8, 8)), "floating-point"),
        (b"bytes", "found bytes"),
        (None, "found NoneType"),
        (7, "found int"),
        ({"image": 1}, "found dict"),
        ("nowhere.png", "no such file"),
        ("nul\0.png", "cannot be read"),
    ],
)
def test_what_is_no_image_is_named(image, found, embedded):
    for call in (lambda: embedded(image, PROMPT), lambda: preprocess(image, 8), lambda: embedded([image], PROMPT)):
        with pytest.raises(ImageError, match=found):
            call()


def test_words_as_a_text_or_a_list(scene, embedded):
    text = embedded(scene, "star, wall", image_id="a")
    for words in (["star", "wall"], ("star", " wall"), ["star, wall"]):
        assert torch.equal(embedded(scene, words, image_id="a").scores, text.scores)
    both = embedded([scene, scene], [["star", "wall"], ["snow"]], image_id=["a", "b"])
    assert [each.names for each in both] == [["star", "wall", "background"], ["snow", "background"]]
    each = embedded([scene, scene], ["star, wall", "snow"], image_id=["a", "b"])
    assert all(torch.equal(one.scores, other.scores) for one, other in zip(both, each))
    one = embedded([scene, scene], "star", image_id=["a", "b"])
    assert [result.names for result in one] == [["star", "background"]] * 2


@pytest.mark.parametrize("prompt", [None, 3, ["star", 3], [["star"]], {"star": 1}, np.zeros(3), b"star"])
def test_what_is_no_prompt_is_named(prompt, scene, embedded):
    with pytest.raises(PromptError, match="expected a text such as 'cat, grass, wall', a list of words"):
        embedded(scene, prompt)


def test_many_files_are_not_kept_open(scene, embedded, tmp_path):
    resource = pytest.importorskip("resource")
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for path in paths:
        scene.save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    inside = Path("/proc/self/fd")
    used = max(map(int, (entry.name for entry in inside.iterdir()))) if inside.is_dir() else 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        results = embedded(paths, "star")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert np.array_equal(np.asarray(results[-1].image), np.asarray(scene))


# --- in benchmarks -----------------------------------------------------------------------------------------------


def test_a_benchmark_s_image_stays_as_its_label_has_it(scene, tmp_path):
    turned(scene, 6, tmp_path / "a.jpg")
    stored, upright = (SIZE[1], SIZE[0]), SIZE
    label = tmp_path / "a.png"
    for size, expected, note in [(stored, stored, ""), (upright, upright, "turned upright"), ((5, 5), stored, "")]:
        Image.new("L", size, 1).save(label)
        sample = Sample("a", tmp_path / "a.jpg", label)
        assert sample.image.size == expected and note in " ".join(sample.notes)
        assert read_image(sample.image).image.size == expected  # nobody turns it again
        if size == (5, 5):
            with pytest.raises(SampleError, match="the image is 32x48, its label 5x5"):
                sample.label  # noqa: B018
        else:
            assert sample.label.shape == expected[::-1]
    label.unlink()
    assert Sample("a", tmp_path / "a.jpg", label).image.size == upright


def test_damaged_labels_are_refused(scene, tmp_path):
    scene.save(tmp_path / "a.jpg")
    flipped(scene.quantize(16), tmp_path / "a.png")
    with pytest.raises(SampleError, match=r"label a.png cannot be read: the checksum of its PNG chunk"):
        Sample("a", tmp_path / "a.jpg", tmp_path / "a.png").label  # noqa: B018


def test_a_palette_is_resized_as_the_protocol_says(scene, tmp_path):
    image = scene.quantize(8)
    image.save(tmp_path / "p.png")
    colours = {tuple(each) for each in np.asarray(image.convert("RGB")).reshape(-1, 3)}
    for protocol, kept in (("released", True), ("paper", False)):
        segmenter = Segmenter.from_pretrained(None, {"of": "mini-sd", "protocol": protocol}, device="cpu")
        for given_image in (tmp_path / "p.png", image):
            with pixels_of_the_vae() as seen:
                segmenter(given_image, PROMPT)
            found = {tuple(each) for each in np.asarray(seen[0]).reshape(-1, 3)}
            assert (found <= colours) is kept
