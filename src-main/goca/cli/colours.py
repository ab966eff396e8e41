"""Class colours in a terminal: a swatch before each name, if the terminal shows colours."""

from __future__ import annotations

import os
from typing import TextIO

RESET = "\x1b[0m"
TRUE_COLOUR = ("truecolor", "24bit")  # values of COLORTERM
CUBE, LEVELS = 16, 5  # xterm's 256 colours: a cube of 6 levels per channel starts at number 16


def takes_colours(stream: TextIO) -> bool:
    """Whether a stream is a terminal that shows colours; never if NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def swatch(colour: tuple[int, int, int] | None, stream: TextIO) -> str:
    """Two cells of a colour and a space; "" if the stream shows no colours.

    colour  (red, green, blue), 0..255; None: two cells without colour
    """
    if not takes_colours(stream):
        return ""
    return "   " if colour is None else f"\x1b[48;{code(colour)}m  {RESET} "


def code(colour: tuple[int, int, int]) -> str:
    """A terminal's code for a colour: 24 bits if COLORTERM allows it, else the nearest of 256 colours."""
    if os.environ.get("COLORTERM", "").lower() in TRUE_COLOUR:
        return "2;{};{};{}".format(*colour)
    red, green, blue = (round(channel * LEVELS / 255) for channel in colour)
    return f"5;{CUBE + 36 * red + 6 * green + blue}"
