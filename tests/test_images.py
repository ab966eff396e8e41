"""One reader behind every door: the same files through the command, the library, the page, the labeller, ..."""

import gc
import importlib
import io
import json
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_feature import ImageError, PictureUnreadable, read_image
from diffusion_feature.images import ORIENTATION, PNG, TURNS, image_size
from diffusion_feature.latents import read_picture
from goca import Segmenter
from goca.app.models import Choice, Models
from goca.app.runs import LARGEST, attempt, segment
from goca.cli import main
from goca.datasets import Sample, SampleError
from goca.drawing.palettes import as_picture
from goca.embedded import resolve
from goca.generation.averages import WordMap
from goca.labeling.images import as_jpeg, picture_size
from goca.refine.images import read_picture as refined
from goca.segmenter import PromptError
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

SCENE = Path(resolve("goca:scenes")) / "JPEGImages" / "test_00000.png"
PROMPT = "star, wall, snow"
SIZE = (48, 32)


@pytest.fixture(scope="module")
def scene():
    """An image that no turn or mirror leaves as it is."""
    return Image.open(SCENE).convert("RGB").crop((0, 0, 64, 40)).resize(SIZE)


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter.from_pretrained(None, "mini-sd", device="cpu")


# --- the files, and what each of them shows ----------------------------------------------------------------------


def turned(scene, orientation, path):
    """A file whose stored pixels are upright only after the turn that its EXIF tag says."""
    back = {5: 5, 6: 8, 7: 7, 8: 6}.get(orientation, orientation)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    stored = scene if orientation == 1 else scene.transpose(TURNS[back])
    stored.save(path, exif=exif)
    return scene


def sixteen_bits(scene, path):
    grey = np.asarray(scene.convert("L"))
    Image.fromarray(grey.astype(np.uint16) << 8 | 9).save(path)
    return Image.fromarray(grey).convert("RGB")


def sixteen_bits_and_clear(scene, path):
    """A 16-bit grey PNG whose darkest value is transparent (tRNS)."""
    grey = np.asarray(scene.convert("L"))
    key = int(grey.min()) << 8
    raw = b"".join(b"\0" + (row.astype(np.uint16) << 8).astype(">u2").tobytes() for row in grey)
    path.write_bytes(
        PNG
        + chunk(b"IHDR", struct.pack(">IIBBBBB", *SIZE, 16, 0, 0, 0, 0))
        + chunk(b"tRNS", struct.pack(">H", key))
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )
    return Image.fromarray(np.where(grey == grey.min(), 255, grey).astype(np.uint8)).convert("RGB")


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def cmyk(scene, path):
    scene.convert("CMYK").save(path)
    return scene


def lab(scene, path):
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.applyTransform(scene, ImageCms.buildTransform(*profiles, "RGB", "LAB")).save(path)
    return scene


def palette(scene, path):
    scene.quantize(16).save(path)
    return scene.quantize(16).convert("RGB")


def palette_and_clear(scene, path):
    image = scene.quantize(16)
    image.save(path, transparency=3)
    clear = np.asarray(image) == 3
    return Image.fromarray(np.where(clear[..., None], 255, np.asarray(image.convert("RGB"))).astype(np.uint8))


def half_clear(scene, path):
    image = scene.copy()
    image.putalpha(128)
    image.save(path)
    return Image.blend(scene, Image.new("RGB", SIZE, "white"), 127 / 255)


def animated(scene, path):
    scene.save(path, save_all=True, append_images=[scene.rotate(180), scene.rotate(90)])
    return scene


def one_pixel(scene, path):
    Image.new("RGB", (1, 1), (7, 8, 9)).save(path)
    return Image.new("RGB", (1, 1), (7, 8, 9))


GOOD = {
    **{f"exif-{n}.png": lambda scene, path, n=n: turned(scene, n, path) for n in range(1, 9)},
    "exif-6.tif": lambda scene, path: turned(scene, 6, path),
    "deep.png": sixteen_bits,
    "deep-clear.png": sixteen_bits_and_clear,
    "cmyk.tif": cmyk,
    "lab.tif": lab,
    "palette.png": palette,
    "palette-clear.png": palette_and_clear,
    "half-clear.png": half_clear,
    "animated.png": animated,
    "one.png": one_pixel,
}
CLOSE = {"lab.tif": 12, "half-clear.png": 1}  # how far 8-bit LAB, or rounding, may be off
NOTES = {
    "exif-3.png": "upright",
    "exif-8.png": "upright",
    "exif-6.tif": "upright",
    "deep.png": "16 bits",
    "deep-clear.png": "white",
    "palette-clear.png": "white",
    "half-clear.png": "white",
    "animated.png": "first of its 3 frames",
}


