"""Models of the sizes of the paper with random weights, made where they compute, and the loop that published codes run.

Parameters are laid out on the device "meta" and filled where they will be used, in their dtype: no copy in float32, on
the host or on a disk ever exists. Layers keep the size of what passes through them, and no modulation is zero, so that
streams are neither constant nor infinite.
"""

from dataclasses import dataclass
from typing import Any

import diffusers
import torch
import yaml
from torch import Tensor, nn

from benchmarks.scaling.images import MODELS, BackboneName, autoencoder_config
from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Tap, TappedBlock
from ditf_probe.backbones.block_taps import tap_block
from ditf_probe.backbones.diffusion import DiffusionBackbone
from ditf_probe.backbones.families import FAMILIES, ModelInputs
from ditf_probe.backbones.latents import ddpm_noising, flow_noising, noise
from ditf_probe.backbones.skeletons import build_skeleton, kept_in_float32, weight_dtype
from ditf_probe.backbones.taps import recording
from ditf_probe.backbones.truncation import truncate
from ditf_probe.conditions import PromptEmbeddings
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.features.modulation import modulate

NAMES: dict[str, BackboneName] = {
    "flux": "FLUX.1-dev",
    "sd35_large": "SD3.5-large",
    "sd3_medium": "SD3-medium",
    "pixart_alpha": "PixArt-alpha",
    "dit_xl": "DiT-XL/2",
}
TINY_TEXT = 6


def fill_randomly(model: nn.Module, device: torch.device, dtype: torch.dtype, seed: int = 0) -> nn.Module:
    """Gives a skeleton seeded weights on a device: matrices keep the size of what passes through, norms are plain."""
    generator, precise = torch.Generator(device).manual_seed(seed), kept_in_float32(model)
    learnt, values = dict(model.named_parameters()), {}
    for name, place in model.state_dict().items():
        wanted = weight_dtype(name, precise, dtype) if place.is_floating_point() else place.dtype
        if name not in learnt:  # a table that the class computes
            values[name] = place.to(device, wanted)
            continue
        made = torch.empty(place.shape, dtype=wanted, device=device)
        if made.ndim > 1:
            values[name] = made.normal_(0, made[0].numel() ** -0.5, generator=generator)
        else:
            values[name] = made.fill_(1.0 if name.endswith("weight") else 0.0)
    model.load_state_dict(values, assign=True)
    return nn.Module.to(model.requires_grad_(False), device)  # the tables that no state has


@dataclass(frozen=True)
class Subject:
    """A model and where the paper reads it.

    Attributes:
        backbone: The model, whole.
        block: Its block.
        tap: Where in the block.
        timestep: Noise level.
        prompt: Random text tokens of the real number and widths; None for a model of classes.
    """

    backbone: DiffusionBackbone
    block: int
    tap: Tap
    timestep: int
    prompt: PromptEmbeddings | None

    @property
    def weights(self) -> int:
        """Bytes of transformer and autoencoder, as far as they are loaded."""
        return sum(parameter.nbytes for parameter in self.backbone.parameters())

    @property
    def parameters(self) -> int:
        """Of the transformer, as far as it is loaded."""
        return sum(parameter.numel() for parameter in self.backbone.transformer.parameters())

    def truncate(self) -> None:
        """Leaves out, for good, what the tap never reaches, as loading does."""
        truncate(self.backbone.transformer, self.backbone.family, self.block, self.tap)


def build(family: str, device: torch.device, dtype: torch.dtype, rows: int, tiny: bool = False) -> Subject:
    """A family with random weights.

    Args:
        family: One of `NAMES`.
        device: Where.
        dtype: Of the weights.
        rows: Most rows of a pass of the extractor.
        tiny: A very small model of the same class, with the block in its middle.
    """
    model = MODELS[NAMES[family]]
    preset = yaml.safe_load((CONFIGS / "backbone" / f"{model.preset}.yaml").read_text())
    entry, (block,) = FAMILIES[model.transformer], preset["blocks"]
    config = dict(entry.tiny) if tiny else model.config
    autoencoder = dict(AUTOENCODERS["AutoencoderKL"].tiny) if tiny else autoencoder_config(model.latents)
    transformer = build_skeleton(getattr(diffusers, model.transformer), config)
    vae = build_skeleton(diffusers.AutoencoderKL, autoencoder)
    backbone = DiffusionBackbone(
        fill_randomly(transformer, device, dtype), fill_randomly(vae, device, dtype), name=family, max_batch=rows
    )
    prompt = random_prompt(backbone, TINY_TEXT if tiny else model.text, device, dtype)
    block = backbone.num_blocks // 2 if tiny else block
    return Subject(backbone, block, preset["tap"], preset["timestep"], prompt)


