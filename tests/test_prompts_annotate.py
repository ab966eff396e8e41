"""annotate(): every token to the entity it was written for, with each family of tokenizers."""

import pytest
from goca.prompts import AlignmentError, CaptionError, annotate
from goca.prompts.alignment import lay, piece_spans
from goca.prompts.tokens import UNLIMITED
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

NAMES = [[], ["person", "man"], ["cat", "kitten"], ["car", "truck"], ["tree"], ["traffic light"], ["bird"]]
PRESENT = [1, 2, 3, 4, 5, 6]
words = st.sampled_from(
    [
        "cat",
        "street tree",
        "tree",
        "(car, wheel)",
        "(man, (hat, tie))",
        "the sky",
        "(bird",
        "a)",
        "",
        "café",
        "naïve \u0301x",
        "日本",
        "🐱",
        "x\x00y",
        "\ud800",
        "and",
        "traffic light",
        "a-b",
        "İ",
    ]
)
captions = st.lists(words, max_size=8).map(", ".join) | st.text(max_size=30)


class WithoutOffsets:
    """A tokenizer that knows no offset mapping, as pure Python ones do."""

    is_fast = False

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **options):
        assert "return_offsets_mapping" not in options
        return self._tokenizer(text, **options)


def note(caption, pair, present=PRESENT, add_background=True, add_missing=True, **options):
    return annotate(
        caption,
        NAMES,
        present,
        pair[0],
        tokenizer_2=pair[1],
        add_background=add_background,
        add_missing=add_missing,
        **options,
    )


def spoken(caption, tokenizer, **options):
    """What the tokens of each class and background entity say, word marks removed."""
    found = note(caption, (tokenizer, None), add_missing=False, add_background=False, **options)
    pieces = [
        p.replace("</w>", "").replace("▁", "")
        for p in tokenizer.convert_ids_to_tokens(tokenizer(found.caption)["input_ids"])
    ]
    classes = {c: [pieces[i] for i in tokens] for c, tokens in found.existent_objects.items()}
    return classes, [[pieces[i] for i in tokens] for tokens in found.background_objects]


@settings(deadline=None, max_examples=60)
@given(
    caption=captions,
    present=st.lists(st.sampled_from(PRESENT), unique=True),
    background=st.booleans(),
    missing=st.booleans(),
    protocol=st.sampled_from(["paper", "released"]),
    length=st.sampled_from([None, 2, 5, 12]),
)
def test_no_caption_breaks_it(tokenizers, caption, present, background, missing, protocol, length):
    for pair, longest in (
        ((tokenizers["clip"], None), 77),
        ((tokenizers["t5"], None), 300),
        ((tokenizers["bert"], tokenizers["t5"]), 377),
    ):

        def run(pair=pair):
            return note(caption, pair, present, background, missing, max_length=length, protocol=protocol)

        found = run()
        assert found == run() and list(found.existent_objects) == list(run().existent_objects)
        owned = [t for tokens in (*found.existent_objects.values(), *found.background_objects) for t in tokens]
        assert len(owned) == len(set(owned)) and sorted(owned) == sorted(found.rescaling_token_id)
        assert found.last_token() < longest
        assert not set(owned) & set(found.global_token_id)
        assert set(found.existent_objects) <= set(present)
        if missing and protocol == "paper":
            assert set(found.existent_objects) == set(present)


def test_a_class_gets_the_tokens_that_were_written_for_it(tokenizers):
    # 'tree' occurs first inside 'street tree', 'car' inside 'carpet'
    caption = "street tree, carpet, traffic light, tree, (car, wheel), the cat"
    for tokenizer in (tokenizers["clip"], tokenizers["bert"]):
        classes, background = spoken(caption, tokenizer)
        assert classes == {5: ["traffic", "light"], 4: ["tree"], 3: ["car", "wheel"], 2: ["cat"]}
        assert background == [["street", "tree"], ["carpet"]]
    classes, background = spoken(caption, tokenizers["t5"])
    assert {c: "".join(pieces) for c, pieces in classes.items()} == {
        5: "trafficlight",
        4: "tree",
        3: "carwheel",
        2: "cat",
    }
    assert ["".join(pieces) for pieces in background] == ["streettree", "carpet"]