def truncated(scene, path):
    turned(scene, 1, path)
    path.write_bytes(path.read_bytes()[:-200])


def flipped(scene, path):
    """One bit of the pixels' data, in the middle."""
    scene.save(path)
    data = bytearray(path.read_bytes())
    data[data.index(b"IDAT") + 300] ^= 4
    path.write_bytes(data)


def bomb(scene, path):
    """40,000 x 40,000 pixels in a few bytes."""
    head = struct.pack(">IIBBBBB", 40_000, 40_000, 1, 0, 0, 0, 0)
    path.write_bytes(PNG + chunk(b"IHDR", head) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


BAD = {
    "truncated.png": (truncated, "truncated"),
    "flipped.png": (flipped, "checksum of its PNG chunk 'IDAT'"),
    "bomb.png": (bomb, "more pixels than the"),
    "text.png": (lambda scene, path: path.write_text("no picture"), "no (picture|image)|cannot identify"),
    "empty.png": (lambda scene, path: path.write_bytes(b""), "no (picture|image)|cannot identify"),
    "folder.png": (lambda scene, path: path.mkdir(), "[Dd]irectory"),
}


# --- the doors ---------------------------------------------------------------------------------------------------


def through_segmenter(path, folder, segmenter):
    return segmenter(path, PROMPT).image


def through_pil(path, folder, segmenter):
    return segmenter(Image.open(path), PROMPT).image


def through_list(path, folder, segmenter):
    return segmenter([str(path), path], PROMPT)[1].image


def through_command(path, folder, segmenter):
    """Where nothing is found, everything is background, and the overlay its colour over the image."""
    frame = ["--frame", "0"] if "animated" in path.name else []
    assert main(["segment", str(path), "--prompt", PROMPT, "--out", str(folder), *frame]) == 0
    size = json.loads((folder / f"{path.stem}.json").read_text())["size"]
    labels = Image.open(folder / f"{path.stem}-labels.png")
    assert labels.size == (size["width"], size["height"])
    over, colours = (
        np.asarray(image, float) for image in (Image.open(folder / f"{path.stem}-overlay.png"), labels.convert("RGB"))
    )
    return Image.fromarray(((over - 0.6 * colours) / 0.4).round().clip(0, 255).astype(np.uint8))


def through_page(path, folder, segmenter):
    result = attempt(lambda: segment(Held(segmenter), Choice("mini-sd"), str(path), PROMPT))
    if result.error:
        raise PictureUnreadable(result.error)
    assert not (path.name in NOTES and NOTES[path.name] not in " ".join(result.remarks))
    return result.segmentation.image


class Held(Models):
    def __init__(self, segmenter):
        super().__init__("cpu")
        self.loaded = segmenter

    def _read_segmenter(self, choice):
        return self.loaded


def through_extractor(path, folder, segmenter):
    """The pixels that the VAE is given, where nothing is resized."""
    with pixels_of_the_vae(size=lambda: image_size(path)[::-1]) as seen:
        segmenter.extractor.extract("star", path)
    return seen[0]


@contextmanager
def pixels_of_the_vae(size=None):
    """The images that were given to the VAE inside the block; stretched to `size` instead of the extractor's."""
    seen = []

    def read(image, usual, *rest):
        pixels = read_picture(image, size() if size else usual, *rest)
        seen.append(Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()))
        return read_picture(image, usual, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_feature.extractor.read_picture", read)
        yield seen


def through_refinement(path, folder, segmenter):
    return Image.fromarray(refined(path).permute(1, 2, 0).byte().numpy())


def through_drawing(path, folder, segmenter):
    return as_picture(Image.open(path))


def through_trace(path, folder, segmenter):
    return WordMap("star", (1,), torch.zeros(4, 4), torch.zeros(4, 4)).overlay(path)


def through_labeller(path, folder, segmenter):
    """Losses of JPEG aside."""
    sample = Sample(path.stem, path, folder / "none.png")
    assert picture_size(path) == sample.image.size
    return Image.open(io.BytesIO(as_jpeg(sample.image, 1000, 100)))


def through_generation(path, folder, segmenter):
    sys.path.insert(0, str(Path(__file__).parents[1] / "src-additional" / "generation_experiment"))
    features = importlib.import_module("features")
    image = features.read_image_of(path)
    small = torch.from_numpy(np.asarray(image.resize((8, 8)), np.float32)).permute(2, 0, 1)
    assert torch.equal(features.read(path, 8, "bicubic"), small / 127.5 - 1)
    return image


DOORS = [
    through_segmenter,
    through_pil,
    through_list,
    through_command,
    through_page,
    through_extractor,
    through_refinement,
    through_drawing,
    through_trace,
    through_labeller,
    through_generation,
]


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__[8:])
def test_every_door_reads_every_file_the_same_way(door, scene, segmenter, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "from_pretrained", classmethod(lambda *_, **__: segmenter))
    slack = {through_command: 3, through_labeller: 12}.get(door, 0)
    for name, write in GOOD.items():
        path = tmp_path / name
        expected = write(scene, path)
        found = door(path, tmp_path / "out", segmenter)
        assert found.size == expected.size, name
        assert found.mode == "RGB"
        if door is through_trace:  # a heat map lies over it
            continue
        off = np.abs(np.asarray(found, int) - np.asarray(expected, int))
        close = CLOSE.get(name, 0)
        assert (off.mean() if door is through_labeller else off.max()) <= (slack + 3 * close if slack else close), name


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__[8:])
def test_every_door_names_what_it_cannot_read(door, scene, segmenter, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Segmenter, "from_pretrained", classmethod(lambda *_, **__: segmenter))
    for name, (write, reason) in BAD.items():
        path = tmp_path / name
        write(scene, path)
        if door is through_command:
            if path.is_file():
                assert main(["segment", str(path), "--prompt", PROMPT, "--out", str(tmp_path / "out")]) == 1
                said = capsys.readouterr().err
                assert "PictureUnreadable" in said and "Traceback" not in said
            continue
        named = (PictureUnreadable, SampleError, ImageError, ValueError)
        if door in (through_pil, through_drawing) and name not in ("truncated.png", "flipped.png"):
            continue  # Pillow does not open it
        with pytest.raises(named, match=reason) as error:
            door(path, tmp_path / "out", segmenter)
        assert (
            "diffusion_feature" in type(error.value).__module__
            or "goca" in type(error.value).__module__
            or (type(error.value).__module__ == "features")
        )


