"""Runs that nobody told what is there: ask=open and the sources of words, from the configuration to the report."""

import json

import numpy as np
import pytest
from commands import values
from goca.benchmark import Benchmark
from goca.benchmark.sweep import shares
from goca.benchmark.word_prompts import WordPrompts, as_query
from goca.benchmark.word_sources import WORD_SOURCES, Asked, TaggerError
from goca.config import ConfigError
from goca.evaluation import Presence
from goca.evaluation.presence import words_of
from goca.prompts import Entity
from goca.protocol import Protocol
from goca.report.results import evaluation_text
from test_runs_datasets import SIX, given  # noqa: F401 - a fixture
from test_word_sources import clip  # noqa: F401 - a fixture

OBJECTS = list(range(1, 9))  # of the scenes
SETTINGS = (  # what runs/.../settings.json held before words could be looked for
    "version",
    "img_size",
    "feat_size",
    "t",
    "ref_layer",
    "self_layers",
    "cross_layers",
    "head_method",
    "layer_method",
    "rescale_method",
    "refine",
    "affinity_order",
    "keep_all_objects",
    "flips",
    "draws",
    "timesteps",
    "method",
    "class_prompt",
    "protocol",
    "pipeline",
)


def scenes(tmp_path, *overrides, limit=4):
    return Benchmark.of(values(*overrides, "device=cpu", f"limit={limit}", f"run_dir={tmp_path}"))


def records(folder):
    lines = [json.loads(line) for path in sorted(folder.glob("counts*.jsonl")) for line in path.open()]
    return {line["image"]: line for line in lines if "image" in line}


# --- the published run stays what it was -------------------------------------------------------------------------


def test_a_folder_of_before_goes_on(tmp_path):
    run = scenes(tmp_path)
    assert run.ask == "complete" and run.words == "present" and shares(run)
    assert set(run.settings()["model"]) == set(SETTINGS) and len(run.settings()["model"]["protocol"]) == 10
    assert not {"ask", "words", "tagger"} & set(run.settings())
    assert {"ask", "words"} <= set(scenes(tmp_path, "ask=open").settings())
    assert "token_method" in scenes(tmp_path, "model.token_method=sum").settings()["model"]


def test_the_published_run_says_so_and_has_no_presence(tmp_path):
    results = scenes(tmp_path, limit=2).run()
    assert (results["ask"], results["words"]) == ("complete", "present") and "presence" not in results
    assert "ground truth" in results["oracle"]["classes"]
    assert not any("words" in record for record in records(tmp_path).values())


# --- what is looked for ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["complete", "open"])
@pytest.mark.parametrize("words", ["present", "caption", "vocabulary"])
def test_each_source_from_configuration_to_results(tmp_path, ask, words):
    run = scenes(tmp_path, f"ask={ask}", f"words={words}")
    results = run.run()
    assert (results["ask"], results["words"]) == (ask, words)
    assert results["oracle"]["classes"] == WORD_SOURCES[words].oracle
    assert results["images"]["counted"] == 4 and not results["images"]["skipped"]
    assert (tmp_path / "evaluation.txt").read_text() == evaluation_text(results)
    assert len((tmp_path / "evaluation.txt").read_text().splitlines()) == 9
    if (ask, words) == ("complete", "present"):
        return
    kept = records(tmp_path)
    for record in kept.values():
        offered = [word.class_id for word in words_of(record)]
        looked = {"present": record["present"], "vocabulary": OBJECTS}.get(words)
        assert looked is None or sorted(offered) == looked
        taken = {word.class_id for word in words_of(record) if word.taken}
        assert taken == set(record["classes"]) - set(record["lost"])
        assert all((word.presence is None) == (ask == "complete") for word in words_of(record))
    presence = Presence(9)
    for record in kept.values():
        presence.update(words_of(record), record["present"])
    found = results["presence"]
    assert found["words"]["offered"] == presence.offered.sum() > 0
    assert found["recall"]["value"] == pytest.approx(presence.recall())
    assert (found["auc"]["value"] is not None) == (ask == "open" and words == "vocabulary")
    assert "Presence" in (tmp_path / "report.html").read_text()


def test_a_caption_is_not_told_the_ground_truth(tmp_path):
    """A caption that names another thing is believed; what it does not name is not looked for."""
    labels = {f"test_0000{number}.png": {"caption": "fish, grass"} for number in range(2)}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    run = scenes(tmp_path / "run", "ask=open", "words=caption", f"dataset.labels={tmp_path / 'labels.json'}", limit=2)
    run.run()
    for record in records(tmp_path / "run").values():
        assert [word.class_id for word in words_of(record)] == [6] and 6 not in record["present"]


def test_a_vocabulary_needs_no_captions_and_a_caption_does(tmp_path):
    results = scenes(tmp_path / "a", "ask=open", "words=vocabulary", "dataset.labels=null", limit=1).run()
    assert results["images"]["counted"] == 1
    with pytest.raises(ValueError, match=r"dataset\.labels is not set"):
        scenes(tmp_path / "b", "ask=open", "words=caption", "dataset.labels=null", limit=1).run()


