"""What every test may use: recorded outputs that a faithful implementation must meet, and tiny models."""

import os
from pathlib import Path

import pytest
from goca.embedded import resolve
from PIL import Image

RECORDED = Path(__file__).parent / "recorded"
FULL_RECORD = Path(os.environ.get("GOCA_GOLDENS", Path(__file__).parents[2] / "shared" / "goldens"))


def pytest_report_header() -> str:
    return f"full record: {FULL_RECORD if has_full_record() else 'not here (GOCA_GOLDENS); its tests are left out'}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests of the full record out where it is not, since it cannot be installed; keep them where CI=true."""
    if has_full_record() or os.environ.get("CI") == "true":
        return
    out = [item for item in items if "full_record" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=out)
    items[:] = [item for item in items if item not in out]


def has_full_record() -> bool:
    return (FULL_RECORD / "README.md").is_file()


@pytest.fixture(scope="session")
def goldens() -> Path:
    """The recorded outputs that stand in the repository: tests/recorded/, whose README says what they are."""
    assert (RECORDED / "README.md").is_file(), f"{RECORDED} is incomplete; restore it: git checkout tests/recorded"
    return RECORDED


@pytest.fixture(scope="session")
def full_record() -> Path:
    """The folder with other people's captions, labels and tokenizers too (`GOCA_GOLDENS`)."""
    if not has_full_record():
        pytest.fail(f"CI=true, but there is no full record under {FULL_RECORD}; set GOCA_GOLDENS to its folder")
    return FULL_RECORD


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is remembered of data sets stays within the tests."""
    os.environ["GOCA_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of Stable Diffusion's kind, tiny and random."""
    from tiny import save_sd

    return save_sd(tmp_path_factory.mktemp("pipelines") / "tiny-sd")


@pytest.fixture(scope="session")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """ "clip", "t5" and "bert" tokenizers to which the words of the tests' captions are one token each."""
    from tiny_tokenizers import tokenizers

    words = """street carpet person kitten traffic wheel light bird clothes grass furniture outdoor man car truck
               tree the cat sky dog wall sea sport equipment"""
    return tokenizers(tmp_path_factory.mktemp("tokenizers"), words.split())


@pytest.fixture(scope="session")
def embedded():
    """A segmenter on the embedded model."""
    from goca import Segmenter

    return Segmenter.from_pretrained(None, "mini-sd", device="cpu")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch, embedded) -> None:
    """Whatever model a command asks for, it gets the embedded one, loaded once."""
    from goca import Segmenter

    monkeypatch.setattr(Segmenter, "from_pretrained", classmethod(lambda *_, **__: embedded))


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are given in an empty folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scene() -> Image.Image:
    """An image of the embedded scenes: a star, a wall, snow."""
    return Image.open(f"{resolve('goca:scenes')}/JPEGImages/test_00000.png").convert("RGB")
