"""Protocol `released`: its rules for captions and tokens, each on its own; test_full_record.py has them all at once."""

import pytest
import torch
from goca.prompts import Entity, PromptAnnotation, annotate
from goca.prompts.grammar import split_first_group
from goca.prompts.tokens import Token, as_read, own_by_search, without_invisible
from goca.segmenter import Segmenter
from PIL import Image
from tiny import SD_CONFIG

NAMES = [
    [],
    ["person", "man"],
    ["cat"],
    ["car", "truck"],
    ["furniture", "furnitures"],
    ["sport equipment"],
    ["furniture"],
    ["sky"],
]


def note(caption, present, tokenizer, tokenizer_2=None, add_background=False, add_missing=False, **more):
    return annotate(
        caption,
        NAMES,
        present,
        tokenizer,
        tokenizer_2=tokenizer_2,
        add_background=add_background,
        add_missing=add_missing,
        protocol="released",
        **more,
    )


@pytest.mark.parametrize(
    "caption, things",
    [
        ("cat, grass", ["cat", "grass"]),
        ("sky, (cat, hat), road", ["sky", "(cat, hat)", "road"]),
        ("sky, (cat, hat, tie), road", ["sky", "(cat, hat, tie)", "road"]),
        ("sky, (truck), road", ["sky"]),  # a group of one that stands elsewhere opens and never closes
        ("sky, (truck), road, (car, wheel), tree", ["sky", "(car, wheel)", "tree"]),
        ("(truck), road", ["(truck)", "road"]),
        ("a (b, c), d", ["a (b, c)", "d"]),
        ("a b (c), d", []),
        ("(b, c) and d, e", ["(b, c)", "and d", "e"]),
        ("sky, (b, (c, d), e), f", ["sky", "(c, d)", ", e)", "f"]),
        ("a,, b , c", ["a", "b", "c"]),
        ("", []),
        (" ", [""]),
        ("sky), truck", [", sky)", "truck"]),
        ("(a)(b), c", ["(a)", "(b)", "c"]),
        ("cat, cat", ["cat"]),
    ],
)
def test_things_of_a_caption(caption, things):
    assert split_first_group(caption) == things


def test_steps_of_a_caption_in_their_order(tokenizers):
    """The full stop goes, "background" is appended, then all is put in lower case."""
    found = note("Cat, Sky.", [2], tokenizers["clip"], add_background=True)
    assert found.caption == "cat, sky, background"
    assert note("Cat, sky..", [2], tokenizers["clip"]).caption == "cat, sky."


def test_a_word_that_two_classes_share_is_written_again_and_stands_for_the_lower_id(tokenizers):
    found = note("cat, furniture, sky", [4, 6, 2], tokenizers["clip"], add_missing=True)
    assert found.caption == "cat, furniture, sky, furniture"  # 6 is present, not matched, and so counts as missing
    assert found.existent_objects == {2: [1], 4: [3]} and found.background_objects == [[5]]
    assert found.rescaling_token_id == [1, 3, 5]  # the second one lies outside the first occurrence
    alone = note("cat, sky", [6], tokenizers["clip"], add_missing=True)
    assert alone.caption == "cat, sky, furniture" and alone.existent_objects == {6: [5]}
    both = note("", [6, 4], tokenizers["clip"], add_missing=True)
    assert both.caption == "furniture, furniture" and both.existent_objects == {4: [1]}


def test_the_rest_of_nested_brackets_is_one_item(tokenizers):
    caption = "((man, hat), sport equipment), sky"
    found = note(caption, [1, 5, 7], tokenizers["clip"], add_missing=True)
    assert found.caption == "man, hat, , sport equipment, sky, sport equipment"
    assert found.class_ids == [1, 7, 5] and found.lost_classes() == [5]  # its text first occurs in another entity
    assert note("(cat, (man, hat), car)", [3], tokenizers["clip"]).existent_objects == {}


def test_missing_classes_come_in_the_order_of_a_set(tokenizers):
    names = [[], *([f"thing{number}"] for number in range(1, 41))]
    for present in ([33, 1, 8], [1, 33, 8]):  # 1 and 33 share a place: the first to come is the first to go
        found = annotate(
            "", names, present, tokenizers["clip"], add_background=False, add_missing=True, protocol="released"
        )
        assert found.class_ids == [8, *present[:2]] == list(set(present))


def words(*pieces):
    return [Token(i, piece, (0, 0), "word") for i, piece in enumerate(pieces)]


