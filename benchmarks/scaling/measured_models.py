"""Measured and predicted passes of transformers and of the encoder of an autoencoder, with random weights."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.scaling.images import autoencoder_config, encoder_operations
from benchmarks.scaling.timing import HEAD, Place, Point, Sizes, words_of_rate
from benchmarks.scaling.transformers import layers_of

TEXT, LATENTS = 64, 16


@dataclass(frozen=True, slots=True)
class Pass:
    """One pass of a transformer.

    Attributes:
        name: Of the architecture.
        model: With random weights.
        inputs: Its arguments.
        side: Tokens per side of the grid.
        text: Text tokens.
    """

    name: str
    model: nn.Module
    inputs: dict[str, Tensor]
    side: int
    text: int = 0

    @property
    def size(self) -> str:
        """In words."""
        blocks, text = len(list(self.model.get_submodule("transformer_blocks").children())), f" + {self.text}"
        return f"{self.name} x {blocks}, {self.side**2}{text if self.text else ''} tokens"

    @property
    def operations(self) -> int:
        """What the model of costs says."""
        return layers_of(self.model).one_pass(self.side**2, self.text).total

    def run(self) -> None:
        """Runs it."""
        self.model(**self.inputs)


def transformers(sizes: Sizes, place: Place) -> list[Point]:
    """DiT gives the rate; other depths and grids, and a joint transformer with text, are predicted from it."""
    longer = sizes.side * 3 // 2
    first, *others = (
        dit_pass(sizes.heads, sizes.blocks, sizes.side, place),
        dit_pass(sizes.heads, 2 * sizes.blocks, sizes.side, place),
        dit_pass(sizes.heads, sizes.blocks, longer, place),
        sd3_pass(sizes.heads, sizes.blocks, longer, place),
    )
    known, *taken = place.medians([one.run for one in (first, *others)])
    rate = first.operations / known
    words = words_of_rate(rate, first.size)
    return [
        Point("transformer", one.size, words, one.operations / rate, measured)
        for one, measured in zip(others, taken, strict=True)
    ]


def dit_pass(heads: int, blocks: int, side: int, place: Place) -> Pass:
    """An image of noise through DiT."""
    model: Any = diffusers.DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=HEAD, num_layers=blocks, sample_size=2 * side, out_channels=8
    )
    zero = torch.zeros(1, dtype=torch.long, device=place.device)
    inputs = {"hidden_states": noise(place, 1, 4, 2 * side, 2 * side), "timestep": zero, "class_labels": zero}
    return Pass("DiT", prepared(model, place), inputs, side)


def sd3_pass(heads: int, blocks: int, side: int, place: Place) -> Pass:
    """An image and a prompt of noise through SD3, as wide as DiT."""
    width = heads * HEAD
    model: Any = diffusers.SD3Transformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=HEAD,
        num_layers=blocks,
        caption_projection_dim=width,
        joint_attention_dim=width,
        pooled_projection_dim=width,
        sample_size=2 * side,
        pos_embed_max_size=side,
    )
    inputs = {
        "hidden_states": noise(place, 1, 16, 2 * side, 2 * side),
        "encoder_hidden_states": noise(place, 1, TEXT, width),
        "pooled_projections": noise(place, 1, width),
        "timestep": torch.zeros(1, device=place.device),
    }
    return Pass("SD3", prepared(model, place), inputs, side, TEXT)


def prepared(model: nn.Module, place: Place) -> nn.Module:
    """A model in its place."""
    return nn.Module.to(model.eval(), place.device, place.dtype)  # that of diffusers warns for nothing


def noise(place: Place, *shape: int) -> Tensor:
    """Random numbers in the dtype of models."""
    return torch.randn(*shape).to(place.device, place.dtype)


def encoder(sizes: Sizes, place: Place) -> list[Point]:
    """The encoder of the autoencoder in its real size, at an image half as long again."""
    vae: Any = diffusers.AutoencoderKL(**autoencoder_config(LATENTS))
    model = prepared(vae.encoder, place)
    sides = (sizes.pixels, sizes.pixels * 3 // 16 * 8)  # the stride of the autoencoder is 8
    known, asked = (encoder_operations(LATENTS, (side, side)) for side in sides)
    words = [f"{side}x{side} pixels" for side in sides]
    first, measured = place.medians([partial(model, noise(place, 1, 3, side, side)) for side in sides])
    rate = known / first
    return [Point("autoencoder", words[1], words_of_rate(rate, words[0]), asked / rate, measured)]
