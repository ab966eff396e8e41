"""What `goca segment` looks for: words, a vocabulary, a server's description; and a server that misbehaves."""

import json

import pytest
from chat_server import ChatServer, caption, drop, echo_key, picture, raw, status
from goca import Segmenter
from goca.cli import main
from goca.cli.words import without_repeats
from goca.labeling.describe import LOG

KEY = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def inside(tmp_path, monkeypatch):
    """Commands are given in a folder with two pictures that the server can tell apart."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for number in (1, 2):
        picture(number).save(f"{number}.png")


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))


def segment(*arguments):
    return main(["segment", *map(str, arguments)])


def described(server, *images, labeler=()):
    values = (f"base_url={server.url}", "retries=1", "first_wait=0", "timeout=5", *labeler)
    return segment(*images, "--describe", *(part for value in values for part in ("--labeler", value)))


def record(stem):
    with open(f"{stem}.json") as file:
        return json.load(file)


def names(stem):
    return [row["name"] for row in record(stem)["classes"] if row["name"] != "background"]


# --- three ways, and one of them ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "there is nothing to look for"),
        (("--prompt", "star", "--words", "coco"), "--prompt and --words were given; give only one of them"),
        (("--words", "coco", "--describe"), "--words and --describe were given"),
        (("--prompt", "star", "--labeler", "local"), "give --describe too"),
    ],
)
def test_without_words_all_ways_are_shown(no_model, capsys, arguments, message):
    assert segment("1.png", *arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("WordsNotGiven") and message in said and "Traceback" not in said
    for way in ('--prompt "cat, grass, wall"', "--prompts", "--words coco", "--describe  ", "--regions"):
        assert way in said


def test_words_of_a_file_are_looked_for(loaded, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("star\nhouse\nsnow\n")
    assert segment("1.png", "--words", "mine.txt") == 0
    assert names("1") == ["star", "house", "snow"] and record("1")["words_from"] == "words mine.txt"
    (tmp_path / "mine.json").write_text(json.dumps([[], ["wall"], ["tree", "pine"]]))
    assert segment("2.png", "--words", "mine.json") == 0
    assert names("2") == ["wall", "tree"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("cat, dog\n", "line 1: 'cat, dog' holds ','"), ("\n".join(f"word{n}" for n in range(300)), "300 names")],
)
def test_a_vocabulary_of_another_shape_is_refused_at_once(no_model, tmp_path, capsys, content, message):
    (tmp_path / "mine.txt").write_text(content)
    assert segment("1.png", "--words", "mine.txt") == 1
    said = capsys.readouterr().err
    assert said.startswith("VocabularyError") and message in said
    assert segment("1.png", "--words", "cocco") == 1
    assert "expected ade20k, cityscapes, coco" in capsys.readouterr().err


# --- a server's description --------------------------------------------------------------------------------------


def test_each_picture_is_segmented_by_what_the_server_says_of_it(loaded):
    with ChatServer({1: [caption("star, (tree, leaf), star")], 2: [caption("wall, house")]}) as server:
        assert described(server, "1.png", "2.png") == 0
    assert names("1") == ["star", "tree"] and record("1")["prompt"] == "star, (tree, leaf)"
    assert names("2") == ["wall", "house"] and record("2")["words_from"] == "described by gpt-4o"
    text, _ = server.requests[0]["messages"][0]["content"]
    assert "common name" in text["text"] and "{" not in text["text"] and "following words" not in text["text"]


def test_what_was_answered_is_not_asked_again(loaded, tmp_path):
    with ChatServer(otherwise=caption("star, wall")) as server:
        assert described(server, "1.png") == 0 and described(server, "1.png", "2.png") == 0
        assert server.counts() == {1: 1, 2: 1}
        picture(3).save("1.png")  # another picture under the same name
        assert described(server, "1.png") == 0 and server.counts() == {1: 1, 2: 1, 3: 1}
        assert described(server, "1.png", labeler=["model=see-2"]) == 0  # another model is asked for itself
        assert server.counts()[3] == 2 and record("1")["words_from"] == "described by see-2"
    log = (tmp_path / LOG).read_text()
    assert KEY not in log and log.count('"caption"') == 4


@pytest.mark.parametrize(
    ("misbehaviour", "message"),
    [
        (caption("I'm sorry, I can't help with that."), "refused"),
        (raw(b"<html>no</html>"), "malformed"),
        (drop, "unreachable"),
        (status(500), "unreachable"),
        (caption(""), "empty"),
        (caption("star", "length"), "cut off"),
    ],
)
def test_a_picture_without_words_is_named_and_the_others_go_on(loaded, capsys, tmp_path, misbehaviour, message):
    with ChatServer({1: [misbehaviour] * 2}, otherwise=caption("star, wall")) as server:
        assert described(server, "1.png", "2.png") == 1
    said = capsys.readouterr().err
    assert "WordsNotFound: 1.png: the server named nothing in it" in said and message in said and "--prompt" in said
    assert "1 of 2 images could not be used" in said and "Traceback" not in said
    assert names("2") == ["star", "wall"] and not (tmp_path / "1.json").exists()


def test_a_server_that_refuses_ends_the_command_and_loses_nothing(loaded, capsys, tmp_path):
    with ChatServer({1: [caption("star, wall")], 2: [echo_key(401)]}, caption("wall")) as server:
        assert described(server, "1.png", "2.png") == 1
        said = capsys.readouterr().err
        assert "ServerRefused" in said and "OPENAI_API_KEY" in said and KEY not in said
        assert names("1") == ["star", "wall"] and not (tmp_path / "2.json").exists()
        assert described(server, "1.png", "2.png") == 0 and server.counts() == {1: 1, 2: 2}


def test_without_a_key_nothing_is_asked_and_nothing_written(no_model, capsys, monkeypatch, tmp_path):
    monkeypatch.delenv("OPENAI_API_KEY")
    with ChatServer() as server:
        assert described(server, "1.png") == 1
        assert capsys.readouterr().err.startswith("KeyMissing") and not server.asked
    assert not (tmp_path / LOG).exists()


def test_a_labeler_of_one_s_own(loaded, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text("defaults: [local, _self_]\nmodel: see-3\n")
    with ChatServer(otherwise=caption("star, wall")) as server:
        given = ("--labeler", "mine.yaml", "--labeler", f"labeler.base_url={server.url}")
        assert segment("1.png", "--describe", *given) == 0
    assert server.requests[0]["model"] == "see-3" and record("1")["words_from"] == "described by see-3"


@pytest.mark.parametrize(
    ("labeler", "message"),
    [
        ("nobody", "unknown labeler 'nobody'; expected a YAML file or one of: gpt-4o, local"),
        ("local", "labeler.model is not set"),
        ("modle=x", "labeler has no field modle"),
        ("base_url=file:///etc", "labeler.base_url is not an address"),
        ("1.png", "labeler '1.png' cannot be read"),
        ("text.yaml", "contains no fields"),
        ("round.yaml", "expected _self_ and some of: gpt-4o, local"),
    ],
)
def test_a_labeler_that_makes_no_sense_is_refused(no_model, capsys, tmp_path, labeler, message):
    (tmp_path / "text.yaml").write_text("- a\n- b\n")
    (tmp_path / "round.yaml").write_text("defaults: [round.yaml]\n")
    assert segment("1.png", "--describe", "--labeler", labeler) == 1
    said = capsys.readouterr().err
    assert said.startswith("LabelingError") and message in said and "Traceback" not in said


def test_names_that_a_server_repeats_count_once():
    assert without_repeats("Cat, (person, clothes), clothes, cat, (cat, tail)") == "cat, (person, clothes), tail"


def test_presence_is_judged_by_the_named_rule(capsys):
    """The rule is recorded; the default leaves the record as it was; an unknown name lists the known ones."""
    assert segment("1.png", "--prompt", "star, ball", "--presence", "denoising gain") == 0
    probed = record("1")
    assert probed["presence_rule"] == "denoising gain"
    assert segment("1.png", "--prompt", "star, ball") == 0
    plain = record("1")
    assert "presence_rule" not in plain
    presence = [[row["presence"] for row in each["classes"] if "presence" in row] for each in (probed, plain)]
    assert len(presence[0]) == len(presence[1]) and presence[0] != presence[1]
    capsys.readouterr()
    assert segment("1.png", "--prompt", "star", "--presence", "denoising") == 1
    assert "reference spread" in (said := capsys.readouterr().err) and "denoising gain" in said
