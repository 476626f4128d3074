"""Feature maps and matches as plain calls."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import ditf_probe
from ditf_probe.backbones.base import Backbone, Norm, Tap, TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.geometry import crop_features
from ditf_probe.inference import DenseFeatures, load_features
from ditf_probe.matching import MatchingRule, match_by_rule
from ditf_probe.tasks.settings import BackboneFeatures


class Recording(Backbone):
    """Patch means of the colours; remembers what it was asked."""

    name, num_blocks, channels, stride = "recording", 2, 3, 4

    def __init__(self, has_adaln: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1), requires_grad=False)
        self.has_adaln = has_adaln
        self.asked: dict[str, Any] = {}

    def taps(self, block: int) -> tuple[Tap, ...]:
        return ("attention", "mlp")

    def settings(self) -> dict[str, Any]:
        return {"name": self.name, "class": "Recording", "weights_sha256": "0"}

    def forward(self, images: Tensor, *, blocks: Sequence[int], **asked: Any) -> dict[int, TappedBlock]:
        self.asked = asked
        stream = nn.functional.avg_pool2d(images, self.stride).flatten(2).mT
        grid = images.shape[2] // self.stride, images.shape[3] // self.stride
        return {block: TappedBlock(stream * (block + 1), None, None, None, Norm(), grid) for block in blocks}


RAW = BackboneFeatures(blocks=[1], timestep=0, modulation="none")


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_one_map_per_image_is_that_of_the_extractor(features: BackboneFeatures) -> None:
    settings = replace(features, blocks=[-3])
    dense = DenseFeatures(ditf_probe.load_backbone(features.backbone, device="cpu"), settings)
    images = torch.stack([photo(32, 32, seed) for seed in (1, 2)])
    extractor = FeatureExtractor(dense.backbone, blocks=[1], timestep=200, image_size=32)
    expected = extractor(images / 255, ["a", "b"])[1]
    assert torch.equal(dense(images, ["a", "b"]), expected)
    assert torch.equal(dense(images / 255, ["a", "b"]), expected)
    larger = torch.stack([photo(50, 40, seed) for seed in (3, 4)])
    prepared = torch.stack([extractor.prepare(image) for image in larger])
    assert torch.equal(dense(larger, ["a", "b"]), extractor(prepared, ["a", "b"])[1])
    assert not any(parameter.requires_grad for parameter in dense.parameters())


@pytest.mark.parametrize("resize", ["stretch", "pad_end", "letterbox"])
@pytest.mark.parametrize("kind", ["argmax_pixel", "window_softargmax"])
def test_matches_are_those_of_the_maps(resize: Any, kind: Any) -> None:
    dense = DenseFeatures(Recording(), replace(RAW, image_size=32, resize=resize))
    source, target, rule = photo(40, 60, 1), photo(50, 30, 2), MatchingRule(kind)
    keypoints = torch.tensor([[3.0, 4.0], [50.0, 20.5]])
    found = dense.match(source, target, keypoints, rule=rule)
    maps, places = [], []
    for image in (source, target):
        place = dense.extractor.transform((image.shape[1], image.shape[2]))
        whole = dense(dense.extractor.prepare(image)[None])[0]
        maps.append(whole if resize == "letterbox" else crop_features(whole, place))
        places.append(place if resize == "letterbox" else place.size)
    expected = match_by_rule(*maps, keypoints, *places, rule)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert found[0].shape == (2, 2)


def test_an_image_matches_itself() -> None:
    dense = DenseFeatures(Recording(), RAW)
    image = photo(24, 32)
    keypoints = torch.tensor([[5.0, 6.0], [20.0, 17.0], [31.0, 23.0]])
    predictions, similarity = dense.match(image, image.float() / 255, keypoints)
    torch.testing.assert_close(similarity, torch.ones(3), atol=1e-6, rtol=0)
    assert torch.equal(predictions[:2], keypoints[:2])


def test_prompts_and_captions_become_conditions(tmp_path: Path) -> None:
    images, captions = torch.rand(2, 3, 8, 8), tmp_path / "captions.json"
    captions.write_text(json.dumps({"a": "one", "b": "two"}))
    dense = DenseFeatures(Recording(), RAW)
    dense(images)
    assert dense.backbone.asked["conditions"] is None
    dense = DenseFeatures(Recording(), replace(RAW, prompt="a photo"))
    dense(images)
    assert dense.backbone.asked["conditions"] == ["a photo", "a photo"]
    dense(images, conditions=["x", "y"])
    assert dense.backbone.asked["conditions"] == ["x", "y"]
    dense = DenseFeatures(Recording(), replace(RAW, captions=str(captions)))
    dense(images, ["b", "a"])
    assert dense.backbone.asked["conditions"] == ["two", "one"]
    with pytest.raises(InputError, match="image_ids"):
        dense(images)
    dense.match(images[0], images[1], torch.zeros(1, 2), image_ids=("a", "b"))
    assert dense.backbone.asked["conditions"] == ["two"]
    with pytest.raises(InputError, match=r"a \{category\}.*give conditions"):
        DenseFeatures(Recording(), replace(RAW, prompt="a {category}"))(images)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"blocks.*\[0, 1\].*one block"):
        DenseFeatures(Recording(), replace(RAW, blocks=[0, 1]))
    with pytest.raises(InputError, match=r"modulation.*no AdaLN"):
        DenseFeatures(Recording(has_adaln=False), replace(RAW, modulation="adaln"))
    with pytest.raises(InputError, match=r"target.*\(3, H, W\)"):
        DenseFeatures(Recording(), RAW).match(photo(8, 8), photo(8, 8)[None], torch.zeros(1, 2))
    with pytest.raises(InputError, match="calibrate"):
        DenseFeatures(Recording(), replace(RAW, discard="pre_norm"))(torch.rand(1, 3, 8, 8))


def test_features_by_file_or_name(features: BackboneFeatures, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{{backbone: {features.backbone}, blocks: [1], timestep: 200, image_size: 32}}")
    images = torch.rand(1, 3, 32, 32)
    dense = load_features(file, device="cpu", dtype="bfloat16")
    assert dense.backbone.settings()["dtype"] == "bfloat16"
    by_hand = FeatureExtractor(
        ditf_probe.load_backbone(features.backbone, device="cpu"), blocks=[1], timestep=200, image_size=32
    )
    assert torch.equal(load_features(file, device="cpu")(images), by_hand(images)[1])
    assert load_features("ditf_tiny", device="cpu")(torch.rand(1, 3, 64, 64)).shape == (1, 96, 16, 16)
    with pytest.raises(InputError, match="no_such_preset"):
        load_features("no_such_preset")
