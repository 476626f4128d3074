"""Block and timestep are chosen by scores that a plain loop gives as well."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ditf_probe import FeatureExtractor, InputError, SyntheticPairs, load_backbone, match_keypoints
from ditf_probe.commands import main
from ditf_probe.metrics.intervals import resample_counts
from ditf_probe.selection import Grid, Selection, score_blocks, score_grid, select, write_preset
from ditf_probe.selection.choice import grid_csv
from ditf_probe.selection.scores import Counts, count_blocks
from ditf_probe.tasks.models import make_stream
from ditf_probe.tasks.settings import BackboneFeatures

PRESET = "# why\nbackbone: ditf-tiny\nblocks: [1]\ntimestep: 5\ntap: mlp\n"


def score_by_loop(block: int, timestep: int, num_pairs: int) -> float:
    """PCK@0.10 per point without bank and metric, one image at a time."""
    extractor = FeatureExtractor(load_backbone("ditf-tiny", device="cpu"), blocks=[block], timestep=timestep)
    pairs = SyntheticPairs("val", num_pairs=num_pairs)
    hits = []
    for pair in (pairs[i] for i in range(num_pairs)):
        maps = []
        for side in (pair.source, pair.target):
            image = pairs.image(side.image_id)[None].float() / 255
            maps.append(extractor(image, image_ids=[side.image_id])[block][0])
        for k in range(len(pair.visible)):
            if pair.source.visible[k] and pair.target.visible[k]:
                keypoint = pair.source.keypoints[k : k + 1]
                (found,), _ = match_keypoints(*maps, keypoint, pair.source.size, pair.target.size)
                x0, y0, x1, y1 = pair.target.bbox.tolist()
                distance = float((found - pair.target.keypoints[k]).norm())
                hits.append(distance <= 0.10 * max(x1 - x0, y1 - y0))
    return 100 * sum(hits) / len(hits)


def test_scores_equal_a_plain_loop() -> None:
    extractor = FeatureExtractor(load_backbone("ditf-tiny", device="cpu"), blocks=[1, 3], timestep=100, image_size=64)
    scores = score_blocks(extractor, SyntheticPairs("val", num_pairs=8))
    assert scores == pytest.approx({block: score_by_loop(block, 100, 8) for block in (1, 3)})
    assert len(set(scores.values())) == 2


def test_the_best_cell_is_chosen_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    best = select("ditf-tiny", timesteps=[100, 900], num_pairs=8, device="cpu")
    cells = {(block, t): score_by_loop(block, t, 8) for block in (best.block,) for t in (100, 900)}
    assert best.pck == pytest.approx(cells[best.block, best.timestep])
    assert best.pck == max(cells.values())
    assert f"block {best.block}, timestep {best.timestep}: {best.pck:.1f}" in capsys.readouterr().out


def test_a_preset_keeps_its_comments(tmp_path: Path) -> None:
    preset = tmp_path / "preset.yaml"
    preset.write_text(PRESET)
    write_preset(preset, Selection(block=3, timestep=120, tap="attention", pck=10.0))
    assert preset.read_text() == "# why\nbackbone: ditf-tiny\nblocks: [3]\ntimestep: 120\ntap: attention\n"
    assert list(tmp_path.iterdir()) == [preset]


@pytest.mark.parametrize("text", [None, PRESET.replace("tap: mlp\n", ""), PRESET + "timestep: 7\n"])
def test_a_bad_preset_is_refused_before_the_search(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "preset.yaml"
    if text is not None:
        preset.write_text(text)
    with pytest.raises(SystemExit) as end:
        main(["select", "--backbone", "/no/such/model", "--write", str(preset)])
    assert end.value.code == 2
    assert "--write" in capsys.readouterr().err
    with pytest.raises(InputError, match="--write"):
        write_preset(preset, Selection(1, 2, "mlp", 3.0))


def test_one_thread_or_more_give_the_same_choice() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = select("ditf-tiny", timesteps=[100], num_pairs=4, device="cpu")
    finally:
        torch.set_num_threads(threads)
    assert two == select("ditf-tiny", timesteps=[100], num_pairs=4, device="cpu")


def test_the_grid_is_over_the_same_pairs(tmp_path: Path) -> None:
    """Scores, intervals and paired differences, from the hits of a plain loop over two timesteps."""
    pairs = SyntheticPairs("val", num_pairs=10)
    backbone = load_backbone("ditf-tiny", device="cpu")
    extractors = [FeatureExtractor(backbone, blocks=[0, 1], timestep=t, image_size=32) for t in (50, 400)]
    grid = score_grid(extractors, pairs)
    assert [(cell.timestep, cell.block) for cell in grid.cells] == [(50, 0), (50, 1), (400, 0), (400, 1)]
    counts = [count_blocks(extractor, pairs) for extractor in extractors]
    points = counts[0].points
    assert grid.keypoints == points.sum() == sum(int(pairs[i].visible.sum()) for i in range(10))
    hits = [found.correct[block] for found in counts for block in (0, 1)]
    scores = [100 * correct.sum() / points.sum() for correct in hits]
    assert [cell.pck for cell in grid.cells] == pytest.approx(scores)
    best = int(np.argmax(scores))
    assert grid.best is grid.cells[best]
    drawn = resample_counts(len(set(counts[0].units)))
    assert counts[0].units == sorted(set(counts[0].units)), "one pair each, in the order of the resamples"
    for cell, correct in zip(grid.cells, hits, strict=True):
        lows, highs = 100 * (drawn @ correct) / (drawn @ points), 100 * (drawn @ hits[best]) / (drawn @ points)
        assert cell.ci95 == pytest.approx(np.quantile(lows, [0.025, 0.975]))
        assert cell.delta_ci95 == pytest.approx(np.quantile(lows - highs, [0.025, 0.975]))
        assert cell.delta == pytest.approx(cell.pck - grid.best.pck)
        assert cell.clearly_below == (cell.delta_ci95[1] < 0)
    lines = list(csv.DictReader(io.StringIO(grid_csv(grid))))
    assert [float(line["pck_0.10"]) for line in lines] == pytest.approx(scores, abs=1e-4)
    assert float(lines[best]["delta_to_best"]) == 0


def test_one_unit_has_no_interval() -> None:
    counts = Counts(["a", "a"], np.array([2, 0]), {4: np.array([1, 0])})
    (cell,) = Grid.of({10: counts}).cells
    assert (cell.pck, cell.ci95, cell.delta, cell.delta_ci95, cell.clearly_below) == (50.0, None, 0.0, None, False)
    assert "10,4,50.0,,,0.0,," in grid_csv(Grid.of({10: counts}))


def test_a_full_store_runs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"timesteps": [50, 400], "num_pairs": 3, "image_size": 32, "device": "cpu"}
    plain = select("ditf-tiny", **options)
    stored = select("ditf-tiny", **options, store=tmp_path / "store", run_dir=tmp_path / "one")
    monkeypatch.setattr(FeatureExtractor, "tapped", None)
    again = select("ditf-tiny", **options, store=tmp_path / "store", run_dir=tmp_path / "two")
    assert plain == stored == again
    assert (tmp_path / "one" / "grid.csv").read_bytes() == (tmp_path / "two" / "grid.csv").read_bytes()


def test_the_store_is_that_of_a_run(tmp_path: Path) -> None:
    """A comparison with the same settings reads what a search has computed."""
    select("ditf-tiny", timesteps=[50], num_pairs=2, image_size=32, device="cpu", store=tmp_path)
    settings = BackboneFeatures([2], 50, image_size=32, store=str(tmp_path), store_only=True)
    stream = make_stream(load_backbone("ditf-tiny", device="cpu"), settings, [2])
    stream.open(SyntheticPairs("val", num_pairs=2, image_size=32))
    assert len(stream.bank) == 4


def test_the_command_leaves_a_table_a_picture_and_a_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["select", "--timesteps", "100", "900", "--num-pairs", "4", "--device", "cpu", "--modulation", "rms_norm"]
    main([*words, "--run-dir", str(tmp_path / "run"), "--store", str(tmp_path / "store")])
    printed = capsys.readouterr().out
    assert "rms_norm" in printed
    assert "not clearly below it" in printed
    lines = (tmp_path / "run" / "grid.csv").read_text().splitlines()
    assert len(lines) == 1 + 2 * 6
    picture = np.asarray(Image.open(tmp_path / "run" / "grid.png"))
    assert picture.shape[2] == 3
    (events,) = (tmp_path / "run" / "tensorboard").iterdir()
    assert EventAccumulator(str(events)).Reload().Tags()["images"] == ["grid"]


@pytest.mark.parametrize(
    ("change", "argument"),
    [
        ({"timesteps": []}, "timesteps"),
        ({"timesteps": [5, 5]}, "timesteps"),
        ({"timesteps": [5, 1001]}, "timestep"),
        ({"modulation": "whiten"}, "modulation"),
        ({"tap": "middle"}, "tap"),
    ],
)
def test_a_search_that_cannot_be(change: dict, argument: str, tmp_path: Path) -> None:
    options = {"timesteps": [5], "num_pairs": 2, "device": "cpu", "run_dir": tmp_path / "run"}
    with pytest.raises(InputError) as caught:
        select("ditf-tiny", **(options | change))
    assert caught.value.argument == argument
    assert not list(tmp_path.glob("run/*"))
