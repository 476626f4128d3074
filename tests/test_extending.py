"""The files of the page on extending, put where it says, train and compare."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ditf_probe.cli import evaluate, train
from ditf_probe.commands import main
from ditf_probe.configs_folder import CONFIGS

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()
FILES = dict(re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", PAGE, flags=re.DOTALL))
SMALLER = [
    "--data.init_args.train.init_args.num_pairs=4",
    "--data.init_args.val.init_args.num_pairs=2",
    "--model.init_args.rows=[adaln,same_position]",
    "--trainer.callbacks=[]",
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of `train.py`, with the files of the page and a few photos."""
    for name, text in FILES.items():
        (tmp_path / name).write_text(text.replace("path/to/photos", "photos"))
    (tmp_path / "configs").symlink_to(CONFIGS)
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 56, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{seed}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name.removesuffix(".py"), None)


def commands(program: str) -> list[list[str]]:
    """The command lines of the page that run a program, from its arguments on."""
    blocks = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    lines = [shlex.split(line.replace("path/to/photos", "photos")) for block in blocks for line in block.splitlines()]
    return [words[words.index(program) + 1 :] for words in lines if program in words]


def test_the_files_make_one_run(folder: Path) -> None:
    assert list(FILES) == ["my_head.py", "my_pairs.py", "my_row.yaml", "my_run.yaml"]
    (fit,), (test,) = commands("train.py"), commands("eval.py")
    train([*fit, *SMALLER])
    evaluate([*test, *SMALLER])
    (found,) = json.loads((folder / "runs" / "mine" / "comparison.json").read_text())["datasets"].values()
    assert [row["name"] for row in found["rows"]] == ["adaln", "my_row", "blur", "same_position"]
    assert (found["pairs"], found["keypoints"], found["unit"]) == (3, 48, "photo")


def test_keypoints_of_the_page_show_the_same_pixels(folder: Path) -> None:
    from my_pairs import MirroredPhotos  # type: ignore[import-not-found]

    pairs = MirroredPhotos("photos", grid=4)  # steps of 14 and 10 pixels, from 6.5 and 4.5 on
    for index in range(len(pairs)):
        source, target = pairs[index].source, pairs[index].target
        shown, mirrored = pairs.image(source.image_id), pairs.image(target.image_id)
        for (x, y), (u, v) in zip(source.keypoints.tolist(), target.keypoints.tolist(), strict=True):
            left, right, row = int(x - 0.5), int(u + 0.5), int(y - 0.5)
            assert v == y
            assert torch.equal(shown[:, row, left], mirrored[:, row, right])


def test_verify_takes_the_path_of_the_class(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (words,) = commands("ditf-probe")
    main(words)
    assert "pairs: 3, images: 6, keypoints: 48; problems: 0" in capsys.readouterr().out


def test_a_head_that_no_folder_could_hold_is_refused_before_it_is_trained(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    head = folder / "my_head.py"
    head.write_text(head.read_text().replace("        self.kernel = kernel\n", ""))
    (fit,) = commands("train.py")
    with pytest.raises(SystemExit) as end:
        train([*fit, *SMALLER])
    assert end.value.code == 2
    assert "keep its arguments ['kernel'] as attributes" in capsys.readouterr().err
    assert not (folder / "runs" / "mine" / "probes").exists()
