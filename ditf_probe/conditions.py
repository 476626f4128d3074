"""What a backbone is told about an image: class labels, or the embeddings of a prompt."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ditf_probe.errors import InputError


@dataclass(frozen=True, eq=False, slots=True)
class PromptEmbeddings:
    """Prompts as a text encoder left them, one row per image.

    Attributes:
        embeds: `(B, L, D)` one vector per text token.
        pooled: `(B, P)` one vector per prompt, for models that want it.
        mask: `(B, L)` bool, False on padding, for models that mask it.
        second: `(B, L', D')` one vector per token of a second text encoder, for models that have two.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    second: Tensor | None = None

    def __post_init__(self) -> None:
        if self.embeds.ndim != 3:
            raise InputError("conditions.embeds", tuple(self.embeds.shape), "give (B, L, D)")
        rows, tokens = self.embeds.shape[:2]
        if self.pooled is not None and (self.pooled.ndim != 2 or len(self.pooled) != rows):
            raise InputError("conditions.pooled", tuple(self.pooled.shape), f"give ({rows}, P), a row per prompt")
        if self.mask is not None and tuple(self.mask.shape) != (rows, tokens):
            raise InputError("conditions.mask", tuple(self.mask.shape), f"give ({rows}, {tokens}), as the embeds have")
        if self.second is not None and (self.second.ndim != 3 or len(self.second) != rows):
            raise InputError("conditions.second", tuple(self.second.shape), f"give ({rows}, L, D), a row per prompt")

    def __len__(self) -> int:
        return len(self.embeds)

    def __getitem__(self, rows: Tensor) -> "PromptEmbeddings":
        """Prompts by row numbers `(R,)`; a row may come several times."""
        return self._map(lambda x: x[rows.to(x.device)], lambda x: x[rows.to(x.device)])

    def to(self, device: torch.device, dtype: torch.dtype) -> "PromptEmbeddings":
        """The same prompts on a device, the vectors in a floating-point dtype."""
        return self._map(lambda x: x.to(device, dtype), lambda x: x.to(device))

    def _map(self, vectors: Callable[[Tensor], Tensor], mask: Callable[[Tensor], Tensor]) -> "PromptEmbeddings":
        pooled, second = (None if x is None else vectors(x) for x in (self.pooled, self.second))
        return PromptEmbeddings(vectors(self.embeds), pooled, None if self.mask is None else mask(self.mask), second)


def class_labels(conditions: Any, count: int, num_classes: int) -> Tensor:
    """Class labels of a batch.

    Args:
        conditions: `(B,)` integers as a tensor or a sequence, or None for the null class in every row.
        count: Number of images B.
        num_classes: Labels run from 0 to this number, which is the null class.

    Returns:
        `(B,)` int64.

    Raises:
        InputError: No integers, not one per image, or out of range.
    """
    if conditions is None:
        return torch.full((count,), num_classes)
    remedy = f"give {count} class labels, 0 to {num_classes - 1} ({num_classes} is the null class)"
    if isinstance(conditions, Tensor):
        labels = conditions
    elif isinstance(conditions, Sequence) and all(type(label) is int for label in conditions):
        labels = torch.tensor(list(conditions), dtype=torch.int64)
    else:
        raise InputError("conditions", conditions, remedy)
    shown = labels.tolist() if labels.numel() <= 16 else tuple(labels.shape)
    if labels.is_floating_point() or labels.dtype == torch.bool or labels.shape != (count,):
        raise InputError("conditions", shown, remedy)
    if count and (labels.min() < 0 or labels.max() > num_classes):
        raise InputError("conditions", shown, remedy)
    return labels.long()


def prompt_embeddings(conditions: Any, count: int, width: int, pooled_width: int | None) -> PromptEmbeddings:
    """Prompt embeddings of a batch.

    Args:
        conditions: `PromptEmbeddings` of one row (shared) or one per image; None is the null condition: one text
            token and a pooled vector, both zero.
        count: Number of images B.
        width: Channels D of a text token.
        pooled_width: Channels P of the pooled vector, None if the model takes none.

    Returns:
        Embeddings of `count` rows.

    Raises:
        InputError: Another type, number of rows or width.
    """
    if conditions is None:
        pooled = None if pooled_width is None else torch.zeros(count, pooled_width)
        return PromptEmbeddings(torch.zeros(count, 1, width), pooled)
    if not isinstance(conditions, PromptEmbeddings):
        raise InputError("conditions", type(conditions).__name__, "this backbone takes ditf_probe.PromptEmbeddings")
    if conditions.embeds.shape[-1] != width:
        raise InputError("conditions.embeds", tuple(conditions.embeds.shape), f"give vectors of width {width}")
    if pooled_width is not None and (conditions.pooled is None or conditions.pooled.shape[-1] != pooled_width):
        found = None if conditions.pooled is None else tuple(conditions.pooled.shape)
        raise InputError("conditions.pooled", found, f"give one vector of width {pooled_width} per prompt")
    if len(conditions) not in (1, count):
        raise InputError("conditions", f"{len(conditions)} prompts", f"give one, or one per image ({count})")
    return conditions[torch.arange(count) % len(conditions)]
