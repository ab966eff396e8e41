"""Tiny random pipelines, made in a second: what the extractor and the method are tried on."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

WORDS = ("cat", "dog", "grass", "wall", "sky")
TEXT = 12  # text tokens


LETTERS = [*map(chr, range(97, 123)), *"0123456789,.-()"]


def save_tokenizer(folder: Path, words: Sequence[str] = WORDS, letters: Sequence[str] = LETTERS) -> int:
    """A CLIP tokenizer that knows a few words and spells the rest; returns the size of its vocabulary."""
    vocabulary = [*letters, *(letter + "</w>" for letter in letters)]
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            tail = "</w>" if end == len(word) else ""
            merges.append(f"{word[: end - 1]} {word[end - 1]}{tail}")
            vocabulary.append(word[:end] + tail)
    vocabulary = list(dict.fromkeys([*vocabulary, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(vocabulary)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(dict.fromkeys(merges)))
    CLIPTokenizer.from_pretrained(folder, model_max_length=TEXT).save_pretrained(folder)
    return len(vocabulary)


def save_t5_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> int:
    pieces = ["<pad>", "</s>", "<unk>", "\u2581", ",", *("\u2581" + word for word in words), *map(chr, range(97, 123))]
    vocabulary = [(piece, 0.0 if len(piece) != 1 else -5.0) for piece in pieces]
    T5Tokenizer(vocabulary, extra_ids=0, model_max_length=TEXT).save_pretrained(folder)
    return len(vocabulary)


def save_bert_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> int:
    letters = [*map(chr, range(97, 123)), ","]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *("##" + letter for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    BertTokenizer(vocabulary, model_max_length=77).save_pretrained(folder)
    return len(vocabulary)


def tokenizers(folder: Path, words: Sequence[str]) -> dict:
    """ "clip", "t5" and "bert": tokenizers that know these words; CLIP's and BERT's spell the others."""
    every_byte = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    save_tokenizer(folder / "clip", words, every_byte)
    save_t5_tokenizer(folder / "t5", words)
    save_bert_tokenizer(folder / "bert", words)
    lengths = {"clip": 77, "t5": 300, "bert": 77}
    return {name: AutoTokenizer.from_pretrained(folder / name, model_max_length=n) for name, n in lengths.items()}


def save_pipeline(folder: Path, kind: str, tokenizers: dict[str, str], library: str = "transformers", **parts) -> Path:
    """Every part in its folder, and the model_index.json that names them; `tokenizers` are there already."""
    index = {"_class_name": kind} | {name: [library, which] for name, which in tokenizers.items()}
    for name, part in parts.items():
        part.save_pretrained(folder / name)
        index[name] = [library if name.startswith("text") else "diffusers", type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def vae(channels: int = 4, levels: int = 3, **more) -> AutoencoderKL:
    """Latents of a quarter; with four levels, of an eighth."""
    return AutoencoderKL(
        block_out_channels=(8,) * levels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        norm_num_groups=4,
        up_block_types=("UpDecoderBlock2D",) * levels,
        latent_channels=channels,
        sample_size=8 * 2 ** (levels - 1),
        mid_block_add_attention=False,
        **more,
    )


def clip(words: int, kind=CLIPTextModel, positions: int = TEXT, **more):
    return kind(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=positions,
            bos_token_id=words - 2,
            eos_token_id=words - 1,
            pad_token_id=words - 1,
            **more,
        )
    )


def t5(words: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=words, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def ddim() -> DDIMScheduler:
    return DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, clip_sample=False
    )


def unet(**more) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        **{
            "sample_size": 8,
            "block_out_channels": (16, 24),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D",) * 2,
            "up_block_types": ("CrossAttnUpBlock2D",) * 2,
        }
        | more
    )


def save_sd(folder: Path, **more) -> Path:
    """A pipeline folder of Stable Diffusion's kind: two levels, 11 cross-attentions, latents of a quarter."""
    torch.manual_seed(0)
    words = save_tokenizer(folder / "tokenizer")
    parts = {"unet": unet(**more), "vae": vae(), "text_encoder": clip(words), "scheduler": ddim()}
    return save_pipeline(folder, "StableDiffusionPipeline", {"tokenizer": "CLIPTokenizer"}, **parts)


