"""Labels files: captions as published, and entries that are refused one by one."""

import json

import pytest
from goca.prompts import AnnotationError, read_captions


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_captions_and_the_reasons_of_those_refused(tmp_path):
    captions, refused = read_captions(
        write(
            tmp_path / "voc.json",
            {
                "a.jpg": {"caption": "Cat, sky.", "model": "gpt"},
                "b.jpg": {"caption": ""},
                "c.jpg": {"caption": 3},
                "d.jpg": "cat",
                "e.jpg": {},
                "../f.jpg": {"caption": "cat"},
                "g/h.jpg": {"caption": "cat"},
            },
        )
    )
    assert captions == {"a.jpg": "Cat, sky.", "b.jpg": ""}
    assert list(refused) == ["c.jpg", "d.jpg", "e.jpg", "../f.jpg", "g/h.jpg"]
    assert "expected {\"caption\": text}; found {'caption': 3}" in refused["c.jpg"]
    assert "without folders" in refused["../f.jpg"]


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"a.jpg": {"caption": "ca', "incomplete"),
        ("[1]", "expected an object"),
        ('{"a.jpg": {"caption": "x"}, "a.jpg": {"caption": "y"}}', "duplicate key"),
        ("[" * 100_000, "is not JSON"),
    ],
)
def test_files_that_are_refused(tmp_path, content, message):
    with pytest.raises(AnnotationError, match=message):
        read_captions(write(tmp_path / "voc.json", content))
