"""A chat-completions server on loopback that misbehaves on purpose, and pictures that it can tell apart."""

import base64
import io
import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

CAPTION = "cat, (person, clothes), sky"


def picture(number: int) -> Image.Image:
    """Grey enough to be known again after JPEG: number 0 to 60."""
    return Image.new("RGB", (64, 48), (4 * number + 6,) * 3)


def number_of(request: dict) -> int:
    url = next(part["image_url"]["url"] for part in request["messages"][0]["content"] if part["type"] == "image_url")
    assert url.startswith("data:image/jpeg;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    return round((image.convert("RGB").getpixel((0, 0))[0] - 6) / 4)


# --- what a server may do; each takes the handler ----------------------------------------------------------------


def caption(text=CAPTION, finish="stop", **message):
    return lambda handler: handler.say(200, completion(text, finish, **message))


def completion(text, finish="stop", usage=(300, 12), **message):
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text, **message}}
    tokens = {"prompt_tokens": usage[0], "completion_tokens": usage[1]} if usage else None
    return {"id": "x", "object": "chat.completion", "model": "see-1-mini", "choices": [choice], "usage": tokens}


def status(code, message="not now", headers=None, error=None):
    return lambda handler: handler.say(code, {"error": {"message": message, **(error or {})}}, headers or {})


def raw(body: bytes):
    return lambda handler: handler.say_bytes(200, body)


def drop(handler):
    handler.close_connection = True
    handler.connection.close()


def torn(handler):
    body = json.dumps(completion(CAPTION)).encode()
    handler.say_bytes(200, body[: len(body) // 2], length=len(body))
    handler.close_connection = True


def slow(seconds):
    def reply(handler):
        time.sleep(seconds)
        caption()(handler)

    return reply


def drip(seconds):
    def reply(handler):
        handler.say_bytes(200, b"", length=10_000)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.03)

    return reply


def echo_key(code):
    def reply(handler):
        key = handler.headers["Authorization"].removeprefix("Bearer ")
        if code == 200:
            caption(f"cat, {key}")(handler)
        else:
            status(code, f"bad key {key}", error={"header": handler.headers["Authorization"]})(handler)

    return reply


def echo_escaped_key(whole=True):
    """The key with every character as JSON's escape, in a caption; or in what is no JSON."""

    def reply(handler):
        key = handler.headers["Authorization"].removeprefix("Bearer ")
        escaped = "".join(f"\\u{ord(character):04x}" for character in key)
        body = json.dumps({"choices": [{"message": {"content": "cat, KEY"}, "finish_reason": "stop"}]})
        handler.say_bytes(200, (body if whole else body[:-3]).replace("KEY", escaped).encode())

    return reply


class ChatServer(ThreadingHTTPServer):
    """`plan`: picture number -> what to do at its first, second, ... request; afterwards a caption.

    asked  (number, moment) of every request;  paid  how often each picture was answered with status 200
    """

    daemon_threads = True

    def __init__(self, plan=None, otherwise=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan = {number: list(steps) for number, steps in (plan or {}).items()}
        self.otherwise = otherwise or caption()
        self.asked, self.requests, self.paid = [], [], Counter()
        self.now, self.most_at_a_time, self.lock = 0, 0, threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def counts(self):
        return Counter(number for number, _ in self.asked)

    def handle_error(self, request, client_address):
        """A client that went away is what is tested."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert self.path == "/v1/chat/completions"
        self.number = number_of(request)
        server = self.server
        with server.lock:
            server.asked.append((self.number, time.monotonic()))
            server.requests.append(request)
            server.now += 1
            server.most_at_a_time = max(server.most_at_a_time, server.now)
            steps = server.plan.get(self.number)
            act = steps.pop(0) if steps else server.otherwise
        try:
            act(self)
        finally:
            with server.lock:
                server.now -= 1

    def say(self, code, body, headers=None):
        self.say_bytes(code, json.dumps(body).encode(), headers)

    def say_bytes(self, code, body, headers=None, length=None):
        if code == 200:
            self.server.paid[self.number] += 1
        self.send_response(code)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_):
        pass


def voc_tree(root, count):
    """A data set in VOC's layout, of pictures that the server can tell apart; returns their file names."""
    for part in ("JPEGImages", "SegmentationClass", "Annotations", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    ids = [f"2007_{number:06d}" for number in range(count)]
    for number, image_id in enumerate(ids):
        picture(number).save(root / "JPEGImages" / f"{image_id}.jpg")
        Image.new("P", (64, 48)).save(root / "SegmentationClass" / f"{image_id}.png")
        annotation = "<annotation><object><name>cat</name></object></annotation>"
        (root / "Annotations" / f"{image_id}.xml").write_text(annotation)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(ids) + "\n")
    return [f"{image_id}.jpg" for image_id in ids]
