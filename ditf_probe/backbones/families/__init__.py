"""One declarative entry per diffusers class: where its AdaLN layers are and how it wants to be called.

A new family is one entry in one of the files beside this one. Checked against the source of diffusers 0.42.
"""

from ditf_probe.backbones.families.cogview import COGVIEW
from ditf_probe.backbones.families.cross import CROSS
from ditf_probe.backbones.families.entry import (
    BlockGroup,
    Call,
    EmbeddingParts,
    Family,
    ModelInputs,
    Modulation,
    Noising,
    Projections,
    SubLayer,
    TokenOrder,
    first_input,
    output,
)
from ditf_probe.backbones.families.image_stream import IMAGE_STREAM
from ditf_probe.backbones.families.joint import JOINT
from ditf_probe.backbones.families.joint_latents import JOINT_LATENTS
from ditf_probe.backbones.families.joint_packed import JOINT_PACKED
from ditf_probe.backbones.families.scale_only import SCALE_ONLY
from ditf_probe.backbones.families.single_stream import SINGLE_STREAM
from ditf_probe.backbones.families.video import VIDEO

FAMILIES: dict[str, Family] = (
    COGVIEW | CROSS | IMAGE_STREAM | JOINT | JOINT_LATENTS | JOINT_PACKED | SCALE_ONLY | SINGLE_STREAM | VIDEO
)

WITHOUT_ADALN = (
    "Cosmos3OmniTransformer",
    "HeliosTransformer3DModel",
    "JoyImageEditPlusTransformer3DModel",
    "MiniMaxH3Transformer3DModel",
    "OmniGenTransformer2DModel",
    "TransformerTemporalModel",
)
"""Transformers of diffusers that no AdaLN modulates in a way that can be read."""

__all__ = [
    "FAMILIES",
    "WITHOUT_ADALN",
    "BlockGroup",
    "Call",
    "EmbeddingParts",
    "Family",
    "ModelInputs",
    "Modulation",
    "Noising",
    "Projections",
    "SubLayer",
    "TokenOrder",
    "first_input",
    "output",
]