def test_search_takes_the_first_occurrence_even_inside_a_longer_word():
    entities = [Entity("street tree"), Entity("tree", 3)]
    owners = own_by_search(entities, "street tree, tree", words("street", "tree", ",", "tree"))
    assert owners == [0, 0, None, None]  # 'tree' has its span inside 'street tree', so the class stays empty


def test_search_steps_back_one_character_where_a_piece_is_not_found():
    # "##at" is not found at 1: it counts as [0, 4) and the search goes on at 4, past "mat" it begins anew
    owners = own_by_search([Entity("cat", 1), Entity("mat", 2)], "cat, mat", words("c", "##at", "mat", "cat"))
    assert owners == [0, None, 1, 0]


def test_search_begins_anew_only_exactly_at_the_end():
    entities = [Entity("cat", 1), Entity("mat", 2)]
    exactly = own_by_search(entities, "cat, mat", words("cat", ",", "mat", "cat", ",", "mat"))
    assert exactly == [0, None, 1, 0, None, 1]
    # "m" [5, 6), "##at" [5, 9): past the end, where nothing is found any more
    past = own_by_search(entities, "cat, mat", words("cat", ",", "m", "##at", "cat", ",", "mat"))
    assert past == [0, None, 1, None, None, None, None]
    twice = own_by_search(
        [Entity("cat", 1), Entity("cat food", 2)], "cat, cat food", words("cat", ",", "cat", "food", "cat")
    )
    assert twice == [0, None, 1, 1, 0]
    cut = own_by_search(entities, "cat, mat", words("cat", ",", "cat", ",", "mat"))  # BERT's half ends before "mat"
    assert cut == [0, None, None, None, 1]


def test_the_t5_half_goes_on_where_berts_stopped(tokenizers):
    pair = tokenizers["bert"], tokenizers["t5"]
    whole = note("cat, sky", [2, 7], *pair, max_length=77, max_length_2=256)
    assert whole.existent_objects == {2: [1, 77], 7: [3, 79]}
    spelled = note("zebra, cat", [2], *pair, max_length=77, max_length_2=256)  # five pieces, four are never found
    assert spelled.existent_objects == {2: []} and spelled.background_objects == [[1, 2, 3]]
    cut = note("cat, sky", [2, 7], *pair, max_length=4, max_length_2=256)  # [CLS] cat , [SEP]: T5 begins after ","
    assert cut.existent_objects == {2: [1], 7: [6]}


def test_tokens_of_a_class_stand_in_the_order_of_their_positions(tokenizers):
    pair = tokenizers["bert"], tokenizers["t5"]
    found = note("car, sky, truck", [3], *pair, max_length=77, max_length_2=256)
    assert found.existent_objects == {3: [1, 5, 77, 81]}  # two entities, two encoders
    paper = annotate(
        "car, sky, truck",
        NAMES,
        [3],
        pair[0],
        tokenizer_2=pair[1],
        max_length=77,
        max_length_2=256,
        add_background=False,
        add_missing=False,
    )
    assert paper.existent_objects == {3: [1, 77, 5, 81]}  # entity after entity


def test_invisible_characters_are_not_read_by_clip(tokenizers):
    assert without_invisible("per\u00adson\u200b, a\tb\u00a0c\x00\ufffd") == "person, a b c"
    assert without_invisible("\u65e5\u672ca") == " \u65e5  \u672c a"
    caption = "per\u00adson, cat\u200b, sky"
    found = note(caption, [1, 2, 7], tokenizers["clip"])
    assert found.caption == caption and found.existent_objects == {7: [5]}  # five words, and no name of a class
    assert as_read(caption, [tokenizers["clip"]], "search") == "person, cat, sky"
    assert as_read(caption, [tokenizers["clip"]], "offsets") == caption
    assert as_read(caption, [tokenizers["clip"], tokenizers["t5"]], "search") == caption  # Flux: T5 reads it


def test_the_text_encoder_reads_what_the_annotation_was_made_for(tiny_sd):
    image = Image.new("RGB", (32, 32), "green")
    maps = {}
    for protocol in ("released", "paper"):
        config = SD_CONFIG | {"protocol": {"preset": protocol, "seed": "image", "posterior": "mean"}}
        segmenter = Segmenter.from_pretrained(tiny_sd, config, device="cpu")
        maps[protocol] = [
            segmenter.score_maps(image, PromptAnnotation(caption, [1, 3], {1: [1]}, [0], [[3]]))
            for caption in ("cat\u200b, sky", "cat, sky")
        ]
    assert torch.equal(*maps["released"]) and not torch.equal(*maps["paper"])
