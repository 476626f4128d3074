"""What happens beside a test: pictures of its matches and masks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from ditf_probe.data.masks import read_values
from ditf_probe.data.pairs import Pair, PairDataset
from ditf_probe.data.videos import VideoDataset
from ditf_probe.errors import InputError
from ditf_probe.files import replacing
from ditf_probe.metrics.predictions import Predictions
from ditf_probe.pictures import mask_picture, match_picture


class MatchPictures(L.Callback):
    """Draws the matches of a few pairs of every test set, into `<run_dir>/pictures/` and to TensorBoard.

    Args:
        num_pairs: Pairs per test set, evenly spread over its list.
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
        """Draws on the first rank only; nothing here waits for another rank."""
        if not trainer.is_global_zero:
            return
        task: Any = pl_module
        datasets: dict[str, PairDataset] = task.pairs.test
        for found in task.result().datasets:
            chosen = [row for row in found.rows if row.name in self.rows or (not self.rows and _default(row))]
            for index in spread(sorted(found.pairs), self.num_pairs):
                for row in chosen:
                    picture = self._draw(datasets[found.name], index, row.name, row.predictions)
                    keep_picture(trainer, Path(task.run_dir), (found.name, f"{index:04d}", row.name), picture)

    def _draw(self, dataset: PairDataset, index: int, row: str, predictions: Predictions) -> np.ndarray[Any, Any]:
        pair: Pair = dataset[index]
        own = predictions.pair_index == index
        points = torch.zeros(len(pair.visible), 2)
        keypoints = torch.from_numpy(predictions.keypoint[own])
        points[keypoints] = torch.from_numpy(np.stack([predictions.x[own], predictions.y[own]], axis=1))
        return match_picture(
            dataset.image(pair.source.image_id),
            dataset.image(pair.target.image_id),
            pair.source.keypoints,
            points,
            pair.target.keypoints,
            pair.visible,
            self.alpha * float(predictions.threshold_base[own][0]),
            title=f"{row} ({pair.category})",
        )


class MaskPictures(L.Callback):
    """Draws the masks of a few videos of every test set, into `<run_dir>/pictures/` and to TensorBoard.

    Columns are frames, evenly spread; rows the annotation, then the rows of the comparison.

    Args:
        num_sequences: Videos per test set, evenly spread over its list.
        num_frames: Frames of each, without the first, whose mask is given.
        rows: Which rows to draw; by default all.

    Raises:
        InputError: An option out of range.
    """

    def __init__(self, num_sequences: int = 3, num_frames: int = 4, rows: Sequence[str] = ()) -> None:
        if num_sequences < 0:
            raise InputError("num_sequences", num_sequences, "give a number of videos, 0 or more")
        if num_frames < 1:
            raise InputError("num_frames", num_frames, "give a number of frames, 1 or more")
        self.num_sequences, self.num_frames, self.rows = num_sequences, num_frames, tuple(rows)

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws on the first rank only, from the masks that all ranks have written."""
        if not trainer.is_global_zero:
            return
        task: Any = pl_module
        for found in task.result().datasets:
            dataset = task.videos.test[found.name]
            chosen = [row.name for row in found.rows if row.name in self.rows or not self.rows]
            for index in spread(range(len(dataset)), self.num_sequences):
                picture = self._draw(task, found.name, dataset, index, chosen)
                keep_picture(trainer, Path(task.run_dir), (found.name, dataset[index].name, "masks"), picture)

    def _draw(self, task: Any, name: str, dataset: VideoDataset, index: int, rows: list[str]) -> np.ndarray[Any, Any]:
        sequence = dataset[index]
        times = spread(range(len(sequence))[::-1], self.num_frames)[::-1]  # from the end, so that the last is shown
        known = [row for row in [[dataset.mask(index, time) for time in times]] if sequence.scored]
        written = [
            [torch.from_numpy(read_values(task.mask_file(name, row, dataset, sequence, time))) for time in times]
            for row in rows
        ]
        words = ", ".join([*(["annotation"] if known else []), *rows])
        title = f"{sequence.name}, from above: {words}"
        return mask_picture([dataset.frame(index, time) for time in times], [*known, *written], title)


def keep_picture(trainer: L.Trainer, run_dir: Path, key: tuple[str, str, str], picture: np.ndarray[Any, Any]) -> None:
    """Writes a picture into `<run_dir>/pictures/` and shows it to TensorBoard.

    Args:
        trainer: Whose loggers.
        run_dir: Folder of the run.
        key: Data set, item and row; the name of the file and the tag.
        picture: `(H, W, 3)` uint8.
    """
    name = "-".join(key).replace("/", "-")
    with replacing(run_dir / "pictures" / f"{name}.png") as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image("/".join(key), picture, trainer.global_step, dataformats="HWC")


def spread(indices: Sequence[int], count: int) -> list[int]:
    """So many of the indices, evenly spread, the first among them; all where there are fewer."""
    if count >= len(indices):
        return list(indices)
    return [indices[number * len(indices) // count] for number in range(count)]


def _default(row: Any) -> bool:
    return bool(row.kind == "probe" or row.name == "adaln")