def save_sd21(folder: Path) -> Path:
    """The same with linear projections, heads per level and a prediction of v."""
    return save_sd(folder, use_linear_projection=True, attention_head_dim=(2, 4), upcast_attention=True)


def save_sdxl(folder: Path) -> Path:
    """No attention at the first level, one and two transformer blocks, the picture's size as a condition."""
    torch.manual_seed(0)
    words = save_tokenizer(folder / "tokenizer")
    save_tokenizer(folder / "tokenizer_2")
    denoiser = unet(
        cross_attention_dim=16 + 16,
        attention_head_dim=(2, 4),
        transformer_layers_per_block=(1, 2),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
        use_linear_projection=True,
    )
    second = clip(words, CLIPTextModelWithProjection, projection_dim=16, hidden_act="gelu")
    scheduler = EulerDiscreteScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, steps_offset=1, timestep_spacing="leading"
    )
    parts = {"unet": denoiser, "vae": vae(), "text_encoder": clip(words), "text_encoder_2": second}
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    return save_pipeline(folder, "StableDiffusionXLPipeline", tokenizers, **parts, scheduler=scheduler)


def save_pixart(folder: Path) -> Path:
    """PixArt-alpha's transformer as at 1024 x 1024: it is told the picture's size."""
    torch.manual_seed(0)
    words = save_t5_tokenizer(folder / "tokenizer")
    transformer = PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=3,
        cross_attention_dim=24,
        caption_channels=16,
        sample_size=128,
        norm_num_groups=4,
    )
    parts = {"transformer": transformer, "vae": vae(), "text_encoder": t5(words)}
    parts["scheduler"] = DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    return save_pipeline(folder, "PixArtAlphaPipeline", {"tokenizer": "T5Tokenizer"}, **parts)


def save_hunyuan(folder: Path) -> Path:
    """Latents of an eighth, since the rotary grid is counted so."""
    torch.manual_seed(0)
    words, pieces = save_bert_tokenizer(folder / "tokenizer"), save_t5_tokenizer(folder / "tokenizer_2")
    bert = BertModel(
        BertConfig(vocab_size=words, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    )
    transformer = HunyuanDiT2DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        patch_size=2,
        hidden_size=32,
        num_layers=4,
        cross_attention_dim=16,
        cross_attention_dim_t5=16,
        pooled_projection_dim=16,
        sample_size=8,
    )
    torch.nn.init.normal_(transformer.text_embedding_padding, std=0.5)
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.03,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        steps_offset=1,
        timestep_spacing="leading",
    )
    parts = {"transformer": transformer, "vae": vae(levels=4), "text_encoder": bert, "text_encoder_2": t5(pieces)}
    tokenizers = {"tokenizer": "BertTokenizer", "tokenizer_2": "T5Tokenizer"}
    return save_pipeline(folder, "HunyuanDiTPipeline", tokenizers, **parts, scheduler=scheduler)


