"""What every test may use: the recorded outputs that a faithful implementation must meet."""

import os
from pathlib import Path

import pytest

GOLDENS = Path(os.environ.get("GOCA_GOLDENS", Path(__file__).parents[2] / "shared" / "goldens"))


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The folder of recorded outputs (`GOCA_GOLDENS`). Absent: skipped aloud, or a failure where `CI=true`."""
    if not (GOLDENS / "README.md").is_file():
        reason = f"no recorded outputs under {GOLDENS}; set GOCA_GOLDENS to the folder that holds set1_end_to_end/"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    return GOLDENS


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of Stable Diffusion's kind, tiny and random."""
    from tiny import save_sd

    return save_sd(tmp_path_factory.mktemp("pipelines") / "tiny-sd")
