"""Read a user's prompt: "cat, (tree, trunk), sky" -> token positions of the classes cat, tree and sky."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from goca.errors import GocaError
from goca.open.query import NoClass
from goca.prompts.annotation import PromptAnnotation
from goca.prompts.captioning import annotate
from goca.prompts.grammar import is_background, names_no_class, parse_brackets
from goca.prompts.learnt import LearntTokens
from goca.prompts.weighting import blanked
from goca.protocol import Protocol

Prompt = str | Sequence[str] | PromptAnnotation


class PromptError(GocaError, ValueError):
    """The prompt has an unknown type, or the numbers of prompts and images differ."""


def check_prompt(prompt: Any) -> None:
    """Raise PromptError for anything but a text, a list of texts or an annotation."""
    words = prompt if isinstance(prompt, list | tuple) else [prompt]
    if not isinstance(prompt, PromptAnnotation) and not all(isinstance(word, str) for word in words):
        shown = text if len(text := repr(prompt)) <= 80 else f"{text[:77]}..."
        raise PromptError(
            f"the prompt is {shown}; expected a text such as 'cat, grass, wall', a list of words, or a "
            "PromptAnnotation: one for an image, a list of them for a list of images"
        )


def prompts_per_image(prompt: Any, images: int) -> list[Any]:
    """Return one prompt per image, from a list or from one for all. Raises PromptError."""
    prompts = list(prompt) if isinstance(prompt, list | tuple) else [prompt] * images
    if len(prompts) != images:
        raise PromptError(f"{images} images and {len(prompts)} prompts; expected one prompt per image, or one for all")
    for each in prompts:
        check_prompt(each)
    return prompts


def read_prompt(
    prompt: Prompt, tokenizers: dict[str, Any], protocol: Protocol
) -> tuple[PromptAnnotation, dict[int, str]]:
    """Annotate a prompt and return the names of its classes.

    Every entity of a text becomes a class, except "background", whose tokens belong to the background.

    prompt      "(tree, trunk), sky" has the classes tree and sky: brackets hold the words of one class
    tokenizers  the tokenizer arguments of `annotate`
    Raises PromptError; NoClass if the prompt contains no class names.
    """
    if isinstance(prompt, PromptAnnotation):
        return prompt, {class_id: f"class {class_id}" for class_id in prompt.existent_objects}
    check_prompt(prompt)
    prompt = prompt if isinstance(prompt, str) else ", ".join(prompt)
    learnt = LearntTokens.of(**tokenizers)
    found = parse_brackets(learnt.hide(blanked(prompt), any_case=True).lower())
    groups = {group[0]: group for group in found[::-1]}  # if two groups have the same name, the first counts
    if names_no_class(groups.values()):
        raise NoClass.of(prompt)
    texts = [", ".join(groups[name]) for name in reversed(groups)]
    class_names = [name for name in reversed(groups) if not is_background(name)]
    names = {class_id: learnt.show(name) for class_id, name in enumerate(class_names, start=1)}
    annotation = annotate(
        learnt.show(", ".join(f"({text})" if "," in text else text for text in texts)),
        [[], *([name] for name in names.values())],
        list(names),
        **tokenizers,
        add_background=False,
        add_missing=False,
        protocol=protocol,
    )
    return annotation, names
