"""What happens beside a test: pictures of the masks of videos."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from ditf_probe.callbacks.pictures import evenly, keep_picture
from ditf_probe.data.masks import read_values
from ditf_probe.data.videos import VideoDataset
from ditf_probe.errors import InputError
from ditf_probe.pictures import mask_picture


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
            for index in evenly(range(len(dataset)), self.num_sequences):
                picture = self._draw(task, found.name, dataset, index, chosen)
                keep_picture(trainer, Path(task.run_dir), (found.name, dataset[index].name, "masks"), picture)

    def _draw(self, task: Any, name: str, dataset: VideoDataset, index: int, rows: list[str]) -> np.ndarray[Any, Any]:
        sequence = dataset[index]
        times = evenly(range(len(sequence))[::-1], self.num_frames)[::-1]  # from the end, so that the last is shown
        known = [row for row in [[dataset.mask(index, time) for time in times]] if sequence.scored]
        written = [
            [torch.from_numpy(read_values(task.mask_file(name, row, dataset, sequence, time))) for time in times]
            for row in rows
        ]
        words = ", ".join([*(["annotation"] if known else []), *rows])
        title = f"{sequence.name}, from above: {words}"
        return mask_picture([dataset.frame(index, time) for time in times], [*known, *written], title)
