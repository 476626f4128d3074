"""The stereo pair: ground truth against the pixels, occlusion against a plain loop."""

import numpy as np
import pytest
import torch

from ditf_probe.data import StereoMotorcycle
from ditf_probe.data.photos import builtin_file
from ditf_probe.data.stereo import hidden
from ditf_probe.errors import InputError


@pytest.fixture(scope="module")
def windows() -> StereoMotorcycle:
    return StereoMotorcycle(num_pairs=6, num_keypoints=12)


def test_disparity_says_where_the_right_picture_shows_a_point() -> None:
    whole = StereoMotorcycle(num_pairs=1, window=None)
    left, right = (whole.image(f"motorcycle/{side}").double().mean(0).numpy() for side in ("left", "right"))
    disparity = np.load(builtin_file("motorcycle_disp.npz"))["arr_0"]
    assert left.shape == right.shape == disparity.shape == (500, 741)
    assert not np.isnan(disparity).any()
    assert 0.05 < np.isinf(disparity).mean() < 0.1
    ys, xs = np.nonzero(np.isfinite(disparity))

    def gap(sign: int) -> float:
        places = np.rint(xs - sign * disparity[ys, xs]).astype(int)
        kept = (places >= 0) & (places < 741)
        return float(np.abs(left[ys[kept], xs[kept]] - right[ys[kept], places[kept]]).mean())

    assert gap(1) < 9 < 30 < min(gap(0), gap(-1))


def test_keypoints_of_the_whole_pictures_follow_the_disparity() -> None:
    dataset = StereoMotorcycle(num_pairs=1, num_keypoints=40, window=None)
    pair = dataset[0]
    disparity = np.load(builtin_file("motorcycle_disp.npz"))["arr_0"]
    assert len(pair.visible) == 40
    assert pair.visible.all()
    for (x, y), (u, v) in zip(pair.source.keypoints.tolist(), pair.target.keypoints.tolist(), strict=True):
        assert u == pytest.approx(x - disparity[int(y), int(x)], abs=1e-4)
        assert v == y
        assert 0 <= u <= 740


def test_windows_show_the_same_places(windows: StereoMotorcycle) -> None:
    """Small patches around both keypoints are alike, those beside are not."""
    near, far = [], []
    for pair in windows:
        source, target = (windows.image(side.image_id).double() for side in (pair.source, pair.target))
        assert source.shape == target.shape == (3, 256, 256)
        assert len(pair.visible) >= 6
        for (x, y), (u, v) in zip(pair.source.keypoints.tolist(), pair.target.keypoints.tolist(), strict=True):
            assert 0 <= min(x, y, u, v) <= max(x, y, u, v) <= 255
            x, y, u, v = (round(number) for number in (x, y, u, v))
            patches = [source[:, y - 2 : y + 3, x - 2 : x + 3], target[:, v - 2 : v + 3, u - 2 : u + 3]]
            beside = target[:, v - 2 : v + 3, (u + 20) % 240 : (u + 20) % 240 + 5]
            if patches[0].shape == patches[1].shape == beside.shape == (3, 5, 5):
                near.append((patches[0] - patches[1]).abs().mean())
                far.append((patches[0] - beside).abs().mean())
    assert len(near) > 40
    assert torch.stack(near).median() < 0.5 * torch.stack(far).median()


def test_windows_cut_the_pictures(windows: StereoMotorcycle) -> None:
    pair = windows[0]
    side, (x, y, width, height) = "right", (int(n) for n in pair.target.image_id.split("/")[-1].split(","))
    assert torch.equal(
        windows.image(pair.target.image_id), windows.image(f"motorcycle/{side}")[:, y : y + height, x : x + width]
    )


def test_same_position_is_no_answer_in_windows(windows: StereoMotorcycle) -> None:
    gaps = torch.cat([(pair.source.keypoints - pair.target.keypoints).norm(dim=1) for pair in windows])
    assert (gaps <= 25.6).float().mean() < 0.25


def test_same_arguments_give_the_same_pairs(windows: StereoMotorcycle) -> None:
    again = StereoMotorcycle(num_pairs=9, num_keypoints=12)
    assert again[5].target.image_id == windows[5].target.image_id
    assert torch.equal(again[5].target.keypoints, windows[5].target.keypoints)
    other = StereoMotorcycle(num_pairs=6, num_keypoints=12, seed=1)
    assert other[5].target.image_id != windows[5].target.image_id
    assert {pair.unit for pair in windows} == {"motorcycle"}


def test_hidden_points_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    # A few planes of different depth, a hole of unknown disparity.
    disparity = np.full((8, 40), 3.0, dtype=np.float32)
    disparity[:, 15:22] = 9.0
    disparity[4:, 25:30] = 14.5
    disparity += rng.uniform(0, 0.4, disparity.shape).astype(np.float32)
    disparity[2, 5:8] = np.inf
    expected = np.ones(disparity.shape, dtype=bool)
    for y in range(8):
        for x in range(40):
            if not np.isfinite(disparity[y, x]) or x - disparity[y, x] < 0:
                continue
            cell = round(float(x - disparity[y, x]))
            nearer = [
                other
                for other in range(40)
                if np.isfinite(disparity[y, other])
                and other - disparity[y, other] >= 0
                and abs(round(float(other - disparity[y, other])) - cell) <= 1
                and disparity[y, other] > disparity[y, x] + 1
            ]
            expected[y, x] = bool(nearer)
    assert 0.1 < expected.mean() < 0.6
    assert (hidden(disparity) == expected).all()


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ({"num_pairs": -1}, "num_pairs"),
        ({"num_pairs": 2, "window": None}, "num_pairs"),
        ({"num_keypoints": 0}, "num_keypoints"),
        ({"window": 10}, "window"),
        ({"window": 501}, "window"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, culprit: str) -> None:
    with pytest.raises(InputError, match=f"`{culprit}` is "):
        StereoMotorcycle(**arguments)


def test_pairs_end(windows: StereoMotorcycle) -> None:
    assert len(list(windows)) == len(windows) == 6
    with pytest.raises(IndexError):
        windows[6]
