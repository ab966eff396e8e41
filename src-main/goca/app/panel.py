"""A result on the page: progress, overlay, legend, threshold, ranking at a click, files, word maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any

import gradio as gr
import numpy as np

from goca.app.downloads import KINDS, write_kind
from goca.app.drawing import Kept, at_page_size, decided, described, word_maps
from goca.app.models import Say
from goca.app.runs import Result, attempt
from goca.app.theme import going, heading, legend, ranked, said

BELOW = "Added to what the background scores: the higher, the more of the image is left as background."
CLICK = "A click on the result shows how the words score at that place."
STILL = "Shown is still the result before it."
DAY = 86400
# on a phone the result is below the form
TO_RESULT = "() => {{ if (innerWidth < 720) document.getElementById('{id}').scrollIntoView({{behavior: 'smooth'}}); }}"
SAVE = """(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.href = file.url; link.download = file.orig_name; link.click();
}"""


@dataclass(frozen=True)
class Panel:
    """The parts of a result. Its scores are stored, so the slider, a click and a download need no model."""

    name: str
    message: gr.HTML
    overlay: gr.Image
    details: gr.Column
    legend: gr.HTML
    threshold: gr.Slider
    place: gr.HTML
    maps: gr.Gallery
    kept: gr.State

    @classmethod
    def make(cls, name: str) -> Panel:
        kept = gr.State(time_to_live=DAY)
        with gr.Column(scale=3, min_width=300, elem_id=f"goca-{name}-result"):
            message = gr.HTML(visible=False, elem_id=f"goca-{name}-said", padding=False)
            overlay = gr.Image(
                label="Words over the image",
                show_label=False,
                interactive=False,
                height=420,
                format="png",
                buttons=["download", "fullscreen"],
                alt_text="No result yet",
                elem_id=f"goca-{name}-overlay",
                elem_classes="goca-result goca-fill",
            )
            with gr.Column(visible=False) as details:
                place = gr.HTML(said([CLICK]), elem_id=f"goca-{name}-place", padding=False)
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
                with gr.Row():
                    for kind, label in KINDS.items():
                        offer(name, kind, label, kept, threshold)
                gr.HTML(heading("Word maps"), padding=False)
                maps = gr.Gallery(
                    label="Word maps",
                    show_label=False,
                    height="auto",
                    format="png",
                    interactive=False,
                    container=False,
                    buttons=["download", "fullscreen"],
                    elem_id=f"goca-{name}-maps",
                    elem_classes="goca-maps",
                )
        return cls(name, message, overlay, details, shown, threshold, place, maps, kept)

    def wire(self, events: list[Any], work: Any, inputs: list[Any], more: Sequence[Any] = ()) -> None:
        """Run `work` on the events, one run at a time in the whole page; all other events redraw the stored result.

        work   takes the inputs, the threshold and the stored result, and yields updates like `follow`
        more   further outputs of `work` besides those of the panel
        """
        parts = [self.overlay, self.details, self.legend, self.threshold, self.place, self.maps, self.kept]
        scroll: dict[str, Any] = {"js": TO_RESULT.format(id=f"goca-{self.name}-result"), "api_visibility": "private"}
        gr.on(events, None, None, None, **scroll)
        ended = gr.on(
            events,
            work,
            [*inputs, self.threshold, self.kept],
            [self.message, *parts, *more],
            concurrency_limit=1,
            concurrency_id="model",
            show_progress_on=[self.overlay],
            trigger_mode="once",
            api_visibility="private",
        )
        ended.then(None, None, None, **scroll)  # the page has grown
        self.threshold.change(
            redraw,
            [self.kept, self.threshold],
            [self.overlay, self.legend, self.place],
            show_progress="hidden",
            trigger_mode="always_last",
            api_visibility="private",
        )
        self.overlay.select(
            at_click, [self.kept, self.threshold], self.place, show_progress="hidden", api_visibility="private"
        )

    def follow(
        self,
        work: Callable[[Say], Result],
        threshold: float,
        kept: Kept | None,
        more: Callable[[Result], dict[Any, Any]] = lambda result: {},
    ) -> Iterator[dict[Any, Any]]:
        """Do the work in a thread: yields updates with the progress, and at the end the result."""
        heard: SimpleQueue[Any] = SimpleQueue()

        def say(text: str, steps: tuple[int, int] | None = None) -> None:
            heard.put(going(text, steps))

        Thread(target=lambda: heard.put(attempt(lambda: work(say))), daemon=True).start()
        while not isinstance(item := heard.get(), Result):
            yield {self.message: gr.HTML(item, visible=True)}
        yield {**self.show(item, threshold, kept), **more(item)}

    def show(self, result: Result, threshold: float, before: Kept | None) -> dict[Any, Any]:
        """The new value of each part of the panel; after an error only its message, and the previous result stays."""
        if result.segmentation is None:
            words = result.error if before is None else f"{result.error} {STILL}"
            return {self.message: gr.HTML(said([], words), visible=True)}
        shown = at_page_size(result.segmentation)
        if before is not None and not np.array_equal(before.segmentation.image, shown.image):
            threshold = 0
        size = result.segmentation.image_size or (shown.image.height, shown.image.width)
        kept = Kept(shown, size, result.name, result.record)
        overlay, words = drawn(kept, threshold)
        return {
            self.message: gr.HTML(said(result.remarks), visible=bool(result.remarks)),
            self.overlay: overlay,
            self.details: gr.Column(visible=True),
            self.legend: words,
            self.threshold: threshold,
            self.place: said([CLICK]),
            self.maps: gr.Gallery(word_maps(shown), selected_index=None),
            self.kept: kept,
        }


def drawn(kept: Kept, threshold: float) -> tuple[gr.Image, str]:
    image, entries = decided(kept.segmentation, threshold)
    return gr.Image(image, alt_text=described(entries)), legend(entries)


def redraw(kept: Kept | None, threshold: float) -> tuple[Any, Any, str]:
    """Overlay and legend of a stored result at another threshold; an earlier ranking is removed."""
    if kept is None:
        return None, "", ""
    return *drawn(kept, threshold), said([CLICK])


def at_click(kept: Kept | None, threshold: float, event: gr.SelectData) -> str:
    """The scores of all words at the clicked point, given in pixels of the original image."""
    if kept is None:
        return ""
    x, y = event.index
    shown = kept.segmentation
    across, down = kept.size[1] / shown.image.width, kept.size[0] / shown.image.height
    colours = {shown.classes()[class_id]: colour for class_id, colour in shown.colours().items() if class_id}
    found = shown.at(x, y, threshold)
    return ranked(
        f"Scores at x {int(x * across)}, y {int(y * down)}", [(word, colours.get(word), s) for word, s in found]
    )


def offer(name: str, kind: str, label: str, kept: gr.State, threshold: gr.Slider) -> None:
    """A button that writes one of the files and downloads it."""
    button = gr.Button(label, size="sm", min_width=120, elem_id=f"goca-{name}-{kind}")
    file = gr.DownloadButton(visible=False)
    made = button.click(
        partial(make_file, kind, file),
        [kept, threshold],
        file,
        show_progress="hidden",
        trigger_mode="once",
        api_visibility="private",
    )
    made.then(None, file, None, js=SAVE, api_visibility="private")


def make_file(kind: str, file: gr.DownloadButton, kept: Kept | None, threshold: float) -> str | None:
    """Write the file into Gradio's cache, which is served and cleared after a day; returns its path."""
    if kept is None:
        return None
    with TemporaryDirectory() as folder:
        return file.move_resource_to_block_cache(write_kind(kind, kept, threshold, Path(folder)))
