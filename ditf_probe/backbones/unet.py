"""Features of a Stable Diffusion UNet as DIFT takes them: the output of an up block, averaged over noise draws."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from ditf_probe.backbones.base import Backbone, Norm, Tap, TappedBlock
from ditf_probe.backbones.checks import check_blocks, check_ids, check_images, check_timesteps, check_uncompiled
from ditf_probe.backbones.draws import Draws, NoisyBatch, only_timestep, run_draws
from ditf_probe.backbones.families import output
from ditf_probe.backbones.fingerprint import initialised_sha256, known_sha256, plain
from ditf_probe.backbones.latents import LatentSpace, Posterior, ddpm_noising, image_hash, noise_schedule
from ditf_probe.backbones.prompts import PromptEncoder
from ditf_probe.backbones.skeletons import is_outline, parameters_on_meta
from ditf_probe.backbones.strings import reads_text
from ditf_probe.backbones.taps import HookPoint, recording
from ditf_probe.conditions import PromptEmbeddings, PromptShape, prompt_embeddings
from ditf_probe.errors import InputError

UNET = "UNet2DConditionModel"
_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# Parts that make a UNet ask for more than noisy latents, a timestep and a prompt.
_FURTHER_INPUTS = ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type")


class DIFTBackbone(Backbone):
    """DIFT (arXiv 2306.03881) for Stable Diffusion 1.x and 2.x: blocks are the up blocks of the UNet, coarse to fine.

    There is no AdaLN, so features are made with `modulation: none` (or layer_norm). DIFT's own setting is up block 1 at
    timestep 261. The pass stops after the last up block that is asked for.

    Args:
        unet: A `UNet2DConditionModel` that takes latents, a timestep and a prompt. Set to eval mode and frozen.
        vae: Its autoencoder, or None for a model of RGB pixels in [-1, 1].
        name: Short name for tables; the class name by default.
        scheduler: diffusers scheduler whose `add_noise` noises; by default the one of Stable Diffusion (scaled linear
            betas from 0.00085 to 0.012 over 1000 steps).
        prompts: Text side, so that conditions can be strings.
        posterior: "mode" or "sample" of the autoencoder.
        max_batch: Rows (image x timestep x draw) per pass of the UNet.
        weights_sha256: Hash of the weights if known, or how to compute it; otherwise of the tensors in memory.

    Raises:
        InputError: Another class, a UNet with further inputs, or parts that do not fit each other.
    """

    has_adaln = False

    def __init__(
        self,
        unet: nn.Module,
        vae: nn.Module | None = None,
        *,
        name: str | None = None,
        scheduler: Any = None,
        prompts: PromptEncoder | None = None,
        posterior: Posterior = "mode",
        max_batch: int = 16,
        weights_sha256: str | Callable[[], str] | None = None,
    ) -> None:
        super().__init__()
        check_uncompiled("unet", unet)
        self.unet: Any = unet
        self.latents = LatentSpace(vae, posterior)
        self.prompt = _prompt_shape(unet, self.latents)
        if max_batch < 1:
            raise InputError("max_batch", max_batch, "use at least 1")
        self.prompts = prompts
        self.scheduler = scheduler or noise_schedule(_SCHEDULE)
        self.max_batch = max_batch
        self.name = name or type(unet).__name__
        up_blocks: Any = unet.up_blocks
        self._channels = [int(block.resnets[-1].out_channels) for block in up_blocks]
        self._strides = [self.latents.stride * factor for factor in _factors(self.unet)]
        self.num_blocks, self.channels, self.stride = len(self._channels), self._channels[-1], max(self._strides)
        self.num_timesteps = self.scheduler.config.num_train_timesteps - 1  # a schedule counts from 0
        self._weights_sha256 = weights_sha256
        self.requires_grad_(False).eval()

    def channels_at(self, block: int) -> int:
        """Channels of an up block."""
        return self._channels[block]

    def stride_at(self, block: int) -> int:
        """Pixels per cell side of an up block."""
        return self._strides[block]

    def taps(self, block: int) -> tuple[Tap, ...]:
        """Both names mean the output of the block: there is no AdaLN to stand before."""
        check_blocks([block], self.num_blocks)
        return ("attention", "mlp")

    @reads_text
    @torch.no_grad()
    def forward(
        self,
        images: Tensor,
        *,
        blocks: Sequence[int],
        timestep: int | Sequence[int],
        tap: Tap = "mlp",
        image_ids: Sequence[str] | None = None,
        conditions: Any = None,
        ensemble: int = 1,
        seed: int = 0,
    ) -> dict[int, TappedBlock]:
        """Runs the UNet as far as the last requested up block; see `Backbone.forward`."""
        chosen = check_blocks(blocks, self.num_blocks)
        check_images(images, self.common_stride(chosen))
        timesteps = check_timesteps(timestep, self.num_timesteps)
        if ensemble < 1:
            raise InputError("ensemble", ensemble, "use at least one noise draw")
        if tap not in self.taps(chosen[0]):
            raise InputError("tap", tap, f"the blocks of {self.name} show their output only, use mlp")
        ids = check_ids(image_ids, len(images)) if image_ids is not None else [image_hash(x) for x in images]
        prompts = prompt_embeddings(conditions, len(images), self.prompt).to(self.device, self.unet.dtype)
        noising = partial(ddpm_noising, scheduler=self.scheduler)
        draws = Draws(timesteps, ensemble, seed, noising, self.max_batch)
        found = run_draws(images.to(self.device), ids, prompts, self.latents, draws, partial(self._run, chosen))
        return only_timestep(found) if isinstance(timestep, int) else found

    def _run(self, blocks: Sequence[int], batch: NoisyBatch, draws: range) -> dict[int, TappedBlock]:
        """One pass over all timesteps and draws of all images, in the order of `NoisyBatch.rows`."""
        rows = batch.rows(draws)
        noisy = torch.stack([batch.noisy(*row) for row in rows])
        images = torch.tensor([image for image, _, _ in rows], device=self.device)
        prompts = batch.condition[images]
        assert isinstance(prompts, PromptEmbeddings)
        points = [HookPoint((index, "output"), self.unet.up_blocks[index], "output", output) for index in blocks]
        with recording(points) as record:
            self.unet(
                noisy.to(self.unet.dtype),
                torch.tensor([timestep for _, timestep, _ in rows], device=self.device),
                encoder_hidden_states=prompts.embeds,
                encoder_attention_mask=prompts.mask,
                return_dict=False,
            )
        return {index: _tapped(record[index, "output"]) for index in blocks}

    def untrained(self, seed: int = 0) -> "DIFTBackbone":
        """The same configuration with diffusers' default initialisation; the autoencoder is shared and stays trained.

        Args:
            seed: Seed of the initialisation; the global generator is left as it was.
        """
        weightless = parameters_on_meta() if is_outline(self.unet) else nullcontext()
        with weightless, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            unet = type(self.unet).from_config(self.unet.config)
        facts = {"class": type(unet).__name__, "config": plain(unet.config), "seed": seed}
        return DIFTBackbone(
            nn.Module.to(unet, self.device, self.unet.dtype),  # that of diffusers warns for nothing
            self.latents.vae,
            name=f"{self.name} untrained",
            scheduler=self.scheduler,
            prompts=self.prompts,
            posterior=self.latents.posterior,
            max_batch=self.max_batch,
            weights_sha256=partial(initialised_sha256, facts, self.latents),
        )

    def settings(self) -> dict[str, Any]:
        """Everything that changes a number, as plain JSON values."""
        return {
            "name": self.name,
            "class": type(self.unet).__name__,
            "config": plain(self.unet.config),
            "weights_sha256": self.weights_sha256,
            "dtype": str(self.unet.dtype).removeprefix("torch."),
            "vae": None if self.latents.vae is None else plain(self.latents.vae.config),
            "posterior": None if self.latents.vae is None else self.latents.posterior,
            "scheduler": plain(self.scheduler.config),
            "null_condition": "zero embeddings",
        }

    @cached_property
    def weights_sha256(self) -> str:
        """SHA-256 of the weights file, or of the tensors in memory where there is no file."""
        return known_sha256(self._weights_sha256, self)


def _prompt_shape(unet: Any, latents: LatentSpace) -> PromptShape:
    """What a UNet takes as a prompt, once it is known to take nothing else.

    Raises:
        InputError: Another class, further inputs, or latents of another width.
    """
    name = type(unet).__name__
    if name != UNET:
        raise InputError("unet", name, f"use a diffusers {UNET}")
    for key in _FURTHER_INPUTS:
        if unet.config.get(key) is not None:
            remedy = (
                "DIFT features are made from latents, a timestep and a prompt alone, use Stable Diffusion 1.x or 2.x"
            )
            raise InputError("unet", f"{key} = {unet.config[key]}", remedy)
    if unet.config.in_channels != latents.channels:
        remedy = f"the UNet takes {unet.config.in_channels} channels, give the matching autoencoder"
        raise InputError("vae", f"{latents.channels} latent channels", remedy)
    width = unet.config.cross_attention_dim
    widths = {width} if isinstance(width, int) else set(width)
    if len(widths) > 1:
        raise InputError("unet", f"cross_attention_dim = {list(width)}", "use a UNet whose blocks take the same prompt")
    return PromptShape(int(widths.pop()))


def _factors(unet: Any) -> list[int]:
    """Latents per cell side after each up block."""
    level = sum(getattr(block, "downsamplers", None) is not None for block in unet.down_blocks)
    factors = []
    for block in unet.up_blocks:
        level -= getattr(block, "upsamplers", None) is not None
        factors.append(2**level)
    return factors


def _tapped(features: Tensor) -> TappedBlock:
    """A map `(R, C, h, w)` as tokens."""
    grid = (features.shape[2], features.shape[3])
    return TappedBlock(features.flatten(2).mT, None, None, None, Norm(), grid)
