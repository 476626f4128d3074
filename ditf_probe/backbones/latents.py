"""From an image to the noisy latents that a transformer sees: encoding, seeded noise, noising."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ditf_probe.backbones.autoencoders import AUTOENCODERS, unscaled
from ditf_probe.errors import InputError, check_choice

Posterior = Literal["mode", "sample"]
_POSTERIOR_NOISE = -1  # in place of a timestep: the noise of the autoencoder's posterior does not depend on one


def image_hash(image: Tensor) -> str:
    """SHA-256 of the pixels of an image without id: `(3, H, W)` to a hexadecimal string."""
    pixels = image.detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(str(tuple(pixels.shape)).encode())
    digest.update(pixels.numpy().tobytes())
    return digest.hexdigest()


def noise(shape: Sequence[int], *, seed: int, image_id: str, draw: int, timestep: int) -> Tensor:
    """Gaussian noise that depends on nothing but its arguments: not on batch, order, device or rank.

    Args:
        shape: Of one image's latents.
        seed: Seed of the run.
        image_id: Of the image.
        draw: Number of the draw in an ensemble.
        timestep: Noise level.

    Returns:
        float32 on the CPU.
    """
    key = json.dumps([seed, image_id, draw, timestep]).encode()
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8]) >> 1)
    return torch.randn(*shape, generator=generator)


def flow_noising(clean: Tensor, eps: Tensor, timestep: float) -> Tensor:
    """Rectified flow: x_t = (1 - s) x_0 + s eps with s = timestep / 1000."""
    s = timestep / 1000
    return (1 - s) * clean + s * eps


def ddpm_noising(clean: Tensor, eps: Tensor, timestep: int, scheduler: Any) -> Tensor:
    """The forward process of a diffusers scheduler, x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
    noisy: Tensor = scheduler.add_noise(clean, eps, torch.full((len(clean),), timestep, device=clean.device))
    return noisy


def noise_schedule(config: Mapping[str, Any]) -> Any:
    """A diffusers scheduler that noises as a config says, whatever sampler the config is meant for.

    Args:
        config: Of a scheduler with betas; empty for DiT (linear betas from 0.0001 to 0.02 over 1000 steps).
    """
    from diffusers import CogVideoXDDIMScheduler, DDPMScheduler  # diffusers is slow to import

    # Only that of CogVideoX shifts the signal-to-noise ratio.
    kind: Any = CogVideoXDDIMScheduler if "snr_shift_scale" in config else DDPMScheduler
    return kind.from_config(dict(config))


@dataclass(frozen=True, slots=True)
class Encoded:
    """Clean latents of a batch.

    Attributes:
        mean: `(B, C, h, w)` float32.
        deviation: As `mean`, or None where the latents are certain.
    """

    mean: Tensor
    deviation: Tensor | None

    def draw(self, image: int, *, seed: int, image_id: str, draw: int) -> Tensor:
        """The clean latents `(C, h, w)` of one image for one draw of the ensemble."""
        if self.deviation is None:
            return self.mean[image]
        shape = self.mean.shape[1:]
        eps = noise(shape, seed=seed, image_id=image_id, draw=draw, timestep=_POSTERIOR_NOISE)
        return self.mean[image] + self.deviation[image] * eps.to(self.mean.device)


class LatentSpace(nn.Module):
    """Encodes images into the space in which a transformer denoises.

    Args:
        vae: A diffusers autoencoder of a class in `AUTOENCODERS`, or None for pixel space (images in [-1, 1]).
        posterior: "mode", or "sample" for one sample of the posterior per draw (what training and the reference do).
        scaled: False leaves out the scaling factor of the autoencoder's config.

    Attributes:
        stride: Pixels per latent.
        channels: Channels of the latents.

    Raises:
        InputError: Unknown posterior, an unknown autoencoder, or one without a posterior to sample.
    """

    def __init__(self, vae: nn.Module | None = None, posterior: Posterior = "mode", *, scaled: bool = True) -> None:
        super().__init__()
        check_choice("posterior", posterior, Posterior)
        self.vae = vae
        self.posterior = posterior
        self.stride, self.channels = 1, 3
        if vae is not None:
            name = type(vae).__name__
            if name not in AUTOENCODERS:
                raise InputError("vae", name, f"use one of {', '.join(AUTOENCODERS)}")
            self.entry = AUTOENCODERS[name] if scaled else unscaled(AUTOENCODERS[name])
            config: Any = vae.config
            self.stride, self.channels = self.entry.stride(config), self.entry.channels(config)

    def encode(self, images: Tensor) -> Encoded:
        """Encodes prepared images once, whatever the ensemble.

        Args:
            images: `(B, 3, H, W)` in [0, 1].

        Returns:
            Latents as the transformer was trained to see them.

        Raises:
            InputError: A sample is asked of an autoencoder that has no posterior.
        """
        pixels = 2 * images.float() - 1
        if self.vae is None:
            return Encoded(pixels, None)
        vae: Any = self.vae
        pixels = pixels.to(next(vae.parameters()).dtype)
        found = vae.encode(pixels[:, :, None] if self.entry.video else pixels)
        distribution = getattr(found, "latent_dist", None)
        if distribution is None:  # an autoencoder that is not variational
            if self.posterior == "sample":
                raise InputError("posterior", self.posterior, f"{type(vae).__name__} has no posterior, use mode")
            return Encoded(self.entry.latents(vae, found.latent), None)
        mean = self.entry.latents(vae, distribution.mean)
        if self.posterior == "mode":
            return Encoded(mean, None)
        return Encoded(mean, self.entry.latents(vae, distribution.std, spread=True))
