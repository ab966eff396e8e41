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
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusion_feature import ImageError, ImageUnreadable, read_image
from diffusion_feature.images import PNG, image_size
from goca import Segmenter
from goca.app.models import Choice, Models
from goca.app.runs import LARGEST, attempt, segment
from goca.cli import main
from goca.datasets import Sample, SampleError
from goca.drawing.palettes import as_image
from goca.generation.averages import WordMap
from goca.labeling.images import as_jpeg, size_of
from goca.refine.images import rgb_tensor as refined
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import BAD, CLOSE, GOOD, NOTES, SCENE, SIZE, chunk, cut_scene, pixels_of_the_vae, turned
from PIL import Image

PROMPT = "star, wall, snow"


@pytest.fixture(scope="module")
def scene():
    return cut_scene()


# --- the doors ---------------------------------------------------------------------------------------------------


def through_segmenter(path, folder, segmenter):
    return segmenter(path, PROMPT).image


def through_pil(path, folder, segmenter):
    return segmenter(Image.open(path), PROMPT).image


def through_list(path, folder, segmenter):
    return segmenter([str(path), path], PROMPT)[1].image


def through_command(path, folder, segmenter):
    """The cut-outs together: where the words name everything, every pixel is in one of them."""
    options = ["--ask", "complete", "--format", "plain,cutout", "--out", str(folder)]
    frame = ["--frame", "0"] if "animated" in path.name else []
    assert main(["segment", str(path), "--prompt", PROMPT, *options, *frame]) == 0
    size = json.loads((folder / f"{path.stem}.json").read_text())["size"]
    assert Image.open(folder / f"{path.stem}-labels.png").size == (size["width"], size["height"])
    cutouts = [Image.open(file) for file in sorted(folder.rglob(f"{path.stem}-[0-9]*.png"))]
    image = Image.new("RGBA", cutouts[0].size)
    for cutout in cutouts:
        image.paste(cutout, mask=cutout.getchannel("A"))
    assert np.asarray(image)[..., 3].all()
    return image.convert("RGB")


def through_page(path, folder, segmenter):
    result = attempt(lambda: segment(Held(segmenter), Choice("mini-sd"), str(path), PROMPT))
    if result.error:
        raise ImageUnreadable(result.error)
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


def through_refinement(path, folder, segmenter):
    return Image.fromarray(refined(path).permute(1, 2, 0).byte().numpy())


def through_drawing(path, folder, segmenter):
    return as_image(Image.open(path))


def through_trace(path, folder, segmenter):
    return WordMap("star", (1,), torch.zeros(4, 4), torch.zeros(4, 4)).overlay(path)


def through_labeller(path, folder, segmenter):
    """Losses of JPEG aside."""
    sample = Sample(path.stem, path, folder / "none.png")
    assert size_of(path) == sample.image.size
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
def test_every_door_reads_every_file_the_same_way(door, scene, embedded, tmp_path, monkeypatch):
    monkeypatch.setattr(Segmenter, "from_pretrained", classmethod(lambda *_, **__: embedded))
    slack = {through_labeller: 12}.get(door, 0)
    for name, write in GOOD.items():
        path = tmp_path / name
        expected = write(scene, path)
        found = door(path, tmp_path / "out", embedded)
        assert found.size == expected.size, name
        assert found.mode == "RGB"
        if door is through_trace:  # a heat map lies over it
            continue
        off = np.abs(np.asarray(found, int) - np.asarray(expected, int))
        close = CLOSE.get(name, 0)
        assert (off.mean() if door is through_labeller else off.max()) <= (slack + 3 * close if slack else close), name


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__[8:])
def test_every_door_names_what_it_cannot_read(door, scene, embedded, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Segmenter, "from_pretrained", classmethod(lambda *_, **__: embedded))
    for name, (write, reason) in BAD.items():
        path = tmp_path / name
        write(scene, path)
        if door is through_command:
            if path.is_file():
                assert main(["segment", str(path), "--prompt", PROMPT, "--out", str(tmp_path / "out")]) == 1
                said = capsys.readouterr().err
                assert "ImageUnreadable" in said and "Traceback" not in said
            continue
        named = (ImageUnreadable, SampleError, ImageError, ValueError)
        if door in (through_pil, through_drawing) and name not in ("truncated.png", "flipped.png"):
            continue  # Pillow does not open it
        with pytest.raises(named, match=reason) as error:
            door(path, tmp_path / "out", embedded)
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
        assert read.image.size == (90, 60) and "reduced on reading" in read.notes[0]
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
    except ImageUnreadable as error:
        assert str(path) in str(error)
    finally:
        path.unlink()


def test_the_reader_needs_no_torch():
    script = (
        "import sys, time; start = time.process_time(); import diffusion_feature.images, goca.datasets\n"
        "took = time.process_time() - start; assert 'torch' not in sys.modules; assert took < 1, took"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
