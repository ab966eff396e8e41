"""Every family on a tiny random pipeline: seen whole, unchanged, called as diffusers calls it; the equations hold."""

import diffusers
import pytest
import reference
import tiny
import torch
from calls import arguments_of
from diffusion_feature import ExtractorError, FeatureExtractor, WrongFamily
from diffusion_feature.backbone import JOINT
from diffusion_feature.families import VERSIONS
from families import FAMILIES
from goca.benchmark import Benchmark
from goca.benchmark.word_sources import Offer
from goca.config import folder as configs
from goca.config import load_config
from goca.datasets import load_dataset
from goca.segmenter import Segmenter
from omegaconf import OmegaConf
from PIL import Image
from tiny import Everything, Nothing

HEAD, LAYER, RESCALE = "dot-product w/o clamp", "dot-product similarity", "sum-1 rescaling + per-token renorm+"


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def folder(family, tmp_path_factory):
    return family.save(tmp_path_factory.mktemp("pipelines") / family.version)


@pytest.fixture(scope="module")
def seg(family, folder):
    return Segmenter.from_pretrained(str(folder), family.config, device="cpu")


@pytest.fixture(scope="module")
def picture():
    pixels = torch.randint(0, 256, (30, 44, 3), generator=torch.Generator().manual_seed(5), dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


# ---- the tap


def test_every_attention_is_seen_and_nothing_changes(family, folder, picture):
    fx = FeatureExtractor((), family.version, "cpu", img_size=(family.picture, 2 * family.picture), pipeline=folder)
    everything = Everything(*fx.features)
    tapped, bare = (fx.forward(["cat, sky"], [picture], consumer, family.t) for consumer in (everything, Nothing()))
    assert torch.equal(tapped, bare)
    assert [name for a in everything.attentions for name in a.layer.maps] == fx.layer_ids()[: -len(fx.features)]
    grids = {(2**n, 2 ** (n + 1)) for n in range(1, 4)}
    for a in everything.attentions:
        assert a.grid in grids
        torch.testing.assert_close(a.probabilities() @ a.value, a.result, rtol=1e-4, atol=1e-5)
        maps = [a.map(name.rsplit("-", 2)[1]) for name in a.layer.maps]
        torch.testing.assert_close(sum(m.sum(-1) for m in maps), torch.ones(maps[0].shape[:-1]))
        if a.text_keys is not None:
            text = len(range(*a.text_keys.indices(a.key.shape[2])))
            assert text == family.prompt[1]
            assert a.rows().query.shape[2] == a.grid[0] * a.grid[1] == maps[0].shape[2]
    for name, feature in everything.dense.items():
        spatial = feature.ndim == 4
        assert spatial != (name.rsplit("-", 2)[1:] in [["text", letter] for letter in "qkv"] or is_text(name)), name
        assert not spatial or tuple(feature.shape[-2:]) in grids


def is_text(name):
    return name.endswith(("cross-k", "cross-v"))


def test_two_pictures_in_one_forward(family, folder, picture):
    fx = FeatureExtractor((), family.version, "cpu", img_size=family.picture, pipeline=folder)
    pairs = [("cat, sky", picture), ("grass", picture.rotate(90))]
    prompts, pictures = zip(*pairs)
    together, apart = Everything(), [Everything(), Everything()]
    both = fx.forward(prompts, pictures, together, family.t, seeds=[0, 1])
    for number, (prompt, image) in enumerate(pairs):
        alone = fx.forward([prompt], [image], apart[number], family.t, seeds=[number])
        torch.testing.assert_close(both[number : number + 1], alone, rtol=0, atol=1e-4)
        for a, b in zip(together.attentions, apart[number].attentions):
            assert a.layer == b.layer
            torch.testing.assert_close(a.rows().probabilities()[number], b.rows().probabilities()[0], rtol=0, atol=1e-5)


def test_joint_maps_are_blocks_of_one_softmax(family, folder, picture):
    fx = FeatureExtractor((), family.version, "cpu", img_size=family.picture, pipeline=folder)
    kept = Everything()
    fx.forward(["cat"], [picture], kept, family.t)
    for a in (a for a in kept.attentions if a.layer.layout in JOINT):
        image = a.grid[0] * a.grid[1]
        text = a.key.shape[2] - image
        first = a.layer.layout == "text-first"
        P = ((a.query @ a.key.transpose(2, 3)) * a.query.shape[3] ** -0.5).softmax(-1)
        P = P[:, :, text:] if first else P[:, :, :image]
        cross, own = (P[..., :text], P[..., text:]) if first else (P[..., image:], P[..., :image])
        torch.testing.assert_close(a.map("cross"), cross)
        torch.testing.assert_close(a.map("self"), own)


# ---- the forward is the one that diffusers' own pipeline makes


def test_the_timestep_in_16_bit_is_the_pipelines(family, folder, picture):
    if "Img2Img" not in family.pipeline:
        pytest.skip("its pipeline starts from noise alone, at another timestep")
    pipe = getattr(diffusers, family.pipeline).from_pretrained(folder, dtype=torch.bfloat16)
    pipe.set_progress_bar_config(disable=True)
    fx = FeatureExtractor((), family.version, img_size=family.picture, pipeline=pipe)
    image = picture.resize((family.picture, family.picture))
    for t in (family.t, 200, 600, 850):
        call = family.call | {"strength": t / 1000, "image": image}
        theirs = arguments_of(fx.denoiser, lambda call=call: pipe("cat, grass", **call))
        ours = arguments_of(
            fx.denoiser, lambda t=t: fx.forward(["cat, grass"], [picture], Nothing(), t, noise_rule="pipeline")
        )
        known = [each["timestep"].flatten().to(fx.denoiser.dtype) for each in (ours, theirs)]
        assert torch.equal(*known), t


def test_the_denoiser_is_called_as_by_diffusers(family, folder, picture):
    pipe = getattr(diffusers, family.pipeline).from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    fx = FeatureExtractor((), family.version, img_size=family.picture, pipeline=pipe)
    from_picture = "Img2Img" in family.pipeline
    image = {"image": picture.resize((family.picture, family.picture))} if from_picture else {}
    generator = torch.Generator().manual_seed(3)
    theirs = arguments_of(fx.denoiser, lambda: pipe("cat, grass", **family.call, **image, generator=generator))
    rules = {"noise_rule": "pipeline", "posterior": "sample"}
    ours = arguments_of(
        fx.denoiser, lambda: fx.forward(["cat, grass"], [picture], Nothing(), family.t, None, [3], **rules)
    )
    assert set(ours) == set(theirs)
    if not from_picture:  # these pipelines begin with noise alone: their first latents and timestep are others
        for name in ("hidden_states", "timestep"):
            assert ours.pop(name).shape == theirs.pop(name).shape
    for name, value in theirs.items():
        value = value.reshape(ours[name].shape).to(ours[name])
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-5, msg=f"{name} differs")


