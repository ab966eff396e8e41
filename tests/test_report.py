"""The page of a run, opened and clicked as a reader does; and what a run keeps for it."""

import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from browser import open_browser, open_page
from goca.benchmark.counting import CountedRun, collect, count_images
from goca.benchmark.prediction import Prediction
from goca.benchmark.run_store import RunError, RunStore
from goca.benchmark.tasks import metric_for
from goca.datasets import DatasetConfig, SampleError, class_labels
from goca.drawing.class_colours import class_colours
from goca.drawing.palettes import as_hex, bright_palette
from goca.evaluation import Word
from goca.protocol import Protocol
from goca.report.gallery import KEPT, rank_images, thumbnail_path
from goca.report.html import write_report
from goca.report.presence_page import presence
from goca.report.results import summarise, write_results
from PIL import Image

HOSTILE = "<script>document.title = 'taken'</script>"
CONFIG = DatasetConfig("toy", "toy", thresholds=[-0.1, 0, 0.1])
SETTINGS = {"choices": {"model": 'm"><img src=x onerror=alert(1)>'}, "dataset": {"name": "toy & co", "split": "val"}}
FIXED = 0.05


class Toy:
    """Images made up from their id, the first of which is hostile; birds never occur; i3 cannot be read."""

    name, class_names = "toy", [[], ["cat"], [f"dog {HOSTILE}"], ["fish"], ["bird"]]

    def __init__(self, count=24):
        self.ids = [HOSTILE, *(f"i{number}" for number in range(1, count))]

    def sample(self, image_id):
        if image_id == "i3":
            raise SampleError(f"label {HOSTILE} cannot be read")
        rng = np.random.default_rng(len(image_id) + sum(map(ord, image_id)))
        label = np.zeros((30, 40), np.uint8)
        label[:, : rng.integers(5, 35)] = rng.integers(1, 3)
        label[0, 0] = 255
        image = Image.new("RGB", (40, 30), tuple(rng.integers(0, 255, 3).tolist()))
        return SimpleNamespace(id=image_id, name=f"{image_id}.jpg", image=image, label=label, present=[1, 2])


def segment(cases):
    """The truth with noise, more of it for some images than for others."""
    predictions = []
    for sample in (case.sample for case in cases):
        rng = np.random.default_rng(sum(map(ord, sample.id)))
        masks = np.stack([sample.label == 1, sample.label == 2, 0 * sample.label])[:, ::5, ::5]
        noise = rng.normal(0, rng.uniform(0.1, 0.8), masks.shape)
        words = [Word(1, 0.9, True), Word(2, float(rng.uniform()), True), Word(3, 0.2 * float(rng.uniform()), False)]
        notes = [HOSTILE] * (sample.id == "i1")
        predictions.append(Prediction((masks + noise).clip(-1, 2), [1, 2], notes=notes, words=words))
    return predictions


def run(folder, dataset=None, ids=None, **sharing):
    dataset, protocol = dataset or Toy(), Protocol.of("paper")
    ids, metric = ids or dataset.ids, metric_for(dataset, CONFIG, protocol, extra=[FIXED])
    with RunStore(folder, {}, sharing.get("rank", 0)) as store:
        own = ids[sharing.get("rank", 0) :: sharing.get("world", 1)]
        counted = CountedRun(store, metric, own)
        counted.keep_thumbnails(FIXED, class_labels(dataset.class_names))
        count_images(dataset, own, [counted], lambda: segment, batch_size=sharing.get("batch_size", 1))
        metric = metric.empty_copy()
        if (records := collect(ids, metric, store)) is None:
            return None
        results = summarise(
            dataset,
            CONFIG,
            protocol,
            metric,
            records,
            fixed=FIXED,
            settings=SETTINGS,
            origins=store.origins(),
            asked=("open", "vocabulary"),
        )
        write_results(store, results)
    return results


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    return folder, run(folder)


@pytest.fixture(scope="module")
def browser():
    with open_browser() as opened:
        yield opened


@pytest.fixture
def page(browser, finished):
    with open_page(browser) as opened:
        opened.goto((finished[0] / "report.html").as_uri())
        yield opened


def column(page, number):
    return page.locator(f"#classes tbody tr > *:nth-child({number})").all_inner_texts()


