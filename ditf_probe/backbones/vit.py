"""Vision transformers and CNNs of timm as backbones: the output of their blocks or stages, without noise."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone, Norm, Tap, TappedBlock
from ditf_probe.backbones.checks import check_blocks, check_images, check_timesteps
from ditf_probe.backbones.draws import slices
from ditf_probe.backbones.fingerprint import known_sha256
from ditf_probe.errors import InputError


class TimmBackbone(Backbone):
    """Token features of a timm model: DINOv2, DINOv3, any other vision transformer, or the stages of a CNN.

    Blocks are the intermediates of timm's `forward_intermediates`: the blocks of a transformer, the stages of a
    hierarchical model, whose widths and strides differ. A block's stream is its output; class and register tokens
    are dropped. There is no AdaLN, so features are made with `modulation: none` (or layer_norm).

    Args:
        model: The model. Set to eval mode and frozen.
        name: Short name for tables; timm's name by default.
        norm: Apply the model's final norm to the tokens of every block, in float32, as is usual for DINOv2 and DINOv3.
        max_batch: Images per pass.
        build: Makes the same model with random weights, for `untrained`.
        weights_sha256: Hash of the weights if known, or how to compute it; otherwise of the tensors in memory.

    Raises:
        InputError: A model without `forward_intermediates`, or without the final norm that was asked for.
    """

    mean: Tensor
    std: Tensor
    num_timesteps = 0
    has_adaln = False

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str | None = None,
        norm: bool = False,
        max_batch: int = 16,
        build: Callable[[], nn.Module] | None = None,
        weights_sha256: str | Callable[[], str] | None = None,
    ) -> None:
        super().__init__()
        self.model: Any = model
        if not hasattr(model, "forward_intermediates"):
            found = type(model).__name__
            raise InputError("model", found, "give a timm model that has forward_intermediates, most of them do")
        config: Any = model.pretrained_cfg
        info: Any = model.feature_info
        self.config: dict[str, Any] = config
        self.name = name or timm_name(self.config)
        if max_batch < 1:
            raise InputError("max_batch", max_batch, "use at least 1")
        if norm and final_norm(model) is None:
            raise InputError("norm", norm, f"{self.name} has no final norm over the channels of a token, use false")
        self.norm, self.max_batch = norm, max_batch
        stages = [info[index] for index in range(len(info))]
        self._channels = [int(stage["num_chs"]) for stage in stages]
        self._strides = [int(stage["reduction"]) for stage in stages]
        self.num_blocks, self.channels, self.stride = len(stages), self._channels[-1], max(self._strides)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(self.config[key]).reshape(1, 3, 1, 1), persistent=False)
        self._build, self._weights_sha256 = build, weights_sha256
        self.requires_grad_(False).eval()

    def channels_at(self, block: int) -> int:
        """Channels of a block or stage."""
        return self._channels[block]

    def stride_at(self, block: int) -> int:
        """Pixels per token side of a block or stage."""
        return self._strides[block]

    def taps(self, block: int) -> tuple[Tap, ...]:
        """Both names mean the output of the block: there is no AdaLN to stand before."""
        check_blocks([block], self.num_blocks)
        return ("attention", "mlp")

    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int | Sequence[int] = 0,
        tap: Tap = "mlp",
        image_ids: Sequence[str] | None = None,
        conditions: Any = None,
        ensemble: int = 1,
        seed: int = 0,
    ) -> dict[int, TappedBlock]:
        """Runs the model as far as the last requested block: see `Backbone.forward`.

        Ids, conditions, ensemble and seed have no meaning here: there is no noise and no condition.
        """
        del image_ids, conditions, ensemble, seed
        chosen = check_blocks(blocks, self.num_blocks)
        check_timesteps(timestep, self.num_timesteps)
        if tap not in self.taps(chosen[0]):
            raise InputError("tap", tap, f"the blocks of {self.name} show their output only, use mlp")
        check_images(images, self.common_stride(chosen))
        size = (images.shape[2], images.shape[3])
        fixed = fixed_size(self.model)
        if fixed is not None and size != fixed:
            remedy = f"{self.name} is built for {fixed[0]} x {fixed[1]} pixels alone, set image_size to that"
            raise InputError("images", f"{size[0]} x {size[1]}", remedy)
        rows = slices(len(images), self.max_batch)
        parts = [self._run(images[part].to(self.device), sorted(chosen)) for part in rows]
        found = {block: TappedBlock.join([part[block] for part in parts], torch.cat) for block in chosen}
        if isinstance(timestep, int):
            return found
        return {block: tapped.map(lambda x: x[:, None]) for block, tapped in found.items()}

    def _run(self, images: Tensor, blocks: list[int]) -> dict[int, TappedBlock]:
        pixels = (images.float() - self.mean) / self.std
        maps = self.model.forward_intermediates(
            pixels.to(next(self.model.parameters()).dtype),
            indices=blocks,
            norm=False,  # `_tapped` does it in float32
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        size = (images.shape[2], images.shape[3])
        return {block: self._tapped(block, found, size) for block, found in zip(blocks, maps, strict=True)}

    def _tapped(self, block: int, features: Tensor, size: tuple[int, int]) -> TappedBlock:
        grid = (features.shape[2], features.shape[3])
        if grid != (size[0] // self.stride_at(block), size[1] // self.stride_at(block)):
            found = f"block {block} of {self.name}"
            raise InputError("blocks", found, f"its {grid[0]} x {grid[1]} cells do not tile the image, use another one")
        tokens, norm = features.flatten(2).mT, final_norm(self.model)
        if self.norm:
            assert norm is not None
            if tuple(norm.normalized_shape) != tokens.shape[-1:]:
                remedy = f"the final norm of {self.name} does not fit block {block}, use norm: false or the last block"
                raise InputError("norm", self.norm, remedy)
            weights = {name: weight.float() for name, weight in norm.named_parameters()}
            tokens = torch.func.functional_call(norm, weights, (tokens.float(),))
        own = Norm(eps=float(norm.eps)) if isinstance(norm, nn.LayerNorm) else Norm()
        return TappedBlock(tokens, None, None, None, own, grid)

    def untrained(self, seed: int = 0) -> Backbone:
        """The same model with timm's default initialisation.

        Args:
            seed: Seed of the initialisation; the global generator is left as it was.

        Raises:
            InputError: The backbone was made from a model in memory, without a way to build it anew.
        """
        if self._build is None:
            return super().untrained(seed)
        model = seeded(self._build, seed).to(self.device, next(self.model.parameters()).dtype)
        options: dict[str, Any] = {"norm": self.norm, "max_batch": self.max_batch, "build": self._build}
        return TimmBackbone(model, name=f"{self.name} untrained", **options).to(self.device)

    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain JSON values."""
        return {
            "name": self.name,
            "class": type(self.model).__name__,
            "model": timm_name(self.config),
            "weights_sha256": self.weights_sha256,
            "dtype": str(next(self.model.parameters()).dtype).removeprefix("torch."),
            "mean": list(self.config["mean"]),
            "std": list(self.config["std"]),
            "norm": self.norm,
        }

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, or of the tensors in memory where there is no file."""
        return known_sha256(self._weights_sha256, self.model)


def timm_name(config: dict[str, Any]) -> str:
    """The name that timm gives a model, with the tag of its weights."""
    return ".".join(part for part in (config.get("architecture"), config.get("tag")) if part)


def final_norm(model: nn.Module) -> Any:
    """The norm over the channels of a token that a transformer ends with, or None."""
    norm = getattr(model, "norm", None)
    over_tokens = hasattr(norm, "normalized_shape") and not type(norm).__name__.endswith("2d")
    return norm if over_tokens else None


def fixed_size(model: Any) -> tuple[int, int] | None:
    """(height, width) of the only images that a model takes, or None where any size will do."""
    embed = getattr(model, "patch_embed", None)
    if not model.pretrained_cfg.get("fixed_input_size") or not getattr(embed, "strict_img_size", True):
        return None
    height, width = getattr(embed, "img_size", None) or model.pretrained_cfg["input_size"][1:]
    return int(height), int(width)


def seeded(build: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Builds a model with a seed of its own; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
