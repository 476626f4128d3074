"""Homographies from the features of keypoints: how well rows match images of one plane."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ditf_probe.data.detectors import Detector, Sift
from ditf_probe.data.planar import PlanarDataModule, PlanarDataset, PlanarImage, PlanarPair, PlanarSequence
from ditf_probe.errors import InputError, check_choice
from ditf_probe.files import write_text
from ditf_probe.matching import Rounding, mutual_nearest_neighbours, sample_descriptors
from ditf_probe.metrics.homography import Estimator, corner_error, estimate_homography, match_errors
from ditf_probe.metrics.planar import Accuracies
from ditf_probe.progress import progress
from ditf_probe.tasks.controls import same_position
from ditf_probe.tasks.image_rows import ImageRows
from ditf_probe.tasks.image_task import ImageTask
from ditf_probe.tasks.measured import MeasuredDataset, MeasuredRun
from ditf_probe.tasks.planar_scores import PlanarRow, PlanarScores, curve_points, curves_csv
from ditf_probe.tasks.records import NO_BACKBONE
from ditf_probe.tasks.settings import BackboneFeatures

SIFT_ROW = "sift"


@dataclass(frozen=True, slots=True)
class View:
    """What a row knows of one image.

    Attributes:
        size: Height and width of the image.
        points: `(N, 2)` float32 keypoints (x, y) in its pixels, on the CPU.
        descriptors: `(N, D)`; None for the row that keeps positions.
    """

    size: tuple[int, int]
    points: Tensor
    descriptors: Tensor | None


class HomographyTask(ImageTask):
    """Matches keypoints of planar sequences and estimates homographies, with every row.

    Each row samples its feature maps at the keypoints of a detector, the same for all rows, and matches mutual nearest
    neighbours by the cosine. A backbone computes each image once, and only descriptors are kept: those of the reference
    and of one further image of a sequence. One backbone goes through all sequences before the next.

    Results are those of all pairs and, as data sets of their own, of the sequences of each change: `acc@T`, the share
    of pairs whose corner error is at most T pixels, `mma@T`, the mean matching accuracy, and the number of matches.
    The curve from 1 to 10 pixels goes to `matching_accuracy.csv` and to loggers.

    Two controls have no feature maps: `same_position` matches each keypoint with the same relative position of the
    other image (the identity where sizes are equal, right for changes of illumination), and `sift` is opencv's SIFT
    with its own keypoints and descriptors.

    Args:
        features: The backbone and its features; `blocks` is the one block of the zero-shot rows.
        rows: Which rows of that backbone, and which controls, in order.
        probe_folders: Trained probes of that backbone to compare.
        run_dir: Folder of everything that a run writes.
        others: Further zero-shot rows by name, each with a backbone of its own and one block.
        backbone_files: The same as YAML files; each row is called like its file.
        detector: Finds the keypoints; by default 1,000 of SIFT.
        rounding: Where descriptors are sampled, as in `match_keypoints`.
        ratio: Ratio test of the matches, as in `mutual_nearest_neighbours`; None for none.
        estimator: As in `estimate_homography`: "ransac", "magsac" or "lmeds".
        threshold: As in `estimate_homography`: reprojection error of inliers in pixels.
        seed: Of the estimator.
        sift: Whether to compare the row `sift`, with as many keypoints as the detector.

    Raises:
        InputError: An unknown row, names that meet, or an option out of range.
    """

    together = False

    def __init__(
        self,
        features: BackboneFeatures,
        rows: Sequence[str] = ("raw", "adaln", "same_position", "rgb", "untrained"),
        probe_folders: Sequence[str] = (),
        run_dir: str = "runs/default",
        others: dict[str, BackboneFeatures] | None = None,
        backbone_files: Sequence[str] = (),
        detector: Detector | None = None,
        rounding: Rounding = "subpixel",
        ratio: float | None = None,
        estimator: Estimator = "ransac",
        threshold: float = 3.0,
        seed: int = 0,
        sift: bool = True,
    ) -> None:
        super().__init__(features, rows, probe_folders, run_dir, others, backbone_files)
        check_choice("estimator", estimator, Estimator)
        check_choice("rounding", rounding, Rounding)
        if not threshold > 0:
            raise InputError("threshold", threshold, "give a positive number of pixels")
        if ratio is not None and not 0 < ratio <= 1:
            raise InputError("ratio", ratio, "give a part above 0 and at most 1, or None for no test")
        if sift and SIFT_ROW in (*self.others, *self.probe_folders):
            raise InputError("others", SIFT_ROW, "choose another name, or leave out the row of SIFT (sift: false)")
        self.detector = Sift() if detector is None else detector
        self.sift = Sift(self.detector.num_keypoints) if sift else None
        self.rounding: Rounding = rounding
        self.ratio = ratio
        self.estimation: dict[str, Any] = {"estimator": estimator, "threshold": threshold, "seed": seed}
        self.scores: list[PlanarScores] = []
        self._passes: list[ImageRows] = []
        self._shown: list[tuple[int, PlanarSequence]] = []

    @property
    def planar(self) -> PlanarDataModule:
        """The data module of the trainer.

        Raises:
            InputError: The trainer was given bare loaders.
        """
        module = getattr(self.trainer, "datamodule", None)
        if not isinstance(module, PlanarDataModule):
            raise InputError("datamodule", type(module).__name__, "give the trainer a PlanarDataModule")
        return module

    def categories(self) -> dict[str, str]:
        """Every image, of no category."""
        return {image_id: "image" for dataset in self.planar.test.values() for image_id in dataset.image_ids()}

    def on_test_start(self) -> None:
        """Gets the rows ready, and a score sheet per data set."""
        super().on_test_start()
        rows = self._table_rows()
        self.scores = [PlanarScores(dataset, rows, self.device) for dataset in self.planar.test.values()]
        self._passes, self._shown = self.image_rows.by_backbone(), []

    def test_step(self, batch: list[PlanarSequence], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Matches with the first backbone, and with the rows that have none."""
        del batch_idx
        for sequence in batch:
            self._shown.append((dataloader_idx, sequence))
            self._match(self.scores[dataloader_idx], sequence, self._passes[0], without_maps=True)

    def on_test_epoch_end(self) -> None:
        """Matches with the other backbones, and gathers what all ranks found, once."""
        for image_rows in self._passes[1:]:
            with progress(f"matching {', '.join(image_rows.matchers)}", len(self._shown), "sequences") as advance:
                for number, sequence in self._shown:
                    self._match(self.scores[number], sequence, image_rows)
                    advance(1)
        datasets: list[MeasuredDataset] = []
        curves: dict[str, dict[str, Accuracies]] = {}
        for name, scores in zip(self.planar.test, self.scores, strict=True):
            curves[name] = scores.curves()
            datasets += scores.measured(name, curves[name])
        self.log_result(MeasuredRun(datasets, self.settings()))
        for logger in self.trainer.loggers:
            for name, found in curves.items():
                for pixels, values in curve_points(found, name):
                    logger.log_metrics(values, step=pixels)
        if self.trainer.is_global_zero:
            write_text(self.run_dir / "matching_accuracy.csv", curves_csv(curves))

    def settings(self) -> dict[str, Any]:
        """As in `ImageTask`, with detector, matching, estimation and data."""
        return super().settings() | {
            "detector": self.detector.settings(),
            "matching": {"rule": "mutual nearest neighbours", "rounding": self.rounding, "ratio": self.ratio},
            "homography": dict(self.estimation),
            "data": {name: dataset.settings() for name, dataset in self.planar.test.items()},
        }

    def _table_rows(self) -> list[PlanarRow]:
        found = [
            PlanarRow(name, matcher.row.kind, matcher.parameters, matcher.note(), matcher.backbone)
            for name, matcher in self.image_rows.matchers.items()
        ]
        found += [PlanarRow(row.name, "control", backbone=NO_BACKBONE) for row in self.rows if row.source == "position"]
        if self.sift is not None:
            found.append(PlanarRow(SIFT_ROW, "control", notes=("own keypoints",), backbone=NO_BACKBONE))
        return found

    def _match(
        self, scores: PlanarScores, sequence: PlanarSequence, image_rows: ImageRows, without_maps: bool = False
    ) -> None:
        """Matches the reference of a sequence with each of its further images."""
        reference = self._views(scores.dataset, sequence.reference, image_rows, without_maps)
        for pair in sequence.pairs:
            further = self._views(scores.dataset, pair.target, image_rows, without_maps)
            for row in reference:
                found = self._measure(reference[row], further[row], pair)
                scores.update(row, pair.index, sequence.change == "viewpoint", *found)

    def _views(
        self, dataset: PlanarDataset, image: PlanarImage, image_rows: ImageRows, without_maps: bool
    ) -> dict[str, View]:
        """What rows know of an image; its maps are let go of."""
        pixels = dataset.image(image.image_id)
        points = self.detector(pixels, image.image_id)
        views = {}
        for name, maps in image_rows(pixels[None], [image.image_id]).items():
            at = points.to(maps.device)
            views[name] = View(image.size, points, sample_descriptors(maps[0], at, image.size, rounding=self.rounding))
        if without_maps:
            views |= {row.name: View(image.size, points, None) for row in self.rows if row.source == "position"}
        if without_maps and self.sift is not None:
            views[SIFT_ROW] = View(image.size, *self.sift.describe(pixels))
        return views

    def _measure(self, source: View, target: View, pair: PlanarPair) -> tuple[float, Tensor]:
        """Corner error of a pair, and the errors of its matches."""
        ends = match_views(source, target, self.ratio)
        estimated = estimate_homography(*ends, **self.estimation)
        return corner_error(estimated, pair.homography, source.size), match_errors(*ends, pair.homography)


def match_views(source: View, target: View, ratio: float | None = None) -> tuple[Tensor, Tensor]:
    """The matches of two images by one row.

    Args:
        source: One image.
        target: The other.
        ratio: As in `mutual_nearest_neighbours`.

    Returns:
        `(M, 2)` points of the source and of the target, float32 on the CPU.
    """
    if source.descriptors is None or target.descriptors is None:
        return source.points, same_position(source.points, source.size, target.size)
    pairs, _ = mutual_nearest_neighbours(source.descriptors, target.descriptors, ratio=ratio)
    first, second = pairs.cpu().unbind(1)
    return source.points[first], target.points[second]
