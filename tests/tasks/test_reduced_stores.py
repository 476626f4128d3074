"""Stores of principal components: made by an extraction, read by comparison and training, on any number of ranks."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from ditf_probe.cli import evaluate
from ditf_probe.commands import main
from ditf_probe.configs_folder import CONFIGS
from ditf_probe.data.datamodule import PairDataModule
from ditf_probe.data.image_module import ImageModule
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.errors import InputError
from ditf_probe.features.store.basis import read_basis
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.probes import LinearProbe
from ditf_probe.tasks import CorrespondenceTask, ExtractionTask, ProbeTask
from ditf_probe.tasks.bases import BasisSettings, chosen_images
from ditf_probe.tasks.settings import BackboneFeatures

Trainer = Callable[..., L.Trainer]
ROWS = ["raw", "adaln", "adaln+discard_post", "adaln+debias", "rgb", "untrained"]


@pytest.fixture
def kept(features: BackboneFeatures, tmp_path: Path) -> BackboneFeatures:
    return replace(features, blocks=[0, 1], store=str(tmp_path / "store"), num_workers=0)


@pytest.fixture
def images() -> ImageModule:
    return ImageModule({"test": SyntheticPairs("test", 5, 32), "train": SyntheticPairs("train", 6, 32)})


def extract(kept: BackboneFeatures, images: ImageModule, trainer: Trainer, **options: Any) -> ExtractionTask:
    task = ExtractionTask(kept, **options)
    trainer().predict(task, images)
    return task


def reduced(
    kept: BackboneFeatures, images: ImageModule, trainer: Trainer, count: int, number: int = 6
) -> BackboneFeatures:
    task = extract(kept, images, trainer, basis=BasisSettings(count, number))
    return replace(kept, store_basis=task.result()[0].basis)


def bytes_of_streams(folder: Path) -> int:
    tensors = (load_file(path) for path in folder.glob("*.safetensors"))
    return sum(x.nbytes for found in tensors for name, x in found.items() if name.endswith("hidden_states"))


def test_an_extraction_fits_a_basis_once(
    kept: BackboneFeatures, images: ImageModule, trainer: Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rerun takes the basis that is there; what is on disk shrinks; ls, verify and gc know such stores."""
    (whole, _) = extract(kept, images, trainer).result()
    (first, second) = extract(kept, images, trainer, basis=BasisSettings(4, 6), untrained=True).result()[:2]
    assert (first.computed, second.computed) == (10, 12)
    assert first.basis is not None
    assert f"store_basis {first.basis}" in first.line()
    found = read_basis(first.basis)
    assert (list(found.blocks), found.images, found.components) == ([0, 1], 6, 4)
    assert 0.5 < found.blocks[1].explained < 1
    assert bytes_of_streams(first.store) * 4 == bytes_of_streams(whole.store), "4 of 16 channels"
    written = Path(first.basis).stat().st_mtime_ns
    again = extract(kept, images, trainer, basis=BasisSettings(4, 6)).result()
    assert [one.computed for one in again] == [0, 0]
    assert again[0].basis == first.basis
    assert Path(first.basis).stat().st_mtime_ns == written
    named = extract(replace(kept, store_basis=first.basis), images, trainer).result()
    assert [one.computed for one in named] == [0, 0]
    within = extract(replace(kept, store=str(first.store)), images, trainer, basis=BasisSettings(4, 6)).result()
    assert [one.computed for one in within] == [0, 0], "the folder of one store alone"
    other = extract(kept, images, trainer, basis=BasisSettings(4, 6, seed=1)).result()[0]
    assert other.store not in (first.store, whole.store)
    root = str(kept.store)
    main(["store", "ls", root])
    assert capsys.readouterr().out.count("4 components") == 2
    main(["store", "verify", root])
    assert "0 are broken" in capsys.readouterr().out
    main(["store", "gc", root, "--deep", "--yes", "--remove", first.store.name])
    assert not first.store.exists()
    assert Path(first.basis).is_file()


def compare(features: BackboneFeatures, pairs: PairDataModule, trainer: Trainer, run_dir: Path) -> Any:
    task = CorrespondenceTask(replace(features, blocks=[1]), ROWS, run_dir=str(run_dir))
    trainer().test(task, pairs, verbose=False)
    return task.result()


def points_of(predictions: Predictions) -> np.ndarray:
    return np.stack([predictions.x, predictions.y], 1)


def test_a_comparison_over_all_components_finds_the_same(
    kept: BackboneFeatures, images: ImageModule, pairs: PairDataModule, trainer: Trainer, tmp_path: Path
) -> None:
    plain = compare(kept, pairs, trainer, tmp_path)
    full = reduced(kept, images, trainer, 16)
    found = compare(full, pairs, trainer, tmp_path)
    few = compare(reduced(kept, images, trainer, 1), pairs, trainer, tmp_path)
    differing = 0
    for datasets in zip(plain.datasets, found.datasets, few.datasets, strict=True):
        for one, same, other in zip(*(dataset.rows for dataset in datasets), strict=True):
            first, second, third = (points_of(row.predictions) for row in (one, same, other))
            np.testing.assert_allclose(second, first, atol=0.01, err_msg=one.name)
            if one.name in ("rgb", "untrained"):
                np.testing.assert_array_equal(third, first)
            else:
                differing += int((np.abs(third - first) > 1).sum())
    assert differing, "one component is too few"
    (model,) = [facts for facts in found.settings["models"] if "store_basis" in facts]
    assert model["store_basis"] == read_basis(str(full.store_basis)).facts()
    again = compare(replace(full, store_only=True), pairs, trainer, tmp_path)
    for one, same in zip(found.datasets, again.datasets, strict=True):
        for a, b in zip(one.rows, same.rows, strict=True):
            np.testing.assert_array_equal(points_of(a.predictions), points_of(b.predictions))


