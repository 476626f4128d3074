"""LoRA inside the last tapped blocks of a small backbone, through peft.

What is adapted is a copy that shares every frozen weight, so that other rows go on with the untouched model. The copy
stays in memory beside it, and a training keeps what its gradients need: this is for small backbones.
"""

import copy
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from itertools import chain
from typing import Any

from torch import nn

from ditf_probe.backbones.base import Backbone, Tap
from ditf_probe.backbones.checks import check_blocks, diffusers_class
from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.fingerprint import module_sha256
from ditf_probe.backbones.reloadable import ReloadableBackbone
from ditf_probe.backbones.running_order import running_order
from ditf_probe.backbones.taps import find_block
from ditf_probe.errors import InputError
from ditf_probe.probes.lora import LoraSettings, LoraWeights

ADAPTER = "default"


class LoraBackbone(DiffusionBackbone):
    """A backbone with adapters in it: all weights are frozen but those of the adapters.

    Where their `up` is zero, it computes what the frozen backbone does.

    Args:
        backbone: The frozen backbone, a diffusers transformer whose weights are whole and in memory; left as it is.
        weights: The adapters, on the device of the backbone. They are shared, not copied: a step of an optimiser on
            them is a step of this backbone.

    Raises:
        InputError: peft is missing, another kind of backbone, or one without these layers.
    """

    def __init__(self, backbone: Backbone, weights: LoraWeights) -> None:
        model = _adaptable(backbone)
        transformer = _shared_copy(model.transformer)
        layers = _injected(transformer, weights)
        super().__init__(transformer, **model.options())
        for layer, down, up in zip(layers, weights.down, weights.up, strict=True):
            layer.lora_A[ADAPTER].weight = down
            layer.lora_B[ADAPTER].weight = up
        self.lora = weights

    def settings(self) -> dict[str, Any]:
        """As those of the frozen backbone, with the adapters and the hash of their weights."""
        return super().settings() | {"lora": {**self.lora.facts(), "weights_sha256": module_sha256(self.lora)}}


def fresh_weights(backbone: Backbone, settings: LoraSettings, blocks: Sequence[int], tap: Tap) -> LoraWeights:
    """Adapters at their start, in the last blocks that a tap depends on.

    Of the last tapped block only what runs before the tap can be adapted; a block without such a layer does not count.

    Args:
        backbone: Where they will be.
        settings: Which layers.
        blocks: The tapped blocks.
        tap: Where they are read.

    Raises:
        InputError: Another kind of backbone, no layer of these names, or too few blocks that have one.
    """
    model = _adaptable(backbone)
    found: dict[int, dict[str, nn.Linear]] = {}
    last = max(check_blocks(blocks, backbone.num_blocks))
    for index in range(last, -1, -1):
        if own := dict(_layers(model, index, tap if index == last else None, settings.targets)):
            found[index] = own
        if len(found) == settings.blocks:
            break
    if not found:
        blocks_there = (find_block(model.transformer, model.family, index)[2] for index in range(last + 1))
        known = sorted({path for block in blocks_there for path, _ in _linear(block)})
        raise InputError("lora.targets", list(settings.targets), f"use layers that are there, {', '.join(known)}")
    if len(found) < settings.blocks:
        raise InputError("lora.blocks", settings.blocks, f"only {len(found)} blocks come before the tap, use fewer")
    chosen = sorted(found)
    layers = {path: layer for index in chosen for path, layer in found[index].items()}
    widths = [(layer.in_features, layer.out_features) for layer in layers.values()]
    return LoraWeights(settings.rank, settings.alpha, chosen, list(layers), widths)


def _layers(
    model: DiffusionBackbone, index: int, tap: Tap | None, targets: Sequence[str]
) -> Iterator[tuple[str, nn.Linear]]:
    """Layers of a block by their path in the transformer; with a tap those alone that it depends on."""
    group, position, block = find_block(model.transformer, model.family, index)
    after: tuple[str, ...] = ()
    if tap is not None:
        order = running_order(diffusers_class(model.transformer).__name__, group.container, tap)
        after = tuple(f"{path}." for path in order.superfluous(block))
    for path, layer in _linear(block):
        wanted = any(f".{path}".endswith(f".{target}") for target in targets)
        # Of the projections of an attention, one does not depend on the others.
        apart = tap in ("query", "key", "value") and path != getattr(group.projections, tap)
        if wanted and not apart and not f"{path}.".startswith(after):
            yield f"{group.container}.{position}.{path}", layer


def _linear(module: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    return ((path, layer) for path, layer in module.named_modules() if isinstance(layer, nn.Linear))


def _adaptable(backbone: Backbone) -> DiffusionBackbone:
    """The model itself, in memory and whole.

    Raises:
        InputError: It is none that LoRA can be put into.
    """
    if find_spec("peft") is None:
        raise InputError("lora", backbone.name, "needs peft, run `pip install 'ditf_probe[lora]'`")
    model = backbone.model if isinstance(backbone, ReloadableBackbone) else backbone
    if not isinstance(model, DiffusionBackbone):
        raise InputError("lora", backbone.name, "needs a diffusers transformer, leave it out")
    if model.quantization is not None or model.offloaded:
        raise InputError("lora", backbone.name, "needs weights as they are, load it unquantised and not offloaded")
    return model


def _shared_copy(transformer: nn.Module) -> nn.Module:
    """A model of its own, over the very tensors of another one."""
    return copy.deepcopy(transformer, {id(x): x for x in chain(transformer.parameters(), transformer.buffers())})


def _injected(transformer: nn.Module, weights: LoraWeights) -> list[Any]:
    """Puts adapters into a transformer, in place, and returns the adapted layers in the order of the weights."""
    from peft import LoraConfig, inject_adapter_in_model  # slow to import, and an extra

    there = dict(_linear(transformer))
    for path, (given, out) in zip(weights.layers, weights.widths, strict=True):
        if path not in there or (there[path].in_features, there[path].out_features) != (given, out):
            remedy = f"this backbone has no such layer with {given} inputs and {out} outputs, use that of the training"
            raise InputError("lora.layers", path, remedy)
    config = LoraConfig(r=weights.rank, lora_alpha=weights.alpha, target_modules=weights.layers)
    inject_adapter_in_model(config, transformer, ADAPTER)
    return [transformer.get_submodule(path) for path in weights.layers]
