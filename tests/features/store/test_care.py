"""`ditf-probe store ls|verify|gc`: what is there, what is broken, and what goes."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ditf_probe.commands import main
from ditf_probe.features.store import FeatureStore
from ditf_probe.features.store.care import rubbish, verify
from ditf_probe.features.store.shards import Shard, write_shard


@pytest.fixture
def filled(store: FeatureStore, streams: Any) -> FeatureStore:
    for number in range(0, 6, 2):
        streams.write(store, [number, number + 1])
    return store


def shards(store: FeatureStore) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


def run(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Code, standard output and standard error of `ditf-probe store`."""
    capsys.readouterr()
    code = 0
    try:
        main(["store", *words])
    except SystemExit as end:
        code = int(str(end.code))
    found = capsys.readouterr()
    return code, found.out, found.err


def change_inside(shard: Path) -> None:
    """One bit of the last tensor, by another route than the store's own."""
    data = bytearray(shard.read_bytes())
    data[-2] ^= 4
    shard.write_bytes(data)


def plant_nan(shard: Path, store: FeatureStore, streams: Any) -> None:
    """A shard whose checksums are right and whose numbers are not."""
    keys, blocks = Shard(shard).facts.keys, streams.blocks([0, 1])
    blocks[3].shift[0, 1] = float("nan")
    write_shard(shard, store.address, keys, [streams.size] * 2, blocks)


def test_ls_shows_what_is_there(filled: FeatureStore, definition: dict[str, Any], capsys: Any) -> None:
    FeatureStore(filled.folder.parent, {**definition, "timestep": 7, "conditions": {"prompt": "a {category}"}}, "other")
    code, out, _ = run(["ls", str(filled.folder.parent)], capsys)
    assert code == 0
    rows = [line for line in out.splitlines() if "Planted-" in line]
    assert len(rows) == 2
    mine, other = (next(row for row in rows if label in row) for label in ("planted", "other"))
    for words in (filled.folder.name, "t = 100", "float32", " 6 ", " 3 ", time.strftime("%Y-%m-%d")):
        assert words in mine
    for words in ("t = 7", "'a {category}'", " 0 "):
        assert words in other
    assert run(["ls", str(filled.folder)], capsys)[1].count("Planted-") == 1


def test_a_whole_store_verifies(filled: FeatureStore, capsys: Any) -> None:
    (filled.folder / "notes.txt").write_text("mine")
    code, out, err = run(["verify", str(filled.folder.parent)], capsys)
    assert (code, err) == (0, "")
    assert out == "4 files are whole, 0 are broken\n"


def test_verify_names_each_broken_file(filled: FeatureStore, streams: Any, capsys: Any) -> None:
    cut, changed, planted = shards(filled)
    cut.write_bytes(cut.read_bytes()[:-3])
    change_inside(changed)
    plant_nan(planted, filled, streams)
    (filled.folder / "empty.safetensors").touch()
    save_file({"x": torch.zeros(1)}, filled.folder / "model.safetensors")
    write_shard(filled.folder / "other.safetensors", "0" * 64, ["image9"], [(8, 12)], streams.blocks([9]))
    found = {path.name: problem for path, problem in verify(filled.folder) if problem is not None}
    assert "bytes and was written with" in found[cut.name]
    assert "another checksum" in found[changed.name]
    for name in ("empty.safetensors", "model.safetensors"):
        assert "no shard" in found[name]
    assert "another definition" in found["other.safetensors"]
    assert len(found) == 6
    code, out, err = run(["verify", str(filled.folder.parent)], capsys)
    assert code == 2
    assert all(name in out for name in found)
    assert "6 of its files are broken" in err


def test_verify_finds_numbers_that_are_not_finite(filled: FeatureStore, streams: Any) -> None:
    shard = shards(filled)[0]
    plant_nan(shard, filled, streams)
    assert dict(verify(filled.folder))[shard] == "3.shift has numbers that are NaN or infinite"


def test_a_damaged_manifest_is_named(filled: FeatureStore, capsys: Any) -> None:
    (filled.folder / "manifest.json").write_text("{")
    code, out, _ = run(["verify", str(filled.folder.parent)], capsys)
    assert code == 2
    assert f"{filled.folder / 'manifest.json'}: is no readable manifest" in out


def test_gc_removes_what_serves_nobody_and_nothing_else(
    filled: FeatureStore, definition: dict[str, Any], streams: Any, capsys: Any
) -> None:
    cut, changed, whole = shards(filled)
    cut.write_bytes(cut.read_bytes()[:-3])
    change_inside(changed)
    old, young = (filled.folder / f".{'c' * 12}-000000.safetensors.{name}" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, times=(time.time() - 7200,) * 2)
    orphan = filled.folder / f"{'d' * 12}.jsonl"
    orphan.write_text("")
    foreign = [filled.folder / name for name in ("notes.txt", "model.safetensors", ".hidden")]
    for path in foreign:
        path.write_bytes(b"mine")
    before = set(filled.folder.iterdir())
    root = str(filled.folder.parent)

    code, out, _ = run(["gc", root], capsys)
    assert code == 0
    assert set(filled.folder.iterdir()) == before, "shows only"
    assert "repeat the command with --yes" in out
    assert all(str(path) in out for path in (cut, old, orphan))
    run(["gc", root, "--yes"], capsys)
    assert before - set(filled.folder.iterdir()) == {cut, old, orphan}
    run(["gc", root, "--yes", "--deep", "--grace", "0"], capsys)
    assert before - set(filled.folder.iterdir()) == {cut, old, orphan, changed, young}
    foreign[1].unlink()
    streams.check(FeatureStore(filled.folder.parent, definition), [4, 5])
    assert rubbish(filled.folder, grace_minutes=0, deep=True) == []
    assert whole.is_file()


def test_gc_removes_whole_stores_by_name_or_age(filled: FeatureStore, definition: dict[str, Any], capsys: Any) -> None:
    root = filled.folder.parent
    other = FeatureStore(root, {**definition, "timestep": 7}).folder
    for path in other.iterdir():
        os.utime(path, times=(time.time() - 3 * 86400,) * 2)
    code, _, err = run(["gc", str(root), "--remove", "nothing"], capsys)
    assert code == 2
    assert "--remove" in err
    assert run(["gc", str(root), "--older-than", "-1"], capsys)[0] == 2
    run(["gc", str(root), "--older-than", "2"], capsys)
    assert other.is_dir()
    run(["gc", str(root), "--older-than", "4", "--yes"], capsys)
    assert other.is_dir()
    run(["gc", str(root), "--older-than", "2", "--yes"], capsys)
    assert not other.is_dir()
    (filled.folder / "notes.txt").write_text("mine")
    run(["gc", str(root), "--remove", filled.folder.name, "--yes"], capsys)
    assert [path.name for path in filled.folder.iterdir()] == ["notes.txt"], "foreign files stay"


def test_folders_that_are_not_there(tmp_path: Path, capsys: Any) -> None:
    for action in ("ls", "verify", "gc"):
        code, _, err = run([action, str(tmp_path / "nowhere")], capsys)
        assert code == 2
        assert "nowhere" in err
    assert run(["verify", str(tmp_path)], capsys)[0] == 2
