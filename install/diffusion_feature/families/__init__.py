"""All model families by version. A new family is one file here and one line below."""

from diffusion_feature.backbone import Backbone
from diffusion_feature.errors import VersionNotKnown, VersionTaken, nearest
from diffusion_feature.families.auraflow import AURAFLOW
from diffusion_feature.families.bria import BRIA
from diffusion_feature.families.chroma import CHROMA
from diffusion_feature.families.cogview3 import COGVIEW3
from diffusion_feature.families.cogview4 import COGVIEW4
from diffusion_feature.families.flux import FLUX, MINI_FLUX
from diffusion_feature.families.flux2 import FLUX2_DEV, FLUX2_KLEIN
from diffusion_feature.families.hunyuan import HUNYUAN
from diffusion_feature.families.hunyuanimage import HUNYUAN_IMAGE
from diffusion_feature.families.kandinsky5 import KANDINSKY5
from diffusion_feature.families.kolors import KOLORS
from diffusion_feature.families.longcat import LONGCAT
from diffusion_feature.families.lumina2 import LUMINA2
from diffusion_feature.families.ovis import OVIS
from diffusion_feature.families.pixart import PIXART_ALPHA, PIXART_SIGMA
from diffusion_feature.families.qwenimage import QWEN_IMAGE
from diffusion_feature.families.sana import SANA
from diffusion_feature.families.sd3 import SD3
from diffusion_feature.families.unet_sd import UNET_SD
from diffusion_feature.families.unet_sdxl import UNET_SDXL
from diffusion_feature.families.zimage import ZIMAGE

VERSIONS: dict[str, Backbone] = {
    "1-4": UNET_SD,
    "1-5": UNET_SD,
    "mini": UNET_SD,
    "2-1": UNET_SD,
    "xl": UNET_SDXL,
    "playground-v2": UNET_SDXL,
    "pgv2": UNET_SDXL,
    "pixart-alpha": PIXART_ALPHA,
    "pixart-sigma": PIXART_SIGMA,
    "pixart-sigma-512": PIXART_SIGMA,
    "hunyuan": HUNYUAN,
    "flux": FLUX,
    "mini-flux": MINI_FLUX,
    "sd3": SD3,
    "sd3.5": SD3,
    "chroma": CHROMA,
    "cogview3-plus": COGVIEW3,
    "bria-3.2": BRIA,
    "auraflow": AURAFLOW,
    "kandinsky5": KANDINSKY5,
    "cogview4": COGVIEW4,
    "kolors": KOLORS,
    "ovis": OVIS,
    "longcat": LONGCAT,
    "lumina2": LUMINA2,
    "qwen-image": QWEN_IMAGE,
    "flux2-dev": FLUX2_DEV,
    "flux2-klein": FLUX2_KLEIN,
    "z-image": ZIMAGE,
    "hunyuan-image": HUNYUAN_IMAGE,
    "sana": SANA,
}


def backbone(version: str) -> Backbone:
    """The family of a version, e.g. "1-5"."""
    if version not in VERSIONS:
        raise VersionNotKnown(
            f"unknown version {version!r}; expected one of: {', '.join(VERSIONS)}. "
            f"Nearest: {nearest(version, VERSIONS, 1)}."
        )
    return VERSIONS[version]


def register(version: str, family: Backbone) -> None:
    """Register a family under a version, in this process. Raises VersionTaken if another family has it."""
    if VERSIONS.setdefault(version, family) is not family:
        raise VersionTaken(f"version {version!r} is the {VERSIONS[version].name}; give the {family.name} another name")
