"""Vocabularies: packaged ones by name, files of one name per line or in the class table's form, and other files."""

import json

import pytest
from goca.datasets import VocabularyError, class_label, read_vocabulary, vocabularies


def test_packaged_vocabularies_have_a_name_per_class():
    sizes = {"coco": 81, "coco-object": 81, "ade20k": 151, "voc": 21, "context": 60, "cityscapes": 20}
    for name, size in sizes.items():
        table = read_vocabulary(name)
        assert len(table) == size and table[0] == [] and all(table[1:])
    assert read_vocabulary("coco") == read_vocabulary("coco-object")
    assert set(sizes) < set(vocabularies()) and not any("." in name for name in vocabularies())


def test_a_file_of_one_name_per_line(tmp_path):
    (tmp_path / "mine.txt").write_bytes("\ufeffcat\r\n\r\n  street   lamp \r\nЁлка\r\n".encode())
    assert read_vocabulary(str(tmp_path / "mine.txt")) == [[], ["cat"], ["street lamp"], ["Ёлка"]]


@pytest.mark.parametrize("background", [[], [[]]])
def test_a_file_in_the_form_of_the_class_tables(tmp_path, background):
    (tmp_path / "mine.json").write_text(json.dumps([*background, ["cat"], ["person", "man"]]))
    table = read_vocabulary(str(tmp_path / "mine.json"))
    assert table == [[], ["cat"], ["person", "man"]] and class_label(table, 2) == "person"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no name"),
        (b"\n \n", "holds no name"),
        (b"[]", "holds no name"),
        (b"[[]]", "holds no name"),
        (b"cat, dog\nhorse\n", "line 1: 'cat, dog' holds ','"),
        (b"cat\n(person, clothes)\n", r"line 2: .* holds ','"),
        (b"cat\ndog\nCat\n", r"line 3: 'Cat' occurs already in line 1"),
        (b"cat\n---\n", "line 2: '---' holds no letter"),
        (b"\xff\xfe\x00cat", "cannot be read as text"),
        (b'{"cat": 1}', r"found \{'cat': 1\}"),
        (b'["cat", "dog"]', "found 'cat'; expected one name per line, or JSON"),
        (b"[[], [3]]", r"found \[3\]"),
        (b'[["cat"], []]', "class 1 has no name"),
        (b'[["cat"], ["dog", "cat"]]', "class 1: 'cat' occurs already in class 0"),
        (b'[["cat"', "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"c\x00at\n", "control characters"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(VocabularyError, match=message):
        read_vocabulary(str(tmp_path / "mine"))


def test_what_is_neither_says_what_there_is(tmp_path):
    for given in ("cocco", str(tmp_path)):
        with pytest.raises(VocabularyError, match="neither a vocabulary nor a file; expected ade20k, cityscapes, coco"):
            read_vocabulary(given)
