"""Files are what safetensors would have written, and checksums notice damage."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ditf_probe.features.store.writing import checksum, write_safetensors


def test_the_library_reads_what_was_written(tmp_path: Path) -> None:
    """Sizes below, at and above a chunk, all dtypes, tensors without numbers, and names that need quoting."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "half": torch.randn(3, 7, generator=generator).half(),
        "brain": torch.randn(5, generator=generator).bfloat16(),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(3.5),
        'a "name" with ü': torch.randn(2**18, generator=generator),
        "long": torch.randn(3, 2**18 + 1, generator=generator),
    }
    found: dict[str, str] = {}

    def metadata(sums: dict[str, str]) -> dict[str, str]:
        found.update(sums)
        return {"facts": "ü" + "".join(sums.values())}

    write_safetensors(tmp_path / "mine", tensors, metadata)
    save_file(tensors, tmp_path / "theirs")
    mine, theirs = load_file(tmp_path / "mine"), load_file(tmp_path / "theirs")
    assert mine.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert (mine[name].dtype, mine[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(mine[name], tensor)
        assert found[name] == checksum(tensor) == checksum(mine[name])
    with safe_open(tmp_path / "mine", "pt") as file:
        written = file.metadata()["facts"]
    assert set(found.values()) == {written[1 + i : 33 + i] for i in range(0, 32 * len(tensors), 32)}


@pytest.mark.parametrize("count", [0, 1, 7, 8, 4095, 4096, 4097, 10_000, 2**20, 2**20 + 1, 2**21 + 700])
def test_a_checksum_notices_damage(count: int) -> None:
    """One bit changed, two pages exchanged, a page lost, another shape or dtype; sizes around pages and chunks."""
    data = torch.randint(0, 256, (count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(count))
    seen = {checksum(data), checksum(data.reshape(1, -1)), checksum(data.view(torch.int8))}
    assert len(seen) == 3
    for place in {0, count // 2, count - 1} if count else ():
        changed = data.clone()
        changed[place] ^= 1
        assert checksum(changed) not in seen
    if count >= 10_000:
        exchanged, lost = data.clone(), data.clone()
        exchanged[:4096], exchanged[4096:8192] = data[4096:8192], data[:4096]
        lost[:4096] = 0
        assert not {checksum(exchanged), checksum(lost)} & seen


def test_a_checksum_takes_bytes_that_start_anywhere() -> None:
    odd = torch.arange(12, dtype=torch.uint8)
    assert checksum(odd[2:]) == checksum(odd[2:].clone())
