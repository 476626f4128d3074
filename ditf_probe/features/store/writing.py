"""Writes safetensors files in one pass over memory, with a checksum of each tensor in their header.

`safetensors.torch.save_file` would have to be told the checksums, and a pass over memory takes about as long as writing
to the page cache. Files are read by the library, which checks header and size.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_PAGE = 4096
_CHUNK = 2**20  # bytes, a multiple of a page; stays in the cache of a core between sum and write
_UNKNOWN = "0" * 32


class Checksum:
    """A fast checksum against damage: a hash of the sums of all pages, in their order.

    Pages are 4096 bytes, summed as 64-bit words. Any damage to a word changes the sum, and so do pages that are lost or
    exchanged; words that change places within one do not. It is no proof against intent, but reads memory many times as
    fast as SHA-256 or CRC would.

    Args:
        tensor: Whose dtype and shape are part of it.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())

    def update(self, data: Tensor) -> None:
        """Takes bytes in, `(N,)` uint8; N is a multiple of a page, but for the last ones."""
        whole = len(data) // _PAGE * _PAGE
        sums = data[:whole].view(torch.int64).reshape(-1, _PAGE // 8).sum(1)
        for part in (sums, data[whole:]):
            self._digest.update(part.numpy().tobytes())

    def text(self) -> str:
        """The checksum of what was taken in, 32 hexadecimal digits."""
        return self._digest.hexdigest()[:32]


def checksum(tensor: Tensor) -> str:
    """The checksum of a contiguous tensor in CPU memory; see `Checksum`."""
    found = Checksum(tensor)
    for chunk in _chunks(tensor):
        found.update(chunk)
    return found.text()


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Callable[[Mapping[str, str]], Mapping[str, str]]
) -> None:
    """Writes a safetensors file.

    Args:
        path: The file, empty or not there yet.
        tensors: Contiguous, in CPU memory, of float32, bfloat16 or float16.
        metadata: From the checksum of every tensor to the metadata of the file, whose length must not depend on them.

    Raises:
        OSError: The file cannot be written.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].element_size()))  # so that all are aligned
    sums = dict.fromkeys(ordered, _UNKNOWN)
    # An empty file that is truncated once more makes ext4 write it to disk when it is closed.
    with open(path, "wb", opener=lambda name, flags: os.open(name, flags & ~os.O_TRUNC, 0o644)) as file:
        file.write(_header(ordered, metadata(sums)))
        for name, tensor in ordered.items():
            found = Checksum(tensor)
            for chunk in _chunks(tensor):
                found.update(chunk)
                file.write(chunk.numpy().data)
            sums[name] = found.text()
        file.seek(0)
        file.write(_header(ordered, metadata(sums)))


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON text, padded so that data begin where the widest loads of a processor do."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.nbytes
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % 64)
    return len(text).to_bytes(8, "little") + text


def _chunks(tensor: Tensor) -> Iterator[Tensor]:
    """The bytes of a tensor, aligned to words, piece by piece."""
    data = tensor.detach().flatten().view(torch.uint8)
    if data.storage_offset() % 8 or data.data_ptr() % 8:
        data = data.clone()  # in a file tensors of two bytes may start anywhere
    yield from torch.split(data, _CHUNK)
