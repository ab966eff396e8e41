"""Images in the forms that notebooks display."""

from __future__ import annotations

import base64
import html
import io

from PIL import Image


def as_png(image: Image.Image) -> bytes:
    """The content of a PNG file."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return stream.getvalue()


def as_html(image: Image.Image, text: str) -> str:
    """An <img> element with the image as data; text: its alternative text."""
    source = base64.b64encode(as_png(image)).decode()
    return f'<img alt="{html.escape(text, quote=True)}" src="data:image/png;base64,{source}">'
