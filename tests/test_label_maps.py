"""Predicted label maps that a run keeps: their values, names and folders."""

from pathlib import Path

import commands
import numpy as np
from goca.benchmark.counting import CountedRun, count_images
from goca.benchmark.label_maps import LabelMaps
from goca.benchmark.prediction import Case
from goca.benchmark.run_store import RunStore
from goca.benchmark.tasks import metric_for
from goca.protocol import Protocol
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from toy_runs import CONFIG, IDS, Toy, segment

# ---- predicted label maps


def test_predicted_label_maps_are_kept(tmp_path):
    def go(ids, thresholds):
        metric = metric_for(Toy(), CONFIG, Protocol.of("paper"), extra=[0.05])
        seen = []
        with RunStore(tmp_path, {"t": 100}) as store:
            counted = CountedRun(store, metric, ids, label_maps=LabelMaps(tmp_path, metric, thresholds))
            count_images(Toy(), ids, [counted], lambda: segment, progress=lambda left: seen.extend(left) or left)
        return metric, seen

    metric, seen = go(IDS[:3], thresholds=(-0.1, 0.05))
    assert seen == IDS[:3]
    files = sorted(str(path.relative_to(tmp_path / "label_maps")) for path in tmp_path.rglob("*.png"))
    assert files == sorted(f"{threshold}/{image}.png" for threshold in ("-0.1", "0.05") for image in IDS[:3])
    sample = Toy().sample("i1")
    prediction = segment([Case(sample, sample.label)])[0]
    for threshold in (-0.1, 0.05):
        image = Image.open(tmp_path / "label_maps" / f"{threshold:g}" / "i1.png")
        expected = metric.predict(prediction.scores, sample.label, prediction.class_ids, threshold)
        assert image.mode == "P" and image.getpalette()[3:6] == [128, 0, 0]
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert go(IDS[:3], thresholds=(-0.1, 0.05))[1] == []  # nothing is done again
    assert go(IDS[:3], thresholds=(0.0,))[1] == IDS[:3]  # unless other files are asked for
    assert sorted(path.name for path in (tmp_path / "label_maps").iterdir()) == ["-0.1", "0", "0.05"]


def test_folders_of_an_image_id_become_part_of_its_file_name():
    maps = LabelMaps(Path("a"), metric_for(Toy(), CONFIG, Protocol.of("paper")), (0,))
    names = [maps.paths(each)[0].name for each in ("ulm/ulm_0", "ulm_ulm_0", "ulm_ulm/0")]
    assert names[1] == "ulm_ulm_0.png" and len(set(names)) == 3
    assert all(name.startswith("ulm_ulm_0") for name in names)


@given(st.text(max_size=40))
def test_no_image_id_leads_out_of_the_folder(image_id):
    maps = LabelMaps(Path("/runs/a"), metric_for(Toy(), CONFIG, Protocol.of("paper")), (0,))
    path = maps.paths(image_id)[0]
    assert path.parent == Path("/runs/a/label_maps/0")
    assert path.name.endswith(".png") and not path.name.startswith(".") and "/" not in path.name


def test_label_maps_of_a_run_on_the_command_line(tmp_path, monkeypatch, capsys):
    done = commands.main(monkeypatch, capsys, tmp_path, "limit=2", "device=cpu", "run_dir=a", "label_maps=fixed")
    assert done.code in (0, None), done.err
    assert sorted(path.name for path in (tmp_path / "a/label_maps/0").iterdir()) == ["test_00000.png", "test_00001.png"]
