"""Theme, CSS and HTML snippets of the page (system fonts only)."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import gradio as gr

from goca.drawing.legend import Entry
from goca.drawing.palettes import as_hex

FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
Colour = tuple[int, int, int]
MONO = ["ui-monospace", "Menlo", "Consolas", "monospace"]
CSS = """
.gradio-container { width: 100% !important; max-width: 1180px !important; margin: 0 auto !important; }
#goca-title h1 { font-size: 1.5rem; font-weight: 650; margin: 0; }
#goca-title p { margin: .15rem 0 0; color: var(--body-text-color-subdued); }
.goca-about p { color: var(--body-text-color-subdued); font-size: .9rem; line-height: 1.45; margin: 0; }
.goca-fill img { width: 100%; height: 100%; object-fit: contain; }
.goca-result .empty::after { content: "The result appears here."; color: var(--body-text-color-subdued); }
.goca-result .empty { flex-direction: column; gap: .4rem; }
.goca-maps .grid-wrap { height: auto !important; min-height: 0 !important; max-height: none !important; padding: 0; }
.goca-maps .grid-container { grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) !important; padding: 0;
  grid-template-rows: none !important; grid-auto-rows: auto !important; height: auto !important; align-items: start; }
.goca-maps .gallery-item { height: auto !important; }
.goca-maps .thumbnail-item { aspect-ratio: auto !important; height: auto !important; cursor: default; }
.goca-maps .caption-label { position: static !important; max-width: none !important; border: 0 !important;
  text-align: left; white-space: normal !important; }
.goca-maps .thumbnail-item img { height: auto !important; object-fit: contain !important; }
.tabs button.selected { color: var(--body-text-color); font-weight: 600; }
.goca-heading { font-size: .9rem; font-weight: 600; margin: .4rem 0 0; color: var(--body-text-color); }
.goca-said { font-size: .92rem; line-height: 1.45; border-left: 3px solid var(--border-color-primary);
  padding: .1rem .75rem; color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
.goca-said.goca-error { border-color: #c2410c; color: var(--body-text-color); }
.goca-maps .gallery-container:has(.preview) { height: 26rem !important; }
.goca-maps .gallery-container:has(.preview) .grid-wrap { visibility: hidden; }
#goca-examples th, #goca-examples td { white-space: normal; }
#goca-examples table { width: 100%; min-width: 0; }
.goca-progress { appearance: none; display: block; width: 100%; height: .5rem; margin: .35rem 0 .2rem; border: 0;
  border-radius: .25rem; overflow: hidden; background: rgb(128 128 128 / .16); }
.goca-progress::-webkit-progress-bar { background: transparent; }
.goca-progress::-webkit-progress-value { background: var(--primary-600); }
.goca-progress::-moz-progress-bar { background: var(--primary-600); }
.goca-progress:indeterminate { animation: goca-going 1.6s linear infinite; background-size: 40% 100%;
  background-repeat: no-repeat; background-image: linear-gradient(var(--primary-600), var(--primary-600)); }
.goca-progress:indeterminate::-moz-progress-bar { background: transparent; }
@keyframes goca-going { from { background-position: -70% 0; } to { background-position: 170% 0; } }
@media (prefers-reduced-motion: reduce) { .goca-progress:indeterminate { animation: none; } }
.goca-legend { list-style: none; margin: 0; padding: 0; }
.goca-legend li { display: grid; grid-template-columns: 1rem minmax(6rem, 1fr) 2fr 3.6rem; gap: .7rem;
  align-items: center; padding: .28rem 0; color: var(--body-text-color); font-size: .95rem; }
.goca-legend .swatch { width: 1rem; height: 1rem; border-radius: 3px; border: 1px solid rgb(128 128 128 / .55); }
.goca-legend .word { overflow-wrap: anywhere; }
.goca-legend .bar { height: .4rem; border-radius: .2rem; background: rgb(128 128 128 / .16); overflow: hidden; }
.goca-legend .bar span { display: block; height: 100%; background: var(--neutral-400); }
.goca-legend .share { text-align: right; font-variant-numeric: tabular-nums; }
"""
# Accessibility fixes for Gradio: the Tab key skips its open list of choices (otherwise the list closes and the focus
# moves to the page's body), and the example images get alternative texts.
FIXES = """() => {
  const fix = () => {
    for (const list of document.querySelectorAll("[role=listbox]")) list.tabIndex = -1;
    for (const image of document.querySelectorAll("#goca-examples tr img"))
      image.alt = "Example: " + image.closest("tr").innerText.trim();
  };
  new MutationObserver(fix).observe(document.body, {childList: true, subtree: true});
  fix();
}"""


def look() -> dict[str, Any]:
    """Arguments of `Blocks.launch`."""
    theme = gr.themes.Default(primary_hue="sky", neutral_hue="slate", radius_size="sm", font=FONT, font_mono=MONO)
    pale, pale_dark = "*neutral_600", "*neutral_400"  # contrast of at least 4.5 : 1 with the page's background
    theme.set(
        body_text_color_subdued=pale,
        body_text_color_subdued_dark=pale_dark,
        block_info_text_color=pale,
        block_info_text_color_dark=pale_dark,
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
    )
    return {"theme": theme, "css": CSS, "js": FIXES, "footer_links": []}


def heading(text: str) -> str:
    return f'<h2 class="goca-heading">{escape(text)}</h2>'


def legend(entries: Sequence[Entry]) -> str:
    """The legend: swatch, word, and share of the image."""
    lines = (line(entry.name, entry.colour, entry.share, f"{entry.share:.1%}") for entry in entries)
    return f'<p class="goca-heading">Areas</p><ul class="goca-legend" aria-label="Legend">{"".join(lines)}</ul>'


def ranked(where: str, scores: Sequence[tuple[str, Colour | None, float]]) -> str:
    """The words at a point with their scores, highest first."""
    lines = (line(word, colour, min(max(score, 0), 1), f"{score:.2f}") for word, colour, score in scores)
    return (
        f'<p class="goca-heading">{escape(where)}</p><ol class="goca-legend" aria-label="Scores">{"".join(lines)}</ol>'
    )


def line(word: str, colour: Colour | None, share: float, text: str) -> str:
    """One line: swatch, word, a bar of length `share`, and a number as text."""
    shown = as_hex(colour) if colour else "transparent"
    bar = f'<span style="width:{share:.2%};{f"background:{shown}" if colour else ""}"></span>'
    return (
        f'<li><span class="swatch" style="background:{shown}"></span><span class="word">{escape(word)}</span>'
        f'<span class="bar">{bar}</span><span class="share">{text}</span></li>'
    )


def going(text: str, steps: tuple[int, int] | None = None) -> str:
    """The progress as a text and a bar; if steps (done, all) are given, with their number."""
    done = f' value="{steps[0]}" max="{steps[1]}"' if steps else ""
    count = f", step {steps[0]} of {steps[1]}" if steps else ""
    return (
        f'<div class="goca-said" role="status">{escape(text)}{count}'
        f'<progress class="goca-progress" aria-label="{escape(text)}"{done}></progress></div>'
    )


def said(remarks: Sequence[str], error: str = "") -> str:
    """Remarks on a result, or an error; "" if there are neither."""
    lines = "<br>".join(map(escape, [error] if error else remarks))
    kind, role = (" goca-error", "alert") if error else ("", "status")
    return f'<div class="goca-said{kind}" role="{role}">{lines}</div>' if lines else ""
