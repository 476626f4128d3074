import re

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.data.image_pools import ImagePool
from ditf_probe.data.synthetic import SyntheticPairs


def photo(seed, height, width):
    """Smooth noise, `(3, H, W)` uint8."""
    noise = torch.rand(1, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    large = torch.nn.functional.interpolate(noise, (height, width), mode="bicubic").clamp(0, 1)
    return (large[0] * 255).round().byte()


def pool_of(images):
    return ImagePool(torch.stack(list(images)), torch.zeros(len(images), dtype=torch.long))


def slow_correlation(first, second):
    """Pearson's coefficient of two grey thumbnails, by numpy."""
    greys = [image.double().mean(0).reshape(16, 4, 16, 4).mean((1, 3)).flatten().numpy() for image in (first, second)]
    return np.corrcoef(*greys)[0, 1]


def test_nearest_is_the_highest_correlation_of_picture_or_mirror_image(benchmark):
    module = benchmark("near_duplicates")
    keys, queries = [photo(seed, 64, 64) for seed in range(7)], [photo(seed, 64, 64) for seed in (20, 21)]
    queries += [keys[5], keys[3].flip(2), 255 - (keys[1] // 2)]
    table = np.array([
        [max(slow_correlation(query, key), slow_correlation(query.flip(2), key)) for key in keys] for query in queries
    ])  # fmt: skip
    for chunk in (3, 100):
        best, where = module.nearest(module.thumbnails(torch.stack(queries)), pool_of(keys), chunk)
        np.testing.assert_allclose(best, table.max(1), atol=1e-4)
        assert where.tolist() == table.argmax(1).tolist()
    assert where.tolist()[2:4] == [5, 3]
    assert best[2:4].tolist() == pytest.approx([1.0, 1.0], abs=1e-4)


def test_a_photo_is_found_by_its_central_square(benchmark):
    """The pool holds squares of 72 pixels: the copy of a wide photo would be missed if it were squeezed."""
    module = benchmark("near_duplicates")
    wide = photo(0, 72, 150)
    pool = pool_of([photo(seed, 72, 72) for seed in (1, 2)] + [wide[:, :, 39:111]])
    best, where = module.nearest(module.thumbnails(module.square(wide)[None]), pool)
    assert where.tolist() == [2]
    assert best.item() > 0.99


def test_prints_planted_copies_and_writes_their_sheet(benchmark, tmp_path, capsys):
    folder = tmp_path / "photos" / "class"
    folder.mkdir(parents=True)
    test = SyntheticPairs("test", 1)
    planted = test.image(test.image_ids()[1]).permute(1, 2, 0).numpy()
    Image.fromarray(planted).save(folder / "copy.png")
    sheet = tmp_path / "sheet.png"
    arguments = ["--cache", tmp_path / "cache", "--photos", tmp_path / "photos", "--num-drawn", 5, "--num-pairs", 1]
    arguments += ["--willow", tmp_path / "photos", "--sheet", sheet]
    assert benchmark("__main__").main(["near_duplicates", *map(str, arguments)]) == 0
    printed = capsys.readouterr().out
    # Not 1: photos are kept at 72 pixels.
    assert re.search(r"SyntheticPairs test: 2 images, highest correlation 0\.99\d, median .*, 1 above 0\.95", printed)
    assert re.search(r"0\.99\d  image 1, pool 1, number 0", printed)
    assert re.search(r"PF-WILLOW: 1 images, highest correlation 0\.99\d, median 0\.99\d, 1 above 0\.95", printed)
    pixels = np.asarray(Image.open(sheet))
    assert pixels.shape == (64, 4 * 128, 3)
    np.testing.assert_array_equal(pixels[:, :64], planted)
    assert np.abs(pixels[:, 64:128].astype(int) - planted).mean() < 8
    assert not pixels[:, 3 * 128 :].any()
