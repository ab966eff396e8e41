"""A client of one OpenAI-compatible server: sends an image and an instruction, with retries."""

from __future__ import annotations

import base64
import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any

from goca.labeling.config import SECRET, LabelerConfig
from goca.labeling.errors import LabelingError, LibrariesMissing, NoCaption, ServerRefused
from goca.labeling.replies import shown

MOST_BYTES = 1 << 20  # of a reply; a caption needs a few hundred
ESCAPE = re.compile(r"\\u([0-9a-fA-F]{4})")  # an escaped character in JSON
TRANSIENT = (408, 409, 425, 429)  # and every 5xx
FATAL = (401, 402, 403, 404, 407)  # a wrong key, account, model name or address
QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")  # 429s that waiting does not fix


def check_libraries() -> None:
    """Raises LibrariesMissing where what asks a server is not installed."""
    for name in ("openai", "httpx2"):
        if find_spec(name) is None:
            raise LibrariesMissing(f"asking a server needs {name}: pip install 'goca[label]' (in a clone '.[label]')")


class Server:
    """A server shared by threads. A wait that it requests applies to all of them.

    key   from the environment, read by the caller; never part of an error
    stop  once set, waits end and no further request is sent
    """

    def __init__(self, config: LabelerConfig, key: str, stop: threading.Event) -> None:
        import httpx2
        import openai

        self.config, self.stop, self._key = config, stop, key
        self._status, self._dropped = openai.APIStatusError, (openai.APIConnectionError, httpx2.HTTPError)
        self._unusable = (openai.OpenAIError, httpx2.InvalidURL, httpx2.StreamError)
        self._client = openai.OpenAI(
            api_key=key,
            base_url=config.base_url or "https://api.openai.com/v1",
            timeout=config.timeout,
            max_retries=0,  # retries are done here, so that every wait can be ended
        )
        self._not_before = 0.0
        self._random = random.Random()

    def ask(self, instruction: str, jpeg: bytes, before: Callable[[], None] = lambda: None) -> tuple[bytes, int]:
        """Return the reply's body and the number of tries.

        before  called before each request
        Raises NoCaption ("unreachable", "rejected", "oversized") for this image, ServerRefused if all would fail.
        """
        messages = _messages(instruction, jpeg, self.config.detail)
        for attempt in range(self.config.retries + 1):
            self._wait_until_allowed()
            try:
                before()
                return self._once(messages), attempt + 1
            except self._status as error:
                reason, pause = self._turned_down(error), retry_after(error.response.headers)
            except self._dropped as error:
                reason, pause = self._connection(error), None
            except self._unusable as error:
                raise ServerRefused(f"{self.where} cannot be reached: {self.said(str(error))}") from None
            if attempt < self.config.retries:
                self._hold(pause, attempt, reason)
        raise NoCaption("unreachable", f"after {self.config.retries + 1} tries: {reason}")

    def said(self, text: str) -> str:
        """Return the beginning of a server's message, without the key."""
        return shown(self.without_key(text), 300)

    def without_key(self, value: Any) -> Any:
        """Remove the key from a server's message: a server may repeat the key that it was sent.

        value  a decoded text, or lists and mappings of texts. Keys written with JSON's escapes are found too.
        """
        if isinstance(value, dict):
            return {self.without_key(name): self.without_key(each) for name, each in value.items()}
        if isinstance(value, list):
            return [self.without_key(each) for each in value]
        if not isinstance(value, str) or len(self._key) < SECRET:
            return value
        value = value.replace(self._key, "[key]")
        plain, key = (_unescaped(text) for text in (value, self._key))
        return plain.replace(key, "[key]") if key in plain else value

    def pause(self, seconds: float) -> None:
        """Wait, unless the run ends meanwhile. Raises Stopped."""
        self._pause(seconds)

    @property
    def where(self) -> str:
        return self.config.base_url or "OpenAI"

    def close(self) -> None:
        self._client.close()

    def _once(self, messages: list[dict[str, Any]]) -> bytes:
        """Send one request and read the reply in parts, so that neither its duration nor its size is unbounded."""
        deadline = time.monotonic() + self.config.timeout
        body = bytearray()
        with self._client.chat.completions.with_streaming_response.create(
            model=self.config.model,
            messages=messages,  # type: ignore[arg-type]
            extra_body=dict(self.config.options),
        ) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise NoCaption("oversized", f"the reply is larger than {MOST_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise _too_slow(self.config.timeout)
        return bytes(body)

    def _turned_down(self, error: Any) -> str:
        """Return the reason if another try may help. Raises NoCaption or ServerRefused if not."""
        code = error.status_code
        reason = f"{code} {self.said(_message(error.body) or error.response.text)}"
        if code in FATAL or _code(error.body) in QUOTA:
            raise ServerRefused(
                f"{self.where} answers {reason}\n"
                f"Check the key ({self.config.key_variable}), the account, labeler.model={self.config.model}"
                " and labeler.base_url; then run again: existing answers are kept."
            ) from None
        if code not in TRANSIENT and code < 500:
            raise NoCaption("rejected", reason) from None
        return reason

    def _connection(self, error: Exception) -> str:
        cause = error.__cause__ or error
        return self.said(f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__)

    def _hold(self, asked: float | None, attempt: int, reason: str) -> None:
        """Wait before another try: at least as long as the server asks, else about twice as long as the last time."""
        if asked is not None and asked > self.config.longest_wait:
            most = f"longer than labeler.longest_wait={self.config.longest_wait:g}"
            raise NoCaption("unreachable", f"{reason}; the server asks for a wait of {asked:.0f} s, {most}")
        own = min(self.config.first_wait * 2**attempt, self.config.longest_wait) * self._random.uniform(0.5, 1)
        if asked is not None:
            self._not_before = max(self._not_before, time.monotonic() + asked)
            own = asked + 0.1 * own  # spread the threads' requests after the wait
        self._pause(own)

    def _wait_until_allowed(self) -> None:
        while (left := self._not_before - time.monotonic()) > 0:
            self._pause(left)
        self._pause(0)

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds) if seconds > 0 else self.stop.is_set():
            raise Stopped


def _unescaped(text: str) -> str:
    return ESCAPE.sub(lambda match: chr(int(match[1], 16)), text).replace("\\", "")


class Stopped(LabelingError):
    """The run ended while this request was waiting."""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After (number or date) or retry-after-ms; None: neither is sent."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / unit
        except ValueError:
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        moment = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
        return max(0.0, moment.timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _too_slow(seconds: float) -> Exception:
    import httpx2

    return httpx2.ReadTimeout(f"the reply was not complete after {seconds:g} s")


def _messages(instruction: str, jpeg: bytes, detail: str | None) -> list[dict[str, Any]]:
    url = {"url": "data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii")}
    image = {"type": "image_url", "image_url": url | ({"detail": detail} if detail else {})}
    return [{"role": "user", "content": [{"type": "text", "text": instruction}, image]}]


def _message(body: Any) -> str:
    body = body.get("error", body) if isinstance(body, dict) else body
    found = body.get("message") if isinstance(body, dict) else body
    return found if isinstance(found, str) else ""


def _code(body: Any) -> str | None:
    body = body.get("error", body) if isinstance(body, dict) else None
    return (body.get("code") or body.get("type")) if isinstance(body, dict) else None
