"""The two pictures of the model card of a weights file: sample images, and the features of drawn objects as colours.

python -m benchmarks model_card --weights ditf_probe/weights/ditf_tiny.safetensors --block 4 --timestep 60
"""

import argparse
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from benchmarks.arguments import positive
from ditf_probe import FeatureExtractor, load_backbone
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.data.synthetic import CATEGORIES, draw_image
from ditf_probe.files import ensure_writable, replacing
from ditf_probe.pictures.maps import pca_colours
from ditf_probe.tasks.flow import image_sheet, sample_images


def samples(denoiser: TinyDenoiser, steps: int, guidance: float) -> Tensor:
    """Two rows of drawn classes and, if there are any, two of photo classes: `(3, rows * size, 8 * size)` in [0, 1]."""
    drawn, size, classes = len(CATEGORIES), denoiser.spec.image_size, denoiser.spec.num_classes
    labels = torch.arange(16) % drawn
    if classes > drawn:
        labels = torch.cat([labels, torch.linspace(drawn, classes - 1, 16).long()])
    noise = torch.randn((32, 3, size, size), generator=torch.Generator().manual_seed(0))
    return image_sheet(sample_images(denoiser, labels, noise[: len(labels)], steps, guidance), columns=8)


def feature_colours(weights: Path, block: int, timestep: int, size: int) -> Tensor:
    """Drawn objects of the test split above their features, `(3, 8 * size, 8 * size)` in [0, 1]."""
    images = torch.stack([torch.from_numpy(draw_image("test", i, size)[0]) for i in range(32)]).float() / 255
    extractor = FeatureExtractor(load_backbone(str(weights)), blocks=[block], timestep=timestep)
    features = extractor(images, [f"card/{i}" for i in range(32)])[block]
    colours = torch.stack(pca_colours(list(features))).float() / 255
    large = F.interpolate(colours, (size, size))
    rows = [torch.cat([images[i : i + 8], large[i : i + 8]]) for i in range(0, 32, 8)]
    return image_sheet(torch.cat(rows) * 2 - 1, columns=8)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser("python -m benchmarks model_card", description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="file of a small denoiser")
    parser.add_argument("--block", type=int, required=True, help="whose features are shown")
    parser.add_argument("--timestep", type=int, required=True, help="that the features are taken at")
    parser.add_argument("--steps", type=positive, default=50, help="Euler steps of a sample (default 50)")
    parser.add_argument("--guidance", type=float, default=2.0, help="classifier-free; 1 is none (default 2)")
    parser.add_argument("--out", type=Path, help="folder for the pictures; beside the weights by default")
    options = parser.parse_args(arguments)
    denoiser = TinyDenoiser.load(options.weights)
    out = ensure_writable(options.out or options.weights.parent, "--out")
    sheets = {
        "samples.png": samples(denoiser, options.steps, options.guidance),
        "features.png": feature_colours(options.weights, options.block, options.timestep, denoiser.spec.image_size),
    }
    for name, sheet in sheets.items():
        pixels = (sheet * 255).round().byte().permute(1, 2, 0).numpy()
        size = (1024, pixels.shape[0] * 1024 // pixels.shape[1])
        with replacing(out / name) as temporary:
            Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(temporary, format="png")
        print(out / name)
