"""The page itself: its inputs, outputs and buttons."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from goca.app.models import Choice, Models, known_models
from goca.app.panel import Panel
from goca.app.runs import Result, Settings, generate, segment, unknown
from goca.app.theme import said
from goca.cli.models import EMBEDDED, embedded_words
from goca.embedded import resolve

TITLE = """# GoCA
Where each word is in an image, read off the attention of a text-to-image model."""
EXAMPLES = {  # of the embedded scenes
    "test_00007.png": "house, sky, car, road",
    "test_00000.png": "star, snow, wall",
    "test_00005.png": "forest, fish, grass",
    "test_00006.png": "sand, mushroom, forest",
}
PROMPTS = ("house, grass, sky", "fish, sand, water", "mushroom, forest, snow")
HOUR, DAY = 3600, 86400


def make_page(models: Models, choice: Choice | None = None) -> gr.Blocks:
    """Build the page; `choice` is the model that is selected at first."""
    start = choice or Choice(EMBEDDED)
    with gr.Blocks(title="GoCA", analytics_enabled=False, delete_cache=(HOUR, DAY)) as page:
        gr.Markdown(TITLE, elem_id="goca-title")
        with gr.Row(equal_height=True):
            model = gr.Dropdown(
                known_models(), value=start.model, label="Model", scale=1, min_width=220, elem_id="goca-model"
            )
            place = place_of(models, start)
        description = gr.HTML(about(start.model, start.place), elem_classes="goca-about", padding=False)
        gr.on(
            [model.change, place.change],
            about,
            [model, place],
            description,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        with gr.Tab("Your image"):
            image_tab(models, model, place)
        with gr.Tab("A generated image"):
            generated_tab(models, model, place)
    return page.queue(default_concurrency_limit=4)


def place_of(models: Models, start: Choice) -> gr.Textbox | gr.Dropdown:
    """The input for the pipeline: a text field, or a list of the offered ones."""
    look: dict[str, Any] = {"scale": 2, "min_width": 260, "elem_id": "goca-place"}
    if models.places is None:
        return gr.Textbox(start.place, label="Pipeline folder or hub id", placeholder="the model's own", **look)
    offered = [("the model's own", ""), *((place, place) for place in models.places)]
    return gr.Dropdown(offered, value=start.place, label="Pipeline", **look)


def about(model: str, place: str | None) -> str:
    """A description of the chosen model, as HTML."""
    return f"<p>{escape(described(Choice(model, place or '')))}</p>"


def described(choice: Choice) -> str:
    if choice.embedded:
        return (
            f"The embedded model needs no download, and knows only its own drawn scenes and these words: "
            f"{', '.join(embedded_words(choice.embedded))}. For photographs choose another model."
        )
    return (
        f"Read from {choice.pipeline} when it is first used: a folder of the machine that serves this page, or the "
        "hub. Any words will do."
    )


def image_tab(models: Models, model: gr.Dropdown, place: gr.Textbox | gr.Dropdown) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            image = gr.Image(
                label="Image",
                type="filepath",
                height=300,
                sources=["upload", "clipboard"],
                buttons=[],
                alt_text="The image to be segmented",
                elem_id="goca-image",
                elem_classes="goca-fill",
            )
            # pass on the original file, not one opened by Gradio: `read_image` reads it and reports what is wrong
            setattr(image, "preprocess", lambda given: None if given is None else given.path)  # noqa: B010
            words = gr.Textbox(
                label="Words, separated by commas",
                placeholder="cat, grass, wall",
                max_lines=3,
                info="What is looked for; the rest is background.",
                elem_id="goca-words",
            )
            list_unknown_words(words, model, place, "image")
            run = gr.Button("Segment", variant="primary", elem_id="goca-segment")
            folder = Path(resolve("goca:scenes")) / "JPEGImages"
            gr.Examples(
                [[str(folder / file), text] for file, text in EXAMPLES.items()],
                [image, words],
                label="Examples, for the embedded model",
                elem_id="goca-examples",
                api_visibility="private",
            )
        panel = Panel.make("image")

    def work(
        model: str, place: str | None, file: str | None, words: str, threshold: float, kept: Any
    ) -> Iterator[dict[Any, Any]]:
        choice = Choice(model, place or "")
        yield from panel.follow(lambda say: segment(models, choice, file, words, say), threshold, kept)

    panel.wire([run.click, words.submit], work, [model, place, image, words])


def list_unknown_words(text: gr.Textbox, model: gr.Dropdown, place: gr.Textbox | gr.Dropdown, name: str) -> None:
    """List, below the text and before a run, the words that the chosen model does not know."""
    unknown_words = gr.HTML(visible=False, elem_id=f"goca-{name}-unknown", padding=False)

    def list_unknown(text: str, model: str, place: str | None) -> gr.HTML:
        words = unknown(Choice(model, place or ""), text)
        return gr.HTML(said([words]), visible=bool(words))

    gr.on(
        [text.change, model.change, place.change],
        list_unknown,
        [text, model, place],
        unknown_words,
        show_progress="hidden",
        trigger_mode="always_last",
        queue=False,
        api_visibility="private",
    )


def generated_tab(models: Models, model: gr.Dropdown, place: gr.Textbox | gr.Dropdown) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            prompt = gr.Textbox(label="Prompt", placeholder=PROMPTS[0], max_lines=4, elem_id="goca-prompt")
            words = gr.Textbox(
                label="Words to show",
                placeholder="all words of the prompt that name something",
                info="Some of the prompt's, separated by commas.",
                elem_id="goca-shown",
            )
            list_unknown_words(prompt, model, place, "generated")
            settings = generation_settings()
            run = gr.Button("Generate", variant="primary", elem_id="goca-generate")
            gr.Examples(
                [[text] for text in PROMPTS],
                [prompt],
                label="Examples, for the embedded model",
                api_visibility="private",
            )
            made = generated_image()
        panel = Panel.make("generated")

    def work(
        model: str,
        place: str,
        prompt: str,
        words: str,
        seed: int,
        steps: int,
        guidance: float,
        threshold: float,
        kept: Any,
    ) -> Iterator[dict[Any, Any]]:
        choice = Choice(model, place or "")
        yield from panel.follow(
            lambda say: generate(models, choice, prompt, words, Settings(seed, steps, guidance), say),
            threshold,
            kept,
            image_of,
        )

    def image_of(result: Result) -> dict[Any, Any]:
        return {made: gr.Image(result.segmentation.image, visible=True)} if result.segmentation else {}

    panel.wire([run.click, prompt.submit, words.submit], work, [model, place, prompt, words, *settings], [made])


def generation_settings() -> list[gr.Number]:
    """Fields for the seed, the number of denoising steps and the guidance scale."""
    with gr.Row():
        return [
            gr.Number(0, label="Seed", precision=0, min_width=90, elem_id="goca-seed"),
            gr.Number(30, label="Steps", precision=0, min_width=90, elem_id="goca-steps"),
            gr.Number(4.0, label="Guidance", step=0.5, min_width=90, elem_id="goca-guidance"),
        ]


def generated_image() -> gr.Image:
    """The place of the generated image, hidden until there is one."""
    return gr.Image(
        label="Generated image",
        visible=False,
        interactive=False,
        height=300,
        format="png",
        buttons=["download"],
        alt_text="The generated image",
        elem_id="goca-made",
        elem_classes="goca-fill",
    )