def test_what_was_done_is_noted(scene, tmp_path):
    for name, write in GOOD.items():
        write(scene, tmp_path / name)
        notes = " ".join(read_image(tmp_path / name).notes)
        assert NOTES[name] in notes if name in NOTES else not notes or name.startswith("exif"), name


def test_the_file_is_closed_and_reading_twice_turns_once(scene, tmp_path):
    turned(scene, 6, tmp_path / "phone.jpg")
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        once = read_image(tmp_path / "phone.jpg").image
        gc.collect()
    again = read_image(once)
    assert again.image is once and again.notes == [] and image_size(tmp_path / "phone.jpg") == once.size == SIZE


def test_large_images_are_reduced_where_nothing_needs_their_size(tmp_path):
    checks = np.kron(np.indices((60, 90)).sum(0) % 2, np.ones((8, 8))).astype(bool)
    for name in ("large.png", "large.tif"):
        Image.fromarray(checks).save(tmp_path / name)
        read = read_image(tmp_path / name, at_most=60 * 90)
        assert read.image.size == (90, 60) and "read smaller" in read.notes[0]
        assert (np.asarray(read.image.convert("L")) == 255 * checks[::8, ::8]).all()
    Image.fromarray(checks).convert("L").save(tmp_path / "large.jpg")
    assert read_image(tmp_path / "large.jpg", at_most=60 * 90).image.size == (90, 60)


