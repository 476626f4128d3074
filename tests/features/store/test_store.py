"""What is written is what is read, by anyone, and nothing else is."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ditf_probe.backbones.base import TappedBlock
from ditf_probe.errors import InputError
from ditf_probe.features.store import FeatureStore
from ditf_probe.features.store import feature_store as module
from ditf_probe.features.store.journal import Line
from ditf_probe.features.store.manifest import address_of, folder_name
from ditf_probe.features.store.shards import write_shard


def reopened(store: FeatureStore, definition: dict[str, Any], **options: Any) -> FeatureStore:
    return FeatureStore(store.folder.parent, definition, **options)


def test_what_was_written_is_read(store: FeatureStore, definition: dict[str, Any], streams: Any) -> None:
    streams.write(store, [0, 1, 2])
    streams.write(store, [3, 4], [3, 7])
    for opened in (store, reopened(store, definition), reopened(store, definition, create=False)):
        streams.check(opened, [2, 0, 1, 4, 3])
        streams.check(opened, [3, 4], [7, 3])
        assert len(opened) == 5
        assert opened.blocks == [3, 7]
        assert opened.size("image1") == (8, 12)
        assert not opened.has("image0", [3, 7])
        with pytest.raises(InputError, match="image0"):
            opened.read("image0", [7])
    for name in ("manifest.json", *(path.name for path in store.folder.iterdir())):
        assert (store.folder / name).stat().st_mode & 0o777 == 0o644


def test_timesteps_and_gates_are_kept(store: FeatureStore, definition: dict[str, Any], streams: Any) -> None:
    several = {n: streams.block([n], 3) for n in (0, 1)}
    block = TappedBlock.join(list(several.values()), torch.stack).map(lambda x: x.transpose(0, 1))
    block = TappedBlock(block.hidden_states, None, block.scale, block.shift, block.norm, block.grid)
    store.write(["image"], [(8, 12)], {0: block})
    found = reopened(store, definition).read("image", [0])[0]
    assert found.hidden_states.shape == (1, 2, 6, 5)
    assert found.shift is None
    for name in ("hidden_states", "scale", "gate"):
        assert torch.equal(getattr(found, name), getattr(block, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_entries_are_views_of_the_file(
    store: FeatureStore, definition: dict[str, Any], streams: Any, dtype: torch.dtype
) -> None:
    store.write(["a", "b"], [(8, 12)] * 2, streams.blocks([0, 1], dtype=dtype))
    opened = reopened(store, definition)
    first, second, again = (opened.read(key, [3])[3].hidden_states for key in ("a", "b", "b"))
    assert first.dtype == dtype
    assert second.data_ptr() == first.data_ptr() + first.nbytes == again.data_ptr()
    assert torch.equal(second, streams.block([1], 3, dtype).hidden_states)
    first.zero_()  # stays in this process
    (shard,) = store.folder.glob("*.safetensors")
    assert torch.equal(load_file(shard)["3.hidden_states"], streams.block([0, 1], 3, dtype).hidden_states)


def test_several_writers_share_a_folder(store: FeatureStore, definition: dict[str, Any], streams: Any) -> None:
    other = reopened(store, definition)
    streams.write(store, [0, 1])
    streams.write(other, [1, 2])
    streams.write(store, [3])
    assert not other.has("image3", [3])
    for opened in (store, other):
        opened.refresh()
        streams.check(opened, range(4))
    first = {opened._places[3]["image1"][0] for opened in (store, other, reopened(store, definition))}
    assert len(first) == 1, "all read the same of two copies"


def test_what_is_there_is_not_written_again(store: FeatureStore, streams: Any) -> None:
    streams.write(store, [0, 1], [3])
    before = set(store.folder.iterdir())
    streams.write(store, [0, 1], [3])
    assert set(store.folder.iterdir()) == before
    streams.write(store, [0, 1], [3, 4])
    (new,) = set(store.folder.iterdir()) - before
    assert {name.split(".")[0] for name in load_file(new)} == {"4"}


def test_a_shard_without_a_line_is_found_by_its_header(
    store: FeatureStore, definition: dict[str, Any], streams: Any
) -> None:
    """A writer that is killed between the two, or in the middle of a line."""
    for number in range(3):
        streams.write(store, [number])
    (lines,) = store.folder.glob("*.jsonl")
    text = lines.read_bytes()
    for cut in (len(text), len(text) - 1, len(text) - 20, text.index(b"\n") + 1, text.index(b"\n"), 1, 0):
        lines.write_bytes(text[:cut])
        streams.check(reopened(store, definition), range(3))


def test_other_features_have_another_address(tmp_path: Path, definition: dict[str, Any], streams: Any) -> None:
    store = FeatureStore(tmp_path, definition)
    streams.write(store, [0])
    changed = {**definition, "timestep": 101}
    assert len(FeatureStore(tmp_path, changed)) == 0
    assert len(list(tmp_path.iterdir())) == 2
    reordered = dict(reversed(definition.items()))
    assert len(FeatureStore(tmp_path, reordered)) == 1


def test_a_mismatch_names_what_differs(tmp_path: Path, definition: dict[str, Any]) -> None:
    store = FeatureStore(tmp_path, definition)
    changed = {**definition, "timestep": 101, "backbone": {**definition["backbone"], "weights_sha256": "cd" * 32}}
    with pytest.raises(InputError) as caught:
        FeatureStore(store.folder, changed)
    for words in (str(store.folder), "timestep (100 there, 101 here)", "backbone.weights_sha256", "another folder"):
        assert words in str(caught.value)
    assert "config" not in str(caught.value)
    with pytest.raises(InputError, match=r"the closest are Planted-\w+: timestep \(100 there, 101 here\)$"):
        FeatureStore(tmp_path, {**definition, "timestep": 101}, create=False)
    with pytest.raises(InputError, match="holds no store"):
        FeatureStore(tmp_path / "empty", definition, create=False)
    assert [path.name for path in tmp_path.iterdir()] == [folder_name(definition)], "a refusal makes no folder"


def test_a_manifest_that_was_changed_is_refused(tmp_path: Path, definition: dict[str, Any]) -> None:
    store = FeatureStore(tmp_path, definition)
    file = store.folder / "manifest.json"
    manifest = json.loads(file.read_text())
    assert (manifest["definition"], manifest["sha256"]) == (definition, address_of(definition))
    for text, word in (
        (json.dumps(manifest | {"definition": {**definition, "timestep": 7}}), "another hash"),
        (json.dumps(manifest | {"format": 99}), "format 99"),
        ("{", "no readable manifest"),
        ("[]", "no readable manifest"),
    ):
        file.write_text(text)
        with pytest.raises(InputError, match=word):
            FeatureStore(tmp_path, definition)


@pytest.mark.parametrize("damage", ["cut", "grown", "empty", "foreign", "other definition"])
def test_damaged_and_foreign_files_serve_nothing(
    damage: str, store: FeatureStore, definition: dict[str, Any], streams: Any
) -> None:
    streams.write(store, [0, 1])
    streams.write(store, [2])
    shard = sorted(store.folder.glob("*.safetensors"))[0]
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-1])
    elif damage == "grown":
        shard.write_bytes(shard.read_bytes() + b"\0")
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "foreign":
        save_file({"x": torch.zeros(2)}, store.folder / "model.safetensors")
    else:
        write_shard(store.folder / "copied.safetensors", "0" * 64, ["image9"], [(8, 12)], streams.blocks([9]))
    (store.folder / "notes.txt").write_text("mine")
    with pytest.warns(UserWarning, match="damaged or no shard of this store"):
        opened = reopened(store, definition)
    streams.check(opened, [2])
    assert len(opened.damaged) == 1
    assert opened.has("image0", [3]) == (damage in ("foreign", "other definition"))
    assert not opened.has("image9", [3])
    streams.write(opened, [0, 1])
    streams.check(opened, [0, 1, 2])


def test_a_shard_that_is_cut_short_later_is_one_line(store: FeatureStore, streams: Any) -> None:
    streams.write(store, [0])
    (shard,) = store.folder.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(InputError, match=r"cut short or no shard, remove it with ditf-probe store gc"):
        store.read("image0", [3])


def test_too_little_room_is_refused_beforehand(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 64 * 2**20 + 1000

    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: Usage)
    store.check_space(1000, 3)
    with pytest.raises(InputError, match=r"3 images need .* GiB are free"):
        store.check_space(1001, 3)


def test_a_full_disk_leaves_nothing_behind(
    store: FeatureStore, definition: dict[str, Any], streams: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams.write(store, [0])
    before = {path: path.read_bytes() for path in store.folder.iterdir()}

    def full(path: Path, *arguments: Any) -> None:
        path.write_bytes(b"half a shard")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ditf_probe.features.store.shards.write_safetensors", full)
    with pytest.raises(InputError, match="No space left on device"):
        streams.write(store, [1])
    assert {path: path.read_bytes() for path in store.folder.iterdir()} == before
    monkeypatch.undo()
    streams.write(store, [1])
    streams.check(reopened(store, definition), [0, 1])


def test_a_hundred_thousand_entries_open_without_a_look_at_shards(tmp_path: Path, definition: dict[str, Any]) -> None:
    """Shards are empty files here: opening reads none. How long it takes: `python -m benchmarks store`."""
    folder, lines = FeatureStore(tmp_path, definition).folder, []
    for number in range(6250):
        name = f"{'ab' * 6}-{number:06d}.safetensors"
        os.close(os.open(folder / name, os.O_CREAT))
        keys = [f"spair-71k/category/{16 * number + row:08d}.jpg" for row in range(16)]
        lines.append(json.dumps(asdict(Line(name, 0, [3], keys, [(375, 500)] * 16))))
    (folder / f"{'ab' * 6}.jsonl").write_text("\n".join(lines) + "\n")
    opened = FeatureStore(tmp_path, definition)
    assert len(opened) == 100_000
    assert opened.has("spair-71k/category/00099999.jpg", [3])
