"""Image files of every kind, good and bad, and what each of them shows; the pixels that the VAE is given."""

import struct
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from diffusion_feature.images import ORIENTATION, PNG, TURNS
from diffusion_feature.latents import preprocess
from goca.embedded import resolve
from PIL import Image, ImageCms

SCENE = Path(resolve("goca:scenes")) / "JPEGImages" / "test_00000.png"


SIZE = (48, 32)


# --- the files, and what each of them shows ----------------------------------------------------------------------


def cut_scene():
    """An image that no turn or mirror leaves as it is."""
    return Image.open(SCENE).convert("RGB").crop((0, 0, 64, 40)).resize(SIZE)


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
    "text.png": (lambda scene, path: path.write_text("not an image"), "not an image|cannot identify"),
    "empty.png": (lambda scene, path: path.write_bytes(b""), "not an image|cannot identify"),
    "folder.png": (lambda scene, path: path.mkdir(), "[Dd]irectory"),
}


@contextmanager
def pixels_of_the_vae(size=None):
    """The images that were given to the VAE inside the block; stretched to `size` instead of the extractor's."""
    seen = []

    def read(image, usual, *rest):
        pixels = preprocess(image, size() if size else usual, *rest)
        seen.append(Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).round().byte().numpy()))
        return preprocess(image, usual, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusion_feature.extractor.preprocess", read)
        yield seen
