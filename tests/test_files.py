from pathlib import Path

import pytest
import torch

from ditf_probe.errors import InputError
from ditf_probe.files import ensure_writable, is_checkpoint, replacing, write_text


def test_replacing_keeps_the_old_file_on_failure(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "old")

    def fail_half_way() -> None:
        with replacing(tmp_path / "deep" / "a.txt") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (tmp_path / "deep" / "a.txt").read_text() == "old"
    assert len(list((tmp_path / "deep").iterdir())) == 1


def test_unwritable_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"`run_dir` is '.*file/run': cannot be written to"):
        ensure_writable(tmp_path / "file" / "run", "run_dir")
    assert ensure_writable(tmp_path / "new" / "run", "run_dir").is_dir()
    assert not list((tmp_path / "new" / "run").iterdir())


def test_a_checkpoint_is_there_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    assert not is_checkpoint(path)
    torch.save({"global_step": 3}, path)
    assert is_checkpoint(path)
    whole = path.read_bytes()
    for part in (b"", b"text", whole[:-100]):
        path.write_bytes(part)
        assert not is_checkpoint(path)