def test_the_page_loads_nothing_and_complains_of_nothing(page, finished):
    own = [url for url in page.requests if not url.startswith("data:")]
    assert own == [(finished[0] / "report.html").as_uri()] and page.complaints == []
    assert page.locator("img").count() == 2 * KEPT
    assert page.evaluate("[...document.images].every(image => image.complete && image.naturalWidth > 0)")


def test_names_and_ids_are_text(page):
    assert page.title() == f"{SETTINGS['choices']['model']} on toy & co"
    assert page.locator("script").count() == 1 and page.locator("img[src=x]").count() == 0
    assert f"dog {HOSTILE}" in column(page, 1)[2]
    assert f"i3: label {HOSTILE} cannot be read" in page.locator("body").inner_text()


def test_a_click_on_a_header_sorts(page):
    first = column(page, 1)
    head = page.locator("#classes thead th").nth(1)
    assert head.get_attribute("aria-sort") == "none"
    head.locator("button").click()
    falling = column(page, 2)
    numbers = [float(text) for text in falling if text != "–"]
    assert head.get_attribute("aria-sort") == "descending" and numbers == sorted(numbers, reverse=True)
    assert column(page, 1) != first and falling[-1] == "–"  # no birds: last, either way
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending" and column(page, 2)[-1] == "–"
    assert [float(text) for text in column(page, 2)[:-1]] == numbers[::-1]
    page.locator("#classes thead button").first.click()
    assert head.get_attribute("aria-sort") == "none" and column(page, 1) == sorted(first, key=str.lower)


def test_the_page_shows_the_numbers_of_the_results(page, finished):
    text, results = page.locator("main").inner_text(), finished[1]
    for which in ("best", "fixed"):
        number = results["metrics"][which]["mIoU"]
        assert f"{100 * number['value']:.1f}" in text
        assert "{:.1f} to {:.1f}".format(*(100 * end for end in number["interval"])) in text
    assert "23 of 24 images, ask open, words vocabulary." in page.locator("header").inner_text()
    for caveat in results["oracle"].values():
        assert caveat[1:] in text
    assert page.locator("svg.chart").nth(1).locator("circle.a").count() == len(CONFIG.thresholds)
    shown = page.locator("dl.distribution dt").all_inner_texts()
    assert sorted(shown) == sorted(each["name"] for each in results["per_class"] if each["id"])  # no bar of background
    share = "all => Math.max(...all.map(each => Number(each.style.getPropertyValue('--share'))))"
    assert page.locator("dl.distribution .pair i").evaluate_all(share) == 1  # of the largest class
    page.get_by_text("most frequent confusions").click()
    assert page.get_by_text("of the true class").is_visible()


def test_presence_is_shown_and_only_where_it_was_not_told(page, finished):
    heading = page.get_by_role("heading", name="Presence", exact=True)
    part, found = page.locator("section", has=heading), finished[1]["presence"]
    text = part.inner_text()
    for name in ("precision", "recall", "auc"):
        assert f"{100 * found[name]['value']:.1f} %" in text.replace("\n", " ")
        assert "{:.1f} to {:.1f}".format(*(100 * end for end in found[name]["interval"])) in text
    assert found["words"]["offered"] == 3 * 23 and "69 words were looked for in 23 images" in text
    bins = [each for each in found["reliability"] if each["words"]]
    assert part.locator("circle.a").count() == len(bins) >= 3
    part.get_by_text("Images by class").click()
    rows = part.locator("tbody tr").all_inner_texts()
    assert rows[2].split() == ["fish", "23", "0", "0", "0"] and HOSTILE in rows[1]
    assert presence({key: value for key, value in finished[1].items() if key != "presence"}) is None


def test_dark_and_light_follow_the_reader(browser, finished):
    def colours(dark):
        with open_page(browser, dark=dark) as page:
            page.goto((finished[0] / "report.html").as_uri())
            get = "e => { const s = getComputedStyle(e); return [s.backgroundColor, s.color] }"
            return page.locator("body").evaluate(get)

    def brightness(colour):
        return sum(int(part) for part in colour.strip("rgb()").split(","))

    (light_page, light_ink), (dark_page, dark_ink) = colours(False), colours(True)
    assert brightness(light_page) > 600 > 200 > brightness(light_ink)
    assert brightness(dark_page) < 200 < 600 < brightness(dark_ink)


