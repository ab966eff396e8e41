"""Every model of the zoo on a tiny random pipeline: seen whole, unchanged, called as diffusers calls it, traced."""

import warnings

import pytest
import reference
import torch
from calls import Counted, arguments_of
from commands import main
from diffusion_feature import FeatureExtractor
from diffusion_feature.backbone import JOINT
from goca import Segmenter
from goca.generation.adapters import config_of
from goca.generation.trace import trace
from goca.guidance import SemanticGuidance
from goca.prompts import annotate, load_tokenizers
from goca.requests import make_requests
from PIL import Image
from tiny import Everything, Nothing
from zoo import ZOO

PROMPT = "cat, grass"
WORDS = ["cat", "grass"]


@pytest.fixture(scope="module", params=ZOO)
def model(request):
    return ZOO[request.param]


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    return model.save(tmp_path_factory.mktemp("pipelines") / model.version)


@pytest.fixture(scope="module")
def pipe(model, folder):
    return model.read(folder)


@pytest.fixture(scope="module")
def seg(model, folder):
    return Segmenter.from_pretrained(str(folder), model.config, device="cpu")


@pytest.fixture(scope="module")
def image():
    pixels = torch.randint(0, 256, (30, 44, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def seeded(number=0):
    return torch.Generator().manual_seed(number)


# ---- the tap


def test_every_attention_is_seen_and_nothing_changes(model, folder, image):
    """Of an image that is not square; the probabilities are those of an eager softmax."""
    size = (model.size, 2 * model.size)
    fx = FeatureExtractor((), model.version, "cpu", img_size=size, pipeline=str(folder))
    everything = Everything(*fx.features)
    tapped, bare = (fx.forward([PROMPT], [image], consumer, 257) for consumer in (everything, Nothing()))
    assert torch.equal(tapped, bare) and tapped.isfinite().all()
    assert len(everything.attentions) == len(fx.layers)
    length = text_tokens(fx, PROMPT)
    for a in everything.attentions:
        assert a.grid == (model.grid, 2 * model.grid)
        P = reference.softmax_of(a.query, a.key, a.mask, a.scale)
        torch.testing.assert_close(a.probabilities(), P, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(P @ a.value, a.result, rtol=1e-3, atol=1e-5)
        for name in a.layer.maps:
            kind = name.rsplit("-", 2)[1]
            keys = a.text_keys if kind == "cross" else a.image_keys
            torch.testing.assert_close(a.map(kind), P[:, :, a.image_queries, keys], rtol=1e-4, atol=1e-6)
            assert a.map(kind).shape[-1] == (length if kind == "cross" else a.grid[0] * a.grid[1])
            assert a.map(kind).sum(-1).amax() <= 1 + 1e-5
    grids = {tuple(feature.shape[-2:]) for name, feature in everything.dense.items() if feature.ndim == 4}
    assert (model.grid, 2 * model.grid) in grids and all(width == 2 * height for height, width in grids)
    assert len(grids) == 1 or "unet" in fx.parts
    assert {name for name, feature in everything.dense.items() if feature.ndim != 4} <= {
        n for n in fx.features if "-text-" in n or "-cross-" in n
    }


def text_tokens(fx, prompt):
    return fx.backbone.encode_text(fx.parts, [prompt]).length


def test_image_tokens_are_the_image_s(model, folder, image):
    """A change of the image's noise changes the queries of image tokens first: the first block's text is as it was."""
    fx = FeatureExtractor((), model.version, "cpu", img_size=model.size, pipeline=str(folder))
    seen = []
    for seed in (0, 1):
        kept = Everything()
        fx.forward([PROMPT], [image], kept, 257, seeds=[seed])
        seen.append(kept.attentions[0])
    one, other = seen
    moved = (one.query != other.query).any(-1)[0].all(0)  # [tokens]
    if one.layer.layout in JOINT:
        assert moved[one.image_queries].all()
        key = (one.key != other.key).any(-1)[0].any(0)
        assert not key[one.text_keys].any(), "text tokens of the first block do not know of the image"
        assert key[one.image_keys].all()


def test_no_attention_module_is_forgotten(model, folder, image):
    fx = FeatureExtractor((), model.version, "cpu", img_size=model.size, pipeline=str(folder))
    conditioning = fx.backbone.encode_text(fx.parts, [PROMPT])
    latents = fx.encode_images([image], "mean", [seeded()])
    level = fx.backbone.noise_level(fx.parts["scheduler"], 257, "nominal", tuple(latents.shape[-2:]))
    with torch.no_grad(), Counted() as counted:
        fx.backbone.denoise(fx.parts, latents, level, conditioning)
    alone = [path for path in paths(fx.denoiser) if path not in {id(layer.module) for layer in fx.layers}]
    assert counted.count == len(fx.layers) + len(alone) - model.without_softmax


def paths(denoiser):
    from diffusion_feature.extractor import is_attention

    return [id(module) for module in denoiser.modules() if is_attention(module)]


# ---- batches


def test_a_batch_is_its_images(model, folder, image):
    fx = FeatureExtractor((), model.version, "cpu", img_size=model.size, pipeline=str(folder))
    prompts, images = ["cat, sky", "dog, sky"], [image, image.rotate(90)]
    together = Everything()
    both = fx.forward(prompts, images, together, 257, seeds=[0, 1])
    for number in range(2):
        alone = Everything()
        single = fx.forward(prompts[number : number + 1], images[number : number + 1], alone, 257, seeds=[number])
        torch.testing.assert_close(both[number : number + 1], single, rtol=0, atol=1e-4)
        for a, b in zip(together.attentions, alone.attentions, strict=True):
            torch.testing.assert_close(a.rows().probabilities()[number], b.rows().probabilities()[0], rtol=0, atol=1e-5)


def test_prompts_of_any_length_share_a_call(seg, image):
    """Before refinement, which makes much of the last digit where maps are flat."""
    prompts, images = ["cat", "cat, grass, sky, wall, dog", "dog"], [image, image.rotate(90), image.rotate(180)]
    annotations = [seg.read_prompt(prompt)[0] for prompt in prompts]
    summaries = seg.summaries(make_requests(images, annotations))
    for annotation, each, (summary, number) in zip(annotations, images, summaries, strict=True):
        together = seg.rescale(summary.attention_map()[number], annotation)
        torch.testing.assert_close(together, seg.score_maps(each, annotation), rtol=0, atol=1e-3)


# ---- prompts


def test_words_are_found_among_the_denoiser_s_tokens(seg):
    """The classes' tokens read as the words; template, padding and marks are no content."""
    annotation, names = seg.read_prompt("cat, grass, sky")
    known = seg.extractor.backbone.tokenizers(seg.extractor.parts)
    reader = known["tokenizer"]
    ids = reader("cat, grass, sky")["input_ids"]
    assert list(names.values()) == ["cat", "grass", "sky"]
    for class_id, tokens in annotation.existent_objects.items():
        assert reader.decode([ids[token] for token in tokens]).strip() == names[class_id]
    content = sorted(token for tokens in annotation.existent_objects.values() for token in tokens)
    assert annotation.rescaling_token_id == content
    assert max(content) < text_tokens(seg.extractor, "cat, grass, sky")


def test_another_word_changes_only_tokens_from_there_on(seg):
    """The states at a word's positions are that word's: what is before is no other."""
    fx = seg.extractor
    annotation, _ = seg.read_prompt("cat, grass")
    first = annotation.existent_objects[2][0]
    one, other = (states_of(fx, prompt) for prompt in ("cat, grass", "cat, sky"))
    changed = (one[:, : first + 1] != other[:, : first + 1]).any(-1)[0]
    assert changed[first], "the word's own token"


def states_of(fx, prompt):
    arguments = fx.backbone.encode_text(fx.parts, [prompt]).arguments
    states = next(arguments[name] for name in ("encoder_hidden_states", "cap_feats") if name in arguments)
    return torch.stack(list(states)) if isinstance(states, list) else states


def test_captions_are_read_without_the_weights(model, folder, seg):
    """As the captioner does it: the tokenizers alone give the same annotation."""
    alone = seg.extractor.backbone.tokenizers(load_tokenizers(str(folder)))
    whole = seg.extractor.backbone.tokenizers(seg.extractor.parts)
    names = [[], ["cat"], ["sky"]]
    one, other = (
        annotate("cat, grass, sky", names, [1, 2], **each, add_background=True, add_missing=True)
        for each in (alone, whole)
    )
    assert one == other and all(one.existent_objects.values())


# ---- the forward is the one that diffusers' own pipeline makes


def test_the_denoiser_is_called_as_by_diffusers(model, pipe, image):
    fx = FeatureExtractor((), model.version, img_size=model.size, pipeline=pipe)
    theirs = arguments_of(fx.denoiser, lambda: model.run(pipe, PROMPT, generator=seeded(3)))
    t = 1000 if model.as_drawn else 900
    ours = arguments_of(fx.denoiser, lambda: fx.forward([PROMPT], [image], Nothing(), t, None, [3]))
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert value.numel() == ours[name].numel(), name
        if model.as_drawn or name not in ("hidden_states", "timestep", "sample", "x"):
            value = value.reshape(ours[name].shape)
            torch.testing.assert_close(ours[name].double(), value.double(), rtol=1e-5, atol=1e-5, msg=f"{name} differs")


# ---- the method


def test_an_image_is_segmented(seg, image):
    found = seg(image, "cat, grass, sky", ask="complete")
    assert found.scores.isfinite().all() and found.scores[:3].amax() > 0
    assert found.label_map().shape == (30, 44)
    assert seg(image, "cat, grass").scores.isfinite().all()  # ask=open


def test_a_benchmark_runs(request, model, folder, tmp_path, monkeypatch, capsys):
    """`main.py model=NAME dataset=scenes model.pipeline=FOLDER`, with the config's own layers."""
    name = request.node.callspec.params["model"]
    sizes = [f"model.img_size={model.size}", f"model.feat_size={model.grid}"]
    if name == "kolors":  # a UNet's blocks have names of their own, and the tiny one has fewer
        sizes += [f"model.{field}={model.own[field]}".replace("'", '"') for field in ("ref_layer", "self_layers")]
    said = main(
        monkeypatch,
        capsys,
        tmp_path,
        f"model={name}",
        "dataset=scenes",
        f"model.pipeline={folder}",
        *sizes,
        "limit=1",
        "run_dir=out",
        "device=cpu",
    )
    assert said.code == 0, said.err
    assert (tmp_path / "out" / "evaluation.txt").read_text().count("mIoU") == 9


def test_its_config_is_found(request, pipe):
    assert config_of(pipe).startswith(request.node.callspec.params["model"][:9])


def test_sixteen_bits(model, folder, image, seg):
    half = Segmenter.from_pretrained(str(folder), model.config, device="cpu", dtype="bfloat16")
    annotation, _ = seg.read_prompt("cat, grass, sky")
    maps = [each.capture(image, annotation).attention_map() for each in (half, seg)]
    assert maps[0].dtype == torch.float32
    torch.testing.assert_close(*maps, rtol=0, atol=1e-2)


# ---- tracing


def test_a_generation_is_traced_and_nothing_changes(model, pipe):
    with trace(pipe, model.config) as t:
        traced = model.run(pipe, [PROMPT, "dog, sky"], generator=seeded())[0]
    plain = model.run(pipe, [PROMPT, "dog, sky"], generator=seeded())[0]
    assert (torch.as_tensor(traced) == torch.as_tensor(plain)).all()
    assert t.steps == 2 and t.words(0) == WORDS and t.words(1) == ["dog", "sky"]
    found = t.word("cat")
    assert found.map.shape == (model.grid, model.grid) and found.raw.isfinite().all() and found.raw.amax() > 0
    assert t.segment("cat").label_map().shape == (model.size, model.size)


def test_the_half_with_the_prompt_is_traced(model, pipe):
    """The first step of a guided generation attends to the prompt as that of one without guidance does."""
    if model.guided is None:
        pytest.skip("it has no halves")
    attentions = []
    for more in ({}, model.guided):
        with trace(pipe, model.config, steps=[0]) as t:
            model.run(pipe, PROMPT, generator=seeded(), **more)
        attentions.append(t.attention())
    torch.testing.assert_close(*attentions, rtol=1e-4, atol=1e-6)


def test_a_generation_that_is_guided_by_regions(model, pipe):
    if not model.together:
        pytest.skip("its halves are two calls")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with SemanticGuidance(pipe, model.config, PROMPT) as guided:
            made = model.run(pipe, PROMPT, generator=seeded(), **model.guided)[0]
    assert torch.as_tensor(made).isfinite().all()
    assert guided.rate.shape[:2] == (1, 1) and guided.rate.isfinite().all()