def save_flux(folder: Path) -> Path:
    """Two double-stream and two single-stream blocks."""
    torch.manual_seed(0)
    words, pieces = save_tokenizer(folder / "tokenizer"), save_t5_tokenizer(folder / "tokenizer_2")
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=16,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.1), "text_encoder": clip(words)}
    parts |= {"text_encoder_2": t5(pieces), "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)}
    return save_pipeline(folder, "FluxPipeline", {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5Tokenizer"}, **parts)


def save_sd3(folder: Path, third: bool = True) -> Path:
    """Three joint blocks; the first has a second attention over the image alone. `third`: with a T5."""
    torch.manual_seed(0)
    words = save_tokenizer(folder / "tokenizer")
    save_tokenizer(folder / "tokenizer_2")
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
        pos_embed_max_size=16,
    )
    encoders = [clip(words, CLIPTextModelWithProjection, projection_dim=16) for _ in range(2)]
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.1)}
    parts |= {"text_encoder": encoders[0], "text_encoder_2": encoders[1]}
    parts["scheduler"] = FlowMatchEulerDiscreteScheduler(shift=3.0)
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    if third:
        pieces = save_t5_tokenizer(folder / "tokenizer_3")
        config = T5Config(vocab_size=pieces, d_model=40, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        parts["text_encoder_3"], tokenizers["tokenizer_3"] = T5EncoderModel(config), "T5Tokenizer"
    return save_pipeline(folder, "StableDiffusion3Pipeline", tokenizers, **parts)


SD_CONFIG = {
    "version": "mini",
    "img_size": 32,
    "feat_size": 8,
    "t": 100,
    "ref_layer": "up-level1-repeat1-vit-block0-cross-q",
    "cross_layers": "all",
    "self_layers": ["up-level1-repeat{0,1}-vit-block0-self-map"],
}


@dataclass(frozen=True)
class Family:
    """A tiny pipeline, how the method is set to it, and how diffusers' own pipeline is called for comparison."""

    save: Callable[[Path], Path]
    version: str
    reference: str
    space: str
    feat_size: int
    picture: int = 32
    prompt: tuple = ((1, 3, 5), 12)  # where the entities of "cat, grass, sky" are, and the number of text tokens
    pipeline: str = ""
    call: dict = field(default_factory=dict)
    t: int = 100

    @property
    def config(self):
        layers = {"ref_layer": self.reference, "cross_layers": "all", "self_layers": [self.space]}
        return {"version": self.version, "img_size": self.picture, "feat_size": self.feat_size, "t": self.t} | layers


UP, VIT = "up-level1-repeat{0,1}-vit-block0-self-map", "vit-block{1,2}-self-map"
IMG2IMG = {"strength": 0.1, "num_inference_steps": 1000, "guidance_scale": 1.0}
FLOW = {"strength": 0.15, "num_inference_steps": 28, "guidance_scale": 1.0, "height": 32, "width": 32}
FROM_NOISE = {"num_inference_steps": 2, "guidance_scale": 1.0, "use_resolution_binning": False}
FAMILIES = {
    "sd": Family(
        save_sd,
        "1-5",
        "up-level1-repeat1-vit-block0-cross-q",
        UP,
        8,
        pipeline="StableDiffusionImg2ImgPipeline",
        call=IMG2IMG,
    ),
    "sd21": Family(
        save_sd21,
        "2-1",
        "up-level1-repeat1-vit-block0-cross-q",
        UP,
        8,
        pipeline="StableDiffusionImg2ImgPipeline",
        call=IMG2IMG,
    ),
    "sdxl": Family(
        save_sdxl,
        "xl",
        "up-level0-repeat0-vit-block0-cross-q",
        "up-level0-repeat{0..2}-vit-block{0,1}-self-map",
        8,
        pipeline="StableDiffusionXLImg2ImgPipeline",
        call=IMG2IMG,
    ),
    "pixart": Family(
        save_pixart,
        "pixart-alpha",
        "vit-block1-cross-q",
        VIT,
        4,
        prompt=((0, 2, 4), 120),
        pipeline="PixArtAlphaPipeline",
        call=FROM_NOISE | {"height": 32, "width": 32},
    ),
    "hunyuan": Family(
        save_hunyuan,
        "hunyuan",
        "vit-block2-cross-q",
        VIT,
        4,
        64,
        ((1, 77, 3, 79, 5, 81), 77 + 256),
        pipeline="HunyuanDiTPipeline",
        call=FROM_NOISE | {"height": 64, "width": 64},
    ),
    "flux": Family(
        save_flux,
        "flux",
        "vit-block2-attn-out",
        VIT,
        4,
        prompt=((0, 2, 4), 512),
        pipeline="FluxImg2ImgPipeline",
        call=FLOW,
        t=150,
    ),
    "sd3": Family(
        save_sd3,
        "sd3",
        "vit-block1-attn-out",
        VIT,
        4,
        prompt=((1, 3, 5), 12 + 256),
        pipeline="StableDiffusion3Img2ImgPipeline",
        call=FLOW,
        t=150,
    ),
}


class Everything:
    """A consumer that keeps what it is handed."""

    def __init__(self, *features):
        self.features, self.attentions, self.dense = features, [], {}

    def attention(self, attention):
        self.attentions.append(attention)

    def feature(self, layer, feature):
        self.dense[layer] = feature
