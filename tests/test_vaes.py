"""Latents of every kind of VAE: those that diffusers' own pipelines hand to their denoisers; sizes; 16 bits."""

import pytest
import tiny
import torch
from diffusers import AutoencoderTiny, Flux2Pipeline, QwenImageImg2ImgPipeline
from diffusion_feature.latents import size_in_pixels, vae_latents
from diffusion_feature.vaes import KINDS, kind_of
from tiny_large import flux2_vae
from zoo import ZOO

# kind of VAE -> a model of the zoo that has it, and its factor there
HOMES = {
    "AutoencoderKLFlux2": ("flux2-klein-4b", 16),
    "AutoencoderKLQwenImage": ("qwen-image", 4),
    "AutoencoderDC": ("sana", 8),
    "AutoencoderKLHunyuanImage": ("hunyuan-image", 8),
    "AutoencoderKL": ("chroma", 4),
}


@pytest.fixture(scope="module")
def pixels():
    return torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.fixture(scope="module", params=HOMES)
def home(request, tmp_path_factory):
    name, factor = HOMES[request.param]
    pipe = ZOO[name].read(ZOO[name].save(tmp_path_factory.mktemp("pipelines") / name))
    assert type(pipe.vae).__name__ == request.param
    return pipe.vae, factor


@torch.no_grad()
def test_latents_have_the_channels_and_the_size_that_the_kind_says(home, pixels):
    vae, factor = home
    kind, parts = kind_of(vae), {"vae": vae}
    latents = vae_latents(parts, pixels, "mean", None)
    assert (
        latents.shape == (1, kind.channels(vae.config), 64 // factor, 96 // factor) and latents.dtype == torch.float32
    )
    assert kind.factor(vae.config) == factor and size_in_pixels(parts, latents) == (64, 96)
    if type(vae).__name__ != "AutoencoderDC":  # it has no posterior
        one, other = (vae_latents(parts, pixels, "sample", torch.Generator().manual_seed(1)) for _ in range(2))
        assert torch.equal(one, other) and not torch.equal(one, latents)


@torch.no_grad()
def test_latents_are_decoded_as_the_pipelines_do_it(home, pixels):
    """What the pipelines apply before they decode gives the VAE's own latents back."""
    vae, _ = home
    found, config = vae_latents({"vae": vae}, pixels, "mean", None), vae.config
    if type(vae).__name__ == "AutoencoderKLFlux2":
        mean, std = vae.bn.running_mean, (vae.bn.running_var + config.batch_norm_eps).sqrt()
        raw = Flux2Pipeline._unpatchify_latents(found * std[:, None, None] + mean[:, None, None])
    elif type(vae).__name__ == "AutoencoderKLQwenImage":
        mean, std = (torch.tensor(each)[:, None, None] for each in (config.latents_mean, config.latents_std))
        raw = found * std + mean
    else:
        raw = found / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    encoded = vae.encode(pixels[:, :, None] if kind_of(vae).frames else pixels)
    own = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
    torch.testing.assert_close(raw, own.squeeze(2) if kind_of(vae).frames else own, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_flux2_s_latents_are_those_of_its_pipeline(pixels):
    vae = flux2_vae().eval()

    class Alone:
        _patchify_latents = staticmethod(Flux2Pipeline._patchify_latents)

    pipe = Alone()
    pipe.vae = vae
    theirs = Flux2Pipeline._encode_vae_image(pipe, pixels, None)
    torch.testing.assert_close(vae_latents({"vae": vae}, pixels, "mean", None), theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_qwen_image_s_latents_are_those_of_its_pipeline(tmp_path, pixels):
    pipe = ZOO["qwen-image"].read(ZOO["qwen-image"].save(tmp_path / "qwen"))
    other = QwenImageImg2ImgPipeline(**pipe.components)
    theirs = other._encode_vae_image(pixels[:, :, None], torch.Generator().manual_seed(2)).squeeze(2)
    ours = vae_latents({"vae": pipe.vae}, pixels, "sample", torch.Generator().manual_seed(2))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_kandinsky_5_leaves_the_shift_out(pixels):
    vae = tiny.vae(shift_factor=0.5).eval()
    shifted, plain = (vae_latents({"vae": vae}, pixels, "mean", None, shifted=each) for each in (True, False))
    torch.testing.assert_close(plain - shifted, torch.full_like(plain, 0.5 * vae.config.scaling_factor))


def test_every_kind_is_tried_here():
    assert set(KINDS) - set(HOMES) == {"AutoencoderKLWan"}  # the same code as Qwen-Image's; no family has it yet
    assert kind_of(AutoencoderTiny()).factor(AutoencoderTiny().config) == 8
