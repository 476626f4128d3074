"""What one image costs with the backbones of the paper, from their published configurations: no weights, no network."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args

import diffusers
import torch
import yaml
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.scaling.transformers import Layers, PassCost, layers_of
from ditf_probe.backbones.base import Tap
from ditf_probe.backbones.description import Description, describe
from ditf_probe.backbones.latents import LatentSpace
from ditf_probe.backbones.skeletons import build_skeleton
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.errors import InputError

BackboneName = Literal["DiT-XL/2", "PixArt-alpha", "SD3-medium", "SD3.5-large", "FLUX.1-dev"]
BACKBONES: tuple[BackboneName, ...] = get_args(BackboneName)
WEIGHTS = torch.bfloat16
MODULATION = 3 * torch.float32.itemsize  # shift, scale and gate of a channel in a store


@dataclass(frozen=True, slots=True)
class Model:
    """A published model.

    Attributes:
        preset: Name of its file in `configs/backbone/`, which gives size, block and tap.
        transformer: Its diffusers class.
        config: What its `config.json` says of layers and widths.
        latents: Channels of its autoencoder's latents.
        text: Text tokens of a prompt, padding included.
    """

    preset: str
    transformer: str
    config: dict[str, Any]
    latents: int
    text: int


_XL: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "in_channels": 4,
    "out_channels": 8,
    "patch_size": 2,
}
_SD3: dict[str, Any] = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "patch_size": 2,
    "pos_embed_max_size": 192,
    "sample_size": 128,
}

# SD3 reads 77 tokens of CLIP and 256 of T5; the others are the lengths of `backbones/text_sides.py`.
MODELS: dict[BackboneName, Model] = {
    "DiT-XL/2": Model("dit_xl_2_512", "DiTTransformer2DModel", {**_XL, "sample_size": 64}, latents=4, text=0),
    "PixArt-alpha": Model(
        "pixart_alpha",
        "PixArtTransformer2DModel",
        {**_XL, "sample_size": 128, "cross_attention_dim": 1152, "caption_channels": 4096},
        latents=4,
        text=120,
    ),
    "SD3-medium": Model(
        "sd3_medium",
        "SD3Transformer2DModel",
        {**_SD3, "num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
        latents=16,
        text=333,
    ),
    "SD3.5-large": Model(
        "sd35_large",
        "SD3Transformer2DModel",
        {**_SD3, "num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "qk_norm": "rms_norm"},
        latents=16,
        text=333,
    ),
    "FLUX.1-dev": Model(
        "flux_dev",
        "FluxTransformer2DModel",
        {
            "patch_size": 1,
            "in_channels": 64,
            "num_layers": 19,
            "num_single_layers": 38,
            "attention_head_dim": 128,
            "num_attention_heads": 24,
            "joint_attention_dim": 4096,
            "pooled_projection_dim": 768,
            "guidance_embeds": True,
            "axes_dims_rope": [16, 56, 56],
        },
        latents=16,
        text=512,
    ),
}


def autoencoder_config(latents: int) -> dict[str, Any]:
    """The autoencoder of Stable Diffusion, whose design SD3 and FLUX keep with more channels of latents."""
    convolutions = latents == 4
    return {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": latents,
        "use_quant_conv": convolutions,
        "use_post_quant_conv": convolutions,
    }


@cache
def autoencoder(latents: int) -> nn.Module:
    """An autoencoder whose parameters are on the device "meta"."""
    return build_skeleton(diffusers.AutoencoderKL, autoencoder_config(latents))


@cache
@torch.no_grad()
def encoder_operations(latents: int, size: tuple[int, int]) -> int:
    """Operations of the matrix products and convolutions of an encoder, counted in a pass without numbers.

    Args:
        latents: Channels of the latents.
        size: (height, width) of the image in pixels.
    """
    with FlopCounterMode(display=False) as counter:
        autoencoder(latents).get_submodule("encoder")(torch.empty(1, 3, *size, device="meta"))
    return int(counter.get_total_flops())


@dataclass(frozen=True, slots=True)
class ImageCost:
    """What one image costs.

    Attributes:
        name: Of the backbone.
        block: Up to which it runs.
        tap: Where that block is read.
        size: (height, width) of the prepared image in pixels.
        grid: (rows, columns) of its tokens.
        text: Tokens of the prompt.
        channels: Width of the stream.
        parameters: Of the transformer as far as it is loaded.
        weights: Bytes of these and of the autoencoder in bfloat16.
        one_pass: Operations of the transformer per noise draw, as far as it runs.
        whole_pass: The same without early exit.
        vae: Operations of the encoder of the autoencoder.
    """

    name: BackboneName
    block: int
    tap: Tap
    size: tuple[int, int]
    grid: tuple[int, int]
    text: int
    channels: int
    parameters: int
    weights: int
    one_pass: PassCost
    whole_pass: PassCost
    vae: int

    @property
    def tokens(self) -> int:
        """Of the image."""
        return self.grid[0] * self.grid[1]

    def operations(self, ensemble: int) -> int:
        """Operations for an ensemble of noise draws: the autoencoder runs once, the transformer for each."""
        return self.vae + ensemble * self.one_pass.total

    def stored(self, dtype: torch.dtype) -> int:
        """Bytes of an entry of a store: the mean stream of one block in a dtype, and its modulation in float32."""
        return (self.tokens * dtype.itemsize + MODULATION) * self.channels


@dataclass(frozen=True, slots=True)
class Skeleton:
    """What is known of a backbone before the size of an image is.

    Attributes:
        described: What is loaded for its block and tap.
        loaded: Layers of that.
        whole: All layers of the transformer.
        stride: Pixels of the prepared image per token side.
        size: (height, width) of the prepared image in its preset, in pixels.
        tap: Where the block is read.
    """

    described: Description
    loaded: Layers
    whole: Layers
    stride: int
    size: tuple[int, int]
    tap: Tap


@cache
def skeleton(name: BackboneName) -> Skeleton:
    """A backbone of the paper with the block and tap of its preset."""
    model = MODELS[name]
    preset = yaml.safe_load((CONFIGS / "backbone" / f"{model.preset}.yaml").read_text())
    (block,), tap, side = preset["blocks"], preset["tap"], preset["image_size"]
    transformer: Any = build_skeleton(getattr(diffusers, model.transformer), model.config)
    whole = layers_of(transformer)
    space = LatentSpace(autoencoder(model.latents))
    described = describe(name, transformer, space, last_block=block, last_tap=tap, dtype=WEIGHTS)  # truncates it
    assert described.stride is not None
    return Skeleton(described, layers_of(transformer), whole, described.stride, (side, side), tap)


def image_cost(name: BackboneName, size: tuple[int, int] | None = None) -> ImageCost:
    """What one image costs with a backbone of the paper.

    Args:
        name: Which.
        size: (height, width) of the prepared image in pixels; None is that of the preset.

    Raises:
        InputError: A side that is no multiple of the pixels per token.
    """
    found, text = skeleton(name), MODELS[name].text
    (height, width), stride, described = size or found.size, found.stride, found.described
    if height % stride or width % stride:
        raise InputError("--size", f"{height} {width}", f"give multiples of {stride}, the pixels per token")
    grid = (height // stride, width // stride)
    assert described.vae is not None
    return ImageCost(
        name=name,
        block=described.last_block,
        tap=found.tap,
        size=(height, width),
        grid=grid,
        text=text,
        channels=described.channels,
        parameters=described.loaded.parameters,
        weights=described.loaded.size + described.vae.size,
        one_pass=found.loaded.one_pass(grid[0] * grid[1], text),
        whole_pass=found.whole.one_pass(grid[0] * grid[1], text),
        vae=encoder_operations(MODELS[name].latents, (height, width)),
    )
