"""Block and timestep are chosen by scores that a plain loop gives as well."""

from pathlib import Path

import pytest
import torch

from ditf_probe import FeatureExtractor, InputError, SyntheticPairs, load_backbone, match_keypoints
from ditf_probe.commands import main
from ditf_probe.selection import Selection, score_blocks, select, write_preset

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
    scores = score_blocks(extractor, SyntheticPairs("val", num_pairs=12))
    assert scores == pytest.approx({block: score_by_loop(block, 100, 12) for block in (1, 3)})
    assert len(set(scores.values())) == 2


def test_the_best_cell_is_chosen_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    best = select("ditf-tiny", timesteps=[100, 900], num_pairs=12, device="cpu")
    cells = {(block, t): score_by_loop(block, t, 12) for block in (best.block,) for t in (100, 900)}
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
