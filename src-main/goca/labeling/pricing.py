"""The cost of a job: tokens of images and texts, estimated before it runs and counted from the answers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CHARACTERS_PER_TOKEN = 4  # of English text, roughly
TOKENS_PER_WORD = 2  # per word of a caption, with its comma or bracket
OVERHEAD = 10  # tokens around a message


def scaled(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Scale (width, height) down to a longer side of at most `side`, keeping the aspect ratio."""
    factor = min(1.0, side / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def tiles(width: int, height: int) -> int:
    """GPT-4o at high detail: fit into 2048, shorter side to 768; 85 tokens plus 170 per 512-pixel tile."""
    width, height = scaled((width, height), 2048)
    factor = min(1.0, 768 / min(width, height))
    return 85 + 170 * math.ceil(round(width * factor) / 512) * math.ceil(round(height * factor) / 512)


def patches(width: int, height: int) -> int:
    """One token per 28x28 pixels, as for Qwen2-VL and its relatives."""
    return math.ceil(width / 28) * math.ceil(height / 28)


IMAGE_TOKENS: dict[str, Callable[[int, int], int]] = {"tiles": tiles, "patches": patches}


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens; None: unknown."""

    price_in: float | None
    price_out: float | None

    def cost(self, tokens_in: int, tokens_out: int) -> float | None:
        """Dollars, or None if a price is unknown."""
        if self.price_in is None or self.price_out is None:
            return None
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def spent(self, records: Iterable[Mapping[str, Any]]) -> float | None:
        """Dollars for recorded answers, without those for which the server counted no tokens."""
        counted = [record["tokens"] for record in records if record.get("tokens")]
        return self.cost(sum(each[0] for each in counted), sum(each[1] for each in counted))


@dataclass(frozen=True)
class Estimate:
    """The remaining requests and their estimated cost."""

    images: int
    tokens_in: int
    tokens_out: int
    cost: float | None


def estimate(
    sizes: Iterable[tuple[int, int]], instruction: str, caption_len: int, rule: str | int, side: int, prices: Prices
) -> Estimate:
    """Estimate the cost of one request per image; retries and refusals are not included.

    sizes        (width, height) of the original images; they are scaled down to `side` first
    caption_len  words of a caption; every caption is assumed to have this length
    rule         a key of IMAGE_TOKENS, or a number of tokens per image
    """
    text = math.ceil(len(instruction) / CHARACTERS_PER_TOKEN) + OVERHEAD
    images = [rule if isinstance(rule, int) else IMAGE_TOKENS[rule](*scaled(size, side)) for size in sizes]
    tokens_in, tokens_out = sum(images) + text * len(images), len(images) * caption_len * TOKENS_PER_WORD
    return Estimate(len(images), tokens_in, tokens_out, prices.cost(tokens_in, tokens_out))


def dollars(cost: float | None) -> str:
    """Format a cost: "$1.23", or "cost unknown"."""
    return "cost unknown" if cost is None else f"${cost:.2f}" if cost >= 0.1 or not cost else f"${cost:.4f}"
