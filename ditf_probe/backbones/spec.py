"""What a small denoiser is made of: the metadata of its weights file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from ditf_probe.errors import InputError, check_choice

Architecture = Literal["dit", "flux"]
Prediction = Literal["velocity", "image"]
METADATA_KEY = "ditf_tiny"
MODEL_CLASSES = {"dit": "DiTTransformer2DModel", "flux": "FluxTransformer2DModel"}
"""The diffusers class of each architecture."""


@dataclass(frozen=True)
class TinySpec:
    """Everything needed to build a `TinyDenoiser`; the metadata of its weights file.

    Attributes:
        architecture: "dit" (sine-cosine positions, added) or "flux" (rotary positions).
        config: Arguments of the diffusers class.
        class_names: Names of the classes; the label after the last one is the null class.
        image_size: Side of the training images in pixels.
        patch: Side of a token in pixels.
        noising: "flow": x_t = (1 - s) x0 + s eps with s = timestep / 1000; the velocity is eps - x0.
        prediction: What the transformer gives: "velocity", or "image", the clean image x0.
        space: "pixel": RGB in [-1, 1], no autoencoder.
        training: Facts about the training, for the reader.
    """

    architecture: Architecture
    config: dict[str, Any]
    class_names: tuple[str, ...]
    image_size: int = 64
    patch: int = 4
    noising: str = "flow"
    prediction: Prediction = "velocity"
    space: str = "pixel"
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Number of classes, without the null class."""
        return len(self.class_names)

    @property
    def width(self) -> int:
        """Channels of the residual stream."""
        return int(self.config["num_attention_heads"] * self.config["attention_head_dim"])


def tiny_spec(
    architecture: Architecture,
    class_names: Sequence[str],
    *,
    width: int,
    head_dim: int,
    blocks: int,
    double_blocks: int = 0,
    image_size: int = 64,
    patch: int = 4,
    prediction: Prediction = "velocity",
) -> TinySpec:
    """The spec of a small denoiser.

    Args:
        architecture: "dit" or "flux".
        class_names: Names of the classes, without the null class.
        width: Channels of the residual stream, a multiple of `head_dim`.
        head_dim: Channels of an attention head, a multiple of 4 for "flux".
        blocks: Number of blocks in all.
        double_blocks: How many of them are double-stream (flux only).
        image_size: Side of the images in pixels.
        patch: Side of a token in pixels.
        prediction: "velocity" or "image".

    Returns:
        The spec, its training facts empty.

    Raises:
        InputError: Sizes that do not fit each other.
    """
    check_choice("architecture", architecture, Architecture)
    check_choice("prediction", prediction, Prediction)
    if head_dim < 1 or width < 1 or width % head_dim:
        raise InputError("width", width, f"use a multiple of head_dim, {head_dim}")
    if patch < 1 or image_size < 1 or image_size % patch:
        raise InputError("image_size", image_size, f"use a multiple of patch, {patch}")
    if not 0 <= double_blocks <= blocks or not blocks:
        raise InputError("blocks", blocks, f"use at least 1, and no fewer than double_blocks, {double_blocks}")
    shared: dict[str, Any] = {"num_attention_heads": width // head_dim, "attention_head_dim": head_dim}
    if architecture == "dit":
        config = shared | {
            "in_channels": 3,
            "out_channels": 3,
            "num_layers": blocks,
            "sample_size": image_size,
            "patch_size": patch,
            "num_embeds_ada_norm": len(class_names),
        }
    else:
        spatial = head_dim * 7 // 32 * 2  # FLUX gives the spatial axes 7/16 of a head each
        config = shared | {
            "patch_size": 1,
            "in_channels": 3 * patch * patch,
            "num_layers": double_blocks,
            "num_single_layers": blocks - double_blocks,
            "joint_attention_dim": width,
            "pooled_projection_dim": width,
            "guidance_embeds": False,
            "axes_dims_rope": [head_dim - 2 * spatial, spatial, spatial],
        }
    return TinySpec(architecture, config, tuple(class_names), image_size, patch, prediction=prediction)


def read_spec(path: str | Path) -> TinySpec:
    """Reads the spec of a weights file without its tensors.

    Raises:
        InputError: No such file, or one that `TinyDenoiser.save` did not write.
    """
    if not Path(path).is_file():
        raise InputError("weights", str(path), "give the path of an existing .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {})[METADATA_KEY])
            spec = TinySpec(**(facts | {"class_names": tuple(facts["class_names"])}))
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError("weights", str(path), "use a file written by TinyDenoiser.save") from error
    check_choice("architecture", spec.architecture, Architecture)
    check_choice("prediction", spec.prediction, Prediction)
    return spec