def test_a_large_upload_takes_little_memory(tmp_path):
    """13,000 x 13,000 pixels of one bit: 21 kB in a file."""
    head, rows = struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0), zlib.compress(bytes(13_000 * 1626))
    parts = [chunk(b"IHDR", head), chunk(b"IDAT", rows), chunk(b"IEND", b"")]
    (tmp_path / "page.png").write_bytes(PNG + b"".join(parts))
    script = (
        "import resource, sys; from diffusion_feature.images import read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image = read_image(sys.argv[1], at_most=int(sys.argv[2])).image\n"
        "assert image.width * image.height <= int(sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    arguments = [sys.executable, "-c", script, str(tmp_path / "page.png"), str(LARGEST)]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) < 500_000, (done.stdout, done.stderr[-500:])


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_files_are_read_whole_or_named(data):
    """A changed byte anywhere: a PNG gives its pixels or is refused; other kinds give an image or are refused."""
    kind = data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP"]))
    original = Image.open(SCENE).convert("RGB").crop((0, 0, 24, 16))
    file = io.BytesIO()
    original.save(file, kind)
    content = bytearray(file.getvalue())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path = Path(f"/tmp/goca-test-damaged-{id(data)}.bin")
    try:
        path.write_bytes(content)
        found = read_image(path).image
        assert kind != "PNG" or np.array_equal(np.asarray(found), np.asarray(original))
    except PictureUnreadable as error:
        assert str(path) in str(error)
    finally:
        path.unlink()


# --- what people pass in -----------------------------------------------------------------------------------------


def test_images_in_every_form_are_segmented_alike(scene, segmenter, tmp_path):
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
    results = segmenter(forms, PROMPT, image_id=["same"] * len(forms))
    for result in results:
        assert torch.allclose(result.scores, results[0].scores, atol=1e-5)
        assert np.array_equal(np.asarray(result.image), pixels) and result.image_size == (32, 48)
    assert torch.equal(segmenter(pixels, PROMPT).scores, segmenter(scene, PROMPT).scores)  # seeded by the content
    grey = np.asarray(scene.convert("L"))
    alone = segmenter(grey, PROMPT)
    assert np.array_equal(np.asarray(alone.image), np.repeat(grey[..., None], 3, -1))


@pytest.mark.parametrize(
    "image, found",
    [
        (np.zeros((2, 3, 8, 8), np.float32), "as a list of its images"),
        (np.zeros((8, 8, 4), np.uint8), r"found uint8 \[8, 8, 4\]"),
        (np.zeros((8, 8), np.int64), "convert it to uint8"),
        (np.full((8, 8, 3), 255.0), "found 255..255: scale it"),
        (np.full((3, 8, 8), np.nan), "lies in 0..1; found nan"),
        (torch.full((3, 8, 8), -1.0), "lies in 0..1; found -1"),
        (np.zeros((0, 8, 3), np.uint8), r"found uint8 \[0, 8, 3\]"),
        (Image.new("RGB", (0, 8)), "nothing to see"),
        (Image.new("F", (8, 8)), "floating-point"),
        (b"bytes", "found bytes"),
        (None, "found NoneType"),
        (7, "found int"),
        ({"image": 1}, "found dict"),
        ("nowhere.png", "no such file"),
        ("nul\0.png", "cannot be read"),
    ],
)
def test_what_is_no_image_is_named(image, found, segmenter):
    for call in (lambda: segmenter(image, PROMPT), lambda: read_picture(image, 8), lambda: segmenter([image], PROMPT)):
        with pytest.raises(ImageError, match=found):
            call()


def test_words_as_a_text_or_a_list(scene, segmenter):
    text = segmenter(scene, "star, wall", image_id="a")
    for words in (["star", "wall"], ("star", " wall"), ["star, wall"]):
        assert torch.equal(segmenter(scene, words, image_id="a").scores, text.scores)
    both = segmenter([scene, scene], [["star", "wall"], ["snow"]], image_id=["a", "b"])
    assert [each.names for each in both] == [["star", "wall", "background"], ["snow", "background"]]
    each = segmenter([scene, scene], ["star, wall", "snow"], image_id=["a", "b"])
    assert all(torch.equal(one.scores, other.scores) for one, other in zip(both, each))
    one = segmenter([scene, scene], "star", image_id=["a", "b"])
    assert [result.names for result in one] == [["star", "background"]] * 2


@pytest.mark.parametrize("prompt", [None, 3, ["star", 3], [["star"]], {"star": 1}, np.zeros(3), b"star"])
def test_what_is_no_prompt_is_named(prompt, scene, segmenter):
    with pytest.raises(PromptError, match="expected a text such as 'cat, grass, wall', a list of words"):
        segmenter(scene, prompt)


def test_many_files_are_not_kept_open(scene, segmenter, tmp_path):
    resource = pytest.importorskip("resource")
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for path in paths:
        scene.save(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    inside = Path("/proc/self/fd")
    used = max(map(int, (entry.name for entry in inside.iterdir()))) if inside.is_dir() else 60
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 20, hard))
    try:
        results = segmenter(paths, "star")
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


def test_the_reader_needs_no_torch():
    script = (
        "import sys, time; start = time.perf_counter(); import diffusion_feature.images, goca.datasets\n"
        "took = time.perf_counter() - start; assert 'torch' not in sys.modules; assert took < 1, took"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
