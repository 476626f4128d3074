"""One's own images: photos without labels train and measure a probe, a table of keypoints is compared as usual."""

from collections.abc import Callable
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data import KeypointFolder, PairDataModule, WarpedPhotos
from ditf_probe.errors import InputError
from ditf_probe.probes import LinearProbe, read_facts
from ditf_probe.tasks import CorrespondenceTask, ProbeTask
from ditf_probe.tasks.settings import BackboneFeatures

Make = Callable[..., L.Trainer]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photos of coloured blocks, in which corners can be found."""
    root = tmp_path / "photos"
    root.mkdir()
    for seed in range(5):
        blocks = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(8, axis=0).repeat(8, axis=1)).save(root / f"{seed}.png")
    return root


def test_photos_without_labels_train_and_measure_a_probe(
    features: BackboneFeatures, trainer: Make, folder: Path, tmp_path: Path
) -> None:
    train, val, test = (WarpedPhotos(folder, 4, 64, split=split) for split in ("train", "val", "test"))
    files = [set(dataset.files()) for dataset in (train, val, test)]
    assert [len(found) for found in files] == [3, 1, 1]
    assert len(set.union(*files)) == 5  # no photo in two splits
    pairs = PairDataModule(train=train, val=val, test={"photos": test}, batch_size=2)
    torch.manual_seed(0)
    probes = {"linear": lambda channels, blocks: LinearProbe(channels, blocks, width=4)}
    trainer(max_epochs=2).fit(ProbeTask(features, probes=probes, run_dir=str(tmp_path)), pairs)
    probe = tmp_path / "probes" / "linear"
    assert 0 <= read_facts(probe).training["val_pck_0.10_per_point"] <= 100
    task = CorrespondenceTask(features, rows=["raw"], probe_folders=[str(probe)], run_dir=str(tmp_path))
    trainer().test(task, pairs, verbose=False)
    (found,) = task.result().datasets
    assert [row.name for row in found.rows][:2] == ["raw", "linear"]
    assert found.unit == "photo"


def test_own_keypoints_are_compared_and_their_pair_list_is_recorded(
    features: BackboneFeatures, trainer: Make, folder: Path, tmp_path: Path
) -> None:
    rows = [
        f"{n}.png,cat,{name},{8 * n + dx},20" for n in range(5) for name, dx in (("left_eye", 4), ("right_eye", 12))
    ]
    (folder / "keypoints.csv").write_text("\n".join(["image,category,keypoint,x,y", *rows]))
    dataset = KeypointFolder(folder, num_pairs=6)
    pairs = PairDataModule(test={"own": dataset}, calibration=WarpedPhotos(folder, 4, 64), batch_size=2)
    task = CorrespondenceTask(features, rows=["raw", "same_position"], run_dir=str(tmp_path))
    trainer().test(task, pairs, verbose=False)
    result = task.result()
    assert result.settings["data"]["own"]["pairs_sha256"] == dataset.pairs_sha256
    assert {facts.keypoint_names for facts in result.datasets[0].pairs.values()} == {("left_eye", "right_eye")}


def test_a_data_set_that_lost_all_pairs_is_refused(features: BackboneFeatures, trainer: Make, folder: Path) -> None:
    """With `keep_going` that no pair is left is one of the problems; a run does not start from it."""
    (folder / "keypoints.csv").write_text("image,category,keypoint,x,y\n0.png,cat,nose,1,1\n")
    dataset = KeypointFolder(folder, keep_going=True)
    assert len(dataset) == 0
    assert len(dataset.problems) == 1
    with pytest.raises(InputError, match="own"):
        trainer().test(CorrespondenceTask(features, rows=["raw"]), PairDataModule(test={"own": dataset}), verbose=False)
