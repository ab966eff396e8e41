"""Without an extra, each command that needs it names it before anything is asked, loaded or written."""

import os
import subprocess
import sys

import pytest
from chat_server import ChatServer, picture, voc_tree
from commands import ROOT
from goca import Segmenter
from goca.cli import main

LIBRARIES = ("openai", "httpx2")
FIX = "pip install 'goca[label]'"


@pytest.fixture(params=LIBRARIES)
def lacking(request, monkeypatch):
    """Python finds no module of this name."""
    monkeypatch.setitem(sys.modules, request.param, None)
    return request.param


@pytest.mark.parametrize("command", ["segment", "label"])
def test_a_command_that_asks_a_server_names_the_extra(command, lacking, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "photos").mkdir()
    picture(1).save(tmp_path / "photos/1.png")
    with ChatServer() as server:
        given = [tmp_path / "photos", "--describe", "--labeler", f"base_url={server.url}", "--out", tmp_path / "out"]
        assert main([command, *map(str, given)]) == 1 and not server.asked
    said = capsys.readouterr().err
    assert said.startswith(f"LibrariesMissing: asking a server needs {lacking}") and FIX in said
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", [["segment", "--prompt", "star"], ["label", "--vocabulary", "voc"]])
def test_a_command_that_writes_coco_files_names_the_extra(command, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    monkeypatch.setattr(Segmenter, "from_pretrained", lambda *_, **__: pytest.fail("the model was loaded"))
    (tmp_path / "photos").mkdir()
    picture(1).save(tmp_path / "photos/1.png")
    name, *words = command
    assert main([name, str(tmp_path / "photos"), *words, "--format", "coco", "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said == 'FormatMissing: the format coco needs pycocotools: pip install "goca[formats]"\n'
    assert not (tmp_path / "out").exists()


def test_the_labelling_command_prices_without_the_extra_and_names_it_to_ask(tmp_path):
    """A process of its own, to which both libraries are missing from its start."""
    voc_tree(tmp_path / "voc", 2)
    hidden = "".join(f"sys.modules[{name!r}] = None\n" for name in LIBRARIES)
    (tmp_path / "sitecustomize.py").write_text(f"import sys\n{hidden}")
    labels = tmp_path / "out/voc.json"
    script = [sys.executable, ROOT / "src-main/gpt_labeling.py", "dataset=voc", f"dataset.root={tmp_path / 'voc'}"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OPENAI_API_KEY": "sk-test"}

    def run(*more):
        given = [*script, f"labels={labels}", *more]
        return subprocess.run(given, env=environment, capture_output=True, text=True)

    priced, asked = run("dry_run=true"), run()
    assert priced.returncode == 0 and "2 images of voc to ask" in priced.stdout, priced.stderr
    assert asked.returncode == 1 and FIX in asked.stderr and "Traceback" not in asked.stderr, asked.stderr
    assert not labels.parent.exists()
