"""Kinds of blocks that many classes share."""

from dataclasses import replace

from ditf_probe.backbones.families.entry import (
    BlockGroup,
    EmbeddingParts,
    Modulation,
    Projections,
    SubLayer,
    TokenOrder,
)


def projections_of(attention: str) -> Projections:
    """Query, key and value of an attention with the usual names, at a path."""
    query, key, value, query_norm, key_norm = (f"{attention}.{x}" for x in ("to_q", "to_k", "to_v", "norm_q", "norm_k"))
    return Projections(query, key, value, query_norm, key_norm)


def fused_projections_of(attention: str, linear: str) -> Projections:
    """As `projections_of` where one linear layer computes all three."""
    path = f"{attention}.{linear}"
    return replace(projections_of(attention), query=path, key=path, value=path, fused=True)


def adaln_zero_blocks(mlp_norm: str, attention: str = "attn", container: str = "transformer_blocks") -> BlockGroup:
    """Blocks whose first AdaLN computes the six chunks of both.

    Args:
        mlp_norm: Path of the norm before the MLP.
        attention: Path of the attention.
        container: Path of the list of blocks.
    """
    return BlockGroup(
        container,
        Modulation("norm1.linear"),
        attention=SubLayer("norm1", norm="norm1.norm", shift=0, scale=1, gate=2, into=attention),
        mlp=SubLayer(mlp_norm, norm=mlp_norm, shift=3, scale=4, gate=5, into="ff"),
        projections=projections_of(attention),
    )


def parallel_blocks(
    order: TokenOrder, into: str = "proj_mlp", container: str = "single_transformer_blocks"
) -> BlockGroup:
    """Blocks with one AdaLN before attention and MLP, which run side by side on one sequence of text and image.

    Args:
        order: Where the image tokens sit.
        into: Path of a module that the modulated stream enters.
        container: Path of the list of blocks.
    """
    return BlockGroup(
        container,
        Modulation("norm.linear"),
        attention=SubLayer("norm", norm="norm.norm", shift=0, scale=1, gate=2, into=into),
        mlp=None,
        order=order,
    )


TIME_AND_TEXT = EmbeddingParts(("time_text_embed.timestep_embedder",), ("time_text_embed.text_embedder",))
"""A time embedding and a pooled prompt."""

TIME_ONLY = EmbeddingParts(())
"""No condition enters the modulation."""
