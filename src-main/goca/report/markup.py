"""HTML elements. Text that is not marked as Markup is escaped, so that no name or id of a data set becomes code."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

Child = str | Iterable[str]
EMPTY = {"br", "img", "meta"}  # elements without an end tag


class Markup(str):
    """Text that is HTML already and is not escaped again."""


def tag(name: str, *children: Child, **attributes: str | float | None) -> Markup:
    """Make an element: tag("td", "a < b", class_="text", data_value=3) -> <td class="text" data-value="3">a &lt; b</td>

    children    text, which is escaped unless it is Markup, or several of both
    attributes  a trailing underscore is dropped, others become dashes; None leaves the attribute out
    """
    named = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{named}>" + ("" if name in EMPTY else f"{join(*children)}</{name}>"))


def section(heading: str, *children: str) -> Markup:
    """Make a section of a page with its heading."""
    return tag("section", tag("h2", heading), *children)


def join(*children: Child) -> Markup:
    """Join children, escaping those that are not Markup."""
    texts = (text for child in children for text in ([child] if isinstance(child, str) else child))
    return Markup("".join(text if isinstance(text, Markup) else escape(text) for text in texts))
