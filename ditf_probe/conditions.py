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
        second_mask: As `mask`, of the second encoder.
    """

    embeds: Tensor
    pooled: Tensor | None = None
    mask: Tensor | None = None
    second: Tensor | None = None
    second_mask: Tensor | None = None

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
        if self.second_mask is not None:
            wanted = None if self.second is None else tuple(self.second.shape[:2])
            if tuple(self.second_mask.shape) != wanted:
                remedy = "leave it out without second embeds" if wanted is None else f"give {wanted}, as they have"
                raise InputError("conditions.second_mask", tuple(self.second_mask.shape), remedy)

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
        masks = [None if x is None else mask(x) for x in (self.mask, self.second_mask)]
        return PromptEmbeddings(vectors(self.embeds), pooled, masks[0], second, masks[1])


@dataclass(frozen=True, slots=True)
class PromptShape:
    """What a model takes as a prompt.

    Attributes:
        width: Channels of a text token.
        pooled: Channels of the pooled vector, None if it takes none.
        second: Channels of a token of the second text encoder, None if there is one encoder only.
        tokens: Number of text tokens where it is fixed.
        second_tokens: As `tokens`, of the second encoder.
        second_layers: A second token may be several vectors of that width side by side, any number of layers.
    """

    width: int
    pooled: int | None = None
    second: int | None = None
    tokens: int | None = None
    second_tokens: int | None = None
    second_layers: bool = False

    def zeros(self, count: int) -> PromptEmbeddings:
        """The null condition: one text token, or as many as are fixed, and a pooled vector, all zero."""
        pooled = None if self.pooled is None else torch.zeros(count, self.pooled)
        second = None if self.second is None else torch.zeros(count, self.second_tokens or 1, self.second)
        return PromptEmbeddings(torch.zeros(count, self.tokens or 1, self.width), pooled, None, second)

    def check(self, prompts: PromptEmbeddings) -> None:
        """Refuses embeddings of another shape.

        Raises:
            InputError: A width or a fixed number of tokens differs, or a part is missing.
        """
        wanted = (
            ("embeds", prompts.embeds, self.width, self.tokens),
            ("pooled", prompts.pooled, self.pooled, None),
            ("second", prompts.second, self.second, self.second_tokens),
        )
        for name, part, width, tokens in wanted:
            if width is None:
                continue
            found = None if part is None else tuple(part.shape)
            several = name == "second" and self.second_layers
            fits = part is not None and (part.shape[-1] % width == 0 if several else part.shape[-1] == width)
            if part is None or not fits:
                remedy = f"give vectors of width {width}" + (" or of several such layers" if several else "")
                raise InputError(f"conditions.{name}", found, remedy)
            if tokens is not None and part.shape[1] != tokens:
                raise InputError(f"conditions.{name}", found, f"give {tokens} tokens, padded")


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


def prompt_embeddings(conditions: Any, count: int, shape: PromptShape) -> PromptEmbeddings:
    """Prompt embeddings of a batch.

    Args:
        conditions: `PromptEmbeddings` of one row (shared) or one per image; None is the null condition.
        count: Number of images B.
        shape: What the model takes.

    Returns:
        Embeddings of `count` rows.

    Raises:
        InputError: Another type, number of rows or shape.
    """
    if conditions is None:
        return shape.zeros(count)
    if not isinstance(conditions, PromptEmbeddings):
        raise InputError("conditions", type(conditions).__name__, "this backbone takes ditf_probe.PromptEmbeddings")
    shape.check(conditions)
    if len(conditions) not in (1, count):
        raise InputError("conditions", f"{len(conditions)} prompts", f"give one, or one per image ({count})")
    return conditions[torch.arange(count) % len(conditions)]