def test_every_class_named_has_tokens_in_every_shape_of_caption(tokenizers):
    shapes = [
        "(man, clothes), cat, tree",
        "cat, (man, clothes)",
        "sky, (cat), grass",
        "(car, wheel, (man, hat)), sky.",
        "((man, clothes), cat), tree",
        "cat; tree\nsky",
        "the cat, a tree",
        "(man, clothes) in background, cat",
    ]
    for caption in shapes:
        for tokenizer in tokenizers.values():
            found = note(caption, (tokenizer, None), add_missing=True)
            assert found.lost_classes() == [] and set(found.existent_objects) == set(PRESENT), caption


def test_spans_without_an_offset_mapping_are_the_same(tokenizers):
    captions = [
        "(man, clothes), cat, street tree",
        "zebra, carpet, cat, zoo, unicorn",
        "the cat, a tree and sky",
        "",
        '"cat", naïve café, "dog"',
        "\u65e5\u672c, e\u0301clair",
        "x#y §, ½ cup",
        "🐱, cat",
    ]
    for tokenizer in tokenizers.values():
        for caption in captions:
            fast = note(caption, (tokenizer, None), max_length=14)
            assert note(caption, (WithoutOffsets(tokenizer), None), max_length=14) == fast, caption


@pytest.mark.parametrize(
    "pair, cat, sky, sentence",
    [
        ("clip", [1], [3], [0]),
        ("t5", [0], [2], [3]),
        ("bert", [1], [3], [0]),
        ("bert+t5", [1, 77], [3, 79], [0, 80]),  # HunyuanDiT: T5 follows BERT's 77
        ("clip+t5", [0], [2], [3]),  # Flux
        ("clip+clip", [1], [3], [0]),  # SDXL
    ],
)
def test_families(tokenizers, pair, cat, sky, sentence):
    first, _, second = pair.partition("+")
    found = note("cat, sky", (tokenizers[first], tokenizers.get(second)), add_background=False, add_missing=False)
    assert found.existent_objects == {2: cat} and found.background_objects == [sky]
    assert found.global_token_id == sentence


def test_of_two_clip_tokenizers_the_first_tells_the_positions(tokenizers, tiny_sd):
    other = AutoTokenizer.from_pretrained(tiny_sd / "tokenizer")  # spells "tree"
    pair = tokenizers["clip"], other
    names = {"present": [2, 4], "add_background": False, "add_missing": False}
    assert note("tree, cat", pair, **names).existent_objects == {4: [1], 2: [3]}
    assert note("tree, cat", pair[::-1], **names).existent_objects == {4: [1, 2, 3, 4], 2: [6]}


def test_second_sequence_starts_after_the_padded_first(tokenizers):
    found = note("cat", (tokenizers["bert"], tokenizers["t5"]), [2], False, False, max_length=10, max_length_2=5)
    assert found.existent_objects == {2: [1, 10]} and found.global_token_id == [0, 11]


def test_words_cut_off_are_told(tokenizers):
    found = note("cat, tree, car", (tokenizers["clip"], None), add_missing=False, max_length=5)
    assert found.existent_objects == {2: [1], 4: [3], 3: []} and found.lost_classes() == [3]


def test_no_class_and_no_caption(tokenizers):
    none = note("sea, sky", (tokenizers["clip"], None), add_missing=False, add_background=False)
    assert none.existent_objects == {} and none.background_objects == [[1], [3]]
    empty = note("", (tokenizers["clip"], None), add_missing=False, add_background=False)
    assert (empty.caption, empty.rescaling_token_id, empty.global_token_id) == ("", [], [0])
    only_missing = note("", (tokenizers["clip"], None), [2], add_background=False)
    assert only_missing.existent_objects == {2: [1]}


