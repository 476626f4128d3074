"""Operations of a diffusion transformer per image, from its layers and the number of tokens alone.

A linear layer (or the convolution that cuts patches) takes two operations per weight and row, attention four per
channel, query and key. What is left out (norms, activations, softmax, position encodings) has no matrix product.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from ditf_probe.backbones.families import FAMILIES
from ditf_probe.errors import InputError

Rows = Literal["image", "text", "both", "once"]


@dataclass(frozen=True, slots=True)
class Attention:
    """One attention of every block in a list.

    Attributes:
        container: Path of the list in the transformer.
        path: Path of the module in a block.
        queries: Which tokens ask.
        keys: Which tokens are looked at.
    """

    container: str
    path: str
    queries: Rows
    keys: Rows


@dataclass(frozen=True, slots=True)
class Anatomy:
    """How many rows pass each layer of a class.

    Attributes:
        rows: Pairs of a pattern, found in the path of a layer, and its rows; the first that is found counts.
        attentions: Its attentions.
    """

    rows: tuple[tuple[str, Rows], ...]
    attentions: tuple[Attention, ...]

    def of(self, path: str) -> Rows:
        """The rows of a layer, image tokens where no pattern is found."""
        return next((rows for pattern, rows in self.rows if re.search(pattern, path)), "image")


ONCE = r"(^|\.)(norm1|norm1_context|norm|norm_out)\.(linear|emb)|^(time_text_embed|adaln_single)\."
"""Embeddings of time, class, size and pooled text, and the modulations made of them: a row per image."""

ANATOMIES = {
    "DiTTransformer2DModel": Anatomy(
        ((ONCE, "once"), (r"^proj_out_1$", "once")), (Attention("transformer_blocks", "attn1", "image", "image"),)
    ),
    "PixArtTransformer2DModel": Anatomy(
        ((ONCE, "once"), (r"^caption_projection\.|\.attn2\.to_[kv]$", "text")),
        (
            Attention("transformer_blocks", "attn1", "image", "image"),
            Attention("transformer_blocks", "attn2", "image", "text"),
        ),
    ),
    "SD3Transformer2DModel": Anatomy(
        ((ONCE, "once"), (r"^context_embedder$|\.attn\.(add_|to_add_)|\.ff_context\.", "text")),
        (
            Attention("transformer_blocks", "attn", "both", "both"),
            Attention("transformer_blocks", "attn2", "image", "image"),
        ),
    ),
    "FluxTransformer2DModel": Anatomy(
        (
            (ONCE, "once"),
            (r"^context_embedder$|\.attn\.(add_|to_add_)|\.ff_context\.", "text"),
            (r"^single_transformer_blocks\.", "both"),
        ),
        (
            Attention("transformer_blocks", "attn", "both", "both"),
            Attention("single_transformer_blocks", "attn", "both", "both"),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class PassCost:
    """Operations of one pass for one image and one noise draw.

    Attributes:
        linear: Of linear layers.
        attention: Of the products of queries with keys and of weights with values.
    """

    linear: int
    attention: int

    @property
    def total(self) -> int:
        """Both."""
        return self.linear + self.attention


@dataclass(frozen=True, slots=True)
class Layers:
    """What a transformer is made of, as far as it is loaded.

    Attributes:
        weights: Weights of linear layers, by the rows that pass them.
        attentions: Queries and keys of every attention.
        width: Channels of the stream.
    """

    weights: Mapping[Rows, int]
    attentions: tuple[tuple[Rows, Rows], ...]
    width: int

    def one_pass(self, tokens: int, text: int) -> PassCost:
        """Operations of one pass.

        Args:
            tokens: Image tokens.
            text: Text tokens, padding included: it is computed as well.
        """
        counts: dict[Rows, int] = {"image": tokens, "text": text, "both": tokens + text, "once": 1}
        linear = sum(2 * weights * counts[rows] for rows, weights in self.weights.items())
        scores = sum(counts[queries] * counts[keys] for queries, keys in self.attentions)
        return PassCost(linear, 4 * self.width * scores)


def layers_of(transformer: Any) -> Layers:
    """Sorts the layers of a transformer.

    Args:
        transformer: Of a class in `ANATOMIES`, truncated or not; its parameters may be on the device "meta".

    Raises:
        InputError: A class whose anatomy is not described.
    """
    name = type(transformer).__name__
    if name not in ANATOMIES:
        raise InputError("backbone", name, f"its layers are not described, use one of {', '.join(ANATOMIES)}")
    anatomy, weights, attentions = ANATOMIES[name], dict[Rows, int](), list[tuple[Rows, Rows]]()
    for path, layer in transformer.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            rows = anatomy.of(path)
            weights[rows] = weights.get(rows, 0) + layer.weight.numel()
    for kind in anatomy.attentions:
        for block in transformer.get_submodule(kind.container).children():
            # A module without parameters stands where there is no such attention, or where it was left out.
            module = getattr(block, kind.path, None)
            if module is not None and any(True for _ in module.parameters()):
                attentions.append((kind.queries, kind.keys))
    return Layers(weights, tuple(attentions), FAMILIES[name].width(transformer.config))
