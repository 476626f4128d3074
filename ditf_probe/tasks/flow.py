"""Flow matching on images: noising, velocity target, and a plain Euler sampler."""

import torch
from torch import Tensor

from ditf_probe.backbones.packing import pack_patches
from ditf_probe.backbones.tiny import TinyDenoiser


def as_signal(images: Tensor) -> Tensor:
    """Images `(B, 3, H, W)` uint8 as float32 in [-1, 1], which is what the denoiser sees."""
    return images.float() / 127.5 - 1


def sample_timesteps(count: int, mean: float, std: float, device: torch.device | str | None = None) -> Tensor:
    """Timesteps whose noise level s = t / 1000 is logit-normal (Esser et al. 2024, equation 19).

    Args:
        count: How many.
        mean: Mean of logit(s); above 0 favours noise.
        std: Standard deviation of logit(s).
        device: Where to draw.

    Returns:
        `(count,)` float32 in (0, 1000).
    """
    return 1000 * torch.sigmoid(mean + std * torch.randn(count, device=device))


def drop_labels(labels: Tensor, null_label: int, probability: float) -> Tensor:
    """Replaces labels by the null label, each with the given probability."""
    return torch.where(torch.rand(labels.shape, device=labels.device) < probability, null_label, labels)


def flow_loss(
    model: TinyDenoiser, clean: Tensor, noise: Tensor, timestep: Tensor, labels: Tensor, keep: Tensor | None = None
) -> Tensor:
    """Mean squared error of the predicted velocity over the kept tokens.

    Args:
        model: The denoiser.
        clean: `(B, 3, H, W)` in [-1, 1].
        noise: Standard normal, same shape.
        timestep: `(B,)`, 0 to 1000.
        labels: `(B,)` int64.
        keep: `(K,)` token indices, or None for all.

    Returns:
        Scalar, float32.
    """
    level = (timestep / 1000)[:, None, None, None]
    predicted = model.velocity_tokens((1 - level) * clean + level * noise, timestep, labels, keep)
    target = pack_patches(noise - clean, model.spec.patch)
    return (predicted.float() - (target if keep is None else target[:, keep])).square().mean()


@torch.no_grad()
def sample_images(model: TinyDenoiser, labels: Tensor, noise: Tensor, steps: int, guidance: float = 1.0) -> Tensor:
    """Integrates the flow from noise to images with Euler steps.

    Args:
        model: The denoiser.
        labels: `(B,)` int64.
        noise: `(B, 3, H, W)` standard normal.
        steps: Number of steps of equal length.
        guidance: Weight of classifier-free guidance; 1 is none.

    Returns:
        `(B, 3, H, W)` in about [-1, 1].
    """
    signal = noise
    null = torch.full_like(labels, model.null_label)
    for step in range(steps):
        timestep = noise.new_full((len(noise),), 1000 * (1 - step / steps))
        velocity = model(signal, timestep, labels)
        if guidance != 1:
            free = model(signal, timestep, null)
            velocity = free + guidance * (velocity - free)
        signal = signal - velocity / steps
    return signal


def image_sheet(signal: Tensor, columns: int) -> Tensor:
    """Images side by side, for display.

    Args:
        signal: `(B, 3, H, W)` in about [-1, 1], clipped; B a multiple of `columns`.
        columns: Images per row.

    Returns:
        `(3, rows * H, columns * W)` float32 in [0, 1].
    """
    images = (signal.clamp(-1, 1) + 1).cpu() / 2
    channels, height, width = images.shape[1:]
    rows = images.reshape(-1, columns, channels, height, width)
    return rows.permute(2, 0, 3, 1, 4).reshape(channels, -1, columns * width)
