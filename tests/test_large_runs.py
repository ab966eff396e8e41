"""Records of a run in the least time and memory: counts as arrays, logs read once."""

import json

import numpy as np
import pytest
from goca.benchmark.run_store import RunStore, parse_record
from goca.evaluation.metrics import PART, image_counts, packed

ROWS = [[1, 2, 3, 4], [5, 6, 7, 8]]
RECORDS = [
    {"image": "a", "cells": ROWS, "by": "x"},
    {"image": "a", "cells": []},
    {"image": "a", "skipped": 'the text "cells":[[1,2,3,4]] in it'},
    {"cells": [[1, 2, 3]]},
    {"cells": [[1, 2, 3, 4.5]]},
    {"cells": [[1, 2, 3, -4]]},
    {"cells": [[[1, 2, 3, 4]]]},
    {"cells": [[1, 2], [3, 4, 5, 6, 7, 8]]},
    {"cells": [[1, 2, 3, 4]], "cells_too": [[1]]},
]


@pytest.mark.parametrize("record", RECORDS)
def test_a_line_is_read_as_json_reads_it(record):
    found = parse_record(json.dumps(record, separators=(",", ":")).encode())
    assert {key: each.tolist() if isinstance(each, np.ndarray) else each for key, each in found.items()} == record


def test_counts_are_packed_where_they_fit():
    assert packed(ROWS).dtype == np.int32 and packed([]).shape == (0, 4)
    assert packed([[0, 0, 0, 1 << 40]]).tolist() == [[0, 0, 0, 1 << 40]]
    assert packed("nonsense") == "nonsense"


def test_what_was_read_is_not_read_again(tmp_path):
    with RunStore(tmp_path / "run", {}) as store:
        store.declare({"device": "cpu"})
        store.append({"image": "a", "cells": np.array(ROWS)})
        first = store.records()
        store.append({"image": "b", "skipped": "torn"})
        (tmp_path / "run/counts.1.jsonl").write_bytes((tmp_path / "run/counts.jsonl").read_bytes().replace(b"a", b"c"))
        later = store.records()
        assert list(first) == ["a"] and list(later) == ["a", "b"]  # a checksum that does not fit is no record
        assert later["a"] is first["a"] and later["a"]["cells"].tolist() == ROWS
        assert [origin["device"] for origin in store.origins().values()] == ["cpu"]


def test_image_counts_in_parts_are_those_of_each_image():
    rng = np.random.default_rng(0)
    images = [np.stack([*rng.integers(0, 5, (2, 9)), rng.integers(0, 4, 9), rng.integers(1, 99, 9)], 1) for _ in "ab"]
    images += [np.zeros((0, 4), np.int64)] * (PART - 1) + images
    together = image_counts(images, 5, 1)
    for number in (0, 1, PART, PART + 1, len(images) - 1):
        alone = image_counts([images[number]], 5, 1)
        assert all(np.array_equal(whole[number], each[0]) for whole, each in zip(together, alone))
