import numpy as np
import pytest
from PIL import Image

from ditf_probe.backbones.spec import tiny_spec
from ditf_probe.backbones.tiny import TinyDenoiser
from ditf_probe.data.synthetic import CATEGORIES, draw_image


@pytest.mark.parametrize(("photo_classes", "rows"), [(0, 2), (3, 4)])
def test_pictures_of_a_weights_file(photo_classes, rows, benchmark, tmp_path, capsys):
    names = [*CATEGORIES, *(f"photo/{i}" for i in range(photo_classes))]
    spec = tiny_spec("dit", names, width=32, head_dim=16, blocks=2, image_size=16)
    TinyDenoiser.untrained(spec).save(tmp_path / "tiny.safetensors")
    arguments = ["--weights", tmp_path / "tiny.safetensors", "--block", 1, "--timestep", 60, "--steps", 1]
    assert benchmark("__main__").main(["model_card", *map(str, arguments)]) == 0
    assert capsys.readouterr().out.split() == [str(tmp_path / name) for name in ("samples.png", "features.png")]
    samples, features = (np.asarray(Image.open(tmp_path / name)) for name in ("samples.png", "features.png"))
    assert samples.shape == (rows * 128, 1024, 3)
    assert features.shape == (1024, 1024, 3)
    # Shown 8 times as large: the fourth drawing stands in the first row, the features of the ninth in the fourth.
    shown = features[4:128:8, 3 * 128 + 4 : 4 * 128 : 8].transpose(2, 0, 1)
    assert np.abs(shown.astype(int) - draw_image("test", 3, 16)[0]).max() <= 1
    cells = features[3 * 128 : 4 * 128, :128].reshape(4, 32, 4, 32, 3)
    assert (cells == cells[:, :1, :, :1]).all()
    assert len(np.unique(cells.reshape(-1, 3), axis=0)) > 4
