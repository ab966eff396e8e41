"""Who may ask the page, what they may choose, and what is left of them."""

import http.client
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
import zlib
from pathlib import Path

import pytest
from browser import open_browser, open_page
from diffusion_feature.images import PNG
from goca.cli import make_parser
from goca.cli.app import serve
from goca.embedded import resolve

pytest.importorskip("gradio", reason="gradio is not installed: pip install '.[app]'")

from goca.app.guard import Names, is_loopback
from goca.app.models import Choice, Models, PlaceNotOffered
from goca.app.page import about
from goca.app.runs import Settings, attempt, generate, segment
from goca.app.uploads import PREFIX, sweep, uploads

pytestmark = pytest.mark.filterwarnings("ignore:::gradio")
SCENE = Path(resolve("goca:scenes")) / "JPEGImages" / "test_00007.png"
BOUNDARY = "a-boundary"


# --- hosts and origins


@pytest.mark.parametrize(
    "host, asked, origin, refused",
    [
        ("127.0.0.1", "127.0.0.1:7860", None, ""),
        ("127.0.0.1", "localhost:7860", "http://localhost:7860", ""),
        ("127.0.0.1", "[::1]:7860", None, ""),
        ("127.0.0.1", "LocalHost:7860", "http://localhost:7860", ""),
        ("127.0.0.1", "rebound.example:7860", None, "name"),
        ("127.0.0.1", "192.168.1.5:7860", None, "name"),
        ("127.0.0.1", "127.0.0.1:7860", "http://evil.example", "site"),
        ("127.0.0.1", "127.0.0.1:7860", "http://127.0.0.1:3000", "site"),
        ("127.0.0.1", "127.0.0.1:7860", "null", "site"),
        ("127.0.0.1", "", None, "name"),
        ("127.0.0.1", "[bad", None, "name"),
        ("0.0.0.0", "192.168.1.5:7860", "http://192.168.1.5:7860", ""),
        ("0.0.0.0", "rebound.example:7860", None, "name"),
        ("192.168.1.5", "192.168.1.5:7860", None, ""),
        ("192.168.1.5", "10.0.0.1:7860", None, "name"),
        ("0.0.0.0", "goca.lab.example", "https://goca.lab.example", ""),
        ("127.0.0.1", "abc.gradio.live", "https://abc.gradio.live", ""),
        ("127.0.0.1", "127.0.0.1:7860", "https://abc.gradio.live", ""),
    ],
)
def test_who_is_let_in(host, asked, origin, refused):
    names = Names(host, ["goca.lab.example"], {"abc.gradio.live"} if "gradio" in f"{asked}{origin}" else set())
    found = names.refusal([asked], [] if origin is None else [origin])
    assert (refused in found) if refused else not found
    assert names.refusal([asked, asked], []) and names.refusal([], [])


def test_which_addresses_are_this_machine_alone():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.8.8.8", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.5", "example.com", "")))


@pytest.fixture(scope="module")
def served():
    """A page for others, as `goca app --host 0.0.0.0` serves it, in a folder of its own."""
    with uploads() as folder:
        arguments = ["app", "--host", "0.0.0.0", "--device", "cpu", "--place", "/models/mine"]
        page, _ = serve(make_parser().parse_args(arguments))
        try:
            yield page, page.server_port, folder
        finally:
            page.close(verbose=False)


def asked(port, method, path, body=None, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"Host": f"127.0.0.1:{port}", **headers}.items():
            connection.putheader(name.replace("_", "-"), value)
        if body is not None:
            connection.putheader("Content-Length", str(len(body)))
        connection.endheaders(body)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def upload(port, content=b"content", **headers):
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'.encode()
    body = head + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    kind = f"multipart/form-data; boundary={BOUNDARY}"
    return asked(port, "POST", "/gradio_api/upload", body, Content_Type=kind, **headers)


def test_foreign_hosts_and_origins_are_refused(served):
    _, port, folder = served
    assert asked(port, "GET", "/")[0] == 200
    assert asked(port, "GET", "/", Host="rebound.example")[0] == 403
    before = len(list(folder.rglob("*")))
    for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Host": "rebound.example"}):
        status, text = upload(port, **headers)
        assert status == 403 and b"Traceback" not in text
    assert len(list(folder.rglob("*"))) == before
    status, text = upload(port, Origin=f"http://127.0.0.1:{port}")
    assert status == 200 and Path(json.loads(text)[0]).is_relative_to(folder)
    status, _ = asked(port, "GET", "/gradio_api/queue/data?session_hash=x", Origin="http://evil.example")
    assert status == 403