def test_probes_train_over_coefficients(
    kept: BackboneFeatures, images: ImageModule, pairs: PairDataModule, trainer: Trainer, tmp_path: Path
) -> None:
    """With all components as over whole streams; cold and warm the same bits."""
    basis = reduced(replace(kept, store=str(tmp_path / "other")), images, trainer, 16).store_basis
    weights = []
    for chosen in (kept, replace(kept, store_basis=basis), replace(kept, store_basis=basis)):
        torch.manual_seed(0)
        linear: Any = {"linear": lambda channels, blocks: LinearProbe(channels, blocks, width=4)}
        task = ProbeTask(replace(chosen, blocks=[1]), linear, run_dir=str(tmp_path / "run"))
        trainer(max_epochs=2, num_sanity_val_steps=0).fit(task, pairs)
        weights.append(task.probes.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-2, atol=1e-3)
        assert torch.equal(weights[1][name], weights[2][name])


def test_refusals_are_one_line(
    kept: BackboneFeatures, images: ImageModule, pairs: PairDataModule, trainer: Trainer, tmp_path: Path
) -> None:
    chosen = reduced(replace(kept, blocks=[1]), images, trainer, 4)
    basis = Path(str(chosen.store_basis))
    for changed, words in (
        ({"store": None}, "name a store as well"),
        ({"store_basis": str(tmp_path / "none")}, "no such file"),
        ({"timestep": 300}, r"fitted to other features: timestep \(200 there, 300 here\)"),
        ({"blocks": [0]}, "is of blocks 1 and lacks 0"),
    ):
        task = CorrespondenceTask(replace(chosen, **changed), ["raw"], run_dir=str(tmp_path))  # type: ignore[arg-type]
        with pytest.raises(InputError, match=f"`store_basis` is .*{words}"):
            trainer().test(task, pairs, verbose=False)
    basis.write_bytes(basis.read_bytes()[:-1])
    with pytest.raises(InputError, match="is damaged"):
        extract(chosen, images, trainer)
    with pytest.raises(InputError, match=r"`basis\.images` is 0"):
        BasisSettings(images=0)
    with pytest.raises(InputError, match=r"`basis\.components` is 17: block 0 has 16 channels"):
        reduced(kept, images, trainer, 17)


def test_images_are_chosen_by_id_alone() -> None:
    test, train = SyntheticPairs("test", 5, 32), SyntheticPairs("train", 6, 32)
    first = chosen_images({"a": test, "b": train}, BasisSettings(images=7))
    assert list(first) == list(chosen_images({"b": train, "c": test, "d": test}, BasisSettings(images=7)))
    assert len(first) == 7
    assert set(first.values()) == {test, train}
    assert list(first) != list(chosen_images({"a": test, "b": train}, BasisSettings(images=7, seed=1)))
    assert len(chosen_images({"a": test}, BasisSettings())) == 10, "all that there are"


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["predict", "--config", str(CONFIGS / "extract.yaml"), "--run_dir", str(tmp_path / "run")]
    words += ["--model.init_args.store", str(tmp_path / "store"), "--trainer.accelerator", "cpu"]
    words += ["--model.init_args.basis", "{components: 8, images: 3}", "--data.init_args.sources"]
    evaluate([*words, '{"some": {"class_path": "SyntheticPairs", "init_args": {"num_pairs": 2}}}'])
    (basis,) = (tmp_path / "store").glob("basis-*.safetensors")
    assert f"4 of 4 images computed ({tmp_path / 'store'}" in capsys.readouterr().out
    assert (read_basis(basis).components, read_basis(basis).images) == (8, 3)


def _process(kept: BackboneFeatures, images: ImageModule) -> None:
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(accelerator="cpu", strategy="ddp", devices=2, enable_checkpointing=False, **quiet)
    task = ExtractionTask(kept, basis=BasisSettings(4, 6))
    trainer.predict(task, images)
    assert [found.computed for found in task.result()] == [10, 12]


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_ranks_share_one_basis(
    kept: BackboneFeatures, images: ImageModule, trainer: Trainer, on_two_ranks: Callable[..., None]
) -> None:
    on_two_ranks(_process, kept, images)
    assert len(list(Path(str(kept.store)).glob("basis-*"))) == 1
    again = extract(kept, images, trainer, basis=BasisSettings(4, 6)).result()
    assert [found.computed for found in again] == [0, 0], "one rank finds what two have written"
