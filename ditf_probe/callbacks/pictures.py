"""What happens beside a test: pictures of its matches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from ditf_probe.data.pairs import Pair, PairDataset
from ditf_probe.errors import InputError
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.pictures import match_picture, save_picture
from ditf_probe.tasks.image_task import ImageTask

T = TypeVar("T")


class MatchPictures(L.Callback):
    """Draws the matches of a few pairs of every test set, into `<run_dir>/pictures/` and to TensorBoard.

    Args:
        num_pairs: Pairs per test set, evenly spread over its sampling units: no unit twice before each has been drawn.
        rows: Which rows to draw; by default AdaLN and every probe.
        alpha: Matches within this part of the threshold base count as correct.

    Raises:
        InputError: An option out of range.
    """

    def __init__(self, num_pairs: int = 3, rows: Sequence[str] = (), alpha: float = 0.10) -> None:
        if num_pairs < 0:
            raise InputError("num_pairs", num_pairs, "give a number of pairs, 0 or more")
        if not 0 < alpha <= 1:
            raise InputError("alpha", alpha, "give a fraction above 0")
        self.num_pairs, self.rows, self.alpha = num_pairs, tuple(rows), alpha

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws on the first rank only; nothing here waits for another one. Tasks over single images match no pairs."""
        if not trainer.is_global_zero or isinstance(pl_module, ImageTask):
            return
        task: Any = pl_module
        datasets: dict[str, PairDataset] = task.pairs.test
        for found in task.result().datasets:
            chosen = [row for row in found.rows if row.name in self.rows or (not self.rows and _default(row))]
            every = found.rows[0].predictions  # the keypoints of all rows are the same
            shown = sorted(set(every.pair_index[every.present].tolist()))
            for index in spread({index: found.pairs[index].unit for index in shown}, self.num_pairs):
                for row in chosen:
                    picture = self._draw(datasets[found.name], index, row.name, row.predictions)
                    keep_picture(trainer, Path(task.run_dir), (found.name, f"{index:04d}", row.name), picture)

    def _draw(self, dataset: PairDataset, index: int, row: str, predictions: Predictions) -> np.ndarray[Any, Any]:
        pair: Pair = dataset[index]
        own = predictions.where((predictions.pair_index == index) & predictions.present)
        points, accepted = torch.zeros(len(pair.visible), 2), torch.zeros_like(pair.visible)
        points[torch.from_numpy(own.keypoint)] = torch.from_numpy(np.stack([own.x, own.y], axis=1))
        accepted[torch.from_numpy(own.keypoint)] = torch.from_numpy(own.accepted)
        return match_picture(
            dataset.image(pair.source.image_id),
            dataset.image(pair.target.image_id),
            pair.source.keypoints,
            points,
            pair.target.keypoints,
            pair.visible,
            self.alpha * float(own.threshold_base[0]),
            title=f"{row} ({pair.category})",
            accepted=accepted,
        )


def keep_picture(trainer: L.Trainer, run_dir: Path, key: tuple[str, str, str], picture: np.ndarray[Any, Any]) -> None:
    """Writes a picture into `<run_dir>/pictures/` and shows it to TensorBoard.

    Args:
        trainer: Whose loggers.
        run_dir: Folder of the run.
        key: Data set, item and row; the name of the file and the tag.
        picture: `(H, W, 3)` uint8.
    """
    name = "-".join(key).replace("/", "-")
    save_picture(run_dir / "pictures" / f"{name}.png", picture)
    log_picture(trainer, "/".join(key), picture)


def log_picture(trainer: L.Trainer, tag: str, picture: np.ndarray[Any, Any]) -> None:
    """Shows a picture `(H, W, 3)` uint8 to TensorBoard, where a trainer logs to it."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, picture, trainer.global_step, dataformats="HWC")
            logger.experiment.flush()


def spread(units: Mapping[int, str], count: int) -> list[int]:
    """Chooses pairs that show as much of a list as so many can.

    Units get pairs in turn, so that none has two before each has one. With fewer pairs than units, the units are evenly
    spread; within a unit the pairs are, the first among them.

    Args:
        units: Pair index to sampling unit, in order of the list.
        count: How many pairs; all where there are fewer.

    Returns:
        Pair indices in ascending order.
    """
    members: dict[str, list[int]] = {}
    for index, unit in units.items():
        members.setdefault(unit, []).append(index)
    groups = evenly(list(members.values()), count)
    quotas = [0] * len(groups)
    for turn in range(max(map(len, groups), default=0)):
        for number, group in enumerate(groups):
            if turn < len(group) and sum(quotas) < count:
                quotas[number] += 1
    return sorted(index for group, quota in zip(groups, quotas, strict=True) for index in evenly(group, quota))


def evenly(items: Sequence[T], count: int) -> list[T]:
    """So many of the items, evenly spread, the first among them; all where there are fewer."""
    if count >= len(items):
        return list(items)
    return [items[number * len(items) // count] for number in range(count)]


def _default(row: Any) -> bool:
    return bool(row.kind == "probe" or row.name == "adaln")