def test_on_a_phone_nothing_hangs_over_the_edge(browser, finished):
    with open_page(browser, width=360, height=740) as page:
        page.goto((finished[0] / "report.html").as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        stacked = "[...document.querySelectorAll('table.stacked')].map(each => [each.parentElement, each])"
        rooms = f"{stacked}.map(([room, table]) => table.scrollWidth <= room.clientWidth)"
        assert page.evaluate(rooms) == [True, True]  # the result, and the classes
        cell = page.locator("#classes tbody td").first
        assert cell.evaluate("each => getComputedStyle(each, '::before').content") == '"IoU, best"'


def test_the_page_is_made_again_from_the_folder(finished, monkeypatch, capsys):
    folder, before = finished[0], (finished[0] / "report.html").read_bytes()
    (folder / "report.html").unlink()
    script = Path(__file__).parents[1] / "scripts" / "make_report.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(folder)])
    runpy.run_path(str(script), run_name="__main__")
    assert (folder / "report.html").read_bytes() == before
    assert capsys.readouterr().out.strip() == str(folder / "report.html")


def test_a_folder_without_results_is_an_error(tmp_path):
    with pytest.raises(RunError, match=r"no results\.json"):
        write_report(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"mIoU": {}}))
    with pytest.raises(RunError, match="older version"):
        write_report(tmp_path)


def test_a_missing_thumbnail_is_said(tmp_path):
    results = run(tmp_path)
    thumbnail_path(tmp_path, results["extremes"]["worst"][0]["image"]).unlink()
    assert write_report(tmp_path).read_text().count("No thumbnail was kept.") == 1


def test_runs_in_which_nothing_or_everything_was_skipped(tmp_path):
    for ids in (["i3"], ["i1"]):
        folder = tmp_path / ids[0]
        run(folder, ids=ids)
        assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert "i3" in (tmp_path / "i3" / "report.html").read_text()


def drawn(folder):
    return {path.name: path.read_bytes() for path in (folder / "gallery").iterdir()}


def shown(results):
    return {each["image"] for which in ("worst", "best") for each in results["extremes"][which]}


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_keeps_the_same_thumbnails(tmp_path, world):
    alone = run(tmp_path / "alone", Toy(40))
    shared = [run(tmp_path / "shared", Toy(40), rank=rank, world=world, batch_size=2) for rank in range(world)][-1]
    assert shared["extremes"] == alone["extremes"] and drawn(tmp_path / "shared") == drawn(tmp_path / "alone")
    names = {thumbnail_path(tmp_path / "alone", image).name for image in shown(alone)}
    assert names == set(drawn(tmp_path / "alone")) and len(names) == 2 * KEPT


def test_more_images_go_on_from_fewer(tmp_path):
    whole = run(tmp_path / "whole", Toy(40))
    run(tmp_path / "grown", Toy(40), ids=Toy(40).ids[:20])
    assert run(tmp_path / "grown", Toy(40))["extremes"] == whole["extremes"]
    assert drawn(tmp_path / "grown") == drawn(tmp_path / "whole")


def test_thumbnails_swatches_and_results_have_the_colours_of_the_names(finished):
    folder, results = finished
    expected = class_colours({each["id"]: each["name"] for each in results["per_class"]})
    assert {each["id"]: each["colour"] for each in results["per_class"]} == {i: as_hex(c) for i, c in expected.items()}
    page = (folder / "report.html").read_text()
    assert all(f"--colour:{each['colour']}" in page for each in results["per_class"])


def test_the_page_of_an_earlier_version_keeps_the_colours_of_its_thumbnails(tmp_path):
    results = run(tmp_path)
    for each in results["per_class"]:
        del each["colour"]
    (tmp_path / "results.json").write_text(json.dumps(results))
    for image in shown(results):
        thumbnail_path(tmp_path, image).rename(thumbnail_path(tmp_path, image, "bright"))
    page = write_report(tmp_path).read_text()
    assert f"--colour:{as_hex(bright_palette()[1])}" in page and "No thumbnail was kept." not in page


def test_the_worst_are_the_worst(finished):
    folder, results = finished
    lines = [json.loads(line) for line in (folder / "counts.jsonl").read_text().splitlines()]
    records = [line for line in lines if "cells" in line]
    ranks = rank_images(records, metric_for(Toy(), CONFIG, Protocol.of("paper"), extra=[FIXED]), FIXED)
    assert [each["image"] for each in results["extremes"]["worst"]] == [image for _, image in ranks[:KEPT]]
    assert [each["image"] for each in results["extremes"]["best"]] == [image for _, image in ranks[::-1][:KEPT]]
