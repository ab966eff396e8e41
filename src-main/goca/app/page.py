"""The page itself: what can be given, what is shown, and which button does what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from goca.app.drawing import at_page_size, decided, word_maps
from goca.app.models import Choice, Models, known_models
from goca.app.runs import Result, Settings, attempt, generate, segment
from goca.app.theme import heading, legend, said
from goca.cli.segment import EMBEDDED, embedded_words
from goca.embedded import resolve

TITLE = """# GoCA
Where each word is in a picture, read off the attention of a text-to-image model."""
EXAMPLES = {  # of the embedded scenes
    "test_00007.png": "house, sky, car, road",
    "test_00000.png": "star, snow, wall",
    "test_00005.png": "forest, fish, grass",
    "test_00006.png": "sand, mushroom, forest",
}
PROMPTS = ("house, grass, sky", "fish, sand, water", "mushroom, forest, snow")
BELOW = "Added to what the background scores: the higher, the more of the picture is left as background."
HOUR, DAY = 3600, 86400


def make_page(models: Models, choice: Choice | None = None) -> gr.Blocks:
    """The page, to be launched; `choice` is what it opens with."""
    start = choice or Choice(EMBEDDED)
    with gr.Blocks(title="GoCA", analytics_enabled=False, delete_cache=(HOUR, DAY)) as page:
        gr.Markdown(TITLE, elem_id="goca-title")
        with gr.Row(equal_height=True):
            model = gr.Dropdown(
                known_models(), value=start.model, label="Model", scale=1, min_width=220, elem_id="goca-model"
            )
            place = place_of(models, start)
        told = gr.HTML(about(start.model, start.place), elem_classes="goca-about", padding=False)
        gr.on(
            [model.change, place.change],
            about,
            [model, place],
            told,
            show_progress="hidden",
            queue=False,
            api_visibility="private",
        )
        with gr.Tab("Your picture"):
            picture_tab(models, model, place)
        with gr.Tab("A generated picture"):
            generated_tab(models, model, place)
    return page.queue(default_concurrency_limit=4)


def place_of(models: Models, start: Choice) -> gr.Textbox | gr.Dropdown:
    """Where the pipeline is chosen: typed, or one of those that are offered."""
    look: dict[str, Any] = {"scale": 2, "min_width": 260, "elem_id": "goca-place"}
    if models.places is None:
        return gr.Textbox(start.place, label="Pipeline folder or hub id", placeholder="the model's own", **look)
    offered = [("the model's own", ""), *((place, place) for place in models.places)]
    return gr.Dropdown(offered, value=start.place, label="Pipeline", **look)


def about(model: str, place: str | None) -> str:
    """What the chosen model is and knows, as HTML."""
    return f"<p>{escape(described(Choice(model, place or '')))}</p>"


def described(choice: Choice) -> str:
    if choice.embedded:
        return (
            f"The embedded model needs no download, and knows only its own drawn scenes and these words: "
            f"{', '.join(embedded_words(choice.name))}. For photographs choose another model."
        )
    return (
        f"Read from {choice.pipeline} when it is first used: a folder of the machine that serves this page, or the "
        "hub. Any words will do."
    )


def picture_tab(models: Models, model: gr.Dropdown, place: gr.Textbox | gr.Dropdown) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=300):
            picture = gr.Image(
                label="Picture",
                type="filepath",
                height=300,
                sources=["upload", "clipboard"],
                buttons=[],
                elem_id="goca-picture",
                elem_classes="goca-fill",
            )
            # the file as it was given, not opened by Gradio: `read_image` reads it, and says what is wrong with it
            setattr(picture, "preprocess", lambda given: None if given is None else given.path)  # noqa: B010
            words = gr.Textbox(
                label="Words, separated by commas",
                placeholder="cat, grass, wall",
                max_lines=3,
                info="What is looked for; the rest is background.",
                elem_id="goca-words",
            )
            run = gr.Button("Segment", variant="primary", elem_id="goca-segment")
            told = gr.HTML(visible=False, elem_id="goca-picture-said", padding=False)
            folder = Path(resolve("goca:scenes")) / "JPEGImages"
            gr.Examples(
                [[str(folder / file), text] for file, text in EXAMPLES.items()],
                [picture, words],
                label="Examples, for the embedded model",
                api_visibility="private",
            )
        panel = Panel.make("picture", told)

    def work(model: str, place: str | None, file: str | None, words: str, threshold: float) -> dict[Any, Any]:
        return panel.show(attempt(lambda: segment(models, Choice(model, place or ""), file, words)), threshold)

    panel.wire([run.click, words.submit], work, [model, place, picture, words])


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
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, min_width=90, elem_id="goca-seed")
                steps = gr.Number(30, label="Steps", precision=0, min_width=90, elem_id="goca-steps")
                guidance = gr.Number(4.0, label="Guidance", step=0.5, min_width=90, elem_id="goca-guidance")
            run = gr.Button("Generate", variant="primary", elem_id="goca-generate")
            told = gr.HTML(visible=False, elem_id="goca-generated-said", padding=False)
            gr.Examples(
                [[text] for text in PROMPTS],
                [prompt],
                label="Examples, for the embedded model",
                api_visibility="private",
            )
            made = gr.Image(
                label="Generated picture",
                visible=False,
                interactive=False,
                height=300,
                format="png",
                buttons=["download"],
                elem_id="goca-made",
                elem_classes="goca-fill",
            )
        panel = Panel.make("generated", told)

    def work(
        model: str, place: str, prompt: str, words: str, seed: int, steps: int, guidance: float, threshold: float
    ) -> dict[Any, Any]:
        result = attempt(
            lambda: generate(models, Choice(model, place or ""), prompt, words, Settings(seed, steps, guidance))
        )
        picture = result.segmentation.image if result.segmentation else None
        return {**panel.show(result, threshold), made: gr.Image(picture, visible=picture is not None)}

    events, settings = [run.click, prompt.submit, words.submit], [seed, steps, guidance]
    panel.wire(events, work, [model, place, prompt, words, *settings], [made])


@dataclass(frozen=True)
class Panel:
    """A result: overlay, legend, slider, word maps. Its scores are kept, so that the slider needs no model."""

    told: gr.HTML
    overlay: gr.Image
    details: gr.Column
    legend: gr.HTML
    threshold: gr.Slider
    maps: gr.Gallery
    kept: gr.State

    @classmethod
    def make(cls, name: str, told: gr.HTML) -> Panel:
        with gr.Column(scale=3, min_width=300):
            overlay = gr.Image(
                label="Words over the picture",
                show_label=False,
                interactive=False,
                height=420,
                format="png",
                buttons=["download", "fullscreen"],
                alt_text="Words over the picture",
                elem_id=f"goca-{name}-overlay",
                elem_classes="goca-result goca-fill",
            )
            with gr.Column(visible=False) as details:
                shown = gr.HTML(elem_id=f"goca-{name}-legend", padding=False)
                threshold = gr.Slider(
                    -0.4,
                    1,
                    value=0,
                    step=0.05,
                    label="Background threshold",
                    info=BELOW,
                    elem_id=f"goca-{name}-threshold",
                )
                gr.HTML(heading("Word maps"), padding=False)
                maps = gr.Gallery(
                    label="Word maps",
                    show_label=False,
                    height="auto",
                    format="png",
                    interactive=False,
                    allow_preview=False,
                    container=False,
                    buttons=[],
                    elem_id=f"goca-{name}-maps",
                    elem_classes="goca-maps",
                )
        return cls(told, overlay, details, shown, threshold, maps, gr.State(time_to_live=DAY))

    def wire(self, events: list[Any], work: Any, inputs: list[Any], more: Sequence[Any] = ()) -> None:
        """`work` runs on the events, one at a time in the whole page; the slider shows the kept result anew.

        more   outputs of `work` beside the panel's
        """
        outputs = [self.told, self.overlay, self.details, self.legend, self.maps, self.kept, *more]
        gr.on(
            events,
            work,
            [*inputs, self.threshold],
            outputs,
            concurrency_limit=1,
            concurrency_id="model",
            show_progress_on=[self.overlay],
            trigger_mode="once",
            api_visibility="private",
        )
        self.threshold.change(
            redraw,
            [self.kept, self.threshold],
            [self.overlay, self.legend],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )

    def show(self, result: Result, threshold: float) -> dict[Any, Any]:
        """What each part of the panel becomes; after an error the words of it alone."""
        if result.segmentation is None:
            return {
                self.told: gr.HTML(said([], result.error), visible=True),
                self.overlay: None,
                self.details: gr.Column(visible=False),
                self.kept: None,
            }
        kept = at_page_size(result.segmentation)
        picture, entries = decided(kept, threshold)
        return {
            self.told: gr.HTML(said(result.remarks), visible=bool(result.remarks)),
            self.overlay: picture,
            self.details: gr.Column(visible=True),
            self.legend: legend(entries),
            self.maps: word_maps(kept),
            self.kept: kept,
        }


def redraw(kept: Any, threshold: float) -> tuple[Any, str]:
    """Overlay and legend of a kept result at another threshold."""
    if kept is None:
        return None, ""
    picture, entries = decided(kept, threshold)
    return picture, legend(entries)
