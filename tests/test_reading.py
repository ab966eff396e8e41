"""Texts from outside: byte-order marks, line ends and blanks change nothing; YAML is read within bounds."""

import sys
import time
from pathlib import Path

import pytest
from goca.cli.words import labeler_file
from goca.datasets import DatasetError, load_dataset, read_vocabulary
from goca.datasets.folders import read_list
from goca.embedded import resolve
from goca.files.text import FileUnreadable, read_lines, read_text, read_yaml
from goca.labeling import LabelingError
from goca.labeling.instruction import read_template
from goca.labeling.text_answers import caption_in
from goca.open import NoClass, Query
from goca.prompts.grammar import names_nothing

sys.path.insert(0, str(Path(__file__).parents[1] / "src-additional" / "generation_experiment"))
from captions import read_captions

ROOT = Path(__file__).parents[1]
WRITTEN = {
    "plain": lambda lines: "\n".join(lines).encode(),
    "mark": lambda lines: b"\xef\xbb\xbf" + ("\n".join(lines) + "\n").encode(),
    "windows": lambda lines: b"\xef\xbb\xbf" + ("\r\n".join(lines) + "\r\n\r\n").encode(),
    "mac": lambda lines: ("\r".join(lines) + "\r").encode(),
    "blanks": lambda lines: ("\n\n".join(f"{line} \t" for line in lines) + "\n \n").encode(),
}


@pytest.mark.parametrize("form", WRITTEN)
def test_every_list_and_table_is_read_alike(form, tmp_path):
    def file(name, *lines):
        path = tmp_path / name
        path.write_bytes(WRITTEN[form](lines))
        return path

    assert read_list(file("train.txt", "2007_000001", "2007_000002")) == ["2007_000001", "2007_000002"]
    assert read_lines(tmp_path / "train.txt") == ["2007_000001", "2007_000002"]
    assert read_vocabulary(str(file("words.txt", "cat", "étoile"))) == [[], ["cat"], ["étoile"]]
    assert read_vocabulary(str(file("words.json", '[["cat"],', '["dog"]]'))) == [[], ["cat"], ["dog"]]
    template = "Name {words} in at most {caption_len} words."
    assert read_template(file("instruction.txt", template)) == template
    assert caption_in(file("a.jpg.txt", "cat, grass")) == "cat, grass"
    assert list(read_captions(file("captions.txt", "a cat", "a dog")).values()) == ["a cat", "a dog"]
    table = file("captions.csv", "image_id,caption", "1,a cat", '2,"a dog, a cat"')
    assert [each.strip() for each in read_captions(table).values()] == ["a cat", "a dog, a cat"]
    assert read_yaml(file("some.yaml", "model: x", "side: 3")) == {"model": "x", "side": 3}
    assert labeler_file(str(tmp_path / "some.yaml")) == {"model": "x", "side": 3}


def test_a_split_with_a_mark_keeps_its_first_image(tmp_path):
    root = tmp_path / "scenes"
    for part in ("JPEGImages", "SegmentationClass", "Annotations", "classes.json"):
        root.mkdir(exist_ok=True)
        (root / part).symlink_to(Path(resolve("goca:scenes")) / part)
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "own.txt").write_bytes(b"\xef\xbb\xbftest_00000\r\n\r\ntest_00005.png  \r\n")
    fields = read_yaml(ROOT / "configs" / "dataset" / "scenes.yaml")
    dataset = load_dataset(fields | {"root": str(root), "split": "own"})
    assert dataset.ids == ["test_00000", "test_00005"]
    assert [dataset.sample(each).image.size for each in dataset.ids] == [(64, 64)] * 2


def test_a_list_of_one_class_is_refused(tmp_path):
    (tmp_path / "cat_train.txt").write_text("2008_000008 -1\n2008_000015  1\n")
    with pytest.raises(DatasetError, match=r"lists '2008_000008 -1', a flag after the id"):
        read_list(tmp_path / "cat_train.txt")


@pytest.mark.parametrize(
    "text, message",
    [
        (
            "a: &a [x, x, x, x, x, x, x, x]\n"
            + "".join(
                f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(8))}]\n" for old, new in zip("abcdefg", "bcdefgh")
            ),
            r"stands for .* values, its aliases written out",
        ),
        ("a: &a [*a]", "not YAML|nested too deeply|inside of what it stands for"),
        ("[" * 600, "not YAML|nested too deeply"),
        ("a: [", "is not YAML"),
        ("a: 1\na: 2", "is not YAML"),
        ("!!python/object/apply:os.system [true]", "is not YAML"),
    ],
)
def test_yaml_beyond_bounds_is_refused_at_once(text, message, tmp_path):
    (tmp_path / "bomb.yaml").write_text(text)
    start = time.perf_counter()
    with pytest.raises(FileUnreadable, match=message):
        read_yaml(tmp_path / "bomb.yaml")
    with pytest.raises(LabelingError, match="cannot be read"):
        labeler_file(str(tmp_path / "bomb.yaml"))
    assert time.perf_counter() - start < 5


def test_aliases_within_bounds_are_read(tmp_path):
    (tmp_path / "a.yaml").write_text("base: &b {x: 1}\nother: *b\n")
    assert read_yaml(tmp_path / "a.yaml") == {"base": {"x": 1}, "other": {"x": 1}}


def test_every_config_is_read_as_before():
    for path in (ROOT / "configs").rglob("*.yaml"):
        assert read_yaml(path) is not None, path


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "utf16.txt").write_bytes("2007_000001\n".encode("utf-16"))
    with pytest.raises(DatasetError, match="is not text"):
        read_list(tmp_path / "utf16.txt")
    with pytest.raises(UnicodeDecodeError):
        read_text(tmp_path / "utf16.txt")


def test_articles_name_nothing():
    assert names_nothing("a") and names_nothing("The") and names_nothing("and, the") and not names_nothing("a cat")
    with pytest.raises(NoClass, match="'a, the' contains no class names"):
        Query.of_words("a, the")
    assert Query.of_words("a, star").names() == {1: "a", 2: "star"}
