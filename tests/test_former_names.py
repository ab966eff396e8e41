"""Names that have changed go on working, with a warning that gives the present one."""

import diffusion_feature.images
import diffusion_feature.latents
import goca.refine
import pytest
import torch
from goca import trace
from goca.generation.averages import WordMap


@pytest.mark.parametrize(
    ("module", "former", "now"),
    [
        (diffusion_feature, "PictureUnreadable", "ImageUnreadable"),
        (diffusion_feature.images, "PictureUnreadable", "ImageUnreadable"),
        (diffusion_feature.latents, "picture_size", "size_in_pixels"),
        (diffusion_feature.latents, "read_picture", "preprocess"),
        (goca.refine, "PictureMissing", "ImageMissing"),
        (goca.refine, "PictureReduced", "ImageReduced"),
    ],
)
def test_names_of_modules(module, former, now):
    with pytest.warns(FutureWarning, match=f"{former} is now called {now}") as caught:
        assert getattr(module, former) is getattr(module, now)
    assert caught[0].filename == __file__
    with pytest.raises(AttributeError, match="has no 'Picture'"):
        module.Picture  # noqa: B018


def test_images_of_a_trace_and_of_a_word_map():
    image = torch.zeros(3, 8, 8)
    one = WordMap("cat", (1,), torch.zeros(2, 2), torch.zeros(2, 2), image)
    with pytest.warns(FutureWarning, match="WordMap.picture is now called WordMap.image"):
        assert one.picture is image
    traced = trace.__new__(trace)  # without a pipeline
    with pytest.warns(FutureWarning, match=r"trace\.pictures is now called trace\.images"):
        traced.pictures = [image]
    with pytest.warns(FutureWarning, match=r"trace\.pictures is now called trace\.images"):
        assert traced.pictures is traced.images
