"""The data module under a real trainer, on one rank and on two."""

import json
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI
from torch import Tensor
from torch.utils.data import DistributedSampler

from ditf_probe.data import Pair, PairDataModule, PairDataset, Side, StereoMotorcycle, WarpedPhotos
from ditf_probe.errors import InputError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


class Numbers(PairDataset):
    """Pairs that are nothing but their number."""

    name = "numbers"
    unit = "pair"

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Pair:
        if index >= self.count:
            raise IndexError(index)
        side = Side(str(index), (4, 4), torch.zeros(1, 2), torch.ones(1, dtype=torch.bool), torch.tensor([0, 0, 3, 3]))
        return Pair(index, "number", str(index), side, side)

    def image(self, image_id: str) -> Tensor:
        return torch.zeros(3, 4, 4, dtype=torch.uint8)


class Recorder(L.LightningModule):
    """Writes down which pairs each step gets."""

    def __init__(self, folder: str = ".") -> None:
        super().__init__()
        self.folder = Path(folder)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen: list[list] = []

    def _record(self, kind: str, batch: list[Pair], loader: int = 0) -> None:
        assert type(batch) is list
        assert all(type(pair) is Pair for pair in batch)
        self.seen.append([kind, self.current_epoch, loader, [pair.index for pair in batch]])

    def training_step(self, batch: list[Pair], index: int) -> Tensor:
        self._record("train", batch)
        return self.weight.square().sum()

    def validation_step(self, batch: list[Pair], index: int) -> None:
        self._record("val", batch)

    def test_step(self, batch: list[Pair], index: int, dataloader_idx: int = 0) -> None:
        self._record("test", batch, dataloader_idx)

    def on_test_end(self) -> None:
        (self.folder / f"{self.global_rank}.json").write_text(json.dumps(self.seen))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(**arguments: object) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "barebones": False}
    return L.Trainer(accelerator="cpu", enable_model_summary=False, num_sanity_val_steps=0, **quiet, **arguments)


def indices(seen: list[list], kind: str, epoch: int = 0, loader: int = 0) -> list[int]:
    return [i for k, e, d, batch in seen if (k, e, d) == (kind, epoch, loader) for i in batch]


def test_one_rank_sees_every_pair_once_in_a_new_order_each_epoch() -> None:
    def fit() -> list[list]:
        module = Recorder()
        trainer(max_epochs=2).fit(module, PairDataModule(Numbers(7), Numbers(3), batch_size=3, seed=5))
        return module.seen

    seen = fit()
    orders = [indices(seen, "train", epoch) for epoch in (0, 1)]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(7))
    assert orders[0] != orders[1]
    assert [len(batch) for kind, epoch, _, batch in seen if (kind, epoch) == ("train", 0)] == [3, 3, 1]
    assert indices(seen, "val") == [0, 1, 2]
    assert fit() == seen


def test_fitting_without_validation() -> None:
    module = Recorder()
    trainer(max_epochs=1).fit(module, PairDataModule(Numbers(2)))
    assert {row[0] for row in module.seen} == {"train"}


def test_two_ranks_share_the_pairs(tmp_path: Path) -> None:
    test = {"five": Numbers(5), "one": Numbers(1)}
    two = trainer(devices=2, strategy="ddp_fork")
    two.test(Recorder(str(tmp_path)), PairDataModule(test=test, batch_size=2), verbose=False)
    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    # Five pairs over two ranks: the first one is repeated to fill up.
    assert [indices(rows, "test", loader=0) for rows in seen] == [[0, 2, 4], [1, 3, 0]]
    assert [indices(rows, "test", loader=1) for rows in seen] == [[0], [0]]


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_train_on_different_pairs(world_size: int) -> None:
    shards = []
    for rank in range(world_size):
        module = PairDataModule(Numbers(12), batch_size=2, num_workers=0)
        module.trainer = SimpleNamespace(world_size=world_size, global_rank=rank)
        loader = module.train_dataloader()
        # Of another class, Lightning would replace it.
        assert isinstance(loader.sampler, DistributedSampler)
        shards.append([pair.index for batch in loader for pair in batch])
    assert {len(shard) for shard in shards} == {-(-12 // world_size)}
    assert set().union(*shards) == set(range(12))


def test_command_line_injects_data_sets(tmp_path: Path) -> None:
    config = {
        "trainer": {"logger": False, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {"folder": str(tmp_path)},
        "data": {
            "batch_size": 2,
            "calibration": {"class_path": "ditf_probe.data.WarpedPhotos", "init_args": {"num_pairs": 1}},
            "test": {
                "warped": {"class_path": "ditf_probe.data.WarpedPhotos", "init_args": {"num_pairs": 3}},
                "stereo": {"class_path": "ditf_probe.data.StereoMotorcycle", "init_args": {"num_pairs": 1}},
            },
        },
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(config))
    arguments = ["test", "--config", str(tmp_path / "test.yaml"), "--data.test.warped.init_args.num_pairs=5"]
    cli = LightningCLI(Recorder, PairDataModule, args=arguments, save_config_callback=None)
    assert isinstance(cli.datamodule.test["warped"], WarpedPhotos)
    assert isinstance(cli.datamodule.test["stereo"], StereoMotorcycle)
    assert len(cli.datamodule.calibration) == 1
    seen = json.loads((tmp_path / "0.json").read_text())
    # An override moves its data set to the end; loaders follow the order of `test`.
    assert list(cli.datamodule.test) == ["stereo", "warped"]
    assert indices(seen, "test", loader=0) == [0]
    assert indices(seen, "test", loader=1) == [0, 1, 2, 3, 4]


def test_calibration_falls_back_on_training_pairs() -> None:
    train, other = Numbers(1), Numbers(2)
    assert PairDataModule(train).calibration is train
    assert PairDataModule(train, calibration=other).calibration is other
    assert PairDataModule(test={"x": other}).calibration is None


@pytest.mark.parametrize(
    ("stage", "arguments", "culprit"),
    [
        ("fit", {"train": 0}, "train"),
        ("fit", {"train": 2, "val": 0}, "val"),
        ("fit", {"val": 2}, "train"),
        ("fit", {"train": 2, "calibration": 0}, "calibration"),
        ("validate", {"train": 2}, "val"),
        ("test", {"train": 2}, "test"),
        ("test", {"test": {"good": 2, "bad": 0}}, "test.bad"),
        ("test", {"test": {"good": 2}, "calibration": 0}, "calibration"),
        (None, {"train": 0}, "train"),
    ],
)
def test_missing_pairs_are_named_at_setup(stage: str | None, arguments: dict, culprit: str) -> None:
    def built(value: int | dict) -> object:
        return {k: Numbers(v) for k, v in value.items()} if isinstance(value, dict) else Numbers(value)

    module = PairDataModule(**{name: built(value) for name, value in arguments.items()})
    with pytest.raises(InputError, match=f"`{culprit}` is "):
        module.setup(stage)


def test_stages_leave_other_data_sets_alone() -> None:
    PairDataModule(Numbers(1), test={"empty": Numbers(0)}).setup("fit")
    PairDataModule(val=Numbers(0), test={"good": Numbers(1)}).setup("test")


@pytest.mark.parametrize(("name", "value"), [("batch_size", 0), ("num_workers", -1)])
def test_bad_arguments_are_named(name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"`{name}` is {value}"):
        PairDataModule(**{name: value})
