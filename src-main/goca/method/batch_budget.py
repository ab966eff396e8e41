"""How many images one forward pass may hold under a memory budget."""

from __future__ import annotations

from dataclasses import dataclass

from goca.errors import GocaError


class MemoryBudgetTooSmall(GocaError, ValueError):
    """`max_bytes` is too small for a single image; the message says how many bytes it needs."""


@dataclass
class BatchBudget:
    """Batch sizes from the memory that earlier batches needed.

    max_bytes        memory that the attention of one forward pass may hold; None: no limit
    bytes_per_image  the most that one image has needed so far; 0 before the first batch

    >>> budget = BatchBudget(max_bytes=1000)
    >>> budget.next_batch(5)          # nothing measured yet
    1
    >>> budget.observe(used=400, images=1)
    >>> budget.next_batch(5)
    2
    """

    max_bytes: int | None = None
    bytes_per_image: int = 0

    def observe(self, used: int, images: int) -> None:
        """Record the memory of a batch. Raises MemoryBudgetTooSmall if one image needs more than `max_bytes`."""
        self.bytes_per_image = max(self.bytes_per_image, -(-used // images))
        self._check()

    def next_batch(self, remaining: int) -> int:
        """The size of the next batch, at most `remaining`; 1 until an image has been measured.

        Raises MemoryBudgetTooSmall.
        """
        if self.max_bytes is None:
            return remaining
        self._check()
        return min(remaining, self.max_bytes // self.bytes_per_image) if self.bytes_per_image else 1

    def _check(self) -> None:
        if self.max_bytes is not None and self.bytes_per_image > self.max_bytes:
            raise MemoryBudgetTooSmall(
                f"max_bytes is {self.max_bytes:,}, but a single image needs {self.bytes_per_image:,} bytes with this "
                "config; raise max_bytes, or choose a smaller img_size or feat_size"
            )
