"""Noise, encoding and noising against hand-written forms."""

import hashlib

import pytest
import torch
from diffusers import AutoencoderKLLTXVideo, DDPMScheduler, GlmImageTransformer2DModel

from ditf_probe.backbones.autoencoders import AUTOENCODERS
from ditf_probe.backbones.base import Backbone
from ditf_probe.backbones.families import FAMILIES
from ditf_probe.backbones.latents import LatentSpace, ddpm_noising, flow_noising, image_hash, noise, noise_schedule
from ditf_probe.errors import InputError


def test_noise_is_a_function_of_its_arguments() -> None:
    base = {"seed": 0, "image_id": "a", "draw": 0, "timestep": 260}
    first = noise((3, 8, 8), **base)
    torch.rand(5)
    assert torch.equal(first, noise((3, 8, 8), **base))
    for change in ({"seed": 1}, {"image_id": "b"}, {"draw": 1}, {"timestep": 261}):
        other = noise((3, 8, 8), **(base | change))
        assert abs(float(torch.corrcoef(torch.stack([first.flatten(), other.flatten()]))[0, 1])) < 0.25
    sample = noise((64, 64), **base)
    assert abs(float(sample.mean())) < 0.05
    assert abs(float(sample.std()) - 1) < 0.05


def test_noise_does_not_change_between_versions() -> None:
    """The SHA-256 of '[0, "a", 0, 260]', its first 8 bytes without the lowest bit, seeds torch's generator."""
    seed = int(hashlib.sha256(b'[0, "a", 0, 260]').hexdigest()[:16], 16) // 2
    expected = torch.randn(4, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(noise((4,), seed=0, image_id="a", draw=0, timestep=260), expected)


def test_image_hash_sees_every_pixel_and_the_shape() -> None:
    image = torch.rand(3, 4, 6)
    changed = image.clone()
    changed[2, 3, 5] += 1e-3
    hashes = {image_hash(x) for x in (image, changed, image.reshape(3, 6, 4))}
    assert len(hashes) == 3
    assert image_hash(image) == image_hash(image.double()) == image_hash(image.mT.contiguous().mT)


def test_flow_noising_at_its_ends_and_in_the_middle() -> None:
    clean, eps = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    assert torch.equal(flow_noising(clean, eps, 0), clean)
    assert torch.equal(flow_noising(clean, eps, 1000), eps)
    torch.testing.assert_close(flow_noising(clean, eps, 260), torch.tensor([0.74 * 2 + 0.26 * 0.5, -0.74 + 0.26]))


def test_ddpm_noising_against_the_formula() -> None:
    clean, eps = torch.rand(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    kept = torch.prod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[:142])
    expected = kept.sqrt() * clean + (1 - kept).sqrt() * eps
    torch.testing.assert_close(ddpm_noising(clean, eps, 141, DDPMScheduler()), expected.float())


def test_the_schedule_of_an_empty_config_is_that_of_dit() -> None:
    torch.testing.assert_close(noise_schedule({}).alphas_cumprod, DDPMScheduler().alphas_cumprod)


def test_schedule_with_a_shifted_signal_to_noise_ratio() -> None:
    """CogView3-Plus: betas from 0.00085 to 0.012, linear in their roots; SNR over 4; no signal in the last step."""
    scheduler = noise_schedule(FAMILIES["CogView3PlusTransformer2DModel"].schedule)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    ratio = kept / (1 - kept) / 4
    root = (ratio / (1 + ratio)).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    clean, eps = torch.rand(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    for timestep in (0, 260, 999):
        expected = root[timestep] * clean + (1 - root[timestep] ** 2).sqrt() * eps
        torch.testing.assert_close(
            ddpm_noising(clean, eps, timestep, scheduler), expected.float(), atol=1e-4, rtol=1e-4
        )


def test_pixel_space_is_the_image_from_minus_one_to_one() -> None:
    space = LatentSpace()
    encoded = space.encode(torch.tensor([0.0, 0.5, 1.0]).reshape(1, 3, 1, 1))
    assert encoded.mean.flatten().tolist() == [-1, 0, 1]
    assert encoded.deviation is None
    assert (space.stride, space.channels) == (1, 3)


@pytest.mark.parametrize("posterior", ["mode", "sample"])
def test_autoencoder_with_shift_and_scaling(make_vae: object, posterior: str) -> None:
    vae = make_vae(shift_factor=0.3, scaling_factor=1.7)
    images = torch.rand(2, 3, 8, 12)
    with torch.no_grad():
        encoded = LatentSpace(vae, posterior).encode(images)
        distribution = vae.encode(2 * images - 1).latent_dist
    torch.testing.assert_close(encoded.mean, (distribution.mean - 0.3) * 1.7)
    drawn = encoded.draw(1, seed=0, image_id="x", draw=2)
    if posterior == "mode":
        assert torch.equal(drawn, encoded.mean[1])
    else:
        eps = noise(drawn.shape, seed=0, image_id="x", draw=2, timestep=-1)
        torch.testing.assert_close(drawn, (distribution.mean[1] + distribution.std[1] * eps - 0.3) * 1.7)
        assert not torch.equal(drawn, encoded.draw(1, seed=0, image_id="x", draw=1))


def test_autoencoder_with_statistics_per_channel(make_vae: object) -> None:
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    vae = make_vae(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    images = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        encoded = LatentSpace(vae).encode(images)
        raw = vae.encode(2 * images - 1).latent_dist.mean
        unscaled = LatentSpace(vae, scaled=False).encode(images)
    expected = (raw - torch.tensor(mean).reshape(1, 4, 1, 1)) / torch.tensor(std).reshape(1, 4, 1, 1)
    torch.testing.assert_close(encoded.mean, 0.5 * expected)
    torch.testing.assert_close(unscaled.mean, expected)


def test_autoencoder_with_statistics_among_its_weights() -> None:
    mean, std = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([1.0, 2.0, 3.0, 4.0])
    vae = AutoencoderKLLTXVideo(**AUTOENCODERS["AutoencoderKLLTXVideo"].tiny).eval()
    vae.latents_mean, vae.latents_std = mean, std
    images = torch.rand(1, 3, 16, 8)
    with torch.no_grad():
        encoded = LatentSpace(vae, "sample").encode(images)
        raw = vae.encode(2 * images[:, :, None] - 1).latent_dist
    scale = 0.75 / std.reshape(1, 4, 1, 1)
    assert encoded.mean.shape == (1, 4, 2, 1)
    torch.testing.assert_close(encoded.mean, (raw.mean[:, :, 0] - mean.reshape(1, 4, 1, 1)) * scale)
    torch.testing.assert_close(encoded.deviation, raw.std[:, :, 0] * scale)


def test_a_model_that_knows_no_scaling_factor(make_vae: object) -> None:
    family = FAMILIES["GlmImageTransformer2DModel"]
    vae = make_vae(scaling_factor=0.5)
    backbone = Backbone.from_model(GlmImageTransformer2DModel(**family.tiny), vae)
    images = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(backbone.latents.encode(images).mean, vae.encode(2 * images - 1).latent_dist.mean)


@pytest.mark.parametrize("kind", ["dit", "flux"])
def test_transformers_on_latents(kind: str, make_vae: object, make_dit: object, make_flux: object) -> None:
    """Stride 2 of the autoencoder times patch 2: the stream at the first AdaLN, recomputed from latents."""
    vae = make_vae(scaling_factor=0.9)
    model = make_dit(in_channels=4, patch_size=2) if kind == "dit" else make_flux(in_channels=16)
    backbone = Backbone.from_model(model, vae, noising="flow")
    images = torch.rand(1, 3, 12, 20)
    tapped = backbone(images, blocks=[0], timestep=250, tap="attention", image_ids=["x"])[0]
    assert (backbone.stride, tapped.grid) == (4, (3, 5))
    with torch.no_grad():
        clean = vae.encode(2 * images - 1).latent_dist.mode() * 0.9
        noisy = 0.75 * clean + 0.25 * noise(clean.shape[1:], seed=0, image_id="x", draw=0, timestep=250)
        if kind == "dit":
            expected = model.pos_embed(noisy)
        else:
            packed = noisy.reshape(1, 4, 3, 2, 5, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, 15, 16)
            expected = model.x_embedder(packed)
    torch.testing.assert_close(tapped.hidden_states, expected)


def test_one_image_is_encoded_once_whatever_the_ensemble(make_vae: object, make_dit: object) -> None:
    vae = make_vae()
    rows = []
    handle = vae.encoder.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    backbone = Backbone.from_model(make_dit(in_channels=4, patch_size=2), vae, max_batch=2)
    backbone(torch.rand(3, 3, 8, 8), blocks=[0], timestep=5, ensemble=5)
    handle.remove()
    assert sum(rows) == 3


def test_an_autoencoder_of_unknown_kind() -> None:
    class Other(torch.nn.Linear):
        config = object()

    with pytest.raises(InputError, match="Other"):
        LatentSpace(Other(1, 1))