def test_tags_are_what_clip_finds(tmp_path, clip, monkeypatch):  # noqa: F811
    asked = ("ask=open", "words=tags", f"tagger.model={clip}", "tagger.template='a {name}'")
    every = scenes(tmp_path / "all", *asked, "tagger.threshold=0", limit=2)
    every.run()
    none = scenes(tmp_path / "none", *asked, "tagger.threshold=1", limit=2).run()
    assert [len(record["words"]) for record in records(tmp_path / "all").values()] == [8, 8]
    assert none["presence"]["words"]["offered"] == 0 and none["presence"]["precision"]["value"] is None
    assert none["warnings"]["no_class"] == ["test_00000", "test_00001"]
    assert every.settings()["tagger"]["threshold"] == 0 and every.settings()["tagger"]["model"] == str(clip)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # a hub out of reach is tried again and again
    with pytest.raises(TaggerError, match=r"tagger\.model=nowhere cannot be loaded"):
        scenes(tmp_path / "no", "words=tags", "tagger.model=nowhere", limit=1).run()


# --- resumed, shared, batched ------------------------------------------------------------------------------------


def test_resumed_and_shared_runs_count_the_same(tmp_path):
    asked = ("ask=open", "words=vocabulary")
    whole = scenes(tmp_path / "whole", *asked, limit=4).run()
    scenes(tmp_path / "resumed", *asked, limit=2).run()
    resumed = scenes(tmp_path / "resumed", *asked, limit=4).run()
    shared = scenes(tmp_path / "shared", *asked, limit=4)
    assert shared.run(rank=0, world=2) is None
    together = shared.run(rank=1, world=2)
    for results in (resumed, together):
        assert results["counts"] == whole["counts"] and results["presence"] == whole["presence"]
    batched = scenes(tmp_path / "batched", *asked, "batch_size=2", limit=4).run()
    assert np.abs(np.array(batched["counts"]["union"]) - whole["counts"]["union"]).max() <= 4
    assert batched["presence"]["words"] == whole["presence"]["words"]


def test_folders_of_another_way_to_ask_are_refused(tmp_path):
    scenes(tmp_path, "ask=open", "words=vocabulary", limit=1).run()
    for other in ((), ("ask=open",), ("ask=open", "words=vocabulary", "model.least_presence=0.4")):
        with pytest.raises(ValueError, match="other settings"):
            scenes(tmp_path, *other, limit=1).run()


# --- all data sets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "given"), [(name, name) for name in SIX], indirect=["given"])
def test_every_data_set_is_asked_for_all_of_its_classes(name, given, tmp_path):  # noqa: F811
    asked = ("ask=open", "words=vocabulary", "limit=1", f"run_dir={tmp_path / 'run'}")
    results = Benchmark.of(values(*given, *asked)).run()
    classes = len(results["per_class"]) - 1
    assert results["presence"]["words"]["offered"] == (classes - 2 if name == "coco-stuff" else classes)  # two twins
    assert results["images"]["counted"] == 1 and not results["warnings"]["lost_classes"]
    assert results["presence"]["words"]["present"] >= 1


# --- from entities to a query ------------------------------------------------------------------------------------


def test_names_go_to_their_first_class_and_the_rest_is_context():
    entities = [Entity("person, bag", 1), Entity("grass"), Entity("dog, bag", 2), Entity("puppy", 2), Entity("dog")]
    query = as_query(entities)
    assert query.classes == ((1, ("person", "bag")), (2, ("dog", "puppy"))) and query.context == ("grass",)
    assert as_query([Entity("sky"), Entity("bag")]) is None


def test_a_class_has_the_words_that_the_caption_uses():
    class_names = [[], ["aeroplane", "plane"], ["dog"]]
    prompts = WordPrompts(WORD_SOURCES["caption"], Asked(class_names), None, Protocol())
    prompts.captions = type("Captions", (), {"caption": lambda self, sample: "(plane, wing), sky, a dog"})()
    query = prompts.query(None)
    assert query.classes == ((1, ("plane", "wing")), (2, ("a dog",))) and query.context == ("sky",)
    prompts.source = WORD_SOURCES["vocabulary"]
    assert prompts.query(None).classes == ((1, ("aeroplane",)), (2, ("dog",)))


# --- what makes no sense -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["ask=closed"], "complete, open"),
        (["words=all"], "present, caption, vocabulary, tags"),
        (["words=vocabulary", "annotations=a.json"], "what is looked for; leave out words=vocabulary"),
        (["ask=open", "annotations=a.json"], "determines what is looked for; leave out ask=open"),
        (["task=unsupervised", "words=caption"], "uses no class names; leave out words=caption"),
        (["ask=open", "model=mini-sd-diffsegmentor"], "ask=open is not for method 'diffsegmentor'"),
        (["tagger.threshold=2"], "tagger.threshold is 2"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(tmp_path, given, message):  # noqa: F811
    with pytest.raises(ConfigError, match=message):
        scenes(tmp_path, *given)