def random_prompt(
    backbone: DiffusionBackbone, tokens: int, device: torch.device, dtype: torch.dtype
) -> PromptEmbeddings | None:
    """What text encoders would give for one prompt, in shape."""
    if backbone.family.text is None:
        return None
    shape, generator = backbone.family.text(backbone.transformer.config), torch.Generator().manual_seed(1)
    embeds = torch.randn(1, tokens, shape.width, generator=generator)
    pooled = None if shape.pooled is None else torch.randn(1, shape.pooled, generator=generator)
    return PromptEmbeddings(embeds, pooled).to(device, dtype)


class PlainLoop:
    """How published codes extract features: image by image, every copy of an ensemble encoded, the whole model run.

    The noise is that of this project, so that features compare; kept is what hooks see at the tap.

    Args:
        subject: Model, block, tap and timestep; not truncated.
        ensemble: Copies.
    """

    def __init__(self, subject: Subject, ensemble: int) -> None:
        self.subject, self.ensemble = subject, ensemble
        backbone = subject.backbone
        self.tapped = tap_block(backbone.transformer, backbone.family, subject.block, subject.tap)

    @torch.no_grad()
    def __call__(self, image: Tensor, image_id: str) -> Tensor:
        """From `(3, H, W)` in [0, 1] to `(C, h, w)` float32."""
        backbone = self.subject.backbone
        clean = backbone.latents.encode(image[None].repeat(self.ensemble, 1, 1, 1)).mean
        inputs = self._inputs(self._noised(clean, image_id), (image.shape[1], image.shape[2]))
        with recording(self.tapped.points(), stop=False) as record:
            backbone.transformer(**backbone.family.call(inputs), return_dict=False)
        found = self.tapped.assemble(record, inputs.grid, inputs.text_lengths)
        return mean_feature(found)

    def _noised(self, clean: Tensor, image_id: str) -> Tensor:
        backbone, at = self.subject.backbone, self.subject.timestep
        drawn = [
            noise(clean.shape[1:], seed=0, image_id=image_id, draw=draw, timestep=at) for draw in range(self.ensemble)
        ]
        eps = torch.stack(drawn).to(clean.device)
        if backbone.scheduler is None:
            return flow_noising(clean, eps, at)
        return ddpm_noising(clean, eps, at, backbone.scheduler)

    def _inputs(self, noisy: Tensor, size: tuple[int, int]) -> ModelInputs:
        backbone, rows = self.subject.backbone, torch.zeros(self.ensemble, dtype=torch.int64, device=noisy.device)
        config: Any = backbone.transformer.config
        prompt = self.subject.prompt
        condition = rows + config.num_embeds_ada_norm if prompt is None else prompt[rows]
        return ModelInputs(
            latents=noisy.to(backbone.transformer.dtype),
            time=torch.full((self.ensemble,), backbone.family.time(self.subject.timestep), device=noisy.device),
            condition=condition,
            grid=(size[0] // backbone.stride, size[1] // backbone.stride),
            patch=backbone.patch,
            guidance=backbone.guidance,
            size=size,
            config=config,
        )


def mean_feature(tapped: TappedBlock) -> Tensor:
    """Stream and modulation averaged over the rows, then AdaLN: `(C, h, w)`."""
    mean = tapped.map(lambda x: x.float().mean(0, keepdim=True))
    made = modulate(mean.hidden_states, mean.shift, mean.scale, norm=mean.norm.kind, eps=mean.norm.eps)
    return made[0].T.reshape(-1, *mean.grid)
