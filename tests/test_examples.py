"""The notebooks in examples/: they run, produce the kinds of output that are kept in them, and stay small."""

import asyncio
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


def kinds(notebook):
    """For each code cell, the kinds of its outputs: printed text, a figure, a value. Warnings are left out."""
    return [
        {
            "text" if output.output_type == "stream" else "figure" if "image/png" in output.data else "value"
            for output in cell.outputs
            if output.get("name") != "stderr"
        }
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["look_inside_one_score", "segment_an_image", "trace_a_generation"]
    listed = (ROOT / "examples/README.md").read_text()
    assert all(f"({path.name})" in listed for path in NOTEBOOKS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_names_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    text = path.read_text(encoding="utf-8")
    assert len(text) < 200_000 and set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert not any(place in text for place in ("/home/", "/root/", "/tmp/", "/work/", "site-packages"))
    assert any("figure" in each for each in kinds(notebook))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_keeps(path, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    kept = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    for cell in fresh.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    client = NotebookClient(fresh, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}})
    asyncio.run(client.async_execute())
    assert kinds(fresh) == kinds(kept)