def test_stable_diffusion_3_without_its_largest_encoder(tmp_path, picture):
    folder = tiny.save_sd3(tmp_path / "two", third=False)
    fx = FeatureExtractor((), "sd3.5", "cpu", img_size=32, pipeline=folder)
    states = fx.backbone.encode_text(fx.parts, ["cat"]).arguments["encoder_hidden_states"]
    assert states.shape == (1, 12 + 256, 40)
    assert (states[:, 12:] == 0).all() and (states[:, :12, 32:] == 0).all()
    assert fx.forward(["cat"], [picture], Nothing(), 150).shape == (1, 4, 8, 8)


# ---- the equations


def test_prompts_are_read_with_the_tokenizers_that_are_attended_to(family, seg):
    annotation, names = seg.read_prompt("cat, grass, sky")
    positions, length = family.prompt
    found = [token for tokens in annotation.existent_objects.values() for token in tokens]
    assert found == list(positions)
    assert sorted(annotation.rescaling_token_id) == sorted(positions)
    assert list(names.values()) == ["cat", "grass", "sky"]
    assert seg.extractor.backbone.encode_text(seg.extractor.parts, ["cat"]).length == length


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_the_whole_method_agrees_with_the_equations(family, folder, picture, protocol):
    config = load_config({**family.config, "protocol": {"preset": protocol, "posterior": "mean"}})
    seg = Segmenter.from_pretrained(str(folder), config, device="cpu")
    annotation, _ = seg.read_prompt("cat, grass, sky")
    kept = Everything(config.ref_layer)
    seg.extractor.forward(
        [annotation.caption], [picture], kept, config.t, None, [0], seg.protocol.noise, seg.protocol.posterior
    )
    noise = noise_of_seed(seg, 0)
    maps, means, sides = {}, {}, {}
    for a in kept.attentions:
        A, block = a.rows().probabilities()[0].double(), a.layer.block
        if a.text_keys is not None:
            W, rule = a.layer.out_proj().detach().double().T, HEAD if a.layer.weighed else "average"
            maps[block] = reference.aggregate_heads(A, a.value[0].double(), W, rule)[:, a.text_keys]
        if a.image_keys is not None:
            means[block], sides[block] = A[..., a.image_keys].mean(0), a.grid
    own, order = [means[b] for b in maps], [sides[b] for b in maps]
    first, normalised, grid = protocol == "released", protocol == "paper", (config.feat_size,) * 2
    feature = kept.dense[config.ref_layer][0].double()
    shares = reference.layer_weights(feature, own, order, LAYER, first, normalised)
    attention = reference.aggregate_layers(list(maps.values()), order, shares, grid)
    content = annotation.rescaling_token_id
    scores = [reference.rescale(attention, tokens, content, RESCALE) for tokens in annotation.existent_objects.values()]
    found = seg.score_maps(picture, annotation, noise)[:-1]
    torch.testing.assert_close(found.double(), torch.stack(scores), rtol=0, atol=1e-4)

    spaces, places = [means[b] for b in seg.space_blocks], [sides[b] for b in seg.space_blocks]
    space = reference.space_map(spaces, places, grid, normalised)
    ours = seg.capture(picture, annotation, noise).space_map()[0]
    torch.testing.assert_close(ours.double(), space, rtol=0, atol=1e-6)


