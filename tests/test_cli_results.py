"""Names of results, what a segmentation says of its classes, and their colours in a terminal."""

import io

import pytest
import torch
from goca.cli.colours import swatch
from goca.cli.images import NoImages, find
from goca.cli.results import table
from goca.files.names import distinct, file_name
from goca.segmentation import Segmentation
from hypothesis import given
from hypothesis import strategies as st


@given(st.text())
def test_a_file_name_is_one_plain_component(text):
    name = file_name(text)
    assert name and len(name.encode()) <= 150 and name not in (".", "..")
    assert not set(name) & set('/\\:*?"<>|\0\n\r\t') and file_name(name) == name


@given(st.lists(st.sampled_from(["a", "A", "a-2", "a-2-2", "b", "../a", "é", ""]) | st.text(max_size=3), max_size=12))
def test_names_are_distinct_whatever_they_were_made_of(texts):
    names = distinct(texts)
    assert len({name.casefold() for name in names}) == len(texts)
    assert distinct(texts) == names
    for text, name in zip(texts, names):
        assert name == file_name(text) or name.startswith(file_name(text) + "-")


def scored():
    """Three classes on a grid of 2 x 2: 1 holds the left column, 2 the upper right cell, 0 the lower right one."""
    one = torch.tensor([[0.9, 0.1], [0.7, 0.1]])
    two = torch.tensor([[0.2, 0.8], [0.2, 0.3]])
    background = torch.tensor([[0.0, 0.0], [0.0, 0.4]])
    return Segmentation(torch.stack([one, two, background]), [1, 2, 0], ["cat", "dog", "background"], (2, 2))


def test_the_summary_by_hand():
    rows = scored().summary()
    assert [(row["id"], row["name"], row["area"]) for row in rows] == [
        (1, "cat", 0.5),
        (2, "dog", 0.25),
        (0, "background", 0.25),
    ]
    assert [row["mean_score"] for row in rows] == pytest.approx([0.8, 0.8, 0.4])
    assert [row["max_score"] for row in rows] == pytest.approx([0.9, 0.8, 0.4])


def test_masks_divide_the_label_map_whatever_its_size():
    label = scored().label_map(size=(6, 10))
    masks = scored().masks(label)
    assert (sum(mask.int() for mask in masks.values()) == 1).all() and list(masks) == [1, 2, 0]
    assert all(mask.dtype == torch.bool and mask.shape == (6, 10) for mask in masks.values())


def test_a_background_without_a_pixel_is_not_listed():
    found = Segmentation(torch.tensor([[[0.5]], [[0.0]]]), [3, 0], ["cat", "background"], (4, 4))
    assert [row["id"] for row in found.summary()] == [3] and list(found.masks()) == [3]


def test_a_class_without_cells_or_with_nan_has_no_number():
    scores = torch.stack([torch.full((2, 2), float("nan")), torch.ones(2, 2), torch.zeros(2, 2), torch.zeros(2, 2)])
    found = Segmentation(scores, [1, 2, 3, 0], ["lost", "cat", "dog", "background"], (2, 2))
    lost, cat, dog = found.summary(torch.full((2, 2), 2))
    assert lost["max_score"] is None and lost["mean_score"] is None
    assert cat["mean_score"] == 1 and dog["mean_score"] is None and dog["max_score"] == 0


def test_a_class_called_background_keeps_its_own_mask():
    scores = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 0.0]]])
    found = Segmentation(scores, [1, 2, 0], ["cat", "background", "background"], (1, 2))
    assert [(row["id"], row["area"]) for row in found.summary()] == [(1, 0.5), (2, 0.5)]


def test_finding_keeps_the_order_and_the_first_of_twins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.png", "a.JPG", "c.txt", "d-labels.png", "d.json", "e-labels.png"):
        (tmp_path / name).touch()
    (tmp_path / "sub.png").mkdir()
    assert [path.name for path in find(["b.png", ".", "c.txt"])] == ["b.png", "a.JPG", "e-labels.png", "c.txt"]
    assert [path.name for path in find(["[ab].*"])] == ["a.JPG", "b.png"]
    with pytest.raises(NoImages, match="the folder sub"):
        find(["sub.png"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def colourful(monkeypatch):
    """A terminal with all 24 bits of colour."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")


def lines(stream):
    return table(scored(), scored().label_map(), stream)


def test_each_line_of_a_terminal_shows_its_class_s_colour(colourful):
    colours = scored().colours()
    cat, dog, background = lines(Terminal())
    assert cat.startswith("  \x1b[48;2;{};{};{}m  \x1b[0m cat ".format(*colours[1]))
    assert dog.startswith("  \x1b[48;2;{};{};{}m  \x1b[0m dog ".format(*colours[2]))
    assert "\x1b" not in background and background.index("background") == 5  # an empty swatch keeps the column


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), (None, None)])
def test_no_colour_codes_where_they_do_not_belong(colourful, monkeypatch, name, value):
    if name:
        monkeypatch.setenv(name, value)
    plain = lines(Terminal() if name else io.StringIO())
    assert "\x1b" not in "".join(plain) and plain[0].startswith("  cat ") and "50.0% of the image" in plain[0]


def test_a_terminal_of_256_colours_gets_the_nearest_one(colourful, monkeypatch):
    monkeypatch.delenv("COLORTERM")
    assert swatch((255, 0, 0), Terminal()) == "\x1b[48;5;196m  \x1b[0m "
    assert swatch((0, 0, 0), Terminal()) == "\x1b[48;5;16m  \x1b[0m "
    assert swatch((255, 255, 255), Terminal()) == "\x1b[48;5;231m  \x1b[0m "


def test_of_many_classes_only_those_with_a_pixel_are_listed():
    found = Segmentation(torch.zeros(31, 2, 2), [*range(1, 31), 0], [f"c{n}" for n in range(30)] + ["background"])
    line, rest = table(found, found.label_map(), io.StringIO())
    assert line.startswith("  c0 ") and rest == "  and 29 classes without a pixel"
