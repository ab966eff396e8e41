"""Semantic-aware guidance (S-CFG): every region of the image is guided as strongly as the foreground.

with SemanticGuidance(pipe, "sd15", prompt) as guidance:
    image = pipe(prompt, guidance_scale=5).images[0]
"""

from goca.guidance.context import SemanticGuidance
from goca.guidance.rate import GuidanceError, guidance_rate
from goca.guidance.segmentors import SEGMENTORS, PromptTokens, Segmentor

__all__ = ["SEGMENTORS", "GuidanceError", "PromptTokens", "Segmentor", "SemanticGuidance", "guidance_rate"]
