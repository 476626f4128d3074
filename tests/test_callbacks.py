from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.callbacks import MatchPictures, spread
from ditf_probe.data.synthetic import SyntheticPairs
from ditf_probe.data.warped import WarpedPhotos
from ditf_probe.errors import InputError
from ditf_probe.metrics.predictions import Predictions

PAIRS = SyntheticPairs("test", 4, 32)


def perfect(shift: float) -> Predictions:
    rows = [(i, k, *PAIRS[i].target.keypoints[k].tolist()) for i in range(4) for k in PAIRS[i].visible.nonzero()[:, 0]]
    pair, keypoint, x, y = (np.array(column) for column in zip(*rows, strict=True))
    x, y = x.astype(np.float32), y.astype(np.float32)
    base = np.full(len(rows), 20, dtype=np.float32)
    pair, keypoint, yes = pair.astype(np.int64), keypoint.astype(np.int64), np.ones(len(rows), dtype=bool)
    return Predictions(pair, keypoint, x + np.float32(shift), y, x, y, base, base, yes, yes, keypoint, base)


def run(folder: Path, *, zero: bool = True, **options: object) -> list[str]:
    rows = [
        SimpleNamespace(name=name, kind=kind, predictions=perfect(shift))
        for name, kind, shift in (("raw", "zero-shot", 9), ("adaln", "zero-shot", 9), ("a/linear", "probe", 0))
    ]
    units = {index: SimpleNamespace(unit=PAIRS[index].unit) for index in range(4)}
    found = SimpleNamespace(name="synthetic", pairs=units, rows=rows)
    task = SimpleNamespace(
        run_dir=folder,
        pairs=SimpleNamespace(test={"synthetic": PAIRS}),
        result=lambda: SimpleNamespace(datasets=[found]),
    )
    trainer = SimpleNamespace(is_global_zero=zero, loggers=[], global_step=0)
    MatchPictures(**options).on_test_end(trainer, task)  # type: ignore[arg-type]
    return sorted(path.name for path in (folder / "pictures").glob("*")) if (folder / "pictures").exists() else []


def test_pictures_of_adaln_and_probes_for_pairs_across_the_list(tmp_path: Path) -> None:
    names = run(tmp_path, num_pairs=2)
    assert names == [f"synthetic-000{i}-{row}.png" for i in (0, 2) for row in ("a-linear", "adaln")]
    right, wrong = (np.asarray(Image.open(tmp_path / "pictures" / name).convert("RGB")) for name in names[:2])
    assert right.shape == wrong.shape
    assert (right != wrong).any()


def test_chosen_rows_and_no_pairs(tmp_path: Path) -> None:
    assert run(tmp_path / "a", num_pairs=1, rows=("raw",)) == ["synthetic-0000-raw.png"]
    assert run(tmp_path / "b", num_pairs=0) == []


def test_other_ranks_draw_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, zero=False) == []


def test_spread_is_even_and_in_order() -> None:
    own = {index: str(index) for index in (3, 5, 7, 9, 11, 13)}
    assert spread(own, 3) == [3, 7, 11]
    assert spread(dict.fromkeys(own, "the scene"), 3) == [3, 7, 11]
    assert spread({3: "a", 5: "b"}, 3) == [3, 5]
    assert spread({}, 3) == []
    assert spread(own, 0) == []


def test_a_list_that_cycles_over_five_photos_shows_as_many_as_it_can() -> None:
    cycling = {index: f"photo {index % 5}" for index in range(60)}
    assert spread(cycling, 3) == [0, 1, 3]
    assert spread(cycling, 5) == [0, 1, 2, 3, 4]
    seven = spread(cycling, 7)
    assert [sorted(index % 5 for index in seven).count(photo) for photo in range(5)] == [2, 2, 1, 1, 1]
    assert seven == [0, 1, 2, 3, 4, 30, 31]  # the second pair of a photo is from the middle of its twelve


def test_a_small_unit_leaves_its_turns_to_others() -> None:
    units = {0: "a", 1: "b", 2: "b", 3: "b", 4: "c"}
    assert spread(units, 4) == [0, 1, 2, 4]
    assert spread(units, 9) == [0, 1, 2, 3, 4]


def test_three_pictures_of_warped_photos_show_three_photos() -> None:
    photos = WarpedPhotos(num_pairs=60, image_size=48)
    units = {index: photos[index].unit for index in range(len(photos))}
    chosen = [units[index] for index in spread(units, 3)]
    assert len(set(chosen)) == 3


@pytest.mark.parametrize("options", [{"num_pairs": -1}, {"alpha": 0.0}, {"alpha": float("nan")}])
def test_bad_options_are_named(options: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        MatchPictures(**options)  # type: ignore[arg-type]


def test_drawn_keypoints_are_those_of_the_pair() -> None:
    predictions = perfect(0)
    assert torch.equal(
        torch.from_numpy(predictions.keypoint[predictions.pair_index == 1]), PAIRS[1].visible.nonzero()[:, 0]
    )
