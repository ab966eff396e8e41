"""Images as notebooks show them."""

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
    """An <img> element that holds the image itself; text: what it says in words."""
    source = base64.b64encode(as_png(image)).decode()
    return f'<img alt="{html.escape(text, quote=True)}" src="data:image/png;base64,{source}">'
