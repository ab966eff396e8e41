"""Extension of griffe: docstrings are shown as they stand in the source.

The project's docstrings hold one line of what a thing does, then arguments in aligned columns with shapes and ranges.
The first paragraph becomes text, and the rest a block of fixed width, so that columns and formulas keep their form.
"""

from typing import Any

import griffe


class Verbatim(griffe.Extension):
    """Puts everything after a docstring's first paragraph into a fenced block."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is None:
            return
        first, _, rest = obj.docstring.value.partition("\n\n")
        head, *more = first.split("\n")
        if more and any(line.startswith(" ") or "   " in line for line in more):  # columns without an empty line before
            first, rest = head, "\n".join(more) + ("\n\n" + rest if rest else "")
        if rest.strip():
            obj.docstring.value = f"{first}\n\n```text\n{rest.strip(chr(10))}\n```"
