"""The backbones of a comparison and the streams over them: what is equal is computed once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.reloadable import ModelSlot, ReloadableBackbone
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.tasks.prompts import loading_options
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream


class Models:
    """Backbones by their settings.

    All share one slot of memory: the images of a data set are computed by one backbone after the other, and matching
    needs their streams only. So two large backbones never stand on the device together, at the price of loading each
    once to check its settings and once per data set. A backbone that is alone is loaded once.

    Args:
        device: Where they compute.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = device
        self._slot = ModelSlot()
        self._found: dict[tuple[str, str, str, str], Backbone] = {}

    def __getitem__(self, features: BackboneFeatures) -> Backbone:
        """The backbone that settings name.

        Raises:
            InputError: It cannot be loaded; see `load_backbone`.
        """
        options = loading_options(features, torch.device(self.device))
        text = features.text_encoders, features.prompt_cache, features.text_options
        asked = None if features.prompt is None and features.captions is None else text
        key = (features.backbone, repr(features.options), features.dtype, repr(asked))
        if key not in self._found:
            load = partial(load_backbone, features.backbone, device=self.device, dtype=features.dtype, **options)
            self._found[key] = ReloadableBackbone(load, self._slot)
        return self._found[key]


def shared_streams(models: Models, requests: Sequence[BackboneFeatures]) -> Mapping[str, Stream]:
    """One stream, that is one pass and one calibration, for all requests that differ in blocks and modulation only.

    Args:
        models: Where the backbones are.
        requests: What rows want of a backbone.

    Returns:
        `pass_of` a request to the stream that serves it.
    """
    groups: dict[str, list[BackboneFeatures]] = {}
    for features in requests:
        groups.setdefault(pass_of(features), []).append(features)
    return {
        key: make_stream(models[members[0]], members[0], [block for member in members for block in member.blocks])
        for key, members in groups.items()
    }


def pass_of(features: BackboneFeatures) -> str:
    """What must be equal for rows to share a pass and a calibration: all but what is done with the stream later."""
    return repr(replace(features, blocks=[], modulation="none", discard="none", position_debias="none"))


def make_stream(backbone: Backbone, features: BackboneFeatures, blocks: Sequence[int]) -> Stream:
    """A stream of some blocks of a backbone.

    Raises:
        InputError: A setting that the backbone does not have.
    """
    chosen = check_blocks(blocks, backbone.num_blocks)
    options = features.sized(backbone.common_stride(chosen)).extractor_options() | {"blocks": chosen}
    return Stream(FeatureExtractor(backbone, **options), features)
