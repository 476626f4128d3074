"""The backbones of a comparison and the streams over them: what is equal is computed once."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.backbones.description import taps_of_blocks
from ditf_probe.backbones.loading import load_backbone
from ditf_probe.backbones.reloadable import ROOM, ModelSlot, ReloadableBackbone
from ditf_probe.backbones.tiny_outline import TinyOutline
from ditf_probe.backbones.weight_options import Loaded
from ditf_probe.devices import resolve_device
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.tasks.prompts import loading_options
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class Models:
    """Backbones by their settings.

    A backbone is loaded when it computes; what is asked of its settings is answered by its configuration and the hash
    of its files, so that a run over a full store loads none. Quantised ones, single files and those of timm are loaded
    for that as well.

    All share one slot of memory: the images of a data set are computed by one backbone after the other, and matching
    needs their streams only. So two large backbones never stand on the device together, at the price of loading each
    once per data set. A backbone that is alone, or small, is loaded once.

    Args:
        device: Where they compute.
        requests: Everything that will be asked of any backbone, so that each is loaded only as far as that; see
            `loaded_part`. None loads them whole.
        together: Keep all of them in memory, for tasks whose rows take turns image by image.
        mesh: Ranks over which transformers are divided, see `load_sharded`; None gives every rank its own.
    """

    def __init__(
        self,
        device: torch.device | str,
        requests: Sequence[BackboneFeatures] | None = None,
        together: bool = False,
        mesh: "DeviceMesh | None" = None,
    ) -> None:
        self.device = device
        self._requests = requests
        self._mesh = mesh
        self._slot = ModelSlot(None if together else ROOM)
        self._found: dict[tuple[str, str, str, str], Backbone] = {}

    def __getitem__(self, features: BackboneFeatures) -> Backbone:
        """The backbone that settings name.

        Raises:
            InputError: It cannot be loaded; see `load_backbone`.
        """
        key = _weights_of(features)
        if key not in self._found:
            options = loading_options(features, torch.device(self.device))
            if self._requests is not None:
                options |= loaded_part(features, [x for x in self._requests if _weights_of(x) == key])
            load = partial(load_backbone, features.backbone, device=self.device, dtype=features.dtype, **options)
            outline = _outline_of(load)
            if self._mesh is not None:
                load = _divided(features, self._mesh, resolve_device(self.device), options)
            device = None if outline is None else resolve_device(self.device)
            self._found[key] = ReloadableBackbone(load, self._slot, outline=outline, device=device)
        return self._found[key]


def _divided(
    features: BackboneFeatures, mesh: "DeviceMesh", device: torch.device, options: Mapping[str, Any]
) -> "partial[Backbone]":
    """Loads a backbone whose transformer is divided over ranks."""
    from ditf_probe.backbones.sharding import load_sharded  # not every build of torch has FSDP

    return partial(load_sharded, features.backbone, mesh, device=device, dtype=features.dtype, **options)


def _outline_of(load: Callable[..., Backbone]) -> Callable[[Loaded], Backbone] | None:
    """Makes a backbone without its weights; None where it cannot be told from its configuration."""
    try:
        found = load(loaded="none")
    except InputError as error:
        if error.argument != "loaded":
            raise
        return None
    return lambda loaded: found if loaded == "none" or isinstance(found, TinyOutline) else load(loaded=loaded)


def loaded_part(features: BackboneFeatures, requests: Sequence[BackboneFeatures]) -> dict[str, Any]:
    """As far as a backbone has to be loaded for all that is asked of it; its blocks are counted without its weights.

    Args:
        features: Names the backbone.
        requests: What is asked of it: blocks, and the tap of each.

    Returns:
        `last_block` and `last_tap` of `load_backbone`: the last of the blocks, and its tap where only one is asked for.
        Empty where `features.options` says it already; and for a UNet, a model of timm, or a single file whose
        `config` is no folder.
    """
    if not features.options.keys().isdisjoint(("last_block", "last_tap")):
        return {}
    try:
        known = taps_of_blocks(features.options.get("config", features.backbone))
    except InputError:
        return {}  # what is wrong with it, if anything, `load_backbone` says
    count = len(known)
    # Blocks and taps that are not there are refused by the rows that name them.
    asked = [(block % count, x.tap) for x in requests for block in x.blocks if -count <= block < count]
    if not asked:
        return {}
    last = max(block for block, _ in asked)
    taps = {tap for block, tap in asked if block == last}
    return {"last_block": last, "last_tap": taps.pop() if len(taps) == 1 and taps <= set(known[last]) else None}


def _weights_of(features: BackboneFeatures) -> tuple[str, str, str, str]:
    """What must be equal for features to share a backbone."""
    text = features.text_encoders, features.prompt_cache, features.text_options
    asked = None if features.prompt is None and features.captions is None else text
    return features.backbone, repr(features.options), features.dtype, repr(asked)


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
    """What must be equal for rows to share a pass and a calibration: all but what is done with the stream later.

    Means of positions are calibrated for the channels that are discarded, so that those belong to the debias.
    """
    later: dict[str, Any] = {"modulation": "none", "discard": "none", "position_debias": "none"}
    if features.position_debias != "mean":
        later |= {"massive_count": None, "channel_choice": "massive", "channel_seed": 0}
    return repr(replace(features, blocks=[], **later))


def make_stream(backbone: Backbone, features: BackboneFeatures, blocks: Sequence[int]) -> Stream:
    """A stream of some blocks of a backbone.

    Raises:
        InputError: A setting that the backbone does not have.
    """
    return Stream(make_extractor(backbone, features, blocks), features)


def make_extractor(backbone: Backbone, features: BackboneFeatures, blocks: Sequence[int]) -> FeatureExtractor:
    """What makes the features of some blocks of a backbone.

    Raises:
        InputError: A setting that the backbone does not have.
    """
    chosen = check_blocks(blocks, backbone.num_blocks)
    options = features.sized(backbone.common_stride(chosen)).extractor_options() | {"blocks": chosen}
    return FeatureExtractor(backbone, **options)
