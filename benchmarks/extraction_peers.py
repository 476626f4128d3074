"""How published codes extract features: image by image, every noise draw encoded anew, the whole model run."""

from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn import functional as F

from ditf_probe.backbones.latents import noise


class ReferenceLoop:
    """Features of single images by hooks that keep what they see.

    Args:
        transformer: A `DiTTransformer2DModel`.
        vae: Its `AutoencoderKL`.
        block: Whose stream before the MLP is the feature.
        timestep: Noise level.
        ensemble: Noise draws.
    """

    def __init__(self, transformer: Any, vae: Any, block: int, timestep: int, ensemble: int) -> None:
        self.transformer, self.vae, self.scheduler = transformer, vae, DDPMScheduler()
        self.timestep, self.ensemble = timestep, ensemble
        self.kept: dict[str, Any] = {}
        tapped = transformer.transformer_blocks[block]
        self.handles = [
            tapped.norm3.register_forward_pre_hook(lambda module, args: self._keep("stream", args[0])),
            tapped.norm1.register_forward_hook(lambda module, args, output: self._keep("modulation", output)),
        ]

    def close(self) -> None:
        """Takes the hooks off again."""
        for handle in self.handles:
            handle.remove()

    @torch.no_grad()
    def __call__(self, image: Tensor, image_id: str) -> Tensor:
        """From `(3, H, W)` in [0, 1] to `(C, h, w)`; the noise is that of this project, so that features compare."""
        copies = image[None].repeat(self.ensemble, 1, 1, 1) * 2 - 1
        latents = self.vae.encode(copies).latent_dist.mode() * self.vae.config.scaling_factor
        shape, at = latents.shape[1:], self.timestep
        draws = range(self.ensemble)
        eps = torch.stack([noise(shape, seed=0, image_id=image_id, draw=draw, timestep=at) for draw in draws])
        times = torch.full((self.ensemble,), self.timestep)
        noisy = self.scheduler.add_noise(latents, eps, times)
        null = torch.full((self.ensemble,), self.transformer.config.num_embeds_ada_norm)
        self.transformer(noisy, timestep=times, class_labels=null)
        stream = self.kept["stream"].mean(0)
        _, _, shift, scale, _ = (x.mean(0) for x in self.kept["modulation"])
        feature = F.layer_norm(stream, stream.shape[-1:], eps=1e-5) * (1 + scale) + shift
        side = int(len(feature) ** 0.5)
        found: Tensor = feature.T.reshape(-1, side, side)
        return found

    def _keep(self, name: str, value: Any) -> None:
        self.kept[name] = value
