"""Linear segmentation: heads learn, are kept and read again, and every scale and mirroring is what it says."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn import functional as F

from ditf_probe.data.drawn_masks import DrawnMasks
from ditf_probe.data.segmentation import MaskDataset, MaskedImage
from ditf_probe.data.segmentation_module import LoadedImage, MaskModule
from ditf_probe.errors import InputError
from ditf_probe.losses import pixel_cross_entropy
from ditf_probe.probes.segmentation import SegmentationHead, enlarged
from ditf_probe.tasks import SegmentationTask
from ditf_probe.tasks.settings import BackboneFeatures

MakeTrainer = Callable[..., L.Trainer]


class Halves(MaskDataset):
    """Left half dark, right half bright, and two grids: easy to segment by colour."""

    name = "halves"
    class_names = ("dark", "bright")

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> MaskedImage:
        if not 0 <= index < 6:
            raise IndexError(index)
        return MaskedImage(index, f"halves/{index}", (32, 32 if index % 2 else 64))

    def image(self, image_id: str) -> torch.Tensor:
        image = self[int(image_id[-1])]
        pixels = torch.full((3, *image.size), 30, dtype=torch.uint8)
        pixels[:, :, image.size[1] // 2 :] = 220
        return pixels

    def mask(self, index: int) -> torch.Tensor:
        mask = torch.zeros(self[index].size, dtype=torch.uint8)
        mask[:, mask.shape[1] // 2 :] = 1
        mask[0] = 255
        return mask


def module(**options: Any) -> MaskModule:
    given: dict[str, Any] = {"train": Halves(), "val": Halves(), "test": {"halves": Halves()}, "batch_size": 3}
    return MaskModule(**(given | options))


def task(features: BackboneFeatures, run_dir: Path, **options: Any) -> SegmentationTask:
    features = replace(features, image_size=64, resize="keep_aspect")
    return SegmentationTask(features, ["rgb", "adaln"], run_dir=str(run_dir), **({"warmup_steps": 1} | options))


@pytest.mark.parametrize("keep", [True, False])
def test_learns_and_is_read_again(features: BackboneFeatures, trainer: MakeTrainer, tmp_path: Path, keep: bool) -> None:
    trainer(max_epochs=15).fit(task(features, tmp_path, keep=keep, learning_rate=0.1), datamodule=module())
    tested = task(features, tmp_path)
    trainer().test(tested, datamodule=module(), verbose=False)
    dataset = tested.result().datasets[0]
    rgb, adaln = dataset.rows
    assert (dataset.name, dataset.n, dataset.primary) == ("halves", 6, "mIoU")
    assert rgb.values["mIoU"] > 95  # the row at the border between the halves is all that a linear head can miss
    assert adaln.resampled["mIoU"].shape == (1000,)
    assert adaln.parameters == 2 * 16 + 16 * 2 + 2
    assert tested.settings()["data"]["test.halves"]["classes"] == ["dark", "bright"]


def test_only_heads_learn(features: BackboneFeatures, trainer: MakeTrainer, tmp_path: Path) -> None:
    trained = task(features, tmp_path)
    trainer(max_epochs=1).fit(trained, datamodule=module())
    names = {name.split(".")[0] for name, _ in trained.named_parameters()}
    assert names == {"heads"}
    assert set(trained.heads) == {"rgb", "adaln"}
    assert not any(parameter.requires_grad for parameter in trained.backbone.parameters())


def test_kept_features_are_those_of_a_pass(features: BackboneFeatures, trainer: MakeTrainer, tmp_path: Path) -> None:
    kept, anew = task(features, tmp_path), task(features, tmp_path, keep=False)
    for made in (kept, anew):
        L.seed_everything(0, verbose=False)
        trainer(max_epochs=1, limit_train_batches=1).fit(made, datamodule=module(train=Halves()))
    for name in kept.heads:
        for one, other in zip(kept.heads[name].parameters(), anew.heads[name].parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_scales_and_mirroring_against_a_loop(features: BackboneFeatures, trainer: MakeTrainer, tmp_path: Path) -> None:
    trainer(max_epochs=2).fit(task(features, tmp_path), datamodule=module())
    tested = task(features, tmp_path, scales=[0.5, 1.0], flip=True)
    trainer().test(tested, datamodule=module(), verbose=False)
    tested.heads.eval()
    data = Halves()
    loaded = LoadedImage(data[0], data.image("halves/0"), data.mask(0))
    with torch.inference_mode():
        found = tested._shares([loaded])["adaln"][0]
    expected = torch.zeros_like(found)
    for scale in (0.5, 1.0):
        for mirrored in (False, True):
            rows = tested.make_rows(scale)
            pixels = loaded.pixels.flip(2) if mirrored else loaded.pixels
            maps = rows(pixels[None], ["halves/0/mirrored" if mirrored else "halves/0"])["adaln"]
            assert maps.shape[2:] == (int(8 * scale), int(16 * scale)) or maps.shape[3] == 2 * maps.shape[2]
            with torch.inference_mode():
                scores = tested.heads["adaln"]([maps[0]])[0].clone()
            share = F.interpolate(scores[None], (32, 64), mode="bilinear")[0].softmax(0)
            expected += share.flip(2) if mirrored else share
    torch.testing.assert_close(found, expected)
    assert float(found.sum(0).mean()) == pytest.approx(4.0, rel=1e-5)


def test_head_is_batch_norm_and_a_1x1_convolution() -> None:
    head = SegmentationHead(3, 4)
    maps = torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    norm, convolution = torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 4, 1)
    convolution.weight.data = head.classify.weight.data[:, :, None, None].clone()
    convolution.bias.data = head.classify.bias.data.clone()
    torch.testing.assert_close(torch.stack(head(maps.unbind())), convolution(norm(maps)))
    torch.testing.assert_close(head.norm.running_var, norm.running_var)
    with pytest.raises(InputError, match="maps"):
        head([torch.zeros(2, 4, 4)])
    with pytest.raises(InputError, match="num_classes"):
        SegmentationHead(3, 0)


def test_loss_by_hand() -> None:
    scores = torch.log(torch.tensor([[[0.25]], [[0.75]]]))
    masks = [torch.tensor([[0, 1], [1, 255]], dtype=torch.uint8)]
    expected = -(torch.tensor([0.25, 0.75, 0.75]).log()).mean()
    torch.testing.assert_close(pixel_cross_entropy([scores], masks), expected)
    assert float(pixel_cross_entropy([scores], [torch.full((2, 2), 255)])) == 0.0
    assert enlarged(scores[None], (3, 5)).shape == (1, 2, 3, 5)
    mixed = [scores, torch.zeros(2, 3, 2), scores + 1]
    labels = [masks[0], torch.ones(6, 4, dtype=torch.long), masks[0]]
    alone = [float(pixel_cross_entropy([one], [mask])) for one, mask in zip(mixed, labels, strict=True)]
    expected = (3 * alone[0] + 24 * alone[1] + 3 * alone[2]) / 30
    assert float(pixel_cross_entropy(mixed, labels)) == pytest.approx(expected)


def test_refusals(features: BackboneFeatures, trainer: MakeTrainer, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"heads.*no such head"):
        trainer().test(task(features, tmp_path / "empty"), datamodule=module())
    trainer(max_epochs=1).fit(task(features, tmp_path), datamodule=module())
    with pytest.raises(InputError, match="2 classes and the data have 9"):
        trainer().test(task(features, tmp_path), datamodule=MaskModule(test={"drawn": DrawnMasks("test", 2, 32)}))
    with pytest.raises(InputError, match="timestep differ"):
        trainer().test(task(replace(features, timestep=100), tmp_path), datamodule=module())
    with pytest.raises(InputError, match="classes differ"):
        trainer().fit(task(features, tmp_path), datamodule=module(val=DrawnMasks("val", 2, 32)))
    with pytest.raises(InputError, match="scales"):
        task(features, tmp_path, scales=[0.0])
    own = SegmentationTask(replace(features, image_size=None), ["adaln"], run_dir=str(tmp_path), scales=[1.0, 2.0])
    with pytest.raises(InputError, match="set image_size"):
        trainer().test(own, datamodule=module())
