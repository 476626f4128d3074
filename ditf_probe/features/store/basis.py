"""Principal components of raw streams: a store may keep the coefficients of each token in place of its channels.

A stream is `mean + coefficients @ components` again before anything is made of it, so that norms, AdaLN and discard see
all channels.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.normalisation import Moments
from ditf_probe.features.store.manifest import differences
from ditf_probe.files import replacing
from ditf_probe.precision import to_float64

_KEY = "ditf_probe_basis"
_FORMAT = 1
_BESIDE_STREAMS = frozenset({"dtype", "modulation_condition"})  # keys of a definition that no stream depends on


class RunningMoments:
    """Mean and covariance of tokens that come batch by batch, in float64 (Chan, Golub and LeVeque, 1983)."""

    def __init__(self) -> None:
        self._tokens = 0
        self._mean = self._products = torch.zeros(())

    def add(self, stream: Tensor) -> None:
        """Takes tokens in, `(..., C)`."""
        tokens = to_float64(stream).flatten(0, -2)
        count, mean = len(tokens), tokens.mean(0)
        centred = tokens - mean
        products = centred.T @ centred
        if self._tokens:
            total, apart = self._tokens + count, mean - self._mean
            products += self._products + torch.outer(apart, apart) * (self._tokens * count / total)
            mean = self._mean + apart * (count / total)
        self._tokens, self._mean, self._products = self._tokens + count, mean, products

    def moments(self) -> Moments:
        """Those of all tokens so far.

        Raises:
            InputError: There are none, or values that are not finite.
        """
        if not self._tokens:
            raise InputError("images", "no tokens", "give at least one image to fit a basis to")
        if not bool(self._products.isfinite().all()):
            raise InputError("hidden_states", "not finite", "streams saturate, use bfloat16 or float32")
        covariance = self._products / self._tokens
        return Moments(self._tokens, self._mean, covariance.diagonal(), covariance)


@dataclass(frozen=True, slots=True)
class BlockBasis:
    """The basis of one block.

    Attributes:
        mean: `(C,)` float32, of the tokens that it was fitted to.
        components: `(r, C)` float32, orthonormal rows, that of the largest variance first.
        tokens: How many tokens it was fitted to.
        explained: Share of their variance that the components span, 0 to 1.
    """

    mean: Tensor
    components: Tensor
    tokens: int
    explained: float

    def coefficients(self, stream: Tensor) -> Tensor:
        """Coefficients `(..., r)` float32 of a stream `(..., C)`, on its device."""
        mean, components = self.mean.to(stream.device), self.components.to(stream.device)
        with torch.autocast(stream.device.type, enabled=False):
            return (stream.float() - mean) @ components.T

    def stream(self, coefficients: Tensor) -> Tensor:
        """The stream `(..., C)` float32 that coefficients `(..., r)` stand for, on their device."""
        mean, components = self.mean.to(coefficients.device), self.components.to(coefficients.device)
        with torch.autocast(coefficients.device.type, enabled=False):
            return coefficients.float() @ components + mean


def principal_components(fitted: Moments, count: int) -> BlockBasis:
    """The directions of largest variance; the largest entry of each is positive.

    Args:
        fitted: With the covariance.
        count: Number of components r, at most the number of channels.

    Raises:
        InputError: More components than channels, or no more tokens than components.
    """
    assert fitted.covariance is not None
    channels = len(fitted.mean)
    if not 1 <= count <= channels:
        raise InputError("components", count, f"use 1 to {channels}, the channels of the stream")
    if fitted.tokens <= count:
        raise InputError("components", count, f"cannot be told from {fitted.tokens} tokens, use more images")
    values, vectors = torch.linalg.eigh(fitted.covariance.cpu())
    values, components = values.flip(0).clamp(min=0), vectors.T.flip(0)[:count]
    largest = components.gather(1, components.abs().argmax(1, keepdim=True))
    total = float(values.sum())
    explained = min(float(values[:count].sum()) / total, 1.0) if total else 1.0
    found = (components * largest.sign()).float().contiguous()
    return BlockBasis(fitted.mean.cpu().float(), found, fitted.tokens, explained)


@dataclass(frozen=True)
class Basis:
    """The bases of some blocks, all with as many components.

    Attributes:
        blocks: By block index.
        images: Number of images that they were fitted to.
        definition: Of the features whose streams these were, from `definition_of`.
    """

    blocks: dict[int, BlockBasis]
    images: int
    definition: dict[str, Any]

    @property
    def components(self) -> int:
        """Number of coefficients of a token."""
        return max(len(block.components) for block in self.blocks.values())

    @cached_property
    def sha256(self) -> str:
        """Of the tensors, whatever else their file says."""
        found = hashlib.sha256()
        for index, block in sorted(self.blocks.items()):
            for tensor in (block.mean, block.components):
                found.update(f"{index} {tuple(tensor.shape)}".encode())
                found.update(tensor.contiguous().numpy().tobytes())
        return found.hexdigest()

    def facts(self) -> dict[str, Any]:
        """What the definition of a store says of it."""
        return {"components": self.components, "sha256": self.sha256}

    def check(self, path: str, definition: Mapping[str, Any], widths: Mapping[int, int]) -> None:
        """Refuses to reduce other streams than those that it was fitted to.

        Args:
            path: Its file, for the error.
            definition: Of the features whose streams are to be reduced.
            widths: Block index to channels of these streams.

        Raises:
            InputError: Blocks that it lacks, another number of channels, or other features.
        """
        for index, width in widths.items():
            if index not in self.blocks:
                there = ", ".join(map(str, self.blocks))
                raise InputError("store_basis", path, f"is of blocks {there} and lacks {index}, fit one of all blocks")
            if len(self.blocks[index].mean) != width:
                channels = f"{len(self.blocks[index].mean)} channels of block {index}, which has {width} here"
                raise InputError("store_basis", path, f"is of {channels}, fit one to this backbone")
        found = differences(*(_of_streams(given) for given in (self.definition, definition)))
        if found:
            raise InputError("store_basis", path, f"was fitted to other features: {', '.join(found[:6])}; fit another")

    def reduced(self, tapped: Mapping[int, TappedBlock]) -> dict[int, TappedBlock]:
        """Tapped blocks with coefficients in place of streams."""
        return {
            index: replace(block, hidden_states=self.blocks[index].coefficients(block.hidden_states))
            for index, block in tapped.items()
        }

    def restored(self, index: int, block: TappedBlock) -> TappedBlock:
        """A tapped block with the stream again, in float32, that its coefficients stand for."""
        return replace(block, hidden_states=self.blocks[index].stream(block.hidden_states))


def write_basis(path: Path, basis: Basis) -> None:
    """Writes a basis whole or not at all; tensors are `<block>.mean` and `<block>.components`.

    Raises:
        InputError: The disk is full, or the folder cannot be written to.
    """
    tensors: dict[str, Tensor] = {}
    blocks: dict[str, dict[str, float]] = {}
    for index, block in basis.blocks.items():
        tensors |= {f"{index}.mean": block.mean, f"{index}.components": block.components}
        facts = {"channels": len(block.mean), "components": len(block.components)}
        blocks[str(index)] = facts | {"tokens": block.tokens, "explained": block.explained}
    header = {"format": _FORMAT, "sha256": basis.sha256, "images": basis.images, "blocks": blocks}
    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, {_KEY: json.dumps(header | {"definition": basis.definition})})
            temporary.chmod(0o644)  # safetensors makes the file anew, for the owner alone
    except (OSError, SafetensorError) as error:
        remedy = "cannot be written to, free some space or name another folder"
        raise InputError("store", str(path.parent), remedy) from error


def read_basis(path: str | Path) -> Basis:
    """Reads what `write_basis` wrote.

    Raises:
        InputError: No such file, another file, or a damaged one.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise InputError("store_basis", str(path), "no such file, make one with the setting basis of an extraction")
    try:
        with safe_open(file, framework="pt") as opened:
            header: dict[str, Any] = json.loads((opened.metadata() or {})[_KEY])
            blocks = {int(index): _block(opened, index, facts) for index, facts in header["blocks"].items()}
        form, digest = header["format"], header["sha256"]
        basis = Basis(blocks, int(header["images"]), dict(header["definition"]))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise InputError("store_basis", str(path), "is damaged or no basis, restore it or fit one again") from error
    if form != _FORMAT:
        raise InputError("store_basis", str(path), f"has format {form} and this version reads {_FORMAT}")
    if basis.sha256 != digest:
        raise InputError("store_basis", str(path), "is damaged, restore it or fit one again")
    return basis


def _block(opened: Any, index: str, facts: Mapping[str, Any]) -> BlockBasis:
    mean, components = (opened.get_tensor(f"{index}.{name}") for name in ("mean", "components"))
    expected = (facts["components"], facts["channels"])
    if components.shape != expected or mean.shape != expected[1:] or {mean.dtype, components.dtype} != {torch.float32}:
        raise ValueError(f"block {index} has other shapes than the header says")
    return BlockBasis(mean, components, int(facts["tokens"]), float(facts["explained"]))


def _of_streams(definition: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a definition that streams depend on."""
    return {key: value for key, value in definition.items() if key not in _BESIDE_STREAMS}
