"""Denoisers at their published size, for the meta device: class, and what its constructor is told beyond its defaults.

No configuration file of these models is in the repository. The numbers are the defaults of diffusers' classes, or from
memory where those are another model's; the parameters that come out are those by which the models are called (4B, 9B,
32B, ...). The size of Bria 3.2 is not known: its class's defaults have three times the parameters.
"""

SIZES = {
    "chroma": ("ChromaTransformer2DModel", {}),
    "cogview3-plus": ("CogView3PlusTransformer2DModel", {}),
    "bria-3.2": ("BriaTransformer2DModel", {}),
    "sd35-large": (
        "SD3Transformer2DModel",
        {
            "sample_size": 128,
            "num_layers": 38,
            "num_attention_heads": 38,
            "attention_head_dim": 64,
            "caption_projection_dim": 2432,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 2048,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "auraflow": ("AuraFlowTransformer2DModel", {"pos_embed_max_size": 9216}),
    "kandinsky5": (
        "Kandinsky5Transformer3DModel",
        {
            "in_visual_dim": 16,
            "out_visual_dim": 16,
            "model_dim": 2560,
            "ff_dim": 10240,
            "num_visual_blocks": 50,
            "axes_dims": (32, 48, 48),
        },
    ),
    "cogview4": (
        "CogView4Transformer2DModel",
        {"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 128},
    ),
    "ovis": ("OvisImageTransformer2DModel", {}),
    "longcat": ("LongCatImageTransformer2DModel", {"num_layers": 10, "num_single_layers": 20}),
    "lumina2": ("Lumina2Transformer2DModel", {"cap_feat_dim": 2304}),
    "qwen-image": ("QwenImageTransformer2DModel", {}),
    "flux2-dev": ("Flux2Transformer2DModel", {}),
    "flux2-klein-4b": (
        "Flux2Transformer2DModel",
        {
            "num_layers": 5,
            "num_single_layers": 20,
            "num_attention_heads": 24,
            "joint_attention_dim": 7680,
            "guidance_embeds": False,
        },
    ),
    "flux2-klein-9b": (
        "Flux2Transformer2DModel",
        {
            "num_layers": 8,
            "num_single_layers": 24,
            "num_attention_heads": 32,
            "joint_attention_dim": 12288,
            "guidance_embeds": False,
        },
    ),
    "z-image": ("ZImageTransformer2DModel", {}),
    "hunyuan-image": ("HunyuanImageTransformer2DModel", {"text_embed_2_dim": 1472}),
    "sana": ("SanaTransformer2DModel", {}),
}
# billions of parameters by which the models are called
CALLED = {
    "chroma": 8.9,
    "cogview3-plus": 3,
    "sd35-large": 8,
    "auraflow": 6.8,
    "kandinsky5": 6,
    "cogview4": 6,
    "ovis": 7,
    "longcat": 6,
    "lumina2": 2.6,
    "qwen-image": 20,
    "flux2-dev": 32,
    "flux2-klein-4b": 4,
    "flux2-klein-9b": 9,
    "z-image": 6,
    "hunyuan-image": 17,
    "sana": 1.6,
}
