"""What a small denoiser says of itself, told from its file without building it: importing diffusers takes seconds."""

import ast
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import torch
from torch import nn

from ditf_probe.backbones.base import Backbone, Tap
from ditf_probe.backbones.block_taps import group_taps, modulation_conditions
from ditf_probe.backbones.checks import check_blocks
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.fingerprint import file_sha256, initialised_facts, initialised_sha256, plain
from ditf_probe.backbones.latents import LatentSpace
from ditf_probe.backbones.spec import MODEL_CLASSES, TinySpec, read_spec
from ditf_probe.backbones.weight_options import WeightOptions

# How many blocks the lists of the diffusers classes have.
COUNTS = {"transformer_blocks": "num_layers", "single_transformer_blocks": "num_single_layers"}


class TinyOutline(Backbone):
    """A file of `TinyDenoiser.save` as a backbone that computes nothing; what it says is what the loaded one says.

    Args:
        spec: What the file says.
        config: Of its diffusers class, with the defaults.
        name: Short name for tables.
        dtype: Of the weights that would be loaded.
        weights_sha256: Computes the hash of the weights.
    """

    def __init__(
        self,
        spec: TinySpec,
        config: Mapping[str, Any],
        name: str,
        dtype: torch.dtype,
        weights_sha256: Callable[[], str],
    ) -> None:
        super().__init__()
        self.spec, self.config, self.name, self.dtype = spec, dict(config), name, dtype
        self._weights_sha256 = weights_sha256
        family, space, values = FAMILIES[self.model_class], LatentSpace(), SimpleNamespace(**config)
        self.channels = family.width(values)
        self.stride = family.patch(values, space.channels) * space.stride
        self.modulation_conditions = modulation_conditions(family)
        self._taps = _taps(spec, self.config)
        self.num_blocks = len(self._taps)
        self.eval()

    @property
    def model_class(self) -> str:
        """Name of its diffusers class."""
        return MODEL_CLASSES[self.spec.architecture]

    @property
    def device(self) -> torch.device:
        """That of modules without weights."""
        return torch.device("meta")

    def taps(self, block: int) -> tuple[Tap, ...]:
        """The taps that a block has."""
        (index,) = check_blocks([block], self.num_blocks)
        return self._taps[index]

    def untrained(self, seed: int = 0) -> "TinyOutline":
        """What the untrained control says of itself.

        Args:
            seed: Seed of the initialisation.
        """
        labels = None if self.spec.architecture == "dit" else self.spec.num_classes + 1
        facts = initialised_facts(self.model_class, self.config, seed, labels)
        sha256 = partial(initialised_sha256, facts, nn.Module())  # there is no autoencoder that stays trained
        return TinyOutline(self.spec, self.config, f"{self.name} untrained", self.dtype, sha256)

    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain JSON values; see `DiffusionBackbone.settings`."""
        return {
            "name": self.name,
            "class": self.model_class,
            "config": plain(self.config),
            "weights_sha256": self._weights_sha256(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "vae": None,
            "posterior": None,
            "noising": self.spec.noising,
            "scheduler": None,
            "guidance": None,
            "stride": self.stride,
            "prompts": None,
            "null_condition": "null class",
        }

    def forward(self, *args: Any, **arguments: Any) -> NoReturn:
        """Refuses.

        Raises:
            RuntimeError: Always.
        """
        raise RuntimeError("an outline has no weights to compute with")


def tiny_outline(path: Path, dtype: torch.dtype, how: WeightOptions, options: Mapping[str, Any]) -> TinyOutline | None:
    """The outline of a weights file.

    Args:
        path: Of a file of `TinyDenoiser.save`.
        dtype: Of the weights that would be loaded.
        how: As far as they would be.
        options: Of `DiffusionBackbone`.

    Returns:
        The outline, or None where only the built model knows: with more options than a name, another noising than
        flow, a configuration or a part that may not fit, or a diffusers whose source is not at hand.

    Raises:
        InputError: No such file, or one that `TinyDenoiser.save` did not write.
    """
    spec = read_spec(path)
    config = _whole_config(spec)
    if config is None or spec.noising != "flow" or config.get("guidance_embeds") or options.keys() - {"name"}:
        return None
    if how.last_block is not None:
        taps = dict(enumerate(_taps(spec, config))).get(how.last_block, ())
        if not taps or (how.last_tap is not None and how.last_tap not in taps):
            return None
    return TinyOutline(spec, config, options.get("name", path.stem), dtype, partial(file_sha256, path))


def tiny_taps(path: Path) -> list[tuple[Tap, ...]] | None:
    """The taps of every block of a weights file, in order; None where only the built model knows.

    Args:
        path: Of a file of `TinyDenoiser.save`.

    Raises:
        InputError: No such file, or one that `TinyDenoiser.save` did not write.
    """
    spec = read_spec(path)
    config = _whole_config(spec)
    return None if config is None else _taps(spec, config)


def _taps(spec: TinySpec, config: Mapping[str, Any]) -> list[tuple[Tap, ...]]:
    groups = FAMILIES[MODEL_CLASSES[spec.architecture]].groups
    return [group_taps(group) for group in groups for _ in range(config[COUNTS[group.container]])]


def _whole_config(spec: TinySpec) -> dict[str, Any] | None:
    """The config of the diffusers class, with what the spec leaves to its defaults."""
    defaults = declared_defaults(MODEL_CLASSES[spec.architecture])
    return None if defaults is None or spec.config.keys() - defaults.keys() else defaults | spec.config


@cache
def declared_defaults(model_class: str) -> dict[str, Any] | None:
    """The arguments of a diffusers transformer and their defaults, read in its source; None where it is not to be read.

    Args:
        model_class: Name of the class.
    """
    try:
        found = find_spec("diffusers")
        folder = Path(str(found and found.origin)).parent / "models" / "transformers"
        home = next(
            node.module
            for node in ast.walk(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom) and any(alias.name == model_class for alias in node.names)
        )
        nodes = ast.walk(ast.parse((folder / f"{home}.py").read_text(encoding="utf-8")))
        body = next(node.body for node in nodes if isinstance(node, ast.ClassDef) and node.name == model_class)
        start = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__")
        names = [argument.arg for argument in start.args.args[1:]]
        return dict(zip(names, map(ast.literal_eval, start.args.defaults), strict=True))
    except (OSError, StopIteration, SyntaxError, ValueError):
        return None
