"""The page of `goca app` in a browser."""

import json
import socket
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from browser import open_browser, open_page
from commands import ROOT
from goca import Segmenter
from goca.cli import make_parser
from goca.cli.app import serve
from goca.embedded import resolve
from PIL import Image

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[app]'")

sys.path.insert(0, str(ROOT / "scripts"))
import draw_page
from goca.app.drawing import at_page_size

pytestmark = pytest.mark.filterwarnings("ignore:::gradio")  # what it asks of pandas is deprecated
SCENES = Path(resolve("goca:scenes")) / "JPEGImages"
SCENE, WORDS = SCENES / "test_00007.png", "house, sky, car, road"


LOCAL = ("127.0.0.1", "localhost", "::1", None)


@pytest.fixture(scope="module")
def served():
    """A browser, and the address of a page as `goca app` serves it, which may look up no other machine."""
    asked, look_up = [], socket.getaddrinfo
    with open_browser() as browser, pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", lambda host, *args, **kw: asked.append(host) or look_up(host, *args, **kw))
        page, address = serve(arguments())
        try:
            yield browser, address
        finally:
            page.close(verbose=False)
        assert [host for host in asked if host not in LOCAL] == []


def arguments():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return make_parser().parse_args(["app", "--port", str(port), "--device", "cpu"])


@pytest.fixture
def opened(served):
    """The page, opened; nothing may be asked of another machine, and the console stays empty."""
    browser, url = served
    with open_page(browser, width=1280) as page:
        page.set_default_timeout(60_000)
        page.goto(url)
        page.wait_for_selector("#goca-words textarea")
        yield page
        own = (url, url.replace("http", "ws"), f"blob:{url}", "data:")
        assert [request for request in page.requests if not request.startswith(own)] == []
        assert page.complaints == []


def upload(page, file=SCENE, words=WORDS):
    page.set_input_files("#goca-image input[type=file]", str(file))
    page.wait_for_selector("#goca-image img")
    page.fill("#goca-words textarea", words)
    page.click("#goca-segment")


def shares(page, panel):
    """The legend as a reader sees it: word -> percent."""
    lines = page.locator(f"#goca-{panel}-legend li").all_inner_texts()
    return {word: float(share.rstrip("%")) for word, share in (line.split("\n") for line in lines)}


def expected_shares(segmentation, threshold):
    """The same from a segmentation."""
    label = segmentation.label_map(threshold=threshold)
    return {entry.name: 100 * entry.share for entry in segmentation.legend(label)}


def download(page, kind, folder):
    with page.expect_download() as found:
        page.click(f"#goca-image-{kind}")
    found.value.save_as(folder / found.value.suggested_filename)
    return folder / found.value.suggested_filename


@pytest.fixture(scope="module")
def segmentation():
    """What the page is to show."""
    return Segmenter.from_pretrained(None, "mini-sd", device="cpu")(SCENE, WORDS)


def test_upload_run_and_move_the_slider(opened, segmentation, tmp_path):
    assert "knows only its own drawn scenes" in opened.inner_text("body") and "mushroom" in opened.inner_text("body")
    upload(opened)
    opened.wait_for_selector("#goca-image-said [role=status] progress")  # reading the model, then the words
    opened.wait_for_selector("#goca-image-legend li")
    shown = at_page_size(segmentation)
    assert shares(opened, "image") == pytest.approx(expected_shares(shown, 0.0), abs=0.06)
    assert opened.locator("#goca-image-maps .caption-label").all_inner_texts() == WORDS.split(", ")
    before = opened.get_attribute("#goca-image-overlay img", "src")
    opened.fill("#goca-image-threshold input[type=range]", "0.6")
    opened.wait_for_function("src => document.querySelector('#goca-image-overlay img').src != src", arg=before)
    assert shares(opened, "image") == pytest.approx(expected_shares(shown, 0.6), abs=0.06)

    label = segmentation.label_map(threshold=0.6).numpy()  # files have the image's own size
    assert np.array_equal(Image.open(download(opened, "labels", tmp_path)), label)
    record = json.loads(download(opened, "record", tmp_path).read_text())
    assert record["threshold"] == 0.6 and record["prompt"] == WORDS and record["model"] == "mini-sd"
    with zipfile.ZipFile(download(opened, "masks", tmp_path)) as archive:
        for each in record["classes"]:
            with archive.open(each["mask"]) as file:
                assert np.array_equal(np.asarray(Image.open(file)) > 0, label == each["id"])

    upload_again(opened, SCENES / "test_00000.png", "star")  # a new image resets the threshold
    opened.wait_for_selector("#goca-image-legend li:has-text('star')")
    assert opened.input_value("#goca-image-threshold input[type=range]") == "0"


def upload_again(page, *given):
    page.get_by_label("Remove Image").click()
    upload(page, *given)


