"""The figure of docs/app.md: the page of `goca app` in Chromium, after an example was segmented and its result clicked.

    python3 scripts/draw_page.py                       docs/app.png
    python3 scripts/draw_page.py --width 390 --out phone.png

Needs Chromium and the extras app and dev.
"""

from __future__ import annotations

import argparse
import sys
from io import BytesIO
from pathlib import Path

from goca.cli import make_parser
from goca.cli.app import serve
from goca.cli.machine import CHROMIUM, find_chromium
from goca.files.atomic import write_png
from PIL import Image
from playwright.sync_api import Page, sync_playwright

WORDS = "star, snow, wall"  # of the example on the page
WITHIN = (0.45, 0.4)  # where the result is clicked, as shares of its width and height: on the star
COLOURS = 256  # of the file
LOADED = "[...document.images].every(each => each.complete && each.naturalWidth)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs/app.png")
    parser.add_argument("--width", type=int, default=1200, metavar="PIXELS", help="of the window (default: 1200)")
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    args = parser.parse_args()
    browser = find_chromium()
    if browser is None:
        sys.exit(f"none of {', '.join(CHROMIUM)} is installed")
    page, address = serve(make_parser().parse_args(["app", "--device", "cpu"]))
    try:
        with sync_playwright() as tools:
            chromium = tools.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
            view = {"viewport": {"width": args.width, "height": 900}, "color_scheme": "dark" if args.dark else "light"}
            shown = chromium.new_page(**view)
            segment_example(shown, address)
            screenshot = Image.open(BytesIO(shown.screenshot(full_page=True, animations="disabled")))
            chromium.close()
        write_png(args.out, screenshot.convert("RGB").quantize(COLOURS))
    finally:
        page.close(verbose=False)


def segment_example(shown: Page, address: str) -> None:
    """Choose the example, segment it, and ask for the scores at a place."""
    shown.goto(address)
    shown.get_by_text(WORDS).click()
    shown.wait_for_selector("#goca-image img")
    shown.click("#goca-segment")
    shown.wait_for_selector("#goca-image-legend li")
    result = shown.locator("#goca-image-overlay img")
    box = result.bounding_box()
    assert box is not None, "the result has no place on the page"
    result.click(position={"x": WITHIN[0] * box["width"], "y": WITHIN[1] * box["height"]})
    shown.wait_for_selector("#goca-image-result >> text=Scores at")
    shown.mouse.move(0, 0)
    shown.wait_for_function(LOADED)


if __name__ == "__main__":
    main()
