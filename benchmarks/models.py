"""Models of any size to measure on: a DiT with random weights, of latents or of pixels, as folders of diffusers."""

import argparse
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DiTTransformer2DModel

from benchmarks.arguments import add_sizes, positive
from ditf_probe.errors import InputError

PATCH = 2  # latents per side of a token, as in DiT-XL/2


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the sizes of a model."""
    sizes = [("blocks", 12, "of the transformer"), ("width", 512, "of its stream"), ("head-dim", 64, "of a head")]
    add_sizes(parser, sizes)
    widths = [32, 64, 128, 128]
    parser.add_argument(
        "--vae-channels", type=positive, nargs="+", default=widths, help=f"of the autoencoder (default {widths})"
    )


def stride_of(options: argparse.Namespace) -> int:
    """Pixels per side of a token."""
    return int(PATCH * 2 ** (len(options.vae_channels) - 1))


def check_side(argument: str, side: int, options: argparse.Namespace) -> None:
    """Refuses images that are no whole number of tokens.

    Raises:
        InputError: They are not.
    """
    if side % stride_of(options):
        raise InputError(argument, side, f"use a multiple of {stride_of(options)}, the stride of the model")


def save_pipeline(folder: Path, options: argparse.Namespace) -> Path:
    """Writes a transformer of latents and its autoencoder."""
    _transformer(options, channels=4, patch=PATCH).save_pretrained(folder / "transformer")
    widths = options.vae_channels
    groups = min(32, *widths)
    if any(width % groups for width in widths):
        raise InputError("--vae-channels", widths, f"use multiples of {groups}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vae: Any = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * len(widths),
            up_block_types=["UpDecoderBlock2D"] * len(widths),
            block_out_channels=widths,
            layers_per_block=2,
            norm_num_groups=groups,
            latent_channels=4,
        )
    vae.save_pretrained(folder / "vae")
    return folder


def save_pixels(folder: Path, options: argparse.Namespace) -> Path:
    """Writes a transformer of pixels with tokens as large as those of `save_pipeline`."""
    _transformer(options, channels=3, patch=stride_of(options)).save_pretrained(folder)
    return folder


def _transformer(options: argparse.Namespace, channels: int, patch: int) -> Any:
    if options.width % options.head_dim:
        raise InputError("--width", options.width, f"use a multiple of the head, {options.head_dim}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return DiTTransformer2DModel(
            num_attention_heads=options.width // options.head_dim,
            attention_head_dim=options.head_dim,
            num_layers=options.blocks,
            in_channels=channels,
            out_channels=channels,
            patch_size=patch,
            sample_size=16 * patch,
            num_embeds_ada_norm=10,
        )


def images_of(side: int, count: int) -> tuple[torch.Tensor, list[str]]:
    """Seeded square images `(count, 3, side, side)` in [0, 1] and their ids."""
    generator = torch.Generator().manual_seed(side)
    return torch.rand(count, 3, side, side, generator=generator), [f"{side}/{number}" for number in range(count)]