def test_switches_may_be_mixed(tokenizers):
    caption = "sky, (bird), street tree, tree"
    mixed = note(
        caption,
        (tokenizers["clip"], None),
        add_missing=False,
        add_background=False,
        protocol={"preset": "released", "caption_grammar": "brackets"},
    )
    assert mixed.caption == "sky, bird, street tree, tree" and mixed.lost_classes() == [4]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, NAMES, [1]), "expected a text as caption"),
        (("cat", ["cat"], [0]), "has a list of names"),
        (("cat", NAMES, [7]), "class 7 is present"),
        (("cat", NAMES, [-1]), "class -1 is present"),
    ],
)
def test_wrong_requests(tokenizers, arguments, message):
    with pytest.raises(CaptionError, match=message):
        annotate(*arguments, tokenizers["clip"], add_background=False, add_missing=False)


def test_wrong_tokenizers(tokenizers):
    with pytest.raises(CaptionError, match="t5 \\+ clip"):
        note("cat", (tokenizers["t5"], tokenizers["clip"]))
    with pytest.raises(CaptionError, match="neither"):
        note("cat", (object(), None))
    with pytest.raises(CaptionError, match="max_length is 1"):
        note("cat", (tokenizers["clip"], None), max_length=1)
    with pytest.raises(CaptionError, match="the first of two tokenizers needs max_length"):
        note("cat", (tokenizers["bert"], tokenizers["t5"]), max_length=UNLIMITED)
    unlimited = note("cat", (tokenizers["bert"], tokenizers["t5"]), [2], False, False, max_length_2=UNLIMITED)
    assert unlimited.existent_objects == {2: [1, 77]}


def test_pieces_are_laid_along_the_text():
    assert lay([b"ca", b"t"], "cat") == [(0, 2), (2, 3)]
    assert lay([None, b"b"], "aab") == [(0, 2), (2, 3)]
    assert lay([b"a", None, b"a"], "aaba") == [(0, 1), (1, 3), (3, 4)]
    assert lay([None], "xy") == [(0, 2)]
    assert lay([None, b"a", None], "aab") == [(0, 1), (1, 2), (2, 3)]  # an unknown piece takes a character at least
    assert lay([None, None, b"a", None], "xaab") == [(0, 2), (0, 2), (2, 3), (3, 4)]
    assert lay([b"e", b"clair"], "Éclair") == [(0, 1), (1, 6)]
    assert lay(["é".encode()[:1], "é".encode()[1:]], "e\u0301") == [(0, 2), (0, 2)]
    assert lay(["é".encode(), "½".encode()], "É½") == [(0, 1), (1, 2)]  # lower case, and one half is not 1/2
    with pytest.raises(AlignmentError, match="do not make up"):
        lay([b"dog"], "cat")


def test_tokens_that_the_tokenizer_added_have_no_place_in_the_text(tokenizers):
    for name, first in (("clip", 1), ("t5", 0), ("bert", 1)):
        slow = WithoutOffsets(tokenizers[name])
        for length, spans in ((4, [(0, 3), (3, 4), (5, 8)][: 3 - first]), (None, [(0, 3), (3, 4), (5, 8)])):
            ids = slow("cat, dog", truncation=length is not None, max_length=length)["input_ids"]
            assert piece_spans("cat, dog", slow, name, ids) == [(0, 0)] * first + spans + [(0, 0)], name


def test_unknown_pieces_stay_in_their_own_words(tokenizers):
    slow = WithoutOffsets(tokenizers["bert"])
    ids = slow("🐱 🐶 cat")["input_ids"]
    assert piece_spans("🐱 🐶 cat", slow, "bert", ids) == [(0, 0), (0, 1), (2, 3), (4, 7), (0, 0)]


def test_added_tokens_must_be_recognisable(tokenizers):
    slow = WithoutOffsets(tokenizers["clip"])
    with pytest.raises(AlignmentError, match="around the ids"):
        piece_spans("cat", slow, "clip", [1, 2, 3])


@pytest.mark.parametrize("word, pieces", [("zebra", 5), ("andzq", 5), ("qthe", 2)])
def test_articles_are_whole_words_only(tokenizers, word, pieces):
    """A piece that reads "a" or "the" at either end of a longer word belongs to it."""
    found = annotate(f"{word}, the sky", [[], [word]], [1], tokenizers["clip"], add_background=False, add_missing=False)
    assert found.existent_objects == {1: list(range(1, 1 + pieces))}
    assert found.background_objects == [[pieces + 3]]  # a comma and "the" lie between
