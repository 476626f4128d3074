"""Dense matches of a few test pairs, as files and as pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from safetensors.torch import save_file

from ditf_probe.callbacks.pictures import spread
from ditf_probe.data.pairs import Pair, PairDataset
from ditf_probe.errors import InputError
from ditf_probe.files import replacing
from ditf_probe.matching import DenseMatches as Matches
from ditf_probe.matching import match_dense
from ditf_probe.pictures import dense_picture
from ditf_probe.tasks.matchers import MapMatcher
from ditf_probe.tasks.rows import REFERENCE, Row

UNITS = {
    "points": "(x, y) in pixels of the original source image, (0, 0) is the centre of its top-left pixel",
    "flow": "(x, y) in pixels of the original target image minus points",
    "confidence": "cosine in [-1, 1]",
    "cycle": "pixels of the original source image",
    "matched": "bool, False is no match",
}


Key = tuple[str, int, str]  # data set, pair, row


class DenseMatches(L.Callback):
    """Matches every place of a few pairs of every test set, into `<run_dir>/dense/` and to TensorBoard.

    Per pair and row there is a safetensors file with `points`, `flow`, `confidence`, `cycle` and `matched` of
    `matching.match_dense` (its metadata name the images, their sizes, the options and the units), and a picture. The
    rank that tests a pair writes them.

    Args:
        num_pairs: Pairs per test set, spread over the sampling units of those that are tested.
        rows: Which rows, of those with feature maps; by default AdaLN and every probe.
        stride: As in `match_dense`: source points every so many pixels; None takes the cells of the map.
        max_cycle: As in `match_dense`: largest cycle error of a match in source pixels; None is one cell.
        mutual: As in `match_dense`.

    Raises:
        InputError: An option out of range, or a row that the test does not have.
    """

    def __init__(
        self,
        num_pairs: int = 3,
        rows: Sequence[str] = (),
        stride: int | None = None,
        max_cycle: float | None = None,
        mutual: bool = True,
    ) -> None:
        if num_pairs < 0:
            raise InputError("num_pairs", num_pairs, "give a number of pairs, 0 or more")
        if stride is not None and stride < 1:
            raise InputError("stride", stride, "give a positive number of pixels, or None for the cells of the map")
        if max_cycle is not None and not max_cycle >= 0:
            raise InputError("max_cycle", max_cycle, "give a distance in pixels, or None for one cell")
        self.num_pairs, self.rows = num_pairs, tuple(rows)
        self.stride, self.max_cycle, self.mutual = stride, max_cycle, mutual
        self._chosen: list[list[int]] = []

    def on_test_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Chooses the pairs: rank r of n tests every n-th from the r-th on, in order."""
        task: Any = pl_module
        names = [matcher.row.name for matcher in task.matchers if isinstance(matcher, MapMatcher)]
        for row in self.rows:
            if row not in names:
                raise InputError("rows", row, f"name rows with feature maps, {', '.join(names)}")
        datasets: dict[str, PairDataset] = task.pairs.test
        at_once = task.pairs.batch_size * trainer.world_size
        self._chosen = []
        for dataset, batches in zip(datasets.values(), trainer.num_test_batches, strict=True):
            tested = range(int(min(len(dataset), batches * at_once)))
            self._chosen.append(spread({index: dataset[index].unit for index in tested}, self.num_pairs))

    def on_test_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: list[Pair],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Matches the chosen pairs of a batch, while the features of their data set are in memory."""
        del outputs, batch_idx
        task: Any = pl_module
        name = list(task.pairs.test)[dataloader_idx]
        for pair in batch:
            if pair.index in self._chosen[dataloader_idx]:
                for matcher in task.matchers:
                    if isinstance(matcher, MapMatcher) and self._wants(matcher.row):
                        key = (name, pair.index, matcher.row.name)
                        self._keep(trainer, task, key, pair, self._match(matcher, pair))

    def _wants(self, row: Row) -> bool:
        return row.name in self.rows if self.rows else row.kind == "probe" or row.name == REFERENCE

    def _match(self, matcher: MapMatcher, pair: Pair) -> Matches:
        source, target = matcher.maps(pair)
        return match_dense(
            source,
            target,
            pair.source.size,
            pair.target.size,
            stride=self.stride,
            max_cycle=self.max_cycle,
            mutual=self.mutual,
        )

    def _keep(self, trainer: L.Trainer, task: Any, key: Key, pair: Pair, matches: Matches) -> None:
        dataset, index, row = key
        place = Path(task.run_dir) / "dense" / f"{dataset}-{index:04d}-{row}".replace("/", "-")
        tensors = {name: getattr(matches, name).cpu().contiguous() for name in UNITS}
        with replacing(place.with_name(f"{place.name}.safetensors")) as temporary:
            save_file(tensors, temporary, self._metadata(key, pair))
        pixels: PairDataset = task.pairs.test[dataset]
        picture = dense_picture(
            pixels.image(pair.source.image_id),
            pixels.image(pair.target.image_id),
            tensors["flow"],
            tensors["confidence"],
            tensors["matched"],
            title=f"{row} ({pair.category})",
        )
        with replacing(place.with_name(f"{place.name}.png")) as temporary:
            Image.fromarray(picture).save(temporary, format="PNG")
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                tag = f"dense/{dataset}/{index:04d}/{row}"
                logger.experiment.add_image(tag, picture, trainer.global_step, dataformats="HWC")

    def _metadata(self, key: Key, pair: Pair) -> dict[str, str]:
        dataset, index, row = key
        facts = {"dataset": dataset, "pair": str(index), "row": row, "category": pair.category}
        for name, side in (("source", pair.source), ("target", pair.target)):
            facts |= {name: side.image_id, f"{name}_size": f"{side.size[0]} high, {side.size[1]} wide"}
        options = {"stride": self.stride, "max_cycle": self.max_cycle, "mutual": self.mutual}
        facts |= {name: str(value) for name, value in options.items()}
        return facts | {f"unit of {name}": unit for name, unit in UNITS.items()}
