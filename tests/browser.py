"""Pages in a headless Chromium, as a reader sees and clicks them.

    with open_browser() as browser, open_page(browser, dark=True) as page:
        page.goto("file:///.../report.html")
        page.complaints, page.requests          # console errors and exceptions; URLs other than the page's own

Skips aloud where Chromium or playwright is missing.
"""

from contextlib import contextmanager

import pytest
from goca.cli.machine import CHROMIUM, find_chromium

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def open_browser():
    """A browser of playwright's. Start one per module; pages are cheap."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install '.[test]'")
    path = find_chromium()
    if path is None:
        pytest.skip(f"none of {', '.join(CHROMIUM)} is installed")
    with playwright.sync_playwright() as tools:
        browser = tools.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser, *, dark=False, width=1100, height=900):
    """A page in a context of its own, which notes what the page complains of and asks the network for."""
    context = browser.new_context(color_scheme="dark" if dark else "light", viewport={"width": width, "height": height})
    page = context.new_page()
    page.complaints, page.requests = [], []
    page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    try:
        yield page
    finally:
        context.close()
