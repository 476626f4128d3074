"""The rows of a comparison as maps of single images, for tasks that see images one after the other and keep none."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ditf_probe.backbones.base import Backbone
from ditf_probe.errors import InputError
from ditf_probe.geometry import crop_features
from ditf_probe.tasks.matchers import FeatureMatcher, Matcher
from ditf_probe.tasks.planning import streams_of
from ditf_probe.tasks.prompts import prompts_for, read_captions
from ditf_probe.tasks.streams import Stream


class ImageRows:
    """Feature maps of whole images, one per row; rows with equal settings of a backbone share its pass.

    Args:
        matchers: From `planning.plan`, calibrated where they need it. Rows without features are left out.

    Raises:
        InputError: A row that has features of pairs only (a fusion).
    """

    def __init__(self, matchers: Sequence[Matcher]) -> None:
        self.matchers: dict[str, FeatureMatcher] = {}
        for matcher in matchers:
            if isinstance(matcher, FeatureMatcher):
                self.matchers[matcher.row.name] = matcher
            elif matcher.streams:
                raise InputError("fusions", matcher.row.name, "this task takes rows of single images, leave it out")
        self.streams = streams_of(list(self.matchers.values()))
        self._captions = {
            path: read_captions(path) for stream in self.streams if (path := stream.settings.captions) is not None
        }

    @torch.no_grad()
    def __call__(
        self, images: Tensor, image_ids: Sequence[str], categories: Mapping[str, str] | None = None
    ) -> dict[str, Tensor]:
        """The maps of a batch of images of one size.

        Args:
            images: `(B, 3, H, W)` uint8 RGB of the original size.
            image_ids: Seeds of the noise; equal ids mean equal pixels.
            categories: Image id to what `{category}` in a prompt stands for; "image" where it is not given.

        Returns:
            Row name to `(B, D, h, w)` float32 on the device of its backbone, each map covering the original image.
        """
        found: dict[str, Tensor] = {}
        for stream in self.streams:
            tapped = stream.tapped(images, image_ids, self._condition(stream, image_ids, categories or {}))
            transform = stream.extractor.transform((images.shape[2], images.shape[3]))
            for name, matcher in self.matchers.items():
                if matcher.stream is stream:
                    found[name] = crop_features(matcher.features(tapped), transform)
        return {name: found[name] for name in self.matchers}

    def by_backbone(self) -> list["ImageRows"]:
        """The rows of each backbone apart, one or more, for tasks that let one go through all images before the next.

        With backbones that are not kept in memory together, each is then loaded once and not for every image.
        """
        groups: dict[Backbone, list[FeatureMatcher]] = {stream.extractor.backbone: [] for stream in self.streams}
        for matcher in self.matchers.values():
            groups[matcher.stream.extractor.backbone].append(matcher)
        return [ImageRows(group) for group in groups.values()] or [self]

    def settings(self) -> dict[str, Any]:
        """Every setting of rows and models that changes a number, as plain JSON values."""
        return {
            "rows": {name: matcher.settings(self.streams) for name, matcher in self.matchers.items()},
            "models": [stream.facts() for stream in self.streams],
        }

    def _condition(self, stream: Stream, ids: Sequence[str], categories: Mapping[str, str]) -> list[str] | None:
        settings = stream.settings
        captions = None if settings.captions is None else self._captions[settings.captions]
        named = {image_id: categories.get(image_id, "image") for image_id in ids}
        return prompts_for(ids, named, prompt=settings.prompt, captions=captions)
