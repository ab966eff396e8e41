"""Every scheduler of diffusers on a model: the noise is that of t, or the error names the scheduler to use."""

import diffusers
import pytest
import tiny
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMatchEulerDiscreteScheduler,
    LCMScheduler,
)
from diffusion_feature import ExtractorError
from diffusion_feature.families import VERSIONS
from goca.segmenter import Segmenter
from PIL import Image

TRAINED = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SIDE = (64, 64)
NAMES = [name for name in dir(diffusers) if name.endswith("Scheduler") and not name.startswith(("Flax", "Scheduler"))]


def made(name, **more):
    """As a user swaps it in; None where it cannot be made from another one's config."""
    try:
        return getattr(diffusers, name).from_config(dict(DDIMScheduler(**TRAINED, **more).config))
    except (TypeError, ValueError, ImportError):
        return None


def level(scheduler, version, t, rule):
    return VERSIONS[version].noise_level(scheduler, t, rule, SIDE)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("name", NAMES)
def test_the_noise_is_that_of_t_or_it_is_refused(name, spacing):
    scheduler = made(name, timestep_spacing=spacing, steps_offset=1)
    if scheduler is None:
        pytest.skip(f"{name} cannot be made from another scheduler's config")
    alphas = getattr(scheduler, "alphas_cumprod", DDIMScheduler(**TRAINED).alphas_cumprod)
    wanted = float(1 - alphas[100]) ** 0.5  # 0.325, but for CogVideoX's own
    for rule in ("nominal", "pipeline"):
        try:
            found = level(scheduler, "1-5", 100, rule)
        except ExtractorError as error:
            assert "DDIMScheduler" in str(error) and name in str(error)
            continue
        assert found.noise == pytest.approx(wanted, abs=2e-2)
        assert found.signal**2 + found.noise**2 == pytest.approx(1)


@pytest.mark.parametrize("name", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep", "SASolver", "LCM", "TCD"])
def test_the_scheduler_that_is_named_works(name):
    scheduler = made(f"{name}Scheduler", timestep_spacing="leading", steps_offset=1)
    with pytest.raises(ExtractorError, match=r"DDIMScheduler.from_config\(pipe.scheduler.config\)`, .*noise=nominal"):
        level(scheduler, "1-5", 100, "pipeline")
    assert level(DDIMScheduler.from_config(scheduler.config), "1-5", 100, "pipeline").timestep == 100
    assert level(scheduler, "1-5", 100, "nominal").noise == pytest.approx(0.3252, abs=1e-3)


def test_both_numbers_are_in_the_message():
    scheduler = made("DPMSolverMultistepScheduler", timestep_spacing="leading", steps_offset=1)
    with pytest.raises(ExtractorError, match=r"timestep 1 \(noise 0.041\) where t = 100 means 100 \(noise 0.325\)"):
        level(scheduler, "1-5", 100, "pipeline")


@pytest.mark.parametrize("version", ["flux", "sd3"])
def test_a_flow_model_with_another_scheduler(version):
    assert level(DDIMScheduler(**TRAINED), version, 150, "nominal").noise == pytest.approx(0.15)
    for name in ("DDIMScheduler", "DPMSolverMultistepScheduler", "LCMScheduler", "EDMEulerScheduler"):
        with pytest.raises(ExtractorError, match=f"{name} .*FlowMatchEulerDiscreteScheduler.from_config"):
            level(made(name), version, 150, "pipeline")
    named = FlowMatchEulerDiscreteScheduler.from_config(DDIMScheduler(**TRAINED).config)
    assert 0.1 < level(named, version, 150, "pipeline").noise < 0.5


def test_zero_terminal_snr():
    plain, rescaled = DDIMScheduler(**TRAINED), DDIMScheduler(**TRAINED, rescale_betas_zero_snr=True)
    found = level(rescaled, "1-5", 100, "nominal")
    assert found.noise == pytest.approx(float(1 - rescaled.alphas_cumprod[100]) ** 0.5)
    assert found.noise > level(plain, "1-5", 100, "nominal").noise
    assert level(rescaled, "1-5", 999, "nominal").signal == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("scheduler", [DPMSolverMultistepScheduler, LCMScheduler, EDMEulerScheduler])
def test_a_segmenter_under_the_released_protocol(scheduler, tiny_sd):
    """The message comes through, the remedy works, and the pipeline's scheduler stays what it is."""
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(tiny_sd, requires_safety_checker=False)
    own, image = pipe.scheduler, Image.new("RGB", (40, 30), "red")
    pipe.scheduler = scheduler.from_config(own.config)
    before = dict(pipe.scheduler.config), list(pipe.scheduler.timesteps)
    with pytest.raises(ExtractorError, match="DDIMScheduler"):
        Segmenter.from_pretrained(pipe, tiny.SD_CONFIG | {"protocol": "released"})(image, "cat, sky", ask="complete")
    assert (dict(pipe.scheduler.config), list(pipe.scheduler.timesteps)) == before
    pipe.scheduler = DDIMScheduler.from_config(own.config)
    Segmenter.from_pretrained(pipe, tiny.SD_CONFIG | {"protocol": "released"})(image, "cat, sky", ask="complete")
