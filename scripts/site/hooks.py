"""Hook of mkdocs: links that lead out of docs/ (code, tests, other READMEs) become plain text on the site.

tests/test_docs.py checks them in the repository, where they lead somewhere.
"""

import re
from typing import Any

OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+[^)\s]*\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page's text with `[name](../path)` replaced by `name`."""
    return OUTSIDE.sub(r"\1", markdown)