def test_a_click_on_the_result_ranks_the_words_there(opened, segmentation):
    upload(opened)
    opened.wait_for_selector("#goca-image-legend li")
    opened.wait_for_function("document.querySelector('#goca-image-overlay img').clientHeight > 100")
    for x, y in [(0.5, 0.1), (0.2, 0.6)]:  # the sky, the house
        shown = opened.locator("#goca-image-overlay img")
        box = shown.bounding_box()
        assert box["width"] == pytest.approx(box["height"], abs=1)  # the image fills it
        shown.click(position={"x": x * box["width"], "y": y * box["height"]})  # when the page no longer scrolls
        label = segmentation.label_map((512, 512))[int(512 * y), int(512 * x)]
        first = "name => document.querySelector('#goca-image-place li')?.innerText.startsWith(name)"
        opened.wait_for_function(first, arg=segmentation.classes()[int(label)])
        lines = [line.split("\n") for line in opened.locator("#goca-image-place li").all_inner_texts()]
        assert sorted(name for name, _ in lines) == sorted({*segmentation.names})
        values = [float(value) for _, value in lines]
        assert values == sorted(values, reverse=True)
    opened.locator("#goca-image-maps .thumbnail-item").nth(1).click()  # a word's map, enlarged
    wide = opened.locator("#goca-image-maps .preview img").first
    wide.wait_for()
    opened.wait_for_timeout(300)
    assert min(wide.bounding_box()["width"], wide.bounding_box()["height"]) > 250


def test_an_error_is_said_and_leaves_the_result_before(opened, tmp_path):
    (tmp_path / "torn.png").write_bytes(SCENE.read_bytes()[:200])
    upload(opened, tmp_path / "torn.png")
    opened.wait_for_selector("#goca-image-said .goca-error:has-text('torn.png cannot be read')")
    assert not opened.is_visible("#goca-image-legend")
    upload_again(opened, SCENE, "house, sky")
    opened.wait_for_selector("#goca-image-legend li")
    assert opened.locator(".goca-error").count() == 0
    before = shares(opened, "image")
    opened.fill("#goca-words textarea", " , ")
    opened.click("#goca-segment")
    opened.wait_for_selector("#goca-image-said .goca-error:has-text('No words yet')")
    assert "result before" in opened.inner_text("#goca-image-said")
    assert shares(opened, "image") == before and set(before) == {"house", "sky", "background"}


def test_a_refused_upload_does_not_spoil_the_next(opened, tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with (tmp_path / "large.png").open("wb") as file:
        file.write(SCENE.read_bytes())
        file.truncate(106_000_000)
    for name, said in [("notes.txt", "Invalid file type"), ("large.png", "exceed the maximum")]:
        opened.set_input_files("#goca-image input[type=file]", str(tmp_path / name))
        opened.wait_for_selector(f".toast-body:has-text('{said}')")
    upload(opened, SCENE, "house")
    opened.wait_for_selector("#goca-image-legend li:has-text('house')")
    assert opened.locator(".goca-error").count() == 0
    opened.complaints.clear()  # the browser's own line on the refusal


def test_words_that_the_embedded_model_does_not_know_are_said_before_a_run(opened):
    opened.fill("#goca-words textarea", "house, dog, sky")
    opened.wait_for_selector("#goca-image-unknown:has-text('mini-sd does not know: dog.')")
    opened.fill("#goca-words textarea", "house, sky")
    opened.wait_for_selector("#goca-image-unknown", state="hidden")


def test_every_image_has_a_text_and_the_tab_key_stops_at_controls(opened):
    opened.wait_for_selector("#goca-examples tr img[alt]")
    assert "Example: star, snow, wall" in opened.evaluate("[...document.images].map(each => each.alt)")
    stops = []
    while not stops or stops[-1] != "TD":  # the first of the examples; arrow keys go on from there
        opened.keyboard.press("Tab")
        stops.append(opened.evaluate("document.activeElement.tagName"))
        assert len(stops) < 20
    assert set(stops) <= {"INPUT", "TEXTAREA", "BUTTON", "TD"}


def test_generate_an_image(opened):
    opened.get_by_role("tab", name="A generated image").click()
    opened.fill("#goca-prompt textarea", "a house on the grass, sky")
    opened.fill("#goca-steps input", "4")
    opened.click("#goca-generate")
    opened.wait_for_selector("#goca-generated-legend li")
    assert set(shares(opened, "generated")) == {"house", "grass", "sky"}
    assert opened.locator("#goca-generated-maps .caption-label").all_inner_texts() == ["house", "grass", "sky"]
    assert opened.is_visible("#goca-made img")


def test_an_example_fills_the_form_and_a_phone_shows_it_all(opened):
    opened.set_viewport_size({"width": 390, "height": 800})
    opened.get_by_text("star, snow, wall").click()
    opened.wait_for_selector("#goca-image img")
    assert opened.input_value("#goca-words textarea") == "star, snow, wall"
    opened.press("#goca-words textarea", "Enter")
    opened.wait_for_selector("#goca-image-legend li")
    assert opened.evaluate("document.documentElement.scrollWidth") <= 390
    top = "Math.abs(document.querySelector('#goca-image-result').getBoundingClientRect().top) < 5"
    opened.wait_for_function(top)  # the result is scrolled to
    assert all(opened.evaluate("[...document.images].map(each => each.alt)"))


def test_the_figure_of_the_documentation_shows_the_page_as_it_is(served, opened):
    _, url = served
    draw_page.segment_example(opened, url)
    said = " ".join(opened.inner_text("#goca-image-result").split())
    for part in ("Scores at x ", "Areas star ", "Background threshold", "Label map (PNG)", "Word maps star snow wall"):
        assert part in said
    assert opened.locator("#goca-image-place li").first.inner_text().startswith("star")
