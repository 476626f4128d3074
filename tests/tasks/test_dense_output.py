"""Dense matches of a test as files and pictures."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ditf_probe.callbacks import DenseMatches
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.errors import InputError
from ditf_probe.matching import match_dense
from ditf_probe.tasks import CorrespondenceTask
from ditf_probe.tasks.models import Models
from ditf_probe.tasks.planning import plan, streams_of
from ditf_probe.tasks.rows import chosen_rows
from ditf_probe.tasks.settings import BackboneFeatures


def test_files_hold_the_matches_of_the_rows(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    features = replace(features, image_size=[32, 48], resize="pad")
    task = CorrespondenceTask(features, ["raw", "adaln", "same_position"], run_dir=str(tmp_path))
    logger = TensorBoardLogger(tmp_path, name="tensorboard")
    trainer(logger=logger, callbacks=[DenseMatches(num_pairs=2, rows=("raw",))]).test(task, pairs, verbose=False)
    names = sorted(path.name for path in (tmp_path / "dense").iterdir())
    chosen = ["synthetic-0000-raw", "synthetic-0002-raw", "warped-0000-raw", "warped-0001-raw"]
    assert names == sorted(f"{name}.{end}" for name in chosen for end in ("png", "safetensors"))
    dataset = pairs.test["warped"]
    (matcher,) = plan(Models("cpu"), features, chosen_rows(["raw"]))
    for stream in streams_of([matcher]):
        stream.open(dataset)
    pair = dataset[1]
    maps = matcher.maps(pair)  # type: ignore[attr-defined]
    expected = match_dense(*maps, pair.source.size, pair.target.size)
    found = load_file(tmp_path / "dense" / "warped-0001-raw.safetensors")
    assert set(found) == {"points", "flow", "confidence", "cycle", "matched"}
    for name, values in found.items():
        torch.testing.assert_close(values, getattr(expected, name), atol=1e-5, rtol=0)
    with safe_open(tmp_path / "dense" / "warped-0001-raw.safetensors", "pt") as file:
        facts = file.metadata()
    assert facts["source"] == pair.source.image_id
    assert facts["target_size"] == f"{pair.target.size[0]} high, {pair.target.size[1]} wide"
    assert (facts["row"], facts["pair"], facts["stride"]) == ("raw", "1", "None")
    assert "minus points" in facts["unit of flow"]
    picture = np.asarray(Image.open(tmp_path / "dense" / "warped-0001-raw.png"))
    assert picture.ndim == 3
    events = EventAccumulator(logger.log_dir).Reload()
    assert sorted(events.Tags()["images"]) == sorted(f"dense/{name[:-9]}/{name[-8:-4]}/raw" for name in chosen)
    json.dumps(task.settings())


def test_adaln_by_default_and_a_row_without_maps(
    features: BackboneFeatures, pairs: PairDataModule, trainer: Callable[..., L.Trainer], tmp_path: Path
) -> None:
    task = CorrespondenceTask(features, ["raw", "adaln", "same_position"], run_dir=str(tmp_path))
    trainer(callbacks=[DenseMatches(num_pairs=1, stride=9)]).test(task, pairs, verbose=False)
    assert {path.stem for path in (tmp_path / "dense").iterdir()} == {"synthetic-0000-adaln", "warped-0000-adaln"}
    assert load_file(tmp_path / "dense" / "synthetic-0000-adaln.safetensors")["flow"].shape == (2, 4, 4)
    with pytest.raises(InputError, match="same_position"):
        trainer(callbacks=[DenseMatches(rows=("same_position",))]).test(task, pairs, verbose=False)


@pytest.mark.parametrize(
    ("ranks", "batches", "chosen"), [(1, [3], [0, 1, 3]), (2, [2], [0, 1, 3]), (2, [1], [0, 1, 2]), (1, [1], [0, 1])]
)
def test_only_pairs_that_are_tested_are_chosen(
    pairs: PairDataModule, ranks: int, batches: list[int], chosen: list[int]
) -> None:
    """Five pairs, two at once on each rank."""
    callback = DenseMatches(num_pairs=3)
    module = PairDataModule(test={"synthetic": pairs.test["synthetic"]}, batch_size=2)
    task = SimpleNamespace(matchers=[], pairs=module)
    callback.on_test_epoch_start(SimpleNamespace(world_size=ranks, num_test_batches=batches), task)  # type: ignore[arg-type]
    assert callback._chosen == [chosen]


@pytest.mark.parametrize("options", [{"num_pairs": -1}, {"stride": 0}, {"max_cycle": -1.0}])
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        DenseMatches(**options)  # type: ignore[arg-type]
