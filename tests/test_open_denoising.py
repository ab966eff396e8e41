"""Presence by denoising: the gain of a word, targets of each kind of prediction, options, and all families."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusion_feature import ExtractorError
from diffusion_feature.backbone import NoiseLevel
from diffusion_feature.noise import target
from families import FAMILIES
from goca.config import ConfigError, load_config
from goca.method.batch_budget import BatchBudget
from goca.open import Query
from goca.open.denoising import gain
from goca.segmenter import Segmenter
from hypothesis import given
from hypothesis import strategies as st
from test_open import SCENE, drawn


@pytest.fixture(scope="module")
def mini():
    return Segmenter.from_pretrained(None, "mini-sd", device="cpu")


@pytest.fixture(scope="module", params=FAMILIES.values(), ids=FAMILIES.keys())
def family(request, tmp_path_factory):
    folder = request.param.save(tmp_path_factory.mktemp("open") / "pipeline")
    return Segmenter.from_pretrained(str(folder), request.param.config, device="cpu")


def with_gain(segmenter, **options):
    config = load_config(segmenter.config, presence="denoising gain", denoising={"t": [300, 700], "draws": 1} | options)
    return Segmenter(segmenter.extractor, config)


def test_a_word_gains_where_it_predicts_best():
    """Closed form: two words, each best in one half; a third that is worse everywhere."""
    errors = torch.ones(3, 1, 1, 40)
    errors[0, ..., :20], errors[1, ..., 20:], errors[2] = 0, 0, 2
    first, second, third = gain(errors, 0.1).tolist()
    spread = (errors.mean(0) - errors).std(correction=0)
    assert first == pytest.approx(1 / float(spread), rel=1e-4) == second
    assert third == pytest.approx(-2 / float(spread), rel=1e-4)
    assert gain(torch.ones(2, 1, 4, 4), 1.5).tolist() == [0, 0]


@given(st.integers(2, 5), st.floats(0.1, 50), st.floats(-3, 3))
def test_gain_has_no_unit(words, scale, shift):
    errors = torch.rand(words, 2, 4, 6, generator=torch.Generator().manual_seed(words))
    torch.testing.assert_close(gain(scale * errors + shift, 1.5), gain(errors, 1.5), rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(gain(errors.flip(0), 1.5), gain(errors, 1.5).flip(0))
    assert (gain(errors, 1.5) >= 0).any()  # at every place some word is the best


def test_a_probe_finds_absent_words_and_only_present_ones_are_in_the_prompt(mini):
    query = Query.of_words(["star", "mushroom", "house", "ball"])
    probed = Segmenter(mini.extractor, load_config(mini.config, presence="denoising gain"))
    answer = next(probed.look_for([SCENE], [query]))
    assert answer.present == (True, False, True, False) and min(answer.presence[::2]) > max(answer.presence[1::2])
    assert answer.prompts[0].startswith("star house ") and answer.class_ids == [1, 2, 3, 4]
    assert (answer.scores[[1, 3]] == 0).all() and all((answer.scores[[0, 2]] > 0).any((1, 2)))
    reduced = next(mini.look_for([SCENE], [Query.of_words(["star", "house"])]))
    torch.testing.assert_close(answer.scores[[0, 2, 4]], reduced.scores)  # as if those alone had been asked for
    nothing = with_gain(mini, least=1.0)(SCENE, "star, ball")
    assert nothing.present == (False, False) and (nothing.label_map() == 0).all()


def test_one_word_without_a_vocabulary_has_nothing_to_be_compared_with(mini):
    plain = Segmenter(mini.extractor, load_config(mini.config, background_words="none"))
    one, other = (next(each.look_for([SCENE], [Query.of_words("star")])) for each in (plain, with_gain(plain)))
    assert one.raw == other.raw and one.presence == other.presence


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"presence": "denoising"}, "denoising gain"),
        ({"denoising": {"timesteps": [3]}}, "denoising has no field timesteps; .*nearest: "),
        ({"denoising": {"t": []}}, "denoising.t"),
        ({"denoising": {"t": [1000]}}, "denoising.t"),
        ({"denoising": {"draws": 0}}, "denoising.draws"),
        ({"denoising": [3]}, "denoising is"),
        ({"denoising": {"least": 2}}, "denoising.least"),
    ],
)
def test_options_of_the_probe(fields, message):
    with pytest.raises(ConfigError, match=message):
        load_config("mini-sd", **fields)


def test_options_that_are_not_given_are_the_usual_ones():
    config = load_config("mini-sd", denoising={"t": [200]})
    assert config.denoising["t"] == (200,) and config.denoising["draws"] == 2
    assert load_config(config.to_dict()) == config


def test_every_family_predicts_what_the_probe_compares_with(family):
    """The same alone, in batches, in another order and under a bound; the prediction has the latents' shape."""
    images, names = drawn(2, family.config.img_size), ["a", "b"]
    queries = [Query.of_words("cat, dog, wall"), Query.of_words("grass")]
    probed = with_gain(family)
    together = list(probed.look_for(images, queries, None, names))
    back = list(probed.look_for(images[::-1], queries[::-1], None, names[::-1]))[::-1]
    family.budget.bytes_per_image or list(family.look_for(images, queries, None, names))
    bound = with_gain(Segmenter(family.extractor, family.config))
    used = probed.budget.bytes_per_image
    bound.budget = BatchBudget(3 * used, used)
    parts = list(bound.look_for(images, queries, None, names))
    for one, other, part in zip(together, back, parts):
        assert all(value > 0 for value in one.raw) and all(0 <= p <= 1 for p in one.presence)
        torch.testing.assert_close(other.raw, one.raw, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(part.raw, one.raw, rtol=1e-3, atol=1e-3)
        assert one.scores.isfinite().all() and len(one.scores) == len(one.presence) + 1


def test_targets_of_each_kind_of_prediction():
    """Each restores the image from the noised latents and the prediction."""
    clean, noise = torch.randn(2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(2))
    level = NoiseLevel(500, 0.8, 0.6)
    noised = level.signal * clean + level.noise * noise
    restored = {
        "epsilon": lambda p: (noised - level.noise * p) / level.signal,
        "v_prediction": lambda p: level.signal * noised - level.noise * p,
        "sample": lambda p: p,
    }
    for kind, restore in restored.items():
        scheduler = DDIMScheduler(prediction_type=kind)
        torch.testing.assert_close(restore(target(scheduler, level, clean, noise)), clean)
    flow, scheduler = NoiseLevel(300, 0.7, 0.3, flow=True), FlowMatchEulerDiscreteScheduler()
    noised = 0.7 * clean + 0.3 * noise
    torch.testing.assert_close(noised - 0.3 * target(scheduler, flow, clean, noise), clean)
    torch.testing.assert_close(noised + 0.3 * target(scheduler, flow, clean, noise, reversed_time=True), clean)
    unknown = SimpleNamespace(config=SimpleNamespace(prediction_type="score"))
    with pytest.raises(ExtractorError, match="expected one of: epsilon, v_prediction, sample"):
        target(unknown, level, clean, noise)
