"""Words that are looked for: queries, prompts, evidence, presence, what stands for the rest, and the whole of it."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES
from goca.config import ConfigError, load_config
from goca.open import NoClass, Query, WordTwice, background_words
from goca.open.evidence import Evidence, PromptMaps, gather
from goca.open.presence import PRESENCE_RULES, probability
from goca.open.prompts import Writer, deal
from goca.open.rest import REST_RULES, otsu, weight
from goca.prompts import PromptAnnotation
from goca.prompts.grammar import Entity
from goca.segmenter import Segmenter
from goca.variants.diffsegmentor import DiffSegmentor
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import save_tokenizer

SCENE = "src-main/goca/embedded/scenes/JPEGImages/test_00003.png"  # a star and a house, on grass, under sky


@pytest.fixture(scope="module")
def mini():
    return Segmenter.from_pretrained(None, "mini-sd", device="cpu")


def drawn(count, size=32):
    generator = torch.Generator().manual_seed(4)
    pixels = torch.randint(0, 256, (count, size, size, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(each.numpy()) for each in pixels]


# ---- queries


def test_words_become_classes_in_their_order():
    query = Query.of_words("Cat, (tree, trunk), sky")
    assert query.classes == ((1, ("cat",)), (2, ("tree", "trunk")), (3, ("sky",)))
    assert query == Query.of_words(["cat", "(tree, trunk)", "sky"]) and query.names() == {1: "cat", 2: "tree", 3: "sky"}
    of_classes = Query.of({7: ["Cat"], 2: ["TV monitor", "screen"]}, context=["cat", "grass", "grass"])
    assert of_classes.class_ids == [7, 2] and of_classes.context == ("grass",)


@pytest.mark.parametrize("words", ["", " , ,", [], ["", ","], [3]])
def test_no_words(words):
    with pytest.raises(NoClass):
        Query.of_words(words)


@pytest.mark.parametrize("words", ["cat, dog, Cat", ["cat", "dog", "cat"], ["(cat, tail)", "(dog, tail)"]])
def test_a_word_twice(words):
    with pytest.raises(WordTwice, match="occurs twice"):
        Query.of_words(words)


def test_background_vocabularies():
    assert "sky" in background_words("scenes") and len(background_words("common")) == 25
    assert background_words("none") == () and background_words(["Sky ", "open  sea"]) == ("sky", "open sea")
    for given_, message in (("scene", "nearest: scenes"), ([""], "expected words")):
        with pytest.raises(ConfigError, match=message):
            load_config("mini-sd", background_words=given_)
    for fields in ({"calibration": {"slope": 3}}, {"separator": " and "}, {"floor": 2}, {"ask": "half"}):
        with pytest.raises(ConfigError):
            load_config("mini-sd", **fields)


# ---- prompts


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(1, 40))
def test_words_are_dealt_in_order_and_none_is_lost(sizes, parts):
    entities = [Entity(f"w{number}", number) for number in range(len(sizes))]
    parts = min(parts, len(entities))
    dealt = deal(entities, sizes, parts)
    assert [entity for part in dealt for entity in part] == entities and all(dealt) and len(dealt) <= parts


def test_every_prompt_holds_the_vocabulary(mini):
    tokenizers = mini.extractor.backbone.tokenizers(mini.extractor.parts)
    writer = Writer(tokenizers, background_words("scenes"), " ")
    words = ["ball", "star", "tree", "house", "car", "fish", "flower", "mushroom"]
    (one,) = writer.prompts(Query.of_words(words[:6]))
    assert one.caption == " ".join([*words[:6], *background_words("scenes")])
    assert one.existent_objects == {number: [number] for number in range(1, 7)}
    assert one.background_objects == [[place] for place in range(7, 15)]
    first, second = writer.prompts(Query.of_words(words))
    assert [list(each.existent_objects) for each in (first, second)] == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert all(each.caption.endswith("sky wall forest grass sand water road snow") for each in (first, second))
    (asked,) = writer.prompts(Query.of({1: ["sky"]}, context=["roof"]))  # a word of the vocabulary is not its own rival
    assert asked.caption == "sky roof wall forest grass sand water road snow"


def test_a_vocabulary_of_another_length_is_cut_and_words_are_not(mini):
    tokenizers = mini.extractor.backbone.tokenizers(mini.extractor.parts)
    prompts = Writer(tokenizers, background_words("common"), ", ").prompts(Query.of_words("ball, star"))
    assert not any(prompt.lost_classes() for prompt in prompts)
    assert all(prompt.background_objects for prompt in prompts)


def test_a_hundred_and_fifty_classes_on_77_tokens(tmp_path):
    """A tokenizer that spells most words letter by letter, so that names are longer than in reality."""
    from goca.datasets import class_label
    from goca.datasets.base import class_table
    from transformers import CLIPTokenizer

    save_tokenizer(tmp_path / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer", model_max_length=77)
    table = class_table("ade20k", Path())
    names = {class_id: class_label(table, class_id) for class_id in range(1, len(table))}
    classes = {class_id: [name] for class_id, name in names.items() if list(names.values()).count(name) == 1}
    prompts = Writer({"tokenizer": tokenizer}, ["sky", "wall", "grass", "dog"], ", ").prompts(Query.of(classes))
    assert len(classes) > 140 and [id_ for prompt in prompts for id_ in prompt.existent_objects] == list(classes)
    assert len(prompts) < 40 and not any(prompt.lost_classes() for prompt in prompts)
    assert len({tuple(map(len, prompt.background_objects)) for prompt in prompts}) == 1


# ---- evidence


def maps(*values):
    """Token maps [1, P, N] from one row per token."""
    return torch.tensor(values).T[None]


def test_evidence_of_one_prompt_is_its_attention():
    prompt = PromptAnnotation("cat sky", [1, 2, 3], {4: [1, 2]}, [], [[3]])
    attention = maps([0.2, 0.2], [0.1, 0.4], [0.3, 0.2], [0.4, 0.2])
    found = gather([PromptMaps(attention)], [prompt])
    torch.testing.assert_close(found.words, torch.tensor([[[0.2, 0.3]]]))
    torch.testing.assert_close(found.rest, torch.tensor([[[0.4, 0.2]]]))
    torch.testing.assert_close(found.special, torch.tensor([[0.2, 0.2]]))
    torch.testing.assert_close(found.shares.sum(0), torch.ones(1, 2))


def test_prompts_are_compared_by_the_words_they_share():
    """One prompt whose words all have half the mass says the same."""
    first = PromptAnnotation("a x", [1, 2], {1: [1]}, [], [[2]])
    second = PromptAnnotation("b x", [1, 2], {2: [1]}, [], [[2]])
    looks = [PromptMaps(maps([0.2], [0.4], [0.4])), PromptMaps(maps([0.6], [0.1], [0.2]))]
    found = gather(looks, [first, second])
    assert found.words[0, 0, 0] / found.words[1, 0, 0] == pytest.approx(2)  # 0.4 / 0.4 against 0.1 / 0.2
    assert found.rest[0, 0, 0] == pytest.approx(0.3)


@given(st.floats(0.01, 0.99), st.floats(0.5, 9), st.floats(0.01, 1))
def test_presence_is_a_probability_that_grows(score, slope, midpoint):
    scores = torch.tensor([0.0, score, score * 1.1, midpoint])
    p = probability(scores, slope, midpoint)
    assert p[0] == 0 and 0 < p[1] <= p[2] <= 1 and p[3] == pytest.approx(0.5, abs=1e-4)


def test_a_word_without_a_map_of_its_own_is_not_there():
    flat = torch.full((1, 4, 4), 0.1)
    spot = flat.clone()
    spot[0, 1, 1] = 0.8
    evidence = Evidence(torch.cat([spot, flat]), torch.full((1, 4, 4), 0.3), torch.zeros(4, 4), torch.cat([spot, flat]))
    for rule in PRESENCE_RULES.values():
        there, absent = rule(evidence).tolist()
        assert there > absent >= 0
    strong, weak = weight(evidence, 0.4).tolist()
    assert strong > 0.5 > weak
    for rest in REST_RULES.values():
        before = rest.before(evidence)
        scores = rest.after(before, before, evidence, 0.45, 0.15)
        assert scores.shape == (3, 4, 4) and scores.isfinite().all() and (scores[-1] > 0).all()
        assert scores[:, 1, 1].argmax() == 0


def test_otsu_parts_two_levels():
    scores = torch.tensor([[0.1, 0.12, 0.9], [0.08, 0.11, 0.95]])
    assert 0.12 < float(otsu(scores)) < 0.9


# ---- the whole of it


def test_one_word_is_found_and_the_rest_is_background(mini):
    found = mini(SCENE, "star")
    assert found.names == ["star", "background"] and found.present == (True,) and found.presence[0] > 0.5
    (star, rest) = found.summary()
    assert 0.01 < star["area"] < 0.4 and rest["area"] == pytest.approx(1 - star["area"]) and "presence" not in rest
    complete = mini(SCENE, "star", ask="complete")
    assert complete.presence is None and (complete.label_map() == 1).all()  # as published: the caption names everything


def test_an_absent_word_gets_nothing(mini):
    found = mini(SCENE, ["star", "house", "mushroom", "ball"])
    presence = dict(zip(found.names, found.presence))
    assert min(presence["star"], presence["house"]) > max(presence["mushroom"], presence["ball"])
    strict = Segmenter(mini.extractor, load_config(mini.config, least_presence=0.999999))(SCENE, "star, ball")
    assert strict.present == (False, False) and (strict.label_map() == 0).all() and (strict.scores[:-1] == 0).all()


def test_ways_to_ask(mini):
    annotation, _ = mini.read_prompt("star, house, grass, sky")
    assert mini(SCENE, annotation).presence is None
    with pytest.raises(ConfigError, match="ask=open expects class names"):
        mini(SCENE, annotation, ask="open")
    with pytest.raises(ConfigError, match="expected one of: complete, open"):
        mini(SCENE, "star", ask="half")
    always = Segmenter(mini.extractor, load_config(mini.config, ask="complete"))
    assert always(SCENE, "star").presence is None and always(SCENE, "star", ask="open").presence is not None


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request, tmp_path_factory):
    folder = request.param.save(tmp_path_factory.mktemp("open") / "pipeline")
    return Segmenter.from_pretrained(str(folder), request.param.config, device="cpu")


def test_every_family_looks_for_words_alike_alone_and_in_batches(family):
    pictures, names = drawn(2, family.config.img_size), ["a", "b"]
    queries = [Query.of_words("cat, dog, wall"), Query.of_words("grass")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is cut
        together = list(family.look_for(pictures, queries, None, names))
        alone = [next(family.look_for([p], [q], None, [n])) for p, q, n in zip(pictures, queries, names)]
    for one, other, query in zip(alone, together, queries):
        grid = family.config.feat_size
        assert one.scores.shape == (len(query.classes) + 1, grid, grid) and one.scores.isfinite().all()
        assert one.class_ids == query.class_ids and all(0 <= p <= 1 for p in one.presence) and not one.lost
        torch.testing.assert_close(other.raw, one.raw, rtol=0, atol=1e-4)
        assert other.prompts == one.prompts


def test_many_prompts_encode_a_picture_once(family, monkeypatch):
    encoded = []
    encode = family.extractor.encode_images
    counting = lambda *given: encoded.append(len(given[0])) or encode(*given)  # noqa: E731
    monkeypatch.setattr(family.extractor, "encode_images", counting)
    words = [a + b for a in "bcdefghi" for b in "klmnopqrstuv"]  # spelt letter by letter
    answer = next(family.look_for(drawn(1, family.config.img_size), [Query.of_words(words)], None, ["a"]))
    assert encoded == [1] and len(answer.presence) == len(words)
    if len(answer.prompts) > 1:
        assert not answer.lost
    single = Segmenter(family.extractor, family.config)  # measures what one prompt needs on its own
    next(single.look_for(drawn(1, family.config.img_size), [Query.of_words(words[:1])], None, ["a"]))
    bound = Segmenter(family.extractor, family.config, max_bytes=3 * single.budget.bytes_per_image)
    parts = next(bound.look_for(drawn(1, family.config.img_size), [Query.of_words(words)], None, ["a"]))
    torch.testing.assert_close(parts.raw, answer.raw, rtol=0, atol=1e-4)


def test_the_page_says_what_was_not_found(mini):
    from goca.app.runs import absent

    strict = Segmenter(mini.extractor, load_config(mini.config, least_presence=0.999999))(SCENE, "star, ball")
    (said,) = absent(strict, ["ball"])
    assert said.startswith("Looked for and not found: star (") and "ball" not in said
    assert absent(mini(SCENE, "star"), []) == [] == absent(mini(SCENE, "star", ask="complete"), [])


def test_several_looks_are_averaged_when_words_are_looked_for_too(mini):
    looked = Segmenter(mini.extractor, load_config(mini.config, flips=True, draws=2))(SCENE, "star, house")
    assert looked.scores.isfinite().all() and looked.present == (True, True)
    assert not torch.equal(looked.scores, mini(SCENE, "star, house").scores)


def test_only_words_are_looked_for_and_only_by_this_method(mini):
    with pytest.raises(ConfigError, match="ask=open is not supported by method 'diffsegmentor'"):
        baseline = DiffSegmentor.from_pretrained(None, "mini-sd-diffsegmentor", device="cpu")
        baseline(SCENE, "star, house", ask="open")
    assert baseline(SCENE, "star, house").presence is None


def test_the_background_competes_in_dense_crf():
    """Its map is 0 before refinement: without one of its own, the words would share every pixel."""
    pytest.importorskip("pydensecrf")
    label = np.asarray(Image.open(SCENE.replace("JPEGImages", "SegmentationClass")))
    plain, refined = (
        Segmenter.from_pretrained(None, load_config("mini-sd", refine=chain))(SCENE, ["star", "house"]).label_map()
        for chain in (["affinity"], ["affinity", "dense_crf"])
    )
    right = [float(((found == 0).numpy() == (label == 0)).mean()) for found in (plain, refined)]
    assert right[1] > max(0.95, right[0])
