"""Markdown files as tests read them: fenced blocks, links, the anchors of headings."""

import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.S | re.M)
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def pages():
    """The repository's markdown files, by their path in it: not those of a run or of an installed package."""
    places = ("*.md", "docs/*.md", "examples/*.md", "src-additional/*/README.md", "gpt_output/*.md")
    found = [path for place in places for path in sorted(ROOT.glob(place))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}


def blocks(text, language):
    """The fenced blocks of a language, in order."""
    return [body for name, body in FENCE.findall(text) if name == language]


def links(text):
    """Targets of links and pictures outside of code."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text)))


def anchors(text):
    """The fragments by which GitHub knows the headings."""
    titles = re.findall(r"^#+ +(.*)$", FENCE.sub("", text), re.M)
    return {re.sub(r"[^\w\- ]", "", title.strip().lower()).replace(" ", "-") for title in titles}


def settings_of(page, folder):
    """Write a page's blocks of YAML where their first lines, `# PATH.yaml`, say."""
    for block in blocks(pages()[page], "yaml"):
        if place := re.match(r"# (\S+\.yaml)\n", block):
            path = folder / place[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block, encoding="utf-8")