def noise_of_seed(seg, seed):
    """The noise that `forward` draws from a seed under posterior=mean."""
    channels = seg.extractor.parts["vae"].config.latent_channels
    return torch.randn(channels, 8, 8, generator=torch.Generator().manual_seed(seed))[None]


def test_sixteen_bits(family, folder, picture, seg):
    half = Segmenter.from_pretrained(str(folder), family.config, device="cpu", dtype="bfloat16")
    assert half.extractor.denoiser.dtype == torch.bfloat16
    annotation, _ = half.read_prompt("cat, grass, sky")
    maps = [s.capture(picture, annotation, noise_of_seed(s, 1)).attention_map() for s in (half, seg)]
    assert maps[0].dtype == torch.float32
    torch.testing.assert_close(*maps, rtol=0, atol=5e-3)


# ---- the benchmark


def test_a_benchmark_is_run_with_its_own_tokenizers(family, folder, seg, tmp_path):
    dataset = OmegaConf.to_container(OmegaConf.load(configs().parent / "dataset" / "scenes.yaml"))
    model = {**family.config, "pipeline": str(folder)}
    benchmark = Benchmark.of({"model": model, "dataset": dataset, "run_dir": tmp_path, "limit": 1, "device": "cpu"})
    annotate = benchmark.annotator(load_dataset(benchmark.dataset), seg.extractor.parts)
    assert annotate(Offer("cat, grass, sky", [], False)).rescaling_token_id == sorted(family.prompt[0])
    assert benchmark.run() is not None
    assert (tmp_path / "evaluation.txt").read_text().count("mIoU") == 9


# ---- refusals


@pytest.mark.parametrize("version", ["1-5", "xl", "pixart-sigma", "hunyuan", "flux", "sd3"])
def test_another_family_is_refused_by_name(family, folder, version):
    own, other = VERSIONS[family.version], VERSIONS[version]
    if own.kind == other.kind and own.accepts is other.accepts:  # PixArt's two differ by the length of the text alone
        return
    with pytest.raises(WrongFamily, match=VERSIONS[version].name):
        FeatureExtractor((), version, pipeline=folder, device="cpu")


def test_a_pipeline_object_of_another_family(tmp_path):
    pipe = diffusers.PixArtAlphaPipeline.from_pretrained(tiny.save_pixart(tmp_path / "pixart"))
    with pytest.raises(WrongFamily, match="PixArtAlphaPipeline has a transformer, which is not the SDXL UNet"):
        FeatureExtractor((), "xl", pipeline=pipe)
    with pytest.raises(WrongFamily, match="is a PixArtTransformer2DModel, which is not the Flux transformer"):
        FeatureExtractor((), "flux", pipeline=pipe)


def test_a_size_that_cannot_be_cut_into_tokens(tmp_path, picture):
    fx = FeatureExtractor((), "flux", "cpu", img_size=(36, 32), pipeline=tiny.save_flux(tmp_path / "flux"))
    with pytest.raises(ExtractorError, match="36 x 32 cannot be cut into image tokens: both must be multiples of 8"):
        fx.forward(["cat"], [picture], Nothing(), 150)
