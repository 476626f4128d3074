from pathlib import Path

import pytest
import torch

from ditf_probe.data.pairs import threshold_base
from ditf_probe.data.willow import PFWillow
from ditf_probe.errors import InputError
from ditf_probe.metrics.pck import PercentageCorrectKeypoints
from ditf_probe.tasks.controls import ColourPatches, same_position
from ditf_probe.tasks.rows import ROW_NAMES, check_names, chosen_rows, probe_names


def test_row_names_are_those_of_the_published_results() -> None:
    zero_shot = ("raw", "layer_norm", "adaln", "adaln+discard_pre", "adaln+discard_post", "adaln+debias")
    assert (*zero_shot, "same_position", "rgb", "untrained") == ROW_NAMES


def test_unknown_and_repeated_rows_are_named() -> None:
    with pytest.raises(InputError, match="adalm"):
        chosen_rows(["raw", "adalm"])
    with pytest.raises(InputError, match="once"):
        chosen_rows(["raw", "raw"])
    assert [row.name for row in chosen_rows(["rgb", "raw"])] == ["rgb", "raw"]


def test_only_discard_and_debias_need_calibration() -> None:
    needy = [row.name for row in chosen_rows(ROW_NAMES) if row.needs_calibration]
    assert needy == ["adaln+discard_pre", "adaln+discard_post", "adaln+debias"]


def test_probes_are_called_like_their_folders_or_with_their_run() -> None:
    assert list(probe_names(["runs/a/probes/linear", "runs/a/probes/mix"])) == ["linear", "mix"]
    both = probe_names(["runs/a/probes/linear", "runs/b/probes/linear", "runs/b/probes/mix"])
    assert list(both) == ["a/linear", "b/linear", "mix"]
    assert both["b/linear"] == Path("runs/b/probes/linear")
    for clash in (["runs/a/probes/x", "runs/a/probes/x"], ["runs/a/probes/adaln"]):
        with pytest.raises(InputError, match="probe_folders"):
            probe_names(clash)


def test_copies_from_seeds_are_called_like_their_head_and_stand_in_order(tmp_path: Path) -> None:
    heads = tmp_path / "a" / "probes", tmp_path / "b" / "probes"
    for folder in (heads[0] / "linear" / "seed10", heads[0] / "linear" / "seed9", heads[1] / "mix"):
        folder.mkdir(parents=True)
    names = probe_names([str(heads[0] / "linear"), str(heads[1] / "mix")])
    assert list(names) == ["linear/seed9", "linear/seed10", "mix"]
    assert names["linear/seed10"] == heads[0] / "linear" / "seed10"
    assert list(probe_names([str(heads[0] / "linear" / "seed9")])) == ["linear/seed9"]
    (heads[1] / "linear" / "seed9").mkdir(parents=True)
    both = probe_names([str(head / "linear") for head in heads])
    assert list(both) == ["a/linear/seed9", "a/linear/seed10", "b/linear/seed9"], "the copies of a head stay together"
    (heads[1] / "linear" / "probe.safetensors").touch()
    with pytest.raises(InputError, match="holds a probe and seed9"):
        probe_names([str(heads[1] / "linear")])


def test_a_head_without_copies_is_not_called_like_the_mean_over_those_of_another(tmp_path: Path) -> None:
    (tmp_path / "a" / "probes" / "linear" / "seed0").mkdir(parents=True)
    folders = [str(tmp_path / run / "probes" / "linear") for run in ("a", "b")]
    assert list(probe_names(folders)) == ["a/linear/seed0", "b/linear"]
    for name in ("linear", "linear/seed0"):
        with pytest.raises(InputError, match="no other row has"):
            check_names("others", [name], ["adaln", "linear/seed0", "linear/seed1"])
    check_names("others", ["seed0", "a/linear"], ["linear/seed0"])


def test_copies_of_two_runs_of_one_name_are_not_taken_for_those_of_one_head(tmp_path: Path) -> None:
    for seed, above in enumerate(("x", "y")):
        (tmp_path / above / "run" / "probes" / "linear" / f"seed{seed}").mkdir(parents=True)
    with pytest.raises(InputError, match=r"probe_folders.*another row is called 'run/linear/seed1'"):
        probe_names([str(tmp_path / above / "run" / "probes" / "linear") for above in ("x", "y")])
    (tmp_path / "adaln" / "seed0").mkdir(parents=True)
    with pytest.raises(InputError, match="probe_folders"):
        probe_names([str(tmp_path / "adaln")])


def test_colour_patches_hold_the_pixels_of_each_cell() -> None:
    images = torch.rand(2, 3, 8, 12)
    stream = ColourPatches(4)(images, blocks=[0])[0]
    assert stream.grid == (2, 3)
    expected = images[1, :, 4:8, 8:12].flatten() - 0.5
    torch.testing.assert_close(stream.hidden_states[1, 1 * 3 + 2], expected)
    with pytest.raises(InputError, match="multiples of 4"):
        ColourPatches(4)(torch.rand(1, 3, 8, 10), blocks=[0])


def test_same_position_keeps_the_relative_place() -> None:
    points = torch.tensor([[0.0, 0.0], [9.0, 4.0], [4.5, 2.0], [-0.5, 4.5]])
    found = same_position(points, (5, 10), (50, 20))
    # x: (x + 0.5) * 2 - 0.5, y: (y + 0.5) * 10 - 0.5.
    assert found.tolist() == [[0.5, 4.5], [18.5, 44.5], [9.5, 24.5], [-0.5, 49.5]]


def test_same_position_on_pf_willow_scores_what_is_known(shared_data: Path) -> None:
    pairs = PFWillow(shared_data / "pf-willow")
    metric = PercentageCorrectKeypoints()
    for pair in (pairs[i] for i in range(len(pairs))):
        found = same_position(pair.source.keypoints, pair.source.size, pair.target.size)
        base = torch.tensor([threshold_base(pair, pairs.threshold)])
        truth, visible = pair.target.keypoints[None], pair.visible[None]
        metric.update(found[None], truth, visible, base, torch.tensor([pair.index]), [pair.unit])
    assert round(float(metric.compute()["per_image"]["0.10"]), 1) == 27.0
