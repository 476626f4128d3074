"""Strings as conditions of a backbone: one per image, turned into embeddings that can share a batch."""

from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.backbones.base import Forward, TappedBlock
from ditf_probe.backbones.checks import check_ids
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.errors import InputError


def reads_text(forward: Forward) -> Forward:
    """Lets the `forward` of a backbone take strings as conditions, which its `prompts` turn into embeddings.

    Images whose prompts have different numbers of tokens run apart where the model masks no padding.
    """

    @wraps(forward)
    def run(
        self: Any, images: Tensor, *, image_ids: Sequence[str] | None = None, conditions: Any = None, **arguments: Any
    ) -> dict[int, TappedBlock]:
        texts = as_texts(conditions, len(images))
        if texts is None:
            return forward(self, images, image_ids=image_ids, conditions=conditions, **arguments)
        if self.prompts is None:
            remedy = (
                "this backbone reads no text: load it with prompts=PromptEncoder(folder with text encoders or None, "
                "cache_dir), or give ditf_probe.PromptEmbeddings (class labels where it has classes)"
            )
            raise InputError("conditions", texts[0], remedy)
        groups = stack(self.prompts(texts))
        if len(groups) == 1:
            return forward(self, images, image_ids=image_ids, conditions=groups[0][1], **arguments)
        ids = None if image_ids is None else check_ids(image_ids, len(images))
        parts = [
            forward(self, images[rows], image_ids=ids and [ids[row] for row in rows], conditions=prompts, **arguments)
            for rows, prompts in groups
        ]
        order = torch.tensor([row for rows, _ in groups for row in rows]).argsort()
        joined = {index: TappedBlock.join([part[index] for part in parts], torch.cat) for index in parts[0]}
        return {index: tapped.map(lambda x: x[order.to(x.device)]) for index, tapped in joined.items()}

    return cast(Forward, run)


def as_texts(conditions: Any, count: int) -> list[str] | None:
    """One string per image if the conditions are text, else None.

    Args:
        conditions: A string that all images share, a sequence of strings, or something else.
        count: Number of images.

    Raises:
        InputError: Strings among other values, or not one per image.
    """
    if isinstance(conditions, str):
        return [conditions] * count
    if not isinstance(conditions, list | tuple) or not any(isinstance(one, str) for one in conditions):
        return None
    if len(conditions) != count or not all(isinstance(one, str) for one in conditions):
        raise InputError("conditions", list(conditions), f"give one string, or one per image ({count})")
    return list(conditions)


def stack(prompts: Sequence[PromptEmbeddings]) -> list[tuple[list[int], PromptEmbeddings]]:
    """Prompts of one row each as batches.

    Args:
        prompts: With a mask the shorter ones are padded on the right with masked zeros; without, those of one length go
            together. Second tokens that share the mask are padded along.

    Returns:
        Positions in `prompts`, and their embeddings; a single batch unless lengths differ and there is no mask.
    """
    longest = max(prompt.embeds.shape[1] for prompt in prompts)
    groups: dict[int, list[int]] = {}
    padded = [prompt if prompt.mask is None else _padded(prompt, longest) for prompt in prompts]
    for position, prompt in enumerate(padded):
        groups.setdefault(prompt.embeds.shape[1], []).append(position)
    return [(rows, _cat([padded[row] for row in rows])) for rows in groups.values()]


def _padded(prompt: PromptEmbeddings, length: int) -> PromptEmbeddings:
    missing = length - prompt.embeds.shape[1]
    if not missing or prompt.mask is None:
        return prompt
    embeds, second = F.pad(prompt.embeds, (0, 0, 0, missing)), prompt.second
    if second is not None and prompt.second_mask is None and second.shape[1] == prompt.embeds.shape[1]:
        second = F.pad(second, (0, 0, 0, missing))
    return replace(prompt, embeds=embeds, mask=F.pad(prompt.mask, (0, missing)), second=second)


def _cat(prompts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
    def part(name: str) -> Any:
        found = [getattr(prompt, name) for prompt in prompts]
        return None if found[0] is None else torch.cat(found)

    return PromptEmbeddings(part("embeds"), part("pooled"), part("mask"), part("second"), part("second_mask"))
