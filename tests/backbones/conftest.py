"""Real diffusers models, tiny, every parameter random, so that no AdaLN is the identity by accident."""

from collections.abc import Callable

import pytest
import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel, FluxTransformer2DModel
from torch import nn


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def build_dit(in_channels: int = 3, patch_size: int = 4, **options: object) -> nn.Module:
    config = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "num_embeds_ada_norm": 5}
    shape = {"in_channels": in_channels, "out_channels": in_channels, "patch_size": patch_size, "sample_size": 16}
    return randomise(DiTTransformer2DModel(**config, **shape, **options))


def build_flux(in_channels: int = 48, guidance_embeds: bool = False) -> nn.Module:
    widths = {"joint_attention_dim": 24, "pooled_projection_dim": 20, "axes_dims_rope": [4, 6, 6]}
    blocks = {"num_layers": 2, "num_single_layers": 2, "num_attention_heads": 2, "attention_head_dim": 16}
    return randomise(
        FluxTransformer2DModel(in_channels=in_channels, guidance_embeds=guidance_embeds, **widths, **blocks)
    )


def build_vae(**options: object) -> nn.Module:
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return randomise(AutoencoderKL(**kinds, block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, **options))


@pytest.fixture(scope="session")
def dit() -> nn.Module:
    return build_dit()


@pytest.fixture(scope="session")
def flux() -> nn.Module:
    return build_flux()


@pytest.fixture(scope="session")
def make_dit() -> Callable[..., nn.Module]:
    return build_dit


@pytest.fixture(scope="session")
def make_flux() -> Callable[..., nn.Module]:
    return build_flux


@pytest.fixture(scope="session")
def make_vae() -> Callable[..., nn.Module]:
    return build_vae


@pytest.fixture
def images() -> torch.Tensor:
    """Two images that are not square."""
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(3))
