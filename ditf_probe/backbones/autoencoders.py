"""One declarative entry per diffusers autoencoder: its stride, its channels, and what becomes of its raw latents.

A new autoencoder is one entry in `AUTOENCODERS`. Checked against the source of diffusers 0.42.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ditf_probe.backbones.packing import fold_patches


@dataclass(frozen=True, slots=True)
class Autoencoder:
    """How to use one diffusers autoencoder.

    Attributes:
        stride: From its config to pixels per latent, as the transformer sees latents.
        channels: From its config to the channels of a latent, as the transformer sees latents.
        tiny: Arguments of the class for a very small one; every test of entries runs on it.
        offset: From the autoencoder to what is subtracted from its latents: a number, or `(1, C, 1, 1)`.
        factor: From the autoencoder to what they are multiplied by then; as `offset`.
        video: It takes and gives a frame axis, `(B, C, 1, H, W)`.
        fold: Sides of the squares of raw latents that become channels before all that.
    """

    stride: Callable[[Any], int]
    channels: Callable[[Any], int]
    tiny: Mapping[str, Any]
    offset: Callable[[Any], Tensor | float]
    factor: Callable[[Any], Tensor | float]
    video: bool = False
    fold: int = 1

    def latents(self, vae: Any, raw: Tensor, *, spread: bool = False) -> Tensor:
        """Raw latents as the transformer was trained to see them.

        Args:
            vae: The autoencoder.
            raw: `(B, C, h, w)`, or with a frame axis for video.
            spread: These are standard deviations, which no offset moves.

        Returns:
            `(B, C', h', w')` float32.
        """
        still = raw[:, :, 0] if self.video else raw
        folded = fold_patches(still.float(), self.fold)
        return (folded if spread else folded - self.offset(vae)) * self.factor(vae)


def halvings(config: Any) -> int:
    """One level of resolution less than there are widths."""
    return int(2 ** (len(config.block_out_channels) - 1))


def ltx_stride(config: Any) -> int:
    """Given, or the patch doubled by each stage that scales."""
    given = config.spatial_compression_ratio
    return int(config.patch_size * 2 ** sum(config.spatio_temporal_scaling) if given is None else given)


def shift_factor(vae: Any) -> float:
    """The shift of the config, zero where it has none."""
    return float(getattr(vae.config, "shift_factor", None) or 0.0)


def scaling_factor(vae: Any) -> float:
    """The scaling of the config."""
    return float(vae.config.scaling_factor)


def _per_channel(vae: Any, values: Any) -> Tensor:
    device = next(vae.parameters()).device
    return torch.as_tensor(values, dtype=torch.float32, device=device).reshape(1, -1, 1, 1)


def listed_mean(vae: Any) -> Tensor:
    """The mean per channel that the config lists."""
    return _per_channel(vae, vae.config.latents_mean)


def listed_deviation(vae: Any) -> Tensor:
    """One over the standard deviation per channel that the config lists."""
    return 1 / _per_channel(vae, vae.config.latents_std)


def running_mean(vae: Any) -> Tensor:
    """The mean that a batch norm kept."""
    return _per_channel(vae, vae.bn.running_mean)


def running_deviation(vae: Any) -> Tensor:
    """One over the standard deviation that a batch norm kept."""
    return (_per_channel(vae, vae.bn.running_var) + float(vae.config.batch_norm_eps)).rsqrt()


def kept_mean(vae: Any) -> Tensor:
    """The mean per channel that is among the weights."""
    return _per_channel(vae, vae.latents_mean)


def kept_factor(vae: Any) -> Tensor:
    """The scaling over the standard deviation per channel that is among the weights."""
    return scaling_factor(vae) / _per_channel(vae, vae.latents_std)


def kl_mean(vae: Any) -> Tensor | float:
    """The listed mean where there is one, else the shift."""
    return shift_factor(vae) if getattr(vae.config, "latents_mean", None) is None else listed_mean(vae)


def kl_factor(vae: Any) -> Tensor | float:
    """The scaling, over the listed standard deviation where there is one."""
    if getattr(vae.config, "latents_std", None) is None:
        return scaling_factor(vae)
    return scaling_factor(vae) * listed_deviation(vae)


def unscaled(entry: Autoencoder) -> Autoencoder:
    """The same autoencoder for a model whose latents its scaling factor leaves alone."""
    return replace(entry, factor=lambda vae: entry.factor(vae) / scaling_factor(vae))


_TINY_KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
_TINY_VIDEO = {
    "base_dim": 8,
    "z_dim": 4,
    "dim_mult": [1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False],
    "latents_mean": [0.3, -0.2, 0.1, 0.4],
    "latents_std": [1.5, 0.7, 2.0, 1.1],
}


AUTOENCODERS: dict[str, Autoencoder] = {
    "AutoencoderKL": Autoencoder(
        stride=halvings,
        channels=lambda config: int(config.latent_channels),
        tiny=_TINY_KL | {"shift_factor": 0.1, "scaling_factor": 0.7},
        offset=kl_mean,
        factor=kl_factor,
    ),
    "AutoencoderKLFlux2": Autoencoder(
        stride=lambda config: halvings(config) * int(config.patch_size[0]),
        channels=lambda config: int(config.latent_channels * config.patch_size[0] ** 2),
        tiny=_TINY_KL,
        offset=running_mean,
        factor=running_deviation,
        fold=2,
    ),
    "AutoencoderKLQwenImage": Autoencoder(
        stride=lambda config: int(2 ** len(config.temperal_downsample)),
        channels=lambda config: int(config.z_dim),
        tiny=_TINY_VIDEO,
        offset=listed_mean,
        factor=listed_deviation,
        video=True,
    ),
    "AutoencoderKLWan": Autoencoder(
        stride=lambda config: int(config.scale_factor_spatial),
        channels=lambda config: int(config.z_dim),
        tiny=_TINY_VIDEO | {"scale_factor_spatial": 2},
        offset=listed_mean,
        factor=listed_deviation,
        video=True,
    ),
    "AutoencoderKLHunyuanImage": Autoencoder(
        stride=lambda config: int(config.spatial_compression_ratio),
        channels=lambda config: int(config.latent_channels),
        tiny={
            "in_channels": 3,
            "out_channels": 3,
            "latent_channels": 4,
            "block_out_channels": [32, 32],
            "layers_per_block": 1,
            "spatial_compression_ratio": 2,
            "sample_size": 32,
            "scaling_factor": 0.75,
        },
        offset=lambda vae: 0.0,
        factor=scaling_factor,
    ),
    "AutoencoderKLHunyuanVideo": Autoencoder(
        stride=lambda config: int(config.spatial_compression_ratio),
        channels=lambda config: int(config.latent_channels),
        tiny={
            "latent_channels": 4,
            "down_block_types": ("HunyuanVideoDownBlock3D",) * 2,
            "up_block_types": ("HunyuanVideoUpBlock3D",) * 2,
            "block_out_channels": (8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "spatial_compression_ratio": 2,
            "temporal_compression_ratio": 4,
            "scaling_factor": 0.75,
        },
        offset=lambda vae: 0.0,
        factor=scaling_factor,
        video=True,
    ),
    "AutoencoderKLLTXVideo": Autoencoder(
        stride=ltx_stride,
        channels=lambda config: int(config.latent_channels),
        tiny={
            "latent_channels": 4,
            "block_out_channels": (8, 8),
            "down_block_types": ("LTXVideoDownBlock3D",) * 2,
            "decoder_block_out_channels": (8, 8),
            "layers_per_block": (1, 1, 1),
            "decoder_layers_per_block": (1, 1, 1),
            "spatio_temporal_scaling": (True, False),
            "decoder_spatio_temporal_scaling": (True, False),
            "decoder_inject_noise": (False,) * 3,
            "downsample_type": ("conv",) * 2,
            "upsample_residual": (False,) * 2,
            "upsample_factor": (1,) * 2,
            "scaling_factor": 0.75,
        },
        offset=kept_mean,
        factor=kept_factor,
        video=True,
    ),
    "AutoencoderKLCogVideoX": Autoencoder(
        stride=halvings,
        channels=lambda config: int(config.latent_channels),
        tiny={
            "latent_channels": 4,
            "down_block_types": ("CogVideoXDownBlock3D",) * 2,
            "up_block_types": ("CogVideoXUpBlock3D",) * 2,
            "block_out_channels": (8, 8),
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "temporal_compression_ratio": 2,
            "scaling_factor": 0.75,
        },
        offset=lambda vae: 0.0,
        factor=scaling_factor,
        video=True,
    ),
    "AutoencoderDC": Autoencoder(
        stride=lambda config: int(2 ** (len(config.encoder_block_out_channels) - 1)),
        channels=lambda config: int(config.latent_channels),
        tiny={
            "latent_channels": 4,
            "attention_head_dim": 4,
            "encoder_block_out_channels": (8, 8),
            "decoder_block_out_channels": (8, 8),
            "encoder_layers_per_block": (1, 1),
            "decoder_layers_per_block": (1, 1),
            "encoder_qkv_multiscales": ((), ()),
            "decoder_qkv_multiscales": ((), ()),
            "scaling_factor": 0.4,
        },
        offset=lambda vae: 0.0,
        factor=scaling_factor,
    ),
}
