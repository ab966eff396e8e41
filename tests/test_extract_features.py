"""src-additional/extract_features.py: a file of features per image, resumed, with pictures of principal components."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPT = REPOSITORY / "src-additional" / "extract_features.py"
SCENES = REPOSITORY / "src-main/goca/embedded/scenes/JPEGImages"
Q, MAP = "mid-vit-block0-cross-q", "mid-vit-block0-cross-map"


@pytest.fixture(scope="module")
def command():
    sys.path.insert(0, str(SCRIPT.parent))
    yield runpy.run_path(str(SCRIPT))["main"]
    sys.path.remove(str(SCRIPT.parent))


def test_features_of_a_folder_and_their_pictures(command, tmp_path, capsys):
    files = [str(SCENES / f"test_0000{n}.png") for n in range(3)]
    given = [*files, "--layer", Q, "--layer", MAP, "--prompt", "star, sky", "--device", "cpu"]
    command([*given, "--batch", "2", "--pca", "--out", str(tmp_path / "two")])
    assert "3 images, 2 layers each" in capsys.readouterr().out
    command([*given[1:], "--out", str(tmp_path / "one")])
    for n in (1, 2):
        two, one = (np.load(tmp_path / folder / f"test_0000{n}.npz") for folder in ("two", "one"))
        assert set(two.files) == {Q, MAP}
        assert two[Q].shape == (128, 8, 8) and two[MAP].shape == (4, 64, 16)
        np.testing.assert_allclose(two[Q], one[Q], atol=2e-4)
        picture = Image.open(tmp_path / "two" / f"test_0000{n}.{Q}.png")
        assert picture.size == (64, 64) and np.ptp(np.asarray(picture), axis=(0, 1)).min() == 255
    assert not list(tmp_path.rglob("*map.png")) and not list(tmp_path.rglob("*.tmp"))


def test_what_is_there_is_not_done_again(command, tmp_path, capsys):
    kept = tmp_path / "test_00000.npz"
    kept.write_bytes(b"kept")
    given = ["--layer", Q, "--device", "cpu", "--out", str(tmp_path)]
    command([str(SCENES / "test_00000.png"), str(SCENES / "test_00001.png"), *given])
    assert "1 images" in capsys.readouterr().out
    assert kept.read_bytes() == b"kept" and (tmp_path / "test_00001.npz").is_file()


def test_all_layer_ids_are_listed(command, capsys):
    command(["--list", "--device", "cpu"])
    listed = set(capsys.readouterr().out.split())
    assert {Q, MAP, "in", "after-conv-in", "out", "mid-vit-block0-ffn-inner", "mid-repeat0-res-increment"} <= listed


@pytest.mark.parametrize(
    "given,message",
    [
        (["nowhere.png", "--layer", Q], "nowhere.png: there is no such file"),
        (["{scenes}/test_00000.png", "--layer", "mid-q"], "LayerNotFound: 'mid-q'"),
        (
            ["{scenes}/test_00000.png", "{other}/test_00000.png", "--layer", Q],
            "OutputError: two images would be written to",
        ),
    ],
)
def test_errors_name_what_to_do(command, tmp_path, given, message):
    (tmp_path / "test_00000.png").write_bytes((SCENES / "test_00001.png").read_bytes())
    given = [each.format(scenes=SCENES, other=tmp_path) for each in given]
    with pytest.raises(SystemExit) as stopped:
        command([*given, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert message in str(stopped.value)
