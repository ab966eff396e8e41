"""Published labels: found in a checkout, looked through, compared with the data set, copied as they are."""

import importlib.util
import json
from pathlib import Path

import pytest
from chat_server import voc_tree
from goca.labeling import PUBLISHED, LabelingError, examine, import_labels
from goca.prompts import AnnotationError

SCRIPT = Path(__file__).parents[1] / "scripts" / "import_labels.py"


@pytest.fixture
def command(tmp_path, capsys):
    """run(...) -> (exit code, what was said); files go to tmp_path/out."""
    spec = importlib.util.spec_from_file_location("import_labels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*given):
        code = module.main([*map(str, given), "--out", str(tmp_path / "out")])
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def checkout(tmp_path):
    """A checkout with labels for a small VOC in tmp_path/voc; returns its labels file."""
    names = voc_tree(tmp_path / "voc", 5)
    path = tmp_path / "checkout" / "gpt_output" / "voc.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({name: {"caption": "cat, sky"} for name in names}))
    return path


def changed(path, **entries):
    labels = json.loads(path.read_text())
    for number, entry in entries.items():
        labels[f"2007_00000{number[1:]}.jpg"] = entry
    path.write_text(json.dumps(labels))


def test_all_six_published_files(full_record, command, tmp_path):
    folder = full_record.parent / "data" / "gpt_output"
    code, said = command(folder)
    assert code == 0
    for name, published in PUBLISHED.items():
        assert f"{name}: {published.captions} captions" in said
        assert (tmp_path / "out" / f"{name}.json").read_bytes() == (folder / published.file).read_bytes()
    code, said = command(folder.parent, "voc")  # the checkout's folder serves as well as its gpt_output/
    assert code == 0 and "exists already" in said


def test_recorded_voc_tree(full_record, command):
    tree = full_record / "set6_voc_mini"
    code, said = command(tree, "voc", "--root", f"voc={tree / 'VOCdevkit' / 'VOC2012'}", "--strict")
    assert code == 0 and "5 images in the data set's list" in said and "missing" not in said


def test_what_is_missing_is_said(checkout, command, tmp_path):
    labels = json.loads(checkout.read_text())
    del labels["2007_000002.jpg"]
    checkout.write_text(json.dumps({**labels, "2008_000009.jpg": {"caption": "cow"}}))
    given = (checkout.parents[1], "voc", "--root", f"voc={tmp_path / 'voc'}")
    code, said = command(*given)
    assert code == 0 and "1 no caption for: 2007_000002.jpg" in said and "1 not in the list: 2008_000009.jpg" in said
    assert command(*given, "--strict")[0] == 1
    code, said = command(checkout.parents[1], "voc")
    assert code == 0 and "5 captions; 1464 were published; not compared" in said


def test_bad_entries_are_named(checkout, command, tmp_path):
    changed(
        checkout,
        n0={"caption": None},
        n1="cat",
        n2={"caption": ""},
        n3={"caption": "(cat, sky"},
        n4={"caption": "cat, " * 99},
    )
    labels = json.loads(checkout.read_text())
    checkout.write_text(json.dumps({**labels, "../../evil.jpg": {"caption": "cat"}, "a\\b.jpg": {"caption": "cat"}}))
    finding = examine(checkout, "voc", [f"2007_00000{i}.jpg" for i in range(5)])
    assert set(finding.captions) == {"2007_000003.jpg", "2007_000004.jpg"} and not finding.complete
    assert set(finding.refused) == {"2007_000000.jpg", "2007_000001.jpg", "../../evil.jpg", "a\\b.jpg"}
    assert finding.wordless == ["2007_000002.jpg"] and finding.unclosed == ["2007_000003.jpg"]
    assert finding.long == ["2007_000004.jpg"] and len(finding.missing) == 3
    code, said = command(checkout.parents[1], "voc", "--root", f"voc={tmp_path / 'voc'}")
    assert code == 0 and "evil.jpg" in said and "3 no caption for" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["voc.json"]


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"2007_000001.jpg": {"caption": "ca', "incomplete"),
        ('["2007_000001.jpg"]', "expected an object"),
        ("[" * 100_000, "is not JSON"),
        ('{"2007_000001.jpg": {"caption": "a"}, "2007_000001.jpg": {"caption": "b"}}', "duplicate key"),
        ('{"000000000139.jpg": {"caption": "a"}}', "another data set"),
        ("{}", "holds no captions"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_files_that_cannot_be_used(checkout, command, tmp_path, text, message):
    checkout.write_bytes(text if isinstance(text, bytes) else text.encode())
    code, said = command(checkout.parents[1], "voc")
    assert code == 1 and message in said and not (tmp_path / "out").exists()


def test_other_labels_are_not_overwritten(checkout, command, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "voc.json").write_text("{}")
    code, said = command(checkout.parents[1], "voc")
    assert code == 1 and "--replace" in said and (tmp_path / "out" / "voc.json").read_text() == "{}"
    assert command(checkout.parents[1], "voc", "--replace")[0] == 0
    assert (tmp_path / "out" / "voc.json").read_bytes() == checkout.read_bytes()


def test_check_writes_nothing(checkout, command, tmp_path):
    assert command(checkout.parents[1], "voc", "--check")[0] == 0 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("given", [["voc2"], ["--root", "coco=/data"]])
def test_unknown_data_sets(checkout, command, given):
    with pytest.raises(SystemExit):
        command(checkout.parents[1], *given)


def test_files_and_folders_that_are_not_there(checkout, command, tmp_path):
    code, said = command(tmp_path / "nowhere", "voc")
    assert code == 1 and "is not a folder" in said
    code, said = command(checkout.parents[1], "cityscapes")
    assert code == 1 and "there is no city.json" in said
    code, said = command(checkout.parents[1], "voc", "--root", "voc=/nowhere")
    assert code == 1 and "JPEGImages" in said


def test_pictures_of_the_data_set_that_cannot_be_read(checkout, command, tmp_path):
    (tmp_path / "voc" / "Annotations" / "2007_000001.xml").unlink()
    code, said = command(checkout.parents[1], "voc", "--root", f"voc={tmp_path / 'voc'}")
    assert code == 0 and "1 in the list, but not readable: 2007_000001" in said


def test_a_target_that_cannot_be_made(checkout, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LabelingError, match="cannot be created"):
        import_labels(checkout, tmp_path / "file" / "voc.json")
    with pytest.raises(AnnotationError, match="no such file"):
        examine(tmp_path / "none.json", "voc")


# ---- a folder of text files


def test_a_folder_of_answers_becomes_labels(command, tmp_path):
    folder = tmp_path / "answers"
    folder.mkdir()
    (folder / "2007_000001.txt").write_text("```\nCaption: (person, clothes), dog\n```\n")
    (folder / "2007_000002.jpg.txt").write_bytes("\ufeff- cat\r\n- sofa\r\n".encode())
    (folder / "2007_000003.txt").write_text("I'm sorry, I cannot help with that.")
    (folder / "2007_000004.txt").write_text("")
    code, said = command(folder, "voc")
    assert code == 0 and "voc: 2 captions" in said and "2 no usable entry" in said
    assert json.loads((tmp_path / "out" / "voc.json").read_text()) == {
        "2007_000001.jpg": {"caption": "(person, clothes), dog"},
        "2007_000002.jpg": {"caption": "cat, sofa"},
    }
    code, said = command(folder, "voc")
    assert code == 0 and "exists already" in said


def test_answers_in_a_folder_of_the_data_sets_name_get_its_ending(command, tmp_path):
    (tmp_path / "cityscapes").mkdir()
    (tmp_path / "cityscapes" / "ulm_000000_000019_leftImg8bit.txt").write_text("road, car")
    assert command(tmp_path, "cityscapes")[0] == 0
    assert list(json.loads((tmp_path / "out" / "cityscapes.json").read_text())) == ["ulm_000000_000019_leftImg8bit.png"]


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        ({"2007_000001.txt": "cat", "2007_000001.jpg.txt": "dog"}, ["voc"], "two files belong to 2007_000001.jpg"),
        ({"2007_000001.txt": "cat"}, [], "for these, name the data set"),
        ({"ulm.txt": "cat"}, ["voc"], "holds no image of voc"),
        ({"2007_000001.txt": b"\xff\xfe\x00"}, ["voc"], "holds no captions; nothing was written"),
    ],
)
def test_answers_that_cannot_be_used(command, tmp_path, files, given, message):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    code, said = command(tmp_path, *given)
    assert code == 1 and message in said
    assert not (tmp_path / "out").exists()
