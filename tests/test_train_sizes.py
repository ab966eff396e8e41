"""Training on images of half the side: what is shown when, latents encoded on demand, and one frame of coordinates."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from diffusion_feature.families.packed import places
from goca.embedded import resolve

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY / "scripts"))

from embedded.mini_data import EncodedOnDemand, encode_images, to_unit  # noqa: E402
from embedded.mini_family import spread_places  # noqa: E402
from train_mini import RECIPES, Recipe, sees_halved  # noqa: E402

CPU = torch.device("cpu")
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)


def test_most_steps_see_halved_images():
    recipe = Recipe(steps=4000, halved=7 / 8)
    seen = [sees_halved(recipe, step) for step in range(4000)]
    assert abs(np.mean(seen) - 7 / 8) < 0.02 and not all(seen[-20:])
    assert [sees_halved(replace(recipe, steps=8000), step) for step in range(4000)] == seen


@pytest.mark.parametrize("kind", ["mini-sd", "mini-sd-small"])
def test_unets_see_whole_images_only(kind):
    assert not any(sees_halved(RECIPES[kind], step) for step in range(0, 6000, 7))


def test_half_the_side_is_the_mean_of_four_pixels():
    expected = torch.from_numpy(IMAGES.reshape(5, 32, 2, 32, 2, 3).mean((2, 4))).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(to_unit(IMAGES, CPU, 0.5), expected.float())


@pytest.mark.parametrize("enlarge", [0.5, 1, 2])
def test_latents_on_demand_are_those_of_the_file(tmp_path, enlarge):
    vae = AutoencoderKL.from_pretrained(resolve("goca:mini-sd"), subfolder="vae", dtype=torch.float32)
    kept = encode_images(tmp_path / "latents.npy", vae, IMAGES, CPU, enlarge)
    some = EncodedOnDemand(vae, IMAGES, CPU, enlarge)
    picked = np.array([7, 0, 4, 5, 9])  # mirrored ones among them
    assert len(some) == len(kept) == 10 and kept.shape[-1] == 16 * enlarge
    np.testing.assert_allclose(some[picked], kept[picked], atol=5e-3)


def test_tokens_of_a_halved_image_lie_in_the_middle_of_four():
    whole = spread_places(16)
    assert torch.equal(whole, places(16, 16))
    four = whole.view(8, 2, 8, 2, 3).mean((1, 3)).view(-1, 3)
    assert torch.equal(spread_places(8), four)


def test_pixart_gives_both_sizes_the_same_frame():
    settings = {"num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16, "num_layers": 1}
    model = PixArtTransformer2DModel(
        **settings, in_channels=4, out_channels=4, caption_channels=8, sample_size=16, patch_size=1, norm_num_groups=4
    )
    model.pos_embed.proj.requires_grad_(False).weight.zero_()
    model.pos_embed.proj.bias.zero_()
    whole, halved = (model.pos_embed(torch.zeros(1, 4, side, side))[0] for side in (16, 8))
    torch.testing.assert_close(whole.view(16, 16, 16)[::2, ::2], halved.view(8, 8, 16), atol=1e-5, rtol=0)
