"""Tiny random pipelines, made in a second: what the extractor and the method are tried on."""

import json
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
from tiny_tokenizers import TEXT as TEXT
from tiny_tokenizers import WORDS as WORDS
from tiny_tokenizers import save_bert_tokenizer, save_t5_tokenizer, save_tokenizer
from transformers import (
    BertConfig,
    BertModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)


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


XL = {  # no attention at the first level, one and two transformer blocks, the picture's size as a condition
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 16,
    "use_linear_projection": True,
}


def save_sdxl(folder: Path) -> Path:
    torch.manual_seed(0)
    words = save_tokenizer(folder / "tokenizer")
    save_tokenizer(folder / "tokenizer_2")
    denoiser = unet(cross_attention_dim=16 + 16, **XL)
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
    parts |= {"text_encoder_2": t5(pieces), "scheduler": flow(use_dynamic_shifting=True)}
    return save_pipeline(folder, "FluxPipeline", {"tokenizer": "CLIPTokenizer", "tokenizer_2": "T5Tokenizer"}, **parts)


def flow(**more) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**more)


def sd3_transformer(**more) -> SD3Transformer2DModel:
    """Three joint blocks with norms of queries and keys."""
    return SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=3,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=40,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        qk_norm="rms_norm",
        pos_embed_max_size=16,
        **more,
    )


def wide_t5(pieces: int) -> T5EncoderModel:
    """As wide as the joint attention of `sd3_transformer`."""
    return T5EncoderModel(T5Config(vocab_size=pieces, d_model=40, d_kv=8, d_ff=32, num_layers=1, num_heads=2))


def save_sd3(folder: Path, third: bool = True) -> Path:
    """Three joint blocks; the first has a second attention over the image alone. `third`: with a T5."""
    torch.manual_seed(0)
    words = save_tokenizer(folder / "tokenizer")
    save_tokenizer(folder / "tokenizer_2")
    transformer = sd3_transformer(dual_attention_layers=(0,))
    encoders = [clip(words, CLIPTextModelWithProjection, projection_dim=16) for _ in range(2)]
    parts = {"transformer": transformer, "vae": vae(shift_factor=0.1), "scheduler": flow(shift=3.0)}
    parts |= {"text_encoder": encoders[0], "text_encoder_2": encoders[1]}
    tokenizers = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    if third:
        pieces = save_t5_tokenizer(folder / "tokenizer_3")
        parts["text_encoder_3"], tokenizers["tokenizer_3"] = wide_t5(pieces), "T5Tokenizer"
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


class Everything:
    """A consumer that keeps what it is handed."""

    def __init__(self, *features):
        self.features, self.attentions, self.dense = features, [], {}

    def attention(self, attention):
        self.attentions.append(attention)

    def feature(self, layer, feature):
        self.dense[layer] = feature


class Nothing(Everything):
    """A consumer that keeps features alone."""

    def attention(self, attention):
        pass
