"""One base for GoCA's errors, and which errors a command reports by their message alone."""

import pkgutil
from importlib import import_module

import diffusion_feature
import goca
import pytest
from diffusion_feature import LayerNotFound, ModelFailed
from goca.datasets.base import DatasetNotFound
from goca.errors import GocaError, explained
from goca.schema import ConfigError
from goca.segmentation import ClassNotFound


def defined_errors():
    """Every exception class that a module of goca defines, except warnings."""
    for found in pkgutil.walk_packages(goca.__path__, "goca."):
        if found.name == "goca.__main__":  # importing it runs the command
            continue
        kinds = [each for each in vars(import_module(found.name)).values() if isinstance(each, type)]
        for kind in kinds:
            if kind.__module__ == found.name and issubclass(kind, Exception) and not issubclass(kind, Warning):
                yield kind


def test_every_named_error_of_goca_has_the_one_base():
    errors = set(defined_errors())
    assert len(errors) > 30, "the walk through the package finds its errors"
    assert not [kind for kind in errors if not issubclass(kind, GocaError)]


def test_the_base_is_public_and_builtin_bases_stay():
    assert goca.GocaError is GocaError
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ClassNotFound, KeyError)
    assert issubclass(DatasetNotFound, FileNotFoundError)


@pytest.mark.parametrize("error", [ConfigError("x"), LayerNotFound("x"), ModelFailed("x"), FileNotFoundError("x")])
def test_named_errors_and_those_of_files_are_explained(error):
    assert explained(error)


@pytest.mark.parametrize("kind", [ValueError, KeyError, RuntimeError, ImportError])
def test_other_errors_are_not_explained_wherever_they_come_from(kind):
    assert not explained(kind("x"))
    imitation = type("ConfigError", (kind,), {"__module__": "goca.schema"})  # the module's name decides nothing
    assert not explained(imitation("x"))


def test_errors_of_the_extractor_are_not_gocas():
    assert not issubclass(diffusion_feature.ExtractorError, GocaError)  # goca imports the extractor, never the reverse
