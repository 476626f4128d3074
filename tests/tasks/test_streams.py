from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from ditf_probe.backbones.loading import load_backbone
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.pairs import Pair, PairDataset, Side
from ditf_probe.errors import InputError
from ditf_probe.features.extractor import FeatureExtractor
from ditf_probe.probes import LinearProbe
from ditf_probe.tasks import ProbeTask
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.settings import BackboneFeatures
from ditf_probe.tasks.streams import Stream

SIZES = {"a": (20, 40), "b": (32, 32), "c": (40, 20)}


class Shapes(PairDataset):
    """Three pairs among a wide, a square and a tall image."""

    name, unit = "shapes", "pair"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Pair:
        names = ("ab", "bc", "ca")[index]
        a, b = (self.side(name) for name in names)
        return Pair(index, "thing", str(index), a, b)

    def side(self, name: str) -> Side:
        points = torch.tensor([[3.0, 4.0], [12.5, 15.0], [18.0, 9.0]])
        box = torch.tensor([0.0, 0.0, SIZES[name][1] - 1.0, SIZES[name][0] - 1.0])
        return Side(name, SIZES[name], points, torch.ones(3, dtype=torch.bool), box)

    def image(self, image_id: str) -> Tensor:
        generator = torch.Generator().manual_seed(ord(image_id))
        return torch.randint(0, 256, (3, *SIZES[image_id]), generator=generator, dtype=torch.uint8)


def stream_of(features: BackboneFeatures) -> Stream:
    extractor = FeatureExtractor(load_backbone(features.backbone, device="cpu"), **features.extractor_options())
    stream = Stream(extractor, features)
    stream.open(Shapes())
    return stream


@pytest.mark.parametrize(("resize", "grids"), [("stretch", 1), ("keep_aspect", 3), ("pad", 1)])
def test_images_of_one_prepared_size_are_batched(features: BackboneFeatures, resize: str, grids: int) -> None:
    stream = stream_of(replace(features, resize=resize))  # type: ignore[arg-type]
    sides = [Shapes().side(name) for name in "abca"]
    groups = stream.by_canvas(sides)
    assert len(groups) == grids
    assert sorted(i for group in groups for i in group) == [0, 1, 2, 3]
    for group in groups:
        maps = stream.maps([sides[i] for i in group], [1])[1]
        for row, i in zip(maps, group, strict=True):
            torch.testing.assert_close(row, stream.maps([sides[i]], [1])[1][0])


def test_padding_is_cut_off(features: BackboneFeatures) -> None:
    stream = stream_of(replace(features, resize="pad"))
    wide = Shapes().side("a")
    whole = stream.maps([wide], [1])[1][0]
    assert whole.shape[1:] == (8, 8)
    # 20 x 40 becomes 16 x 32 in the middle of 32 x 32: rows 2 to 5 of 8.
    torch.testing.assert_close(stream.crop(whole, wide), whole[:, 2:6])


def test_only_the_asked_blocks_are_handed_out(features: BackboneFeatures) -> None:
    stream = stream_of(replace(features, blocks=[0, 1]))
    assert list(stream.maps([Shapes().side("a")], [1])) == [1]


def test_a_closed_stream_has_forgotten(features: BackboneFeatures) -> None:
    stream = stream_of(features)
    stream.close()
    with pytest.raises(InputError, match="bank"):
        stream.maps([Shapes().side("a")], [1])


@pytest.mark.parametrize("resize", ["keep_aspect", "pad"])
def test_training_takes_images_of_different_shapes(
    features: BackboneFeatures, resize: str, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    task = ProbeTask(
        replace(features, resize=resize, timestep=0),  # type: ignore[arg-type]
        {"linear": lambda channels, blocks: LinearProbe(channels, blocks, width=8)},
        learning_rate=3e-2,
        run_dir=str(tmp_path),
    )
    losses: list[float] = []

    class Curve(Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *arguments: object) -> None:
            losses.append(float(trainer.callback_metrics["train/loss"]))

    fit = trainer(max_epochs=30, callbacks=[Curve()], num_sanity_val_steps=0, check_val_every_n_epoch=30)
    fit.fit(task, PairDataModule(Shapes(), Shapes(), batch_size=3))
    assert losses[-1] < 0.5 * losses[0]


def test_size_in_cells_is_size_in_pixels_of_the_backbone(features: BackboneFeatures) -> None:
    backbone = load_backbone(features.backbone, device="cpu")
    by_cells = make_stream(backbone, replace(features, image_size=None, cells=8), [1])
    assert by_cells.extractor.size_rule.image_size == 8 * backbone.stride
    assert by_cells.extractor.settings() == make_stream(backbone, features, [1]).extractor.settings()
    with pytest.raises(InputError, match=r"`cells` is 8: leave it out, or image_size, which is 32"):
        make_stream(backbone, replace(features, cells=8), [1])
    with pytest.raises(InputError, match=r"`cells` is 0"):
        make_stream(backbone, replace(features, image_size=None, cells=0), [1])
