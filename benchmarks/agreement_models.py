"""Very small models of every family with random weights, their features, and copies of them on another device."""

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import diffusers
import timm
import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from ditf_probe import FeatureExtractor, load_backbone
from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.skeletons import kept_in_float32, weight_dtype

TIMESTEP = 260
IDS = ("a", "b")
# Models embed the thousandfold of it in their own dtype: bfloat16 holds that of 4, but makes 3504 of that of 3.5, which
# would be another guidance and no rounding of what they compute.
GUIDANCE = 4.0
PACKAGED = "ditf-tiny"
UNET = {
    "down_block_types": [*3 * ["CrossAttnDownBlock2D"], "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *3 * ["CrossAttnUpBlock2D"]],
    "block_out_channels": [8, 16, 16, 16],
    "layers_per_block": 1,
    "cross_attention_dim": 12,
    "attention_head_dim": 4,
    "norm_num_groups": 4,
}
TIMM: dict[str, dict[str, Any]] = {  # the real classes with fewer and narrower layers
    "vit_small_patch14_reg4_dinov2": {"embed_dim": 24, "depth": 3, "num_heads": 2, "dynamic_img_size": True},
    "vit_small_patch16_dinov3": {"embed_dim": 32, "depth": 3, "num_heads": 2, "dynamic_img_size": True},
    "convnext_atto": {"dims": (4, 8, 12, 16), "depths": (1, 1, 1, 1)},
}


def randomise(model: nn.Module) -> nn.Module:
    """Seeded parameters and statistics, none of which makes an AdaLN the identity; sizes stay what they are."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        middle = 1.0 if parameter.ndim == 1 and "norm" in name and name.endswith("weight") else 0.0
        parameter.data = middle + spread * torch.randn(parameter.shape, generator=generator)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def builders() -> dict[str, Callable[[], Backbone]]:
    """Name of a family to what builds a model of it, on the CPU in float32."""
    found: dict[str, Callable[[], Backbone]] = {name: partial(transformer, name) for name in FAMILIES}
    found["UNet2DConditionModel"] = unet
    found |= {name: partial(timm_model, name) for name in TIMM}
    return found | {PACKAGED: partial(load_backbone, PACKAGED, device="cpu", dtype="float32")}


def transformer(name: str) -> Backbone:
    """A transformer of a class of diffusers with its autoencoder."""
    family = FAMILIES[name]
    model = randomise(getattr(diffusers, name)(**family.tiny))
    return Backbone.from_model(model, autoencoder(family.vae), guidance=GUIDANCE)


def autoencoder(name: str) -> nn.Module:
    return randomise(getattr(diffusers, name)(**AUTOENCODERS[name].tiny))


def unet() -> Backbone:
    """Of four levels as in Stable Diffusion."""
    return Backbone.from_model(randomise(diffusers.UNet2DConditionModel(**UNET)), autoencoder("AutoencoderKL"))


def timm_model(name: str) -> Backbone:
    """A model that denoises nothing."""
    return Backbone.from_model(randomise(timm.create_model(name, pretrained=False, **TIMM[name])))


def placed(backbone: Backbone, device: torch.device, dtype: torch.dtype) -> Backbone:
    """A copy on a device in a dtype, in which weights stay float32 that loading would leave so."""
    made = copy.deepcopy(backbone)
    for model in list(made.modules()):
        if isinstance(model, ModelMixin):
            precise, state = kept_in_float32(model), model.state_dict()
            values = {
                name: x.to(device, weight_dtype(name, precise, dtype)) if x.is_floating_point() else x.to(device)
                for name, x in state.items()
            }
            model.load_state_dict(values, assign=True)
            model.requires_grad_(False)
    if hasattr(made, "model"):  # of timm
        made.model.to(dtype)
    return nn.Module.to(made, device)


def pictures(backbone: Backbone, rows: int = 3, columns: int = 5) -> Tensor:
    """Two images that are not square, or those that a model was made for."""
    generator = torch.Generator().manual_seed(1)
    side = backbone.common_stride(range(backbone.num_blocks))
    return torch.rand(len(IDS), 3, rows * side, columns * side, generator=generator)


def features(backbone: Backbone, images: Tensor) -> Iterator[Tensor]:
    """Feature maps `(C, h, w)` of every block, tap and image in float32 on the CPU, two noise draws each."""
    for tap in ("attention", "mlp"):
        blocks = [block for block in range(backbone.num_blocks) if tap in backbone.taps(block)]
        if not blocks:
            continue
        timestep = min(TIMESTEP, backbone.num_timesteps)
        extractor = FeatureExtractor(backbone, blocks=blocks, timestep=timestep, tap=tap, ensemble=2)
        for block, tapped in extractor.tapped(images.to(backbone.device), list(IDS)).items():
            modulation = "layer_norm" if tapped.shift is None and tapped.scale is None else "adaln"
            maps = extractor.features({block: tapped}, modulation=modulation)[block]
            yield from maps.float().cpu()


def errors(found: Iterator[Tensor], expected: list[Tensor]) -> list[float]:
    """Length of the difference of each map over that of the one that is expected."""
    return [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
