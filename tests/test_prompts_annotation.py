"""PromptAnnotation: the published schema, its file, and what is refused."""

import json
import subprocess
import sys

import pytest
from goca.prompts import AnnotationError, PromptAnnotation, read_annotations, write_annotations
from hypothesis import given, settings
from hypothesis import strategies as st

positions = st.lists(st.integers(0, 600), max_size=6)
annotations = st.builds(
    PromptAnnotation,
    st.text(max_size=30),
    positions,
    st.dictionaries(st.integers(0, 200), positions, max_size=5),
    positions,
    st.lists(positions, max_size=4),
)


def record(**changes):
    return {
        "caption": "cat, sky",
        "rescaling_token_id": [1, 3],
        "existent_objects": {"8": [1]},
        "global_token_id": [0],
        "background_objects": [[3]],
    } | changes


@settings(deadline=None)
@given(annotations)
def test_round_trip_keeps_everything_and_the_order_of_classes(annotation):
    again = PromptAnnotation.from_json(json.loads(json.dumps(annotation.to_json())))
    assert again == annotation
    assert again.class_ids == annotation.class_ids


@settings(deadline=None, max_examples=30)
@given(
    st.dictionaries(
        st.text(st.characters(blacklist_characters="/\\\0"), min_size=1, max_size=8).filter(
            lambda name: name not in (".", "..")
        ),
        annotations,
        max_size=4,
    )
)
def test_file_round_trip(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("annotations") / "deep" / "out.json"
    write_annotations(path, found)
    again = read_annotations(path)
    assert again == found and list(again) == list(found)
    assert [p.name for p in path.parent.iterdir()] == ["out.json"]


def test_published_file_is_rewritten_byte_for_byte(full_record, tmp_path):
    published = full_record / "set6_voc_mini" / "prompt_annotation_voc-15.json"
    write_annotations(tmp_path / "out.json", read_annotations(published))
    assert (tmp_path / "out.json").read_bytes() == published.read_bytes()


def test_lost_classes_and_last_token():
    annotation = PromptAnnotation.from_json(record(existent_objects={"8": [1], "3": []}))
    assert annotation.class_ids == [8, 3]
    assert annotation.lost_classes() == [3]
    assert annotation.last_token() == 3
    assert PromptAnnotation("").last_token() == -1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"caption": 3}, "caption is 3"),
        ({"rescaling_token_id": "1, 3"}, "rescaling_token_id is '1, 3'"),
        ({"rescaling_token_id": [1, -3]}, "holds -3"),
        ({"global_token_id": [True]}, "holds True"),
        ({"existent_objects": [[1]]}, "expected ids -> lists"),
        ({"existent_objects": {"cat": [1]}}, "'cat'"),
        ({"existent_objects": {"8": 1}}, "existent_objects[8] is 1"),
        ({"existent_objects": {"8": [1], "08": [3]}}, "twice"),
        ({"background_objects": [3]}, "background_objects[0] is 3"),
        ({"background_objects": {}}, "expected lists"),
    ],
)
def test_other_shapes_are_refused(changes, message):
    with pytest.raises(AnnotationError) as error:
        PromptAnnotation.from_json(record(**changes))
    assert message in str(error.value)


def test_missing_fields_are_named():
    with pytest.raises(AnnotationError, match="lacks caption, background_objects"):
        PromptAnnotation.from_json({k: v for k, v in record().items() if k not in ("caption", "background_objects")})
    with pytest.raises(AnnotationError, match="an annotation is an object"):
        PromptAnnotation.from_json([1])


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"a.jpg": {"caption"', "incomplete"),
        ("[]", "expected an object"),
        ('{"a.jpg": {}, "a.jpg": {}}', "duplicate key 'a.jpg'"),
        ('{"a.jpg": 3}', "image 'a.jpg'"),
        ('{"../a.jpg": {}}', "without folders"),
    ],
)
def test_files_that_are_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(AnnotationError) as error:
        read_annotations(tmp_path / "a.json")
    assert message in str(error.value)


def test_missing_file(tmp_path):
    with pytest.raises(AnnotationError, match="no such file"):
        read_annotations(tmp_path / "none.json")


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "out.json"
    path.write_text("old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_annotations(path, {"a.jpg": PromptAnnotation("cat")})
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["out.json"]


def test_prompts_needs_neither_torch_nor_transformers():
    code = "import sys, goca.prompts; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
