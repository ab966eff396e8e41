"""report.html: a finished run as one self-contained page, made from results.json and the thumbnails."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from pathlib import Path
from string import Template

from goca.benchmark.run_store import RunError, write_text
from goca.files.bounded_json import read_json
from goca.report.charts import colours_of, interval, percent, swatch
from goca.report.gallery import PALETTE, thumbnail_path
from goca.report.markup import Markup, join, section, tag
from goca.report.presence_page import presence
from goca.report.sections import (
    NAMES,
    SHOWN,
    Results,
    as_table,
    classes,
    confusions,
    distribution,
    number_cell,
    pair,
    thresholds,
)


def write_report(run_dir: str | Path) -> Path:
    """Write RUN_DIR/report.html. Raises RunError where results.json is missing or has an older format."""
    run_dir = Path(run_dir)
    try:
        results = read_json(run_dir / "results.json")
    except FileNotFoundError:
        raise RunError(f"{run_dir} has no results.json; a run writes it when it is finished") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{run_dir}/results.json cannot be read: {error}") from None
    if not isinstance(results, dict):
        raise RunError(f"{run_dir}/results.json does not hold the results of a run")
    if missing := [key for key in ("metrics", "confusion", "extremes") if key not in results]:
        raise RunError(
            f"{run_dir}/results.json has no {', '.join(missing)}: an older version wrote it."
            " Run its command again: it only summarises the stored counts."
        )
    try:
        page = report(results, run_dir)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{run_dir}/results.json has an unknown format: {type(error).__name__} {error}") from error
    write_text(run_dir / "report.html", page)
    return run_dir / "report.html"


def report(results: Results, run_dir: Path) -> str:
    """Make the page of a run; thumbnails are read from its folder."""
    sections = [
        headline(results),
        presence(results),
        thresholds(results),
        classes(results),
        distribution(results),
        confusions(results),
        images("Worst images", results, "worst", run_dir),
        images("Best images", results, "best", run_dir),
        skipped(results),
        settings(results),
    ]
    page = resources.files("goca.report") / "page"
    style, script, template = ((page / f"report.{kind}").read_text("utf-8") for kind in ("css", "js", "html"))
    script_hash = "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return Template(template).substitute(
        title=join(title(results)),
        lead=join(lead(results)),
        sections=join(filter(None, sections)),
        footer=join(footer(results)),
        style=style,
        script=script,
        script_hash=script_hash,
    )


def title(results: Results) -> str:
    config = results["config"]
    model = config.get("choices", {}).get("model") or config.get("model", {}).get("version", "model")
    return f"{model} on {config.get('dataset', {}).get('name', 'data set')}"


def lead(results: Results) -> str:
    counted, listed = results["images"]["counted"], results["images"]["listed"]
    config, protocol = results["config"], results["protocol"]["preset"] or "mixed"
    split = config.get("dataset", {}).get("split")
    parts = [f"Protocol {protocol}", f"split {split}" if split else "", f"{counted} of {listed} images"]
    parts += [f"task {results['task']}"] if "task" in results else []
    parts += [f"ask {results['ask']}", f"words {results['words']}"] if "presence" in results else []
    return ", ".join(part for part in parts if part) + "."


def headline(results: Results) -> Markup:
    """mIoU at both thresholds with intervals, the other metrics, and notes on how they were obtained."""
    metrics = results["metrics"]
    swept = len(results["mIoU"]["swept"]) > 1
    heads = {
        "fixed": f"mIoU at the fixed threshold {metrics['fixed']['threshold']:g}",
        "best": f"mIoU at the best threshold {metrics['best']['threshold']:g}, swept on this split",
    }
    shown = ["best", "fixed"] if swept else ["fixed"]
    figures = [
        tag(
            "div",
            tag("dt", heads[which] if swept else "mIoU"),
            tag("dd", percent(number["value"]), tag("small", " %"), class_="value"),
            tag("dd", interval(number["interval"], "95 % interval "), class_="interval"),
            class_="figure",
        )
        for which in shown
        for number in [metrics[which]["mIoU"]]
    ]
    head = tag("tr", tag("th", "%", scope="col"), *(tag("th", f"{which} threshold", scope="col") for which in shown))
    rows = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            *(number_cell(metrics[which][key], f"{which} threshold") for which in shown),
        )
        for key, name in NAMES.items()
    ]
    draws = metrics["bootstrap"]
    how = (
        f"In brackets: {100 * draws['confidence']:g} % percentile interval over {draws['resamples']} samples of"
        f" {draws['images']} images drawn with replacement. It covers the choice of images, not the noise seeds."
    )
    caveats = [tag("li", f"{text[0].upper()}{text[1:]}.") for text in results["oracle"].values()]
    return section(
        "Result",
        tag("dl", figures, class_="figures"),
        tag("div", tag("table", tag("thead", head), tag("tbody", rows), class_="stacked"), class_="scroll"),
        tag("p", how, class_="note", style="margin-top:.75rem"),
        tag("ul", caveats, class_="plain note"),
    )


def images(heading: str, results: Results, which: str, run_dir: Path) -> Markup | None:
    """Thumbnails of the worst or the best images; the id alone where the run kept none."""
    extremes, palette = results["extremes"], colours_of(results)
    drawn = PALETTE if all("colour" in each for each in results["per_class"]) else "bright"
    if not extremes[which]:
        return None
    figures = []
    for each in extremes[which]:
        path = thumbnail_path(run_dir, each["image"], drawn)
        if path.is_file():
            data = f"data:image/webp;base64,{base64.b64encode(path.read_bytes()).decode()}"
            shown = tag("img", src=data, alt=f"{each['image']}: image, ground truth, prediction")
        else:
            shown = tag("div", "No thumbnail was kept.", class_="missing")
        named = (tag("span", swatch(kind["id"], palette), kind["name"]) for kind in each["classes"])
        caption = tag(
            "figcaption",
            tag("span", each["image"], class_="id"),
            "IoU ",
            tag("b", f"{percent(each['iou'])} %"),
            tag("div", named, class_="classes"),
        )
        figures.append(tag("li", tag("figure", shown, caption)))
    note = (
        f"Image, ground truth, prediction at the fixed threshold ({extremes['threshold']:g}). An image's IoU is the"
        " mean over the classes that are labelled or predicted in it."
    )
    return section(heading, tag("p", note, class_="note"), tag("ul", figures, class_="gallery"))


def skipped(results: Results) -> Markup:
    """Skipped images and the reasons, and warnings about the counted ones."""
    left, warnings = results["images"]["skipped"], results["warnings"]
    changed = warnings.get("changed", [])  # earlier versions did not write this key
    lists = {
        f"{len(left)} skipped": [(each["image"], each["reason"]) for each in left],
        f"{len(warnings['lost_classes'])} whose prompt was cut before the words of a class": [
            (each["image"], ", ".join(each["classes"])) for each in warnings["lost_classes"]
        ],
        f"{len(warnings['notes'])} notes": [(each["image"], each["text"]) for each in warnings["notes"]],
        f"{len(warnings['no_class'])} without a class to look for: background everywhere": [
            (each, "") for each in warnings["no_class"]
        ],
        f"{len(changed)} counted again because their image or label had changed": [
            (each["image"], each["text"]) for each in changed
        ],
    }
    shown = [
        tag(
            "details",
            tag("summary", name),
            tag(
                "ul",
                *(tag("li", tag("b", image), f": {text}" if text else "") for image, text in entries),
                class_="plain",
            ),
            open="" if len(entries) <= SHOWN else None,
        )
        for name, entries in lists.items()
        if entries
    ]
    nothing = [] if left else [tag("p", "No image was skipped.", class_="soft")]
    return section("Skipped images and warnings", *nothing, *shown)


def settings(results: Results) -> Markup:
    """Protocol, device, code, and every value of the configuration."""
    switches = [pair(key, value) for key, value in results["protocol"].items() if key != "preset"]
    computed = [
        pair(
            f"{each['images']} images",
            f"{each.get('device')}, {each.get('dtype')}, commit {each.get('revision') or 'unknown'}",
        )
        for each in results["computed"]
    ]
    seconds = [
        pair(f"seconds per image, {key}", f"{value:.3f}")
        for key, value in results["seconds_per_image"].items()
        if value is not None
    ]
    packages = [pair(key, value) for key, value in results["versions"].items()]
    values = json.dumps(results["config"], indent=1, default=str)
    config = tag("pre", tag("code", values), class_="scroll", style="white-space:pre-wrap")
    return section(
        "Protocol and settings",
        as_table(switches),
        tag("h3", "Computed"),
        as_table([*computed, *seconds]),
        tag("details", tag("summary", "Versions at the summary"), as_table(packages)),
        tag("details", tag("summary", "Configuration"), config),
    )


def footer(results: Results) -> str:
    return f"Made from results.json, revision {results['revision'] or 'unknown'}."
