"""Prompts that a language model reads: words are found inside templates, whatever is around them, on either side."""

import pytest
from diffusion_feature import ExtractorError
from diffusion_feature.chat import PromptReader, Template, bare, between, chat, piece_spans
from goca.prompts import CaptionError, annotate
from goca.prompts.tokens import tokenise
from goca.prompts.words import PromptWords
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import WORDS
from tiny_chat import ROLES, save_language_tokenizer
from transformers import AutoTokenizer

BEFORE, AFTER = "<|im_start|>system\nDescribe the cat and the sky:<|im_end|>\n", "<|im_end|>\n a dog"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers") / "one"
    save_language_tokenizer(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers") / "left"
    save_language_tokenizer(folder, left=True, start=ROLES[0])
    return AutoTokenizer.from_pretrained(folder)


TEMPLATES = {
    "bare": Template(bare, length=200),
    "between": Template(between(BEFORE, AFTER), length=200, drop=3),
    "chat": Template(chat("You see a cat.", before="Draw: "), length=200, multiple=16),
    "kept": Template(between(BEFORE, AFTER), length=200, keep=1, drop=lambda tokenizer: 4),
    "left": Template(between(BEFORE, AFTER), length=200, drop=2, fixed=True, left=True),
    "pieces": Template(bare, length=200, pieces=lambda text: [text[:3], text[3:]]),
}


@pytest.mark.parametrize("name", TEMPLATES)
@settings(deadline=None, max_examples=30)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5), mark=st.sampled_from([", ", " ", " on the "]))
def test_every_word_is_found_at_its_own_tokens(tokenizer, name, words, mark):
    """The template's own cat, sky and dog are not; spans read as what the tokens say."""
    reader, prompt = PromptReader(tokenizer, TEMPLATES[name]), mark.join(words)
    encoded = reader(prompt)
    found = PromptWords(prompt, reader)
    ids = encoded["input_ids"]
    for word in set(words):
        tokens = found.positions(word)
        text = "".join(prompt[slice(*encoded["offset_mapping"][token])] for token in tokens)
        assert text.replace(" ", "") == word * words.count(word)
        assert tokenizer.decode([ids[token] for token in tokens]).replace(" ", "") == word * words.count(word)
    assert set(found.content_tokens) <= {at for at, span in enumerate(encoded["offset_mapping"]) if span != (0, 0)}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_and_padding_are_special(tokenizer, name):
    reader = PromptReader(tokenizer, TEMPLATES[name])
    tokens = tokenise("cat, sky", [reader], [None])
    inside = [token for token in tokens if token.span != (0, 0)]
    assert {token.kind for token in tokens if token.span == (0, 0)} <= {"special", "global"}
    assert all(token.kind == "word" for token in inside if "cat, sky"[slice(*token.span)].strip())
    assert "".join("cat, sky"[slice(*token.span)] for token in inside) == "cat, sky"
    assert sum(token.kind == "global" for token in tokens) <= 1


def test_positions_count_from_the_first_token_that_is_given(tokenizer):
    """Against the whole text, tokenised at once."""
    template = TEMPLATES["between"]
    whole = tokenizer(BEFORE + "cat, grass" + AFTER)["input_ids"]
    assert PromptReader(tokenizer, template)("cat, grass")["input_ids"] == whole[3:]


def test_padding_on_the_left_moves_words(left):
    template = Template(bare, length=64, multiple=16, left=True)
    for given_, expected in ((None, 16), (16, 16), (32, 32)):
        reader = PromptReader(left, template, given_)
        ids = reader("cat, grass")["input_ids"]
        assert len(ids) == expected and reader.decode(ids[-4:]) == "cat, grass"
        assert PromptWords("cat, grass", reader).positions("cat") == [expected - 4]


def test_a_prompt_that_a_template_cleans(tokenizer):
    template = Template(lambda tokenizer, prompt: BEFORE + " ".join(prompt.split()), length=200)
    reader = PromptReader(tokenizer, template)
    prompt = "  cat,   grass\n and  sky "
    found = PromptWords(prompt, reader)
    encoded = reader(prompt)
    assert list(found.content) == ["cat", "grass", "sky"]
    for word, tokens in found.content.items():
        assert "".join(prompt[slice(*encoded["offset_mapping"][token])] for token in tokens).strip() == word


def test_what_is_cut_is_told(tokenizer):
    reader = PromptReader(tokenizer, Template(between(BEFORE), length=60))
    long = ", ".join(["cat"] * 40)
    lost = reader.cut(long)
    assert lost and long.endswith(lost) and reader.cut("cat, sky") == ""
    with pytest.raises(ExtractorError, match="given 9 text tokens where the prompt makes"):
        PromptReader(tokenizer, TEMPLATES["bare"], given=9).refuse_other_length(["cat"])


def test_a_bare_tokenizer_of_a_language_model_is_refused(tokenizer):
    with pytest.raises(CaptionError, match="depend on the template around the prompt"):
        annotate("cat", [[], ["cat"]], [1], tokenizer, add_background=False, add_missing=False)


def test_pieces_of_a_sentencepiece_model():
    pieces = ["[gMASK]", "sop", "\u2581cat", ",", "\u2581", "gr", "ass", "<unk>", "\u2581sky"]
    spans = piece_spans(pieces, "cat, grass sky")
    assert spans == [(0, 0), (0, 0), (0, 3), (3, 4), (0, 0), (5, 7), (7, 10), (0, 0), (11, 14)]


def test_a_processor_s_own_tokenizer_is_read(tokenizer):
    """Models that see images too come with a processor, which holds the tokenizer and may hold the chat template."""

    class Processor:
        image_processor = object()

        def __init__(self):
            self.tokenizer = tokenizer

        def apply_chat_template(self, messages, **options):
            return BEFORE + messages[-1]["content"] + AFTER

    reader = PromptReader(Processor(), Template(chat(), length=100))
    ids = reader("cat, sky")["input_ids"]
    assert ids == tokenizer(BEFORE + "cat, sky" + AFTER)["input_ids"]
    assert [ids[token] for token in PromptWords("cat, sky", reader).positions("cat")] == tokenizer("cat")["input_ids"]
