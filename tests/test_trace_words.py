"""Words of a prompt, as their tokens in a trace."""

import pytest
import tiny
from goca.prompts.words import PromptWords, WordNotFound
from transformers import CLIPTokenizer


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers") / "clip"
    tiny.save_tokenizer(folder)
    return CLIPTokenizer.from_pretrained(folder)


@pytest.mark.parametrize(
    "prompt, word, positions",
    [
        ("cat, dog, cat", "cat", [1, 5]),  # every occurrence
        ("Cat and dog", "DOG", [5]),  # 'and' is spelt in three
        ("cat dog, sky", "cat  dog", [1, 2]),
        ("cow cat", "cow", [1, 2, 3]),
    ],
)
def test_tokens_of_words(clip, prompt, word, positions):
    assert PromptWords(prompt, clip).positions(word) == positions


def test_content_words_and_classes(clip):
    words = PromptWords("a cat on the wall, cat", clip)
    assert list(words.content) == ["cat", "wall"]
    annotation, names = words.annotation(["wall"])
    assert names == {1: "wall"} and annotation.background_objects == [words.positions("cat")]
    assert annotation.rescaling_token_id == sorted(words.positions("cat") + words.positions("wall"))
    with pytest.raises(WordNotFound, match="'sky' was cut off"):
        PromptWords("cat " * 10 + "sky", clip).positions("sky")
