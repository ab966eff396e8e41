"""The review page of a labelled set: thumbnails sorted by doubt, in one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

from PIL import Image

from goca.drawing.class_colours import class_colours, class_palette
from goca.drawing.legend import painted
from goca.drawing.palettes import as_hex
from goca.files.atomic import write_text
from goca.formats import Labelled
from goca.report.markup import Markup, tag

SIDE = 192  # longest side of a thumbnail, pixels
STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:1200px;padding:0 1em}
main{display:flex;flex-wrap:wrap;gap:12px}figure{margin:0;padding:8px;border:2px solid #ddd;width:400px}
figure.chosen{border-color:#06c;background:#eef5ff}img{width:192px;image-rendering:pixelated;margin-right:4px}
figcaption{overflow-wrap:anywhere}
.swatch{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 .7em;border:1px solid #999}"""
SCRIPT = """const all=[...document.querySelectorAll("figure")];let at=-1;
function go(to){if(!all.length)return;all[at]?.classList.remove("chosen");at=Math.max(0,Math.min(all.length-1,to));
all[at].classList.add("chosen");all[at].scrollIntoView({block:"center"});}
addEventListener("keydown",e=>{if(e.ctrlKey||e.metaKey||e.altKey)return;
if(["n","j","ArrowRight"].includes(e.key)){e.preventDefault();go(at+1)}
if(["p","k","ArrowLeft"].includes(e.key)){e.preventDefault();go(at-1)}});
all.forEach((each,i)=>each.addEventListener("click",()=>go(i)));"""


def write_review(path: Path, items: Iterable[Labelled], classes: Mapping[int, str], most: int = 500) -> None:
    """Write the page of the `most` items with the largest share of doubt (`record["doubt"]`)."""
    ordered = sorted(items, key=lambda item: (-item.record.get("doubt", 0), item.name))
    colours = class_colours(classes)
    shown = [figure(item, colours) for item in ordered[:most]]
    head = tag("head", tag("meta", charset="utf-8"), tag("title", "Review"), tag("style", Markup(STYLE)))
    rest = f", the {most} most doubtful of them" if len(ordered) > most else ""
    body = tag(
        "body",
        tag("h1", "Review"),
        tag(
            "p",
            f"{len(ordered)} images{rest}, the most doubtful first. n or → shows the next one, p or ← the one before.",
        ),
        tag("p", legend(classes)),
        tag("main", shown),
        tag("script", Markup(SCRIPT)),
    )
    write_text(path, "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n")


def figure(item: Labelled, colours: Mapping[int, tuple[int, int, int]]) -> Markup:
    image, label = item.read_image(), item.read_label()
    record = item.record
    areas = ", ".join(f"{name} {area:.0%}" for name, area in record.get("areas", {}).items())
    said = record.get("prompt") or ", ".join(record.get("classes", []))
    lines = [f"doubt {record.get('doubt', 0):.1%}", f"asked for: {said}", f"found: {areas or 'nothing'}"]
    if unsure := [*record.get("unsure", []), *record.get("missing", [])]:
        lines.append(f"low presence: {', '.join(unsure)}")
    texts = [child for line in lines for child in (tag("br"), line)]
    panels = [embedded(each) for each in (image, painted(image, label, colours))]
    return tag("figure", panels, tag("figcaption", tag("b", item.name), texts))


def embedded(image: Image.Image) -> Markup:
    small = image.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=85)
    return tag("img", src="data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode(), alt="")


def legend(classes: Mapping[int, str]) -> list[Markup | str]:
    colours = class_palette(classes)
    rows = [*classes.items(), (255, "doubt (255)")]
    found: list[Markup | str] = []
    for class_id, name in rows:
        found += [tag("span", "", class_="swatch", style=f"background:{as_hex(colours[class_id])}"), name]
    return found
