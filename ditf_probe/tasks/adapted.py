"""Backbones with the adapters that a head was trained with."""

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from ditf_probe.backbones.base import Backbone
from ditf_probe.errors import InputError
from ditf_probe.features.settings import FITTED
from ditf_probe.probes import LoraSettings, attach, lora_of
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream


def adapted(backbone: Backbone, head: nn.Module | None) -> Backbone:
    """The backbone that a head belongs to: the frozen one, or one with the adapters of the head.

    Raises:
        InputError: The head has adapters, and they cannot be put into this backbone; see `backbones.lora`.
    """
    weights = lora_of(head)
    if weights is None:
        return backbone
    from ditf_probe.backbones.lora import LoraBackbone  # diffusers and peft are slow to import

    return LoraBackbone(backbone, weights)


def adapted_stream(backbone: Backbone, head: nn.Module, features: BackboneFeatures, blocks: Sequence[int]) -> Stream:
    """The stream of a head with adapters; what it computes is in no store, and stays in memory.

    Args:
        backbone: The frozen backbone.
        head: With its adapters, on the device of the backbone.
        features: How its features are made.
        blocks: The blocks that it takes.

    Raises:
        InputError: A store that alone may be read, or as in `adapted`.
    """
    if features.store_only:
        raise InputError("features.store_only", True, "no store has the features of an adapted backbone, leave it out")
    return make_stream(adapted(backbone, head), replace(features, store=None, store_basis=None), blocks)


def adapt(head: nn.Module, backbone: Backbone, settings: LoraSettings, features: BackboneFeatures) -> None:
    """Gives a head adapters of its backbone, at the start of their training.

    Args:
        head: Any head without.
        backbone: The frozen backbone.
        settings: Which weights are adapted.
        features: What the head takes.

    Raises:
        InputError: As in `backbones.lora.fresh_weights`.
    """
    from ditf_probe.backbones.lora import fresh_weights  # diffusers is slow to import

    attach(head, fresh_weights(backbone, settings, features.blocks, features.tap))


def check_adaptable(features: BackboneFeatures) -> None:
    """Refuses features that cannot follow a backbone while it is trained.

    Raises:
        InputError: They are kept in a store, or need what was found beforehand with the frozen backbone.
    """
    if features.store is not None:
        raise InputError(
            "features.store", features.store, "leave it out with lora, which changes features at every step"
        )
    fitted = features.modulation if features.modulation in FITTED else "none"
    asked = {"discard": features.discard, "position_debias": features.position_debias, "modulation": fitted}
    for name, value in asked.items():
        if value != "none":
            remedy = "leave it out with lora, it goes by what the frozen backbone was calibrated on"
            raise InputError(f"features.{name}", value, remedy)