# --- what visitors may choose


def test_visitors_choose_among_what_is_offered(served, tmp_path):
    _, port, _ = served
    models = Models("cpu", places=["/models/mine"])
    told = set()
    for place in ("/etc", "/nonexistent", str(tmp_path), "goca:mini-sd", "../..", "/models/mine/.."):
        for work in (
            lambda place=place: segment(models, Choice("mini-sd", place), str(SCENE), "house"),
            lambda place=place: generate(models, Choice("mini-sd", place), "house", "", Settings()),
        ):
            told.add(attempt(work).error)
    assert told == {"This page offers no such pipeline; it offers: the model's own, /models/mine"}
    with pytest.raises(PlaceNotOffered), models.pipe(Choice("sd15", "/etc")):
        pass
    assert segment(models, Choice("mini-sd"), str(SCENE), "house").segmentation is not None
    text = asked(port, "GET", "/config")[1].decode()
    assert "/models/mine" in text and "Pipeline folder or hub id" not in text


def test_a_page_of_this_machine_alone_takes_any_place():
    Models("cpu").check(Choice("sd15", "/anywhere"))


def test_text_about_a_place_is_no_markup():
    shown = about("sd15", "<img src=x onerror=alert(1)> **x** [a](http://e)")
    assert "<img" not in shown and "&lt;img" in shown and "**x**" in shown


# --- the page in a browser


def test_words_with_marks_are_shown_as_they_are(served):
    _, port, _ = served
    with open_browser() as browser, open_page(browser, width=1280) as page:
        page.set_default_timeout(60_000)
        page.goto(f"http://127.0.0.1:{port}/")
        page.set_input_files("#goca-image input[type=file]", str(SCENE))
        page.wait_for_selector("#goca-image img")
        page.fill("#goca-words textarea", "**house**, <b>sky</b>, [car](http://e)")
        page.click("#goca-segment")
        page.wait_for_selector("#goca-image-legend li")
        captions = page.locator("#goca-image-maps .caption-label")
        words = page.locator("#goca-image-legend .word").all_inner_texts()
        assert captions.all_inner_texts() == [word for word in words if word != "background"]
        for place in ("#goca-image-legend", "#goca-image-maps .caption-label", ".goca-about"):
            assert all(page.locator(f"{place} {tag}").count() == 0 for tag in ("b", "strong", "a", "em"))
        assert page.locator("#goca-place input").count() == 1 and page.complaints == []


# --- what is left


def test_a_stopped_page_leaves_no_uploads(tmp_path):
    script = "import sys; from goca.cli import main; sys.exit(main(sys.argv[1:]))"
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", script, "app", "--device", "cpu"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        port = int(re.search(r":(\d+)/", process.stdout.readline()).group(1))
        status, _ = upload(port, os.urandom(100_000))
        assert status == 200
        (folder,) = tmp_path.glob(f"{PREFIX}*")
        assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) >= 100_000
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 128 + signal.SIGTERM
    finally:
        process.kill()
    assert list(tmp_path.glob(f"{PREFIX}*")) == []


def test_folders_of_killed_pages_are_swept(tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead, alive, other = (
        tmp_path / name for name in (f"{PREFIX}{ended.pid}-abc", f"{PREFIX}{os.getpid()}-abc", f"{PREFIX}notes")
    )
    for folder in (dead, alive, other):
        folder.mkdir()
        (folder / "a.png").write_text("")
    sweep(tmp_path)
    assert not dead.exists() and alive.exists() and other.exists()


def test_a_large_picture_neither_fills_memory_nor_keeps_others_waiting(served):
    """13,000 x 13,000 pixels of one bit, in 21 kB: read at a size that the page can show."""
    head = struct.pack(">IIBBBBB", 13_000, 13_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(13_000 * 1626))
    file = Path(tempfile.mkdtemp(dir=served[2])) / "large.png"
    file.write_bytes(
        PNG
        + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in ((b"IHDR", head), (b"IDAT", rows), (b"IEND", b""))
        )
    )
    start = time.perf_counter()
    result = attempt(lambda: segment(Models("cpu"), Choice("mini-sd"), str(file), "house, sky"))
    assert result.segmentation is not None and "reduced on reading" in result.remarks[0]
    assert time.perf_counter() - start < 60 and result.segmentation.image.width < 5000


def test_the_address_is_asked_as_browsers_do(served):
    assert urllib.request.urlopen(f"http://127.0.0.1:{served[1]}/", timeout=20).status == 200
